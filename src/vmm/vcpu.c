/*
 * vCPU threads; see vcpu.h.
 *
 * Getting a vCPU out of the guest: immediate_exit is set and a signal sent. The flag ends a KVM_RUN that
 * is about to begin, the signal one that has begun, so no request is lost; the flag is cleared under the
 * lock under which the request is looked at.
 *
 * KVM_RUN that answers EINTR has completed the register access whose exit was served last, so a parked
 * vCPU's registers are those between two instructions.
 */
#include "vcpu.h"

#include <errno.h>
#include <limits.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cleanup.h"
#include "util.h"

#define VCPU_SIGNAL SIGUSR1
/* Registers, buses, virtio's configuration: shallow, and an own guard page. */
#define VCPU_STACK (128 * 1024)

static void vcpu_on_signal(int sig)
{
	/* Its arrival is the message. */
}

static int vcpus_prepare_signal(void)
{
	struct sigaction sa = {.sa_handler = vcpu_on_signal}; /* no SA_RESTART */

	return sigaction(VCPU_SIGNAL, &sa, NULL) ? -errno : 0;
}

static void vcpus_tell(struct vcpus *v)
{
	uint64_t one = 1;

	while (write(v->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* Lock held. */
static void vcpus_want(struct vcpus *v, int want)
{
	if (v->want == VCPUS_QUIT)
		return;
	v->want = want;
	for (unsigned int i = 0; i < v->nr; i++) {
		struct vcpu *c = v->vcpus[i];

		if (!c->has_thread || c->is_parked || want == VCPUS_RUN)
			continue;
		__atomic_store_n(&c->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		pthread_kill(c->thread, VCPU_SIGNAL);
	}
	pthread_cond_broadcast(&v->changed);
}

static void HARPOON_PRINTF(3, 4)
	vcpus_finish(struct vcpus *v, enum vcpus_end_kind kind, const char *fmt, ...)
{
	va_list ap;

	pthread_mutex_lock(&v->lock);
	/* The first reason is the reason. */
	if (v->end.kind == VCPUS_END_NONE) {
		v->end.kind = kind;
		va_start(ap, fmt);
		vsnprintf(v->end.text, sizeof(v->end.text), fmt, ap);
		va_end(ap);
		vcpus_want(v, VCPUS_PARK);
	}
	pthread_mutex_unlock(&v->lock);
	vcpus_tell(v);
}

void vcpus_reset_requested(struct vcpus *v)
{
	vcpus_finish(v, VCPUS_END_RESET, "reset port");
}

static void vcpu_serve_port(struct vcpu *c)
{
	struct kvm_run *run = c->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	/* A string instruction brings several accesses at once; KVM keeps them within the page. */
	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_IN)
			bus_read(c->all->ports, run->io.port, data, run->io.size);
		else
			bus_write(c->all->ports, run->io.port, data, run->io.size);
	}
}

static void vcpu_serve_mmio(struct vcpu *c)
{
	struct kvm_run *run = c->run;

	if (run->mmio.is_write)
		bus_write(c->all->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
	else
		bus_read(c->all->mmio, run->mmio.phys_addr, run->mmio.data, run->mmio.len);
}

static void vcpu_serve_exit(struct vcpu *c)
{
	struct kvm_run *run = c->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		vcpu_serve_port(c);
		break;
	case KVM_EXIT_MMIO:
		vcpu_serve_mmio(c);
		break;
	case KVM_EXIT_INTR:
		break;
	case KVM_EXIT_SHUTDOWN:
		vcpus_finish(c->all, VCPUS_END_RESET, "triple fault");
		break;
	case KVM_EXIT_FAIL_ENTRY:
		vcpus_finish(c->all, VCPUS_END_FAILED,
			     "KVM could not enter the guest: hardware reason 0x%llx",
			     (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		vcpus_finish(c->all, VCPUS_END_FAILED, "KVM cannot go on: internal error %u",
			     run->internal.suberror);
		break;
	default:
		vcpus_finish(c->all, VCPUS_END_FAILED, "KVM stopped for reason %u",
			     run->exit_reason);
	}
}

/* Lock held: waits while parking is wanted. */
static void vcpu_park(struct vcpu *c)
{
	struct vcpus *v = c->all;

	c->is_parked = true;
	if (++v->nr_parked == v->nr) {
		pthread_cond_broadcast(&v->changed);
		vcpus_tell(v);
	}
	while (v->want == VCPUS_PARK)
		pthread_cond_wait(&v->changed, &v->lock);
	c->is_parked = false;
	v->nr_parked--;
	/* Time stood still: the guest's watchdogs must not bite. Fails without a kvmclock. */
	if (v->want == VCPUS_RUN)
		ioctl(c->fd, KVM_KVMCLOCK_CTRL, 0);
}

/* False: the thread is to end. */
static bool vcpu_obey(struct vcpu *c)
{
	struct vcpus *v = c->all;
	bool go_on;

	pthread_mutex_lock(&v->lock);
	if (v->want == VCPUS_PARK)
		vcpu_park(c);
	__atomic_store_n(&c->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	go_on = v->want == VCPUS_RUN;
	pthread_mutex_unlock(&v->lock);
	return go_on;
}

/* Was something made good since this vCPU asked last? Then the guest may try again. */
static bool vcpu_mend(struct vcpu *c)
{
	const struct vcpus *v = c->all;
	uint64_t before = c->nr_mends;

	if (v->cb.fault)
		c->nr_mends = v->cb.fault(v->ctx);
	return c->nr_mends != before;
}

static void *vcpu_main(void *arg)
{
	struct vcpu *c = arg;
	struct vcpus *v = c->all;

	if (v->cb.thread_init)
		v->cb.thread_init(v->ctx, c->index);
	while (vcpu_obey(c)) {
		int r = 0;

		while (!r) {
			r = ioctl(c->fd, KVM_RUN, 0) ? -errno : 0;
			if (!r)
				vcpu_serve_exit(c);
		}
		/* EINTR: the kick; EAGAIN: the guest has started this processor; EFAULT: a page of what it sees
		 * cannot be had. Else the fault is ours. */
		if (r == -EFAULT && vcpu_mend(c))
			continue;
		if (r != -EINTR && r != -EAGAIN)
			vcpus_finish(v, VCPUS_END_FAILED, "KVM cannot run vCPU %u: %s", c->index,
				     strerror(-r));
	}
	return NULL;
}

static int vcpu_new(struct vcpus *v, int vm_fd, unsigned int index)
{
	struct vcpu *c = xcalloc(1, sizeof(*c));

	*c = (struct vcpu){.all = v, .index = index};
	v->vcpus[v->nr++] = c;
	c->fd = ioctl(vm_fd, KVM_CREATE_VCPU, index);
	if (c->fd < 0)
		return -errno;
	c->run = mmap(NULL, v->run_len, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (c->run == MAP_FAILED) {
		c->run = NULL;
		return -errno;
	}
	return 0;
}

int vcpus_init(struct vcpus *v, int kvm_fd, int vm_fd, unsigned int nr, const struct bus *mmio,
	       const struct bus *ports, struct err *err)
{
	int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	int r = vcpus_prepare_signal();

	*v = (struct vcpus){.is_init = true, .mmio = mmio, .ports = ports, .want = VCPUS_PARK};
	pthread_mutex_init(&v->lock, NULL);
	pthread_cond_init(&v->changed, NULL);
	v->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r || v->event_fd < 0 || size < (int)sizeof(struct kvm_run))
		return err_set(err, r ? r : -errno, "prepare for vCPUs");
	v->run_len = (size_t)size;
	if (!nr || nr > VCPUS_MAX)
		return err_say(err, -EINVAL, "a VM has 1 to %d vCPUs, not %u", VCPUS_MAX, nr);
	for (unsigned int i = 0; i < nr; i++) {
		r = vcpu_new(v, vm_fd, i);
		if (r)
			return err_set(err, r, "create vCPU %u", i);
	}
	return 0;
}

int vcpus_start(struct vcpus *v, const struct vcpus_callbacks *cb, void *ctx, struct err *err)
{
	pthread_attr_t attr;
	int r = 0;

	v->cb = *cb;
	v->ctx = ctx;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, MAX(VCPU_STACK, (size_t)PTHREAD_STACK_MIN));
	for (unsigned int i = 0; i < v->nr && !r; i++) {
		r = -pthread_create(&v->vcpus[i]->thread, &attr, vcpu_main, v->vcpus[i]);
		v->vcpus[i]->has_thread = !r;
	}
	pthread_attr_destroy(&attr);
	if (r)
		return err_set(err, r, "start a vCPU's thread");
	pthread_mutex_lock(&v->lock);
	while (v->nr_parked < v->nr)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
	return 0;
}

void vcpus_run(struct vcpus *v)
{
	pthread_mutex_lock(&v->lock);
	if (v->end.kind == VCPUS_END_NONE)
		vcpus_want(v, VCPUS_RUN);
	pthread_mutex_unlock(&v->lock);
}

void vcpus_park(struct vcpus *v)
{
	pthread_mutex_lock(&v->lock);
	vcpus_want(v, VCPUS_PARK);
	if (v->nr_parked == v->nr)
		vcpus_tell(v);
	pthread_mutex_unlock(&v->lock);
}

bool vcpus_all_parked(struct vcpus *v)
{
	bool yes;

	pthread_mutex_lock(&v->lock);
	yes = v->want == VCPUS_PARK && v->nr_parked == v->nr;
	pthread_mutex_unlock(&v->lock);
	return yes;
}

struct vcpus_end vcpus_end(struct vcpus *v)
{
	struct vcpus_end end;

	pthread_mutex_lock(&v->lock);
	end = v->end;
	pthread_mutex_unlock(&v->lock);
	return end;
}

static void vcpu_free(struct vcpu *c, size_t run_len)
{
	if (c->has_thread)
		pthread_join(c->thread, NULL);
	if (c->run)
		munmap(c->run, run_len);
	cleanup_closep(&c->fd);
	free(c);
}

void vcpus_done(struct vcpus *v)
{
	if (!v->is_init)
		return;
	v->is_init = false;
	pthread_mutex_lock(&v->lock);
	vcpus_want(v, VCPUS_QUIT);
	pthread_mutex_unlock(&v->lock);
	for (unsigned int i = 0; i < v->nr; i++)
		vcpu_free(v->vcpus[i], v->run_len);
	v->nr = 0;
	cleanup_closep(&v->event_fd);
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
}
