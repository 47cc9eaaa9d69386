"""The Task API itself, call by call: what harpoon answers beside what runc's shim answers to the same, in one test.

The calls go to the shims' own sockets (containerd passes on less than a shim says). Texts and codes must be the
same; where they are not, a table in the test says so and why.
"""

import json
import os
import re
import signal

import pytest
from conftest import IS_HARPOON, RUNC, RUNTIME
from harpoonlib import ttrpc
from harpoonlib.containerd import wait_until

pytestmark = pytest.mark.skipif(not IS_HARPOON, reason="compares runc with itself")


class Walk:
    """One container and every answer its shim gave, by the name of the step."""

    def __init__(self, box, runtime, *argv, options=()):
        self.box, self.name = box, box.name()
        self.is_runc = runtime == RUNC
        done = box.ctr(*box.args(*argv, name=self.name, options=["-d", "--null-io", *options], runtime=runtime))
        assert done.code == 0, done
        self.client = box.client(self.name)
        self.answers = {}

    def plain(self, text):
        return text.replace(self.name, "ID").strip()

    def step(self, step, method, **fields):
        """Makes a call; what is remembered is its code and text."""
        code, text = self.client.error(method, id=self.name, **fields)
        self.answers[step] = (code, self.plain(text))
        return code

    def shut_down(self, step):
        """runc's shim ends beside its answer to this call, and may be first."""
        try:
            self.step(step, "Shutdown")
        except ConnectionError:
            assert self.is_runc
            self.answers[step] = (0, "")

    def exec(self, exec_id, *argv, **spec):
        return self.step(f"exec {exec_id}", "Exec", exec_id=exec_id, spec=ttrpc.process_any(argv, **spec))

    def status(self, step, **fields):
        self.answers[step] = ttrpc.STATUS[self.client.call("State", id=self.name, **fields)["status"]]

    def close(self):
        self.client.close()
        self.box.daemon.remove(self.name)


def walk_created_and_failed_execs(w):
    w.exec("e1", "true")
    w.exec("e1", "true")
    w.status("state of a created exec", exec_id="e1")
    w.step("kill of a created exec", "Kill", exec_id="e1", signal=9)
    w.step("resize of a created exec", "ResizePty", exec_id="e1", width=3, height=4)
    w.step("close stdin of a created exec", "CloseIO", exec_id="e1", stdin=1)
    wait = w.client.send("Wait", id=w.name, exec_id="e1")
    w.step("start", "Start", exec_id="e1")
    w.answers["its end"] = w.client.receive(wait)["exit_status"]
    w.status("state of an ended exec", exec_id="e1")
    w.step("start again", "Start", exec_id="e1")
    w.step("kill of an ended exec", "Kill", exec_id="e1", signal=9)
    w.step("resize of an ended exec", "ResizePty", exec_id="e1", width=3, height=4)
    w.step("close stdin of an ended exec", "CloseIO", exec_id="e1", stdin=1)
    w.answers["wait of an ended exec"] = w.client.call("Wait", id=w.name, exec_id="e1")["exit_status"]
    w.step("delete of an ended exec", "Delete", exec_id="e1")
    w.step("delete again", "Delete", exec_id="e1")
    w.step("wait of a deleted exec", "Wait", exec_id="e1")
    for name, argv, spec in (
        ("missing", ["/no/such"], {}), ("not in PATH", ["nosuchprogram"], {}), ("a folder", ["/etc"], {}),
        ("no such cwd", ["true"], {"cwd": "/etc/passwd"}),
    ):
        exec_id = name.replace(" ", "-")
        w.exec(exec_id, *argv, **spec)
        wait = w.client.send("Wait", id=w.name, exec_id=exec_id)
        w.step(f"start of {name}", "Start", exec_id=exec_id)
        w.answers[f"wait after start of {name}"] = w.client.receive(wait, 10)
        w.status(f"state after start of {name}", exec_id=exec_id)
        w.step(f"kill after start of {name}", "Kill", exec_id=exec_id, signal=9)
        w.answers[f"delete after start of {name}"] = w.client.call("Delete", id=w.name, exec_id=exec_id)


def walk_running(w):
    w.step("state of no exec", "State", exec_id="no")
    w.answers["state of no task"] = w.client.error("State", id="no")
    w.step("start", "Start")
    w.step("start of no exec", "Start", exec_id="no")
    w.step("resume", "Resume")
    w.step("delete", "Delete")
    w.step("delete of no exec", "Delete", exec_id="no")
    w.step("kill of no exec", "Kill", exec_id="no", signal=9)
    w.step("kill with signal 0", "Kill", signal=0)
    w.step("kill with no signal there is", "Kill", signal=99)
    w.step("resize without a terminal", "ResizePty", width=3, height=4)
    w.step("close stdin", "CloseIO", stdin=1)
    w.answers["close stdin of no task"] = w.client.error("CloseIO", id="no", stdin=1)
    w.answers["checkpoint of no task"] = w.client.error("Checkpoint", id="no")
    w.answers["connect of no task"] = w.client.call("Connect", id="no")["task_pid"]
    w.step("update to nothing", "Update", resources=ttrpc.resources_any({}))
    w.step("stats", "Stats")
    w.step("shutdown while there is a task", "Shutdown")
    w.status("state")


def walk_paused(w):
    w.exec("e1", "sleep", "1000")
    w.step("start e1", "Start", exec_id="e1")
    w.exec("e2", "sleep", "1000")
    w.step("pause", "Pause")
    w.step("pause again", "Pause")
    w.step("start", "Start")
    w.step("delete", "Delete")
    w.exec("e3", "true")
    w.status("state")
    w.status("state of a running exec", exec_id="e1")
    w.status("state of a created exec", exec_id="e2")
    w.step("update", "Update", resources=ttrpc.resources_any({"pids": {"limit": 100}}))
    w.step("stats", "Stats")
    w.step("resize", "ResizePty", width=3, height=4)
    w.step("kill of a running exec", "Kill", exec_id="e1", signal=9)
    w.status("state is still", )
    w.step("resume", "Resume")
    w.answers["end of the killed exec"] = w.client.call("Wait", id=w.name, exec_id="e1")["exit_status"]
    w.status("state after resume")
    w.step("pause once more", "Pause")
    wait = w.client.send("Wait", id=w.name)
    w.step("kill while paused", "Kill", signal=9)
    w.answers["end"] = w.client.receive(wait, 20)["exit_status"]
    w.status("state at the end")


def walk_stopped(w):
    w.exec("e1", "true")
    w.step("kill", "Kill", signal=9)
    w.answers["end"] = w.client.call("Wait", id=w.name)["exit_status"]
    w.status("state")
    for method in ("Start", "Pause", "Resume", "ResizePty", "CloseIO", "Checkpoint"):
        w.step(method, method)
    w.step("update", "Update", resources=ttrpc.resources_any({}))
    w.step("kill again", "Kill", signal=9)
    w.step("kill again, all", "Kill", signal=9, all=1)
    w.exec("e2", "true")
    w.step("start of an exec added before", "Start", exec_id="e1")
    w.step("kill of an exec added before", "Kill", exec_id="e1", signal=9)
    w.step("delete of an exec added before", "Delete", exec_id="e1")
    deleted = w.client.call("Delete", id=w.name)
    w.answers["delete"] = deleted["exit_status"]
    assert deleted["exited_at"]["seconds"] > 1_700_000_000
    for method in ("State", "Start", "Delete", "Pids", "Pause", "Resume", "Checkpoint", "Kill", "Exec", "ResizePty",
                   "CloseIO", "Update", "Wait", "Stats", "Connect"):
        w.step(f"{method} after delete", method)
    w.shut_down("Shutdown after delete")


# step -> why it is not as runc's shim has it
DIFFERENT = {
    "kill with no signal there is": "refused before anything is asked of the container",
    "start of an exec added before": "containerd 1.6's shim lets runc find out; later ones say what harpoon says",
    "start of a folder": "newer versions of runc say what harpoon says",
    "start of no such cwd": "the kernel's error is the same, the sentence around it is not",
}
# Prefix of every error that runc itself, not its shim, gives; harpoon has no runc between.
RUNC_PREFIX = re.compile(
    r"^(OCI runtime exec failed: exec failed: |unable to start container process: |failed to create shim task: )+"
)


def without_prefix(answer):
    return (answer[0], RUNC_PREFIX.sub("", answer[1])) if isinstance(answer, tuple) else answer


@pytest.mark.smoke
@pytest.mark.versions
@pytest.mark.parametrize("walk", [walk_created_and_failed_execs, walk_running, walk_paused, walk_stopped])
def test_answers_are_those_of_runcs_shim(box, walk):
    """F40 and the state table: every method in every state, with the codes and words of runc's shim."""
    answers = []
    for runtime in (RUNC, RUNTIME):
        w = Walk(box, runtime, "sleep", "1000")
        try:
            walk(w)
        finally:
            w.close()
        answers.append(w.answers)
    theirs, ours = answers
    assert list(theirs) == list(ours)
    wrong = {
        step: (theirs[step], ours[step]) for step in theirs
        if without_prefix(theirs[step]) != without_prefix(ours[step]) and step not in DIFFERENT
    }
    assert not wrong, "\n".join(f"{step}:\n  runc    {a}\n  harpoon {b}" for step, (a, b) in wrong.items())
    for step in DIFFERENT:
        # Different words, but an error is an error
        if step in theirs:
            assert bool(theirs[step][0]) == bool(ours[step][0]), (step, theirs[step], ours[step])


def test_both_versions_of_the_service(box):
    """One shim answers to Task v2 and Task v3, and to unknown names as ttrpc has it."""
    name = box.detached("sleep", "1000")
    path = ttrpc.address_of(box.bundle(name))
    for service in ("containerd.task.v2.Task", "containerd.task.v3.Task"):
        with ttrpc.Client(path, box.daemon.namespace, service) as client:
            assert client.call("State", id=name)["pid"] == box.daemon.tasks()[name][0]
    with ttrpc.Client(path, box.daemon.namespace, "containerd.task.v9.Task") as client:
        assert client.error("State", id=name) == (ttrpc.UNIMPLEMENTED, "service containerd.task.v9.Task")
    box.kill_and_delete(name)


def test_state_tells_what_create_got(box):
    """Clients that lost everything (containerd restarted) find a task's streams by State alone."""
    name = box.name()
    process = box.background("cat", name=name)
    box.wait_status(name, "RUNNING")
    with box.client(name) as client:
        state = client.call("State", id=name)
        for kind in ("stdin", "stdout", "stderr"):
            assert state[kind].endswith(f"/{name}-{kind}"), state
        assert state["bundle"] == str(box.bundle(name)) and state["terminal"] == 0
        connect = client.call("Connect", id=name)
        assert (connect["shim_pid"], connect["task_pid"]) == (box.shim_pid(name), state["pid"])
    out, err = process.communicate(b"", 30)
    assert process.returncode == 0, (out, err)


# --- pids

GUEST_PIDS = 10_000_000


def pids_of(client, name):
    """pid -> exec id, '' for none"""
    found = {}
    for process in client.call("Pids", id=name)["processes"]:
        info = process["info"]
        if info:
            assert info["type_url"] == "containerd.runc.v1.ProcessDetails"
        found[process["pid"]] = ttrpc.decode({"exec_id": (1, "s")}, info["value"])["exec_id"] if info else ""
    return found


@pytest.mark.versions
def test_pids(box):
    """The VM's process, then one number for each other process of the container: none a host process can have."""
    name = box.detached("sh", "-c", "sleep 1000 & echo; wait")
    pid = box.daemon.tasks()[name][0]
    with box.client(name) as client:
        assert wait_until(lambda: len(pids_of(client, name)) == 2, 20), "the shell has not started its child"
        client.call("Exec", id=name, exec_id="e1", spec=ttrpc.process_any(["sleep", "1000"]))
        started = client.call("Start", id=name, exec_id="e1")["pid"]
        found = pids_of(client, name)
        assert len(found) == 3 and found[pid] == "" and found[started] == "e1", found
        assert started > GUEST_PIDS
        assert client.call("State", id=name, exec_id="e1")["pid"] == started
        client.call("Pause", id=name)
        assert pids_of(client, name) == {pid: "", started: "e1"}
        client.call("Resume", id=name)
        assert pids_of(client, name) == found
        done = box.ctr("task", "ps", name)
        assert done.code == 0 and re.search(rf"^{started}\b.*\bexec_id:.*e1|{started} .*e1", done.out, re.M), done
        client.call("Kill", id=name, signal=9)
        client.call("Wait", id=name)
        assert pids_of(client, name) == {pid: ""}
    assert box.delete(name) == 137


def test_pids_of_a_guest_that_does_not_answer(box):
    """F04: never an error, never empty, and within containerd's patience."""
    name = box.detached("sleep", "1000")
    pid = box.daemon.tasks()[name][0]
    os.kill(pid, signal.SIGSTOP)
    with box.client(name) as client:
        assert pids_of(client, name) == {pid: ""}
        os.kill(pid, signal.SIGCONT)
        assert pids_of(client, name) == {pid: ""}
    box.kill_and_delete(name)


# --- stats and update


def test_paused_container_has_statistics(box):
    name = box.detached("sleep", "1000")
    assert box.ctr("task", "pause", name).code == 0
    first = box.ctr("task", "metrics", "--format", "json", name)
    second = box.ctr("task", "metrics", "--format", "json", name)
    assert first.code == 0 and json.loads(first.out) == json.loads(second.out), (first, second)
    assert json.loads(first.out)["memory"]["usage"] > 0
    assert box.ctr("task", "resume", name).code == 0
    box.kill_and_delete(name)


@pytest.mark.parametrize("is_paused", [False, True])
def test_update(box, is_paused):
    """A limit set while it runs, or while it is paused: it holds when the container runs."""
    name = box.detached("sleep", "1000")
    with box.client(name) as client:
        if is_paused:
            client.call("Pause", id=name)
        client.call("Update", id=name, resources=ttrpc.resources_any({"pids": {"limit": 3}}))
        if is_paused:
            client.call("Resume", id=name)
        metrics = box.ctr("task", "metrics", "--format", "json", name)
        assert json.loads(metrics.out)["pids"]["limit"] == 3, metrics
    done = box.exec(name, "sh", "-c", "sleep 9 & sleep 9 & sleep 9 & echo all")
    assert "can't fork" in done.err and "all" not in done.out, done
    box.kill_and_delete(name)
