"""What a container may leave behind, as sets that can be compared before and after.

Made for the integration tests' own namespaces (see tests/inside): there everything that exists is ours, so
nothing is filtered but what the caller names.
"""

import glob
import os
import pathlib

from . import netlab
from .containerd import wait_until

# Changing all the time, and not a container's doing. (kvm-probe: what the host can do, kept when a probe was sure.)
IGNORED_FILES = {"containerd.log", "meta.db", "config.toml", "harpoon.conf", "kvm-probe"}


def _read(path):
    try:
        with open(path, "rb") as f:
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def processes(ignore):
    """Every process, zombies too, except those in `ignore` (pids)."""
    found = set()
    for name in os.listdir("/proc"):
        stat = _read(f"/proc/{name}/stat") if name.isdigit() else ""
        if not stat or int(name) in ignore:
            continue
        fields = stat.rpartition(")")[2].split()
        if fields[1] == "0" or fields[1] == "2":
            # ppid 0 or kthreadd: the namespace's init, someone who entered it, a kernel thread
            continue
        command = _read(f"/proc/{name}/cmdline").replace("\0", " ").strip()
        comm = stat.partition("(")[2].rpartition(")")[0]
        state = " (zombie)" if fields[0] == "Z" else ""
        found.add(f"pid {name}: {comm}{state}: {command[:200]}")
    return found


def mounts():
    found = set()
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        found.add(f"{fields[4]} type {kind[0]} from {kind[1]} root {fields[3]}")
    return found


def sockets():
    """Named unix sockets, abstract ones (@) too."""
    lines = _read("/proc/net/unix").splitlines()[1:]
    return {fields[7] for fields in (line.split() for line in lines) if len(fields) > 7}


def files(folders):
    found = set()
    for top in folders:
        for folder, dirs, names in os.walk(top, onerror=None):
            found.update(f"{folder}/{name}" for name in [*dirs, *names] if name not in IGNORED_FILES)
            # The content of a container's root is the container's; a left-over mount there is seen as a mount.
            dirs[:] = [name for name in dirs if name not in ("rootfs", "merged")]
    return found


def snapshots(root):
    return set(glob.glob(f"{root}/io.containerd.snapshotter.v1.*/snapshots/*"))


def cgroups(word):
    """Folders below one named `word`, in any hierarchy. (That one is every container's, and stays.)"""
    found = set()
    for folder, dirs, _ in os.walk("/sys/fs/cgroup"):
        found.update(f"{folder}/{name}" for name in dirs if word in folder.split("/"))
    return found


def loops(word):
    found = set()
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        backing = _read(path).strip()
        if word in backing:
            found.add(f"{path.split('/')[3]}: {backing}")
    return found


def links():
    return {line.partition(":")[0].strip() for line in _read("/proc/net/dev").splitlines()[2:]}


def ipc():
    found = set()
    for kind in ("shm", "sem", "msg"):
        found.update(f"{kind} {line}" for line in _read(f"/proc/sysvipc/{kind}").splitlines()[1:])
    return found


class Checker:
    """
    take() before, grown() after. `folders` are walked; `root` is containerd's persistent folder, `word` its
    namespace, `ignore_pids()` answers the processes that may come and go (containerd itself).
    """

    def __init__(self, folders=(), root=None, word=None, ignore_pids=lambda: set()):
        self.folders = [pathlib.Path(folder) for folder in folders]
        self.root, self.word, self.ignore_pids = root, word, ignore_pids

    def take(self):
        ignore = {os.getpid()} | self.ignore_pids()
        now = {
            "processes": processes(ignore),
            "mounts": mounts(),
            "unix sockets": sockets(),
            "files": files(self.folders),
            "network links": links(),
            "taps and traffic control": netlab.traffic_control(),
            "network namespaces": set(netlab.namespaces()),
            "System V IPC": ipc(),
        }
        if self.root:
            now["snapshots"] = snapshots(self.root)
            now["loop devices"] = loops(str(self.root.parent))
        if self.word:
            now["cgroups"] = cgroups(self.word)
        return now

    def grown(self, before, timeout=5):
        """Text of what is there now and was not before, when that is still so after `timeout`; else empty."""
        last = {}

        def is_clean():
            last.clear()
            for kind, things in self.take().items():
                more = things - before.get(kind, set())
                if more:
                    last[kind] = more
            return not last

        if wait_until(is_clean, timeout, 0.05):
            return ""
        lines = []
        for kind, more in last.items():
            lines.append(f"{kind} left behind:")
            lines += [f"    {thing}" for thing in sorted(more)]
        return "\n".join(lines)
