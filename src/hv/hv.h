/*
 * What the shim knows of a virtual machine. One VM per object; the backend (our KVM monitor or QEMU)
 * is behind struct hv_ops. Everything runs on the loop's thread and is asynchronous: results come as
 * callbacks from the loop, never from inside the call that asked.
 *
 * Life: hv_vm_new (nothing runs yet) -> hv_vm_share/... -> hv_vm_start -> on_ready -> streams ... ->
 * hv_vm_kill or the guest ends -> on_exit -> hv_vm_free. hv_vm_free at any point ends every process and
 * frees everything, synchronously (children are killed and reaped: SIGKILL, a few ms).
 *
 * The processes of a VM (VMM or QEMU, harpoon-fs) are children of the caller, die with it
 * (PR_SET_PDEATHSIG), and are written to <state_dir>/processes so that `delete` can end them from disk.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"
#include "err.h"
#include "loop.h"

/* Name of an exported tree as the guest sees it: one path component below the share's root. */
#define HV_SHARE_NAME_MAX 64

enum hv_exit_kind {
	HV_EXIT_POWEROFF, /* the guest powered itself off */
	HV_EXIT_PANIC,	  /* the guest kernel died or reset itself */
	HV_EXIT_KILLED,	  /* hv_vm_kill, or a signal from outside */
	HV_EXIT_FAILED,	  /* VMM or file server died by themselves, or never came up */
	HV_EXIT_MAX
};

struct hv_exit {
	enum hv_exit_kind kind;
	char text[256]; /* one sentence for people, the last console line in it where it helps */
};

/* The agent's greeting: when what happened, in ns. Host: CLOCK_MONOTONIC; guest: since its boot. */
struct hv_ready {
	uint64_t host_start_ns; /* hv_vm_start called */
	uint64_t host_spawn_ns; /* VMM process exec'd */
	uint64_t
		host_kernel_ns; /* first byte on the guest's console: its kernel runs; 0 = silent */
	uint64_t host_ready_ns; /* greeting received */
	uint64_t guest_init_ns; /* harpoon-init's first instruction */
	uint64_t guest_ready_ns;
	uint32_t agent_version;
	/* The VM is a clone: the guest's times above are those of its template, and host_kernel_ns is when it
	 * went on. */
	bool is_clone;
	bool is_restored; /* from a checkpoint: the agent has the container that was saved */
};

struct hv_callbacks {
	void (*on_ready)(void *ctx, const struct hv_ready *ready);
	/* Once; after it only hv_vm_free. All processes of the VM are gone and reaped. */
	void (*on_exit)(void *ctx, const struct hv_exit *why);
};

/*
 * What is behind a network device of the VM. A tap is attached, has vnet headers (IFF_VNET_HDR | IFF_NO_PI) and
 * carries frames with offloads; what the guest sends comes out of it as if the tap had received it. A stream
 * is a connected socket with a length (32 bits, network order) before each frame, as passt speaks it.
 */
enum hv_nic_kind { HV_NIC_TAP, HV_NIC_STREAM };

#define HV_NICS_MAX 8

struct hv_nic {
	enum hv_nic_kind kind;
	int fd; /* borrowed until hv_vm_start() has returned */
};

/*
 * A disk of the VM: a regular file (its bytes are the disk's) or a block device, seen by the guest as virtio-blk.
 * Only the descriptor goes to the VMM. How the guest tells disks apart: by serial number, HV_DISK_SERIAL of the place
 * in the array.
 */
#define HV_DISKS_MAX 16
#define HV_DISK_SERIAL "harpoon-%zu"

struct hv_disk {
	int fd; /* borrowed until hv_vm_start() has returned; opened O_RDONLY if read_only, else O_RDWR */
	bool read_only;
};

/*
 * A program that is the network behind a stream (passt): started before the VM as a child like the VM's other
 * processes, in our network namespace, with one descriptor. It confines itself and ends when that closes. The VM
 * outlives it, without a network.
 */
struct hv_helper {
	const char *path;
	char *const *argv; /* NULL-terminated */
	int fd;		   /* becomes HV_HELPER_FD; borrowed until hv_vm_start() has returned */
};
#define HV_HELPER_FD 3

/*
 * Hardware address of the n-th network device at birth, by which the agent tells them apart: the last byte is
 * n. Locally administered; the guest sets another one before it uses the device.
 */
#define HV_NIC_MAC "02:68:70:6e:00:%02x"

/* How a VM comes to life. */
enum hv_birth {
	HV_BIRTH_AUTO, /* as a clone if there is a template and the configuration does not forbid it */
	HV_BIRTH_COLD,	   /* it boots */
	HV_BIRTH_TEMPLATE, /* it boots, to be saved as a template: see hv_template_build() */
};

struct hv_checkpoint;

struct hv_params {
	enum hv_birth birth;
	/* Goes on from there instead; birth is AUTO. Borrowed until hv_vm_start() has returned. */
	const struct hv_checkpoint *restore;
	const struct config *config; /* borrowed for the life of the VM */
	const char *id;		     /* for logs and process names */
	int state_dir_fd;	     /* borrowed: console log, processes file */
	const char *state_dir;	     /* its path, for messages */
	int netns_fd;		     /* borrowed, -1 = a fresh empty one */
	/*
	 * cgroup.procs files, open for writing, one per hierarchy; borrowed for the life of the VM. Every process
	 * of the VM is in these cgroups before it executes anything.
	 */
	const int *cgroup_fds;
	size_t nr_cgroup_fds;
	uint32_t nr_vcpus;
	uint64_t mem_bytes;	   /* guest RAM that the guest begins with; see hv_mem_max() */
	const struct hv_nic *nics; /* borrowed until hv_vm_start() has returned */
	size_t nr_nics;		   /* HV_NICS_MAX at most */
	const struct hv_helper *net_helper; /* borrowed likewise; NULL = none */
	/* HV_DISKS_MAX at most, and as many as the backend has room for. */
	const struct hv_disk *disks; /* borrowed likewise */
	size_t nr_disks;
};

/*
 * Guest RAM that a VM has addresses for when it begins with mem_bytes. Its kernel is not told of the rest: the agent adds
 * of that when the container is to have more. What nobody has touched is nobody's memory.
 */
static inline uint64_t hv_mem_max(const struct config *c, uint64_t mem_bytes)
{
	uint64_t max = (uint64_t)c->memory_max_mib << 20;

	return max > mem_bytes ? max : mem_bytes;
}

struct hv_footprint {
	uint64_t pss_bytes; /* of all processes of the VM, guest memory included */
	uint64_t vmm_pss_bytes, fs_pss_bytes;
};

struct hv_vm;
/* Streams as in mux.h: the descriptors are owned by the VM from the call on, done is called once. */
typedef void (*hv_stream_done_fn)(void *ctx, int err);
struct hv_stream;

int hv_vm_new(struct loop *loop, const struct hv_params *params, const struct hv_callbacks *cb,
	      void *ctx, struct hv_vm **ret, struct err *err);
void hv_vm_free(struct hv_vm *vm);

/* The guest may change nothing below this export, whatever the mount says. */
#define HV_SHARE_READ_ONLY 0x1u
/* Nobody but this VM changes the tree while it is exported: the guest may cache for long. */
#define HV_SHARE_EXCLUSIVE 0x2u
/* The guest may create device nodes in it (nobody on the host opens them). */
#define HV_SHARE_DEVICES 0x4u

/* Exports the tree (or single file) behind dirfd (O_PATH or a detached mount; owned from here on, also
 * on failure) under `name`. flags: HV_SHARE_*. Any time, also while the guest runs. Before the start it
 * is noted and a failure shows in hv_vm_start(); afterwards it takes effect before this returns. */
int hv_vm_share(struct hv_vm *vm, const char *name, int dirfd, uint32_t flags, struct err *err);

int hv_vm_start(struct hv_vm *vm, struct err *err);
int hv_vm_attach_stream(struct hv_vm *vm, uint32_t id, int rfd, int wfd, hv_stream_done_fn done,
			void *ctx, struct hv_stream **ret, struct err *err);
void hv_stream_detach(struct hv_stream *s);
/* error NULL = done. Not called after hv_vm_free(); a VM that ends meanwhile is an error, told before on_exit. */
typedef void (*hv_done_fn)(void *ctx, const char *error);
/*
 * Stops every vCPU; done says that they stand still. One at a time (-EBUSY). Resume, also after a checkpoint,
 * continues them: 0 = under way. A VMM that does not obey either ends the VM.
 */
int hv_vm_pause(struct hv_vm *vm, hv_done_fn done, void *ctx, struct err *err);
int hv_vm_resume(struct hv_vm *vm, struct err *err);

/* The guest is given memory, and has so many bytes then: what is in them is part of a checkpoint. */
void hv_vm_gave_memory(struct hv_vm *vm, uint64_t bytes);

/*
 * Checkpoints: the VM as it runs, saved in a folder with `note`, the caller's own text. When done is called without
 * an error the guest stands still, and goes on unchanged by hv_vm_resume(). Until then nothing can be said to the
 * agent, but streams may be attached. After an error it runs on by itself. -EOPNOTSUPP: the backend cannot.
 */
int hv_vm_checkpoint(struct hv_vm *vm, int dir_fd, const char *note, hv_done_fn done, void *ctx,
		     struct err *err);
/* Reads and hashes all of it, which came from anywhere. */
int hv_checkpoint_open(int dir_fd, struct hv_checkpoint **ret, struct err *err);
void hv_checkpoint_free(struct hv_checkpoint *c);
const char *hv_checkpoint_note(const struct hv_checkpoint *c);
/* SIGKILL now; on_exit follows. */
void hv_vm_kill(struct hv_vm *vm);
/* Host pid of the process that is the VM (what containerd is told), 0 before start. */
pid_t hv_vm_pid(const struct hv_vm *vm);
int hv_vm_footprint(const struct hv_vm *vm, struct hv_footprint *ret, struct err *err);
const char *hv_vm_backend(const struct hv_vm *vm);

/*
 * Templates: VMs saved right after boot, of which others are clones. A clone that fails before its agent
 * answers is started again, cold, without a word to the caller; hv_vm_pid() is another one then.
 *
 * hv_template_build() makes the template of this size in the calling process, on a loop of its own: seconds.
 * wait: for the store's lock, else -EBUSY. -EEXIST: there is a good one already. key gets its name.
 */
struct hv_template_size {
	uint32_t nr_vcpus;
	uint64_t mem_bytes;
	uint32_t nr_taps, nr_streams; /* network devices; taps come first */
	uint32_t nr_disks;
};
int hv_template_build(const struct config *config, const struct hv_template_size *size, bool wait,
		      char *ret_key, size_t key_len, struct err *err);

/*
 * If vm would have been a clone had there been a template: has one made, by a process of its own and of
 * the lowest priority, which outlives us. Returns at once; failures are logged.
 */
void hv_vm_build_template(struct hv_vm *vm);

/* Which backend a configuration leads to on this host, and one sentence why. Never AUTO. */
struct hv_choice {
	enum config_backend backend;
	char why[256];
};
/* -ENOENT with what to do when the backend asked for is not there. Cheap where harpoon-vmm is not
 * installed; otherwise the KVM probe runs (a few ms). */
int hv_choose_backend(const struct config *config, struct hv_choice *ret, struct err *err);

/* From disk, without any object: ends the processes listed in <state_dir>/processes (checked by pid
 * and start time) and waits until they are gone. Idempotent; no file = nothing to do. */
int hv_cleanup_state(int state_dir_fd, struct err *err);
