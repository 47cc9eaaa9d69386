/*
 * The table of file system checks: a program that makes files below one folder, does something to them, and
 * prints what came of it, a line for each check: NAME = RESULT. It judges nothing. tests/integration runs it on a
 * file system of the host and on the same one through harpoon-fs, and compares the lines.
 *
 * A result therefore never holds what differs by nature: inode and device numbers, times, counts of blocks.
 *
 * Static, single-threaded, run as root; it keeps the capabilities alone that a container has by default.
 */
#pragma once

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>

#define PX_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PX_PATH_MAX 8192

/* Everything happens in here, below the working directory. */
#define PX_W "w"

struct px_user {
	const char *name;
	uid_t uid;
	gid_t gid;
	gid_t extra; /* a supplementary group; 0 = none */
};

enum { PX_ROOT, PX_OWNER, PX_GROUP, PX_SUPP, PX_OTHER, PX_USERS };
extern const struct px_user px_users[PX_USERS];

enum px_type {
	PX_NONE,
	PX_REG,
	PX_DIR_EMPTY,
	PX_DIR_FULL,
	PX_LINK_REG,
	PX_LINK_DIR,
	PX_LINK_NONE,
	PX_LINK_SELF,
	PX_FIFO,
	PX_SOCKET,
	PX_CHAR,
	PX_TYPES
};
extern const char *const px_type_names[PX_TYPES];

/* Other places that a check may need; NULL = not given, and such checks are left out. */
struct px_places {
	const char *
		read_only; /* a folder that cannot be written to, with what px_fill_read_only() made in it */
	const char *other; /* of another mount */
	const char *busy;  /* a mount point */
	const char *small; /* of a file system of 1 MiB and 64 inodes */
};
extern struct px_places px_places;

/*
 * Of the large tables only every px_stride-th check is made: whether it is the next one's turn. All of them with a
 * stride of 1.
 */
extern unsigned int px_stride;
bool px_turn(void);

/* A check: its name, then what it found, then the line is printed. */
void px_check(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void px_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* "ok", or the name of errno when r is negative. Returns r. */
long px_result(long r);
/* The same, with the number instead of "ok". */
long px_number(long r);
void px_done(void);
/* For what must work on the way to a check: ends the program with a sentence when r is negative. */
long px_must(long r, const char *what);

/* From here on as this user, or as root again. */
void px_become(int user);

/* PX_W anew and empty, of mode 0777. */
void px_fresh(void);
/* Removes whatever is there, with everything below. */
void px_remove(const char *path);
/* Makes one object; a link points to NAME.t beside it. */
void px_make(enum px_type type, const char *path);
void px_file(const char *path, const char *content, mode_t mode);
/* Type, mode, owner, links, size of what has this name, itself. */
void px_describe(const char *path);
/* The bytes of a file, as far as they can be printed on a line. */
void px_content(const char *path);
/* fn in a child, which may change anything of itself; its exit code is added to the result. */
void px_in_child(int (*fn)(void *), void *arg);

/* The tables. */
void px_table_calls(void);
void px_table_paths(void);
void px_table_access(void);
void px_table_folders(void);
void px_table_sticky(void);
void px_table_owner(void);
void px_table_rename(void);
void px_table_link(void);
void px_table_times(void);
void px_table_set_times(void);
void px_table_modes(void);
void px_table_set_id(void);
void px_table_xattr(void);
void px_table_acl(void);
void px_table_sizes(void);
void px_table_fallocate(void);
void px_table_seek(void);
void px_table_io(void);
void px_table_unlinked(void);
void px_table_mmap(void);
void px_table_locks(void);
void px_table_at(void);
void px_table_open(void);
void px_table_names(void);
void px_table_folder_reading(void);
void px_table_devices(void);
void px_table_places(void);
