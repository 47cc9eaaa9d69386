"""The harpoon program, and an installation under a prefix of its own."""

import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import BUILD, IS_HARPOON
from harpoonlib import images, paths
from harpoonlib.containerd import SLOWNESS, Containerd

pytestmark = [
    pytest.mark.harpoon,
    pytest.mark.skipif(not IS_HARPOON, reason="about the harpoon program"),
]

HARPOON = BUILD / "src/cli/harpoon"


def harpoon(*args, env=None, timeout=60):
    return subprocess.run([HARPOON, *map(str, args)], env=env, capture_output=True, text=True, timeout=timeout,
                          check=False)


def test_check(box):
    """Each requirement on a line of its own, with a verdict; 0 means containers can run."""
    done = harpoon("check", env=box.daemon.env())
    assert done.returncode == 0, done
    text = done.stdout.lower()
    for word in ("kvm", "qemu", "kernel", "initrd", "harpoon-fs", "/dev/net/tun", "passt"):
        assert word in text, done
    assert re.search(r"\bok\b", text), done


def test_check_says_what_is_missing(box):
    conf = box.daemon.conf.read_text().replace(str(paths.KERNEL), "/no/such/kernel")
    box.daemon.write_conf(conf)
    done = harpoon("check", env=box.daemon.env())
    assert done.returncode != 0, done
    lines = [line for line in done.stdout.splitlines() if "/no/such/kernel" in line]
    assert lines and "missing" in done.stdout, done


def test_boot(box):
    done = harpoon("boot", env=box.daemon.env())
    assert done.returncode == 0, done
    assert "kernel" in done.stdout.lower() and "ms" in done.stdout, done


@pytest.mark.smoke
def test_boot_json(box):
    done = harpoon("boot", "--json", "-n", "2", env=box.daemon.env())
    assert done.returncode == 0, done
    runs = json.loads(done.stdout)["runs"]
    assert len(runs) == 2
    for figures in runs:
        parts = [figures[key] for key in ("spawn_ms", "vmm_ms", "kernel_ms", "agent_ms")]
        assert all(0 < value < 60_000 for value in parts), done
        # every millisecond is accounted for
        assert abs(sum(parts) - figures["total_ms"]) < 1, done


def test_usage(box):
    done = harpoon("--help")
    assert done.returncode == 0 and "check" in done.stdout, done
    done = harpoon("nonsense")
    assert done.returncode != 0 and "nonsense" in done.stderr, done


def test_version():
    done = harpoon("--version")
    assert done.returncode == 0 and re.search(r"\d+\.\d+", done.stdout), done


@pytest.mark.slow
def test_installation(box, host_folder):
    """
    make install under a prefix of its own; a containerd that has only the installed programs in its PATH, and no
    HARPOON_CONFIG, runs a container.
    """
    prefix = host_folder / "prefix"
    env = dict(os.environ, PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME=os.environ.get("HOME", "/root"))
    make = ["make", "-C", paths.ROOT, "--no-print-directory", "install", f"PREFIX={prefix}", "DESTDIR="]
    done = subprocess.run(make, env=env, capture_output=True, text=True, timeout=280 * SLOWNESS, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for path in ("bin/containerd-shim-harpoon-v1", "bin/harpoon", "libexec/harpoon/harpoon-fs",
                 "share/harpoon/vmlinux", "share/harpoon/initrd", "etc/harpoon/harpoon.conf",
                 "share/man/man1/harpoon.1", "share/man/man5/harpoon.conf.5"):
        assert (prefix / path).exists() or (prefix / f"{path}.gz").exists(), path

    daemon = Containerd(box.daemon.folder / "installed", namespace=box.daemon.namespace)
    daemon.extra_env = {"PATH": f"{prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HARPOON_CONFIG": ""}
    daemon.prepare()
    try:
        daemon.start()
        daemon.import_image(images.busybox())
        done = daemon.ctr(*daemon.run_args(images.BUSYBOX_REF, "installed", "echo", "hello"), timeout=90)
        assert (done.code, done.out) == (0, "hello\n"), (done, daemon.log_tail())
    finally:
        daemon.close()
        shutil.rmtree(daemon.folder, ignore_errors=True)


def test_installation_below_destdir(box, host_folder):
    """DESTDIR is only in front of the paths; an existing configuration is left alone."""
    root = host_folder / "root"
    (root / "etc/harpoon").mkdir(parents=True)
    (root / "etc/harpoon/harpoon.conf").write_text("# mine\n")
    make = ["make", "-C", paths.ROOT, "--no-print-directory", "install", "PREFIX=/usr", f"DESTDIR={root}"]
    done = subprocess.run(make, capture_output=True, text=True, timeout=280 * SLOWNESS, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (root / "etc/harpoon/harpoon.conf").read_text() == "# mine\n"
    assert "kernel = /usr/share/harpoon/vmlinux" in (root / "etc/harpoon/harpoon.conf.sample").read_text()
    assert (root / "usr/bin/containerd-shim-harpoon-v1").exists()
    assert sorted(os.listdir(root)) == ["etc", "usr"]
