"""Detached containers: signals, task commands, exec, events, many at once, containerd restarts."""

import concurrent.futures
import os
import signal
import time

import pytest
from conftest import RUNTIME
from harpoonlib.containerd import wait_until


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_detached_from_start_to_end(box):
    name = box.detached("sleep", "1000")
    pid, status = box.daemon.tasks()[name]
    assert status == "RUNNING" and os.path.exists(f"/proc/{pid}")
    refused = box.ctr("task", "delete", name)
    assert refused.code != 0 and "stopped" in refused.err, refused
    assert box.status(name) == "RUNNING"
    box.kill_and_delete(name)
    assert name not in box.daemon.tasks()


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_sigterm_to_a_process_that_handles_it(box):
    name = box.name()
    process = box.background(
        "sh", "-c", "trap 'echo got it; exit 7' TERM; echo READY; while :; do sleep 0.05; done", name=name
    )
    assert process.stdout.readline() == b"READY\n"
    assert box.kill(name, "TERM").code == 0
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (7, b"got it\n"), err


def test_sigterm_to_pid_one_without_handler_is_ignored(box):
    """The kernel's rule for the first process of a pid namespace."""
    name = box.detached("sleep", "1000")
    assert box.kill(name, "TERM").code == 0
    # Nothing happens, so there is nothing to wait for: a second one, to a later process, shows that it came by
    args = ["task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", name]
    assert box.ctr(*args, "sh", "-c", "kill -TERM 1; exit 3").code == 3
    assert box.status(name) == "RUNNING"
    box.kill_and_delete(name)


@pytest.mark.parametrize("word,number", [("USR1", 10), ("HUP", 1), ("INT", 2), ("WINCH", 28)])
def test_signals_arrive_as_they_are(box, word, number):
    name = box.name()
    process = box.background(
        "sh", "-c", f"trap 'exit {number}' {word}; echo READY; while :; do sleep 0.05; done", name=name
    )
    assert process.stdout.readline() == b"READY\n"
    assert box.kill(name, word).code == 0
    process.communicate(timeout=30)
    assert process.returncode == number


def test_kill_of_a_stopped_task(box):
    name = box.detached("true")
    box.wait_status(name, "STOPPED")
    done = box.kill(name)
    assert done.code != 0 and "process already finished" in done.err, done
    assert box.delete(name) == 0


def test_calls_about_an_unknown_task(box):
    for args in (["kill", "nosuch"], ["delete", "nosuch"], ["ps", "nosuch"], ["pause", "nosuch"]):
        done = box.ctr("task", *args)
        assert done.code != 0 and "not found" in done.err, done


@pytest.mark.versions
def test_container_and_task_made_apart(box):
    """ctr container create, then ctr task start."""
    name = box.name()
    args = ["--runtime", RUNTIME, box.image("busybox"), name, "sleep", "1000"]
    done = box.ctr("container", "create", *args)
    assert done.code == 0, done
    process = box.daemon.popen("task", "start", "--null-io", "--fifo-dir", box.daemon.fifos, name)
    box.wait_status(name, "RUNNING", 60)
    box.kill(name)
    process.communicate(timeout=30)
    # `ctr task start` deletes the task itself when it ended
    assert wait_until(lambda: name not in box.daemon.tasks(), 10)
    assert box.ctr("container", "rm", name).code == 0


@pytest.mark.versions
def test_same_container_started_again(box):
    """A second task of the same container sees what the first one wrote."""
    name = box.name()
    first = box.run("sh", "-c", "cat /count 2>/dev/null; echo one >> /count", name=name, rm=False)
    assert (first.code, first.out) == (0, ""), first
    for expect in ("one\n", "one\none\n"):
        again = box.ctr("task", "start", "--fifo-dir", box.daemon.fifos, name)
        assert (again.code, again.out) == (0, expect), again
    assert box.ctr("container", "rm", name).code == 0


def test_ps(box):
    name = box.detached("sh", "-c", "sleep 1000 & wait")
    pid = box.daemon.tasks()[name][0]
    done = box.ctr("task", "ps", name)
    assert done.code == 0, done
    pids = [int(line.split()[0]) for line in done.out.splitlines()[1:]]
    assert pid in pids, done
    box.kill_and_delete(name)


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_exec(box):
    name = box.detached("sleep", "1000", options=["--env", "FROM=run"])
    args = ["task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id"]
    done = box.ctr(*args, "e1", name, "sh", "-c", "echo $FROM; echo err >&2; exit 9")
    assert (done.code, done.out, done.err) == (9, "run\n", "err\n"), done
    data = b"input\n" * 100_000
    done = box.daemon.ctr_stdin(*args, "e2", name, "sh", "-c", "echo READY; cat", data=data)
    assert done.code == 0 and done.out_bytes == data, repr(done)[-500:]
    done = box.ctr(*args, "e3", name, "/no/such/program")
    assert done.code != 0 and "/no/such/program" in done.err, done
    done = box.ctr(*args, "e4", "--cwd", "/etc", name, "pwd")
    assert (done.code, done.out) == (0, "/etc\n"), done
    box.kill_and_delete(name)


@pytest.mark.versions
def test_execs_at_once(box):
    name = box.detached("sleep", "1000")

    def one(i):
        args = ["task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", f"x{i}", name]
        return box.ctr(*args, "sh", "-c", f"echo out-{i}; exit {i}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(16)))
    for i, done in enumerate(results):
        assert (done.code, done.out) == (i, f"out-{i}\n"), done
    box.kill_and_delete(name)


def test_exec_ends_with_the_container(box):
    name = box.detached("sleep", "1000")
    process = box.daemon.popen(
        "task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", name, "sh", "-c", "echo READY; sleep 1000"
    )
    assert process.stdout.readline() == b"READY\n"
    box.kill(name)
    process.communicate(timeout=20)
    assert process.returncode == 137
    box.wait_status(name, "STOPPED")
    done = box.ctr("task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "late", name, "true")
    assert done.code != 0, done
    assert box.delete(name) == 137


def test_exec_killed_alone(box):
    name = box.detached("sleep", "1000")
    process = box.daemon.popen(
        "task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", name, "sh", "-c",
        "trap 'exit 6' TERM; echo READY; while :; do sleep 0.05; done",
    )
    assert process.stdout.readline() == b"READY\n"
    done = box.ctr("task", "kill", "--exec-id", "e", name)
    assert done.code == 0, done
    process.communicate(timeout=20)
    assert process.returncode == 6
    assert box.status(name) == "RUNNING"
    box.kill_and_delete(name)


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_pause_and_resume(box):
    name = box.name()
    process = box.background("sh", "-c", "while :; do echo tick; sleep 0.05; done", name=name)
    assert process.stdout.readline() == b"tick\n"
    done = box.ctr("task", "pause", name)
    assert done.code == 0, done
    assert box.status(name) == "PAUSED"
    done = box.ctr("task", "resume", name)
    assert done.code == 0, done
    assert box.status(name) == "RUNNING"
    for _ in range(20):
        assert process.stdout.readline() == b"tick\n"
    box.kill(name)
    process.communicate(timeout=20)
    assert process.returncode == 137


@pytest.mark.versions
def test_metrics(box):
    name = box.detached("sleep", "1000")
    done = box.ctr("task", "metrics", name)
    assert done.code == 0 and "memory" in done.out, done
    box.kill_and_delete(name)


@pytest.mark.smoke
def test_events_in_order_and_once(box, events):
    name = box.name()
    done = box.run("sh", "-c", "exit 3", name=name)
    assert done.code == 3, done
    found = events.wait(name, "delete")
    assert [topic for topic, _ in found] == ["create", "start", "exit", "delete"], found
    pids = {event.get("pid") for _, event in found}
    assert len(pids) == 1 and pids.pop() > 0, found
    by_topic = dict(found)
    assert by_topic["exit"]["exit_status"] == by_topic["delete"]["exit_status"] == 3, found
    assert by_topic["exit"]["id"] == name, found


def test_events_of_exec(box, events):
    name = box.detached("sleep", "1000")
    done = box.ctr("task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "ex", name, "sh", "-c", "exit 4")
    assert done.code == 4, done
    box.kill_and_delete(name)
    found = events.wait(name, "delete")
    words = [topic for topic, _ in found]
    assert words == ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"], found
    exits = [event for topic, event in found if topic == "exit"]
    assert (exits[0]["id"], exits[0]["exit_status"]) == ("ex", 4), found
    assert (exits[1]["id"], exits[1]["exit_status"]) == (name, 137), found


def test_events_of_fast_exits(box, events):
    """start is always before exit, also for processes that end at once."""
    names = []
    for _ in range(5):
        names.append(box.name())
        assert box.run("true", name=names[-1]).code == 0
    for name in names:
        words = [topic for topic, _ in events.wait(name, "delete")]
        assert words == ["create", "start", "exit", "delete"]


@pytest.mark.slow
def test_ten_at_once(box):
    """Ten containers run at the same time: each is its own, and each ends with its own code."""
    names = [box.name() for _ in range(10)]
    script = "echo READY $HOSTNAME; read -r x; echo \"$x\"; exit $x"
    running = {name: box.background("sh", "-c", script, name=name) for name in names}
    for process in running.values():
        assert process.stdout.readline().startswith(b"READY")
    tasks = box.daemon.tasks()
    assert sorted(tasks) == sorted(names)
    assert len({pid for pid, _ in tasks.values()}) == 10
    for i, (name, process) in enumerate(running.items()):
        out, err = process.communicate(f"{i + 20}\n".encode(), 60)
        assert (process.returncode, out) == (i + 20, f"{i + 20}\n".encode()), (name, err)


class Output:
    """Reads a container's stdout FIFO in the place of a client that has gone."""

    def __init__(self, box, name):
        (path,) = box.daemon.fifos.glob(f"*/{name}-stdout")
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._data = b""
        self.ended = False

    def words(self):
        """Every whole word so far."""
        while not self.ended:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            self.ended = not data
            self._data += data
        return self._data.decode().split("\n")[:-1]

    def close(self):
        os.close(self._fd)


@pytest.mark.versions
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.smoke
def test_containerd_restarted(box, how):
    """The container does not notice: it goes on, and output written meanwhile and afterwards arrives."""
    script = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.05; done; echo end; exit 12"
    name = box.name()
    done = box.run("sh", "-c", script, name=name, options=["-d"])
    assert done.code == 0, done
    output = Output(box, name)
    pid = box.daemon.tasks()[name][0]
    assert wait_until(lambda: len(output.words()) > 5, 20)
    box.daemon.stop(how)
    before = len(output.words())
    assert wait_until(lambda: len(output.words()) > before + 10, 20), "no output without containerd"
    box.daemon.start()
    assert box.daemon.tasks()[name] == (pid, "RUNNING")
    done = box.ctr("task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", name, "touch", "/stop")
    assert done.code == 0, done
    box.wait_status(name, "STOPPED")
    assert box.delete(name) == 12
    assert wait_until(lambda: output.words() and output.ended, 10), "no end of the output"
    words = output.words()
    output.close()
    box.forget_fifos()
    # ctr, before it went, may have taken the first ones
    assert words == [*map(str, range(int(words[0]), int(words[0]) + len(words) - 1)), "end"]


@pytest.mark.versions
def test_exit_while_containerd_is_down(box):
    """The exit code is kept until somebody asks."""
    name = box.detached("sh", "-c", "trap 'exit 21' TERM; while :; do sleep 0.05; done")
    shim = box.shim_pid(name)
    args = ["task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "e", "-d", name]
    assert box.ctr(*args, "sh", "-c", "sleep 3; kill -TERM 1").code == 0
    box.daemon.stop()
    # the container's end, seen without containerd: the VM goes (or, for runc, the only child of the shim)
    assert wait_until(lambda: not children(shim), 60), "the container did not end"
    box.daemon.start()
    assert box.status(name) == "STOPPED"
    assert box.delete(name) == 21
    box.forget_fifos()


def children(pid):
    """The live children of a process."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as f:
                fields = f.read().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry))
    return found


@pytest.mark.harpoon
def test_client_killed_in_the_middle(box):
    """
    ctr run dies while the container is coming up (containerd then kills the shim's `start`): what it began is
    finished or gone, never stuck. runc's shim leaves its socket behind here.
    """
    for delay in (0.1, 0.3, 0.6, 1.0):
        name = box.name()
        process = box.background("sleep", "1000", name=name)
        # The moment of the kill is the test's input, not something waited for
        time.sleep(delay)
        process.kill()
        process.communicate()
        # A create that was under way may still come to its end after the first removal
        assert wait_until(lambda n=name: box.daemon.remove(n), 60, 0.2), box.daemon.tasks()
    box.forget_fifos()


def test_no_growth_in_containerd(box):
    """Twenty containers later containerd holds no more descriptors than after one."""

    def descriptors():
        return len(os.listdir(f"/proc/{box.daemon.process.pid}/fd"))

    assert box.run("true").code == 0
    before = descriptors()
    for _ in range(6):
        assert box.run("true").code == 0
    assert wait_until(lambda: descriptors() <= before + 2, 10), (before, descriptors())


@pytest.mark.harpoon
def test_daemon_descriptors_are_closed(box):
    """The shim holds nothing of the `ctr` or containerd that started it open."""
    name = box.detached("sleep", "1000")
    pid = box.shim_pid(name)
    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [target for target in targets if "containerd.log" in target or "meta.db" in target], targets
    box.kill_and_delete(name)
