"""Something dies or is missing: a clear answer, in time, and nothing left behind."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest
from conftest import RUNTIME
from harpoonlib import paths
from harpoonlib.containerd import SLOWNESS, wait_until

pytestmark = pytest.mark.harpoon

# A dead VM is an exited task within this time (and some for ctr on a busy machine).
DEATH_S = 3 * SLOWNESS


class Victim:
    """A running container with a client that waits for it."""

    def __init__(self, box, script="echo READY; sleep 1000"):
        self.box = box
        self.name = box.name("victim")
        self.process = box.background("sh", "-c", script, name=self.name)
        self.lines = [self.process.stdout.readline()]
        assert self.lines == [b"READY\n"], (self.lines, self.process.communicate(timeout=30))
        self.processes = box.processes(self.name)

    def pid_of(self, program):
        found = [pid for name, pids in self.processes.items() if program in name for pid in pids]
        assert found, f"no {program} among {self.processes}"
        return found[0]

    def end(self):
        """(seconds until the client ended, exit code)"""
        start = time.monotonic()
        self.process.communicate(timeout=60)
        return time.monotonic() - start, self.process.returncode


@pytest.mark.smoke
@pytest.mark.parametrize("program", ["VM", "harpoon-fs"])
def test_process_of_the_vm_killed(box, events, program):
    victim, bystander = Victim(box), Victim(box, "echo READY; read -r x; exit $x")
    os.kill(victim.pid_of(box.vmm if program == "VM" else program), signal.SIGKILL)
    seconds, code = victim.end()
    assert code == 137, code
    assert seconds < DEATH_S, f"the task ended only {seconds:.1f} s after its VM"
    words = [topic for topic, _ in events.wait(victim.name, "delete")]
    assert words == ["create", "start", "exit", "delete"]
    assert not [pid for pids in victim.processes.values() for pid in pids if os.path.exists(f"/proc/{pid}")]
    # The other container has not noticed
    out, _ = bystander.process.communicate(b"17\n", 30)
    assert bystander.process.returncode == 17


def test_calls_after_the_vm_died(box):
    name = box.detached("sleep", "1000")
    pid = box.daemon.tasks()[name][0]
    os.kill(pid, signal.SIGKILL)
    box.wait_status(name, "STOPPED", DEATH_S)
    for args in (["kill", name], ["exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", name, "true"],
                 ["pause", name], ["metrics", name]):
        done = box.ctr("task", *args, timeout=20)
        assert done.code not in (0, -9), done
    box.forget_fifos()
    assert box.delete(name) == 137


def test_vm_killed_under_an_exec(box):
    name = box.detached("sleep", "1000")
    process = box.daemon.popen(
        "task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", name, "sh", "-c", "echo READY; cat"
    )
    assert process.stdout.readline() == b"READY\n"
    os.kill(box.daemon.tasks()[name][0], signal.SIGKILL)
    process.communicate(timeout=DEATH_S + 5)
    assert process.returncode == 137
    box.wait_status(name, "STOPPED")
    assert box.delete(name) == 137


def test_vm_killed_under_a_write(box, host_folder):
    """The file server goes in the middle of a long write: the task ends, no process hangs."""
    options = ["--mount", f"type=bind,src={host_folder},dst=/host,options=rbind:rw"]
    name = box.name()
    process = box.background(
        "sh", "-c", "echo READY; dd if=/dev/zero of=/host/big bs=1M count=2000", name=name, options=options
    )
    assert process.stdout.readline() == b"READY\n"
    big = host_folder / "big"
    assert wait_until(lambda: big.exists() and big.stat().st_size > 4 << 20, 30)
    os.kill(box.processes(name)["harpoon-fs"][0], signal.SIGKILL)
    start = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 137 and time.monotonic() - start < DEATH_S
    assert os.listdir(host_folder) == ["big"]


@pytest.mark.versions
@pytest.mark.smoke
def test_shim_killed(box, events):
    """containerd runs `delete`, which ends the VM and says 137."""
    victim = Victim(box)
    os.kill(box.shim_pid(victim.name), signal.SIGKILL)
    seconds, code = victim.end()
    assert code != 0
    assert seconds < 10, seconds
    found = events.wait(victim.name, "delete")
    exits = [event for topic, event in found if topic == "exit"]
    assert [event["exit_status"] for event in exits] == [137], found
    pids = [pid for pids in victim.processes.values() for pid in pids]
    assert pids and wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 5), victim.processes
    box.forget_fifos()
    box.daemon.remove(victim.name)


@pytest.mark.versions
def test_shim_killed_while_containerd_is_down(box):
    name = box.detached("sleep", "1000")
    processes = box.processes(name)
    box.daemon.stop(signal.SIGKILL)
    os.kill(box.shim_pid(name), signal.SIGKILL)
    box.daemon.start()
    assert box.status(name) == "GONE"
    pids = [pid for pids in processes.values() for pid in pids]
    assert pids and wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 5)
    assert box.ctr("container", "rm", name).code == 0


def test_shim_gets_signals(box):
    """SIGTERM and others are no reason to leave a container alone."""
    victim = Victim(box, "echo READY; read -r x; exit $x")
    pid = box.shim_pid(victim.name)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE) * 20:
        os.kill(pid, number)
    out, _ = victim.process.communicate(b"5\n", 30)
    assert victim.process.returncode == 5


def test_stopped_vm_can_be_killed(box):
    """A VM that does not run at all (SIGSTOP) still answers State at once and dies by SIGKILL."""
    name = box.detached("sleep", "1000")
    os.kill(box.daemon.tasks()[name][0], signal.SIGSTOP)
    start = time.monotonic()
    assert box.status(name) == "RUNNING"
    assert time.monotonic() - start < 1.5
    done = box.kill(name)
    assert done.code == 0, done
    box.wait_status(name, "STOPPED", 15)
    assert box.delete(name) == 137


def test_guest_panic(box):
    """The guest's kernel dies: an exit like any other, 137, and the log says what happened."""
    start = box.log_size()
    # Out of memory, and told to panic then
    script = "echo 2 > /proc/sys/vm/panic_on_oom && echo READY && read -r x && tail /dev/zero"
    options = ["--privileged", "--annotation", "io.harpoon.memory=128"]
    process = box.background("sh", "-c", script, options=options)
    assert process.stdout.readline() == b"READY\n"
    process.communicate(b"\n", 60)
    assert process.returncode == 137
    assert wait_until(lambda: "panic" in box.log_since(start).lower(), 5), "the log does not say why"


# --- what is missing or wrong


def conf(box, section="vm", **changes):
    """The session's harpoon.conf with some keys changed."""
    lines, current, left = [], "", dict(changes)
    for line in box.daemon.conf.read_text().splitlines():
        key = line.partition("=")[0].strip()
        current = line.strip("[]") if line.startswith("[") else current
        if current == section and key in left:
            line = f"{key} = {left.pop(key)}"
        lines.append(line)
        if line == f"[{section}]":
            lines += [f"{key} = {left.pop(key)}" for key in list(left) if key not in box.daemon.conf.read_text()]
    box.daemon.write_conf("\n".join(lines) + "\n")


def fails_with(box, *words, options=(), status=1):
    start = time.monotonic()
    done = box.run("true", options=options, timeout=60)
    assert done.code == status, done
    for word in words:
        assert word in done.err, f"{word!r} is not in: {done!r}"
    assert time.monotonic() - start < 20, done
    assert not box.daemon.tasks()


@pytest.mark.smoke
@pytest.mark.parametrize("section,key", [("vm", "kernel"), ("vm", "initrd"), ("programs", "VM"),
                                         ("programs", "fs_server")])
def test_file_missing(box, section, key):
    conf(box, section, **{box.vmm if key == "VM" else key: "/no/such/file"})
    wanted = "is not installed" if key == "VM" and box.vmm == "vmm" else "No such file or directory"
    fails_with(box, "/no/such/file", wanted)


@pytest.mark.parametrize("kind", ["empty", "text", "folder", "cut"])
def test_kernel_broken(box, host_folder, kind):
    path = host_folder / "vmlinux"
    if kind == "folder":
        path.mkdir()
    else:
        size = 100_000 if kind == "cut" else 0
        path.write_bytes(b"not a kernel\n" * 100 if kind == "text" else paths.KERNEL.read_bytes()[:size])
    conf(box, kernel=path)
    fails_with(box, str(path))


def test_initrd_broken(box, host_folder):
    """A guest that never becomes ready: the text says so, and it does not take for ever."""
    path = host_folder / "initrd"
    path.write_bytes(b"\0" * 4096)
    conf(box, initrd=path)
    fails_with(box)


def test_vmm_is_another_program(box):
    conf(box, "programs", **{box.vmm: "/bin/true"})
    fails_with(box, "/bin/true", *(["QEMU"] if box.vmm == "qemu" else []))


def test_file_server_is_another_program(box):
    conf(box, "programs", fs_server="/bin/true")
    fails_with(box, "file server")


@pytest.mark.parametrize("text,words", [
    ("[vm]\nkernle = /x\n", ["harpoon.conf:2", "kernle"]),
    ("[vm]\nkernel = relative\n", ["harpoon.conf:2", "kernel"]),
    ("[vm]\nmemory = 7\n", ["harpoon.conf:2", "memory"]),
    ("[nosuch]\nx = 1\n", ["harpoon.conf", "nosuch"]),
    ("nonsense\n", ["harpoon.conf:1"]),
])
def test_configuration_broken(box, text, words):
    box.daemon.write_conf(text)
    fails_with(box, *words)


def test_configuration_missing(box):
    box.daemon.conf.unlink()
    fails_with(box, "harpoon.conf", "No such file or directory")


def test_broken_configuration_does_not_keep_containers(box):
    """What runs can be seen, killed and deleted when the file has been broken meanwhile."""
    name = box.detached("sleep", "1000")
    box.daemon.write_conf("nonsense\n")
    box.kill_and_delete(name)


def run_with_spec(box, host_folder, change):
    """ctr run --config of a spec that `change` has had its way with."""
    name = box.name()
    spec = json.loads(box.ctr("oci", "spec").out)
    spec["process"]["args"] = ["true"]
    # What is there otherwise is the folder of all
    spec["linux"]["cgroupsPath"] = f"/{box.daemon.namespace}/{name}"
    rootfs = host_folder / "rootfs"
    rootfs.mkdir(exist_ok=True)
    spec["root"]["path"] = str(rootfs)
    change(spec)
    path = host_folder / "config.json"
    path.write_text(json.dumps(spec))
    args = box.daemon.run_args(name, "", runtime=RUNTIME, options=["--config", path])[:-1]
    return box.ctr(*args)


@pytest.mark.parametrize("what", ["args", "root", "root_missing", "mount", "rlimit"])
def test_unusable_bundle(box, host_folder, what):
    def change(spec):
        if what == "args":
            spec["process"]["args"] = []
        elif what == "root":
            del spec["root"]
        elif what == "root_missing":
            spec["root"]["path"] = "/no/such/root"
        elif what == "mount":
            spec["mounts"].append({"destination": "relative", "type": "nosuchfs", "source": "x"})
        elif what == "rlimit":
            spec["process"]["rlimits"] = [{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}]

    words = {"args": "args", "root": "root", "root_missing": "/no/such/root", "mount": "nosuchfs",
             "rlimit": "RLIMIT_NOSUCH"}
    done = run_with_spec(box, host_folder, change)
    assert done.code == 1 and words[what] in done.err, done


def test_start_killed_half_way(box):
    """SIGKILL to the shim's `start` leaves nothing that would stop the next one."""
    name = box.name()
    stop = threading.Event()
    killed = []

    def hunt():
        """Kills the first process that carries this container's `start` arguments."""
        while not stop.is_set() and not killed:
            for entry in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{entry}/cmdline", "rb") as f:
                        words = f.read().split(b"\0")
                    if name.encode() in words and b"start" in words and b"containerd-shim" in words[0]:
                        os.kill(int(entry), signal.SIGKILL)
                        killed.append(entry)
                except OSError:
                    continue

    thread = threading.Thread(target=hunt)
    thread.start()
    first = box.run("true", name=name)
    stop.set()
    thread.join()
    assert killed, "start was over before it could be killed"
    box.daemon.remove(name)
    again = box.run("echo", "fine", name=name)
    assert (again.code, again.out) == (0, "fine\n"), (first, again)


def test_disk_full(box, host_folder):
    """A full file system under a bind mount is the container's problem alone."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", host_folder], check=True)
    try:
        options = ["--mount", f"type=bind,src={host_folder},dst=/host,options=rbind:rw"]
        done = box.sh("dd if=/dev/zero of=/host/f bs=64k count=100; echo still here", options=options)
    finally:
        subprocess.run(["umount", host_folder], check=True)
    assert "No space left" in done.err and done.out == "still here\n", done


def test_delete_command_by_hand(box):
    """`delete` for a container that does not exist, twice: success, and a DeleteResponse on stdout."""
    program = paths.HOST_BUILD if "HARPOON_TEST_BUILD" not in os.environ else os.environ["HARPOON_TEST_BUILD"]
    bundle = box.daemon.folder / "no-bundle"
    bundle.mkdir()
    try:
        args = [f"{program}/src/shim/containerd-shim-harpoon-v1", "-namespace", "default", "-address",
                str(box.daemon.socket), "-publish-binary", "/bin/true", "-id", "nosuch", "-bundle", str(bundle)]
        for _ in range(2):
            done = subprocess.run([*args, "delete"], cwd=bundle, env=box.daemon.env(), capture_output=True,
                                  timeout=10, check=False)
            assert done.returncode == 0, done
            # field 2, exit_status: 137
            assert b"\x10\x89\x01" in done.stdout, done
    finally:
        bundle.rmdir()
