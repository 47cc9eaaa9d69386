"""Debian 12's own QEMU (7.2), the oldest that harpoon runs on: containers run, and what it lacks is said.

scripts/get-qemu keeps it in the user's cache folder.
"""

import json
import os
import re
import subprocess

import pytest
from conftest import BUILD
from harpoonlib import paths

pytestmark = pytest.mark.harpoon

OLD = paths.cache_dir() / "qemu-7.2/usr/bin/qemu-system-x86_64"
HARPOON = BUILD / "src/cli/harpoon"


@pytest.fixture
def old_qemu(box):
    """harpoon.conf names the old QEMU, and the qemu backend."""
    if not OLD.exists():
        missing = paths.cache_dir() / "qemu-7.2.missing"
        why = missing.read_text().strip() if missing.exists() else "scripts/get-qemu was not run"
        pytest.skip(f"no QEMU 7.2: {why}")
    conf = box.daemon.conf.read_text().replace(paths.QEMU, str(OLD))
    box.daemon.write_conf(re.sub(r"(?m)^backend = .*$", "backend = qemu", conf))
    return box


def harpoon(box, *args):
    env = box.daemon.env()
    return subprocess.run([HARPOON, *args], env=env, capture_output=True, text=True, timeout=90, check=False)


def test_check_says_what_it_lacks(old_qemu):
    done = harpoon(old_qemu, "check")
    assert done.returncode == 0, done
    line = next(line for line in done.stdout.splitlines() if "QEMU 7.2" in line)
    assert "templates" in line and "8.2" in line, done


def test_boot(old_qemu):
    done = harpoon(old_qemu, "boot", "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["runs"][0]["total_ms"] > 0


def test_run(old_qemu):
    """A container runs in a VM of that QEMU: the program that the VM's process executes is it."""
    name = old_qemu.detached("sleep", "1000")
    (pid,) = old_qemu.processes(name)["qemu-system-x86_64"]
    assert os.readlink(f"/proc/{pid}/exe").endswith("qemu-7.2/usr/bin/qemu-system-x86_64")
    done = old_qemu.ctr("task", "exec", "--fifo-dir", old_qemu.daemon.fifos, "--exec-id", "e", name, "echo", "hello")
    assert (done.code, done.out.strip()) == (0, "hello"), done
    old_qemu.kill_and_delete(name)
