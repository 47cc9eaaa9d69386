/*
 * Opening templates; see template.h. template_store.c makes and removes them.
 *
 * A template is whole or it is not there: it is filled under another name, its manifest is written last and
 * the name given in one step. What a crash or a disk leaves behind all the same shows in the hashes.
 * They are compared once per boot of the host; the stamp of that names the files by inode, size and the times
 * of change, of which the last cannot be set by anybody. Everything is opened once and used by descriptor,
 * so a template that is replaced meanwhile makes no difference.
 */
#include "template.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "io.h"
#include "manifest.h"
#include "sha256.h"
#include "template_internal.h"
#include "util.h"

#define TEMPLATE_PAGE 4096
#define TEMPLATE_USED_S 3600

const char *const template_files[TEMPLATE_NR_FILES] = {"memory", "state", "channel"};

void template_key(const char *text, char ret[TEMPLATE_KEY_LEN + 1])
{
	char hex[SHA256_HEX_LEN + 1];

	sha256_hex(text, strlen(text), hex);
	memcpy(ret, hex, TEMPLATE_KEY_LEN);
	ret[TEMPLATE_KEY_LEN] = '\0';
}

bool template_key_is_valid(const char *key)
{
	return strlen(key) == TEMPLATE_KEY_LEN &&
	       strspn(key, "0123456789abcdef") == TEMPLATE_KEY_LEN;
}

int template_open_dir(const char *dir, struct err *err)
{
	cleanup_close int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0)
		return errno == ENOENT ? -ENOENT
				       : err_set(err, -errno, "open the template folder '%s'", dir);
	if (fstat(fd, &st))
		return err_set(err, -errno, "look at the template folder '%s'", dir);
	if (st.st_uid != geteuid() || (st.st_mode & 022))
		return err_say(err, -EPERM,
			       "the template folder '%s' may be written to by others: chmod 700",
			       dir);
	return take_fd(&fd);
}

/* ---- the manifest ---- */

char *template_manifest_format(const struct template_manifest *m)
{
	cleanup_free char *head =
		xasprintf("harpoon-template %d\nkey %s\nvcpus %u\nmemory_mib %u\ntsc_khz %u\n"
			  "created %" PRId64 "\n",
			  TEMPLATE_VERSION, m->key, m->meta.nr_vcpus, m->meta.mem_mib,
			  m->meta.tsc_khz, m->meta.created);

	return manifest_print(head, template_files, TEMPLATE_NR_FILES, m->sizes, m->hashes);
}

/*
 * A manifest is what the function above makes of the values in it, to the letter. So there is one parser
 * for everything: read the values loosely, print them, compare.
 */
int template_manifest_parse(const char *text, struct template_manifest *ret)
{
	struct template_manifest m = {0};
	cleanup_free char *again = NULL;
	int version, at = 0;

	/* NOLINTNEXTLINE(cert-err34-c): a number read wrongly prints otherwise, below */
	if (sscanf(text,
		   "harpoon-template %d key %32s vcpus %" SCNu32 " memory_mib %" SCNu32
		   " tsc_khz %" SCNu32 " created %" SCNd64 " %n",
		   &version, m.key, &m.meta.nr_vcpus, &m.meta.mem_mib, &m.meta.tsc_khz,
		   &m.meta.created, &at) != 6 ||
	    !at)
		return -EPROTO;
	if (manifest_scan(text + at, TEMPLATE_NR_FILES, m.sizes, m.hashes))
		return -EPROTO;
	again = template_manifest_format(&m);
	if (strcmp(again, text) != 0)
		return -EPROTO;
	*ret = m;
	return 0;
}

static int template_read_manifest(int fd, const char *key, struct template_manifest *ret,
				  struct err *err)
{
	cleanup_free char *text = NULL;
	int r = io_read_file(fd, TEMPLATE_MANIFEST, TEMPLATE_MANIFEST_MAX, &text, NULL);

	if (r)
		return err_set(err, r, "read its manifest");
	r = template_manifest_parse(text, ret);
	if (r)
		return err_say(err, r, "its manifest is damaged");
	if (strcmp(ret->key, key) != 0)
		return err_say(err, -EPROTO, "it was made as another one ('%s')", ret->key);
	return 0;
}

int template_read_meta(int dir_fd, const char *key, struct template_meta *ret)
{
	cleanup_close int fd = openat(dir_fd, key, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	struct template_manifest m;
	struct err err = {0};
	int r = fd < 0 ? -errno : template_read_manifest(fd, key, &m, &err);

	if (!r)
		*ret = m.meta;
	return r;
}

/* ---- hashes, and the stamp that they were compared ---- */

/* Pages of zeros are left out, wherever the file system keeps them: guest memory is mostly those. */
static void template_hash_page(struct sha256 *s, uint64_t offset, const uint8_t *page, size_t len)
{
	uint64_t le = htole64(offset);

	if (!page[0] && !memcmp(page, page + 1, len - 1))
		return;
	sha256_add(s, &le, sizeof(le));
	sha256_add(s, page, len);
}

/* Where data goes on from `offset`, at a page's begin; `end` = nowhere. */
static off_t template_next_data(int fd, off_t offset, off_t end)
{
	off_t data = lseek(fd, offset, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? end : offset; /* a file system without holes */
	return data / TEMPLATE_PAGE * TEMPLATE_PAGE;
}

int template_hash(int fd, char hex[SHA256_HEX_LEN + 1])
{
	uint8_t data[16 * TEMPLATE_PAGE];
	struct sha256 s;
	struct stat st;
	uint64_t le;
	off_t at = 0;

	if (fstat(fd, &st))
		return -errno;
	sha256_init(&s);
	while ((at = template_next_data(fd, at, st.st_size)) < st.st_size) {
		ssize_t n = pread(fd, data, sizeof(data), at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		for (ssize_t k = 0; k < n; k += TEMPLATE_PAGE)
			template_hash_page(&s, (uint64_t)(at + k), data + k,
					   (size_t)MIN(n - k, (ssize_t)TEMPLATE_PAGE));
		at += n;
	}
	le = htole64((uint64_t)st.st_size);
	sha256_add(&s, &le, sizeof(le));
	sha256_end(&s, hex);
	return 0;
}

static void template_describe_file(FILE *f, const char *name, const struct stat *st)
{
	fprintf(f, "%s %ju %ju %jd %jd.%09ld %jd.%09ld\n", name, (uintmax_t)st->st_dev,
		(uintmax_t)st->st_ino, (intmax_t)st->st_size, (intmax_t)st->st_mtim.tv_sec,
		st->st_mtim.tv_nsec, (intmax_t)st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
}

/* What the stamp says when it is about these files. NULL when it cannot be known. */
static char *template_stamp(int fd, const int *fds)
{
	cleanup_free char *boot = NULL;
	char *text = NULL;
	size_t len = 0;
	struct stat st;
	FILE *f;

	if (io_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &boot, NULL) ||
	    fstatat(fd, TEMPLATE_MANIFEST, &st, AT_SYMLINK_NOFOLLOW))
		return NULL;
	f = open_memstream(&text, &len);
	if (!f)
		abort();
	fputs(boot, f);
	template_describe_file(f, TEMPLATE_MANIFEST, &st);
	for (size_t i = 0; i < TEMPLATE_NR_FILES; i++) {
		if (fstat(fds[i], &st))
			memset(&st, 0, sizeof(st));
		template_describe_file(f, template_files[i], &st);
	}
	fclose(f);
	return text;
}

static bool template_is_stamped(int fd, const char *stamp)
{
	cleanup_free char *text = NULL;

	return stamp && !io_read_file(fd, TEMPLATE_VERIFIED, TEMPLATE_MANIFEST_MAX, &text, NULL) &&
	       !strcmp(text, stamp);
}

/* Its time says when the template was used last. Once an hour is enough. */
static void template_touch(int fd)
{
	struct stat st;

	if (!fstatat(fd, TEMPLATE_VERIFIED, &st, AT_SYMLINK_NOFOLLOW) &&
	    st.st_mtime + TEMPLATE_USED_S < time(NULL))
		utimensat(fd, TEMPLATE_VERIFIED, NULL, AT_SYMLINK_NOFOLLOW);
}

static int template_compare_hashes(const struct template_manifest *m, const int *fds,
				   struct err *err)
{
	for (size_t i = 0; i < TEMPLATE_NR_FILES; i++) {
		char hex[SHA256_HEX_LEN + 1];
		int r = template_hash(fds[i], hex);

		if (r)
			return err_set(err, r, "read its file '%s'", template_files[i]);
		if (strcmp(hex, m->hashes[i]) != 0)
			return err_say(err, -EPROTO, "its file '%s' is damaged", template_files[i]);
	}
	return 0;
}

static int template_verify(int fd, const struct template_manifest *m, const int *fds,
			   struct err *err)
{
	cleanup_free char *stamp = template_stamp(fd, fds);
	cleanup_free char *after = NULL;
	int r;

	if (template_is_stamped(fd, stamp)) {
		template_touch(fd);
		return 0;
	}
	r = template_compare_hashes(m, fds, err);
	if (r)
		return r;
	/* Not if anything changed while it was being read. A stamp that cannot be written costs time only. */
	after = template_stamp(fd, fds);
	if (stamp && after && !strcmp(stamp, after))
		io_replace_file(fd, TEMPLATE_VERIFIED, stamp, strlen(stamp));
	return 0;
}

/* ---- opening ---- */

struct template_fds {
	int fd[TEMPLATE_NR_FILES];
};

static void template_fds_done(struct template_fds *f)
{
	for (size_t i = 0; i < TEMPLATE_NR_FILES; i++)
		cleanup_closep(&f->fd[i]);
}

static int template_open_files(int fd, const struct template_manifest *m, struct template_fds *ret,
			       struct err *err)
{
	for (size_t i = 0; i < TEMPLATE_NR_FILES; i++) {
		struct stat st;

		ret->fd[i] = openat(fd, template_files[i],
				    O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (ret->fd[i] < 0 || fstat(ret->fd[i], &st))
			return err_set(err, -errno, "open its file '%s'", template_files[i]);
		if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != m->sizes[i])
			return err_say(err, -EPROTO, "its file '%s' is not of %" PRIu64 " bytes",
				       template_files[i], m->sizes[i]);
	}
	return 0;
}

static int template_take(const struct template_manifest *m, struct template_fds *fds,
			 struct template **ret, struct err *err)
{
	cleanup(template_freep) struct template *t = xcalloc(1, sizeof(*t));
	ssize_t n;

	t->memory_fd = take_fd(&fds->fd[TEMPLATE_MEMORY]);
	t->state_fd = take_fd(&fds->fd[TEMPLATE_STATE]);
	t->meta = m->meta;
	memcpy(t->key, m->key, sizeof(t->key));
	n = pread(fds->fd[TEMPLATE_CHANNEL], t->channel, sizeof(t->channel), 0);
	if (n < 0 || (uint64_t)n != m->sizes[TEMPLATE_CHANNEL])
		return err_say(err, -EPROTO, "its file 'channel' is too long");
	t->channel_len = (size_t)n;
	*ret = take_ptr(&t);
	return 0;
}

static int template_open_at(int dir_fd, const char *key, struct template **ret, struct err *err)
{
	cleanup_close int fd = openat(dir_fd, key, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	cleanup(template_fds_done) struct template_fds fds = {{-1, -1, -1}};
	struct template_manifest m = {0};
	int r;

	if (fd < 0)
		return errno == ENOENT ? -ENOENT : err_set(err, -errno, "open it");
	r = template_read_manifest(fd, key, &m, err);
	if (!r)
		r = template_open_files(fd, &m, &fds, err);
	if (!r)
		r = template_verify(fd, &m, fds.fd, err);
	if (!r)
		r = template_take(&m, &fds, ret, err);
	/* A file that is missing is not a template that is missing. */
	return r == -ENOENT ? -EPROTO : r;
}

int template_open(const char *dir, const char *key, struct template **ret, struct err *err)
{
	cleanup_close int dir_fd = template_open_dir(dir, err);
	int r = dir_fd < 0 ? dir_fd : template_open_at(dir_fd, key, ret, err);

	if (r && r != -ENOENT)
		err_wrap(err, "template %s", key);
	return r;
}

int template_check(const char *dir, const char *key, struct err *err)
{
	cleanup(template_freep) struct template *t = NULL;
	cleanup_close int dir_fd = template_open_dir(dir, err);
	cleanup_close int fd = -1;

	if (dir_fd < 0)
		return dir_fd;
	fd = openat(dir_fd, key, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0)
		unlinkat(fd, TEMPLATE_VERIFIED, 0);
	return template_open(dir, key, &t, err);
}

void template_free(struct template *t)
{
	if (!t)
		return;
	cleanup_closep(&t->memory_fd);
	cleanup_closep(&t->state_fd);
	free(t);
}
