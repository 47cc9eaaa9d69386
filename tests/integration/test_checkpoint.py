"""Checkpoints: a container saved as it runs, through the plain Task API, and created again from what was saved."""

import json
import os
import pathlib
import shutil
import socket
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib import netlab, ttrpc
from harpoonlib.containerd import wait_until
from test_bootstrap import Bundle
from test_dax import mappings
from test_limits import mem_total, update_memory
from test_volumes import bind

pytestmark = pytest.mark.skipif(not IS_HARPOON, reason="runc needs CRIU for this")

# containerd.runc.v1.CheckpointOptions{exit: true}
EXIT = {"type_url": "containerd.runc.v1.CheckpointOptions", "value": b"\x08\x01"}

# Counts in memory alone, and writes every number to a file that stays open.
COUNTER = "exec 3>/data/log; n=0; while :; do n=$((n+1)); echo $n >&3; sleep 0.1; done"


FIFOS = pathlib.Path("/run/containerd/fifo")


@pytest.fixture(scope="session")
def redis_image(session_box):
    """Imported before anything is compared; skips when it cannot be made (no network and nothing in the cache)."""
    try:
        return session_box.image("redis")
    except (RuntimeError, OSError) as error:
        return pytest.skip(f"no image of Redis: {error}")


@pytest.fixture
def folder(box):
    path = box.daemon.folder / f"checkpoint-{box.name()}"
    (path / "data").mkdir(parents=True)
    had_fifos = FIFOS.exists()
    yield path
    shutil.rmtree(path)
    # `ctr container restore` takes no other folder, and containerd keeps what it unpacks for a Create
    if not had_fifos:
        shutil.rmtree(FIFOS, ignore_errors=True)
    for left in box.daemon.folder.glob("tmp/ctrd-checkpoint*"):
        shutil.rmtree(left)


def numbers(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def grows(path, more=5, timeout=60):
    """More numbers come, and none is missing."""
    before = len(numbers(path))
    assert wait_until(lambda: len(numbers(path)) >= before + more, timeout)
    found = numbers(path)
    assert found == list(range(1, len(found) + 1))


def start_counter(box, folder):
    mount = f"type=bind,src={folder}/data,dst=/data,options=rbind:rw"
    name = box.detached("sh", "-c", COUNTER, options=["--mount", mount], rm=False)
    grows(folder / "data/log")
    return name


def checkpoint(box, name, ref):
    done = box.ctr("container", "checkpoint", "--image", "--rw", "--task", name, ref, timeout=120)
    assert done.code == 0, done


def restore(box, ref):
    """A container made of a checkpoint image: its name."""
    name = box.name()
    done = box.ctr("container", "restore", "--rw", "--live", name, ref, timeout=120)
    assert done.code == 0, done
    assert box.status(name) == "RUNNING"
    return name


@pytest.mark.nested_kvm
def test_goes_on_elsewhere(box, folder):
    """The plain way: ctr saves task and rw layer, the container goes, another one is made of it and counts on."""
    log = folder / "data/log"
    name = start_counter(box, folder)
    ref = f"checkpoint/{name}:1"
    checkpoint(box, name, ref)
    grows(log)
    box.kill_and_delete(name)
    count = len(numbers(log))
    other = restore(box, ref)
    assert wait_until(lambda: len(numbers(log)) > count + 5, 60)
    grows(log)
    done = box.exec(other, "date", "+%s")
    assert done.code == 0, done
    assert abs(int(done.out) - time.time()) < 5
    box.kill_and_delete(other)
    assert box.ctr("image", "rm", ref).code == 0


@pytest.mark.nested_kvm
@pytest.mark.usefixtures("folder")
def test_memory_that_was_added(box):
    """A VM that grew comes back as large as it was, with what is in the memory that it began without."""
    options = ["--memory-limit", str(64 << 20), "--mount", "type=tmpfs,src=tmpfs,dst=/big,options=size=300m"]
    name = box.detached("sleep", "1000", options=options, rm=False)
    update_memory(box, name, 512 << 20)
    fill = "yes harpoon | dd of=/big/x bs=1M count=200 iflag=fullblock 2>/dev/null; sha256sum < /big/x"
    content = box.exec(name, "sh", "-c", fill, exec_id="e2")
    assert content.code == 0, content
    ref = f"checkpoint/{name}:1"
    checkpoint(box, name, ref)
    box.kill_and_delete(name)
    other = restore(box, ref)
    assert box.exec(other, "sh", "-c", "sha256sum < /big/x", exec_id="e3").out == content.out
    block = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]
    assert box.exec(other, *block, exec_id="e4").code == 0
    assert mem_total(box, other) >= 489
    box.kill_and_delete(other)
    assert box.ctr("image", "rm", ref).code == 0


@pytest.mark.nested
def test_a_checkpoint_has_its_mappings(box, window, programs, folder):
    (folder / "data/large").write_bytes(b"a" * (2 << 20) + b"b" * (2 << 20))
    options = bind(folder / "data", "/vol", "ro") + bind(programs, "/programs", "ro")
    script = "mkfifo /p; exec 3<>/p; /programs/mapped /vol/large reads <&3 > /out & echo wait 0 a >&3; wait"
    name = box.detached("sh", "-c", script, options=options, rm=False)
    # Until that many answers are there; the limit is that of the exec
    lines = "while [ $(wc -l < /out) -lt {} ]; do sleep 0.1; done; cat /out"
    assert box.exec(name, "sh", "-c", lines.format(1)).out == "done\n"
    ref = f"checkpoint/{name}:1"
    checkpoint(box, name, ref)
    box.kill_and_delete(name)
    other = restore(box, ref)
    assert mappings(box, other)
    done = box.exec(other, "sh", "-c", f"echo wait 0 a > /p; echo wait 1000 b > /p; {lines.format(3)}")
    assert done.out == "done\ndone\ndone\n", done
    box.kill_and_delete(other)
    assert box.ctr("image", "rm", ref).code == 0


class Redis:
    def __init__(self, address):
        self.file = socket.create_connection((address, 6379), 20).makefile("rwb")

    def call(self, *words):
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.file.write(f"*{len(words)}\r\n{''.join(parts)}".encode())
        self.file.flush()
        line = self.file.readline().decode().strip()
        return self.file.read(int(line[1:]) + 2).decode()[:-2] if line[0] == "$" else line[1:]


def test_redis(box, netns, folder, redis_image):
    """A Redis with data that is in its memory alone answers with it elsewhere, at an address of another network."""
    options = [*netlab.joined(netns), "--mount", f"type=bind,src={folder}/data,dst=/data,options=rbind:rw"]
    command = ["redis-server", "--dir", "/data", "--save", "", "--appendonly", "no", "--protected-mode", "no"]
    name = box.detached(*command, image="redis", options=options, rm=False)
    assert wait_until(lambda: netlab.answers("10.77.0.2", 6379), 60, 0.1)
    redis = Redis("10.77.0.2")
    for i in range(200):
        assert redis.call("SET", f"key{i}", f"value {i}" * 50) == "OK"
    run_id = [line for line in redis.call("INFO", "server").split() if line.startswith("run_id:")]
    assert redis.call("EXPIRE", "key7", "3600") == "1"
    ref = f"checkpoint/{name}:1"
    checkpoint(box, name, ref)
    box.kill_and_delete(name)
    assert not netlab.answers("10.77.0.2", 6379)
    netlab.sh(f"""
        ip -n {netns} addr del 10.77.0.2/24 dev eth0; ip -n {netns} addr add 10.77.0.9/24 brd + dev eth0
        ip -n {netns} link set eth0 address 02:00:00:00:77:09
        ip -n {netns} route replace default via 10.77.0.1
    """)
    other = restore(box, ref)
    assert wait_until(lambda: netlab.answers("10.77.0.9", 6379), 60, 0.1)
    assert not netlab.answers("10.77.0.2", 6379)
    assert "02:00:00:00:77:09" in netlab.sh("ip neigh show 10.77.0.9")
    redis = Redis("10.77.0.9")
    for i in range(200):
        assert redis.call("GET", f"key{i}") == f"value {i}" * 50
    assert run_id == [line for line in redis.call("INFO", "server").split() if line.startswith("run_id:")]
    assert 3000 < int(redis.call("TTL", "key7")) <= 3600
    box.kill_and_delete(other)
    assert box.ctr("image", "rm", ref).code == 0


def test_paused_and_exit(box, folder):
    """A paused task stays paused, a running one goes on, and one that is to exit does."""
    log = folder / "data/log"
    name = start_counter(box, folder)
    with box.client(name) as client:
        client.call("Checkpoint", id=name, path=str(folder / "one"))
        grows(log)
        client.call("Pause", id=name)
        client.call("Checkpoint", id=name, path=str(folder / "two"))
        count = len(numbers(log))
        assert box.status(name) == "PAUSED"
        assert not wait_until(lambda: len(numbers(log)) > count, 1)
        client.call("Resume", id=name)
        grows(log)
        # Never over another one
        code, text = client.error("Checkpoint", id=name, path=str(folder / "one"))
        assert code == ttrpc.UNKNOWN and "name an empty one" in text, text
        grows(log)
        wait = client.send("Wait", id=name)
        client.call("Checkpoint", id=name, path=str(folder / "three"), options=EXIT)
        assert client.receive(wait)["exit_status"] == 137
    box.wait_status(name, "STOPPED")
    assert sorted(path.name for path in (folder / "three").iterdir()) == ["manifest", "memory", "note", "shape", "state"]
    assert box.delete(name) == 137


def test_open_file_without_a_name(box, folder):
    """What could not be found again is a reason not to begin: nothing is left behind, and the container goes on."""
    script = f"exec 4>/data/gone; rm /data/gone; touch /data/ready; {COUNTER}"
    mount = f"type=bind,src={folder}/data,dst=/data,options=rbind:rw"
    name = box.detached("sh", "-c", script, options=["--mount", mount], rm=False)
    grows(folder / "data/log")
    with box.client(name) as client:
        code, text = client.error("Checkpoint", id=name, path=str(folder / "one"))
        assert code == ttrpc.UNKNOWN and "gone" in text and "has no name any more" in text, text
    assert list((folder / "one").iterdir()) == []
    grows(folder / "data/log")
    box.kill_and_delete(name)


class Shim:
    """A shim of its own for a bundle like that of the container `name`, to be asked for what containerd would not."""

    def __init__(self, box, folder, name):
        self.bundle = Bundle(box, folder)
        self.folder = folder
        spec = json.loads(box.ctr("container", "info", "--spec", name).out)
        spec["root"]["path"] = str(folder / "rootfs")
        spec["linux"]["cgroupsPath"] = f"/harpoon-test/{self.bundle.id}"
        self.spec = spec
        done = self.bundle.shim("start")
        assert done.returncode == 0, done
        text = done.stdout.decode()
        self.path = (json.loads(text)["address"] if text.startswith("{") else text.strip()).removeprefix("unix://")

    def create(self, image):
        (self.folder / "config.json").write_text(json.dumps(self.spec))
        with ttrpc.Client(self.path, self.bundle.box.daemon.namespace) as client:
            code, text = client.error("Create", id=self.bundle.id, bundle=str(self.folder), checkpoint=str(image))
        assert code, text
        return text


def test_images_that_do_not_fit(box, folder, host_folder):
    """Damaged, incomplete and foreign images: Create says what is wrong, and nothing is left of it."""
    name = start_counter(box, folder)
    image = folder / "one"
    with box.client(name) as client:
        client.call("Checkpoint", id=name, path=str(image))
    shim = Shim(box, host_folder, name)

    def damaged(file, change):
        copy = folder / "copy"
        shutil.copytree(image, copy)
        change(copy / file)
        text = shim.create(copy)
        shutil.rmtree(copy)
        return text

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    assert "open the checkpoint" in shim.create(folder / "none")
    for file in ("memory", "state", "note", "shape"):
        assert f"its file '{file}' is damaged" in damaged(file, flip)
        assert f"its file '{file}' is not of" in damaged(file, lambda path: os.truncate(path, 7))
        assert f"open its file '{file}'" in damaged(file, pathlib.Path.unlink)
    assert "its manifest is damaged" in damaged("manifest", flip)
    assert "its manifest is damaged" in damaged("manifest", lambda path: path.write_text(""))
    assert "read its manifest" in damaged("manifest", pathlib.Path.unlink)
    newer = lambda path: path.write_text(path.read_text().replace("checkpoint 1", "checkpoint 2"))  # noqa: E731
    assert "another version of harpoon" in damaged("manifest", newer)
    # Whole, and for another container, or of another machine
    text = shim.create(image)
    assert "the tree 'rootfs' is shared in another way" in text, text
    shim.spec["annotations"] = {"io.harpoon.memory": "768"}
    assert "made with 'memory_mib 512', here is 'memory_mib 768'" in shim.create(image)
    shim.bundle.end(shim.path)
    box.kill_and_delete(name)
