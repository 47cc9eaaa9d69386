"""What demo, benchmarks and integration tests share: images, a private containerd, leak checks."""
