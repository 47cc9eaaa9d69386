/*
 * CPUID; see cpuid.h. Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/
 * x86/cpuid.rst.
 *
 * The topology is one package of nr_cpus cores with one thread each; every leaf that speaks of it says
 * so, whatever the host's processors are: 1, 4, 0xb on Intel's, 0x80000008, 0x8000001d, 0x8000001e on AMD's.
 *
 * Hidden: nested virtualization, performance counters, processor trace, SGX, SEV, monitor/mwait, and
 * asynchronous page faults (the guest would have to be told of a page that a restored VM no longer waits
 * for). Everything else is as KVM supports it: programs may want what the host's processor has.
 */
#include "cpuid.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "util.h"

#define BIT32(n) (1u << (n))

/* Leaf 1 */
#define L1_ECX_MONITOR BIT32(3)
#define L1_ECX_VMX BIT32(5)
#define L1_ECX_PDCM BIT32(15)
#define L1_ECX_X2APIC BIT32(21)
#define L1_ECX_TSC_DEADLINE BIT32(24)
#define L1_ECX_HYPERVISOR BIT32(31)
#define L1_EDX_HTT BIT32(28)
#define L1_CLFLUSH_SHIFT 8
/* Leaf 6: the only thing of power management that concerns a guest */
#define L6_EAX_ARAT BIT32(2)
/* Leaf 7.0 */
#define L7_EBX_SGX BIT32(2)
#define L7_EBX_PT BIT32(25)
#define L7_ECX_SGX_LC BIT32(30)
/* Leaf 0x80000001 */
#define LX1_ECX_CMP_LEGACY BIT32(1)
#define LX1_ECX_SVM BIT32(2)
#define LX1_ECX_PERFCTR (BIT32(23) | BIT32(24) | BIT32(28))
/* Leaf 0x40000001 */
#define KVM_HIDDEN_FEATURES (BIT32(4) | BIT32(10) | BIT32(14) | BIT32(16) | BIT32(17))

#define TOPOLOGY_SMT 1u
#define TOPOLOGY_CORE 2u

static uint32_t cpuid_bits_for(uint32_t nr)
{
	uint32_t bits = 0;

	while ((1u << bits) < nr)
		bits++;
	return bits;
}

/* Leaves whose content makes no sense in this machine; absent ones read as zeros. */
static bool cpuid_is_dropped(uint32_t leaf)
{
	switch (leaf) {
	case 0x5:	 /* monitor/mwait */
	case 0xa:	 /* performance counters */
	case 0xb:	 /* topology, made anew */
	case 0x12:	 /* SGX */
	case 0x14:	 /* processor trace */
	case 0x1f:	 /* topology with more levels than we have */
	case 0x23:	 /* performance counters */
	case 0x8000000a: /* SVM */
	case 0x8000001b: /* instruction based sampling */
	case 0x8000001f: /* SEV */
	case 0x80000022: /* performance counters */
	case 0x80000026: /* topology with more levels than we have */
		return true;
	default:
		return false;
	}
}

static void cpuid_drop(struct cpuid_table *t)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < t->head.nent; i++) {
		if (!cpuid_is_dropped(t->entries[i].function))
			t->entries[kept++] = t->entries[i];
	}
	t->head.nent = kept;
}

static int cpuid_add(struct cpuid_table *t, const struct kvm_cpuid_entry2 *e)
{
	if (t->head.nent == CPUID_ENTRIES_MAX)
		return -ENOSPC;
	t->entries[t->head.nent++] = *e;
	return 0;
}

/* Leaf 0xb: level 0 the threads of a core, level 1 the cores, level 2 the end. */
static int cpuid_add_topology(struct cpuid_table *t, const struct cpuid_params *p)
{
	const struct kvm_cpuid_entry2 levels[] = {
		{.ebx = 1, .ecx = TOPOLOGY_SMT << 8},
		{.eax = cpuid_bits_for(p->nr_cpus),
		 .ebx = p->nr_cpus,
		 .ecx = 1 | TOPOLOGY_CORE << 8},
		{.ecx = 2},
	};
	int r = 0;

	for (uint32_t i = 0; i < ARRAY_SIZE(levels) && !r; i++) {
		struct kvm_cpuid_entry2 e = levels[i];

		e.function = 0xb;
		e.index = i;
		e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		e.edx = p->apic_id;
		r = cpuid_add(t, &e);
	}
	return r;
}

static void cpuid_shape_features(struct kvm_cpuid_entry2 *e, const struct cpuid_params *p)
{
	e->ebx &= 0xffu << L1_CLFLUSH_SHIFT | 0xffu;
	e->ebx |= p->apic_id << 24 | (1u << cpuid_bits_for(p->nr_cpus)) << 16;
	e->ecx &= ~(L1_ECX_MONITOR | L1_ECX_VMX | L1_ECX_PDCM | L1_ECX_TSC_DEADLINE);
	e->ecx |= L1_ECX_HYPERVISOR | L1_ECX_X2APIC;
	if (p->has_tsc_deadline)
		e->ecx |= L1_ECX_TSC_DEADLINE;
	e->edx &= ~L1_EDX_HTT;
	if (p->nr_cpus > 1)
		e->edx |= L1_EDX_HTT;
}

/* Leaves 4 and 0x8000001d: which caches are shared. From the third level on all cores share one. */
static void cpuid_shape_cache(struct kvm_cpuid_entry2 *e, const struct cpuid_params *p)
{
	uint32_t type = e->eax & 0x1f, level = e->eax >> 5 & 7;

	if (!type)
		return;
	e->eax &= 0x3fff;
	if (level >= 3)
		e->eax |= (p->nr_cpus - 1) << 14;
	if (e->function == 4)
		e->eax |= ((1u << cpuid_bits_for(p->nr_cpus)) - 1) << 26;
}

static void cpuid_shape_entry(struct kvm_cpuid_entry2 *e, const struct cpuid_params *p)
{
	switch (e->function) {
	case 0:
		e->eax = MAX(e->eax, 0xbu);
		break;
	case 1:
		cpuid_shape_features(e, p);
		break;
	case 4:
	case 0x8000001d:
		cpuid_shape_cache(e, p);
		break;
	case 6:
		*e = (struct kvm_cpuid_entry2){.function = 6, .eax = L6_EAX_ARAT};
		break;
	case 7:
		if (!e->index) {
			e->ebx &= ~(L7_EBX_SGX | L7_EBX_PT);
			e->ecx &= ~L7_ECX_SGX_LC;
		}
		break;
	case 0x40000001:
		e->eax &= ~KVM_HIDDEN_FEATURES;
		break;
	case 0x80000001:
		e->ecx &= ~(LX1_ECX_SVM | LX1_ECX_PERFCTR | LX1_ECX_CMP_LEGACY);
		break;
	case 0x80000008:
		e->ecx = cpuid_bits_for(p->nr_cpus) << 12 | (p->nr_cpus - 1);
		break;
	case 0x8000001e:
		/* Extended APIC id; core id, one thread per core; node 0 of one. */
		e->eax = p->apic_id;
		e->ebx = p->apic_id & 0xff;
		e->ecx = 0;
		e->edx = 0;
		break;
	default:
		break;
	}
}

int cpuid_shape(struct cpuid_table *t, const struct cpuid_params *p)
{
	cpuid_drop(t);
	for (uint32_t i = 0; i < t->head.nent; i++)
		cpuid_shape_entry(&t->entries[i], p);
	return cpuid_add_topology(t, p);
}
