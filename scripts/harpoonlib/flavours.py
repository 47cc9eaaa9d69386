"""The containerds there are to test with: the installed one, and those that scripts/get-clients keeps in the cache.

A flavour is a name ("installed", or the suite of Debian that a package came from), its programs' folder and its version.
"""

import pathlib
import re
import shutil
import subprocess

from . import paths

INSTALLED = "installed"
# Debian 13's and Debian unstable's packages
FETCHED = ("trixie", "sid")
ALL = (INSTALLED, *FETCHED)


class Missing(Exception):
    """There is no such containerd here; the text says why."""


class Flavour:
    def __init__(self, name, folder):
        self.name, self.folder = name, pathlib.Path(folder)
        out = subprocess.run([self.folder / "containerd", "--version"], capture_output=True, check=True, text=True)
        # "containerd github.com/containerd/containerd[/v2] 2.1.9+unknown REVISION"
        self.version = out.stdout.split()[2]
        self.major, self.minor = map(int, re.match(r"v?(\d+)\.(\d+)", self.version).groups())

    @property
    def config_version(self):
        return 3 if self.major >= 2 else 2

    def __str__(self):
        return f"containerd {self.version} ({self.name})"


def find(name):
    """The flavour of that name; raises Missing."""
    if name == INSTALLED:
        program = shutil.which("containerd", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
        if not program:
            raise Missing("no containerd is installed")
        return Flavour(name, pathlib.Path(program).parent)
    folder = paths.cache_dir() / "containerd" / name / "usr/bin"
    if (folder / "containerd").exists():
        return Flavour(name, folder)
    try:
        why = (paths.cache_dir() / "containerd" / f"{name}.missing").read_text().strip()
    except OSError:
        why = "scripts/get-clients was not run"
    raise Missing(f"the containerd of Debian's {name} is not in the cache: {why}")
