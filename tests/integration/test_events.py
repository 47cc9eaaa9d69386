"""Events: those of runc's shim, in its order, each exactly once, also through restarts of containerd."""

import os
import signal

import pytest
from conftest import IS_HARPOON, RUNC, RUNTIME
from harpoonlib import ttrpc
from harpoonlib.containerd import wait_until

# Fields whose values a comparison cannot want to be the same
OWN_FIELDS = {"pid", "exited_at", "bundle", "rootfs", "io"}


def plain(found, name):
    """Events with what differs between any two containers taken out."""
    out = []
    for topic, event in found:
        fields = {key: value for key, value in event.items() if key not in OWN_FIELDS}
        out.append((topic, {key: "ID" if value == name else value for key, value in fields.items()}))
    return out


def live(box, runtime):
    """A life with everything in it: the container's name."""
    name = box.name()
    done = box.ctr(*box.args("sleep", "1000", name=name, options=["-d", "--null-io"], runtime=runtime))
    assert done.code == 0, done
    assert box.exec(name, "sh", "-c", "exit 4", exec_id="ended").code == 4
    assert box.exec(name, "/no/such", exec_id="never").code != 0
    with box.client(name) as client:
        client.call("Exec", id=name, exec_id="killed", spec=ttrpc.process_any(["sleep", "1000"]))
        client.call("Exec", id=name, exec_id="last", spec=ttrpc.process_any(["sleep", "1000"]))
        client.call("Exec", id=name, exec_id="added", spec=ttrpc.process_any(["sleep", "1000"]))
        client.call("Start", id=name, exec_id="killed")
        client.call("Kill", id=name, exec_id="killed", signal=15)
        client.call("Wait", id=name, exec_id="killed")
        client.call("Delete", id=name, exec_id="killed")
        client.call("Delete", id=name, exec_id="added")
        client.call("Start", id=name, exec_id="last")
    assert box.ctr("task", "pause", name).code == 0
    assert box.ctr("task", "pause", name).code != 0
    assert box.ctr("task", "resume", name).code == 0
    box.kill_and_delete(name)
    return name


@pytest.mark.versions
@pytest.mark.skipif(not IS_HARPOON, reason="compares runc with itself")
def test_events_are_those_of_runcs_shim(box, events):
    names = [live(box, runtime) for runtime in (RUNC, RUNTIME)]
    ours = plain(events.wait(names[1], "delete"), names[1])
    theirs = plain(events.of(names[0]), names[0])
    # runc's shim may be gone before its last event is; and 1.6's does not promise the order of the last exits
    if theirs[-1][0] != "delete":
        theirs.append(ours[-1])
    if box.daemon.flavour.major < 2:
        theirs[-3:-1] = sorted(theirs[-3:-1], key=lambda item: item[1]["id"] == "ID")
    assert ours == theirs


@pytest.mark.versions
def test_pids_of_events_agree(box, events):
    """One process has one pid: in its start, its exit, in State and in Pids."""
    name = box.detached("sleep", "1000")
    with box.client(name) as client:
        client.call("Exec", id=name, exec_id="e", spec=ttrpc.process_any(["sleep", "1000"]))
        pid = client.call("Start", id=name, exec_id="e")["pid"]
        assert client.call("State", id=name, exec_id="e")["pid"] == pid
        client.call("Kill", id=name, exec_id="e", signal=9)
        client.call("Wait", id=name, exec_id="e")
        assert client.call("Delete", id=name, exec_id="e")["pid"] == pid
    task = box.daemon.tasks()[name][0]
    box.kill_and_delete(name)
    found = events.wait(name, "delete")
    assert [event["pid"] for topic, event in found if event.get("exec_id") == "e" and "pid" in event] == [pid]
    assert [event["pid"] for topic, event in found if event.get("id") == "e"] == [pid]
    assert {event["pid"] for topic, event in found if topic in ("create", "start", "delete")} == {task}


@pytest.mark.versions
@pytest.mark.harpoon
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_life_goes_on_without_containerd(box, how):
    """F13, F15: calls to the shim work while nobody takes its events; how things ended is kept until asked for."""
    name = box.detached("sh", "-c", "trap 'exit 21' TERM; while :; do sleep 0.05; done")
    with box.client(name) as client:
        box.daemon.stop(how)
        client.call("Exec", id=name, exec_id="e", spec=ttrpc.process_any(["sh", "-c", "exit 5"]))
        wait = client.send("Wait", id=name, exec_id="e")
        client.call("Start", id=name, exec_id="e")
        assert client.receive(wait)["exit_status"] == 5
        client.call("Pause", id=name)
        client.call("Resume", id=name)
        client.call("Kill", id=name, signal=15)
        assert client.call("Wait", id=name)["exit_status"] == 21
    box.daemon.start()
    assert box.status(name) == "STOPPED"
    assert box.delete(name) == 21


@pytest.mark.versions
@pytest.mark.harpoon
def test_events_are_kept_until_somebody_listens(box, events):
    """
    containerd is stopped (SIGSTOP) and later continued, as on a busy machine: nothing is lost or told twice.
    """
    name = box.detached("sleep", "1000")
    with box.client(name) as client:
        os.kill(box.daemon.process.pid, signal.SIGSTOP)
        try:
            for i in range(20):
                client.call("Exec", id=name, exec_id=f"e{i}", spec=ttrpc.process_any(["true"]))
                wait = client.send("Wait", id=name, exec_id=f"e{i}")
                client.call("Start", id=name, exec_id=f"e{i}")
                client.receive(wait)
                client.call("Delete", id=name, exec_id=f"e{i}")
        finally:
            os.kill(box.daemon.process.pid, signal.SIGCONT)
    box.kill_and_delete(name)
    words = [topic for topic, _ in events.wait(name, "delete")]
    assert words == ["create", "start", *["exec-added", "exec-started", "exit"] * 20, "exit", "delete"]


@pytest.mark.harpoon
def test_restart_loop(box):
    """F14: many restarts under running containers: none is lost, the shims' descriptors stay as many."""
    names = [box.detached("sleep", "1000") for _ in range(3)]
    shims = [box.shim_pid(name) for name in names]

    def descriptors():
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in shims]

    box.daemon.restart()
    before = descriptors()
    tasks = box.daemon.tasks()
    for i in range(15):
        box.daemon.restart(signal.SIGKILL if i % 2 else signal.SIGTERM)
        assert box.daemon.tasks() == tasks
    # At first one may be on its way out still: a connection to the containerd before.
    assert wait_until(lambda: all(now <= then for now, then in zip(descriptors(), before)), 5), (before, descriptors())
    for name in names:
        box.kill_and_delete(name)


# --- memory



@pytest.mark.versions
def test_oom_kill_of_the_container(box, events):
    """F23: TaskOOM before the exit, 137."""
    name = box.name()
    done = box.sh("exec tail /dev/zero", name=name, options=["--memory-limit", str(64 << 20)])
    assert done.code == 137, done
    words = [topic for topic, _ in events.wait(name, "delete")]
    assert words == ["create", "start", "oom", "exit", "delete"], words


def test_oom_kill_of_a_child(box, events):
    """F23: the container lives on and is told about, its agent answers, the next exec works."""
    name = box.detached("sleep", "1000", options=["--memory-limit", str(64 << 20)])
    assert box.exec(name, "tail", "/dev/zero", exec_id="eater").code == 137
    events.wait(name, "oom")
    done = box.exec(name, "echo", "still here", exec_id="next")
    assert (done.code, done.out) == (0, "still here\n"), done
    assert box.status(name) == "RUNNING"
    box.kill_and_delete(name)


def test_start_comes_before_exit(box, events):
    """F39: processes that end before Start has returned, one after the other, as fast as it goes."""
    name = box.detached("sleep", "1000")
    with box.client(name) as client:
        for i in range(30):
            client.call("Exec", id=name, exec_id=f"e{i}", spec=ttrpc.process_any(["true"]))
            client.call("Start", id=name, exec_id=f"e{i}")
            client.call("Wait", id=name, exec_id=f"e{i}")
            client.call("Delete", id=name, exec_id=f"e{i}")
    box.kill_and_delete(name)
    found = events.wait(name, "delete")
    for i in range(30):
        own = [topic for topic, event in found if f"e{i}" in (event.get("exec_id"), event.get("id"))]
        assert own == ["exec-added", "exec-started", "exit"], (i, own)
