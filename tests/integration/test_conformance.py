"""The conformance table: the same config.json under runc and under harpoon, and what the process sees in both.

The cases are in conformance_cases.py. Differences are rows of docs/differences.md; a difference without a row fails, and
so does a row that no case needs any more.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
from conformance import Case, build_probe, compare, documented, make_root, meaning, parse
from conformance_cases import (
    CASES, COMMON_DIFFERS, DOCUMENTED, ELSEWHERE, FIELDS, HOST_FILES, HOST_FILES_2, HOST_HAS_VERSION_2, resources_meaning,
)
from conftest import RUNTIME, remove_cgroups
from harpoonlib import paths
from harpoonlib.containerd import Containerd

pytestmark = pytest.mark.harpoon
RUNC = "io.containerd.runc.v2"

used = set()  # ids of documented differences that were seen
ran = set()  # names of cases


@pytest.fixture(scope="module")
def probe(session_box, work_folder):
    folder = work_folder / "conformance"
    folder.mkdir(exist_ok=True)
    # runc's shim makes folders on its first run that stay
    args = session_box.daemon.run_args(session_box.image("busybox"), session_box.name(), "true", runtime=RUNC)
    done = session_box.ctr(*args)
    assert done.code == 0, done
    yield build_probe(folder)
    shutil.rmtree(folder, ignore_errors=True)
    remove_cgroups("harpoon-test")


class Env:
    """What a case's change may use, for one of the two runtimes."""

    def __init__(self, folder, probe, name):
        self.name = name
        self.root = make_root(folder / f"root-{name}", probe)
        self.host = folder / f"host-{name}"
        self._make_host(probe)
        self.cgroup = f"/harpoon-test/{name}"
        st = os.stat(paths.ROOT)
        self.disk = self._disk(os.major(st.st_dev), os.minor(st.st_dev))

    @staticmethod
    def _disk(major, minor):
        """The whole disk below a file system, for limits; any disk there is, else."""
        for entry in sorted(pathlib.Path("/sys/block").iterdir()):
            dev = (entry / "dev").read_text().strip()
            if (entry / "size").read_text().strip() != "0":
                return tuple(map(int, dev.split(":")))
        return major, minor

    def _make_host(self, probe):
        (self.host / "sub").mkdir(parents=True)
        (self.host / "file").write_text("host\n")
        (self.host / "owned").write_text("x")
        os.chown(self.host / "owned", 12, 34)
        shutil.copy(probe, self.host / "suid")
        (self.host / "suid").chmod(0o6755)
        os.mknod(self.host / "null", 0o20666, os.makedev(1, 3))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(self.host / "sub")], check=True)
        (self.host / "sub/below").write_text("x")

    def chown(self, uid, gid):
        for folder, dirs, names in os.walk(self.root):
            for name in [".", *dirs, *names]:
                os.chown(f"{folder}/{name}", uid, gid, follow_symlinks=False)

    def done(self):
        subprocess.run(["umount", str(self.host / "sub")], check=True)


@pytest.fixture
def envs(work_folder, probe):
    folder = work_folder / f"conformance/{time.monotonic_ns()}"
    folder.mkdir()
    pair = [Env(folder, probe, name) for name in ("runc", "harpoon")]
    yield pair
    for env in pair:
        env.done()
    shutil.rmtree(folder)


# ctr reads config.json into its own structs and drops what is younger than they are. This stands in for the shim:
# it puts the test's own file in the bundle's place and goes on as the shim.
STAND_IN = """#!/bin/sh
for id; do [ "$last" = -id ] && break; last=$id; done
[ -e config.json ] && [ -e "{folder}/$id.json" ] && cp "{folder}/$id.json" config.json
exec {shim} "$@"
"""


def stand_in(box, folder):
    path = folder / "containerd-shim-standin-v1"
    if not path.exists():
        shim = box.daemon.build / "src/shim/containerd-shim-harpoon-v1"
        path.write_text(STAND_IN.format(folder=folder, shim=shim))
        path.chmod(0o755)
    return path


def start(box, spec, env, runtime, *options):
    """ctr run of a spec, with everything that is in it."""
    name = box.name("conf")
    path = env.root.parent / f"{name}.json"
    path.write_text(json.dumps(spec))
    if runtime == RUNTIME:
        runtime = stand_in(box, path.parent)
    args = ["run", *options, "--runtime", runtime, "--fifo-dir", box.daemon.fifos, "--config", path, name]
    return name, box.daemon.popen(*args, stdin=subprocess.DEVNULL), time.monotonic()


def facts_of(done):
    assert done.code == 0, done
    return parse(done.out)


def oracle_facts(box, case, env, done):
    """runc's, once more when ctr lost the output of a container that ended at once: what is tested is the other one."""
    for _ in range(3):
        if done.code == 0 and not done.out:
            _, process, began = start(box, case.spec(env), env, RUNC, "--rm")
            done = Containerd.finish(process, began, 120)
    return facts_of(done)


def host_namespaces():
    found = {}
    for kind in ("pid", "ipc", "uts", "mnt", "net", "cgroup", "user", "time"):
        found[kind] = int(re.search(r"\d+", os.readlink(f"/proc/self/ns/{kind}")).group())
    return found


def check(case, runc, harpoon):
    """Every difference has a reason that is written down."""
    allowed = {**COMMON_DIFFERS, **case.differs}
    unexplained = {}
    for key, (one, other) in compare(runc, harpoon).items():
        ids = [name for name, pattern in allowed.items() if re.match(pattern, key)]
        used.update(ids)
        if not ids:
            unexplained[key] = (one, other)
    assert not unexplained, "fact: (runc, harpoon)\n" + "\n".join(f"{k}: {v}" for k, v in unexplained.items())


def seen(case, facts, is_guest):
    if any(fact.startswith("file:/sys/fs/cgroup/") for fact in case.facts):
        facts = resources_meaning(facts, is_guest)
    return meaning(facts, is_guest, host_namespaces())


CONTROLLERS = ("cpu", "cpuset", "memory", "blkio", "pids", "freezer", "devices", "name=systemd")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_same_as_runc(box, envs, case):
    runtimes = [(envs[1], RUNTIME)] + ([] if case.harpoon_only else [(envs[0], RUNC)])
    started = [start(box, case.spec(env), env, runtime, "--rm") for env, runtime in runtimes]
    done = [Containerd.finish(process, began, 120) for _, process, began in started]
    for one, (name, _, _) in zip(done, started):
        if one.code:
            box.daemon.remove(name)
    harpoon = seen(case, facts_of(done[0]), True)
    assert harpoon
    for key, value in case.expect.items():
        assert harpoon.get(key) == value, (key, harpoon)
    if not case.harpoon_only:
        check(case, seen(case, oracle_facts(box, case, envs[0], done[1]), False), harpoon)
    ran.add(case.name)


def test_host_cgroup_is_the_same(box, envs):
    """cpuset, blkio, shares and quota of the host's cgroup: the same files with the same content as under runc."""
    case = Case("host cgroup", [], ["status"], next(c for c in CASES if c.name == "resources").change)
    found = []
    for env, runtime in zip(envs, (RUNC, RUNTIME)):
        spec = case.spec(env)
        spec["process"]["args"] = ["/bin/sleep", "1000"]
        name, process, began = start(box, spec, env, runtime, "-d", "--null-io")
        done = Containerd.finish(process, began, 90)
        assert done.code == 0, done
        pid = box.daemon.tasks()[name][0]
        lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        where = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
        for controller in ("",) if HOST_HAS_VERSION_2 else CONTROLLERS:
            assert where[controller].endswith(env.cgroup), where
        files = [file.format(env.cgroup) for file in (HOST_FILES_2 if HOST_HAS_VERSION_2 else HOST_FILES)]
        found.append([pathlib.Path(f"/sys/fs/cgroup/{file}").read_text() for file in files])
        box.kill_and_delete(name)
        assert not os.path.exists(f"/sys/fs/cgroup/{'' if HOST_HAS_VERSION_2 else 'cpu'}{env.cgroup}")
    assert found[0] == found[1]


def test_every_field_has_a_case():
    have = {field for case in CASES for field in case.fields} | set(ELSEWHERE)
    assert not sorted(set(FIELDS) - have)
    here = pathlib.Path(__file__).parent
    assert not [path for path in ELSEWHERE.values() if not (here / path).exists()]
    text = (paths.ROOT / "docs/differences.md").read_text()
    assert not [name for name in DOCUMENTED if name not in text]


def test_differences_are_documented_and_alive():
    """After the table: every id it used has a row, every row was needed."""
    allowed = set(COMMON_DIFFERS) | {name for case in CASES for name in case.differs}
    assert allowed == documented(), "ids of the cases and rows of docs/differences.md"
    if ran != {case.name for case in CASES}:
        pytest.skip("not every case of the table ran: nothing can be said about rows that nobody needed")
    # On a host that has the guest's version
    needless = {"cgroup-version"} if HOST_HAS_VERSION_2 else set()
    assert not sorted(documented() - used - needless)
