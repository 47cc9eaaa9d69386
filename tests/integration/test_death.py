"""Death in every form: whatever of a container dies, however, its task has one exit, in time, and can be deleted.

F numbers name rows of the fault list in docs/testing.md.
"""

import os
import signal
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib import ttrpc
from harpoonlib.containerd import SLOWNESS, shim_pids, wait_until

pytestmark = [pytest.mark.harpoon, pytest.mark.skipif(not IS_HARPOON, reason="about harpoon's VMs")]

# A dead VM is an exited task within this time.
DEATH_S = 2 * SLOWNESS


class Task:
    """A running container with a client that waits for it at its shim."""

    def __init__(self, box, *argv, options=()):
        self.box = box
        self.name = box.detached(*(argv or ("sleep", "1000")), options=options)
        self.pid = box.daemon.tasks()[self.name][0]
        self.processes = [pid for pids in box.processes(self.name).values() for pid in pids]
        self.client = box.client(self.name)
        self.wait = self.client.send("Wait", id=self.name)

    def program(self, word):
        return next(pids[0] for name, pids in self.box.processes(self.name).items() if word in name)

    def exit(self, limit=DEATH_S):
        """The exit status, which must be known within the limit."""
        start = time.monotonic()
        answer = self.client.receive(self.wait, limit + 10)
        took = time.monotonic() - start
        assert took < limit, f"the exit was told after {took:.1f} s"
        assert answer["exited_at"]["seconds"] > 1_700_000_000
        return answer["exit_status"]

    def check_dead(self, events, status=137):
        """What holds of every dead container, then its removal."""
        name = self.name
        shim = self.box.shim_pid(name)
        left = [pid for pid in self.processes if pid != shim and os.path.exists(f"/proc/{pid}")]
        assert not left, f"processes of the VM are still there: {left}"
        state = self.client.call("State", id=name)
        assert (ttrpc.STATUS[state["status"]], state["exit_status"], state["pid"]) == ("STOPPED", status, self.pid)
        gone = (ttrpc.NOT_FOUND, "process already finished: not found")
        assert self.client.error("Kill", id=name, signal=9) == gone
        assert self.client.error("Stats", id=name)[0] == ttrpc.NOT_FOUND
        assert self.client.call("Wait", id=name)["exit_status"] == status
        self.client.close()
        assert self.box.delete(name) == status
        done = self.box.kill(name)
        assert done.code != 0 and "not found" in done.err, done
        words = [topic for topic, _ in events.wait(name, "delete")]
        assert words.count("exit") == 1 and words[-2:] == ["exit", "delete"], words


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.nested_kvm), signal.SIGBUS])
def test_vm_dies_of_a_signal(box, events, number):
    """F01, F05: the VM's process is killed, and dies of a fault. (It is the first of its pid namespace: what it does not
    handle itself reaches it only as SIGKILL.)"""
    if number != signal.SIGKILL and box.vmm == "vmm":
        pytest.skip("harpoon-vmm handles no SIGBUS, so from outside its pid namespace none reaches it")
    task = Task(box)
    start = box.log_size()
    os.kill(task.pid, number)
    assert task.exit() == 137
    assert wait_until(lambda: "ended" in box.log_since(start), 5)
    task.check_dead(events)


def test_file_server_dies(box, events):
    """F06"""
    task = Task(box)
    start = box.log_size()
    os.kill(task.program("harpoon-fs"), signal.SIGKILL)
    assert task.exit() == 137
    assert wait_until(lambda: "file server" in box.log_since(start), 5), "the log does not say why"
    task.check_dead(events)


def test_file_server_stops(box, events):
    """F08: the guest's file accesses hang, nothing else: State answers, Kill kills."""
    task = Task(box, "sh", "-c", "while :; do ls /bin >/dev/null; done")
    os.kill(task.program("harpoon-fs"), signal.SIGSTOP)
    start = time.monotonic()
    assert ttrpc.STATUS[task.client.call("State", id=task.name)["status"]] == "RUNNING"
    assert time.monotonic() - start < 1
    task.client.call("Stats", id=task.name)
    task.client.call("Kill", id=task.name, signal=9)
    assert task.exit(5) == 137
    task.check_dead(events)


def test_guest_that_does_not_answer(box, events):
    """F22: no call hangs for ever, State and Pids answer at once, SIGKILL ends the VM."""
    task = Task(box)
    os.kill(task.pid, signal.SIGSTOP)
    assert task.client.error("Stats", id=task.name, timeout=10)[0] == ttrpc.DEADLINE_EXCEEDED
    start = time.monotonic()
    assert ttrpc.STATUS[task.client.call("State", id=task.name)["status"]] == "RUNNING"
    assert task.client.call("Pids", id=task.name)["processes"]
    assert time.monotonic() - start < DEATH_S
    start = time.monotonic()
    task.client.call("Kill", id=task.name, signal=9)
    assert task.exit(DEATH_S + 0.5 - (time.monotonic() - start)) == 137
    task.check_dead(events)


@pytest.mark.parametrize("call,status", [("reboot", 129), ("poweroff", 130)])
def test_container_that_reboots(box, call, status):
    """reboot(2) ends the container it is called in, as the kernel has it for a pid namespace, and nothing else."""
    done = box.run(call, "-f", options=["--privileged"])
    assert done.code == status, done


def test_stopped_vm_goes_on(box):
    """F04: the VM's process stopped for a while: State answers, other calls end in time, all is well afterwards."""
    name = box.detached("sleep", "1000")
    pid = box.daemon.tasks()[name][0]
    with box.client(name) as client:
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        client.call("State", id=name)
        assert time.monotonic() - start < 0.5
        assert client.error("Stats", id=name)[0] == ttrpc.DEADLINE_EXCEEDED
        assert time.monotonic() - start < 4
        client.call("Exec", id=name, exec_id="e", spec=ttrpc.process_any(["sh", "-c", "exit 7"]))
        started = client.send("Start", id=name, exec_id="e")
        waited = client.send("Wait", id=name, exec_id="e")
        os.kill(pid, signal.SIGCONT)
        client.receive(started)
        assert client.receive(waited)["exit_status"] == 7
        client.call("Delete", id=name, exec_id="e")
        client.call("Stats", id=name)
    box.kill_and_delete(name)


def test_vm_dies_before_it_is_ready(box, events):
    """F02: Create fails with a sentence, in time; there was no container."""
    name = box.name()
    process = box.background("true", name=name)
    notes = box.bundle(name) / "harpoon/processes"

    def vmm():
        try:
            lines = [line.split() for line in notes.read_text().splitlines()]
        except OSError:
            return 0
        for line in lines:
            try:
                if box.vmm in os.readlink(f"/proc/{line[1]}/exe"):
                    return int(line[1])
            except OSError:
                pass
        return 0

    assert wait_until(lambda: vmm() or process.poll() is not None, 20, 0.002)
    os.kill(vmm(), signal.SIGKILL)
    start = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0 and time.monotonic() - start < DEATH_S + 1, err
    assert b"VM" in err or b"QEMU" in err, err
    assert events.of(name) == []


@pytest.mark.parametrize("method", ["Delete", "Pause", "Stats", "Pids", "Exec", "Kill", "Update"])
def test_vm_dies_during_a_call(box, events, method):
    """F03: the call in whose middle it happens ends, with whatever answer, soon."""
    task = Task(box)
    fields = {
        "Exec": {"exec_id": "e", "spec": ttrpc.process_any(["true"])}, "Kill": {"signal": 15},
        "Update": {"resources": ttrpc.resources_any({"pids": {"limit": 9}})},
    }.get(method, {})
    # A stopped VM keeps the call waiting until it is killed
    os.kill(task.pid, signal.SIGSTOP)
    call = task.client.send(method, id=task.name, **fields)
    start = None
    if method == "Exec":
        task.client.receive(call)
        call = task.client.send("Start", id=task.name, exec_id="e")
    if method == "Delete":
        assert task.client.error("State", id=task.name)[0] == 0
    os.kill(task.pid, signal.SIGKILL)
    begin = time.monotonic()
    try:
        task.client.receive(call, 10)
    except ttrpc.Error as error:
        assert error.code in (ttrpc.UNKNOWN, ttrpc.NOT_FOUND, ttrpc.UNAVAILABLE), error
    assert time.monotonic() - begin < DEATH_S, start
    assert task.exit() == 137
    task.check_dead(events)


def test_vm_dies_under_input(box, events):
    """F03: while data goes to the process: the client is not blocked, the exit comes."""
    name = box.name()
    process = box.background("sh", "-c", "echo READY; sleep 1000", name=name)
    assert process.stdout.readline() == b"READY\n"
    os.set_blocking(process.stdin.fileno(), False)
    written = 0
    for _ in range(64):
        try:
            written += os.write(process.stdin.fileno(), b"x" * 65536)
        except BlockingIOError:
            break
    assert written
    os.kill(box.daemon.tasks()[name][0], signal.SIGKILL)
    process.stdin.close()
    process.stdin = None
    process.communicate(timeout=20)
    assert process.returncode == 137
    assert [topic for topic, _ in events.wait(name, "delete")][-2:] == ["exit", "delete"]


@pytest.mark.versions
def test_many_shims_die_at_once(box):
    """F09: containerd runs `delete` for each: every VM is gone, every exit told, nothing is left."""
    names = [box.detached("sleep", "1000") for _ in range(6)]
    processes = {pid for name in names for pids in box.processes(name).values() for pid in pids}
    assert len(processes) == 18, processes
    for pid in [box.shim_pid(name) for name in names]:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), 5), processes
    assert wait_until(lambda: not set(names) & set(box.daemon.tasks()), 10), box.daemon.tasks()
    for name in names:
        assert box.ctr("container", "rm", name).code == 0


def kill_shim_of(box, name, delay, is_there):
    """Starts a container and kills its shim `delay` seconds after it `is_there(pid)`."""
    process = box.background("sleep", "1000", name=name, options=["-d", "--null-io"])
    found = []

    def shim():
        for pid in shim_pids(name):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().split(b"\0")
            except OSError:
                continue
            # A process that has just ended has no words at all: the one that `start` was.
            if name.encode() in words and b"start" not in words and is_there(pid):
                found.append(pid)
        return found

    assert wait_until(shim, 20, 0.005)
    # The moment is the test's input, not something waited for
    time.sleep(delay)
    try:
        os.kill(found[0], signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate(timeout=30)
    assert wait_until(lambda: name not in box.daemon.tasks(), 10), (delay, box.daemon.tasks())
    box.daemon.remove(name)


def is_connected(pid):
    """containerd's connection is the first stream socket of a shim that is not its own listening one."""
    try:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    with open("/proc/net/unix", encoding="ascii") as f:
        # Num RefCount Protocol Flags Type St Inode Path
        rows = [line.split() for line in f]
    return any(row[5] == "03" and "/s/" in row[-1] and f"socket:[{row[6]}]" in links for row in rows)


def test_shim_killed_while_it_creates(box):
    """F10: at moments spread over the whole creation; `delete` cleans up what there was."""
    for delay in range(0, 1100, 100):
        kill_shim_of(box, box.name(), delay / 1000, is_connected)


def test_shim_killed_before_containerd_connects(box):
    """F10: containerd calls no `delete` for a shim that it never reached: the next one of the name takes its place."""
    for _ in range(5):
        name = box.name()
        kill_shim_of(box, name, 0, lambda pid: True)
        assert box.run("true", name=name).code == 0


def test_storm_of_signals(box):
    """F17: thousands of SIGTERM and the like to the shim leave it as it is; SIGTERM to the VM ends it once."""
    name = box.detached("sleep", "1000")
    shim = box.shim_pid(name)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 700:
        os.kill(shim, number)
    assert box.exec(name, "sh", "-c", "exit 3").code == 3
    vm = box.daemon.tasks()[name][0]
    for _ in range(100):
        try:
            os.kill(vm, signal.SIGTERM)
        except ProcessLookupError:
            break
    box.wait_status(name, "STOPPED", DEATH_S + 2)
    assert box.delete(name) == 137


@pytest.mark.slow
@pytest.mark.parametrize("bomb", [
    "f() { f | f & f; }; f", "while :; do sleep 1000 & done", "i=0; while :; do mkdir /tmp/$i; i=$((i+1)); done",
], ids=["fork", "process", "folder"])
def test_bombs_stay_inside(box, bomb):
    """F27: forks, processes, files without end: the VM is busy, the host's side answers, and it can be ended."""
    name = box.detached("sh", "-c", f"{bomb}; sleep 1000", options=["--annotation", "io.harpoon.memory=256"])
    bystander = box.detached("sleep", "1000")
    assert box.exec(bystander, "echo", "fine").out == "fine\n"
    start = time.monotonic()
    status = box.status(name)
    assert time.monotonic() - start < 3
    if status == "RUNNING":
        assert box.kill(name).code == 0
    box.wait_status(name, "STOPPED", 20)
    assert box.delete(name) == 137
    box.kill_and_delete(bystander)


def test_memory_of_the_guest_used_up(box):
    """F24: a container without a limit takes all there is: it is killed, its VM and agent live or die in order."""
    done = box.sh("tail /dev/zero", options=["--annotation", "io.harpoon.memory=128"])
    assert done.code == 137, done
