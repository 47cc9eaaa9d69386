"""A guest that attacks every device (tests/evil), in a real harpoon-vmm in its jail, harpoon-fs beside it.

It may end as it likes, but by its own hand: the VM resets itself after its last round, or its devices have made it
triple-fault. A system call that the filter does not know, a crash or a hang of harpoon-vmm or harpoon-fs shows as another
sentence.
"""

import os
import re
import subprocess

import pytest
from conftest import BUILD, IS_HARPOON

HARPOON = BUILD / "src/cli/harpoon"
GUEST = BUILD / "tests/evil/evil-guest"
LIMIT_S = 240

pytestmark = [
    pytest.mark.harpoon,
    pytest.mark.skipif(not IS_HARPOON, reason="about harpoon-vmm"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm"),
]


@pytest.mark.parametrize(("seed", "rounds", "last"), [(11, 90, 0), (12, 60, 0), (13, 20, 1)])
def test_evil_guest_in_the_jail(tmp_path, seed, rounds, last):
    (tmp_path / "initrd").write_bytes(b"070701")
    conf = tmp_path / "harpoon.conf"
    conf.write_text(
        f"[vm]\nbackend = kvm\nkernel = {GUEST}\ninitrd = {tmp_path}/initrd\n"
        f"kernel_args = seed={seed} rounds={rounds} last={last}\n"
        f"[templates]\nuse = off\n"
        f"[programs]\nfs_server = {BUILD}/src/fs/harpoon-fs\nvmm = {BUILD}/src/vmm/harpoon-vmm\n"
        f"[limits]\nready_timeout_ms = {LIMIT_S * 1000 - 20000}\n"
    )
    run = subprocess.run(
        [HARPOON, "boot", "--memory", "64M"],
        env={"HARPOON_CONFIG": str(conf)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    said = run.stdout.decode()
    assert run.returncode == 1, said
    # The sentence holds the console's last line.
    assert re.search(r"crashed|died|reset", said), said
    assert "evil: done" in said, said
    assert "killed by" not in said, said
