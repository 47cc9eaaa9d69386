"""The cases of the conformance table; see conformance.py."""

import itertools
import json
import os

from conformance import Case, mount, set_path

HOST_HAS_VERSION_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
MOUNTINFO = "lines:/proc/self/mountinfo"
ALL_CAPS = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE",
    "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
]

# Of every case that asks for it.
COMMON_DIFFERS = {
    "root-filesystem": r"mount:/(home)?:type$",
    "mask-device": r"mount:/(proc|etc)/[a-z_]+:(opts|type|source|super)$",
    "mask-folder": r"mount:/(sys/firmware|data(#1)?):(opts|super)$",
    "mask-absent": r"mount:/proc/(acpi|asound|scsi|keys|timer_list|kcore|sched_debug|sysrq-trigger):",
    "proc-content": r"(read|count):/(proc|sys)/|openw:/proc/sysrq-trigger$|tree:/dev/core$",
    "super-flags": r"mount:(/sys|/mnt/sys|/mnt/proc):super$",
}


def change(**paths):
    """A change that sets fields: process__umask=..., linux__sysctl=...; `__` stands for the dot."""

    def apply(spec, env):
        for path, value in paths.items():
            set_path(spec, path.replace("__", "."), value)

    return apply


def add_mounts(*mounts):
    def apply(spec, env):
        for m in mounts:
            spec["mounts"].append(json.loads(json.dumps(m).replace("HOST", str(env.host))))

    return apply


def both(*changes):
    def apply(spec, env):
        for one in changes:
            one(spec, env)

    return apply


def _without_caps(spec, env):
    del spec["process"]["capabilities"]


def _all_caps(spec, env):
    names = [f"CAP_{name}" for name in ALL_CAPS]
    # What the host's own processes have is all that runc can give
    with open("/proc/self/status", encoding="ascii") as f:
        held = int(next(line for line in f if line.startswith("CapEff")).split()[1], 16)
    names = [name for i, name in enumerate(names) if held >> i & 1]
    for kind in ("bounding", "effective", "permitted", "inheritable"):
        spec["process"]["capabilities"][kind] = names


def _rlimits(spec, env):
    kinds = ["CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
             "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"]
    values = {"NICE": (0, 0), "RTPRIO": (0, 0), "MEMLOCK": (4096, 65536), "NPROC": (900, 1000), "NOFILE": (100, 200),
              "SIGPENDING": (70, 80), "MSGQUEUE": (1000, 2000), "AS": (1 << 33, 1 << 34), "STACK": (1 << 20, 1 << 22)}
    spec["process"]["rlimits"] = [
        {"type": f"RLIMIT_{kind}", "soft": values.get(kind, (1 << 30, 1 << 31))[0],
         "hard": values.get(kind, (1 << 30, 1 << 31))[1]}
        for kind in kinds
    ]


TMPFS_OPTIONS = {
    "async": [], "atime": ["noatime"], "dev": ["nodev"], "diratime": ["nodiratime"], "dirsync": [],
    "exec": ["noexec"], "noatime": [], "nodev": [], "nodiratime": [], "noexec": [], "norelatime": [],
    "nostrictatime": [], "nosuid": [], "relatime": [], "ro": [], "rw": ["ro"], "strictatime": [], "suid": ["nosuid"],
    "sync": [],
    "private": [], "rprivate": [], "slave": [], "rslave": [], "shared": [], "rshared": [], "unbindable": [],
    "runbindable": [],
}
BIND_RECURSIVE = {
    "rro": [], "rrw": [], "rnosuid": [], "rsuid": [], "rnodev": [], "rdev": [], "rnoexec": [], "rexec": [],
    "rnoatime": [], "ratime": [], "rnodiratime": [], "rdiratime": [], "rrelatime": [], "rnorelatime": [],
    "rstrictatime": [], "rnostrictatime": [], "rnosymfollow": [], "rsymfollow": [],
}


def _tmpfs_options(spec, env):
    for option, before in TMPFS_OPTIONS.items():
        spec["mounts"].append(mount(f"/mnt/{option}", "tmpfs", "tmpfs", "size=64k", *before, option))
    spec["mounts"].append(mount("/mnt/data", "tmpfs", "none", "size=128k", "nr_inodes=9", "mode=711", "uid=5", "gid=6"))


def _binds(spec, env):
    source = str(env.host)
    for i, options in enumerate([
        ("bind",), ("rbind",), ("rbind", "ro"), ("rbind", "nosuid", "nodev", "noexec"), ("bind", "ro", "noatime"),
        ("rbind", "rw", "private"), ("rbind", "rslave"), ("rbind", "rshared"), ("rbind", "nodiratime"),
        ("rbind", "strictatime"),
    ]):
        spec["mounts"].append(mount(f"/mnt/b{i}", "bind", source, *options))
    spec["mounts"].append(mount("/mnt/file", "bind", f"{source}/file", "rbind", "ro"))
    spec["mounts"].append(mount("/etc/passwd", "", f"{source}/file", "bind"))
    spec["mounts"].append(mount("/opt/inside/link-target", "none", source, "rbind"))
    spec["mounts"].append(mount("/opt/outside/x", "none", source, "rbind"))


# runc 1.1 hands these to the kernel in a way that it refuses.
NOT_BY_RUNC = {"ratime", "rnorelatime", "rnostrictatime", "rrelatime", "rnoatime", "rstrictatime"}


def _binds_recursive_atime(spec, env):
    for option in sorted(NOT_BY_RUNC):
        spec["mounts"].append(mount(f"/mnt/{option}", "bind", str(env.host), "rbind", option))


def _binds_recursive(spec, env):
    for option in sorted(set(BIND_RECURSIVE) - NOT_BY_RUNC):
        spec["mounts"].append(mount(f"/mnt/{option}", "bind", str(env.host), "rbind", option))


SECCOMP_ALLOW = [
    "access", "arch_prctl", "brk", "capget", "capset", "chdir", "clone", "clone3", "close", "close_range", "dup", "dup2",
    "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "execve", "execveat", "exit",
    "exit_group", "fchdir", "fchown", "fcntl", "fork", "fstat", "fstatfs", "futex", "getcwd", "getdents64", "getegid",
    "geteuid", "getgid", "getpid", "getpgid", "getpgrp", "getppid", "getrandom", "getrlimit", "getsid", "gettid", "getuid",
    "ioctl", "kill", "lseek", "lstat", "madvise", "mmap", "mprotect", "munmap", "nanosleep", "newfstatat", "open",
    "openat", "openat2", "personality", "pipe", "pipe2", "poll", "ppoll", "prctl", "pread64", "prlimit64", "read",
    "readlink", "readlinkat", "readv", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity",
    "sched_yield", "set_robust_list", "set_tid_address", "setgid", "setgroups", "setuid", "sigaltstack", "stat",
    "statx", "tgkill", "umask", "uname", "unlink", "vfork", "wait4", "waitid", "write", "writev", "rseq",
]


def _seccomp_actions(spec, env):
    def rule(action, *names, **more):
        return {"names": list(names), "action": action, **more}

    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            rule("SCMP_ACT_ERRNO", "mkdir"),
            rule("SCMP_ACT_ERRNO", "chmod", errnoRet=33),
            rule("SCMP_ACT_KILL_PROCESS", "chown"),
            rule("SCMP_ACT_KILL_THREAD", "swapon"),
            rule("SCMP_ACT_KILL", "reboot"),
            rule("SCMP_ACT_TRAP", "syslog"),
            rule("SCMP_ACT_TRACE", "sync"),
            rule("SCMP_ACT_LOG", "getppid"),
            rule("SCMP_ACT_ERRNO", "personality", errnoRet=5, args=[{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]),
            rule("SCMP_ACT_ERRNO", "setpriority", errnoRet=6, args=[{"index": 0, "value": 0, "op": "SCMP_CMP_NE"},
                                                                      {"index": 1, "value": 0, "op": "SCMP_CMP_EQ"}]),
            rule("SCMP_ACT_ERRNO", "socket", errnoRet=7, args=[{"index": 0, "value": 39, "op": "SCMP_CMP_GT"}]),
            rule("SCMP_ACT_ERRNO", "setuid", errnoRet=8, args=[{"index": 0, "value": 7, "op": "SCMP_CMP_LE"},
                                                                 {"index": 0, "value": 7, "op": "SCMP_CMP_GE"}]),
            rule("SCMP_ACT_ERRNO", "unshare", errnoRet=9, args=[{"index": 0, "value": 0x10000000, "valueTwo": 0x10000000,
                                                                  "op": "SCMP_CMP_MASKED_EQ"}]),
            rule("SCMP_ACT_ERRNO", "mlock", errnoRet=11, args=[{"index": 1, "value": 1, "op": "SCMP_CMP_LT"}]),
            rule("SCMP_ACT_ERRNO", "no_such_call_anywhere", errnoRet=1),
        ],
    }


def _without_setuid_rule(spec, env):
    """Without no_new_privs runc changes its user under the filter."""
    rules = spec["linux"]["seccomp"]["syscalls"]
    spec["linux"]["seccomp"]["syscalls"] = [rule for rule in rules if "setuid" not in rule["names"]]


CALLS = [f"call:{name}" for name in (
    "getpid", "getppid", "mkdir", "chmod", "chown", "mount", "unshare", "unshare-user", "sethostname", "settimeofday",
    "setuid-7", "kill-1", "personality", "socket-inet", "socket-raw", "socket-vsock", "bpf", "keyctl", "sync", "nice-low",
    "reboot", "syslog", "swapon", "ptrace-me", "chroot", "mlock")]


def _seccomp_default_deny(spec, env):
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": SECCOMP_ALLOW, "action": "SCMP_ACT_ALLOW"}],
    }


def _user_namespace(spec, env):
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1000},
                                    {"containerID": 1000, "hostID": 300000, "size": 64536}]
    spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    # Of the image only what is the mapped root's can be changed by it
    env.chown(100000, 200000)


def _masked(spec, env):
    spec["linux"]["maskedPaths"] = ["/proc/version", "/data", "/etc/passwd", "/nowhere", "/opt/inside"]
    spec["linux"]["readonlyPaths"] = ["/home", "/etc/group", "/nowhere/else", "/proc/self/attr"]


def _resources(spec, env):
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    spec["linux"]["cgroupsPath"] = env.cgroup
    spec["linux"]["resources"].update({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20, "kernel": -1, "kernelTCP": -1,
                   "swappiness": 0},
        "cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 77},
        "blockIO": {"weight": 100,
                    "throttleReadBpsDevice": [{"major": env.disk[0], "minor": env.disk[1], "rate": 1000000000}],
                    "throttleWriteIOPSDevice": [{"major": env.disk[0], "minor": env.disk[1], "rate": 100000}]},
    })
    spec["mounts"].append(mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"))


RESOURCE_FACTS = {
    # what it means: the file of version 1 (runc, on most hosts of ours), of version 2 (the guest)
    "memory": ("memory/memory.limit_in_bytes", "memory.max"),
    "reservation": ("memory/memory.soft_limit_in_bytes", "memory.low"),
    "quota": ("cpu/cpu.cfs_quota_us", "cpu.max"),
    "period": ("cpu/cpu.cfs_period_us", "cpu.max"),
    "pids": ("pids/pids.max", "pids.max"),
    "shares": ("cpu/cpu.shares", "cpu.weight"),
}


def resources_meaning(facts, is_guest):
    """The cgroup's files to numbers, one way for both versions."""
    found = {"resource:hugepages": facts.get("file:/sys/fs/cgroup/hugetlb.2MB.max", "")}
    version = 1 if is_guest or HOST_HAS_VERSION_2 else 0
    for name, files in RESOURCE_FACTS.items():
        value = facts.get(f"file:/sys/fs/cgroup/{files[version]}", "")
        if files[version] == "cpu.max" and value:
            value = value.split()[0 if name == "quota" else 1]
        found[f"resource:{name}"] = value
    # 512 of 1024 is 59 of 100 by the curve of current runc, 20 of 39 by the one before
    if found["resource:shares"] in ("59", "512", "20"):
        found["resource:shares"] = "half"
    for key in [k for k in facts if k.startswith("file:/sys/fs/cgroup/")]:
        del facts[key]
    facts.update(found)
    return facts


# Of the host's cgroup, the same for both runtimes. `{}` is the container's. (The weight goes by another curve than runc 1.1's.)
HOST_FILES = [
    "cpuset{}/cpuset.cpus", "cpuset{}/cpuset.mems", "cpu{}/cpu.shares", "cpu{}/cpu.cfs_period_us",
    "blkio{}/blkio.throttle.read_bps_device", "blkio{}/blkio.throttle.write_iops_device",
]
HOST_FILES_2 = ["{}/cpuset.cpus", "{}/cpuset.mems", "{}/io.max"]

CASES = [
    Case(
        "plain",
        ["ociVersion", "process.args", "process.env", "process.cwd", "process.user.uid", "process.user.gid",
         "process.terminal", "process.noNewPrivileges", "process.capabilities.bounding", "process.capabilities.effective",
         "process.capabilities.permitted", "root.path", "root.readonly", "mounts.destination", "mounts.type",
         "mounts.source", "mounts.options", "linux.namespaces.type", "linux.maskedPaths", "linux.readonlyPaths",
         "linux.namespaces:pid", "linux.namespaces:ipc", "linux.namespaces:uts", "linux.namespaces:mount",
         "linux.namespaces:network"],
        ["status", "env", "names", "tree:/dev", MOUNTINFO, "ns", "fds", "sched", "limits",
         "file:/proc/self/oom_score_adj", "count:/proc/self/task", "read:/proc/kcore", "count:/sys/firmware",
         "read:/proc/keys", "read:/proc/timer_list", "count:/proc/acpi", "count:/proc/scsi",
         "openw:/proc/sys/kernel/domainname", "openw:/proc/sysrq-trigger", "touch:/proc/irq/x", "openw:/proc/bus",
         "touch:/sys/x", "touch:/new", "touch:/dev/new", "umask:/tmp/u", "exec:/bin/suid", "statvfs:/run",
         "statvfs:/dev/shm", "openrw:/dev/null", "openrw:/dev/zero", "openrw:/dev/full", "openr:/dev/random",
         "openr:/dev/tty", "openrw:/dev/ptmx", "openr:/dev/stdin", "stat:/", "stat:/proc", "stat:/sys", "stat:/tmp",
         *CALLS],
        differs={
            "rlimits-inherited": r"limit:(?!NOFILE)",
            "oom-score-inherited": r"file:/proc/self/oom_score_adj$",
            "namespace-network": r"ns:(net)$",
            "namespace-cgroup": r"ns:cgroup$",
        },
    ),
    Case("arguments", ["process.args:many"], [], change(process__args=["probe", "args", "a b", "", "ü", "--", "-x"])),
    Case(
        "environment",
        ["process.env:rules"],
        ["env"],
        change(process__env=["PATH=/bin", "A=1", "EMPTY=", "A=2", "SPACE=a b", "EQ=a=b"]),
    ),
    Case(
        "user",
        ["process.user.additionalGids", "process.user.umask", "process.capabilities:of-a-user"],
        ["status", "umask:/tmp/u", "env", "touch:/new", "touch:/tmp/new", "exec:/bin/suid", "names", "call:setuid-7",
         "call:chroot", "call:kill-1", "openw:/dev/stdout", "stat:/dev/stdout"],
        change(process__user={"uid": 1000, "gid": 1000, "additionalGids": [2000, 3000], "umask": 0o027},
               process__cwd="/home/user", process__noNewPrivileges=False, process__env=["PATH=/bin"]),
    ),
    Case(
        "capability sets",
        ["process.capabilities.ambient", "process.capabilities.inheritable"],
        ["status", "exec:/bin/suid", "call:sethostname", "call:socket-raw"],
        change(process__user={"uid": 1000, "gid": 1000}, process__noNewPrivileges=False,
               process__capabilities={
                   "bounding": ["CAP_NET_RAW", "CAP_KILL", "CAP_SETUID", "CAP_CHOWN"],
                   "permitted": ["CAP_NET_RAW", "CAP_KILL", "CAP_SETUID"],
                   "inheritable": ["CAP_NET_RAW", "CAP_KILL"],
                   "effective": ["CAP_NET_RAW", "CAP_KILL"],
                   "ambient": ["CAP_NET_RAW"],
               }),
    ),
    Case("no capabilities", ["process.capabilities"], ["status", "call:chown", "call:mount", "call:setuid-7"],
         _without_caps),
    Case("all capabilities", ["process.capabilities:all"], ["status", *CALLS], _all_caps),
    Case("rlimits", ["process.rlimits", "process.rlimits.type", "process.rlimits.soft", "process.rlimits.hard"],
         ["limits"], _rlimits),
    Case("oom score", ["process.oomScoreAdj"], ["file:/proc/self/oom_score_adj"], change(process__oomScoreAdj=321)),
    Case(
        "read-only root",
        ["root.readonly:true"],
        [MOUNTINFO, "touch:/new", "touch:/tmp/new", "touch:/dev/new", "touch:/run/new", "openw:/etc/passwd"],
        change(root__readonly=True),
    ),
    Case("hostname", ["hostname"], ["names"], change(hostname="a-name.example")),
    Case("domainname", ["domainname"], ["names"], change(hostname="h", domainname="example.org"),
         harpoon_only="runc 1.1 does not know it", expect={"domainname": "example.org", "hostname": "h"}),
    Case("working folder is made", ["process.cwd:missing"], ["names", "stat:/data/new", "stat:/data/new/er"],
         change(process__cwd="/data/new/er")),
    Case("working folder by a link", ["process.cwd:link"], ["names"], change(process__cwd="/opt/inside/sub")),
    Case(
        "options of a tmpfs",
        [f"mounts.options:{name}" for name in TMPFS_OPTIONS] + [
            "mounts.options:size", "mounts.options:mode", "mounts.options:uid", "mounts.options:nr_inodes"],
        [MOUNTINFO, "stat:/mnt/data", "statvfs:/mnt/data", "touch:/mnt/ro/x", "touch:/mnt/rw/x", "stat:/mnt/rw"],
        _tmpfs_options,
    ),
    Case(
        "binds",
        ["mounts.options:bind", "mounts.options:rbind", "mounts:file", "mounts:through-links"],
        [MOUNTINFO, "file:/mnt/file", "file:/etc/passwd", "touch:/mnt/b0/new0", "touch:/mnt/b2/new2", "touch:/mnt/file",
         "count:/mnt/b0/sub", "count:/mnt/b1/sub", "stat:/mnt/b1/owned", "exec:/mnt/b3/suid", "exec:/mnt/b1/suid",
         "openrw:/mnt/b3/null", "touch:/mnt/b1/sub/x", "file:/data/link-target/file", "file:/etc/x/file",
         "openw:/etc/passwd"],
        both(_binds, change(process__noNewPrivileges=False)),
        differs={
            "bind-filesystem": r"mount:[^:]*:type$",
            "bind-submounts": r"mount(:/(mnt/b\d|data/link-target|etc/x)/sub:.*|-order)$",
        },
    ),
    Case(
        "recursive options of binds",
        [f"mounts.options:{name}" for name in sorted(set(BIND_RECURSIVE) - NOT_BY_RUNC)],
        [MOUNTINFO, "touch:/mnt/rro/x", "touch:/mnt/rro/sub/x", "touch:/mnt/rrw/x"],
        _binds_recursive,
        differs={
            "bind-filesystem": r"mount:[^:]*:type$",
            "bind-submounts": r"mount(:/mnt/[a-z]*/sub:.*|-order)$",
        },
    ),
    Case(
        "recursive access times of binds",
        [f"mounts.options:{name}" for name in sorted(NOT_BY_RUNC)],
        [MOUNTINFO],
        _binds_recursive_atime,
        harpoon_only="runc 1.1 fails",
        expect={"mount:/mnt/ratime:opts": "rw,relatime", "mount:/mnt/rnoatime:opts": "rw,noatime",
                "mount:/mnt/rstrictatime:opts": "rw", "mount:/mnt/rrelatime:opts": "rw,relatime"},
    ),
    Case(
        "tmpfs over the image",
        ["mounts.options:tmpcopyup", "mounts:inherited-mode"],
        [MOUNTINFO, "tree:/data", "tree:/mnt", "stat:/data", "file:/data/file", "stat:/home", "stat:/opt/n", "stat:/opt/m"],
        add_mounts(
            mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "size=1m"),
            mount("/home", "tmpfs", "tmpfs", "size=1m", "ro"),
            mount("/opt/n", "tmpfs", "tmpfs", "size=1m"),
            mount("/opt/m", "tmpfs", "tmpfs", "size=1m", "mode=700"),
        ),
    ),
    Case(
        "other mounts",
        ["mounts:proc", "mounts:sysfs", "mounts:devpts", "mounts:mqueue", "mounts:over-a-mount"],
        [MOUNTINFO, "stat:/mnt/pts/ptmx", "touch:/mnt/sys/x", "stat:/mnt/mq", "openw:/mnt/proc/sys/kernel/hostname",
         "touch:/run/over/x"],
        add_mounts(
            mount("/mnt/proc", "proc", "proc", "ro", "nosuid"),
            mount("/mnt/sys", "sysfs", "sysfs", "ro"),
            mount("/mnt/pts", "devpts", "devpts", "newinstance", "ptmxmode=0600", "mode=0600", "noexec"),
            mount("/mnt/mq", "mqueue", "mqueue", "noexec"),
            mount("/run/over", "tmpfs", "tmpfs", "size=64k"),
            mount("/run", "tmpfs", "tmpfs", "size=64k", "mode=755"),
            mount("/run/over", "tmpfs", "again", "size=64k", "mode=700"),
        ),
    ),
    Case(
        "masked and read-only paths",
        ["linux.maskedPaths:forms", "linux.readonlyPaths:forms"],
        [MOUNTINFO, "read:/proc/version", "count:/data", "read:/etc/passwd", "openw:/etc/passwd", "touch:/home/x",
         "openw:/etc/group", "stat:/data", "stat:/etc/passwd", "touch:/data/x", "openw:/proc/self/attr/current"],
        _masked,
    ),
    Case(
        "sysctls",
        ["linux.sysctl"],
        ["file:/proc/sys/net/ipv4/ip_forward", "file:/proc/sys/net/ipv4/ip_local_port_range",
         "file:/proc/sys/kernel/shm_rmid_forced", "file:/proc/sys/kernel/msgmax", "file:/proc/sys/fs/mqueue/msg_max",
         "file:/proc/sys/net/ipv4/conf/lo/rp_filter", "file:/proc/sys/kernel/sem"],
        change(linux__sysctl={
            "net.ipv4.ip_forward": "1", "net.ipv4.ip_local_port_range": "2000 3000", "kernel.shm_rmid_forced": "1",
            "kernel.msgmax": "12345", "fs.mqueue.msg_max": "17", "net/ipv4/conf/lo/rp_filter": "2",
            "kernel.sem": "100 200 30 40"}),
    ),
    Case(
        "devices",
        ["linux.devices", "linux.devices.path", "linux.devices.type", "linux.devices.major", "linux.devices.minor",
         "linux.devices.fileMode", "linux.devices.uid", "linux.devices.gid"],
        ["tree:/dev", "stat:/opt/null", "openrw:/dev/a/b/null", "openrw:/dev/kmsg-closed", "openrw:/opt/null"],
        change(linux__devices=[
            {"path": "/dev/a/b/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
            {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o622, "uid": 3},
            {"path": "/dev/u", "type": "u", "major": 1, "minor": 3},
            {"path": "/dev/disk", "type": "b", "major": 7, "minor": 200, "fileMode": 0o660, "gid": 6},
            {"path": "/dev/kmsg-closed", "type": "c", "major": 1, "minor": 11},
            {"path": "/opt/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
        ]),
    ),
    Case(
        "device rules",
        ["linux.resources.devices", "linux.resources.devices.allow", "linux.resources.devices.type",
         "linux.resources.devices.major", "linux.resources.devices.minor", "linux.resources.devices.access"],
        ["mknod:/tmp/kmsg,c,1,11", "mknod:/tmp/mem,c,1,1", "mknod:/tmp/null,c,1,3", "mknod:/tmp/fuse,c,10,229",
         "mknod:/tmp/loop,b,7,0", "openrw:/dev/null"],
        change(linux__resources__devices=[
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "w"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"},
        ]),
    ),
    Case(
        "all devices allowed",
        ["linux.resources.devices:privileged"],
        ["mknod:/tmp/kmsg,c,1,11", "mknod:/tmp/null,c,1,3"],
        change(linux__resources__devices=[{"allow": True, "access": "rwm"}]),
    ),
    Case(
        "seccomp actions and conditions",
        ["linux.seccomp", "linux.seccomp.defaultAction", "linux.seccomp.architectures",
         "linux.seccomp.syscalls.names", "linux.seccomp.syscalls.action", "linux.seccomp.syscalls.errnoRet",
         "linux.seccomp.syscalls.args"],
        [*CALLS, "status"],
        _seccomp_actions,
    ),
    Case(
        "seccomp without no_new_privs",
        ["linux.seccomp:needs-admin"],
        [*CALLS, "status"],
        both(_seccomp_actions, _without_setuid_rule,
             change(process__noNewPrivileges=False, process__user={"uid": 1000, "gid": 1000})),
    ),
    Case("seccomp by default deny", ["linux.seccomp.defaultErrnoRet"],
         ["status", "call:mkdir", "call:mount", "call:getpid", "call:socket-inet", "call:setuid-7"],
         _seccomp_default_deny),
    Case("cgroup namespace", ["linux.namespaces:cgroup"], ["ns", "lines:/proc/self/cgroup"],
         lambda spec, env: spec["linux"]["namespaces"].append({"type": "cgroup"}),
         differs={"namespace-network": r"ns:net$", "cgroup-version": r"lines:/proc/self/cgroup:"}),
    Case("few namespaces", ["linux.namespaces:absent"], ["ns", "status"],
         change(linux__namespaces=[{"type": "pid"}, {"type": "mount"}]),
         differs={"namespace-network": r"ns:net$", "namespace-cgroup": r"ns:cgroup$"}),
    Case(
        "user namespace",
        ["linux.namespaces:user", "linux.uidMappings", "linux.gidMappings", "linux.uidMappings.containerID",
         "linux.uidMappings.hostID", "linux.uidMappings.size"],
        ["status", "ns", "lines:/proc/self/uid_map", "lines:/proc/self/gid_map", "file:/proc/self/setgroups", "tree:/dev",
         "touch:/tmp/new", "touch:/new", "stat:/tmp/new", "stat:/etc/passwd", "call:sethostname", "call:mount",
         MOUNTINFO, "openrw:/dev/null"],
        _user_namespace,
        differs={"namespace-network": r"ns:net$", "namespace-cgroup": r"ns:cgroup$",
                 "bind-filesystem": r"mount:/dev/[a-z]*:(type|super|source|opts|prop)$",
                 "userns-sysfs": r"mount(:/sys/fs/cgroup:.*|-order)$", "userns-mqueue": r"tree:/dev/mqueue$"},
    ),
    *[
        Case(f"root propagation {word}", [f"linux.rootfsPropagation:{word}"], [MOUNTINFO],
             change(linux__rootfsPropagation=word))
        for word in ("private", "rprivate", "slave", "rslave")
    ],
    *[
        Case(f"root propagation {word}", [f"linux.rootfsPropagation:{word}"], [MOUNTINFO],
             change(linux__rootfsPropagation=word), harpoon_only=why, expect=expect)
        for word, why, expect in (
            ("shared", "runc 1.1 keeps the root private", {"mount:/:prop": "shared", "mount:/proc:prop": "private"}),
            ("rshared", "runc 1.1 keeps the root private", {"mount:/:prop": "shared", "mount:/proc:prop": "shared"}),
            ("unbindable", "runc 1.1 fails", {"mount:/:prop": "unbindable", "mount:/proc:prop": "private"}),
            ("runbindable", "runc 1.1 fails", {"mount:/:prop": "unbindable", "mount:/proc:prop": "unbindable"}),
        )
    ],
    Case(
        "seccomp flags",
        ["linux.seccomp.flags"],
        ["status", "call:mkdir"],
        both(_seccomp_actions, change(linux__seccomp__flags=[
            "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"])),
        harpoon_only="runc 1.1 does not know them",
        expect={"status:Seccomp": "2", "call:mkdir": "EPERM"},
    ),
    Case(
        "huge pages",
        ["linux.resources.hugepageLimits"],
        ["file:/sys/fs/cgroup/hugetlb.2MB.max"],
        both(lambda spec, env: spec["linux"]["namespaces"].append({"type": "cgroup"}),
             change(linux__resources__hugepageLimits=[{"pageSize": "2MB", "limit": 4 << 20}]),
             add_mounts(mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro"))),
        harpoon_only="runc needs the controller on the host",
        expect={"resource:hugepages": "4194304"},
    ),
    Case("personality", ["linux.personality.domain"], ["names"], change(linux__personality={"domain": "LINUX"})),
    Case(
        "resources",
        ["linux.cgroupsPath", "linux.resources.memory.limit", "linux.resources.memory.reservation",
         "linux.resources.memory.swap", "linux.resources.memory.kernel", "linux.resources.memory.kernelTCP",
         "linux.resources.memory.swappiness", "linux.resources.cpu.shares", "linux.resources.cpu.quota",
         "linux.resources.cpu.period", "linux.resources.cpu.cpus", "linux.resources.cpu.mems",
         "linux.resources.pids.limit", "linux.resources.blockIO.weight",
         "linux.resources.blockIO.throttleReadBpsDevice", "linux.resources.blockIO.throttleWriteIOPSDevice",
         "mounts:cgroup"],
        [f"file:/sys/fs/cgroup/{file}" for file in
         sorted(set(itertools.chain.from_iterable(RESOURCE_FACTS.values())))],
        _resources,
    ),
    Case(
        "scheduler and I/O priority",
        ["process.scheduler", "process.scheduler.policy", "process.scheduler.nice", "process.ioPriority",
         "process.ioPriority.class", "process.ioPriority.priority"],
        ["sched"],
        change(process__scheduler={"policy": "SCHED_BATCH", "nice": 7},
               process__ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6}),
        harpoon_only="runc 1.1 does not know them",
        expect={"sched": "policy 3 flags 0 nice 7 priority 0", "ioprio": "4006"},
    ),
    Case(
        "real-time scheduler",
        ["process.scheduler.priority", "process.scheduler.flags"],
        ["sched"],
        change(process__scheduler={"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
        harpoon_only="runc 1.1 does not know it",
        expect={"sched": "policy 1 flags 1 nice 0 priority 5"},
    ),
    Case(
        "time namespace",
        ["linux.namespaces:time", "linux.timeOffsets"],
        ["ns", "clock", "lines:/proc/self/timens_offsets"],
        both(lambda spec, env: spec["linux"]["namespaces"].append({"type": "time"}),
             change(linux__timeOffsets={"monotonic": {"secs": 300000}, "boottime": {"secs": 500000, "nanosecs": 7}})),
        harpoon_only="runc 1.1 does not know it",
        expect={"ns:time": "own", "clock:monotonic": "3", "clock:boottime": "5"},
    ),
]

# Fields whose behaviour another test shows.
ELSEWHERE = {
    "process.consoleSize": "../unit/test_agent.c",
    "hooks.prestart": "test_hooks.py",
    "hooks.createRuntime": "test_hooks.py",
    "hooks.createContainer": "test_hooks.py",
    "hooks.startContainer": "test_hooks.py",
    "hooks.poststart": "test_hooks.py",
    "hooks.poststop": "test_hooks.py",
    "annotations": "test_hooks.py",
    "linux.resources.memory.checkBeforeUpdate": "../unit/test_agent_spec.c",
    "linux.resources.cpu.burst": "../unit/test_oci_resources.c",
    "linux.resources.cpu.idle": "../unit/test_oci_resources.c",
    "linux.resources.unified": "../unit/test_oci_resources.c",
    "linux.resources.blockIO.weightDevice": "../unit/test_shim_hostcgroup.c",
    "linux.resources.blockIO.throttleWriteBpsDevice": "../unit/test_shim_hostcgroup.c",
    "linux.resources.blockIO.throttleReadIOPSDevice": "../unit/test_shim_hostcgroup.c",
    "linux.namespaces.path": "../unit/test_shim_vmreq.c",
    "mounts.options:defaults": "../unit/test_oci.c",
    "mounts.options:nosymfollow": "../unit/test_oci.c",
    "mounts.options:lazytime": "../unit/test_oci.c",
    "mounts.options:iversion": "../unit/test_oci.c",
    "mounts.options:mand": "../unit/test_oci.c",
    "mounts.options:silent": "../unit/test_oci.c",
    "mounts.options:remount": "../unit/test_oci.c",
    "linux.devices:user-namespace": "../unit/test_agent.c",
}

# Refused or read past: docs/differences.md must name them.
DOCUMENTED = [
    "process.apparmorProfile", "process.selinuxLabel", "process.execCPUAffinity", "linux.mountLabel", "linux.intelRdt",
    "linux.memoryPolicy", "linux.netDevices", "linux.personality", "resources.network", "resources.rdma",
    "resources.memory.disableOOMKiller", "resources.cpu.realtimeRuntime", "realtimePeriod", "useHierarchy", "leafWeight",
    "uidMappings", "idmap", "SCMP_ACT_NOTIFY", "process.user.username", "hooks.createContainer",
]

# Every field of config.json that runc honours, and every word of a mount's options.
FIELDS = """
ociVersion process.terminal process.consoleSize process.cwd process.env process.args process.rlimits.type
process.rlimits.soft process.rlimits.hard process.capabilities.bounding process.capabilities.effective
process.capabilities.permitted process.capabilities.inheritable process.capabilities.ambient process.noNewPrivileges
process.oomScoreAdj process.scheduler process.ioPriority process.user.uid process.user.gid process.user.umask
process.user.additionalGids root.path root.readonly hostname domainname mounts.destination mounts.type mounts.source
mounts.options hooks.prestart hooks.createRuntime hooks.createContainer hooks.startContainer hooks.poststart
hooks.poststop annotations linux.namespaces.type linux.namespaces.path linux.uidMappings linux.gidMappings
linux.timeOffsets linux.devices.path linux.devices.type linux.devices.major linux.devices.minor linux.devices.fileMode
linux.devices.uid linux.devices.gid linux.cgroupsPath linux.rootfsPropagation:shared linux.rootfsPropagation:slave
linux.rootfsPropagation:private linux.rootfsPropagation:unbindable linux.maskedPaths linux.readonlyPaths linux.sysctl
linux.seccomp.defaultAction linux.seccomp.defaultErrnoRet linux.seccomp.architectures linux.seccomp.flags
linux.seccomp.syscalls.names linux.seccomp.syscalls.action linux.seccomp.syscalls.errnoRet linux.seccomp.syscalls.args
linux.personality.domain linux.resources.devices linux.resources.memory.limit linux.resources.memory.reservation
linux.resources.memory.swap linux.resources.memory.kernel linux.resources.memory.kernelTCP
linux.resources.memory.swappiness linux.resources.memory.checkBeforeUpdate linux.resources.cpu.shares
linux.resources.cpu.quota linux.resources.cpu.burst linux.resources.cpu.period linux.resources.cpu.cpus
linux.resources.cpu.mems linux.resources.cpu.idle linux.resources.pids.limit linux.resources.blockIO.weight
linux.resources.blockIO.weightDevice linux.resources.blockIO.throttleReadBpsDevice
linux.resources.blockIO.throttleWriteBpsDevice linux.resources.blockIO.throttleReadIOPSDevice
linux.resources.blockIO.throttleWriteIOPSDevice linux.resources.hugepageLimits linux.resources.unified
linux.namespaces:pid linux.namespaces:ipc linux.namespaces:uts linux.namespaces:mount linux.namespaces:network
linux.namespaces:cgroup linux.namespaces:user linux.namespaces:time
mounts.options:tmpcopyup mounts.options:size mounts.options:mode mounts.options:bind mounts.options:rbind
mounts.options:nosymfollow mounts.options:lazytime mounts.options:iversion mounts.options:mand mounts.options:silent
mounts.options:remount mounts.options:defaults
""".split() + [f"mounts.options:{name}" for name in [*TMPFS_OPTIONS, *BIND_RECURSIVE]]
