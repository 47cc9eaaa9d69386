"""The host fails a container: no space, no descriptors, no memory, no processor, interfaces and mounts that go.

F numbers name rows of the fault list in docs/testing.md.
"""

import os
import pathlib
import resource
import signal
import subprocess
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib import netlab, ttrpc
from harpoonlib.containerd import wait_until

pytestmark = [pytest.mark.harpoon, pytest.mark.skipif(not IS_HARPOON, reason="about harpoon's VMs")]

MIB = 1 << 20
CGROUPS = pathlib.Path("/sys/fs/cgroup")


@pytest.fixture
def small(host_folder):
    """A file system of one MiB, full but for what a test takes away from `filler`."""
    folder = host_folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as f:
        with pytest.raises(OSError, match="No space left"):
            while True:
                f.write(b"x" * 4096)


def test_no_space_for_the_state(box, small):
    """F41, F42: the state folder's file system is full or read-only: Create says which file, and nothing is left."""
    name = box.name()
    bundle = small / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text(box.ctr("oci", "spec").out)
    os.mkfifo(bundle / "log", 0o700)
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    args = ["containerd-shim-harpoon-v1", "-namespace", box.daemon.namespace, "-address", str(box.daemon.socket),
            "-publish-binary", "/bin/true", "-id", name]
    env = box.daemon.env() | {"TTRPC_ADDRESS": f"{box.daemon.socket}.ttrpc"}

    def shim(*words):
        return subprocess.run([*args, *words], cwd=bundle, env=env, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=20, check=False)

    path = shim("start").stdout.decode().removeprefix("unix://")
    with ttrpc.Client(path, box.daemon.namespace) as client:
        fill(small)
        code, text = client.error("Create", id=name, bundle=str(bundle))
        assert code and "No space left" in text, (code, text)
        os.unlink(small / "filler")
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        code, text = client.error("Create", id=name, bundle=str(bundle))
        assert code and "Read-only file system" in text, (code, text)
        subprocess.run(["mount", "-o", "remount,rw", small], check=True)
        client.call("Shutdown", id=name)
    assert wait_until(lambda: not os.path.exists(path), 5)
    # `start` cannot write its address either: an error, and no process that nobody knows of
    (bundle / "address").unlink()
    fill(small)
    done = shim("start")
    assert done.returncode and b"No space left" in done.stderr, done
    os.unlink(small / "filler")
    assert shim("-bundle", str(bundle), "delete").returncode == 0
    os.close(log)


def test_shim_without_descriptors(box):
    """F43: execs fail with words, the container and its shim go on, and later execs work."""
    name = box.detached("sleep", "1000")
    shim = box.shim_pid(name)
    before = resource.prlimit(shim, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{shim}/fd")))
    for spare in range(1, 8):
        resource.prlimit(shim, resource.RLIMIT_NOFILE, (highest + spare, before[1]))
        # With enough to spare it works; until then it says what is missing
        done = box.exec(name, "echo", "fine", exec_id=f"e{spare}")
        assert done.out == "fine\n" or (done.code and done.err), done
    resource.prlimit(shim, resource.RLIMIT_NOFILE, before)
    box.forget_fifos()
    assert box.exec(name, "echo", "fine", exec_id="last").out == "fine\n"
    box.kill_and_delete(name)


def test_host_kills_the_vm_for_memory(box):
    """F45: its cgroup has no memory left: the task ends with 137, and what was the VM's is gone."""
    folder = CGROUPS / "memory" / box.daemon.namespace
    if not (CGROUPS / "memory/cgroup.procs").exists():
        pytest.skip("looks at files of cgroup version 1")
    name = box.detached("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/shm/x bs=1M",
                        options=["--mount", "type=tmpfs,src=tmpfs,dst=/dev/shm,options=size=300m"])
    used = int((folder / name / "memory.usage_in_bytes").read_text())
    (folder / name / "memory.limit_in_bytes").write_text(str(used + 64 * MIB))
    box.execute(name, "touch", "/tmp/go")
    box.wait_status(name, "STOPPED", 60)
    assert box.delete(name) == 137


def test_namespace_loses_its_interface(box, netns):
    """F52: the host takes the interface, then the name of the namespace: the container runs on, and goes in order."""
    name = box.detached("sleep", "1000", options=netlab.joined(netns))
    netlab.sh("ip link del eth0", netns)
    assert box.exec(name, "cat", "/sys/class/net/eth0/mtu").out.strip().isdigit()
    assert box.exec(name, "echo", "fine", exec_id="e2").out == "fine\n"
    box.kill_and_delete(name)


@pytest.mark.parametrize("mount, words", [
    (["-t", "tmpfs", "none", "/dev/net"], "open '/dev/net/tun' (modprobe tun): No such file or directory"),
    (["--bind", "/dev/null", "/dev/net/tun"], "make a tap"),
], ids=["no-node", "no-device"])
def test_no_taps(box, netns, mount, words):
    """F53: a container that would have interfaces is an error that says what is missing; nothing is left, and the next one runs."""
    subprocess.run(["mount", *mount], check=True)
    try:
        done = box.run("true", options=netlab.joined(netns))
        assert done.code and words in done.err, done
    finally:
        subprocess.run(["umount", mount[-1]], check=True)
    assert box.run("cat", "/sys/class/net/eth0/mtu", options=netlab.joined(netns)).out.strip().isdigit()


def test_root_in_use_by_the_host(box):
    """F54: processes of the host sit in the container's root when it is deleted: it goes nevertheless."""
    name = box.detached("sleep", "1000")
    root = box.bundle(name) / "rootfs"
    with subprocess.Popen(["cat"], cwd=root, stdin=subprocess.PIPE) as sitter, open(root / "etc/passwd", "rb"):
        box.kill_and_delete(name)
        assert not os.path.ismount(root) and not root.exists()
        sitter.stdin.close()
        assert sitter.wait(10) == 0


def test_busy_processors(box):
    """F56: four times as many runnable processes as processors: starts, execs and ends take longer and are right."""
    spinners = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(4 * os.cpu_count())]
    try:
        for i in range(3):
            done = box.sh(f"echo {i}; exit {i}")
            assert (done.code, done.out) == (i, f"{i}\n"), done
        name = box.detached("sleep", "1000")
        assert box.exec(name, "sh", "-c", "exit 5").code == 5
        box.kill_and_delete(name)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


HOGS = {
    # All of the VM's memory, again and again
    "memory": "while :; do dd if=/dev/zero of=/dev/shm/x bs=1M 2>/dev/null; rm -f /dev/shm/x; tail /dev/zero; done",
    # A volume until it is full, again and again
    "volume": "while :; do dd if=/dev/zero of=/small/x bs=64k 2>/dev/null; rm /small/x; done",
    "output": "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done",
    "processor": "while :; do while :; do :; done & sleep 0.2; done",
}


@pytest.mark.parametrize("kind", HOGS)
def test_hog_beside_a_neighbour(box, small, kind):
    """What a container uses up without end is its own: a neighbour reads, writes and runs processes as ever."""
    options = ["--mount", f"type=bind,src={small},dst=/small,options=rbind:rw",
               "--annotation", "io.harpoon.memory=256"]
    neighbour, name = box.detached("sleep", "1000"), box.name()
    hog = box.background("sh", "-c", f"echo on; {HOGS[kind]}", name=name, options=options)
    try:
        assert hog.stdout.readline() == b"on\n"
        end = time.monotonic() + 5
        turns = 0
        while turns < 3 or time.monotonic() < end:
            done = box.exec(neighbour, "sh", "-c", "echo kept > /tmp/f && sync && cat /tmp/f && exit 3",
                            exec_id=f"e{turns}")
            assert (done.code, done.out) == (3, "kept\n"), done
            turns += 1
        assert hog.poll() is None
        assert box.kill(name).code == 0
        hog.communicate(timeout=60)
        assert hog.returncode == 137
    finally:
        if hog.poll() is None:
            hog.send_signal(signal.SIGKILL)
            hog.communicate()
    box.kill_and_delete(neighbour)
