"""The kernel of the nested host: Debian's cloud kernel, fetched by apt and unpacked, never installed.

Kept below the user's cache folder. What is there is used; remove the folder to get a newer one.
"""

import dataclasses
import fcntl
import os
import pathlib
import re
import shutil
import subprocess

from . import paths

PACKAGE = "linux-image-cloud-amd64"
# What the nested host needs before it sees the modules of its root file system
EARLY = ("virtio_pci", "virtiofs", "virtio_blk", "virtio_console", "overlay")


class Unavailable(RuntimeError):
    pass


@dataclasses.dataclass
class HostKernel:
    release: str
    image: pathlib.Path
    modules: pathlib.Path  # the folder that is /lib/modules/<release> there

    def module_files(self, names):
        """The files of modules and of what they depend on, in the order to load them."""
        needs = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            name, _, rest = line.partition(":")
            needs[name] = rest.split()
        by_name = {pathlib.Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
        found = []
        for name in names:
            path = by_name.get(name)
            if not path:
                continue  # built in
            for wanted in [*reversed(needs[path]), path]:
                if wanted not in found:
                    found.append(wanted)
        return [self.modules / path for path in found]


def _run(*command, **kwargs):
    env = dict(os.environ, LC_ALL="C")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, **kwargs)
    if done.returncode:
        raise Unavailable(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _package_name():
    """The package with the kernel itself: the other one only points at the newest."""
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)$", _run("apt-cache", "depends", PACKAGE), re.M)
    if not match:
        raise Unavailable(f"{PACKAGE} does not say which kernel it stands for")
    return match.group(1)


def _download(folder):
    """The package file, in `folder`. Lists of packages that are old or missing are renewed."""
    for attempt in (1, 2):
        try:
            _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", _package_name(), cwd=folder)
            return next(folder.glob("*.deb"))
        except Unavailable:
            if attempt == 2:
                raise
            _run("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update")
    return None


def _fetch(out, work):
    work.mkdir(parents=True)
    package = _download(work)
    tree = work / "tree"
    _run("dpkg-deb", "-x", package, tree)
    image = next((tree / "boot").glob("vmlinuz-*"))
    release = image.name.partition("-")[2]
    _run("depmod", "-b", tree, release)
    ready = work / release
    ready.mkdir()
    image.rename(ready / "vmlinuz")
    (tree / "lib/modules" / release).rename(ready / "modules")
    ready.rename(out / release)


def _cached(out):
    found = sorted(out.glob("*/vmlinuz"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    folder = found[-1].parent
    return HostKernel(folder.name, folder / "vmlinuz", folder / "modules")


def get():
    """The kernel; fetched when there is none. Raises Unavailable."""
    out = paths.cache_dir() / "nested"
    out.mkdir(exist_ok=True)
    with open(out / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _cached(out):
            work = out / "work.tmp"
            shutil.rmtree(work, ignore_errors=True)
            try:
                _fetch(out, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return _cached(out)
