"""Where things are in the source tree, the build tree and the user's cache."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
HOST_BUILD = BUILD / "host"
ASAN_BUILD = BUILD / "asan"
GUEST_BUILD = BUILD / "guest"
# Another guest kernel for tests and benchmarks
KERNEL = ROOT / os.environ.get("HARPOON_TEST_KERNEL", GUEST_BUILD / "vmlinux")
INITRD = GUEST_BUILD / "initrd"
QEMU = "/usr/bin/qemu-system-x86_64"
RUNTIME = "io.containerd.harpoon.v1"


def cache_dir() -> pathlib.Path:
    """The user's cache folder for what is slow to make: guest kernels, images."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = pathlib.Path(base) / "harpoon"
    path.mkdir(parents=True, exist_ok=True)
    return path
