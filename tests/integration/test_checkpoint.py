"""Checkpoints: a container saved as it runs, through the plain Task API, and created again from what was saved."""

import pathlib
import shutil
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib.containerd import wait_until

pytestmark = pytest.mark.skipif(not IS_HARPOON, reason="runc needs CRIU for this")

# containerd.runc.v1.CheckpointOptions{exit: true}
EXIT = {"type_url": "containerd.runc.v1.CheckpointOptions", "value": b"\x08\x01"}

# Counts in memory alone, and writes every number to a file that stays open.
COUNTER = "exec 3>/data/log; n=0; while :; do n=$((n+1)); echo $n >&3; sleep 0.1; done"


FIFOS = pathlib.Path("/run/containerd/fifo")


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


def test_goes_on_elsewhere(box, folder):
    """The plain way: ctr saves task and rw layer, the container goes, another one is made of it and counts on."""
    log = folder / "data/log"
    name = start_counter(box, folder)
    ref = f"checkpoint/{name}:1"
    done = box.ctr("container", "checkpoint", "--image", "--rw", "--task", name, ref, timeout=120)
    assert done.code == 0, done
    grows(log)
    box.kill_and_delete(name)
    count = len(numbers(log))
    other = box.name()
    done = box.ctr("container", "restore", "--rw", "--live", other, ref, timeout=120)
    assert done.code == 0, done
    assert box.status(other) == "RUNNING"
    assert wait_until(lambda: len(numbers(log)) > count + 5, 60)
    grows(log)
    done = box.exec(other, "date", "+%s")
    assert done.code == 0, done
    assert abs(int(done.out) - time.time()) < 5
    box.kill_and_delete(other)
    assert box.ctr("image", "rm", ref).code == 0
