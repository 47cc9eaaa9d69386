/* Disks: who is one by which rule, containerd's lists as the guest is told of them, and locks on images. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cleanup.h"
#include "disks.h"
#include "rootdisks.h"
#include "util.h"

struct fixture {
	char dir[64];
	char path[4][128];
};

/* Images of one sector each. */
static int setup(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));

	snprintf(f->dir, sizeof(f->dir), "/tmp/harpoon-test-disks-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	for (size_t i = 0; i < ARRAY_SIZE(f->path); i++) {
		cleanup_close int fd = -1;

		snprintf(f->path[i], sizeof(f->path[i]), "%s/%zu", f->dir, i);
		fd = open(f->path[i], O_RDWR | O_CREAT | O_CLOEXEC, 0640);
		assert_true(fd >= 0 && !ftruncate(fd, 512));
	}
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(f->path); i++)
		unlink(f->path[i]);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static void test_access(void **state)
{
	struct oci_device_rule rules[] = {
		{.allow = false, .type = 'a', .major = -1, .minor = -1, true, true, true},
		{.allow = true, .type = 'b', .major = 7, .minor = 1, .read = true},
		{.allow = true, .type = 'b', .major = 8, .minor = -1, true, true, true},
		{.allow = true, .type = 'c', .major = 9, .minor = 0, true, true, true},
		{.allow = false, .type = 'b', .major = 8, .minor = 3, .write = true},
	};
	struct oci_resources res = {.device_rules = rules, .nr_device_rules = ARRAY_SIZE(rules)};

	assert_int_equal(disks_access(&res, 7, 1), DISKS_ACCESS_READ);
	assert_int_equal(disks_access(&res, 7, 2), 0);
	assert_int_equal(disks_access(&res, 8, 2), 7);
	assert_int_equal(disks_access(&res, 8, 3), DISKS_ACCESS_READ | DISKS_ACCESS_MKNOD);
	assert_int_equal(disks_access(&res, 9, 0), 0);
	/* By its own number, or with all others of its kind? */
	assert_true(disks_are_named(&res, 7, 1));
	assert_false(disks_are_named(&res, 8, 2));
	assert_false(disks_are_named(&res, 8, 3));
	assert_false(disks_are_named(&res, 9, 0));
	res.nr_device_rules = 0;
	assert_int_equal(disks_access(&res, 7, 1), 0);
}

static void expand(const char *text, size_t index, const char *expect)
{
	cleanup_free char *out = NULL;
	struct err err = {0};
	int r = rootdisks_expand(text, index, &out, &err);

	if (!expect) {
		assert_int_equal(r, -EINVAL);
		assert_non_null(strstr(err.msg, "template"));
		return;
	}
	assert_int_equal(r, 0);
	assert_string_equal(out, expect);
}

static void test_templates(void **state)
{
	expand("plain", 0, "plain");
	expand("upperdir={{ mount 0 }}/upper", 1, "upperdir=0/upper");
	expand("{{mount 1}}:{{ mount 0 }}", 2, "1:0");
	expand("lowerdir={{ overlay 1 3 }}", 4, "lowerdir=1:2:3");
	expand("lowerdir={{ overlay 3 1 }}", 4, "lowerdir=3:2:1");
	expand("lowerdir={{ overlay 2 2 }}", 4, "lowerdir=2");
	/* Of mounts that come later, of numbers that are none, of other words */
	expand("{{ mount 1 }}", 1, NULL);
	expand("{{ overlay 0 4 }}", 4, NULL);
	expand("{{ mount 99999999999999999999 }}", 4, NULL);
	expand("{{ mount -1 }}", 4, NULL);
	expand("{{ mount }}", 4, NULL);
	expand("{{ overlay 1 }}", 4, NULL);
	expand("{{ overlay 1 2 3 }}", 4, NULL);
	expand("{{ source 0 }}", 4, NULL);
	expand("{{ mount 0", 4, NULL);
	expand("{{", 4, NULL);
	expand("{{}}", 4, NULL);
}

static void test_wanted(void **state)
{
	struct fixture *f = *state;
	char *loop[] = {"loop", "ro"}, *bind[] = {"rbind"};
	struct mounts_entry e = {.type = "ext4", .source = "/no/such", .target = ""};

	assert_false(rootdisks_wanted(&e, 0));
	assert_false(rootdisks_wanted(&e, 1));
	e.options = loop;
	e.nr_options = 2;
	assert_true(rootdisks_wanted(&e, 1));
	e = (struct mounts_entry){.type = "ext4", .source = f->path[0], .target = ""};
	assert_true(rootdisks_wanted(&e, 1));
	e.type = "bind";
	assert_false(rootdisks_wanted(&e, 1));
	e.type = "none";
	e.options = bind;
	e.nr_options = 1;
	assert_false(rootdisks_wanted(&e, 1));
	e = (struct mounts_entry){.type = "overlay", .source = "overlay", .target = ""};
	assert_false(rootdisks_wanted(&e, 1));
}

static void test_list_with_layers(void **state)
{
	struct fixture *f = *state;
	struct oci_spec spec = {0};
	char *upper[] = {"rw", "loop", "x-other"}, *lower[] = {"ro", "loop"},
	     *top[] = {
		     "X-containerd.mkdir.path={{ mount 0 }}/up:0755",
		     "upperdir={{ mount 0 }}/up",
		     "workdir={{ mount 0 }}/work",
		     "lowerdir={{ overlay 1 2 }}:/",
		     "index=off",
	     };
	struct mounts_entry entries[] = {
		{"ext4", f->path[0], "", upper, 3},
		{"erofs", f->path[1], "", lower, 2},
		{"erofs", f->path[2], "", lower, 2},
		{"format/mkdir/overlay", "overlay", "", top, ARRAY_SIZE(top)},
	};
	struct disks *d = NULL;
	struct err err = {0};

	assert_int_equal(disks_new(&spec, AT_FDCWD, entries, ARRAY_SIZE(entries), &d, &err), 0);
	assert_int_equal(d->nr, 3);
	assert_false(d->v[0].read_only);
	assert_true(d->v[1].read_only && d->v[2].read_only);
	assert_int_equal(fcntl(d->v[0].fd, F_GETFL) & O_ACCMODE, O_RDWR);
	assert_int_equal(fcntl(d->v[1].fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(d->nr_root, 4);
	assert_string_equal(d->root[0].source, "disk:harpoon-0");
	assert_string_equal(d->root[0].data, "");
	assert_int_equal(d->root[1].flags, MS_RDONLY);
	assert_string_equal(d->root[3].type, "overlay");
	assert_string_equal(d->root[3].data,
			    "upperdir=0/up,workdir=0/work,lowerdir=1:2:share:r0,index=off");
	assert_int_equal(d->root[3].nr_folders, 1);
	assert_string_equal(d->root[3].folders[0], "0/up:0755");
	assert_int_equal(d->nr_shares, 1);
	assert_string_equal(d->shares[0].path, "/");
	assert_true(d->shares[0].read_only);
	disks_free(d);
}

static void refuse(struct mounts_entry *entries, size_t nr, int code, const char *word)
{
	struct oci_spec spec = {0};
	struct disks *d = NULL;
	struct err err = {0};

	assert_int_equal(disks_new(&spec, AT_FDCWD, entries, nr, &d, &err), code);
	if (!strstr(err.msg, word))
		fail_msg("'%s' is not in '%s'", word, err.msg);
	assert_null(d);
}

static void test_lists_that_are_refused(void **state)
{
	struct fixture *f = *state;
	char *loop[] = {"loop"}, *host[] = {"upperdir=/x/fs", "workdir=/x/work", "lowerdir=0"};
	char *climb[] = {"X-containerd.mkdir.path={{ mount 0 }}/../up"};
	char *absolute[] = {"X-containerd.mkdir.path=/etc/up"};
	struct mounts_entry e[] = {
		{"ext4", f->path[0], "", loop, 1},
		{"mkfs/ext4", f->path[1], "", loop, 1},
	};

	refuse(e, 2, -EOPNOTSUPP, "mount manager");
	e[1] = (struct mounts_entry){"fuse3.stargz", "x", "", loop, 1};
	refuse(e, 2, -EOPNOTSUPP, "FUSE");
	e[1] = (struct mounts_entry){"overlay", "overlay", "", host, 3};
	refuse(e, 2, -EOPNOTSUPP, "default_size");
	e[1] = (struct mounts_entry){"format/mkdir/overlay", "overlay", "", climb, 1};
	refuse(e, 2, -EOPNOTSUPP, "not in a disk");
	e[1].options = absolute;
	refuse(e, 2, -EOPNOTSUPP, "not in a disk");
	e[1] = (struct mounts_entry){"ext4", f->dir, "", loop, 1};
	refuse(e, 2, -ENOTBLK, "neither a block device");
	e[1] = (struct mounts_entry){"ext4", "/no/such", "", loop, 1};
	refuse(e, 2, -ENOENT, "/no/such");
	assert_int_equal(truncate(f->path[3], 100), 0);
	e[1] = (struct mounts_entry){"ext4", f->path[3], "", loop, 1};
	refuse(e, 2, -ENOMEDIUM, "is empty");
}

/* One writer, or any number of readers. */
static void test_locks(void **state)
{
	struct fixture *f = *state;
	struct oci_spec spec = {0};
	char *rw[] = {"loop"}, *ro[] = {"loop", "ro"};
	struct mounts_entry w = {"ext4", f->path[0], "", rw, 1},
			    r = {"ext4", f->path[0], "", ro, 2};
	struct disks *one = NULL, *two = NULL;
	struct err err = {0};

	assert_int_equal(disks_new(&spec, AT_FDCWD, &w, 1, &one, &err), 0);
	refuse(&w, 1, -EBUSY, "in use");
	refuse(&r, 1, -EBUSY, "in use");
	disks_free(one);
	assert_int_equal(disks_new(&spec, AT_FDCWD, &r, 1, &one, &err), 0);
	assert_int_equal(disks_new(&spec, AT_FDCWD, &r, 1, &two, &err), 0);
	refuse(&w, 1, -EBUSY, "in use");
	disks_free(one);
	/* As the VM's process has it when the shim has let go */
	disks_close(two);
	assert_int_equal(disks_new(&spec, AT_FDCWD, &w, 1, &one, &err), 0);
	disks_free(one);
	disks_free(two);
}

static void test_described(void **state)
{
	struct fixture *f = *state;
	struct oci_mount mounts[] = {
		{.destination = "/t", .type = "tmpfs", .source = "tmpfs", .data = ""},
		{.destination = "/d", .type = "ext4", .source = f->path[1], .data = "loop,noload"},
	};
	struct oci_spec spec = {.mounts = mounts, .nr_mounts = 2};
	VMREQ_PB(CreateContainerRequest) *r = xcalloc(1, sizeof(*r));
	struct disks *d = NULL;
	struct err err = {0};

	assert_int_equal(disks_new(&spec, AT_FDCWD, NULL, 0, &d, &err), 0);
	assert_int_equal(d->of_mount[0], -1);
	assert_int_equal(d->of_mount[1], 0);
	assert_true(disks_are_writable(d));
	assert_false(disks_make_root(d));
	harpoon__agent__v1__create_container_request__init(r);
	r->n_mounts = 2;
	r->mounts = xcalloc(2, sizeof(*r->mounts));
	for (size_t i = 0; i < 2; i++) {
		r->mounts[i] = xcalloc(1, sizeof(**r->mounts));
		harpoon__agent__v1__mount__init(r->mounts[i]);
		r->mounts[i]->source = xstrdup(mounts[i].source);
		r->mounts[i]->data = xstrdup(mounts[i].data);
	}
	disks_describe(d, r);
	assert_int_equal(r->n_disks, 1);
	assert_string_equal(r->disks[0]->serial, "harpoon-0");
	assert_string_equal(r->disks[0]->name, f->path[1]);
	assert_int_equal(r->disks[0]->access, 0);
	assert_string_equal(r->mounts[0]->source, "tmpfs");
	assert_string_equal(r->mounts[1]->source, "disk:harpoon-0");
	assert_string_equal(r->mounts[1]->data, "noload");
	vmreq_create_free(r);
	disks_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_access),
		cmocka_unit_test(test_templates),
		cmocka_unit_test_setup_teardown(test_wanted, setup, teardown),
		cmocka_unit_test_setup_teardown(test_list_with_layers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lists_that_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_locks, setup, teardown),
		cmocka_unit_test_setup_teardown(test_described, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
