/*
 * Has a file mapped, shared, and obeys lines of input: "set PAGE LETTER" fills a page and writes it back, "wait PAGE
 * LETTER" looks at the mapping, and at nothing else, until the page is full of it ("0": of zeros, or behind the file's
 * end). An answer for each: "done". With a second argument the file is only read.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096u

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static sigjmp_buf behind_the_end;

static void on_bus_error(int sig)
{
	siglongjmp(behind_the_end, sig);
}

static int is_full(const volatile char *page, char letter)
{
	if (sigsetjmp(behind_the_end, 1))
		return !letter;
	for (unsigned int i = 0; i < PAGE; i++)
		if (page[i] != letter)
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	const int reads = argc > 2;
	int fd = open(argc > 1 ? argv[1] : "", reads ? O_RDONLY : O_RDWR);
	unsigned int page;
	struct stat st;
	char letter, *map;

	if (fd < 0 || fstat(fd, &st))
		die("open");
	map = mmap(NULL, (size_t)st.st_size, PROT_READ | (reads ? 0 : PROT_WRITE), MAP_SHARED, fd,
		   0);
	if (map == MAP_FAILED)
		die("map");
	close(fd);
	signal(SIGBUS, on_bus_error);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		char what[8];

		if (scanf("%7s %u %c", what, &page, &letter) != 3)
			return 0;
		if (page >= (unsigned int)(st.st_size / PAGE))
			return 2;
		if (!strcmp(what, "set")) {
			memset(map + (size_t)page * PAGE, letter, PAGE);
			if (msync(map + (size_t)page * PAGE, PAGE, MS_SYNC))
				die("write back");
		} else {
			while (!is_full(map + (size_t)page * PAGE, letter == '0' ? 0 : letter))
				usleep(1000);
		}
		puts("done");
	}
}
