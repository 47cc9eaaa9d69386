"""The conformance table: specs for the two runtimes, what the probe saw, and what may differ.

A case is one container: a change to the base spec, the facts the probe is asked for, and the fields of config.json it
stands for. test_conformance.py runs it under runc and under harpoon from the same spec and compares the facts. What may
differ is a row of docs/differences.md, by its id.
"""

import copy
import pathlib
import re
import shutil
import signal
import subprocess

from harpoonlib import paths

DOCS = paths.ROOT / "docs/differences.md"
PROBE_SOURCE = paths.ROOT / "tests/conformance/probe.c"

CAPS = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]
MASKED = [
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

# What the Python interpreter ignores for itself alone: subprocess puts these back in a child.
PYTHON_IGNORES = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)

# The initial namespaces of any kernel have these numbers (include/linux/proc_ns.h): what a guest's agent is in.
INITIAL = {"ipc": 4026531839, "uts": 4026531838, "user": 4026531837, "pid": 4026531836, "cgroup": 4026531835,
           "time": 4026531834}


def mount(destination, kind, source, *options):
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def base_spec():
    """What `ctr` gives a container, with everything that matters said."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [],
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {kind: list(CAPS) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "", "readonly": False},
        "mounts": [
            mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
                  "gid=5"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READONLY),
        },
    }


class Case:
    """
    change(spec, env): edits the spec (env: .host a folder, .root the root's path). facts: the probe's words. fields:
    what of config.json it stands for. differs: id of docs/differences.md -> regular expression of the keys that may
    differ for that reason. expect: key -> value that both, or (harpoon_only) harpoon alone, must show.
    """

    def __init__(self, name, fields, facts, change=None, differs=None, expect=None, harpoon_only=None, look=None):
        self.name, self.fields, self.facts = name, fields, facts
        self.change = change or (lambda spec, env: None)
        self.differs = differs or {}
        self.expect = expect or {}
        self.harpoon_only = harpoon_only  # why runc cannot be asked
        self.look = look  # look(box, name, pid) -> facts of the host, while the container runs

    def spec(self, env):
        spec = base_spec()
        spec["root"]["path"] = str(env.root)
        self.change(spec, env)
        spec["process"]["args"] = spec["process"]["args"] or ["/bin/probe", *self.facts]
        return spec


def build_probe(folder):
    out = pathlib.Path(folder) / "probe"
    subprocess.run(
        ["musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-D_GNU_SOURCE", "-o", str(out), str(PROBE_SOURCE)],
        check=True,
    )
    return out


def make_root(folder, probe):
    """A small image: the probe, set-id copies of it, files with owners and modes, links out of the root."""
    root = pathlib.Path(folder)
    for name in ("bin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "home/user", "mnt", "data/sub", "opt"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "data").chmod(0o1750)
    shutil.copy(probe, root / "bin/probe")
    shutil.copy(probe, root / "bin/suid")
    (root / "bin/suid").chmod(0o6755)
    shutil.copy(pathlib.Path("/bin/busybox"), root / "bin/sh")
    (root / "bin/sleep").symlink_to("sh")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
    (root / "data/file").write_text("image\n")
    (root / "data/sub/deep").write_text("deep\n")
    (root / "opt/inside").symlink_to("/data")
    (root / "opt/outside").symlink_to("../../../../../../etc")
    return root


def _ignored_here():
    """Signals that this process ignores, as a mask: runc hands on to its containers what its caller ignored."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn:"))


def parse(text):
    facts = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    if "status:SigIgn" in facts:
        inherited = _ignored_here() & ~PYTHON_IGNORES
        facts["status:SigIgn"] = f"{int(facts['status:SigIgn'], 16) & ~inherited:016x}"
    return facts


# ---- from what the probe prints to what is compared ----


def _mounts(facts):
    """lines:/proc/self/mountinfo -> mount:POINT:opts, :prop, :type, :root; super options by name for kernel types."""
    found = {}
    order = []
    for key in sorted(k for k in facts if k.startswith("lines:/proc/self/mountinfo:")):
        left, right = facts[key].split(" - ", 1)
        fields, (kind, source, options) = left.split(), right.split(" ", 2)
        point = fields[4]
        n = sum(1 for p in order if p == point)
        order.append(point)
        name = f"mount:{point}" + (f"#{n}" if n else "")
        found[f"{name}:opts"] = fields[5]
        found[f"{name}:prop"] = " ".join(sorted(word.split(":")[0] for word in fields[6:])) or "private"
        found[f"{name}:type"] = kind
        # Whose root it is within its file system: only what is shared with a neighbour tells anything.
        if kind in ("tmpfs", "devpts", "mqueue", "proc", "sysfs"):
            # A mode may be an option or set afterwards; the facts "stat" and "tree" tell which it is.
            words = sorted(word for word in options.split(",") if not word.startswith(("inode64", "huge=", "mode=7")))
            words = [word for word in words if not re.match("mode=1?[0-7]{3}$", word) or kind != "tmpfs"]
            found[f"{name}:super"] = ",".join(words)
            found[f"{name}:source"] = source
    # Which masked paths exist is the kernel's affair, and so is this one.
    found["mount-order"] = " ".join(point for point in order if point not in [*MASKED, "/proc/sysrq-trigger"])
    return found


def _namespaces(facts, is_guest, host):
    """ns:KIND -> own or not: other than the one the runtime is in."""
    found = {}
    for key, value in facts.items():
        kind, _, number = value.partition(":")
        number = int(number.strip("[]") or 0)
        found[key] = "own" if number != (INITIAL.get(kind, 0) if is_guest else host[kind]) else "the runtime's"
    return found


def meaning(facts, is_guest, host_namespaces):
    """Facts by meaning: the same value for the same thing, whatever the kernel's words for it."""
    out = {k: v for k, v in facts.items() if not k.startswith(("lines:/proc/self/mountinfo:", "ns:"))}
    out.update(_mounts(facts) if any(k.startswith("lines:/proc/self/mountinfo:") for k in facts) else {})
    out.update(_namespaces({k: v for k, v in facts.items() if k.startswith("ns:")}, is_guest, host_namespaces))
    for key in list(out):
        if re.match(r"(file|lines):/proc/self/(uid|gid)_map", key):
            out[key] = " ".join(out[key].split())
        if key == "status:NSpid":
            # Of the pid namespaces above it nothing is seen
            out[key] = out[key].split()[-1]
    return out


def compare(runc, harpoon):
    """Keys whose values differ: {key: (runc's, harpoon's)}."""
    return {
        key: (runc.get(key), harpoon.get(key))
        for key in sorted(set(runc) | set(harpoon))
        if runc.get(key) != harpoon.get(key)
    }


def documented():
    """Ids of the rows of docs/differences.md that belong to the table: | `id` | ..."""
    section = DOCS.read_text().split("\n## What a process sees\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.M))


def set_path(spec, path, value):
    """linux.resources.pids -> value"""
    *way, last = path.split(".")
    for word in way:
        spec = spec.setdefault(word, {})
    spec[last] = copy.deepcopy(value)
