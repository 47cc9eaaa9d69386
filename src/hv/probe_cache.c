/*
 * The KVM probe's answer, kept for the rest of this boot of the host: it takes some 15 ms of processor time, and
 * every container's start asks. /run is empty after a boot; a /dev/kvm that is another one (the module was
 * loaded anew, its rights were changed) is probed anew. Without /dev/kvm there is nothing to keep.
 *
 * A file that cannot be read, is not ours or not understood is no answer; one that cannot be written costs time.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "probe.h"
#include "util.h"

#define PROBE_CACHE_DIR "/run/harpoon"
#define PROBE_CACHE_FILE "kvm-probe"
#define PROBE_CACHE_MAX 1024

/* The line that says what was probed. Caller frees; NULL = there is no /dev/kvm. */
static char *probe_cache_subject(void)
{
	struct stat st;

	if (stat("/dev/kvm", &st))
		return NULL;
	return xasprintf("1 %s %ju %jd.%09ld", HARPOON_VERSION, (uintmax_t)st.st_ino,
			 (intmax_t)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

static int probe_cache_open(void)
{
	struct stat st;
	int fd = open(PROBE_CACHE_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	if (fd >= 0 && (fstat(fd, &st) || st.st_uid || (st.st_mode & 022))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static bool probe_cache_parse(char *text, const char *subject, struct probe_kvm *ret)
{
	char *line2 = strchr(text, '\n'), *line3;
	unsigned long state;
	uint64_t speed;
	char *end;

	if (!line2)
		return false;
	*line2++ = '\0';
	line3 = strchr(line2, '\n');
	if (!line3 || strcmp(text, subject) != 0)
		return false;
	*line3++ = '\0';
	line3[strcspn(line3, "\n")] = '\0';
	state = strtoul(line2, &end, 10);
	if (end == line2 || state > PROBE_KVM_NATIVE || !*line3)
		return false;
	speed = strtoull(end, NULL, 10);
	*ret = (struct probe_kvm){.state = (enum probe_kvm_state)state, .insn_per_s = speed};
	snprintf(ret->text, sizeof(ret->text), "%s", line3);
	return true;
}

void probe_kvm_cached(struct probe_kvm *ret)
{
	cleanup_free char *subject = probe_cache_subject();
	cleanup_free char *text = NULL;
	cleanup_close int dir_fd = probe_cache_open();

	if (subject && dir_fd >= 0 &&
	    !io_read_file(dir_fd, PROBE_CACHE_FILE, PROBE_CACHE_MAX, &text, NULL) &&
	    probe_cache_parse(text, subject, ret))
		return;
	probe_kvm(ret);
	if (!subject || geteuid())
		return;
	if (dir_fd < 0 && !mkdir(PROBE_CACHE_DIR, 0700))
		dir_fd = probe_cache_open();
	free(text);
	text = xasprintf("%s\n%u %" PRIu64 "\n%s\n", subject, ret->state, ret->insn_per_s,
			 ret->text);
	if (dir_fd >= 0)
		io_replace_file(dir_fd, PROBE_CACHE_FILE, text, strlen(text));
}
