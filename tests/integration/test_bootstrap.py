"""The shim's own commands: start in every form that a containerd knows, -info, delete."""

import json
import os
import shutil
import signal
import subprocess

import pytest
from conftest import BUILD, IS_HARPOON
from harpoonlib import ttrpc
from harpoonlib.containerd import wait_until

pytestmark = [pytest.mark.harpoon, pytest.mark.skipif(not IS_HARPOON, reason="about harpoon's own commands")]

SHIM = BUILD / "src/shim/containerd-shim-harpoon-v1"

PARAMS = {
    "instance_id": (1, "s"), "namespace": (2, "s"), "log_level": (3, "u"), "containerd_version": (4, "s"),
    "ttrpc": (5, "s"), "grpc": (6, "s"), "binary": (7, "s"), "extensions": (8, [{"value": (1, ttrpc.ANY)}]),
}
RESULT = {
    "version": (1, "u"), "address": (2, "s"), "protocol": (3, "s"), "capabilities": (4, ["u"]),
    "metadata": (5, [{"key": (1, "s"), "value": (2, "s")}]),
}
INFO = {"name": (1, "s"), "version": (2, {"version": (1, "s")}), "options": (3, ttrpc.ANY), "features": (4, ttrpc.ANY)}


def set_bootstrap(box, form):
    box.daemon.write_conf(f"{box.daemon.conf.read_text()}\n[containerd]\nbootstrap = {form}\n")


# How the address is told, and the least containerd that understands it
FORMS = {"auto": (1, 6), "plain": (1, 6), "json2": (1, 7), "json3": (2, 0)}


@pytest.mark.versions
def test_forms_of_the_address(box):
    """A container's whole life, and a restart of containerd in it, with each form this containerd understands."""
    flavour = box.daemon.flavour
    for form, least in FORMS.items():
        if (flavour.major, flavour.minor) < least:
            continue
        box.daemon.write_conf()
        set_bootstrap(box, form)
        name = box.detached("sleep", "1000")
        if flavour.major >= 2:
            note = json.loads((box.bundle(name) / "bootstrap.json").read_text())
            assert (note["version"], note["protocol"]) == (3 if form == "json3" else 2, "ttrpc"), note
        pid = box.daemon.tasks()[name][0]
        box.daemon.restart()
        assert box.daemon.tasks()[name] == (pid, "RUNNING")
        assert box.exec(name, "sh", "-c", "exit 4").code == 4
        box.kill_and_delete(name)


class Bundle:
    """A bundle of our own, and the shim's `start` run in it as a containerd would."""

    def __init__(self, box, folder):
        self.box, self.id, self.folder = box, box.name("own"), folder
        (folder / "rootfs").mkdir()
        spec = json.loads(box.ctr("oci", "spec").out)
        (folder / "config.json").write_text(json.dumps(spec))
        # containerd reads the shim's log from it
        os.mkfifo(folder / "log", 0o700)
        self.log = os.open(folder / "log", os.O_RDONLY | os.O_NONBLOCK)

    def spawn(self, command, *flags):
        args = [SHIM, "-namespace", self.box.daemon.namespace, "-address", str(self.box.daemon.socket),
                "-publish-binary", "/bin/true", "-id", self.id, *flags, command]
        env = self.box.daemon.env() | {"TTRPC_ADDRESS": f"{self.box.daemon.socket}.ttrpc"}
        pipe = subprocess.PIPE
        return subprocess.Popen(args, cwd=self.folder, env=env, stdin=pipe, stdout=pipe, stderr=pipe)

    def shim(self, command, *flags, stdin=b""):
        with self.spawn(command, *flags) as process:
            out, err = process.communicate(stdin, timeout=20)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def end(self, path):
        with ttrpc.Client(path, self.box.daemon.namespace) as client:
            client.call("Shutdown", id=self.id)
        assert wait_until(lambda: not os.path.exists(path), 5)
        done = self.shim("delete", "-bundle", str(self.folder))
        assert done.returncode == 0, done
        os.close(self.log)


def params(box, bundle, **more):
    return ttrpc.encode(PARAMS, {
        "instance_id": bundle.id, "namespace": box.daemon.namespace, "containerd_version": "2.3.4",
        "ttrpc": f"{box.daemon.socket}.ttrpc", "grpc": str(box.daemon.socket), "binary": "/bin/true", **more,
    })


def test_protobuf_bootstrap(box, host_folder):
    """What containerd 2.3 sends and reads: BootstrapParams in, BootstrapResult out; the address in it serves v3."""
    bundle = Bundle(box, host_folder)
    done = bundle.shim("start", stdin=params(box, bundle, extensions=[{"value": {"type_url": "x.Options"}}]))
    assert (done.returncode, done.stderr) == (0, b""), done
    result = ttrpc.decode(RESULT, done.stdout)
    assert (result["version"], result["protocol"]) == (3, "ttrpc"), result
    path = result["address"].removeprefix("unix://")
    assert (host_folder / "address").read_text() == result["address"]
    with ttrpc.Client(path, box.daemon.namespace, ttrpc.SERVICE.replace("v2", "v3")) as client:
        assert client.call("Connect", id=bundle.id)["task_pid"] == 0
        assert client.error("State", id=bundle.id) == (ttrpc.NOT_FOUND, "container not created: not found")
    # A second start of the same id finds the first one
    again = bundle.shim("start", stdin=params(box, bundle))
    assert (again.returncode, again.stdout) == (0, done.stdout), again
    bundle.end(path)


@pytest.mark.parametrize("stdin", [b"", ttrpc.encode(ttrpc.ANY, {"type_url": "containerd.runc.v1.Options",
                                                                 "value": b"\x08\x01"})], ids=["nothing", "options"])
def test_plain_bootstrap(box, host_folder, stdin):
    """What older ones send: nothing, or options of whatever type."""
    bundle = Bundle(box, host_folder)
    done = bundle.shim("start", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b""), done
    path = done.stdout.decode().removeprefix("unix://")
    assert path.startswith("/") and os.path.exists(path), done
    bundle.end(path)


def test_start_with_garbage(box, host_folder):
    bundle = Bundle(box, host_folder)
    done = bundle.shim("start", stdin=b"\xff" * 100)
    assert done.returncode != 0 and b"standard input" in done.stderr, done
    assert not (host_folder / "address").exists()
    os.close(bundle.log)


def test_start_after_a_shim_that_was_killed(box, host_folder):
    """F16: its socket lies about, nobody answers: the next start takes its place."""
    bundle = Bundle(box, host_folder)
    path = bundle.shim("start").stdout.decode().removeprefix("unix://")
    with ttrpc.Client(path, box.daemon.namespace) as client:
        pid = client.call("Connect", id=bundle.id)["shim_pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"), 5)
    assert os.path.exists(path)
    again = bundle.shim("start")
    assert again.returncode == 0 and again.stdout.decode() == f"unix://{path}", again
    bundle.end(path)


def test_start_of_a_shim_that_is_killed_at_once(box, host_folder):
    """F10: killed before it serves, `start` says so and leaves no socket; containerd calls no `delete` then."""
    bundle = Bundle(box, host_folder)
    said = 0
    for _ in range(20):
        with bundle.spawn("start") as process:
            process.stdin.close()
            children = f"/proc/{process.pid}/task/{process.pid}/children"
            pid = ""
            while not pid and process.poll() is None:
                with open(children, encoding="ascii") as f:
                    pid = f.read()
            if pid:
                os.kill(int(pid), signal.SIGKILL)
            code, out, err = process.wait(20), process.stdout.read(), process.stderr.read()
        if code:
            said += 1
            assert b"killed before it served" in err and not out, (out, err)
            path = (host_folder / "address").read_text().removeprefix("unix://")
            assert not os.path.exists(path)
    assert said
    bundle.end(bundle.shim("start").stdout.decode().removeprefix("unix://"))


@pytest.mark.parametrize("task", [b"", b"\x00\xff garbage", b"pid 1\n" * 3, b"9" * 5000],
                         ids=["empty", "garbage", "half", "long"])
def test_delete_of_half_a_state(box, host_folder, task):
    """F11: `delete` on a state folder that was cut off anywhere: success, twice, and nothing is left."""
    bundle = Bundle(box, host_folder)
    state = host_folder / "harpoon"
    for _ in range(2):
        state.mkdir(mode=0o700, exist_ok=True)
        for name in ("task", "shim", "processes"):
            (state / name).write_bytes(task)
        done = bundle.shim("delete", "-bundle", str(host_folder))
        assert done.returncode == 0, done
        answer = ttrpc.decode(ttrpc.METHODS["Delete"][1], done.stdout)
        assert answer["exit_status"] == 137 and answer["exited_at"]["seconds"] > 1_700_000_000, answer
        assert not state.exists()
    os.close(bundle.log)
    shutil.rmtree(host_folder / "rootfs")


def test_delete_at_once_many_times(box, host_folder):
    """F11: several `delete` of a running container at the same time: all succeed, the container is gone."""
    name = box.detached("sleep", "1000")
    processes = [pid for pids in box.processes(name).values() for pid in pids]
    args = [SHIM, "-namespace", box.daemon.namespace, "-address", str(box.daemon.socket), "-publish-binary",
            "/bin/true", "-id", name, "-bundle", str(box.bundle(name)), "delete"]
    running = [subprocess.Popen(args, cwd=box.bundle(name), env=box.daemon.env(), stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE) for _ in range(4)]
    for process in running:
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, (out, err)
    assert wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), 5), processes
    # containerd notices the shim's end and cleans up, too
    assert wait_until(lambda: name not in box.daemon.tasks(), 10)
    assert box.ctr("container", "rm", name).code == 0


def test_info(box):
    """-info: name, version, and the features document (recursive read-only mounts, no id-mapped ones)."""
    for stdin in (b"", ttrpc.encode(ttrpc.ANY, {"type_url": "containerd.runc.v1.Options"})):
        done = subprocess.run([SHIM, "-info"], input=stdin, capture_output=True, timeout=10, check=False)
        assert (done.returncode, done.stderr) == (0, b""), done
        info = ttrpc.decode(INFO, done.stdout)
        assert info["name"] == "io.containerd.harpoon.v1" and info["version"]["version"], info
        features = json.loads(info["features"]["value"])
        assert "rro" in features["mountOptions"] and "user" in features["linux"]["namespaces"]
        assert features["linux"]["mountExtensions"]["idmap"]["enabled"] is False
    done = subprocess.run([SHIM, "-v"], capture_output=True, timeout=10, check=False)
    assert done.returncode == 0 and b"Version" in done.stdout, done


@pytest.mark.versions
def test_containerd_reads_the_info(box):
    """containerd 2 asks the shim when somebody asks containerd."""
    if box.daemon.flavour.major < 2:
        pytest.skip("containerd 1 never asks a shim for -info")
    done = box.ctr("plugins", "inspect-runtime", "--runtime", "io.containerd.harpoon.v1")
    assert done.code == 0 and "io.containerd.harpoon.v1" in done.out and "rro" in done.out, done
