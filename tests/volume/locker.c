/*
 * Locks one file as lines of input say: "try KIND TYPE START LEN", "wait ..." and "get ...", KIND being posix, ofd or flock,
 * TYPE r, w or u. Answers "ok" or the error's name; "get" the type that is in the way, or "u". A wait ends after a second,
 * by an alarm.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/time.h>
#include <unistd.h>

static void on_alarm(int sig)
{
	(void)sig;
}

static int lock_file(int fd, const char *what, const char *kind, char type, long start, long len,
		     char *ret)
{
	struct flock f = {.l_type = type == 'r'	  ? F_RDLCK
				    : type == 'w' ? F_WRLCK
						  : F_UNLCK,
			  .l_start = start,
			  .l_len = len};
	int waits = !strcmp(what, "wait"), ofd = !strcmp(kind, "ofd"), r;

	if (!strcmp(kind, "flock"))
		return flock(fd, (waits ? 0 : LOCK_NB) | (type == 'r'	? LOCK_SH
							  : type == 'w' ? LOCK_EX
									: LOCK_UN));
	if (strcmp(what, "get"))
		return fcntl(
			fd, waits ? (ofd ? F_OFD_SETLKW : F_SETLKW) : (ofd ? F_OFD_SETLK : F_SETLK),
			&f);
	r = fcntl(fd, ofd ? F_OFD_GETLK : F_GETLK, &f);
	*ret = f.l_type == F_RDLCK ? 'r' : f.l_type == F_WRLCK ? 'w' : 'u';
	return r;
}

int main(int argc, char **argv)
{
	const struct sigaction sa = {.sa_handler = on_alarm}; /* no SA_RESTART */
	const struct itimerval second = {.it_value.tv_sec = 1}, never = {0};
	int fd = open(argc > 1 ? argv[1] : "", O_RDWR);
	char what[8], kind[8], type;
	long start, len;

	if (fd < 0) {
		perror("open");
		return 1;
	}
	sigaction(SIGALRM, &sa, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("READY");
	while (scanf("%7s %7s %c %ld %ld", what, kind, &type, &start, &len) == 5) {
		char found = 0;
		int r;

		setitimer(ITIMER_REAL, &second, NULL);
		r = lock_file(fd, what, kind, type, start, len, &found);
		if (r < 0)
			puts(strerrorname_np(errno));
		else
			printf("%s%.1s\n", found ? "" : "ok", &found);
		setitimer(ITIMER_REAL, &never, NULL);
	}
	return 0;
}
