/* Unit tests of linux.resources: v1-shaped numbers to files of cgroup v2, for the guest and for the host. */
#include "oci_test.h"

#include <errno.h>

/* "name=value" a line, '?' behind the name of an optional one. */
static char *files_text(const struct oci_cgroup_file *f, size_t nr)
{
	char *s = xstrdup("");

	for (size_t i = 0; i < nr; i++) {
		char *t = xasprintf("%s%s%s=%s\n", s, f[i].name, f[i].optional ? "?" : "",
				    f[i].value);

		free(s);
		s = t;
	}
	return s;
}

static struct oci_resources *resources_parse(const char *json)
{
	cleanup_free char *text = oci_test_quote(json);
	struct oci_resources *r = NULL;
	struct err err = {0};

	if (oci_resources_parse(text, strlen(text), &r, &err) < 0)
		fail_msg("%s: %s", json, err.msg);
	return r;
}

#define RESOURCES cleanup(oci_test_resources_freep) struct oci_resources *

struct conversion {
	const char *json, *guest, *host;
};

static void all_convert(const struct conversion *t, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		RESOURCES r = resources_parse(t[i].json);
		cleanup_free char *guest = files_text(r->files, r->nr_files);
		cleanup_free char *host = files_text(r->host_files, r->nr_host_files);

		assert_string_equal(guest, t[i].guest);
		assert_string_equal(host, t[i].host);
	}
}

static void test_memory(void **state)
{
	static const struct conversion t[] = {
		{"{}", "", ""},
		{"{'memory':{}}", "", ""},
		{"{'memory':{'limit':0,'swap':0,'reservation':0}}", "", ""},
		{"{'memory':{'limit':1000}}", "memory.max=1000\n", ""},
		{"{'memory':{'limit':1000,'swap':3000}}",
		 "memory.swap.max?=2000\nmemory.max=1000\n", ""},
		{"{'memory':{'limit':1000,'swap':1000}}", "memory.swap.max?=0\nmemory.max=1000\n",
		 ""},
		{"{'memory':{'limit':1000,'swap':-1}}", "memory.swap.max?=max\nmemory.max=1000\n",
		 ""},
		{"{'memory':{'limit':-1}}", "memory.swap.max?=max\nmemory.max=max\n", ""},
		{"{'memory':{'limit':-1,'swap':5}}", "memory.swap.max?=5\nmemory.max=max\n", ""},
		{"{'memory':{'swap':-1}}", "memory.swap.max?=max\n", ""},
		{"{'memory':{'reservation':7}}", "memory.low=7\n", ""},
		{"{'memory':{'reservation':-1}}", "memory.low=max\n", ""},
		{"{'memory':{'limit':9223372036854775807}}", "memory.max=9223372036854775807\n",
		 ""},
		{"{'memory':{'kernel':1,'kernelTCP':2,'swappiness':60,'useHierarchy':true,"
		 "'disableOOMKiller':false}}",
		 "", ""},
	};

	all_convert(t, ARRAY_SIZE(t));
}

/* The corner points of the published curve, and some between. */
static void test_cpu_weight(void **state)
{
	static const struct {
		uint64_t shares, weight;
	} t[] = {
		{1, 1},	     {2, 1},	      {3, 2},	       {1024, 100},	{512, 59},
		{2048, 174}, {262143, 10000}, {262144, 10000}, {262145, 10000}, {UINT64_MAX, 10000},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		cleanup_free char *json =
			xasprintf("{'cpu':{'shares':%llu}}", (unsigned long long)t[i].shares);
		cleanup_free char *want =
			xasprintf("cpu.weight=%llu\n", (unsigned long long)t[i].weight);
		RESOURCES r = resources_parse(json);
		cleanup_free char *guest = files_text(r->files, r->nr_files);

		assert_string_equal(guest, want);
	}
}

static void test_cpu(void **state)
{
	static const struct conversion t[] = {
		{"{'cpu':{'shares':0,'quota':0,'period':0}}", "", ""},
		{"{'cpu':{'quota':50000}}", "cpu.max=50000 100000\n", ""},
		{"{'cpu':{'quota':50000,'period':25000}}", "cpu.max=50000 25000\n", ""},
		{"{'cpu':{'quota':-1}}", "cpu.max=max 100000\n", ""},
		{"{'cpu':{'period':20000}}", "cpu.max=max 20000\n", ""},
		{"{'cpu':{'quota':50000,'burst':1000}}",
		 "cpu.max.burst=0\ncpu.max=50000 100000\ncpu.max.burst=1000\n", ""},
		{"{'cpu':{'burst':0}}", "cpu.max.burst=0\n", ""},
		{"{'cpu':{'idle':1,'shares':1024}}", "cpu.idle=1\n", ""},
		{"{'cpu':{'idle':0,'shares':1024}}", "cpu.idle=0\ncpu.weight=100\n", ""},
		{"{'cpu':{'cpus':'0-3,7','mems':'0'}}", "", "cpuset.cpus=0-3,7\ncpuset.mems=0\n"},
		{"{'cpu':{'cpus':'','mems':''}}", "", ""},
		{"{'cpu':{'realtimeRuntime':0,'realtimePeriod':0}}", "", ""},
	};

	all_convert(t, ARRAY_SIZE(t));
}

static void test_others(void **state)
{
	static const struct conversion t[] = {
		{"{'pids':{'limit':5}}", "pids.max=5\n", ""},
		{"{'pids':{'limit':0}}", "pids.max=1\n", ""},
		{"{'pids':{'limit':-1}}", "pids.max=max\n", ""},
		{"{'pids':{}}", "", ""},
		{"{'hugepageLimits':[{'pageSize':'2MB','limit':4},{'pageSize':'1GB','limit':0}]}",
		 "hugetlb.2MB.max=4\nhugetlb.2MB.rsvd.max?=4\n"
		 "hugetlb.1GB.max?=0\nhugetlb.1GB.rsvd.max?=0\n",
		 ""},
		{"{'blockIO':{'weight':0,'leafWeight':0,'weightDevice':[]}}", "", ""},
		{"{'blockIO':{'weight':10}}", "", "io.weight?=1\n"},
		{"{'blockIO':{'weight':500}}", "", "io.weight?=4950\n"},
		{"{'blockIO':{'weight':1000,'weightDevice':[{'major':8,'minor':16,'weight':10}]}}",
		 "", "io.weight?=10000\nio.weight?=8:16 1\n"},
		{"{'blockIO':{'throttleReadBpsDevice':[{'major':8,'minor':0,'rate':1}],"
		 "'throttleWriteBpsDevice':[{'major':8,'minor':0,'rate':0}],"
		 "'throttleReadIOPSDevice':[{'major':8,'minor':0,'rate':3}],"
		 "'throttleWriteIOPSDevice':[{'major':9,'minor':0,'rate':18446744073709551615}]}}",
		 "",
		 "io.max=8:0 rbps=1\nio.max=8:0 wbps=max\nio.max=8:0 riops=3\n"
		 "io.max=9:0 wiops=18446744073709551615\n"},
		{"{'network':{'classID':0,'priorities':[]},'rdma':{}}", "", ""},
		{"{'memory':{'limit':1},'unified':{'memory.high':'9','cpuset.cpus':'0-1','io.max':'"
		 "8:0 rbps=1"
		 "\\n8:16 wbps=2\\n','hugetlb.2MB.max':'0'}}",
		 "memory.max=1\nmemory.high=9\nhugetlb.2MB.max=0\n",
		 "cpuset.cpus=0-1\nio.max=8:0 rbps=1\nio.max=8:16 wbps=2\n"},
	};

	all_convert(t, ARRAY_SIZE(t));
}

/* What the VM's size is made from. */
static void test_sizes(void **state)
{
	RESOURCES none = resources_parse("{}");
	RESOURCES all = resources_parse("{'memory':{'limit':5,'checkBeforeUpdate':true},"
					"'cpu':{'quota':3000,'period':2000,'cpus':'0-3,2,7-7'}}");
	RESOURCES unlimited = resources_parse("{'memory':{'limit':-1},'cpu':{'quota':-1}}");
	RESOURCES unified = resources_parse(
		"{'memory':{'limit':5},'unified':{'memory.max':'8','cpu.max':'9000 7000'}}");
	RESOURCES quota = resources_parse("{'cpu':{'quota':3000}}");
	RESOURCES short_max = resources_parse("{'unified':{'cpu.max':'9000'}}");
	RESOURCES max = resources_parse("{'unified':{'memory.max':'max','cpu.max':'max'}}");
	RESOURCES odd = resources_parse(
		"{'memory':{'limit':5},'unified':{'memory.max':'8G','cpu.max':'x'}}");

	assert_true(!none->memory_limit && !none->cpu_quota && !none->cpu_period);
	assert_int_equal(none->nr_cpuset_cpus, 0);
	assert_int_equal(all->memory_limit, 5);
	assert_true(all->check_before_update);
	assert_int_equal(all->cpu_quota, 3000);
	assert_int_equal(all->cpu_period, 2000);
	assert_int_equal(all->nr_cpuset_cpus, 5);
	assert_int_equal(unlimited->memory_limit, -1);
	assert_int_equal(unlimited->cpu_quota, -1);
	assert_int_equal(unified->memory_limit, 8);
	assert_int_equal(unified->cpu_quota, 9000);
	assert_int_equal(unified->cpu_period, 7000);
	assert_int_equal(quota->cpu_period, 100000);
	assert_int_equal(short_max->cpu_quota, 9000);
	assert_int_equal(short_max->cpu_period, 100000);
	assert_int_equal(max->memory_limit, -1);
	assert_int_equal(max->cpu_quota, -1);
	assert_int_equal(odd->memory_limit, 5);
	assert_int_equal(odd->cpu_quota, 0);
	oci_resources_free(NULL);
}

static void test_device_rules(void **state)
{
	RESOURCES r = resources_parse(
		"{'devices':[{'allow':false,'access':'rwm'},"
		"{'allow':true,'type':'c','major':136,'access':'rw'},{'type':'b','minor':-1,'"
		"major':8,"
		"'allow':true,'access':'m'}]}");

	assert_int_equal(r->nr_device_rules, 3);
	assert_false(r->device_rules[0].allow);
	assert_int_equal(r->device_rules[0].type, 'a');
	assert_int_equal(r->device_rules[0].major, -1);
	assert_true(r->device_rules[0].read && r->device_rules[0].write &&
		    r->device_rules[0].mknod);
	assert_true(r->device_rules[1].allow);
	assert_int_equal(r->device_rules[1].type, 'c');
	assert_int_equal(r->device_rules[1].major, 136);
	assert_int_equal(r->device_rules[1].minor, -1);
	assert_false(r->device_rules[1].mknod);
	assert_int_equal(r->device_rules[2].type, 'b');
	assert_false(r->device_rules[2].read);
	assert_true(r->device_rules[2].mknod);
}

static void test_errors(void **state)
{
	static const struct {
		const char *json;
		int code;
		const char *msg;
	} t[] = {
		{"{'memory':{'limit':-2}}", -ERANGE,
		 "linux.resources.memory.limit: not between -1 and 9223372036854775807"},
		{"{'memory':{'limit':9223372036854775808}}", -ERANGE,
		 "linux.resources.memory.limit: not between -1 and 9223372036854775807"},
		{"{'memory':{'swap':5}}", -EINVAL,
		 "linux.resources.memory.swap: set without memory.limit"},
		{"{'memory':{'swap':5,'limit':6}}", -EINVAL,
		 "linux.resources.memory.swap: below memory.limit, which it includes"},
		{"{'memory':{'disableOOMKiller':true}}", -EOPNOTSUPP,
		 "linux.resources.memory.disableOOMKiller: not supported: cgroup v2 cannot switch "
		 "the OOM killer off"},
		{"{'cpu':{'quota':999}}", -ERANGE,
		 "linux.resources.cpu: quota below 1000 microseconds"},
		{"{'cpu':{'period':999}}", -ERANGE,
		 "linux.resources.cpu: period not between 1000 and 1000000 microseconds"},
		{"{'cpu':{'quota':1000,'burst':1001}}", -EINVAL,
		 "linux.resources.cpu: burst above quota"},
		{"{'cpu':{'idle':2}}", -ERANGE, "linux.resources.cpu: idle not 0 or 1"},
		{"{'cpu':{'realtimeRuntime':1}}", -EOPNOTSUPP,
		 "linux.resources.cpu.realtimeRuntime: not supported: cgroup v2 has no real-time "
		 "limits"},
		{"{'cpu':{'cpus':'1-'}}", -EINVAL,
		 "linux.resources.cpu.cpus: not a list like 0-3,7: '1-'"},
		{"{'cpu':{'cpus':'3-1'}}", -EINVAL,
		 "linux.resources.cpu.cpus: not a list like 0-3,7: '3-1'"},
		{"{'cpu':{'mems':'0,'}}", -EINVAL,
		 "linux.resources.cpu.mems: not a list like 0-3,7: '0,'"},
		{"{'cpu':{'cpus':'0-9999999999999999999999'}}", -EINVAL,
		 "linux.resources.cpu.cpus: not a list like 0-3,7: '0-9999999999999999999999'"},
		{"{'blockIO':{'weight':9}}", -ERANGE,
		 "linux.resources.blockIO: a weight not between 10 and 1000"},
		{"{'blockIO':{'weight':1001}}", -ERANGE,
		 "linux.resources.blockIO.weight: not between 0 and 1000"},
		{"{'blockIO':{'leafWeight':10}}", -EOPNOTSUPP,
		 "linux.resources.blockIO.leafWeight: not supported: cgroup v2 has no leaf "
		 "weights"},
		{"{'blockIO':{'throttleReadBpsDevice':[{'major':1,'minor':1}]}}", -EINVAL,
		 "linux.resources.blockIO.throttleReadBpsDevice[0].rate: missing"},
		{"{'hugepageLimits':[{'pageSize':'2MB/../x','limit':0}]}", -EINVAL,
		 "linux.resources.hugepageLimits[0].pageSize: not a page size like 2MB: "
		 "'2MB/../x'"},
		{"{'hugepageLimits':[{'pageSize':'MB','limit':0}]}", -EINVAL,
		 "linux.resources.hugepageLimits[0].pageSize: not a page size like 2MB: 'MB'"},
		{"{'hugepageLimits':[{'pageSize':'2','limit':0}]}", -EINVAL,
		 "linux.resources.hugepageLimits[0].pageSize: not a page size like 2MB: '2'"},
		{"{'network':{'classID':1}}", -EOPNOTSUPP,
		 "linux.resources.network.classID: not supported: cgroup v2 has no network "
		 "classes"},
		{"{'network':{'priorities':[{'name':'a','priority':1}]}}", -EOPNOTSUPP,
		 "linux.resources.network.priorities: not supported: cgroup v2 has no network "
		 "priorities"},
		{"{'rdma':{'a':{'hcaHandles':1}}}", -EOPNOTSUPP,
		 "linux.resources.rdma: not supported: the guest has no RDMA devices"},
		{"{'unified':{'../x':'1'}}", -EINVAL,
		 "linux.resources.unified[\"../x\"]: not the name of a cgroup file"},
		{"{'unified':{'cgroup.procs':'1'}}", -EOPNOTSUPP,
		 "linux.resources.unified[\"cgroup.procs\"]: not supported: not a file of memory, "
		 "cpu, pids, hugetlb,"
		 " cpuset or io"},
		{"{'unified':{'memory.':'1'}}", -EOPNOTSUPP,
		 "linux.resources.unified[\"memory.\"]: not supported: not a file of memory, cpu, "
		 "pids, hugetlb,"
		 " cpuset or io"},
		{"{'unified':{'memory.high':1}}", -EINVAL,
		 "linux.resources.unified[\"memory.high\"]: not a string"},
		{"{'devices':[{'allow':true}]}", -EINVAL,
		 "linux.resources.devices[0].access: missing"},
		{"{'devices':[{'access':'rx'}]}", -EINVAL,
		 "linux.resources.devices[0].access: not some of the letters r, w and m: 'rx'"},
		{"{'devices':[{'access':'r','type':'u'}]}", -EINVAL,
		 "linux.resources.devices[0].type: unknown value 'u'"},
		{"{'devices':[{'access':'r','major':-2}]}", -ERANGE,
		 "linux.resources.devices[0].major: not between -1 and 4294967295"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		cleanup_free char *members = xasprintf("'linux':{'resources':%s}", t[i].json);
		cleanup_free char *text = oci_test_quote(t[i].json);
		struct oci_resources *r = NULL;
		struct err err = {0};

		oci_test_fails(members, t[i].code, t[i].msg);
		/* Update's resources alone: the same but for the path. */
		assert_int_equal(oci_resources_parse(text, strlen(text), &r, &err), t[i].code);
		assert_string_equal(err.msg, t[i].msg + strlen("linux."));
		assert_null(r);
	}
}

static void test_number_of_writes_is_bounded(void **state)
{
	cleanup_free char *lines = oci_test_repeat("", "1\\n", 1000, "");
	cleanup_free char *json =
		xasprintf("{\"unified\":{\"memory.a\":\"%s\",\"memory.b\":\"%s\","
			  "\"memory.c\":\"%s\",\"memory.d\":\"%s\",\"memory.e\":\"%s\","
			  "\"memory.f\":\"%s\",\"memory.g\":\"%s\",\"memory.h\":\"%s\","
			  "\"memory.i\":\"%s\"}}",
			  lines, lines, lines, lines, lines, lines, lines, lines, lines);
	struct oci_resources *r = NULL;
	struct err err = {0};

	assert_int_equal(oci_resources_parse(json, strlen(json), &r, &err), -E2BIG);
	assert_string_equal(
		err.msg, "resources.unified[\"memory.i\"]: more than 8192 writes to cgroup files");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory), cmocka_unit_test(test_cpu_weight),
		cmocka_unit_test(test_cpu),    cmocka_unit_test(test_others),
		cmocka_unit_test(test_sizes),  cmocka_unit_test(test_device_rules),
		cmocka_unit_test(test_errors), cmocka_unit_test(test_number_of_writes_is_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
