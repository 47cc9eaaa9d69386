"""harpoon-fs beside the host's own file systems: the table of tests/posix, line by line.

The same program runs on a folder of the host directly and on the same folder through harpoon-fs: behind /dev/fuse,
as a container's volume, and as its root file system. A line that differs must be one of the exceptions that
docs/fs.md lists, with their reasons; there are five at most.

The large tables are made in part, as HARPOON_TEST_POSIX_STRIDE says (every seventh check without it);
1 is all of them.
"""

import itertools
import os
import re
import shutil
import subprocess

import pytest

import fs_server
from conftest import BUILD
from harpoonlib import paths
from harpoonlib.containerd import SLOWNESS

SOURCES = sorted((paths.ROOT / "tests/posix").glob("*.c"))
DOCUMENT = paths.ROOT / "docs/fs.md"
STRIDE = os.environ.get("HARPOON_TEST_POSIX_STRIDE", "7")
# The same server as a volume's, on the same guest: fewer will do.
STRIDE_OF_ROOT = os.environ.get("HARPOON_TEST_POSIX_STRIDE", "19")
# What the export of a root file system is.
OF_ROOT = fs_server.EXCLUSIVE | fs_server.ALLOW_DEVICES
LEAST = 3000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")

_folders = itertools.count()


@pytest.fixture(scope="module")
def program(work_folder):
    out = work_folder / "posix"
    flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    subprocess.run(["gcc", *flags, "-o", out, *SOURCES], check=True)
    yield out
    out.unlink()


class Exceptions:
    """The rows of the table in docs/fs.md: | id | checks, as a regular expression | why |"""

    def __init__(self):
        text = DOCUMENT.read_text(encoding="utf-8")
        part = text.split("## Where it differs from the host's file system", 1)[1].split("\n## ", 1)[0]
        rows = re.findall(r"^\| `([a-z-]+)` \| `(.*?)` \| (.+) \|$", part, re.MULTILINE)
        assert 0 < len(rows) <= 5, f"{len(rows)} exceptions in {DOCUMENT}"
        self.rows = [(name, re.compile(pattern.replace("\\|", "|"))) for name, pattern, _ in rows]

    def of(self, check):
        return next((name for name, pattern in self.rows if pattern.fullmatch(check)), None)


def parse(text):
    found = {}
    for line in text.strip("\n").split("\n"):
        name, _, result = line.partition(" = ")
        assert result and name not in found, line
        found[name] = result
    return found


def compare(direct, through, may_differ):
    """A difference without an exception fails, and so does a line that is only on one side."""
    wrong = []
    for check in direct.keys() | through.keys():
        want, got = direct.get(check), through.get(check)
        if want != got and not may_differ.of(check):
            wrong.append(f"{check}\n    host:    {want}\n    harpoon: {got}")
    assert not wrong, f"{len(wrong)} checks differ:\n" + "\n".join(sorted(wrong)[:40])


class Places:
    """Folders on the host for one run, and what is mounted on them. Ends with everything unmounted."""

    def __init__(self, folder, kind):
        self.folder = folder
        self.mounted = []
        for name in ("tree", "other", "read-only", "small", "busy", "lower", "upper", "work"):
            (folder / name).mkdir()
            (folder / name).chmod(0o755)
        (folder / "read-only/file").write_text("content")
        (folder / "read-only/folder").mkdir()
        (folder / "read-only/link").symlink_to("file")
        if kind == "overlay":
            options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
            self.mount("-t", "overlay", "overlay", "-o", options, folder / "tree")
        self.mount("-t", "tmpfs", "small", "-o", "size=1m,nr_inodes=64", folder / "small")
        (folder / "tree/busy").mkdir()

    def mount(self, *args):
        subprocess.run(["mount", *args], check=True)
        self.mounted.append(args[-1])

    def direct(self, program):
        """The table on the host's file systems."""
        return self.run(program, self.folder)

    def run(self, program, source):
        """The table on folders below `source`, mounted as they are for a client of theirs."""
        top = self.folder / "view"
        before = len(self.mounted)
        for name in ("tree", "other", "read-only"):
            (top / name).mkdir(parents=True, exist_ok=True)
            self.mount("--bind", source / name, top / name)
            options = f"remount,bind,nosuid,nodev{',ro' if name == 'read-only' else ''}"
            subprocess.run(["mount", "-o", options, top / name], check=True)
        self.mount("--bind", self.folder / "busy", top / "tree/busy")
        places = ["-o", top / "other", "-r", top / "read-only", "-s", source / "small", "-b", top / "tree/busy"]
        try:
            return run([program, "-n", STRIDE, *places, top / "tree"])
        finally:
            while len(self.mounted) > before:
                subprocess.run(["umount", self.mounted.pop()], check=True)

    def close(self):
        for at in reversed(self.mounted):
            subprocess.run(["umount", at], check=True)


def run(command):
    done = subprocess.run(command, capture_output=True, check=False, timeout=280 * SLOWNESS)
    assert done.returncode == 0, (done.stderr, done.stdout[-500:])
    return parse(done.stdout.decode("utf-8", "surrogateescape"))


@pytest.fixture
def folder(work_folder):
    path = work_folder / f"posix-{next(_folders)}"
    path.mkdir()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def places(request, folder):
    p = Places(folder, getattr(request, "param", "directory"))
    yield p
    p.close()


def judge(direct, through, least=LEAST):
    compare(direct, through, Exceptions())
    assert len(direct) >= least or int(STRIDE) > 7, f"only {len(direct)} checks"


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse")
@pytest.mark.parametrize(
    "places,flags", [("directory", 0), ("overlay", OF_ROOT)], indirect=["places"], ids=["shared", "exclusive"]
)
def test_behind_dev_fuse(program, folder, places, flags):
    direct = places.direct(program)
    server = fs_server.Server(BUILD / "src/fs/harpoon-fs", folder, ["--allow-devices"])
    try:
        server.wait_mounted()
        server.export("tree", folder / "tree", flags)
        server.export("other", folder / "other", flags)
        server.export("read-only", folder / "read-only", flags | fs_server.READ_ONLY)
        server.export("small", folder / "small", flags)
        through = places.run(program, server.mount)
    finally:
        server.close()
    judge(direct, through)


def guest_options(folder, program):
    def bind(source, target, how="rw"):
        return ["--mount", f"type=bind,src={source},dst={target},options=rbind:{how}:nosuid:nodev"]

    options = bind(program, "/posix", "ro") + bind(folder / "tree", "/vol")
    options += bind(folder / "other", "/other") + bind(folder / "read-only", "/read-only", "ro")
    return options + bind(folder / "small", "/small") + bind(folder / "busy", "/vol/busy")


@pytest.mark.harpoon
def test_volume_of_a_container(box, program, folder, places):
    direct = places.direct(program)
    command = ["/posix", "-n", STRIDE, "-o", "/other", "-r", "/read-only", "-s", "/small", "-b", "/vol/busy", "/vol"]
    done = box.run(*command, options=guest_options(folder, program), timeout=280)
    assert done.code == 0, done.err
    judge(direct, parse(done.out))


@pytest.mark.harpoon
@pytest.mark.parametrize("places", ["overlay"], indirect=True)
def test_root_of_a_container(box, program, folder, places):
    (folder / "tree/busy").rmdir()
    direct = run([program, "-n", STRIDE_OF_ROOT, folder / "tree"])
    options = ["--mount", f"type=bind,src={program},dst=/posix,options=rbind:ro"]
    done = box.sh(f"mkdir /t && chmod 755 /t && exec /posix -n {STRIDE_OF_ROOT} /t", options=options, timeout=280)
    assert done.code == 0, done.err
    judge(direct, parse(done.out), 1000)
