"""The window of mapped files (dax_window): what containers read of large files on read-only trees is the host's memory, once.

In the nested host only: QEMU's microvm has no such window.
"""

import hashlib
import os
import pathlib
import re
import shutil

import pytest
from harpoonlib import nested
from test_volumes import Shell, bind

pytestmark = pytest.mark.nested

WINDOW_MIB, FILE_MIB, PAGE = 16, 40, 4096


def mappings(box, name, file="large"):
    """Of harpoon-vmm: how it has mapped files of this name."""
    (pid,) = box.processes(name)["harpoon-vmm"]
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
    return re.findall(rf"^\S+ (\S+) .*{file}$", maps, re.MULTILINE)


def cached_mib(box, name):
    done = box.exec(name, "cat", "/proc/meminfo")
    return int(re.search(r"^Cached: +(\d+)", done.out, re.MULTILINE).group(1)) // 1024


def write_large(path, mib=FILE_MIB):
    data = os.urandom(mib << 20)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def test_files_of_a_read_only_volume(box, window, host_folder):
    """Larger than the window: the guest reads all of it, twice, right, and keeps nothing of it."""
    digest = write_large(host_folder / "large")
    (host_folder / "small").write_text("small")
    name = box.detached("sleep", "1000", options=bind(host_folder, "/vol", "ro"), rm=False)
    before = cached_mib(box, name)
    for _ in range(2):
        done = box.exec(name, "sha256sum", "/vol/large", timeout=300)
        assert done.code == 0 and done.out.split()[0] == digest, done
    assert cached_mib(box, name) - before < FILE_MIB / 4
    found = mappings(box, name)
    assert found and set(found) == {"r--s"} and len(found) <= WINDOW_MIB // 2, found
    done = box.exec(name, "sh", "-c", "cat /vol/small; echo x > /vol/large")
    assert done.code != 0 and done.out == "small" and "Read-only" in done.err, done
    box.kill_and_delete(name)
    assert hashlib.sha256((host_folder / "large").read_bytes()).hexdigest() == digest


def test_files_that_may_be_written_are_not_mapped(box, window, host_folder):
    digest = write_large(host_folder / "large", 4)
    name = box.detached("sleep", "1000", options=bind(host_folder, "/vol"), rm=False)
    done = box.exec(name, "sh", "-c", "sha256sum /vol/large; dd if=/dev/zero of=/vol/large bs=1M count=1 conv=notrunc")
    assert done.code == 0 and done.out.split()[0] == digest, done
    assert mappings(box, name) == []
    box.kill_and_delete(name)
    assert (host_folder / "large").read_bytes()[: 1 << 20] == bytes(1 << 20)


def test_programs_of_a_read_only_volume(box, window, host_folder):
    """The kernel runs programs out of the window."""
    shutil.copy(nested.BUSYBOX, host_folder / "busybox")
    name = box.detached("sleep", "1000", options=bind(host_folder, "/vol", "ro"), rm=False)
    assert mappings(box, name, "busybox") == []
    done = box.exec(name, "/vol/busybox", "sh", "-c", "echo $((6 * 7)); exit 3")
    assert done.code == 3 and done.out == "42\n", done
    assert mappings(box, name, "busybox")
    box.kill_and_delete(name)


def test_the_host_changes_a_mapped_file(box, window, programs, host_folder):
    """Cut short it reads as zeros, until the guest hears of it, and the machine lives; written again it is what it became."""
    large = host_folder / "large"
    large.write_bytes(b"a" * (4 << 20))
    options = bind(host_folder, "/vol", "ro") + bind(programs, "/programs", "ro")
    reader = Shell(box, ["/programs/mapped", "/vol/large", "reads"], options)
    assert reader.ask("wait 0 a") == "done"
    assert reader.ask("wait 1000 a") == "done"
    with open(large, "r+b") as f:
        f.truncate(PAGE)
        assert reader.ask("wait 1000 0") == "done"
        assert reader.ask("wait 0 a") == "done"
        f.write(b"b" * (4 << 20))
        f.flush()
        assert reader.ask("wait 0 b") == "done"
    # A file made anew that the guest hears of: with the next request all is as it should be
    (host_folder / "other").write_text("x")
    assert reader.ask("wait 1000 b") == "done"
    reader.close()
