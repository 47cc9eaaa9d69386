/*
 * Unit tests of src/oci: config.json as a text, every field, every kind of error with its path, limits, and the
 * configurations that the usual clients write. Resources and seccomp have programs of their own.
 */
#include "oci_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "io.h"
#include "sys.h"

#define SPEC cleanup(oci_test_spec_freep) struct oci_spec *

/* ---- the text ---- */

static void text_fails(const char *json, size_t len, int code, const char *msg)
{
	struct oci_spec *s = NULL;
	struct err err = {0};

	assert_int_equal(oci_spec_parse(json, len, &s, &err), code);
	assert_string_equal(err.msg, msg);
	assert_null(s);
	assert_int_equal(oci_spec_parse(json, len, &s, NULL), code);
}

static void test_text_is_strict_json(void **state)
{
	static const struct {
		const char *json, *msg;
	} t[] = {
		{"", "config.json: empty"},
		{"{", "config.json: not JSON at byte 1: ends too early"},
		{"{\"a\":\"b", "config.json: not JSON at byte 7: string without end"},
		{"{\"a\":\"\\", "config.json: not JSON at byte 7: string without end"},
		{"{\"a\":\"\\\"", "config.json: not JSON at byte 8: string without end"},
		{"[]", "config.json: not an object"},
		{"{}x", "config.json: not JSON at byte 2: unexpected character"},
		{"{} {}", "config.json: not JSON at byte 3: unexpected character"},
		{"{}1", "config.json: not JSON at byte 2: unexpected character"},
		{"{'a':1}", "config.json: not JSON at byte 1: unexpected character"},
		{"{/*a*/}", "config.json: not JSON at byte 1: unexpected character"},
		{"{\"a\":NaN}", "config.json: not JSON at byte 5: unexpected character"},
		{"{\"a\":+1}", "config.json: not JSON at byte 5: unexpected character"},
		{"{\"a\":1,}", "config.json: not JSON at byte 7: unexpected character"},
		{"{\"a\":01}", "config.json: not JSON at byte 5: not a number"},
		{"{\"a\":-}", "config.json: not JSON at byte 5: not a number"},
		{"{\"a\":1.}", "config.json: not JSON at byte 5: not a number"},
		{"{\"a\":1e+}", "config.json: not JSON at byte 5: not a number"},
		{"{\"a\":\"\\q\"}", "config.json: not JSON at byte 7: invalid string sequence"},
		{"{\"a\":\"\\u12g4\"}",
		 "config.json: not JSON at byte 10: invalid string sequence"},
		{"{\"a\":\"b\tc\"}",
		 "config.json: not JSON at byte 7: control character in a string"},
		{"{\"a\":\"\xff\"}", "config.json: not JSON at byte 6: not UTF-8"},
		{"{\"a\":\"\xed\xa0\x80\"}", "config.json: not JSON at byte 6: not UTF-8"},
		{"{\"a\":\"\xc0\x80\"}", "config.json: not JSON at byte 6: not UTF-8"},
		{"{\"a\":\"\xf4\x90\x80\x80\"}", "config.json: not JSON at byte 6: not UTF-8"},
		{"{\"a\":\"\xe2\x82", "config.json: not JSON at byte 6: not UTF-8"},
		{"{\"a\\u0000\":1}", "config.json: key with a NUL character before byte 11"},
		{"{\"a\":{\"b\":1,\"b\":2}}", "config.json: an object has the same key twice"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++)
		text_fails(t[i].json, strlen(t[i].json), -EINVAL, t[i].msg);
	text_fails("{\"a\":18446744073709551616}", 26, -ERANGE,
		   "config.json: number at byte 5 does not fit 64 bits");
	text_fails("{\"a\":-9223372036854775809}", 26, -ERANGE,
		   "config.json: number at byte 5 does not fit 64 bits");
	text_fails("{}\0", 3, -EINVAL, "config.json: not JSON at byte 2: unexpected character");
}

static void repeat_fails(const char *head, const char *unit, size_t nr, const char *tail, int code,
			 const char *msg)
{
	cleanup_free char *json = oci_test_repeat(head, unit, nr, tail);

	text_fails(json, strlen(json), code, msg);
}

#define HEAD "{\"ociVersion\":\"1.0.0\",\"root\":{\"path\":\"r\"},"

static void test_text_limits(void **state)
{
	repeat_fails(HEAD "\"x\":\"", "a", OCI_CONFIG_MAX, "\"}", -EFBIG,
		     "config.json: 16777265 bytes, more than the 16777216 that are read");
	repeat_fails("{\"x\":[", "[],", 32768, "1]}", -E2BIG,
		     "config.json: more than 32768 arrays and objects");
	repeat_fails("{\"x\":[", "1,", 1u << 20, "1,1]}", -E2BIG,
		     "config.json: more than 1048576 values");
	repeat_fails("{\"x\":", "[", OCI_DEPTH_MAX + 1, "]}", -EINVAL,
		     "config.json: nested deeper than 64 levels");
	repeat_fails(HEAD "\"process\":{\"cwd\":\"/\",\"args\":[", "\"\",", 65536, "\"\"]}}",
		     -E2BIG, "process.args: 65537 elements, more than 65536");
	repeat_fails(HEAD "\"process\":{\"cwd\":\"/\",\"args\":[\"", "a", 131072, "\"]}}", -EINVAL,
		     "process.args[0]: longer than 131071 bytes");
	repeat_fails(HEAD "\"hostname\":\"", "a", 65, "\"}", -EINVAL,
		     "hostname: longer than 64 bytes");
	repeat_fails(HEAD "\"mounts\":[", "{},", 1024, "{}]}", -E2BIG,
		     "mounts: 1025 elements, more than 1024");
	repeat_fails(HEAD "\"annotations\":{\"", "k", 4096, "\":\"\"}}", -EINVAL,
		     "annotations["
		     "\"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...\"]:"
		     " key longer than 4095 bytes");
	repeat_fails(HEAD "\"annotations\":{\"a\":\"", "v", 262145, "\"}}", -EINVAL,
		     "annotations[\"a\"]: longer than 262144 bytes");
}

/* Just inside the limits. */
static void test_text_limits_inside(void **state)
{
	cleanup_free char *args =
		oci_test_repeat("'process':{'cwd':'/','args':[", "'',", 65535, "'']}");
	/* The object that is the document is a level, and so is each value. */
	cleanup_free char *deep = oci_test_repeat("'x':", "[", OCI_DEPTH_MAX - 2, "");
	cleanup_free char *deeper = oci_test_repeat(deep, "]", OCI_DEPTH_MAX - 2, "");
	cleanup_free char *big = oci_test_repeat("'x':'", "a", OCI_CONFIG_MAX - 64, "'");
	SPEC a = oci_test_parse(args);
	SPEC b = oci_test_parse(deeper);
	SPEC c = oci_test_parse(big);

	assert_int_equal(a->process.args.nr, 65536);
	assert_null(a->process.args.v[65536]);
	assert_non_null(b);
	assert_non_null(c);
}

/* ---- fields ---- */

static void test_minimal(void **state)
{
	SPEC s = oci_test_parse("");

	assert_string_equal(s->version, "1.2.0");
	assert_string_equal(s->root_path, "rootfs");
	assert_false(s->root_readonly);
	assert_false(s->has_process);
	assert_null(s->hostname);
	assert_null(s->seccomp);
	assert_int_equal(s->nr_mounts, 0);
	assert_null(oci_spec_annotation(s, "a"));
	assert_null(oci_spec_namespace(s, CLONE_NEWPID));
	oci_spec_free(NULL);
}

static void test_null_and_unknown_are_absent(void **state)
{
	SPEC s = oci_test_parse("'hostname':null,'process':null,'mounts':null,'hooks':{'poststop':"
				"null},'linux':null,"
				"'annotations':null,'no_such_field':{'a':[1]},'windows':{'x':1},'"
				"zos':[],'solaris':1");

	assert_false(s->has_process);
	assert_null(s->hostname);
}

static void test_text_may_hold(void **state)
{
	SPEC s = oci_test_parse(
		"'x':[18446744073709551615,-9223372036854775808,1.5e-3,0,-0,1E9,true,false,null],"
		"'annotations':{'a':'\\u00e4\\ud83d\\ude00 \xc3\xa4\xf0\x9f\x98\x80 \\n\\\\'}");

	assert_string_equal(oci_spec_annotation(s, "a"),
			    "\xc3\xa4\xf0\x9f\x98\x80 \xc3\xa4\xf0\x9f\x98\x80 \n\\");
}

static void test_head(void **state)
{
	SPEC s = oci_test_parse("'hostname':'h','domainname':'d','annotations':{'a.b':'c','e':''},"
				"'linux':{'namespaces':[{'type':'uts'}]}");

	assert_string_equal(s->hostname, "h");
	assert_string_equal(s->domainname, "d");
	assert_int_equal(s->nr_annotations, 2);
	assert_string_equal(oci_spec_annotation(s, "a.b"), "c");
	assert_string_equal(oci_spec_annotation(s, "e"), "");
	assert_null(oci_spec_annotation(s, "a"));
}

static void test_process(void **state)
{
	SPEC s = oci_test_parse(
		"'process':{'terminal':true,'consoleSize':{'width':80,'height':25},'user':{'uid':1,"
		"'"
		"gid':2,"
		"'umask':18,'additionalGids':[3,4294967295]},'args':['a','b "
		"c'],'env':['A=1','B=x=y'],"
		"'cwd':'/w','noNewPrivileges':true,'oomScoreAdj':-1000,'apparmorProfile':'p',"
		"'selinuxLabel':'l','rlimits':[{'type':'RLIMIT_NOFILE','soft':1,'hard':"
		"18446744073709551615},"
		"{'type':'RLIMIT_RTTIME','soft':0,'hard':0}],"
		"'scheduler':{'policy':'SCHED_FIFO','priority':9,'flags':['SCHED_FLAG_RESET_ON_"
		"FORK']}"
		","
		"'ioPriority':{'class':'IOPRIO_CLASS_IDLE','priority':7}}");
	const struct oci_process *p = &s->process;

	assert_true(s->has_process && p->terminal && p->no_new_privileges);
	assert_int_equal(p->console_width, 80);
	assert_int_equal(p->console_height, 25);
	assert_int_equal(p->uid, 1);
	assert_int_equal(p->gid, 2);
	assert_true(p->has_umask);
	assert_int_equal(p->umask, 022);
	assert_int_equal(p->nr_additional_gids, 2);
	assert_int_equal(p->additional_gids[1], UINT32_MAX);
	assert_int_equal(p->args.nr, 2);
	assert_string_equal(p->args.v[1], "b c");
	assert_null(p->args.v[2]);
	assert_int_equal(p->env.nr, 2);
	assert_string_equal(p->env.v[1], "B=x=y");
	assert_string_equal(p->cwd, "/w");
	assert_true(p->has_oom_score_adj);
	assert_int_equal(p->oom_score_adj, -1000);
	assert_int_equal(p->nr_rlimits, 2);
	assert_int_equal(p->rlimits[0].resource, RLIMIT_NOFILE);
	assert_int_equal(p->rlimits[0].soft, 1);
	assert_true(p->rlimits[0].hard == RLIM_INFINITY);
	assert_int_equal(p->rlimits[1].resource, RLIMIT_RTTIME);
	assert_false(p->has_caps);
	assert_true(p->has_scheduler && p->has_io_priority);
	assert_int_equal(p->scheduler.policy, SCHED_FIFO);
	assert_int_equal(p->scheduler.priority, 9);
	assert_int_equal(p->scheduler.flags, 1);
	assert_int_equal(p->io_priority.class, IOPRIO_CLASS_IDLE);
	assert_int_equal(p->io_priority.priority, 7);
}

static void test_process_alone(void **state)
{
	static const char json[] = "{\"args\":[\"a\"],\"cwd\":\"/\",\"user\":{\"uid\":7}}";
	static const char bad[] = "{\"args\":[\"a\",1],\"cwd\":\"/\"}";
	cleanup(oci_test_process_freep) struct oci_process *p = NULL, *q = NULL;
	struct err err = {0};

	assert_int_equal(oci_process_parse(json, strlen(json), &p, &err), 0);
	assert_int_equal(p->uid, 7);
	assert_int_equal(oci_process_parse(bad, strlen(bad), &q, &err), -EINVAL);
	assert_string_equal(err.msg, "process.args[1]: not a string");
	assert_int_equal(oci_process_parse("[]", 2, &q, &err), -EINVAL);
	assert_string_equal(err.msg, "process: not an object");
	assert_null(q);
}

/* The last value of a name counts, at the place of the first, as runc has it; execve()'s getenv() would find the first. */
static void test_env_last_value_wins(void **state)
{
	SPEC s = oci_test_parse(
		"'process':{'args':['a'],'cwd':'/','env':['A=1','B=2','AB=9','A=3','C=','B=4']}");
	static const char *const want[] = {"A=3", "B=4", "AB=9", "C="};

	assert_int_equal(s->process.env.nr, ARRAY_SIZE(want));
	for (size_t i = 0; i < ARRAY_SIZE(want); i++)
		assert_string_equal(s->process.env.v[i], want[i]);
	assert_null(s->process.env.v[ARRAY_SIZE(want)]);
}

static void test_capabilities(void **state)
{
	SPEC s = oci_test_parse(
		"'process':{'args':['a'],'cwd':'/','capabilities':{"
		"'bounding':['CAP_CHOWN','CAP_CHECKPOINT_RESTORE','CAP_OF_THE_FUTURE','cap_kill'],"
		"'permitted':['CAP_KILL','CAP_SYS_ADMIN','CAP_BPF'],'effective':['CAP_KILL'],"
		"'inheritable':['CAP_KILL','CAP_CHOWN'],'ambient':['CAP_KILL','CAP_BPF','CAP_CHOWN'"
		"]}}");
	const struct oci_caps *c = &s->process.caps;

	assert_true(s->process.has_caps);
	assert_true(c->bounding == (1ull << CAP_CHOWN | 1ull << CAP_CHECKPOINT_RESTORE));
	assert_true(c->permitted == (1ull << CAP_KILL | 1ull << CAP_SYS_ADMIN | 1ull << CAP_BPF));
	assert_true(c->effective == 1ull << CAP_KILL);
	assert_true(c->inheritable == (1ull << CAP_KILL | 1ull << CAP_CHOWN));
	assert_true(c->ambient == 1ull << CAP_KILL);
}

static void test_all_capability_names(void **state)
{
	SPEC s = oci_test_parse(
		"'process':{'args':['a'],'cwd':'/','capabilities':{'bounding':["
		"'CAP_CHOWN','CAP_DAC_OVERRIDE','CAP_DAC_READ_SEARCH','CAP_FOWNER','CAP_FSETID','"
		"CAP_"
		"KILL',"
		"'CAP_SETGID','CAP_SETUID','CAP_SETPCAP','CAP_LINUX_IMMUTABLE','CAP_NET_BIND_"
		"SERVICE',"
		"'CAP_NET_BROADCAST','CAP_NET_ADMIN','CAP_NET_RAW','CAP_IPC_LOCK','CAP_IPC_OWNER',"
		"'CAP_SYS_MODULE','CAP_SYS_RAWIO','CAP_SYS_CHROOT','CAP_SYS_PTRACE','CAP_SYS_PACCT'"
		","
		"'CAP_SYS_ADMIN','CAP_SYS_BOOT','CAP_SYS_NICE','CAP_SYS_RESOURCE','CAP_SYS_TIME',"
		"'CAP_SYS_TTY_CONFIG','CAP_MKNOD','CAP_LEASE','CAP_AUDIT_WRITE','CAP_AUDIT_CONTROL'"
		","
		"'CAP_SETFCAP','CAP_MAC_OVERRIDE','CAP_MAC_ADMIN','CAP_SYSLOG','CAP_WAKE_ALARM',"
		"'CAP_BLOCK_SUSPEND','CAP_AUDIT_READ','CAP_PERFMON','CAP_BPF','CAP_CHECKPOINT_"
		"RESTORE'"
		"]}}");

	assert_true(s->process.caps.bounding == (1ull << (CAP_LAST_CAP + 1)) - 1);
}

static void test_hooks(void **state)
{
	SPEC s = oci_test_parse(
		"'hooks':{'prestart':[{'path':'/a'}],'createRuntime':[{'path':'/"
		"b','args':['b','1'],"
		"'env':['X=1'],'timeout':5},{'path':'/c'}],'createContainer':[{'path':'/d'}],"
		"'startContainer':[{'path':'/e'}],'poststart':[{'path':'/"
		"f'}],'poststop':[{'path':'/"
		"g'}]}");
	const struct oci_hook *b = &s->hooks[OCI_HOOK_CREATE_RUNTIME].v[0];

	assert_string_equal(s->hooks[OCI_HOOK_PRESTART].v[0].path, "/a");
	assert_int_equal(s->hooks[OCI_HOOK_CREATE_RUNTIME].nr, 2);
	assert_string_equal(b->path, "/b");
	assert_string_equal(b->args.v[1], "1");
	assert_string_equal(b->env.v[0], "X=1");
	assert_int_equal(b->timeout_s, 5);
	assert_int_equal(s->hooks[OCI_HOOK_CREATE_RUNTIME].v[1].timeout_s, 0);
	assert_string_equal(s->hooks[OCI_HOOK_CREATE_CONTAINER].v[0].path, "/d");
	assert_string_equal(s->hooks[OCI_HOOK_START_CONTAINER].v[0].path, "/e");
	assert_string_equal(s->hooks[OCI_HOOK_POSTSTART].v[0].path, "/f");
	assert_string_equal(s->hooks[OCI_HOOK_POSTSTOP].v[0].path, "/g");
}

static void test_linux(void **state)
{
	SPEC s = oci_test_parse(
		"'linux':{'namespaces':[{'type':'pid','path':''},{'type':'network','path':'/"
		"n'},{'type':'mount'},"
		"{'type':'ipc'},{'type':'uts'},{'type':'user'},{'type':'cgroup'},{'type':'time'}],"
		"'uidMappings':[{'containerID':0,'hostID':1000,'size':2}],"
		"'gidMappings':[{'containerID':5,'hostID':6,'size':4294967289}],"
		"'timeOffsets':{'boottime':{'secs':-9,'nanosecs':999999999}},"
		"'devices':[{'path':'/dev/"
		"f','type':'u','major':10,'minor':229,'fileMode':8630,'uid':3,'gid':4},"
		"{'type':'p','path':'/p'},{'path':'/b','type':'b','major':8,'minor':0}],"
		"'cgroupsPath':'/a/b','rootfsPropagation':'rslave','maskedPaths':['/"
		"m'],'readonlyPaths':['/r','/s'],"
		"'personality':{'domain':'LINUX','flags':[]},'mountLabel':'x','intelRdt':{},'"
		"netDevices':{}}");

	assert_int_equal(s->nr_namespaces, 8);
	assert_null(oci_spec_namespace(s, CLONE_NEWPID)->path);
	assert_string_equal(oci_spec_namespace(s, CLONE_NEWNET)->path, "/n");
	assert_non_null(oci_spec_namespace(s, 0x80));
	assert_int_equal(s->uid_mappings[0].host_id, 1000);
	assert_int_equal(s->gid_mappings[0].container_id, 5);
	assert_int_equal(s->gid_mappings[0].size, 4294967289u);
	assert_int_equal(s->nr_time_offsets, 1);
	assert_int_equal(s->time_offsets[0].clock, CLOCK_BOOTTIME);
	assert_int_equal(s->time_offsets[0].secs, -9);
	assert_int_equal(s->time_offsets[0].nanosecs, 999999999);
	assert_int_equal(s->nr_devices, 3);
	assert_int_equal(s->devices[0].mode, S_IFCHR | 0666);
	assert_int_equal(s->devices[0].major, 10);
	assert_int_equal(s->devices[0].minor, 229);
	assert_int_equal(s->devices[0].uid, 3);
	assert_int_equal(s->devices[0].gid, 4);
	assert_int_equal(s->devices[1].mode, S_IFIFO | 0666);
	assert_int_equal(s->devices[1].major, 0);
	assert_int_equal(s->devices[2].mode, S_IFBLK | 0666);
	assert_string_equal(s->cgroups_path, "/a/b");
	assert_int_equal(s->rootfs_propagation, MS_SLAVE | MS_REC);
	assert_string_equal(s->masked_paths.v[0], "/m");
	assert_int_equal(s->readonly_paths.nr, 2);
}

static void test_sysctl(void **state)
{
	SPEC s = oci_test_parse(
		"'linux':{'namespaces':[{'type':'network'},{'type':'ipc'},{'type':'uts'},{'type':'"
		"user','path':'/u'}],"
		"'sysctl':{'net.core.somaxconn':'1','net/ipv4/conf/eth0.5/"
		"rp_filter':'2','kernel.shm_rmid_forced':'1',"
		"'kernel/"
		"msgmax':'3','fs.mqueue.msg_max':'4','kernel.domainname':'d','user.max_net_"
		"namespaces':'5'}}");
	static const char *const keys[] = {
		"net.core.somaxconn",	   "net.ipv4.conf.eth0/5.rp_filter",
		"kernel.shm_rmid_forced",  "kernel.msgmax",
		"fs.mqueue.msg_max",	   "kernel.domainname",
		"user.max_net_namespaces",
	};

	assert_int_equal(s->nr_sysctls, ARRAY_SIZE(keys));
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		assert_string_equal(s->sysctls[i].key, keys[i]);
	assert_string_equal(s->sysctls[1].value, "2");
}

static void test_mount(void **state)
{
	SPEC s = oci_test_parse(
		"'mounts':[{'destination':'proc','type':'proc','source':'proc'},"
		"{'destination':'/d','source':'/"
		"s','type':'none','options':['rbind','ro','rslave']},"
		"{'destination':'/e','type':'bind','source':'rel'},{'destination':'/t'}]");

	assert_int_equal(s->nr_mounts, 4);
	assert_string_equal(s->mounts[0].destination, "/proc");
	assert_string_equal(s->mounts[0].data, "");
	assert_false(s->mounts[0].bind);
	assert_true(s->mounts[1].bind);
	assert_string_equal(s->mounts[1].type, "bind");
	assert_int_equal(s->mounts[1].flags, MS_BIND | MS_REC | MS_RDONLY);
	assert_int_equal(s->mounts[1].propagation, MS_SLAVE | MS_REC);
	assert_true(s->mounts[2].bind);
	assert_int_equal(s->mounts[2].flags, MS_BIND);
	assert_string_equal(s->mounts[3].type, "");
	assert_string_equal(s->mounts[3].source, "");
}

static void test_mount_options(void **state)
{
	static const struct {
		const char *options;
		uint64_t flags, clear, propagation, rset, rclear;
		const char *data;
	} t[] = {
		{"'defaults'", 0, 0, 0, 0, 0, ""},
		{"'nosuid','nodev','noexec','ro'", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0,
		 0, 0, 0, ""},
		{"'suid','dev','exec','rw'", 0, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0, 0,
		 0, ""},
		{"'ro','rw'", 0, MS_RDONLY, 0, 0, 0, ""},
		{"'rw','ro'", MS_RDONLY, 0, 0, 0, 0, ""},
		{"'sync','dirsync','mand','silent','iversion','lazytime'",
		 MS_SYNCHRONOUS | MS_DIRSYNC | MS_MANDLOCK | MS_SILENT | MS_I_VERSION | MS_LAZYTIME,
		 0, 0, 0, 0, ""},
		{"'async','nomand','loud','noiversion','nolazytime'", 0,
		 MS_SYNCHRONOUS | MS_MANDLOCK | MS_SILENT | MS_I_VERSION | MS_LAZYTIME, 0, 0, 0,
		 ""},
		{"'noatime','nodiratime','relatime','strictatime'",
		 MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME, 0, 0, 0, 0, ""},
		{"'atime','diratime','norelatime','nostrictatime'", 0,
		 MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME, 0, 0, 0, ""},
		{"'nosymfollow','remount'", 256 | MS_REMOUNT, 0, 0, 0, 0, ""},
		{"'symfollow'", 0, 256, 0, 0, 0, ""},
		{"'private'", 0, 0, MS_PRIVATE, 0, 0, ""},
		{"'rshared','rprivate'", 0, 0, MS_PRIVATE | MS_REC, 0, 0, ""},
		{"'shared'", 0, 0, MS_SHARED, 0, 0, ""},
		{"'runbindable'", 0, 0, MS_UNBINDABLE | MS_REC, 0, 0, ""},
		{"'rro','rnosuid','rnodev','rnoexec','rnodiratime','rnosymfollow'", 0, 0, 0,
		 MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
			 MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOSYMFOLLOW,
		 0, ""},
		{"'rrw','rsuid','rdev','rexec','rdiratime','rsymfollow'", 0, 0, 0, 0,
		 MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
			 MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOSYMFOLLOW,
		 ""},
		{"'rro','rrw'", 0, 0, 0, 0, MOUNT_ATTR_RDONLY, ""},
		{"'rnoatime'", 0, 0, 0, MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME, ""},
		{"'rnoatime','rstrictatime'", 0, 0, 0, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME,
		 ""},
		{"'rstrictatime','rrelatime'", 0, 0, 0, 0, MOUNT_ATTR__ATIME, ""},
		{"'ratime'", 0, 0, 0, 0, MOUNT_ATTR__ATIME, ""},
		{"'size=1m','','nosuid','mode=755','Ro'", MS_NOSUID, 0, 0, 0, 0,
		 "size=1m,mode=755,Ro"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		cleanup_free char *m = xasprintf("'mounts':[{'destination':'/a','type':'tmpfs',"
						 "'options':[%s]}]",
						 t[i].options);
		SPEC s = oci_test_parse(m);

		assert_int_equal(s->mounts[0].flags, t[i].flags);
		assert_int_equal(s->mounts[0].clear_flags, t[i].clear);
		assert_int_equal(s->mounts[0].propagation, t[i].propagation);
		assert_int_equal(s->mounts[0].recursive_attr_set, t[i].rset);
		assert_int_equal(s->mounts[0].recursive_attr_clear, t[i].rclear);
		assert_string_equal(s->mounts[0].data, t[i].data);
		assert_false(s->mounts[0].bind);
	}
}

/* ---- errors ---- */

struct bad {
	const char *members;
	int code;
	const char *msg;
};

static void all_fail(const struct bad *t, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		oci_test_fails(t[i].members, t[i].code, t[i].msg);
}

static void test_errors_of_types(void **state)
{
	static const struct bad t[] = {
		{"'hostname':1", -EINVAL, "hostname: not a string"},
		{"'hostname':'a\\u0000b'", -EINVAL, "hostname: contains a NUL character"},
		{"'process':[]", -EINVAL, "process: not an object"},
		{"'mounts':{}", -EINVAL, "mounts: not an array"},
		{"'mounts':[1]", -EINVAL, "mounts[0]: not an object"},
		{"'annotations':[]", -EINVAL, "annotations: not an object"},
		{"'annotations':{'a.b':1}", -EINVAL, "annotations[\"a.b\"]: not a string"},
		{"'annotations':{'\\n\\u00e4':1}", -EINVAL, "annotations[\"???\"]: not a string"},
		{"'annotations':{'':''}", -EINVAL, "annotations[\"\"]: empty key"},
		{"'process':{'terminal':1}", -EINVAL, "process.terminal: not true or false"},
		{"'process':{'user':{'uid':'0'}}", -EINVAL, "process.user.uid: not an integer"},
		{"'process':{'user':{'uid':1.0}}", -EINVAL, "process.user.uid: not an integer"},
		{"'process':{'user':{'uid':-1}}", -ERANGE,
		 "process.user.uid: not between 0 and 4294967295"},
		{"'process':{'user':{'uid':4294967296}}", -ERANGE,
		 "process.user.uid: not between 0 and 4294967295"},
		{"'process':{'user':{'umask':512}}", -ERANGE,
		 "process.user.umask: not between 0 and 511"},
		{"'process':{'user':{'additionalGids':[0,-1]}}", -ERANGE,
		 "process.user.additionalGids[1]: not between 0 and 4294967295"},
		{"'process':{'consoleSize':{'width':65536,'height':1}}", -ERANGE,
		 "process.consoleSize.width: not between 0 and 65535"},
		{"'process':{'args':'a'}", -EINVAL, "process.args: not an array"},
		{"'process':{'args':['a',null]}", -EINVAL, "process.args[1]: not a string"},
		{"'process':{'args':['a','b','c\\u0000']}", -EINVAL,
		 "process.args[2]: contains a NUL character"},
	};

	all_fail(t, ARRAY_SIZE(t));
}

#define PROCESS(members) "'process':{'args':['a'],'cwd':'/'," members "}"

static void test_errors_of_process(void **state)
{
	static const struct bad t[] = {
		{"'process':{'cwd':'/'}", -EINVAL, "process.args: missing"},
		{"'process':{'cwd':'/','args':[]}", -EINVAL, "process.args: empty"},
		{"'process':{'args':['a']}", -EINVAL, "process.cwd: missing"},
		{"'process':{'args':['a'],'cwd':''}", -EINVAL, "process.cwd: empty"},
		{"'process':{'args':['a'],'cwd':'w'}", -EINVAL,
		 "process.cwd: not an absolute path: 'w'"},
		{PROCESS("'env':['A=1','B']"), -EINVAL,
		 "process.env[1]: not of the form NAME=value: 'B'"},
		{PROCESS("'env':['=1']"), -EINVAL,
		 "process.env[0]: not of the form NAME=value: '=1'"},
		{PROCESS("'rlimits':[{'type':'RLIMIT_X','soft':1,'hard':1}]"), -EINVAL,
		 "process.rlimits[0].type: unknown value 'RLIMIT_X'"},
		{PROCESS("'rlimits':[{'type':'RLIMIT_CPU','soft':1}]"), -EINVAL,
		 "process.rlimits[0].hard: missing"},
		{PROCESS("'rlimits':[{'type':'RLIMIT_CPU','soft':2,'hard':1}]"), -EINVAL,
		 "process.rlimits[0]: soft limit above the hard limit"},
		{PROCESS("'rlimits':[{'type':'RLIMIT_CPU','soft':1,'hard':1},"
			 "{'type':'RLIMIT_CPU','soft':1,'hard':1}]"),
		 -EINVAL, "process.rlimits[1]: the same type as an earlier one"},
		{PROCESS("'oomScoreAdj':1001"), -ERANGE,
		 "process.oomScoreAdj: not between -1000 and 1000"},
		{PROCESS("'oomScoreAdj':-1001"), -ERANGE,
		 "process.oomScoreAdj: not between -1000 and 1000"},
		{PROCESS("'capabilities':{'effective':['CAP_KILL'],'permitted':['CAP_CHOWN']}"),
		 -EINVAL, "process.capabilities: effective has CAP_KILL, permitted does not"},
		{PROCESS("'capabilities':{'bounding':[1]}"), -EINVAL,
		 "process.capabilities.bounding[0]: not a string"},
		{PROCESS("'scheduler':{}"), -EINVAL, "process.scheduler.policy: missing"},
		{PROCESS("'scheduler':{'policy':'SCHED_ISO'}"), -EINVAL,
		 "process.scheduler.policy: unknown value 'SCHED_ISO'"},
		{PROCESS("'scheduler':{'policy':'SCHED_OTHER','nice':20}"), -ERANGE,
		 "process.scheduler.nice: not between -20 and 19"},
		{PROCESS("'scheduler':{'policy':'SCHED_FIFO','priority':-1}"), -ERANGE,
		 "process.scheduler: priority below 0"},
		{PROCESS("'scheduler':{'policy':'SCHED_OTHER','priority':1}"), -EINVAL,
		 "process.scheduler: priority is for SCHED_FIFO and SCHED_RR only"},
		{PROCESS("'scheduler':{'policy':'SCHED_RR','period':1}"), -EINVAL,
		 "process.scheduler: runtime, deadline and period are for SCHED_DEADLINE only"},
		{PROCESS("'scheduler':{'policy':'SCHED_RR','flags':['X']}"), -EINVAL,
		 "process.scheduler.flags[0]: unknown value 'X'"},
		{PROCESS("'ioPriority':{'class':'IOPRIO_CLASS_BE','priority':8}"), -ERANGE,
		 "process.ioPriority.priority: not between 0 and 7"},
		{PROCESS("'execCPUAffinity':{'initial':'0'}"), -EOPNOTSUPP,
		 "process.execCPUAffinity: not supported: CPU numbers of the host mean nothing "
		 "inside the VM"},
	};

	all_fail(t, ARRAY_SIZE(t));
}

#define MOUNT(members) "'mounts':[{'destination':'/a'},{'destination':'/b'," members "}]"

static void test_errors_of_mounts_and_hooks(void **state)
{
	static const struct bad t[] = {
		{"'mounts':[{'type':'proc'}]", -EINVAL, "mounts[0].destination: missing"},
		{"'mounts':[{'destination':''}]", -EINVAL, "mounts[0].destination: empty"},
		{MOUNT("'options':[1]"), -EINVAL, "mounts[1].options[0]: not a string"},
		{MOUNT("'options':['rbind']"), -EINVAL, "mounts[1]: a bind mount without source"},
		{MOUNT("'source':'/s','options':['bind','size=1']"), -EINVAL,
		 "mounts[1]: a bind mount with options for a file system: 'size=1'"},
		{MOUNT("'options':['ro','idmap']"), -EOPNOTSUPP,
		 "mounts[1].options[1]: not supported: id-mapped mounts ('idmap')"},
		{MOUNT("'options':['ridmap']"), -EOPNOTSUPP,
		 "mounts[1].options[0]: not supported: id-mapped mounts ('ridmap')"},
		{MOUNT("'options':['slave','shared']"), -EOPNOTSUPP,
		 "mounts[1].options[1]: not supported: a mount that is slave and shared at once"},
		{MOUNT("'uidMappings':[{'containerID':0,'hostID':1,'size':1}]"), -EOPNOTSUPP,
		 "mounts[1].uidMappings: not supported: id-mapped mounts"},
		{"'hooks':{'prestart':[{'path':'a'}]}", -EINVAL,
		 "hooks.prestart[0].path: not an absolute path: 'a'"},
		{"'hooks':{'poststop':[{'path':'/a'},{}]}", -EINVAL,
		 "hooks.poststop[1].path: missing"},
		{"'hooks':{'poststart':[{'path':'/a','timeout':0}]}", -ERANGE,
		 "hooks.poststart[0].timeout: not between 1 and 2147483647"},
	};

	all_fail(t, ARRAY_SIZE(t));
}

static void test_mount_data_is_bounded(void **state)
{
	cleanup_free char *m =
		oci_test_repeat("'mounts':[{'destination':'/a','options':['", "x", 4000,
				"','0123456789012345678901234567890123456789012345678901234567"
				"890123456789012345678901234567890123456789']}]");

	oci_test_fails(m, -E2BIG,
		       "mounts[0].options[1]: the options are longer than 4095 bytes together");
}

#define USER_NS "'namespaces':[{'type':'user'}]"
#define ONE_MAP "[{'containerID':0,'hostID':0,'size':1}]"

static void test_errors_of_linux(void **state)
{
	static const struct bad t[] = {
		{"'hostname':'a'", -EINVAL, "hostname: set without a namespace of type uts"},
		{"'domainname':'a'", -EINVAL, "domainname: set without a namespace of type uts"},
		{"'vm':{'kernel':{'path':'/k'}}", -EOPNOTSUPP,
		 "vm: not supported: hypervisor, kernel and image are chosen by harpoon.conf "
		 "alone"},
		{"'linux':{'namespaces':[{'type':'net'}]}", -EINVAL,
		 "linux.namespaces[0].type: unknown value 'net'"},
		{"'linux':{'namespaces':[{'type':'pid','path':'x'}]}", -EINVAL,
		 "linux.namespaces[0].path: not an absolute path: 'x'"},
		{"'linux':{'namespaces':[{'type':'pid'},{'type':'pid'}]}", -EINVAL,
		 "linux.namespaces[1]: the same type as an earlier one"},
		{"'linux':{'uidMappings':" ONE_MAP "}", -EINVAL,
		 "linux.uidMappings: set without a namespace of type user"},
		{"'linux':{" USER_NS ",'uidMappings':" ONE_MAP "}", -EINVAL,
		 "linux.uidMappings: a new user namespace needs uidMappings and gidMappings"},
		{"'linux':{'uidMappings':[{'containerID':0,'hostID':0,'size':0}]}", -ERANGE,
		 "linux.uidMappings[0].size: not between 1 and 4294967295"},
		{"'linux':{'gidMappings':[{'containerID':1,'hostID':0,'size':4294967295}]}",
		 -ERANGE, "linux.gidMappings[0]: reaches beyond the last id"},
		{"'linux':{'timeOffsets':{'monotonic':{'secs':1}}}", -EINVAL,
		 "linux.timeOffsets: set without a new namespace of type time"},
		{"'linux':{'timeOffsets':{'tai':{}}}", -EINVAL,
		 "linux.timeOffsets[\"tai\"]: unknown clock"},
		{"'linux':{'timeOffsets':{'monotonic':{'nanosecs':1000000000}}}", -ERANGE,
		 "linux.timeOffsets[\"monotonic\"].nanosecs: not between 0 and 999999999"},
		{"'linux':{'timeOffsets':1}", -EINVAL, "linux.timeOffsets: not an object"},
		{"'linux':{'devices':[{'path':'/a','type':'x'}]}", -EINVAL,
		 "linux.devices[0].type: unknown value 'x'"},
		{"'linux':{'devices':[{'path':'/a','type':'c','major':1}]}", -EINVAL,
		 "linux.devices[0]: major or minor missing"},
		{"'linux':{'devices':[{'path':'/a','type':'c','major':4096,'minor':0}]}", -ERANGE,
		 "linux.devices[0].major: not between 0 and 4095"},
		{"'linux':{'devices':[{'path':'/"
		 "a','type':'c','major':1,'minor':0,'fileMode':'x'}]}",
		 -EINVAL, "linux.devices[0].fileMode: not an integer"},
		{"'linux':{'cgroupsPath':'/a/../b'}", -EINVAL,
		 "linux.cgroupsPath: has a component '..'"},
		{"'linux':{'rootfsPropagation':'rw'}", -EINVAL,
		 "linux.rootfsPropagation: unknown value 'rw'"},
		{"'linux':{'maskedPaths':['a']}", -EINVAL,
		 "linux.maskedPaths[0]: not an absolute path: 'a'"},
		{"'linux':{'readonlyPaths':[7]}", -EINVAL, "linux.readonlyPaths[0]: not a string"},
		{"'linux':{'personality':{'domain':'LINUX32'}}", -EOPNOTSUPP,
		 "linux.personality.domain: not supported: only LINUX"},
		{"'linux':{'personality':{'domain':'BSD'}}", -EINVAL,
		 "linux.personality.domain: unknown value 'BSD'"},
		{"'linux':{'personality':{'domain':'LINUX','flags':['X']}}", -EOPNOTSUPP,
		 "linux.personality.flags: not supported: the specification defines no flag"},
		{"'linux':{'intelRdt':{'closID':'a'}}", -EOPNOTSUPP,
		 "linux.intelRdt: not supported: cache and bandwidth classes of the host's CPUs"},
		{"'linux':{'memoryPolicy':{'mode':'MPOL_BIND'}}", -EOPNOTSUPP,
		 "linux.memoryPolicy: not supported: memory nodes of the host"},
		{"'linux':{'netDevices':{'eth0':{}}}", -EOPNOTSUPP,
		 "linux.netDevices: not supported: network devices come from the container's "
		 "network namespace"},
	};

	all_fail(t, ARRAY_SIZE(t));
}

#define SYSCTL(key) "'linux':{'namespaces':[{'type':'mount'}],'sysctl':{'" key "':'1'}}"
#define SYSCTL_NS(key) \
	"'linux':{'namespaces':[{'type':'network'},{'type':'uts'},{'type':'ipc'}],'sysctl':{'" key \
	"':'1'}}"
#define AT_SYSCTL(key) "linux.sysctl[\"" key "\"]: "

static void test_errors_of_sysctl(void **state)
{
	static const struct bad t[] = {
		{SYSCTL("net.core.somaxconn"), -EINVAL,
		 AT_SYSCTL("net.core.somaxconn") "not allowed without a namespace of the "
						 "container's own for it"},
		{SYSCTL("kernel.sem"), -EINVAL,
		 AT_SYSCTL("kernel.sem") "not allowed without a namespace of the container's own "
					 "for it"},
		{SYSCTL_NS("user.max_user_namespaces"), -EINVAL,
		 AT_SYSCTL("user.max_user_namespaces") "not allowed without a namespace of the "
						       "container's own for it"},
		{SYSCTL_NS("kernel.core_pattern"), -EINVAL,
		 AT_SYSCTL("kernel.core_pattern") "not allowed: belongs to no namespace"},
		{SYSCTL_NS("vm.swappiness"), -EINVAL,
		 AT_SYSCTL("vm.swappiness") "not allowed: belongs to no namespace"},
		{SYSCTL_NS("kernel.hostname"), -EINVAL,
		 AT_SYSCTL("kernel.hostname") "not allowed: use the field hostname"},
		/* As paths: net/../../x, net/./x, net//x, net, and a space. */
		{SYSCTL_NS("net.//.//.kernel.core_pattern"), -EINVAL,
		 AT_SYSCTL("net.//.//.kernel.core_pattern") "not the name of a kernel parameter"},
		{SYSCTL_NS("net/../../kernel/core_pattern"), -EINVAL,
		 AT_SYSCTL("net/../../kernel/core_pattern") "not the name of a kernel parameter"},
		{SYSCTL_NS("net./.x"), -EINVAL,
		 AT_SYSCTL("net./.x") "not the name of a kernel parameter"},
		{SYSCTL_NS("net..x"), -EINVAL,
		 AT_SYSCTL("net..x") "not the name of a kernel parameter"},
		{SYSCTL_NS("net."), -EINVAL,
		 AT_SYSCTL("net.") "not the name of a kernel parameter"},
		{SYSCTL_NS("net"), -EINVAL, AT_SYSCTL("net") "not the name of a kernel parameter"},
		{SYSCTL_NS("net.a b"), -EINVAL,
		 AT_SYSCTL("net.a b") "not the name of a kernel parameter"},
	};

	all_fail(t, ARRAY_SIZE(t));
}

static void test_errors_of_head(void **state)
{
	static const struct bad t[] = {
		{"{'root':{'path':'r'}}", -EINVAL, "ociVersion: missing"},
		{"{'ociVersion':'1.0.0'}", -EINVAL, "root: missing"},
		{"{'ociVersion':'1.0.0','root':{}}", -EINVAL, "root.path: missing"},
		{"{'ociVersion':'1.0.0','root':{'path':''}}", -EINVAL, "root.path: empty"},
		{"{'ociVersion':'2.0.0','root':{'path':'r'}}", -EOPNOTSUPP,
		 "ociVersion: not supported: version '2.0.0', only 1.x"},
		{"{'ociVersion':'10.0.0','root':{'path':'r'}}", -EOPNOTSUPP,
		 "ociVersion: not supported: version '10.0.0', only 1.x"},
		{"{'ociVersion':'1','root':{'path':'r'}}", -EOPNOTSUPP,
		 "ociVersion: not supported: version '1', only 1.x"},
		{"{'ociVersion':'latest','root':{'path':'r'}}", -EINVAL,
		 "ociVersion: not a version: 'latest'"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		cleanup_free char *json = oci_test_quote(t[i].members);

		text_fails(json, strlen(json), t[i].code, t[i].msg);
	}
}

/* ---- what clients write ---- */

static struct oci_spec *client_parse(const char *name)
{
	cleanup_close int dir = open(OCI_CORPUS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_free char *json = NULL;
	struct oci_spec *s = NULL;
	struct err err = {0};
	size_t len;

	assert_true(dir >= 0);
	assert_int_equal(io_read_file(dir, name, OCI_CONFIG_MAX, &json, &len), 0);
	if (oci_spec_parse(json, len, &s, &err) < 0)
		fail_msg("%s: %s", name, err.msg);
	return s;
}

static const struct oci_mount *mount_at(const struct oci_spec *s, const char *destination)
{
	for (size_t i = 0; i < s->nr_mounts; i++)
		if (!strcmp(s->mounts[i].destination, destination))
			return &s->mounts[i];
	fail_msg("no mount at %s", destination);
	return NULL;
}

static void test_client_ctr(void **state)
{
	SPEC s = client_parse("ctr.json");
	SPEC p = client_parse("ctr-privileged.json");

	assert_string_equal(s->process.args.v[0], "echo");
	assert_true(s->process.caps.effective == 0xa80425fb);
	assert_int_equal(s->nr_mounts, 7);
	assert_string_equal(mount_at(s, "/dev")->data, "mode=755,size=65536k");
	assert_int_equal(mount_at(s, "/sys")->flags, MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY);
	assert_int_equal(s->masked_paths.nr, 10);
	assert_int_equal(s->resources.nr_files, 0);
	assert_int_equal(s->resources.nr_device_rules, 10);
	assert_non_null(oci_spec_namespace(s, CLONE_NEWNET));
	assert_null(s->seccomp);
	assert_true(p->process.terminal);
	assert_null(oci_spec_namespace(p, CLONE_NEWNET));
	assert_true(mount_at(p, "/etc/hosts")->bind);
	assert_true(p->nr_devices > 0);
	assert_true(p->nr_seccomp > 500);
}

static void test_client_docker(void **state)
{
	SPEC s = client_parse("docker.json");

	assert_string_equal(s->root_path, "/var/lib/docker/overlay2/5f0e/merged");
	assert_int_equal(s->hooks[OCI_HOOK_PRESTART].nr, 1);
	assert_int_equal(s->resources.memory_limit, 268435456);
	assert_int_equal(s->resources.cpu_quota, 150000);
	assert_int_equal(s->resources.nr_cpuset_cpus, 2);
	assert_memory_equal(s->cgroups_path, "system.slice:docker:8d6f", 24);
	assert_int_equal(s->process.rlimits[1].resource, RLIMIT_CORE);
	assert_string_equal(oci_spec_annotation(s, "io.harpoon.vcpus"), "2");
}

static void test_client_nerdctl(void **state)
{
	SPEC s = client_parse("nerdctl.json");

	assert_int_equal(s->hooks[OCI_HOOK_CREATE_RUNTIME].nr, 1);
	assert_int_equal(s->hooks[OCI_HOOK_POSTSTOP].v[0].timeout_s, 10);
	assert_int_equal(mount_at(s, "/etc/resolv.conf")->recursive_attr_set, MOUNT_ATTR_RDONLY);
	assert_int_equal(s->nr_sysctls, 1);
}

static void test_client_cri(void **state)
{
	SPEC pause = client_parse("cri-sandbox.json");
	SPEC app = client_parse("cri-container.json");

	assert_string_equal(oci_spec_annotation(pause, "io.kubernetes.cri.container-type"),
			    "sandbox");
	assert_string_equal(oci_spec_namespace(pause, CLONE_NEWNET)->path,
			    "/var/run/netns/cni-5d1c");
	assert_true(pause->root_readonly);
	assert_int_equal(pause->process.oom_score_adj, -998);
	assert_string_equal(oci_spec_namespace(app, CLONE_NEWIPC)->path, "/proc/900/ns/ipc");
	assert_int_equal(app->resources.memory_limit, 134217728);
	assert_true(mount_at(app, "/var/run/secrets/kubernetes.io/serviceaccount")->bind);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_text_is_strict_json),
		cmocka_unit_test(test_text_limits),
		cmocka_unit_test(test_text_limits_inside),
		cmocka_unit_test(test_minimal),
		cmocka_unit_test(test_null_and_unknown_are_absent),
		cmocka_unit_test(test_text_may_hold),
		cmocka_unit_test(test_head),
		cmocka_unit_test(test_process),
		cmocka_unit_test(test_process_alone),
		cmocka_unit_test(test_env_last_value_wins),
		cmocka_unit_test(test_capabilities),
		cmocka_unit_test(test_all_capability_names),
		cmocka_unit_test(test_hooks),
		cmocka_unit_test(test_linux),
		cmocka_unit_test(test_sysctl),
		cmocka_unit_test(test_mount),
		cmocka_unit_test(test_mount_options),
		cmocka_unit_test(test_errors_of_types),
		cmocka_unit_test(test_errors_of_process),
		cmocka_unit_test(test_errors_of_mounts_and_hooks),
		cmocka_unit_test(test_mount_data_is_bounded),
		cmocka_unit_test(test_errors_of_linux),
		cmocka_unit_test(test_errors_of_sysctl),
		cmocka_unit_test(test_errors_of_head),
		cmocka_unit_test(test_client_ctr),
		cmocka_unit_test(test_client_docker),
		cmocka_unit_test(test_client_nerdctl),
		cmocka_unit_test(test_client_cri),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
