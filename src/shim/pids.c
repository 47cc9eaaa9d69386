/*
 * Pids: the VM's process, which is the container's init to the outside, then the container's other processes
 * as the guest numbers them (see PROCESS_GUEST_PIDS).
 *
 * It never fails and is never empty while there is a task: after a restart containerd (1.7 and later) calls it,
 * takes an empty answer or an error for a shim that leaked, and ends the container. So a guest that does not
 * answer, is paused or gone costs only what it alone knows.
 *
 * The list comes from the guest: its length and numbers are checked.
 */
#include "cleanup.h"
#include "container.h"
#include "util.h"
#include "vmreq.h"

#define PIDS_MAX 32768
#define PIDS_LIMIT_NS 1000000000ull
#define PIDS_DETAILS "containerd.runc.v1.ProcessDetails"

struct pids_request {
	struct container *container;
	struct rpc_call *call;
};

struct pids_list {
	size_t nr;
	Ctrd__ProcessInfo *info; /* room for the exec processes and what the guest tells */
	Ctrd__Any *any;
};

static struct process *pids_find_exec(struct container *c, uint32_t guest_pid)
{
	struct process *p;

	list_for_each (p, &c->execs, link) {
		if (p->guest_pid == guest_pid)
			return p;
	}
	return NULL;
}

static void pids_add(struct pids_list *l, uint32_t pid, const struct process *exec)
{
	static char type[] = PIDS_DETAILS;
	Ctrd__ProcessInfo *info = &l->info[l->nr];
	Ctrd__Any *any = &l->any[l->nr++];
	Ctrd__ProcessDetails details = CTRD__PROCESS_DETAILS__INIT;

	*info = (Ctrd__ProcessInfo)CTRD__PROCESS_INFO__INIT;
	info->pid = pid;
	if (!exec)
		return;
	*any = (Ctrd__Any)CTRD__ANY__INIT;
	details.exec_id = exec->exec_id;
	any->type_url = type;
	any->value.len = ctrd__process_details__get_packed_size(&details);
	any->value.data = xmalloc(any->value.len);
	ctrd__process_details__pack(&details, any->value.data);
	info->info = any;
}

/* guest NULL: only what is known here. */
static void pids_answer(struct container *c, const VMREQ_PB(PidsResponse) * guest,
			struct rpc_call *call)
{
	const uint32_t *guest_pids = guest ? guest->pids : NULL;
	size_t nr_guest = guest_pids ? MIN(guest->n_pids, (size_t)PIDS_MAX) : 0;
	size_t room = 1 + c->nr_execs + nr_guest;
	cleanup_free Ctrd__ProcessInfo *info = xcalloc(room, sizeof(*info));
	cleanup_free Ctrd__Any *any = xcalloc(room, sizeof(*any));
	cleanup_free Ctrd__ProcessInfo **list = xcalloc(room, sizeof(*list));
	struct pids_list l = {.info = info, .any = any};
	Ctrd__PidsResponse r = CTRD__PIDS_RESPONSE__INIT;
	struct process *p;

	pids_add(&l, process_public_pid(&c->init), NULL);
	for (size_t i = 0; i < nr_guest; i++) {
		uint32_t pid = guest_pids[i];

		if (pid && pid <= PROCESS_GUEST_PID_MAX && pid != c->init.guest_pid)
			pids_add(&l, PROCESS_GUEST_PIDS + pid, pids_find_exec(c, pid));
	}
	list_for_each (p, &c->execs, link) {
		if (!guest && p->state == TASK_RUNNING && !p->has_exited && p->guest_pid)
			pids_add(&l, process_public_pid(p), p);
	}
	for (size_t i = 0; i < l.nr; i++)
		list[i] = &info[i];
	r.n_processes = l.nr;
	r.processes = list;
	rpc_reply(call, &r.base);
	for (size_t i = 0; i < l.nr; i++)
		free(any[i].value.data);
}

static void pids_told(void *ctx, const ProtobufCMessage *response, enum rpc_code code,
		      const char *message)
{
	struct pids_request *q = ctx;

	pids_answer(q->container, code == RPC_OK ? (const void *)response : NULL, q->call);
	free(q);
}

void pids_request(struct container *c, struct rpc_call *call)
{
	VMREQ_PB(ProcessRef) ref = HARPOON__AGENT__V1__PROCESS_REF__INIT;
	struct pids_request *q;

	if (!c->agent || c->phase != CONTAINER_LIVE || c->init.has_exited ||
	    c->init.state == TASK_PAUSED) {
		pids_answer(c, NULL, call);
		return;
	}
	q = xcalloc(1, sizeof(*q));
	*q = (struct pids_request){c, call};
	ref.id = c->id;
	agent_client_call(c->agent, AGENT_PIDS, &ref.base, PIDS_LIMIT_NS, pids_told, q);
}
