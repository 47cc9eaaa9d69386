"""What a running harpoon-vmm has and may, as /proc tells it, against everything it should: no more, no less.

The guest is two bytes that jump to themselves, so nothing ever changes, and any /dev/kvm is fast enough.
"""

import ctypes
import os
import pathlib
import re
import resource
import select
import signal
import struct
import subprocess
import time

import pytest
from conftest import BUILD, IS_HARPOON

HARPOON = BUILD / "src/cli/harpoon"
VMM = BUILD / "src/vmm/harpoon-vmm"
VCPUS = 2
UID_BASE = 0x70000000
# vsock: its interrupt, three queues, its own bell. fs: its interrupt, two queues, a bell for the end of each one's
# workers, and one for the device. balloon: its interrupt, three queues. rng: its interrupt, a queue. vCPUs: what
# they call the loop with.
EVENTFDS = {"vsock": 5, "fs": 6, "balloon": 4, "rng": 2, "vCPUs": 1}
THREADS = ["harpoon-vmm", "virtio-fs-0", *["virtio-fs-1"] * 5, "vcpu0", "vcpu1"]
# Of the file server's channel: its trunk, and a link for each worker
FS_SOCKETS = 7
LIMIT_S = 30

pytestmark = [
    pytest.mark.harpoon,
    pytest.mark.skipif(not IS_HARPOON, reason="about harpoon-vmm"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm"),
]


def _looping_kernel(path):
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, 0x200000, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 4096, 0x200000, 0x200000, 2, 2, 4096)
    path.write_bytes((header + segment).ljust(4096, b"\0") + b"\xeb\xfe")


def _ignore_a_signal_of_libc():
    """Who starts us may ignore any signal, even one that the C library keeps to itself (SIGCANCEL, 32)."""
    rt_sigaction, ignore = 13, struct.pack("QQQQ", 1, 0, 0, 0)  # asm/unistd_64.h; SIG_IGN, no flags, no mask
    if ctypes.CDLL(None, use_errno=True).syscall(rt_sigaction, 32, ignore, None, 8):
        raise OSError(ctypes.get_errno(), "rt_sigaction")


class Vmm:
    def __init__(self, folder):
        _looping_kernel(folder / "vmlinux")
        (folder / "initrd").write_bytes(b"070701")
        conf = folder / "harpoon.conf"
        conf.write_text(
            f"[vm]\nbackend = kvm\nkernel = {folder}/vmlinux\ninitrd = {folder}/initrd\n"
            f"[programs]\nfs_server = {BUILD}/src/fs/harpoon-fs\nvmm = {VMM}\n"
        )
        # pylint: disable-next=consider-using-with,subprocess-popen-preexec-fn
        self.shim = subprocess.Popen(
            [HARPOON, "boot", "--vcpus", str(VCPUS), "--memory", "64M"],
            env={"HARPOON_CONFIG": str(conf), "JUNK": "in the environment"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=_ignore_a_signal_of_libc,
        )  # fmt: skip
        self.pid = self._wait(self._find)
        self._wait(self._is_confined)

    def _wait(self, what):
        deadline = time.monotonic() + LIMIT_S
        while not (found := what()):
            if self.shim.poll() is not None:
                pytest.fail(f"no VM: {self.shim.stdout.read().decode()}")
            assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {what.__name__}"
            time.sleep(0.01)
        return found

    def _find(self):
        for pid in pathlib.Path(f"/proc/{self.shim.pid}/task/{self.shim.pid}/children").read_text().split():
            if pathlib.Path(f"/proc/{pid}/comm").read_text() == "harpoon-vmm\n":
                return int(pid)
        return None

    def _is_confined(self):
        tasks = self.threads()
        return len(tasks) == len(THREADS) and all(status["Seccomp"] == "2" for status in tasks.values())

    def proc(self, name):
        return pathlib.Path(f"/proc/{self.pid}") / name

    def threads(self):
        """Status of each thread that is a program's: KVM adds one of the kernel's."""
        found = {}
        for task in sorted(self.proc("task").iterdir(), key=lambda path: int(path.name)):
            status = dict(re.findall(r"(\w+):[ \t]*(.*)", (task / "status").read_text()))
            if not status["Name"].startswith("kvm-"):
                found[int(task.name)] = status
        return found

    def end(self):
        self.shim.kill()
        self.shim.wait()
        self.shim.stdout.close()


@pytest.fixture(name="vmm")
def _vmm(tmp_path):
    vmm = Vmm(tmp_path)
    yield vmm
    vmm.end()


def _fds(vmm):
    found = {}
    for fd in vmm.proc("fd").iterdir():
        target = re.sub(r":\[\d+\]", "", os.readlink(fd))
        found.setdefault(target, []).append(int(fd.name))
    return {target: sorted(numbers) for target, numbers in found.items()}


@pytest.mark.smoke
def test_rights(vmm):
    uid = UID_BASE + vmm.pid
    threads = vmm.threads()
    assert [status["Name"] for status in threads.values()] == THREADS
    for status in threads.values():
        assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
        assert status["Groups"].strip() == ""
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities], 16) == 0, capabilities
        assert status["NoNewPrivs"] == "1"
        assert (status["Seccomp"], status["Seccomp_filters"]) == ("2", "1")
        # SIGPIPE is ignored; SIGTERM ends it; SIGUSR1 kicks a vCPU; the C library has one for threads
        assert int(status["SigIgn"], 16) == 1 << (signal.SIGPIPE - 1)
        assert int(status["SigCgt"], 16) & ~(3 << 31) == 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGTERM - 1)
        assert int(status["SigBlk"], 16) == 0
        assert status["Umask"] == "0077"
    # The first process of its pid namespace, and leader of its session there
    status = threads[vmm.pid]
    assert [status[key].split()[1] for key in ("NStgid", "NSpid", "NSpgid", "NSsid")] == ["1"] * 4


def test_namespaces(vmm):
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    theirs = {name: os.readlink(vmm.proc("ns") / name) for name in os.listdir("/proc/self/ns")}
    different = {name for name, link in own.items() if theirs[name] != link}
    assert different == {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "uts"}
    devices = vmm.proc("net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_root_is_empty(vmm):
    (mount,) = vmm.proc("mountinfo").read_text().splitlines()
    fields = mount.split()
    assert fields[3:6] == ["/", "/", "ro,nosuid,nodev,noexec,relatime"] and "tmpfs" in fields
    assert os.listdir(vmm.proc("root")) == []
    assert os.readlink(vmm.proc("cwd")) == "/"
    assert pathlib.Path(os.readlink(vmm.proc("exe"))) == VMM
    assert vmm.proc("environ").read_bytes() == b""
    assert vmm.proc("cmdline").read_bytes() == b"harpoon-vmm\0"


def test_descriptors(vmm):
    found = _fds(vmm)
    assert found.pop("/dev/null") == [0]
    # Log lines, and a pipe for the agent's greeting; the control socket, the console's, the file server's
    assert [1, 2] == found["pipe"][:2] and len(found.pop("pipe")) == 4
    assert 3 == found["socket"][0] and len(found.pop("socket")) == 2 + FS_SOCKETS
    # The loop's, and one for the workers of each queue
    assert len(found.pop("anon_inode:[eventpoll]")) == 3
    assert len(found.pop("anon_inode:kvm-vm")) == 1
    for index in range(VCPUS):
        assert len(found.pop(f"anon_inode:kvm-vcpu:{index}")) == 1
    assert len(found.pop("anon_inode:[eventfd]")) == sum(EVENTFDS.values())
    assert found == {}


def test_memory(vmm):
    maps = [line.split(maxsplit=5) for line in vmm.proc("maps").read_text().splitlines()]
    for entry in maps:
        assert not {"w", "x"} <= set(entry[1]), entry
    names = {entry[5] for entry in maps if len(entry) == 6}
    # Kernel and initrd are less than a page here, so they were read, not mapped.
    files = {name for name in names if name.startswith("/")}
    assert files == {str(VMM), "/memfd:harpoon-fs (deleted)"}
    others = names - files - {"[heap]", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"}
    assert others == {f"anon_inode:kvm-vcpu:{index}" for index in range(VCPUS)}
    shared = [entry for entry in maps if entry[1].endswith("s")]
    assert len(shared) == VCPUS + 1  # no guest memory: what it shares with the file server are requests


def test_limits(vmm):
    text = vmm.proc("limits").read_text()
    limits = {m[1]: (m[2], m[3]) for m in re.finditer(r"^Max (.*?) {2,}(\S+) +(\S+)", text, re.M)}
    for name in ("core file size", "locked memory", "msgqueue size", "nice priority", "realtime priority"):
        assert limits[name] == ("0", "0"), name
    # The loop, the vCPUs, room for workers: some of the file system's, one for each disk there may be
    assert limits["processes"] == (str(VCPUS + 1 + 16 + 16),) * 2
    assert limits["open files"] == (str(min(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),) * 2


def test_ends_of_sigterm(vmm):
    os.kill(vmm.pid, signal.SIGTERM)
    out, _ = vmm.shim.communicate(timeout=10)
    assert b"killed by signal 15" in out or b"exited with code 143" in out, out


def test_dies_with_its_shim(vmm):
    pidfd = os.pidfd_open(vmm.pid)
    try:
        vmm.shim.kill()
        readable, _, _ = select.select([pidfd], [], [], 5)
        assert readable, "harpoon-vmm outlived its shim"
    finally:
        os.close(pidfd)
