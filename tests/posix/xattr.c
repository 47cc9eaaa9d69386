/* Extended attributes and access control lists. */
#include "posix.h"

#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>

/* The names in a list, in order: file systems may list them as they like. */
static int px_name_compare(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* What reads the table may take it for text. */
static void px_note_name(const char *name)
{
	char text[4 * 40 + 1];
	size_t len = 0;

	for (size_t i = 0; name[i] && i < 40; i++) {
		unsigned char c = (unsigned char)name[i];

		len += (size_t)snprintf(text + len, sizeof(text) - len,
					c < 0x20 || c >= 0x7f ? "\\x%02x" : "%c", c);
	}
	px_note("%s", text);
}

static void px_list(const char *path)
{
	static char list[65536];
	const char *names[64];
	size_t nr = 0;
	ssize_t n = llistxattr(path, list, sizeof(list));

	if (n < 0) {
		px_result(n);
		return;
	}
	for (ssize_t at = 0; at < n && nr < PX_SIZE(names); at += (ssize_t)strlen(list + at) + 1)
		names[nr++] = list + at;
	qsort(names, nr, sizeof(names[0]), px_name_compare);
	for (size_t i = 0; i < nr; i++)
		px_note_name(names[i]);
}

static char px_name_255[300], px_name_256[300];

static const char *const px_xattr_names[] = {
	"user.a",
	"user.",
	"user",
	"user.\xff\x01 ",
	"trusted.a",
	"security.a",
	"security.selinux",
	"security.capability",
	"security.ima",
	"system.a",
	"system.posix_acl_access",
	"other.a",
	"user.a.b.c",
	"",
	px_name_255,
	px_name_256,
};

static void px_xattr_ops(enum px_type type, size_t which, int user)
{
	const char *name = px_xattr_names[which];
	char value[256];

	px_check("xattr/%s/%zu-%.*s/%s", px_type_names[type], which, which == 3 ? 4 : 24, name,
		 px_users[user].name);
	px_become(user);
	px_result(lsetxattr(PX_W "/o", name, "value", 5, 0));
	px_number(lgetxattr(PX_W "/o", name, value, sizeof(value)));
	px_number(lgetxattr(PX_W "/o", name, NULL, 0));
	px_number(lgetxattr(PX_W "/o", name, value, 2));
	px_result(lsetxattr(PX_W "/o", name, "v2", 2, XATTR_CREATE));
	px_result(lsetxattr(PX_W "/o", name, "v3", 2, XATTR_REPLACE));
	px_list(PX_W "/o");
	px_result(lremovexattr(PX_W "/o", name));
	px_result(lremovexattr(PX_W "/o", name));
	px_result(lsetxattr(PX_W "/o", name, "v4", 2, XATTR_REPLACE));
	px_result(lsetxattr(PX_W "/o", name, "v5", 2, XATTR_CREATE | XATTR_REPLACE));
	px_result(lsetxattr(PX_W "/o", name, "", 0, 0));
	px_number(lgetxattr(PX_W "/o", name, value, sizeof(value)));
	px_become(PX_ROOT);
	px_done();
}

static void px_xattr_sizes(void)
{
	static char value[70000];
	static const size_t sizes[] = {0, 1, 255, 1000, 3000, 65536, 65537};

	for (size_t i = 0; i < PX_SIZE(sizes); i++) {
		px_fresh();
		px_file(PX_W "/o", "", 0644);
		memset(value, 'v', sizeof(value));
		px_check("xattr/size/%zu", sizes[i]);
		px_result(setxattr(PX_W "/o", "user.v", value, sizes[i], 0));
		px_number(getxattr(PX_W "/o", "user.v", value, sizeof(value)));
		px_number(getxattr(PX_W "/o", "user.v", value, 100));
		px_done();
	}
	px_check("xattr/list-without-room");
	px_result(setxattr(PX_W "/o", "user.abc", "1", 1, 0));
	px_number(listxattr(PX_W "/o", value, 3) < 0 ? -1 : 1);
	px_done();
	px_check("xattr/unknown-flag");
	px_result(setxattr(PX_W "/o", "user.x", "1", 1, 8));
	px_done();
}

void px_table_xattr(void)
{
	static const int users[] = {PX_ROOT, PX_OWNER, PX_OTHER};

	memset(px_name_255, 'n', 256);
	memcpy(px_name_255, "user.", 5);
	px_name_255[255] = 0;
	memset(px_name_256, 'n', 256);
	memcpy(px_name_256, "user.", 5);
	for (int type = PX_REG; type < PX_TYPES; type++) {
		if (type == PX_DIR_FULL || type == PX_LINK_SELF)
			continue;
		for (size_t n = 0; n < PX_SIZE(px_xattr_names); n++) {
			for (size_t u = 0; u < PX_SIZE(users); u++) {
				if (!px_turn())
					continue;
				px_fresh();
				px_make((enum px_type)type, PX_W "/o");
				px_must(lchown(PX_W "/o", 1000, 1000), "give away");
				px_xattr_ops((enum px_type)type, n, users[u]);
			}
		}
	}
	px_xattr_sizes();
	px_fresh();
}

/* --- access control lists --------------------------------------------------------------------------- */

struct px_ace {
	uint16_t tag, perm;
	uint32_t id;
};

#define ACE_END \
	{ \
		0, 0, 0 \
	}
#define ACE_BASE(u, g, o) \
	{ACL_USER_OBJ, u, ACL_UNDEFINED_ID}, {ACL_GROUP_OBJ, g, ACL_UNDEFINED_ID}, \
	{ \
		ACL_OTHER, o, ACL_UNDEFINED_ID \
	}
/* As the kernel wants them: by tag, then by id. */
static const struct {
	const char *name;
	struct px_ace e[8];
} px_acls[] = {
	{"base", {ACE_BASE(6, 4, 0), ACE_END}},
	{"named-user",
	 {{ACL_USER_OBJ, 6, ACL_UNDEFINED_ID},
	  {ACL_USER, 6, 1003},
	  {ACL_GROUP_OBJ, 4, ACL_UNDEFINED_ID},
	  {ACL_MASK, 7, ACL_UNDEFINED_ID},
	  {ACL_OTHER, 0, ACL_UNDEFINED_ID},
	  ACE_END}},
	{"masked-user",
	 {{ACL_USER_OBJ, 7, ACL_UNDEFINED_ID},
	  {ACL_USER, 7, 1003},
	  {ACL_GROUP_OBJ, 7, ACL_UNDEFINED_ID},
	  {ACL_MASK, 4, ACL_UNDEFINED_ID},
	  {ACL_OTHER, 7, ACL_UNDEFINED_ID},
	  ACE_END}},
	{"named-group",
	 {{ACL_USER_OBJ, 6, ACL_UNDEFINED_ID},
	  {ACL_GROUP_OBJ, 0, ACL_UNDEFINED_ID},
	  {ACL_GROUP, 6, 1002},
	  {ACL_MASK, 6, ACL_UNDEFINED_ID},
	  {ACL_OTHER, 0, ACL_UNDEFINED_ID},
	  ACE_END}},
	{"forbidden-user",
	 {{ACL_USER_OBJ, 6, ACL_UNDEFINED_ID},
	  {ACL_USER, 0, 1002},
	  {ACL_GROUP_OBJ, 6, ACL_UNDEFINED_ID},
	  {ACL_MASK, 7, ACL_UNDEFINED_ID},
	  {ACL_OTHER, 6, ACL_UNDEFINED_ID},
	  ACE_END}},
	{"no-mask",
	 {{ACL_USER_OBJ, 6, ACL_UNDEFINED_ID},
	  {ACL_USER, 6, 1003},
	  {ACL_GROUP_OBJ, 4, ACL_UNDEFINED_ID},
	  {ACL_OTHER, 0, ACL_UNDEFINED_ID},
	  ACE_END}},
	{"no-owner",
	 {{ACL_GROUP_OBJ, 4, ACL_UNDEFINED_ID}, {ACL_OTHER, 0, ACL_UNDEFINED_ID}, ACE_END}},
	{"bad-permission", {ACE_BASE(9, 4, 0), ACE_END}},
};

static size_t px_acl_bytes(size_t which, uint8_t *out)
{
	struct posix_acl_xattr_header h = {htole32(POSIX_ACL_XATTR_VERSION)};
	size_t len = sizeof(h);

	memcpy(out, &h, sizeof(h));
	for (const struct px_ace *e = px_acls[which].e; e->tag; e++) {
		struct posix_acl_xattr_entry x = {htole16(e->tag), htole16(e->perm),
						  htole32(e->id)};

		memcpy(out + len, &x, sizeof(x));
		len += sizeof(x);
	}
	return len;
}

static void px_note_acl(const char *path, const char *name)
{
	uint8_t b[512];
	ssize_t n = getxattr(path, name, b, sizeof(b));
	struct posix_acl_xattr_entry e;

	if (n < 0) {
		px_result(n);
		return;
	}
	for (ssize_t at = sizeof(struct posix_acl_xattr_header); at < n; at += (ssize_t)sizeof(e)) {
		memcpy(&e, b + at, sizeof(e));
		px_note("%x:%x:%d", le16toh(e.e_tag), le16toh(e.e_perm), (int)le32toh(e.e_id));
	}
}

static void px_acl_access(size_t which)
{
	uint8_t b[512];
	size_t len = px_acl_bytes(which, b);

	px_fresh();
	px_file(PX_W "/o", "content", 0640);
	px_must(chown(PX_W "/o", 1000, 1000), "give away");
	px_check("acl/%s/set", px_acls[which].name);
	px_result(setxattr(PX_W "/o", "system.posix_acl_access", b, len, 0));
	px_note_acl(PX_W "/o", "system.posix_acl_access");
	px_describe(PX_W "/o");
	px_done();
	for (int u = 0; u < PX_USERS; u++) {
		for (int want = 1; want <= 4; want *= 2) {
			px_check("acl/%s/%s/access-%d", px_acls[which].name, px_users[u].name,
				 want);
			px_become(u);
			px_result(faccessat(AT_FDCWD, PX_W "/o", want, AT_EACCESS));
			px_become(PX_ROOT);
			px_done();
		}
	}
	px_check("acl/%s/chmod", px_acls[which].name);
	px_result(chmod(PX_W "/o", 0614));
	px_note_acl(PX_W "/o", "system.posix_acl_access");
	px_describe(PX_W "/o");
	px_list(PX_W "/o");
	px_done();
	px_check("acl/%s/remove", px_acls[which].name);
	px_result(removexattr(PX_W "/o", "system.posix_acl_access"));
	px_describe(PX_W "/o");
	px_done();
}

static void px_acl_who(size_t which, enum px_type type, const char *name)
{
	uint8_t b[512];
	size_t len = px_acl_bytes(which, b);

	for (int u = 0; u < PX_USERS; u++) {
		px_fresh();
		px_make(type, PX_W "/o");
		px_must(chown(PX_W "/o", 1000, 1003), "give away");
		px_must(chmod(PX_W "/o", 02770), "set a mode");
		px_check("acl/who/%s/%s/%s/%s", px_acls[which].name, px_type_names[type], name + 17,
			 px_users[u].name);
		px_become(u);
		px_result(setxattr(PX_W "/o", name, b, len, 0));
		px_become(PX_ROOT);
		px_describe(PX_W "/o");
		px_note_acl(PX_W "/o", name);
		px_done();
	}
}

static void px_acl_default(size_t which)
{
	static const char *const kinds[] = {"file", "folder", "fifo"};
	uint8_t b[512];
	size_t len = px_acl_bytes(which, b);

	for (size_t k = 0; k < PX_SIZE(kinds); k++) {
		for (int mask = 0; mask <= 077; mask += 077) {
			px_fresh();
			px_must(mkdir(PX_W "/p", 0777), "make a folder");
			px_must(chmod(PX_W "/p", 0777), "set a mode");
			px_check("acl/default/%s/%s/umask-%03o", px_acls[which].name, kinds[k],
				 mask);
			px_result(setxattr(PX_W "/p", "system.posix_acl_default", b, len, 0));
			px_become(PX_OWNER);
			umask((mode_t)mask);
			if (k == 0)
				px_result(mknod(PX_W "/p/n", S_IFREG | 0666, 0));
			else if (k == 1)
				px_result(mkdir(PX_W "/p/n", 0777));
			else
				px_result(mkfifo(PX_W "/p/n", 0666));
			umask(022);
			px_become(PX_ROOT);
			px_describe(PX_W "/p/n");
			px_note_acl(PX_W "/p/n", "system.posix_acl_access");
			px_note_acl(PX_W "/p/n", "system.posix_acl_default");
			px_done();
		}
	}
}

void px_table_acl(void)
{
	for (size_t i = 0; i < PX_SIZE(px_acls); i++) {
		px_acl_access(i);
		px_acl_default(i);
	}
	px_acl_who(1, PX_REG, "system.posix_acl_access");
	px_acl_who(1, PX_REG, "system.posix_acl_default");
	px_acl_who(1, PX_DIR_EMPTY, "system.posix_acl_access");
	px_acl_who(1, PX_DIR_EMPTY, "system.posix_acl_default");
	px_acl_who(0, PX_DIR_EMPTY, "system.posix_acl_access");
	px_acl_who(1, PX_FIFO, "system.posix_acl_access");
	px_fresh();
}
