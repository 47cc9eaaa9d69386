/*
 * The first process of bench/vmm's guests: what a disk and a vsock connection carry, apart from everything else.
 *
 * It greets as the agent does (a connection to the host's port 1024, which harpoon-vmm waits for), then serves
 * connections to its own port 1024, one after the other. A connection begins with a letter and a number (u32, native):
 *
 *   s  sends so many MiB, closes
 *   r  reads to the end of file, sends a byte
 *   e  sends so many single bytes back
 *   b  reads and writes the disk, so many MiB, and tells the figures: lines of name, tab, value, tab, unit
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>
#include <linux/vm_sockets.h>

#define PORT 1024
#define BLOCK (1u << 20)
#define SMALL 4096u
#define STREAM_BLOCK (64u << 10)
#define NR_RANDOM 2000u
#define DISK "/dev/vda"

static char *buf;

static void die(const char *what)
{
	fprintf(stderr, "vmmguest: %s: %m\n", what);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void greet(void)
{
	const struct sockaddr_vm host = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = PORT};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)&host, sizeof(host)) ||
	    write(fd, "hrpn, from a bench guest", 24) != 24)
		die("greet");
	close(fd);
}

/* One pass over the disk in order; MB/s. */
static double disk_in_order(int fd, uint64_t mib, int writes)
{
	uint64_t start = now_ns();

	for (uint64_t i = 0; i < mib; i++) {
		off_t at = (off_t)(i * BLOCK);
		ssize_t n = writes ? pwrite(fd, buf, BLOCK, at) : pread(fd, buf, BLOCK, at);

		if (n != (ssize_t)BLOCK)
			die(DISK);
	}
	if (writes && fsync(fd))
		die("flush " DISK);
	return (double)mib * BLOCK * 1e3 / (double)(now_ns() - start);
}

/* Microseconds of one small block somewhere. */
static double disk_anywhere(int fd, uint64_t mib, int writes)
{
	uint64_t start = now_ns(), nr_blocks = mib * BLOCK / SMALL, at = 1;

	for (unsigned int i = 0; i < NR_RANDOM; i++) {
		off_t off;
		ssize_t n;

		/* Knuth's generator: everywhere, and the same each time. */
		at = at * 6364136223846793005u + 1442695040888963407u;
		off = (off_t)((at >> 33) % nr_blocks * SMALL);
		n = writes ? pwrite(fd, buf, SMALL, off) : pread(fd, buf, SMALL, off);
		if (n != (ssize_t)SMALL)
			die(DISK);
	}
	return (double)(now_ns() - start) / 1e3 / NR_RANDOM;
}

static void disk(int out, uint64_t mib)
{
	int fd = open(DISK, O_RDWR | O_DIRECT);

	if (fd < 0)
		die(DISK);
	dprintf(out, "disk, read in order\t%.1f\tMB/s\n", disk_in_order(fd, mib, 0));
	dprintf(out, "disk, write in order\t%.1f\tMB/s\n", disk_in_order(fd, mib, 1));
	dprintf(out, "disk, read 4 KiB anywhere\t%.1f\tus\n", disk_anywhere(fd, mib, 0));
	dprintf(out, "disk, write 4 KiB anywhere\t%.1f\tus\n", disk_anywhere(fd, mib, 1));
	close(fd);
}

static void send_all(int fd, uint64_t bytes)
{
	while (bytes) {
		ssize_t n = write(fd, buf, bytes < STREAM_BLOCK ? bytes : STREAM_BLOCK);

		if (n <= 0)
			die("send");
		bytes -= (uint64_t)n;
	}
}

static void serve(int fd)
{
	char what;
	uint32_t number;

	if (read(fd, &what, 1) != 1 || read(fd, &number, sizeof(number)) != sizeof(number))
		return;
	switch (what) {
	case 's':
		send_all(fd, (uint64_t)number * BLOCK);
		break;
	case 'r':
		while (read(fd, buf, STREAM_BLOCK) > 0)
			;
		send_all(fd, 1);
		break;
	case 'e':
		for (; number && read(fd, buf, 1) == 1; number--)
			send_all(fd, 1);
		break;
	case 'b':
		disk(fd, number);
		break;
	default:
		break;
	}
}

int main(void)
{
	const struct sockaddr_vm own = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (mount("dev", "/dev", "devtmpfs", 0, NULL))
		die("mount /dev");
	if (posix_memalign((void **)&buf, SMALL, BLOCK))
		die("memory");
	memset(buf, 'x', BLOCK);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&own, sizeof(own)) || listen(fd, 16))
		die("listen");
	greet();
	for (;;) {
		int c = accept(fd, NULL, NULL);

		if (c < 0)
			die("accept");
		serve(c);
		close(c);
	}
}
