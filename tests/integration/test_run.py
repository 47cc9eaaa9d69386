"""One container from start to end: exit codes, errors, and what its process sees."""

import io
import json
import os
import tarfile
import time

import pytest

from conftest import IS_HARPOON, RUNTIME
from harpoonlib import images


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_hello(box):
    done = box.run("echo", "Hello VM!")
    assert (done.code, done.out, done.err) == (0, "Hello VM!\n", ""), done


@pytest.mark.nested_kvm
@pytest.mark.harpoon
def test_own_kernel(box):
    """The container's kernel is not the host's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        host = f.read()
    done = box.run("cat", "/proc/sys/kernel/random/boot_id")
    assert done.code == 0, done
    assert len(done.out) == len(host) and done.out != host, done


@pytest.mark.harpoon
def test_reads_ahead_as_much_as_one_request_holds(box):
    """A trip to the file server costs more than the copying: 1 MiB a request, not the kernel's 128 KiB for disks."""
    done = box.sh("cat /sys/class/bdi/0:*/read_ahead_kb")
    assert (done.code, done.out) == (0, "1024\n"), done


@pytest.mark.versions
@pytest.mark.parametrize("code", [0, 1, pytest.param(42, marks=pytest.mark.nested_kvm), 127, 255])
def test_exit_code(box, code):
    done = box.sh(f"exit {code}")
    assert done.code == code, done
    assert not done.err, done


@pytest.mark.smoke
@pytest.mark.parametrize("signal,code", [pytest.param("KILL", 137, marks=pytest.mark.nested_kvm), ("TERM", 143), ("SEGV", 139)])
def test_killed_by_own_signal(box, signal, code):
    # The shell that is process 1 of the container only passes on what happened to its child
    done = box.sh(f"sh -c 'kill -{signal} $$'; exit $?")
    assert done.code == code, done


@pytest.mark.nested_kvm
@pytest.mark.smoke
def test_executable_missing(box):
    done = box.run("/no/such/program", "argument")
    assert done.code not in (0, None), done
    assert "/no/such/program" in done.err, done
    assert "no such file or directory" in done.err.lower(), done


@pytest.mark.versions
def test_executable_missing_in_path(box):
    done = box.run("nosuchprogram")
    assert done.code != 0, done
    assert "nosuchprogram" in done.err and "not found" in done.err, done


def test_executable_not_executable(box):
    done = box.run("/etc/passwd")
    assert done.code != 0, done
    assert "/etc/passwd" in done.err and "permission denied" in done.err.lower(), done


def test_id_in_use(box):
    name = box.detached("sleep", "1000")
    done = box.run("true", name=name)
    assert done.code != 0 and "already exists" in done.err, done
    assert box.status(name) == "RUNNING"
    box.kill_and_delete(name)


def test_arguments_unchanged(box):
    words = ["", " ", "a b", "*", "$HOME", "'\"\\", "ü€😀", "-n", "x" * 5000, "line\nbreak"]
    done = box.run("sh", "-c", 'for a in "$@"; do printf "%s\\0" "$a"; done', "sh", *words)
    assert done.code == 0, done
    assert done.out.split("\0")[:-1] == words


def test_environment(box):
    options = ["--env", "ONE=1", "--env", "TWO=two words = more", "--env", "EMPTY="]
    done = box.sh("env", options=options)
    lines = done.out.splitlines()
    assert done.code == 0, done
    for line in ("ONE=1", "TWO=two words = more", "EMPTY="):
        assert line in lines, done
    assert any(line.startswith("PATH=/usr/local/sbin:") for line in lines), done
    # Nothing of the host's or the shim's own environment
    assert not [line for line in lines if line.startswith(("HARPOON", "TTRPC", "GOMAXPROCS"))], done


def test_working_directory(box):
    done = box.run("pwd", options=["--cwd", "/var"])
    assert (done.code, done.out) == (0, "/var\n"), done


def test_working_directory_missing_is_made(box):
    """As runc does."""
    done = box.run("pwd", options=["--cwd", "/new/folder"])
    assert (done.code, done.out) == (0, "/new/folder\n"), done


def test_user_and_environment_of_image(box):
    done = box.sh("id -u; id -g; pwd; echo $FROM_IMAGE; touch mine && stat -c %u:%g mine", image="user")
    assert done.out.split() == ["1000", "1000", "/home/user", "yes", "1000:1000"], done
    denied = box.sh("touch /etc/mine", image="user")
    assert denied.code == 1 and "Permission denied" in denied.err, denied


def test_supplementary_groups_and_capabilities_of_user(box):
    done = box.sh("grep -E '^(Cap(Inh|Prm|Eff|Bnd)|NoNewPrivs)' /proc/self/status", image="user")
    values = dict(line.split() for line in done.out.splitlines())
    assert values["CapPrm:"] == values["CapEff:"] == "0" * 16, done
    # containerd's default set for containers
    assert int(values["CapBnd:"], 16) == 0xA80425FB, done
    assert values["NoNewPrivs:"] == "1", done


def test_capabilities_of_root(box):
    done = box.sh("grep -E '^CapEff' /proc/self/status")
    assert int(done.out.split()[1], 16) == 0xA80425FB, done


def test_hostname(box, host_folder):
    name = box.name()
    spec = json.loads(box.ctr("oci", "spec").out)
    spec["hostname"] = "fancy-name"
    # What it says by itself is the folder of all other containers, which version 2 of cgroups lets nothing run in.
    spec["linux"]["cgroupsPath"] = f"/{box.daemon.namespace}/{name}"
    spec["process"]["args"] = ["hostname"]
    spec["process"]["env"] = ["PATH=/bin"]
    rootfs = host_folder / "rootfs"
    rootfs.mkdir()
    spec["root"]["path"] = str(rootfs)
    unpack(rootfs)
    path = host_folder / "config.json"
    path.write_text(json.dumps(spec))
    done = box.ctr(*box.daemon.run_args(name, "", runtime=RUNTIME, options=["--config", path])[:-1])
    assert (done.code, done.out) == (0, "fancy-name\n"), done


def unpack(folder):
    """The busybox tree in a plain folder."""
    tarfile.open(fileobj=io.BytesIO(images.busybox_layer())).extractall(folder)


def test_rootfs_folder_of_the_host(box, host_folder):
    """ctr run --rootfs: no mounts from containerd, root.path is an absolute folder."""
    rootfs = host_folder / "rootfs"
    rootfs.mkdir()
    unpack(rootfs)
    name = box.name()
    args = box.daemon.run_args(rootfs, name, "sh", "-c", "echo in > /made; cat /made", runtime=RUNTIME,
                               options=["--rootfs", "--env", "PATH=/bin"])
    done = box.ctr(*args)
    assert (done.code, done.out) == (0, "in\n"), done
    assert (rootfs / "made").read_text() == "in\n"


def test_pid_one_and_its_children(box):
    done = box.sh("echo $$; sleep 100 & ls -d /proc/[0-9]* | wc -l; kill $!")
    assert done.out.split()[0] == "1", done
    assert int(done.out.split()[1]) <= 5, done


def test_standard_mounts_and_devices(box):
    done = box.sh(
        "for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done;"
        "test -d /dev/pts && test -d /dev/shm && test -d /dev/mqueue && test -d /proc/1 && test -d /sys/class"
        "&& head -c 4 /dev/zero | wc -c; readlink /dev/fd; echo x > /dev/null;"
        "touch /sys/made 2>/dev/null || echo sys-ro"
    )
    assert done.out.split() == ["4", "/proc/self/fd", "sys-ro"], done


def test_masked_and_read_only_proc(box):
    done = box.sh("cat /proc/kcore | wc -c; ls /proc/scsi /sys/firmware | wc -w; echo x > /proc/sys/kernel/domainname")
    assert done.code != 0 and "Read-only" in done.err, done
    assert done.out.split()[0] == "0", done


def test_time_is_right(box):
    before = time.time()
    done = box.run("date", "+%s")
    after = time.time()
    assert before - 2 <= int(done.out) <= after + 2, done


@pytest.mark.harpoon
def test_memory_annotation(box):
    """io.harpoon.memory makes the VM that large: the guest's own view of it."""
    done = box.run("grep", "MemTotal", "/proc/meminfo", options=["--annotation", "io.harpoon.memory=1024"])
    assert done.code == 0, done
    assert 900 * 1024 < int(done.out.split()[1]) <= 1024 * 1024, done


@pytest.mark.harpoon
def test_vcpu_annotation(box):
    done = box.run("nproc", options=["--annotation", "io.harpoon.vcpus=2"])
    assert (done.code, done.out) == (0, "2\n"), done


@pytest.mark.harpoon
@pytest.mark.parametrize("key,value", [("memory", "12"), ("memory", "lots"), ("vcpus", "0"), ("backend", "x")])
def test_bad_annotation(box, key, value):
    done = box.run("true", options=["--annotation", f"io.harpoon.{key}={value}"])
    assert done.code != 0, done
    assert f"io.harpoon.{key}" in done.err and value in done.err, done


def test_memory_limit(box):
    """A limit from the spec ends a process that takes more; the task says 137."""
    done = box.sh("tail /dev/zero", options=["--memory-limit", str(64 << 20)])
    assert done.code == 137, done


def test_large_environment_and_arguments(box):
    big = "v" * 100_000
    done = box.sh('echo ${#BIG} ${#1}', options=["--env", f"BIG={big}"])
    assert done.out.split() == ["100000", "0"], done


def test_nothing_of_the_host_is_visible(box):
    done = box.sh("ls -A /home /root /tmp; cat /proc/1/environ | tr '\\0' '\\n' | grep -c HARPOON")
    assert "user" in done.out and "0" in done.out.split(), done


def test_host_pid_is_alive_while_running(box):
    """The task's pid is a process of the host, with namespaces to look at; it is gone with the task."""
    name = box.detached("sleep", "1000")
    pid = box.daemon.tasks()[name][0]
    assert os.path.exists(f"/proc/{pid}/ns/net")
    box.kill(name)
    box.wait_status(name, "STOPPED")
    if IS_HARPOON:
        assert not os.path.exists(f"/proc/{pid}")
    assert box.delete(name) == 137
