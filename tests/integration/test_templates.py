"""VMs are clones of saved ones: alike where they may be, different where they must; and whatever happens to a
template, containers start.

HARPOON_TEST_CLONES says how many clones are compared with each other (12; beyond that their clocks are compared with the
host's, too, which takes a machine that has time).
"""

import errno
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib import paths
from harpoonlib.containerd import template_builders, vm_info, wait_until

pytestmark = [
    pytest.mark.harpoon,
    pytest.mark.skipif(
        os.environ.get("HARPOON_TEST_TEMPLATES", "auto") == "off" or not IS_HARPOON, reason="templates are off"
    ),
]

FEW = 12
CLONES = int(os.environ.get("HARPOON_TEST_CLONES", str(FEW)))
AT_ONCE = 4
KEY = re.compile(r"^[0-9a-f]{32}$")
# Each on a line of its own, random by nature: what two clones of one saved kernel could have in common.
IDENTITY = r"""
head -c 32 /dev/urandom | md5sum
head -c 32 /dev/random | md5sum
cat /proc/sys/kernel/random/uuid
cat /proc/sys/kernel/random/boot_id
mktemp -u XXXXXXXXXXXX
grep -m1 'stack' /proc/self/maps | cut -d- -f1
grep -m1 'vdso' /proc/self/maps | cut -d- -f1
cat /sys/class/net/eth0/address
ip -4 -o addr show dev eth0 | awk '{print $4}'
"""
SOURCES = ("urandom", "random", "uuid", "boot_id", "getrandom (mktemp)", "stack", "vdso", "MAC", "address")
# How often a clone writes down its time
CLOCKS = 20


@pytest.fixture
def store(box):
    """An empty store of templates of this test's own, in effect for what starts from now on."""
    path = box.daemon.folder / f"templates-{box.name()}"
    kept, box.daemon.template_dir = box.daemon.template_dir, path
    box.daemon.write_conf()
    yield Store(box, path)
    assert box.daemon.wait_for_builders()
    box.daemon.template_dir = kept
    box.daemon.write_conf()
    if os.path.ismount(path):
        subprocess.run(["umount", path], check=True)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def shared(box):
    """A folder for a container to write into."""
    path = box.daemon.folder / f"shared-{box.name()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


class Store:
    def __init__(self, box, path):
        self.box, self.path = box, path

    def cli(self, *args, code=0):
        """`harpoon template ...`: what it prints, errors too."""
        command = [self.box.daemon.build / "src/cli/harpoon", "template", *map(str, args)]
        done = subprocess.run(
            command, env=self.box.daemon.env(), timeout=200, check=False, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        assert done.returncode == code, done
        return done.stdout

    def build(self):
        """The folder of the template that is made."""
        self.cli("build")
        return self.only()

    def good(self):
        return sorted(p for p in self.path.glob("*") if KEY.match(p.name))

    def only(self):
        good = self.good()
        assert len(good) == 1, sorted(os.listdir(self.path))
        return good[0]

    def start(self):
        """Starts a container and ends it: (whether it was a clone, what the shim has logged)."""
        offset = self.box.log_size()
        name = self.box.detached("sleep", "1000")
        bundle = self.box.bundle(name)
        assert wait_until(lambda: (bundle / "harpoon/vm.json").exists(), 10)
        info = vm_info(bundle)
        assert self.box.exec(name, "true").code == 0
        self.box.kill_and_delete(name)
        return info["clone"], self.box.log_since(offset)

    def start_is_cold(self, why):
        """A start without a usable template: it boots, says why in one line, and has a new one made."""
        clone, log = self.start()
        assert not clone
        lines = [line for line in log.splitlines() if "boots instead" in line]
        assert len(lines) == 1 and why in lines[0], lines
        assert self.box.daemon.wait_for_builders()

    def start_is_clone(self):
        clone, log = self.start()
        assert clone, log


@pytest.mark.nested_kvm
@pytest.mark.smoke
def test_containers_are_clones(box):
    name = box.detached("sleep", "1000")
    assert wait_until(lambda: (box.bundle(name) / "harpoon/vm.json").exists(), 10)
    assert vm_info(box.bundle(name))["clone"]
    box.kill_and_delete(name)


def test_first_start_boots_and_has_a_template_made(store):
    clone, log = store.start()
    assert not clone
    assert "boots instead" not in log
    assert store.box.daemon.wait_for_builders()
    folder = store.only()
    assert oct(os.stat(store.path).st_mode & 0o777) == "0o700"
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o600"}
    store.start_is_clone()


def clock_error(folder, count):
    """
    The least difference between the time a guest wrote into a file and the host's when the file was written. Neither
    is delayed by the other's load for ever: the least one is the clock's.
    """
    errors = []
    for i in range(count):
        path = folder / str(i)
        seconds = int(re.search(r"tv_sec:\s+(\d+)", path.read_text()).group(1))
        microseconds = int(re.search(r"tv_usec:\s+(\d+)", path.read_text()).group(1))
        errors.append((path.stat().st_mtime_ns - seconds * 10**9 - microseconds * 1000) / 1e6)
    return min(errors, key=abs)


def clock_script(count):
    return f"i=0; while [ $i -lt {count} ]; do adjtimex > /shared/$i; i=$((i+1)); done"


def start_clone(box, shared, i):
    (shared / str(i)).mkdir()
    script = IDENTITY + (f"cd /shared; {clock_script(CLOCKS)}" if CLONES > FEW else "")
    mount = f"type=bind,src={shared}/{i},dst=/shared,options=rbind:rw"
    return box.background("sh", "-c", script, options=["--cni", "--mount", mount])


def test_no_two_clones_are_alike(box, cni, shared):
    seen = [set() for _ in SOURCES]
    clocks = []
    for first in range(0, CLONES, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, CLONES))
        for process in [start_clone(box, shared, i) for i in numbers]:
            out, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
            values = out.decode().split("\n")[:-1]
            assert len(values) == len(SOURCES), out
            for source, value, known in zip(SOURCES, values, seen):
                assert value and value not in known, f"two clones have the same {source}: {value}"
                known.add(value)
        clocks += [clock_error(shared / str(i), CLOCKS) for i in numbers if CLONES > FEW]
    print(f"{len(seen[0])} clones, clocks {min(clocks, default=0):.2f} to {max(clocks, default=0):.2f} ms off")
    assert all(abs(error) < 10 for error in clocks)


def test_wall_clock(box, shared):
    mount = f"type=bind,src={shared},dst=/shared,options=rbind:rw"
    done = box.sh(clock_script(30), options=["--mount", mount])
    assert done.code == 0, done
    assert abs(clock_error(shared, 30)) < 10


def test_wall_clock_after_a_pause(box, shared):
    mount = f"type=bind,src={shared},dst=/shared,options=rbind:rw"
    name = box.detached("sleep", "1000", options=["--mount", mount])
    assert box.ctr("task", "pause", name).code == 0
    time.sleep(1.5)
    assert box.ctr("task", "resume", name).code == 0
    assert box.exec(name, "sh", "-c", clock_script(30)).code == 0
    assert abs(clock_error(shared, 30)) < 10
    box.kill_and_delete(name)


def vcpu_ticks(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_timeline_of_a_start(box):
    """Printed by `harpoon trace`, drawn by bench/timeline: every step that a start has, in order, and over."""
    name = box.detached("sleep", "1000")
    bundle = box.bundle(name)
    assert wait_until(lambda: "start/exec" in (bundle / "harpoon/timeline").read_text(), 10)
    done = subprocess.run(
        [box.daemon.build / "src/cli/harpoon", "trace", bundle], check=True, stdout=subprocess.PIPE, text=True
    )
    rows = {line.split()[0]: line.split()[1:3] for line in done.stdout.splitlines()[1:]}
    for step in ("create", "create/processes", "create/mounts", "create/vmm", "create/configure", "create/container"):
        assert float(rows[step][0]) >= 0 and rows[step][1] != "...", rows
    assert float(rows["create/container"][0]) >= float(rows["create/configure"][0])
    assert rows["run"][1] == "..."
    svg = subprocess.run(
        [paths.ROOT / "bench/timeline", bundle / "harpoon/timeline"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    assert svg.startswith("<svg") and all(step.rpartition("/")[2] in svg for step in rows)
    box.kill_and_delete(name)


def wakeups(pid):
    """How often the threads of a process have gone to sleep."""
    statuses = [task / "status" for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s(\d+)", s.read_text(), re.M)[1]) for s in statuses)


def test_an_idle_guest_sleeps(box):
    """A container that does nothing costs its host next to nothing: no timer of its guest is due at short intervals."""
    name = box.detached("sleep", "1000")
    pid = next(pids[0] for program, pids in box.processes(name).items() if "qemu" in program or "vmm" in program)
    counts = [wakeups(pid)]

    def is_quiet():
        counts.append(wakeups(pid))
        return counts[-1] - counts[-2] < 100

    # Seconds apart; what its start has left to do is over some time
    assert wait_until(is_quiet, 30, 2), counts
    box.kill_and_delete(name)


def test_pause_stops_the_processors(box):
    name = box.detached("sh", "-c", "while :; do :; done")
    pid = next(pids[0] for program, pids in box.processes(name).items() if "qemu" in program or "vmm" in program)
    before = vcpu_ticks(pid)
    assert wait_until(lambda: vcpu_ticks(pid) > before + 10, 30)
    assert box.ctr("task", "pause", name).code == 0
    before = vcpu_ticks(pid)
    time.sleep(1)
    assert vcpu_ticks(pid) - before <= 2
    assert box.ctr("task", "resume", name).code == 0
    assert wait_until(lambda: vcpu_ticks(pid) > before + 10, 30)
    box.kill_and_delete(name)


# --- templates that must not be used


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))


def damage_memory(folder):
    flip(folder / "memory", folder.joinpath("memory").stat().st_size // 2)


def damage_state(folder):
    flip(folder / "state", 1000)


def truncate_memory(folder):
    os.truncate(folder / "memory", folder.joinpath("memory").stat().st_size - 4096)


def half_written(folder):
    (folder / "manifest").unlink()


def remove_state(folder):
    (folder / "state").unlink()


def damage_manifest(folder):
    text = (folder / "manifest").read_text()
    (folder / "manifest").write_text(text.replace("tsc_khz ", "tsc_khz 1"))


def rename_other(folder):
    """A template of another shape under this one's name."""
    text = (folder / "manifest").read_text()
    (folder / "manifest").write_text(signed(text.replace(folder.name, "0" * 32)))


def signed(text):
    body = text[: text.rindex("end ")]
    return f"{body}end {hashlib.sha256(body.encode()).hexdigest()}\n"


@pytest.mark.parametrize(
    "damage,why",
    [
        (damage_memory, "'memory' is damaged"),
        (damage_state, "'state' is damaged"),
        (truncate_memory, "'memory' is not of"),
        (half_written, "read its manifest"),
        (remove_state, "'state'"),
        (damage_manifest, "manifest is damaged"),
        (rename_other, "made as another one"),
    ],
)
def test_damaged_templates_are_set_aside(store, damage, why):
    folder = store.build()
    # It has been used, so its hashes were compared already.
    store.start_is_clone()
    damage(folder)
    store.start_is_cold(why)
    store.start_is_clone()
    assert not list(store.path.glob("*.bad"))


def test_verify_finds_damage(store):
    folder = store.build()
    assert f"{folder.name}: good" in store.cli("verify")
    damage_memory(folder)
    assert "'memory' is damaged" in store.cli("verify", code=1)
    assert "set aside" in store.cli("list")
    assert not store.good()


def file_hash(data):
    """As src/hv/template.c makes it: each page that is not zeros after its offset, then the size."""
    digest = hashlib.sha256()
    for offset in range(0, len(data), 4096):
        page = bytes(data[offset:offset + 4096])
        if any(page):
            digest.update(offset.to_bytes(8, "little") + page)
    digest.update(len(data).to_bytes(8, "little"))
    return digest.hexdigest()


def test_a_state_that_the_vmm_refuses(store):
    """Every hash is right and QEMU says no: the same start goes on with a boot, and no other is tried soon."""
    folder = store.build()
    state = folder / "state"
    data = bytearray(state.read_bytes())
    data[0:4] = b"nope"
    state.write_bytes(data)
    text = (folder / "manifest").read_text()
    new = re.sub(r"(?m)^state (\d+) \w+$", lambda m: f"state {m.group(1)} {file_hash(data)}", text)
    (folder / "manifest").write_text(signed(new))
    store.start_is_cold("failed")
    assert not store.good()
    assert list(store.path.glob("*.failed"))
    clone, log = store.start()
    assert not clone and "in the background" not in log
    store.cli("build")
    store.start_is_clone()


def test_replaced_while_in_use(store):
    store.build()
    offset = store.box.log_size()
    name = store.box.detached("sleep", "1000")
    store.cli("prune", "--all")
    assert not store.good()
    assert store.box.exec(name, "true").code == 0, store.box.log_since(offset)
    store.box.kill_and_delete(name)


def test_another_size_is_another_template(store):
    first = store.build()
    name = store.box.detached("sleep", "1000", options=["--annotation", "io.harpoon.memory=128M"])
    assert wait_until(lambda: (store.box.bundle(name) / "harpoon/vm.json").exists(), 10)
    assert not vm_info(store.box.bundle(name))["clone"]
    store.box.kill_and_delete(name)
    assert store.box.daemon.wait_for_builders()
    assert len(store.good()) == 2 and first in store.good()
    listed = store.cli("list")
    assert "512 MiB" in listed and "128 MiB" in listed


def test_another_kernel_is_another_template(store):
    """The same content, another file: nothing is taken on trust."""
    store.build()
    conf = store.box.daemon.conf.read_text()
    kernel = re.search(r"(?m)^kernel = (.*)$", conf).group(1)
    copy = store.path / "vmlinux"
    shutil.copy(kernel, copy)
    copy.chmod(0o644)
    store.path.chmod(0o755)
    store.box.daemon.conf.write_text(conf.replace(kernel, str(copy)))
    clone, _ = store.start()
    assert not clone
    assert store.box.daemon.wait_for_builders()
    assert len(store.good()) == 2
    store.start_is_clone()


def test_folder_that_others_may_write_to(store):
    store.build()
    store.path.chmod(0o777)
    store.start_is_cold("may be written to by others")
    store.path.chmod(0o700)
    store.start_is_clone()


# --- making them


def test_two_builders(store):
    command = [store.box.daemon.build / "src/cli/harpoon", "template", "build"]
    both = [subprocess.Popen(command, env=store.box.daemon.env(), stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = sorted(process.communicate(timeout=200)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert "is there already" in said[0] + said[1] and "made" in said[0] + said[1], said
    store.only()
    store.start_is_clone()


def test_builder_killed(store):
    command = [store.box.daemon.build / "src/cli/harpoon", "template", "build"]
    with subprocess.Popen(command, env=store.box.daemon.env()) as builder:
        assert wait_until(lambda: (store.path / ".new/console.log").exists(), 30)
        builder.send_signal(signal.SIGKILL)
    # Its QEMU and file server are gone with it (the leak check looks), what it has written is no template
    assert not store.good()
    store.build()
    assert not (store.path / ".new").exists()
    store.start_is_clone()


def test_disk_full(store):
    store.path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", store.path], check=True)
    clone, _ = store.start()
    assert not clone
    assert store.box.daemon.wait_for_builders()
    assert not store.good()
    assert not (store.path / ".new").exists()
    assert "No space left" in store.cli("build", code=1)
    # The failure is known: no container's start tries it again for a while
    clone, log = store.start()
    assert not clone and "in the background" not in log


def test_limits(store):
    conf = store.box.daemon.conf.read_text()
    store.box.daemon.conf.write_text(conf.replace("[templates]\n", "[templates]\nmax = 2\n"))
    for memory in ("128M", "160M", "192M"):
        store.cli("build", "--memory", memory)
    listed = store.cli("list")
    assert len(store.good()) == 2
    assert "192 MiB" in listed and "160 MiB" in listed and "128 MiB" not in listed
    assert "0 removed" in store.cli("prune")
    old = time.time() - 40 * 86400
    for path in store.good()[0].iterdir():
        os.utime(path, (old, old))
    assert "1 removed" in store.cli("prune")
    assert "1 removed" in store.cli("prune", "--all")


def test_templates_off(store):
    store.build()
    conf = store.box.daemon.conf.read_text()
    store.box.daemon.conf.write_text(conf.replace("use = auto", "use = off"))
    clone, _ = store.start()
    assert not clone
    assert not template_builders(store.box.daemon.conf)


def parts_of(path):
    """What is in a file, without its holes: guest memory has gigabytes of them."""
    with open(path, "rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            yield os.pread(file.fileno(), hole - at, at)
            at = hole


def test_a_template_holds_no_secret(store):
    """Nothing of a container or of this host's environment is in what is saved."""
    canary = "canary-5c1d0f7e"
    env = dict(store.box.daemon.env(), CANARY=canary)
    command = [store.box.daemon.build / "src/cli/harpoon", "template", "build"]
    subprocess.run(command, env=env, check=True, timeout=200, stdout=subprocess.DEVNULL)
    host = os.uname().nodename.encode()
    for path in store.only().iterdir():
        for data in parts_of(path):
            assert canary.encode() not in data
            assert len(host) < 6 or host not in data, path
