/*
 * Prints what inotify tells of folders and files, a line for each event: WHERE EVENTS NAME. Says READY first; a line
 * of input ends it. For tests inside a guest.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

static const struct {
	unsigned int bit;
	const char *name;
} watch_bits[] = {
	{IN_CREATE, "CREATE"},		 {IN_DELETE, "DELETE"},		  {IN_MODIFY, "MODIFY"},
	{IN_ATTRIB, "ATTRIB"},		 {IN_MOVED_FROM, "MOVED_FROM"},	  {IN_MOVED_TO, "MOVED_TO"},
	{IN_CLOSE_WRITE, "CLOSE_WRITE"}, {IN_DELETE_SELF, "DELETE_SELF"}, {IN_ISDIR, "ISDIR"},
};

static unsigned int watch_mask(void)
{
	unsigned int mask = 0;

	for (size_t i = 0; i < sizeof(watch_bits) / sizeof(watch_bits[0]); i++)
		mask |= watch_bits[i].bit;
	return mask & ~IN_ISDIR;
}

static void watch_print(const struct inotify_event *e)
{
	printf("%d ", e->wd);
	for (size_t i = 0; i < sizeof(watch_bits) / sizeof(watch_bits[0]); i++) {
		if (e->mask & watch_bits[i].bit)
			printf("%s,", watch_bits[i].name);
	}
	printf(" %s\n", e->len ? e->name : "");
}

int main(int argc, char **argv)
{
	char buf[65536] __attribute__((aligned(8)));
	struct pollfd p[2] = {{.events = POLLIN}, {.fd = 0, .events = POLLIN}};

	p[0].fd = inotify_init1(IN_CLOEXEC);
	for (int i = 1; i < argc; i++) {
		if (inotify_add_watch(p[0].fd, argv[i], watch_mask()) < 0) {
			perror(argv[i]);
			return 1;
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("READY");
	while (poll(p, 2, -1) > 0 && !p[1].revents) {
		ssize_t n = read(p[0].fd, buf, sizeof(buf));

		for (ssize_t at = 0; at < n;) {
			const struct inotify_event *e = (const void *)(buf + at);

			watch_print(e);
			at += (ssize_t)(sizeof(*e) + e->len);
		}
	}
	return 0;
}
