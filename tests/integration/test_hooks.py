"""Hooks: which run, where, with which state on their standard input, and what their failure means."""

import json
import os
import time

import pytest
from conformance import base_spec, build_probe, make_root
from conftest import IS_HARPOON, RUNTIME

RECORD = """#!/bin/sh
cat > "{folder}/$1.state"
{{ echo "$@"; echo "$MARK"; readlink /proc/self/ns/mnt; }} > "{folder}/$1.args"
date +%s%N > "{folder}/$1.time"
exit "${{2:-0}}"
"""


class Hooks:
    def __init__(self, box, folder):
        self.box, self.folder = box, folder
        self.program = folder / "hook"
        self.program.write_text(RECORD.format(folder=folder))
        self.program.chmod(0o755)
        self.root = make_root(folder / "root", build_probe(folder))
        (self.root / "bin/hook").write_text('#!/bin/sh\nread -r state; echo "$state" > /tmp/state; echo "$@" $$ > /tmp/hook\n')
        (self.root / "bin/hook").chmod(0o755)

    def hook(self, name, *args, **more):
        return {"path": str(self.program), "args": ["hook", name, *args], "env": ["MARK=here", "PATH=/bin:/usr/bin"], **more}

    def run(self, hooks, *argv):
        spec = base_spec()
        spec["root"]["path"] = str(self.root)
        spec["process"]["args"] = list(argv) or ["/bin/probe", "file:/tmp/state", "file:/tmp/hook"]
        spec["hooks"] = hooks
        spec["annotations"] = {"org.example.note": 'a "quoted" \u00fc'}
        path = self.folder / "config.json"
        path.write_text(json.dumps(spec))
        name = self.box.name("hook")
        args = ["run", "--rm", "--runtime", RUNTIME, "--fifo-dir", self.box.daemon.fifos, "--config", path, name]
        return name, self.box.ctr(*args, timeout=90)

    def state(self, name):
        return json.loads((self.folder / f"{name}.state").read_text())

    def time(self, name):
        return int((self.folder / f"{name}.time").read_text())

    def ran(self, name):
        return (self.folder / f"{name}.args").exists()


@pytest.fixture
def hooks(box, host_folder):
    return Hooks(box, host_folder)


def test_on_the_host_in_order_with_their_state(box, hooks):
    kinds = {"prestart": "creat", "createRuntime": "creat", "poststart": "running", "poststop": "stopped"}
    name, done = hooks.run({kind: [hooks.hook(kind)] for kind in kinds})
    assert done.code == 0, done
    for kind, status in kinds.items():
        state = hooks.state(kind)
        # runc says "creating" or "created"
        assert state["status"].startswith(status), (kind, state)
        assert state["id"] == name and state["ociVersion"][:2] == "1."
        assert state["bundle"].endswith(f"/{name}") and os.path.isabs(state["bundle"])
        assert state["annotations"]["org.example.note"] == 'a "quoted" \u00fc'
        assert (state.get("pid", 0) > 0) == (kind != "poststop"), (kind, state)
        args = (hooks.folder / f"{kind}.args").read_text().splitlines()
        assert args == [kind, "here", os.readlink("/proc/self/ns/mnt")]
    assert hooks.time("prestart") <= hooks.time("createRuntime") < hooks.time("poststart") < hooks.time("poststop")


def test_several_of_one_kind_in_order(box, hooks):
    _, done = hooks.run({"createRuntime": [hooks.hook("one"), hooks.hook("two")]})
    assert done.code == 0, done
    assert hooks.time("one") < hooks.time("two")


@pytest.mark.parametrize("kind", ["prestart", "createRuntime"])
def test_failure_before_the_start_fails_create(box, hooks, kind):
    """The container never runs, hooks after it do not run, poststop does."""
    name, done = hooks.run({kind: [hooks.hook("bad", "7"), hooks.hook("after")], "poststop": [hooks.hook("poststop")]})
    box.daemon.remove(name)
    assert done.code != 0 and "hook" in done.err, done
    assert hooks.ran("bad") and not hooks.ran("after")
    if IS_HARPOON:
        assert hooks.ran("poststop") and "status 7" in done.err


def test_failure_after_the_end_is_no_failure(box, hooks):
    """The specification: a warning, and the rest goes on. (What runc 1.1 does with poststart is another thing.)"""
    _, done = hooks.run({"poststop": [hooks.hook("bad", "7"), hooks.hook("after")]})
    assert done.code == 0, done
    assert hooks.ran("bad") and hooks.ran("after")


def test_time_limit(box, hooks):
    begin = time.monotonic()
    slow = {"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}
    name, done = hooks.run({"createRuntime": [slow]})
    box.daemon.remove(name)
    assert done.code != 0 and time.monotonic() - begin < 30, done


def test_start_container_runs_in_the_container(box, hooks):
    """Its path is one of the image, its state is that of a created container, whose first process it precedes."""
    _, done = hooks.run({"startContainer": [{"path": "/bin/hook", "args": ["hook", "a", "b"], "env": ["PATH=/bin"]}]})
    assert done.code == 0, done
    facts = dict(line.split("\t", 1) for line in done.out.splitlines())
    state = json.loads(facts["file:/tmp/state"])
    assert state["status"] == "created" and state["pid"] == 1 and state["bundle"].startswith("/")
    assert state["annotations"]["org.example.note"] == 'a "quoted" \u00fc'
    words = facts["file:/tmp/hook"].split()
    assert words[:2] == ["a", "b"] and int(words[2]) > 1


def test_start_container_failure_fails_start(box, hooks):
    name, done = hooks.run({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo reason >&2; exit 4"]}]})
    box.daemon.remove(name)
    assert done.code != 0, done
    if IS_HARPOON:
        assert "startContainer hook '/bin/sh': ended with status 4: reason" in done.err


@pytest.mark.harpoon
def test_create_container_is_refused(box, hooks):
    name, done = hooks.run({"createContainer": [hooks.hook("x")]})
    box.daemon.remove(name)
    assert done.code != 0 and "hooks.createContainer" in done.err and "createRuntime" in done.err, done
    assert not hooks.ran("x")
