"""Disks: block devices and images that the VM gets as virtio-blk; the host mounts none of them.

Images are made with the file systems' own programs, loop devices with losetup. Root file systems that are disks come
from containerd's blockfile snapshotter, and from mount lists made by hand and given to a shim of our own.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess

import pytest
from conftest import BUILD, IS_HARPOON
from harpoonlib import images, ttrpc
from harpoonlib.containerd import wait_until

pytestmark = [pytest.mark.harpoon, pytest.mark.skipif(not IS_HARPOON, reason="about harpoon's disks")]

SHIM = BUILD / "src/shim/containerd-shim-harpoon-v1"
MIB = 1 << 20


def tool(*args, **kwargs):
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        [shutil.which(args[0], path=path) or args[0], *map(str, args[1:])], capture_output=True, text=True, check=False,
        **kwargs,
    )
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A root: busybox and little else."""
    top = tmp_path_factory.mktemp("tree")
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp", "mnt", "run", "data"):
        (top / name).mkdir()
    shutil.copy("/bin/busybox", top / "bin/busybox")
    for name in ("sh", "cat", "echo", "ls", "stat", "dd", "mount", "sync", "mkdir", "grep", "head", "wc", "sleep", "mknod",
                 "sha256sum", "blkdiscard", "rm", "touch", "ln", "id", "df", "blockdev", "true"):
        (top / "bin" / name).symlink_to("busybox")
    (top / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (top / "etc/made").write_text("by hand\n")
    return top


@pytest.fixture
def folder(box):
    """A folder on a real file system, in the session's: the leak check knows loop devices by it."""
    path = box.daemon.folder / box.name("disks")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def blank(path, size=16 * MIB):
    with open(path, "wb") as f:
        f.truncate(size)
    return path


def ext4(path, size=16 * MIB, content=None):
    blank(path, size)
    tool("mkfs.ext4", "-q", "-F", *(["-d", content] if content else []), path)
    return path


def erofs(path, content):
    tool("mkfs.erofs", "--quiet", path, content)
    return path


@contextlib.contextmanager
def loop(image, *more):
    device = tool("losetup", "--find", "--show", *more, image).strip()
    try:
        yield pathlib.Path(device)
    finally:
        tool("losetup", "--detach", device)


def kind(path):
    """What blkid says of a file system's state is the programs' own affair: a check says whether it is clean."""
    done = subprocess.run(["/usr/sbin/e2fsck", "-fn", str(path)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def journal_is_clean(path):
    return "needs_recovery" not in tool("dumpe2fs", "-h", path)


# --- block devices

@pytest.mark.smoke
def test_device(box, folder):
    """ctr run --device: the node with its mode, the disk's bytes in both directions, and not one of the VM's own."""
    image = blank(folder / "img")
    with open(image, "r+b") as f:
        f.write(b"from the host\n")
    with loop(image) as device:
        script = f"""
        set -e
        stat -c '%F %a %u:%g' {device}
        head -n 1 {device}
        echo from inside | dd of={device} bs=512 seek=8 conv=sync 2>/dev/null
        [ "$(cat /sys/block/$(ls /sys/block | grep vd)/size)" = {16 * MIB // 512} ]
        """
        done = box.sh(script, options=["--device", str(device)])
        assert done.code == 0, done
        assert done.out.splitlines() == ["block special file 660 0:6", "from the host"] or done.out.splitlines()[1:] == [
            "from the host"
        ], done
    data = image.read_bytes()
    assert data[4096:4108] == b"from inside\n" and len(data) == 16 * MIB


def test_clones_have_disks_of_their_own(box, folder):
    """A template has empty disks; its clones have others, of any size, read only or not, and all of it is theirs."""
    if box.daemon.templates != "auto":
        pytest.skip("VMs are not clones in this run")
    box.daemon.build_template("--disks", "2")
    for size in (4 * MIB, 64 * MIB):
        raw, image = blank(folder / f"raw{size}", size), ext4(folder / f"img{size}", size)
        with loop(raw) as device:
            number = os.stat(device).st_rdev
            own = Own(box, folder)
            own.spec["linux"]["devices"] = [
                {"path": "/dev/data", "type": "b", "major": os.major(number), "minor": os.minor(number)}
            ]
            own.spec["linux"]["resources"]["devices"].append(
                {"allow": True, "type": "b", "major": os.major(number), "minor": os.minor(number), "access": "rw"}
            )
            own.spec["mounts"].append(
                {"destination": "/data", "type": "ext4", "source": str(image), "options": ["loop"]}
            )
            with own.started() as task:
                task.run("echo raw > /dev/data; echo file > /data/f; cat /data/f; blockdev --getsize64 /dev/data; sleep 1000",
                         until=str(size))
                info = json.loads((own.bundle / "harpoon/vm.json").read_text())
                task.kill()
            assert info["clone"], info
        assert raw.read_bytes()[:4] == b"raw\n"
        assert kind(image)[0] == 0 and journal_is_clean(image)
        own.spec["linux"]["devices"] = []
        own.spec["mounts"].append({**own.spec["mounts"][-1], "destination": "/more", "source": str(raw)})
        with own.shim():
            code, text = own.create()
            assert code and "ext4 file system" in text, text


def test_two_devices_are_told_apart(box, folder):
    """By their serial numbers, whatever order they come in."""
    images = [blank(folder / name, size) for name, size in (("a", 4 * MIB), ("b", 8 * MIB))]
    for image in images:
        with open(image, "r+b") as f:
            f.write(image.name.encode() * 3)
    with loop(images[0]) as a, loop(images[1]) as b:
        script = f"head -c 3 {b}; head -c 3 {a}; blockdev --getsize64 {a}; blockdev --getsize64 {b}"
        done = box.sh(script, options=["--device", str(b), "--device", str(a)])
        assert (done.code, done.out) == (0, f"bbbaaa{4 * MIB}\n{8 * MIB}\n"), done


def test_read_only_device_is_so_on_the_host(box, folder):
    """Rules that allow no writing: the descriptor of the VM's process cannot write either."""
    image = blank(folder / "img")
    with loop(image) as device:
        number = os.stat(device).st_rdev
        own = Own(box, folder)
        own.spec["linux"]["devices"] = [
            {"path": "/dev/data", "type": "b", "major": os.major(number), "minor": os.minor(number), "fileMode": 0o640,
             "uid": 5, "gid": 6}
        ]
        own.spec["linux"]["resources"]["devices"].append(
            {"allow": True, "type": "b", "major": os.major(number), "minor": os.minor(number), "access": "r"}
        )
        with own.started() as task:
            task.run("stat -c '%F %a %u:%g' /dev/data; head -c 4 /dev/data | wc -c; echo x > /dev/data; sleep 1000",
                     until="ermitted")
            modes = {}
            for pid in task.vm_pids():
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        if os.stat(f"/proc/{pid}/fd/{fd}").st_rdev == number:
                            info = pathlib.Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                            modes[fd] = int(info.split("flags:")[1].split()[0], 8) & os.O_ACCMODE
            assert modes and set(modes.values()) == {os.O_RDONLY}, modes
            task.kill()
        out = own.out.read_text()
        assert out.splitlines()[:2] == ["block special file 640 5:6", "4"], out
        assert "not permitted" in out, out
    assert not any(image.read_bytes())


def test_bind_mount_of_a_device(box, folder):
    """The node alone, under another name; a container that the rules give nothing cannot open it."""
    image = blank(folder / "img")
    with loop(image) as device:
        mount = ["--mount", f"type=bind,src={device},dst=/mnt/disk,options=rbind:rw"]
        done = box.sh("stat -c %F /mnt/disk; head -c 1 /mnt/disk", options=mount)
        assert done.out == "block special file\n" and "not permitted" in done.err, done
        done = box.sh(
            "stat -c %F /mnt/disk; echo wrote > /mnt/disk", options=[*mount, "--device", str(device)]
        )
        assert (done.code, done.out) == (0, "block special file\n"), done
    assert image.read_bytes()[:6] == b"wrote\n"


def test_discard_reaches_the_image(box, folder):
    image = folder / "img"
    image.write_bytes(os.urandom(16 * MIB))
    before = os.stat(image).st_blocks
    with loop(image) as device:
        script = f"blkdiscard -o {4 * MIB} -l {8 * MIB} {device} && sync"
        done = box.sh(script, options=["--device", str(device)])
        assert done.code == 0, done
    assert os.stat(image).st_blocks * 512 <= before * 512 - 7 * MIB
    assert not any(image.read_bytes()[4 * MIB:12 * MIB])


def test_devices_that_are_none(box, folder):
    """Missing, empty, in use: the container is not made, the reason is told, and nothing is left."""
    image = blank(folder / "img")
    own = Own(box, folder)

    def refuse(major, minor):
        own.spec["linux"]["devices"] = [{"path": "/dev/x", "type": "b", "major": major, "minor": minor}]
        own.spec["linux"]["resources"]["devices"][1:] = [
            {"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"}
        ]
        with own.shim():
            return own.create()[1]

    assert "does not exist on the host" in refuse(259, 1048000)
    with loop(image) as device:
        number = os.stat(device).st_rdev
        with open(device, "rb+") as f:
            flags = os.open(device, os.O_RDWR | os.O_EXCL)
            try:
                assert "is in use" in refuse(os.major(number), os.minor(number))
            finally:
                os.close(flags)
            f.read(1)
    text = refuse(os.major(number), os.minor(number))
    assert "is empty" in text or "does not exist" in text, text


@pytest.mark.smoke
def test_privileged_container_gets_none_of_the_hosts_disks(box, folder):
    """It lists every device and may open all; none was asked for by number, and one is mounted on the host."""
    point = folder / "point"
    point.mkdir()
    with loop(ext4(folder / "img")) as device:
        tool("mount", device, point)
        try:
            script = f"ls /sys/block | grep -c vd; ls {device}; head -c 1 {device} | wc -c"
            done = box.sh(script, options=["--privileged"])
        finally:
            tool("umount", point)
    assert done.code == 0 and done.out.split() == ["0", str(device), "0"], done


# --- mounts whose source is an image

@pytest.mark.smoke
def test_image_as_a_mount(box, folder):
    """-o loop: an ext4 image, written in the container; read in another one; clean at the end."""
    image = ext4(folder / "img")
    own = Own(box, folder)
    own.spec["mounts"].append({"destination": "/data", "type": "ext4", "source": str(image), "options": ["loop", "nosuid"]})
    done = own.run_to_end("echo kept > /data/f; grep ' /data ' /proc/mounts")
    assert " ext4 rw,nosuid" in done, done
    code, text = kind(image)
    assert code == 0 and journal_is_clean(image), text
    own.spec["mounts"][-1]["options"] = ["loop", "ro"]
    done = own.run_to_end("cat /data/f; touch /data/g 2>&1; true")
    assert done.splitlines()[0] == "kept" and "Read-only" in done, done


def test_disks_in_a_user_namespace(box, folder):
    """Whose root may neither mount a disk nor make a node of one: both are there all the same."""
    data, image = blank(folder / "raw"), ext4(folder / "img")
    data.write_bytes(b"raw\n" + data.read_bytes()[4:])
    with loop(data) as device:
        number = os.stat(device).st_rdev
        own = Own(box, folder)
        linux = own.spec["linux"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 65536}]
        linux["devices"] = [{"path": "/dev/data", "type": "b", "major": os.major(number), "minor": os.minor(number)}]
        linux["resources"]["devices"].append(
            {"allow": True, "type": "b", "major": os.major(number), "minor": os.minor(number), "access": "rwm"}
        )
        own.spec["mounts"].append({"destination": "/data", "type": "ext4", "source": str(image), "options": ["loop"]})
        out = own.run_to_end("head -n 1 /dev/data; echo x > /data/f; cat /data/f; grep ' /data ' /proc/mounts")
    assert out.split()[:2] == ["raw", "x"] and " /data ext4 rw" in out, out


def test_image_in_use(box, folder):
    """A writable image is one container's at a time."""
    image = ext4(folder / "img")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    mount = {"destination": "/data", "type": "ext4", "source": str(image), "options": ["loop"]}
    one, two = Own(box, folder / "one"), Own(box, folder / "two")
    for own in one, two:
        own.spec["mounts"].append(mount)
    with one.started() as task:
        task.run("echo up; sleep 1000", until="up")
        with two.shim():
            code, text = two.create()
            assert code and "is in use" in text, text
        task.kill()
    assert two.run_to_end("ls /data") == "lost+found\n"


IO = {"io": (6, {"usage": (1, [{"major": (1, "u"), "minor": (2, "u"), "rbytes": (3, "u"), "wbytes": (4, "u")}])})}


def test_stats_count_what_goes_to_a_disk(box, folder):
    """8 MiB written and synced are 8 MiB in the statistics, and not much more."""
    image = ext4(folder / "img", 32 * MIB)
    own = Own(box, folder)
    own.spec["mounts"].append({"destination": "/data", "type": "ext4", "source": str(image), "options": ["loop"]})
    with own.started() as task:
        task.run("dd if=/dev/zero of=/data/f bs=1M count=8 conv=fsync 2>/dev/null; echo up; sleep 1000", until="up")
        found = ttrpc.decode(IO, own.client.call("Stats", id=own.id)["stats"]["value"])["io"]["usage"]
        assert any(8 * MIB <= disk["wbytes"] < 10 * MIB for disk in found), found
        task.kill()


# --- root file systems

class Own:
    """A bundle and a shim of our own: Create gets the list of mounts that a test wants. Root: a folder, unless told."""

    def __init__(self, box, folder):
        self.box, self.folder = box, folder
        self.spec = json.loads(box.ctr("oci", "spec").out)
        self.spec["process"] |= {"terminal": False, "args": ["/bin/true"]}
        self.spec["root"]["readonly"] = False
        self.rootfs = [{"type": "bind", "source": str(TREE["path"]), "options": ["rbind", "rw"]}]
        self.id = self.bundle = self.out = self.client = None

    @contextlib.contextmanager
    def shim(self):
        self.id = self.box.name("own")
        self.bundle = self.folder / self.id
        (self.bundle / "rootfs").mkdir(parents=True)
        os.mkfifo(self.bundle / "log", 0o700)
        self.out = self.folder / f"{self.id}.out"
        self.spec["linux"]["cgroupsPath"] = f"/{self.box.daemon.namespace}/{self.id}"
        log = os.open(self.bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        try:
            (self.bundle / "config.json").write_text(json.dumps(self.spec))
            path = self.command("start").decode().removeprefix("unix://")
            with ttrpc.Client(path, self.box.daemon.namespace) as self.client:
                try:
                    yield
                except BaseException:
                    self.take_away()
                    raise
                self.client.call("Shutdown", id=self.id)
            assert wait_until(lambda: not os.path.exists(path), 20)
            self.command("delete", "-bundle", str(self.bundle))
        finally:
            os.close(log)
            # Fails when it is mounted, as it may be after a failure: nothing is deleted through it
            os.rmdir(self.bundle / "rootfs")
            shutil.rmtree(self.bundle)

    def take_away(self):
        """What a test that failed may leave running."""
        self.client.error("Kill", id=self.id, signal=signal.SIGKILL)
        with contextlib.suppress(Exception):
            self.client.call("Wait", id=self.id)
            self.client.call("Delete", id=self.id)
        self.client.error("Shutdown", id=self.id)

    def command(self, *args):
        argv = [SHIM, "-namespace", self.box.daemon.namespace, "-address", str(self.box.daemon.socket),
                "-publish-binary", "/bin/true", "-id", self.id, *args]
        env = self.box.daemon.env() | {"TTRPC_ADDRESS": f"{self.box.daemon.socket}.ttrpc"}
        done = subprocess.run(argv, cwd=self.bundle, env=env, input=b"", capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done
        return done.stdout

    def create(self):
        (self.bundle / "config.json").write_text(json.dumps(self.spec))
        self.out.touch()
        return self.client.error(
            "Create", 100, id=self.id, bundle=str(self.bundle), rootfs=self.rootfs, stdout=f"file://{self.out}",
            stderr=f"file://{self.out}",
        )

    @contextlib.contextmanager
    def started(self):
        with self.shim():
            yield self
            self.client.call("Delete", id=self.id)

    def run(self, script, until=None):
        self.spec["process"]["args"] = ["/bin/sh", "-c", script]
        code, text = self.create()
        assert code == 0, text
        self.wait = self.client.send("Wait", id=self.id)
        self.client.call("Start", id=self.id)
        if until:
            assert wait_until(lambda: until in self.out.read_text(), 30), self.out.read_text()

    def vm_pids(self):
        return [int(line.split()[1]) for line in (self.bundle / "harpoon/processes").read_text().splitlines()]

    def kill(self):
        self.client.call("Kill", id=self.id, signal=signal.SIGKILL)
        assert self.client.receive(self.wait, 100)["exit_status"] == 137

    def run_to_end(self, script):
        with self.started():
            self.run(script)
            status = self.client.receive(self.wait, 100)["exit_status"]
            text = self.out.read_text()
            assert status == 0, text
        return text


TREE = {}


@pytest.fixture(autouse=True)
def _tree(tree):
    TREE["path"] = tree


def mounts_of(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        return [line for line in f if str(path) in line]


@pytest.mark.smoke
@pytest.mark.parametrize("kind_of", ["ext4", "xfs", "erofs"])
def test_root_on_an_image(box, folder, tree, kind_of):
    """The image is the root, and the host never mounts it; what is written is in the image, which is clean."""
    image = folder / "root.img"
    if kind_of == "ext4":
        ext4(image, 32 * MIB, tree)
    elif kind_of == "erofs":
        erofs(image, tree)
    else:
        # mkfs.xfs fills no tree: the host's kernel does, before the test
        tool("mkfs.xfs", "-q", blank(image, 320 * MIB))
        point = folder / "point"
        point.mkdir()
        tool("mount", "-o", "loop", image, point)
        tool("cp", "-a", f"{tree}/.", point)
        tool("umount", point)
        point.rmdir()
    own = Own(box, folder)
    writable = kind_of != "erofs"
    own.rootfs = [{"type": kind_of, "source": str(image), "options": ["rw" if writable else "ro", "loop"]}]
    with own.started() as task:
        change = "echo new > /new" if writable else "touch /new"
        task.run(f"grep ' / ' /proc/mounts; cat /etc/made; {change}; echo up; sleep 1000", until="up")
        assert not mounts_of(image) and not mounts_of(own.bundle), mounts_of(own.bundle)
        task.kill()
    out = own.out.read_text()
    assert f" / {kind_of} {'rw' if writable else 'ro'}" in out, out
    if not writable:
        assert "Read-only" in out, out
        return
    assert own.run_to_end("cat /new") == "new\n"
    if kind_of == "ext4":
        code, text = kind(image)
        assert code == 0 and journal_is_clean(image), text


def remove_snapshots(box, snapshotter):
    snapshots = ["snapshots", "--snapshotter", snapshotter]
    while keys := [line.split()[0] for line in box.ctr(*snapshots, "ls").out.splitlines()[1:]]:
        # From the leaves to the root
        tries = [box.ctr(*snapshots, "rm", key) for key in keys]
        # The garbage collector may have been faster
        assert any(done.code == 0 or "not found" in done.err for done in tries), tries
    box.collect_garbage()


def import_layers(box, snapshotter):
    # Not by containerd 2's transfer service, which would have to be told of this snapshotter, too
    local = ["--local"] if box.daemon.flavour.major >= 2 else []
    done = box.ctr("image", "import", *local, "--snapshotter", snapshotter, images.ALL["layers"](), timeout=120)
    assert done.code == 0, done


LAYERS = "cat /data/replace; ls -A /data/opaque; stat -c '%a %u:%g' /data/mode; grep ' / ' /proc/mounts; echo x > /f"


@pytest.fixture
def blockfile(box, folder):
    """This containerd with its blockfile snapshotter: snapshots are ext4 images."""
    if (box.daemon.flavour.major, box.daemon.flavour.minor) < (1, 7):
        pytest.skip("containerd has a blockfile snapshotter from 1.7 on")
    config = box.daemon.folder / "config.toml"
    before = config.read_text()
    scratch = ext4(folder / "scratch", 64 * MIB)
    more = f"""
[plugins."io.containerd.snapshotter.v1.blockfile"]
    scratch_file = "{scratch}"
    fs_type = "ext4"
    mount_options = []
    recreate_scratch = true
"""
    config.write_text(before.replace(', "io.containerd.snapshotter.v1.blockfile"', "") + more)
    box.daemon.restart()
    yield "blockfile"
    remove_snapshots(box, "blockfile")
    config.write_text(before)
    box.daemon.restart()
    shutil.rmtree(box.daemon.root / "io.containerd.snapshotter.v1.blockfile")


@pytest.mark.versions
def test_blockfile_snapshotter(box, blockfile):
    """containerd's own: two containers of one image, each with a root of its own that the host never mounts."""
    import_layers(box, blockfile)
    name = box.detached("sh", "-c", "echo mine > /f; sleep 1000", image="layers", options=["--snapshotter", blockfile])
    assert not mounts_of("io.containerd.snapshotter.v1.blockfile"), mounts_of("blockfile")
    done = box.sh("[ ! -e /f ]; " + LAYERS, image="layers", options=["--snapshotter", blockfile])
    lines = done.out.splitlines()
    assert done.code == 0 and lines[:3] == ["new", "above", "4750 1000:2000"] and " / ext4 rw" in lines[3], done
    assert box.execute(name, "cat", "/f") == "mine\n"
    box.kill_and_delete(name)


@pytest.mark.versions
@pytest.mark.parametrize("snapshotter", ["native", "erofs"])
def test_snapshotters_that_give_folders(box, snapshotter):
    """containerd 2.1 mounts erofs layers itself and hands over an overlay: folders, as with the native one."""
    if snapshotter == "erofs" and (box.daemon.flavour.major, box.daemon.flavour.minor) < (2, 1):
        pytest.skip("containerd has an erofs snapshotter from 2.1 on")
    import_layers(box, snapshotter)
    try:
        done = box.sh(LAYERS, image="layers", options=["--snapshotter", snapshotter])
        lines = done.out.splitlines()
        assert done.code == 0 and lines[:3] == ["new", "above", "4750 1000:2000"] and " / virtiofs rw" in lines[3], done
    finally:
        remove_snapshots(box, snapshotter)


def test_root_on_a_block_device(box, folder, tree):
    """As devmapper hands it over: a device, ext4, no loop."""
    image = ext4(folder / "root.img", 32 * MIB, tree)
    with loop(image) as device:
        own = Own(box, folder)
        own.rootfs = [{"type": "ext4", "source": str(device), "options": []}]
        assert own.run_to_end("cat /etc/made; echo x > /new") == "by hand\n"
        # As if it were the container's own device: nothing of the root's disk is for its processes
        assert "not permitted" in own.run_to_end("mknod /d b 254 0; head -c 1 /d 2>&1; true")
        own.spec["root"]["readonly"] = True
        assert "Read-only" in own.run_to_end("cat /new; touch /other 2>&1; true")


def test_overlay_of_disks(box, folder, tree):
    """Layers that are erofs images, a writable layer that is ext4, containerd's templates; made in the guest."""
    layer = folder / "layer"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc/made").write_text("by the upper of two\n")
    lower = [erofs(folder / "0.erofs", tree), erofs(folder / "1.erofs", layer)]
    upper = ext4(folder / "rw.img")
    own = Own(box, folder)
    own.rootfs = [
        {"type": "ext4", "source": str(upper), "options": ["rw", "loop"]},
        *({"type": "erofs", "source": str(path), "options": ["ro", "loop"]} for path in reversed(lower)),
        {"type": "format/mkdir/overlay", "source": "overlay", "options": [
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
            "workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper", "lowerdir={{ overlay 1 2 }}"]},
    ]
    assert own.run_to_end("grep -c ' / overlay ' /proc/mounts; cat /etc/made; echo x > /etc/made; rm /etc/passwd") == (
        "1\nby the upper of two\n")
    code, text = kind(upper)
    assert code == 0 and journal_is_clean(upper), text
    assert own.run_to_end("cat /etc/made; ls /etc") == "x\nmade\n"


def test_overlay_with_folders_of_the_host(box, folder, tree):
    """Lower layers may be folders; they are shared, read only. A writable one is refused, with what to do."""
    image = folder / "layer"
    (image / "etc").mkdir(parents=True)
    (image / "etc/made").write_text("in erofs\n")
    upper = ext4(folder / "rw.img")
    own = Own(box, folder)
    own.rootfs = [
        {"type": "ext4", "source": str(upper), "options": ["loop"]},
        {"type": "erofs", "source": str(erofs(folder / "0.erofs", image)), "options": ["ro", "loop"]},
        {"type": "format/mkdir/overlay", "source": "overlay", "options": [
            "X-containerd.mkdir.path={{ mount 0 }}/u:0755", "X-containerd.mkdir.path={{ mount 0 }}/w:0755",
            "upperdir={{ mount 0 }}/u", "workdir={{ mount 0 }}/w", f"lowerdir={{{{ mount 1 }}}}:{tree}"]},
    ]
    assert own.run_to_end("cat /etc/made; echo x > /etc/new; ls /etc") == "in erofs\nmade\nnew\npasswd\n"
    assert not (tree / "etc/new").exists()
    own.rootfs[2]["options"][2:4] = [f"upperdir={folder}/u", f"workdir={folder}/w"]
    with own.shim():
        code, text = own.create()
        assert code and "default_size" in text, text


@pytest.mark.smoke
def test_roots_that_are_none(box, folder, tree):
    """F55: corrupt, cut short, of another kind, missing, no image: a sentence each, and nothing left."""
    own = Own(box, folder)
    good = ext4(folder / "good", 32 * MIB, tree)
    corrupt = folder / "corrupt"
    data = bytearray(good.read_bytes())
    data[1024:2048] = os.urandom(1024)
    corrupt.write_bytes(data)
    torn = folder / "torn"
    torn.write_bytes(good.read_bytes()[: 8 * MIB])
    (folder / "folder").mkdir()
    cases = [
        (corrupt, "ext4", ["corrupt", "ext4 file system"]),
        (torn, "ext4", ["torn", "ext4 file system"]),
        (good, "xfs", ["good", "xfs file system"]),
        (folder / "missing", "ext4", ["missing", "No such file"]),
        (folder / "folder", "ext4", ["neither a block device nor an image"]),
        (blank(folder / "empty", 0), "ext4", ["is empty"]),
        (good, "nosuchfs", ["not in the guest's kernel"]),
    ]
    for path, kind_of, words in cases:
        own.rootfs = [{"type": kind_of, "source": str(path), "options": ["loop"]}]
        with own.shim():
            code, text = own.create()
            assert code and all(word in text for word in words), (path, text)
    assert own.folder.exists()


def test_more_disks_than_there_is_room_for(box, folder):
    own = Own(box, folder)
    own.spec["mounts"] += [
        {"destination": f"/d{i}", "type": "ext4", "source": str(blank(folder / f"d{i}", MIB)), "options": ["loop"]}
        for i in range(17)
    ]
    with own.shim():
        code, text = own.create()
        assert code and "disks" in text, text


def test_killed_vm_loses_nothing_that_was_synced(box, folder, tree):
    """F01 with a disk for a root: the journal does its work at the next start."""
    image = ext4(folder / "root.img", 32 * MIB, tree)
    own = Own(box, folder)
    own.rootfs = [{"type": "ext4", "source": str(image), "options": ["loop"]}]
    with own.started() as task:
        task.run("echo kept > /kept; sync; echo synced; sleep 1000", until="synced")
        os.kill(task.vm_pids()[0], signal.SIGKILL)
        assert own.client.receive(task.wait, 60)["exit_status"] == 137
    assert own.run_to_end("cat /kept") == "kept\n"
    assert kind(image)[0] == 0


def test_file_filler_fills_its_own_disk(box, folder, tree):
    """F41: ENOSPC inside; the image does not grow."""
    image = ext4(folder / "root.img", 32 * MIB, tree)
    own = Own(box, folder)
    own.rootfs = [{"type": "ext4", "source": str(image), "options": ["loop"]}]
    out = own.run_to_end("dd if=/dev/zero of=/fill bs=1M 2>&1; rm /fill; echo after > /f; cat /f")
    assert "No space left" in out and out.endswith("after\n"), out
    assert os.stat(image).st_size == 32 * MIB
