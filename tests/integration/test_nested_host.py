"""The nested host (scripts/nested): that it is what the tests of the kvm backend need. Runs there only."""

import os
import pathlib
import subprocess

import pytest

from conftest import BUILD
from harpoonlib import paths

pytestmark = pytest.mark.nested

CLI = BUILD / "src/cli/harpoon"
# As for a container's VM, but with a console that tells what happens; without its channel the agent ends at once.
MACHINE = "microvm,pit=on,pic=on,rtc=on,acpi=off,x-option-roms=off,isa-serial=on"
QEMU = [
    paths.QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", MACHINE,
    "-accel", "kvm", "-cpu", "host", "-m", "256M", "-serial", "stdio",
]  # fmt: skip
APPEND = "earlyprintk=serial,ttyS0,keep console=ttynull panic=-1 reboot=t no_timer_check random.trust_cpu=on"


def test_kvm_is_native():
    done = subprocess.run([CLI, "check"], capture_output=True, text=True, timeout=60, check=False)
    line = next(line for line in done.stdout.splitlines() if line.split()[1] == "KVM")
    assert line.startswith("ok ") and "native speed" in line, done.stdout


def test_auto_takes_kvm(tmp_path):
    conf = tmp_path / "harpoon.conf"
    conf.write_text(f"[programs]\nvmm = {BUILD}/src/vmm/harpoon-vmm\n")
    env = dict(os.environ, HARPOON_CONFIG=str(conf))
    done = subprocess.run([CLI, "check"], env=env, capture_output=True, text=True, timeout=60, check=False)
    line = next(line for line in done.stdout.splitlines() if line.split()[1] == "backend")
    assert line.split()[:3] == ["ok", "backend", "kvm"], done.stdout


def test_guest_kernel_boots_on_this_kvm():
    """The guest's kernel and agent under QEMU's KVM: what is wrong with harpoon-vmm then is harpoon-vmm's."""
    command = [*QEMU, "-kernel", paths.KERNEL, "-initrd", paths.INITRD, "-append", APPEND]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    console = done.stdout.decode(errors="replace")
    assert "Hypervisor detected: KVM" in console, console[-4000:] + done.stderr.decode()
    assert "Run /init as init process" in console, console[-4000:]


def test_cgroups_are_version_2():
    assert "cpu" in pathlib.Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()


def test_user_attributes_on_scratch():
    folder = pathlib.Path(os.environ["HARPOON_TEST_FOLDER"]) / "attributes"
    folder.mkdir(parents=True)
    try:
        os.setxattr(folder, "user.harpoon", b"yes")
        assert os.getxattr(folder, "user.harpoon") == b"yes"
    finally:
        folder.rmdir()
