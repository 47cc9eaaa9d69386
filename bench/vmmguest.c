/*
 * The first process of bench/vmm's guests: what each device carries, apart from everything else.
 *
 * It greets as the agent does (a connection to the host's port 1024, which harpoon-vmm waits for), then serves
 * connections to its own port 1024, by vsock and TCP, one after the other. A connection begins with a letter and a number
 * (u32, native):
 *
 *   s  sends so many MiB, closes
 *   r  reads to the end of file, sends a byte
 *   e  sends so many single bytes back
 *   b  reads and writes the disk, so many MiB, and tells the figures: lines of name, tab, value, tab, unit
 *   f  the same with files of the shared file system: FILES/in, of so many MiB, and new ones
 *   m  reads that file alone, by read() and by mmap()
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define PORT 1024
#define BLOCK (1u << 20)
#define SMALL 4096u
#define STREAM_BLOCK (64u << 10)
#define NR_RANDOM 2000u
#define DISK "/dev/vda"
#define FILES "/mnt/bench"
#define NR_FILES 300u
#define ADDRESS "10.78.0.2"

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

/* Knuth's generator: everywhere below nr, and the same each time. at: 1 at first. */
static uint64_t somewhere(uint64_t *at, uint64_t nr)
{
	*at = *at * 6364136223846793005u + 1442695040888963407u;
	return (*at >> 33) % nr;
}

/* Microseconds of one small block somewhere. */
static double disk_anywhere(int fd, uint64_t mib, int writes)
{
	uint64_t start = now_ns(), nr_blocks = mib * BLOCK / SMALL, at = 1;

	for (unsigned int i = 0; i < NR_RANDOM; i++) {
		off_t off = (off_t)(somewhere(&at, nr_blocks) * SMALL);
		ssize_t n;

		n = writes ? pwrite(fd, buf, SMALL, off) : pread(fd, buf, SMALL, off);
		if (n != (ssize_t)SMALL)
			die(DISK);
	}
	return (double)(now_ns() - start) / 1e3 / NR_RANDOM;
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags, 0600);

	if (fd < 0)
		die(path);
	return fd;
}

static void tell(int out, const char *where, const char *what, double value, const char *unit)
{
	dprintf(out, "%s, %s\t%.1f\t%s\n", where, what, value, unit);
}

static void disk(int out, uint64_t mib)
{
	int fd = open_or_die(DISK, O_RDWR | O_DIRECT);

	tell(out, "disk", "read in order", disk_in_order(fd, mib, 0), "MB/s");
	tell(out, "disk", "write in order", disk_in_order(fd, mib, 1), "MB/s");
	tell(out, "disk", "read 4 KiB anywhere", disk_anywhere(fd, mib, 0), "us");
	tell(out, "disk", "write 4 KiB anywhere", disk_anywhere(fd, mib, 1), "us");
	close(fd);
}

/* Microseconds to make a file, write a byte, and remove it. */
static double small_files(void)
{
	uint64_t start = now_ns();

	for (unsigned int i = 0; i < NR_FILES; i++) {
		char path[64];
		int fd;

		snprintf(path, sizeof(path), FILES "/small%u", i);
		fd = open_or_die(path, O_WRONLY | O_CREAT | O_EXCL);
		if (write(fd, buf, 1) != 1 || close(fd) || unlink(path))
			die(path);
	}
	return (double)(now_ns() - start) / 1e3 / NR_FILES;
}

static void files(int out, uint64_t mib)
{
	int in, new;

	if (mount("harpoon", "/mnt", "virtiofs", 0, NULL))
		die("mount /mnt");
	in = open_or_die(FILES "/in", O_RDONLY);
	/* What the host has in memory, and the guest has not; then both have it. */
	tell(out, "files", "read in order", disk_in_order(in, mib, 0), "MB/s");
	tell(out, "files", "read in order again", disk_in_order(in, mib, 0), "MB/s");
	close(in);
	in = open_or_die(FILES "/in", O_RDONLY | O_DIRECT);
	tell(out, "files", "read 4 KiB anywhere", disk_anywhere(in, mib, 0), "us");
	close(in);
	new = open_or_die(FILES "/new", O_RDWR | O_CREAT);
	tell(out, "files", "write in order", disk_in_order(new, mib, 1), "MB/s");
	close(new);
	tell(out, "files", "make and remove one", small_files(), "us");
	umount("/mnt");
}

/* Microseconds of the first byte of a page somewhere, mapped anew. */
static double map_anywhere(int fd, uint64_t mib)
{
	uint64_t nr_pages = mib * BLOCK / SMALL, at = 1, start;
	volatile const char *p = mmap(NULL, mib * BLOCK, PROT_READ, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		die("map " FILES "/in");
	start = now_ns();
	for (unsigned int i = 0; i < NR_RANDOM; i++)
		(void)p[somewhere(&at, nr_pages) * SMALL];
	return (double)(now_ns() - start) / 1e3 / NR_RANDOM;
}

static void mapped_files(int out, uint64_t mib)
{
	int in;

	if (mount("harpoon", "/mnt", "virtiofs", 0, NULL))
		die("mount /mnt");
	in = open_or_die(FILES "/in", O_RDONLY);
	tell(out, "file", "a page anywhere by mmap", map_anywhere(in, mib), "us");
	tell(out, "file", "read in order", disk_in_order(in, mib, 0), "MB/s");
	tell(out, "file", "read in order again", disk_in_order(in, mib, 0), "MB/s");
	tell(out, "file", "a page anywhere by mmap, later", map_anywhere(in, mib), "us");
	close(in);
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
	case 'f':
		files(fd, number);
		break;
	case 'm':
		mapped_files(fd, number);
		break;
	default:
		break;
	}
}

/* eth0 gets its address; what listens on it. */
static int listen_on_network(void)
{
	struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	struct ifreq ifr = {.ifr_name = "eth0"};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	inet_pton(AF_INET, ADDRESS, &own.sin_addr);
	memcpy(&ifr.ifr_addr, &own, sizeof(own));
	if (fd < 0 || ioctl(fd, SIOCSIFADDR, &ifr))
		die("set the address of eth0");
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &ifr))
		die("bring eth0 up");
	if (bind(fd, (const struct sockaddr *)&own, sizeof(own)) || listen(fd, 16))
		die("listen on eth0");
	return fd;
}

static int listen_on_vsock(void)
{
	const struct sockaddr_vm own = {
		.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (const struct sockaddr *)&own, sizeof(own)) || listen(fd, 16))
		die("listen on vsock");
	return fd;
}

int main(void)
{
	struct pollfd listeners[2];
	const int one = 1;

	if (mount("dev", "/dev", "devtmpfs", 0, NULL))
		die("mount /dev");
	if (posix_memalign((void **)&buf, SMALL, BLOCK))
		die("memory");
	memset(buf, 'x', BLOCK);
	listeners[0] = (struct pollfd){.fd = listen_on_vsock(), .events = POLLIN};
	listeners[1] = (struct pollfd){.fd = listen_on_network(), .events = POLLIN};
	greet();
	for (;;) {
		if (poll(listeners, 2, -1) < 0)
			die("poll");
		for (unsigned int i = 0; i < 2; i++) {
			int c = listeners[i].revents ? accept(listeners[i].fd, NULL, NULL) : -1;

			if (c < 0)
				continue;
			if (i)
				setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			serve(c);
			close(c);
		}
	}
}
