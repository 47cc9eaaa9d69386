"""A guest that attacks every device (tests/evil), in a real harpoon-vmm in its jail, harpoon-fs beside it.

It may end as it likes, but by its own hand: the VM resets itself after its last round, its devices have made it
triple-fault, or, where it is told to talk to the port of the agent's greeting, what it said there was no greeting.
A system call that the filter does not know, a crash or a hang of harpoon-vmm or harpoon-fs shows as another sentence.
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


def _attack(folder, seed, rounds, last, greet):
    """What is said of a VM whose guest attacks it."""
    (folder / "initrd").write_bytes(b"070701")
    conf = folder / "harpoon.conf"
    conf.write_text(
        f"[vm]\nbackend = kvm\nkernel = {GUEST}\ninitrd = {folder}/initrd\n"
        f"kernel_args = seed={seed} rounds={rounds} last={last} greet={greet}\n"
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
    assert "killed by" not in said, said
    return said


@pytest.mark.parametrize(("seed", "rounds", "last"), [(11, 90, 0), (12, 60, 0), (13, 20, 1)])
def test_evil_guest_in_the_jail(tmp_path, seed, rounds, last):
    """How guest and devices run beside each other is another each time: of a few guests, one does all its rounds."""
    for turn in range(5):
        said = _attack(tmp_path, seed + 100 * turn, rounds, last, 0)
        # The sentence holds the console's last line.
        assert re.search(r"crashed|died|reset", said), said
        if "evil: done" in said:
            return
    pytest.fail(f"no guest came to its last round: {said}")


@pytest.mark.smoke
def test_greeting_that_is_none(tmp_path):
    said = _attack(tmp_path, 14, 60, 0, 1)
    assert re.search(r"the agent('s greeting has \d+ bytes| speaks protocol)|crashed|died|reset", said), said
