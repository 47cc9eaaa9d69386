"""Fixtures of the integration tests: one containerd for the session, a leak check after every test.

The runtime is io.containerd.harpoon.v1 unless HARPOON_TEST_RUNTIME names another: what the tests say must hold
for runc too (io.containerd.runc.v2), except for those marked `harpoon`. HARPOON_TEST_BUILD is the Meson build
folder whose programs are used, HARPOON_TEST_CONTAINERD one of the containerds of harpoonlib.flavours,
HARPOON_TEST_BACKEND the hypervisor backend (auto without it), HARPOON_TEST_TEMPLATES whether VMs are clones (auto,
off), HARPOON_TEST_FOLDER where the work is done, HARPOON_TEST_SLOWNESS a factor for all time limits. tests/run sets
them and puts everything in namespaces of its own.
"""

import functools
import glob
import itertools
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))

from harpoonlib import containerd as containerd_module  # noqa: E402
from harpoonlib import flavours, images, leaks, netlab, paths, ttrpc  # noqa: E402
from harpoonlib.containerd import shim_pids, vm_processes, wait_until  # noqa: E402

RUNTIME = os.environ.get("HARPOON_TEST_RUNTIME", paths.RUNTIME)
BUILD = paths.ROOT / os.environ.get("HARPOON_TEST_BUILD", paths.HOST_BUILD)
IS_HARPOON = "harpoon" in RUNTIME
# What the same is asked of, to compare.
RUNC = "io.containerd.runc.v2"
CONTAINERD = os.environ.get("HARPOON_TEST_CONTAINERD", flavours.INSTALLED)
# Emulated guests on a busy machine: no test waits this long in vain, and none is cut off for being slow.
TEST_TIMEOUT = int(300 * containerd_module.SLOWNESS)

IS_NESTED = os.environ.get("HARPOON_TEST_LANE") == "nested"

_ids = itertools.count(1)


def pytest_configure(config):
    if os.environ.get("HARPOON_TEST_NAMESPACES") != "1":
        raise pytest.UsageError(
            "these tests need namespaces of their own: tests/run --integration [pytest arguments]"
        )


def pytest_collection_modifyitems(config, items):
    # Elsewhere there is nothing of it to test: no such host, no clock to be set, no KVM
    elsewhere = [] if IS_NESTED else [item for item in items if item.get_closest_marker("nested")]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]
    skip = pytest.mark.skip(reason=f"about harpoon, and the runtime is {RUNTIME}")
    for item in items:
        if not IS_HARPOON and item.get_closest_marker("harpoon"):
            item.add_marker(skip)


class TestTimeout(Exception):
    __test__ = False


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """Ends a test that hangs."""

    def expired(_signum, _frame):
        raise TestTimeout(f"the test did not end in {TEST_TIMEOUT} s")

    signal.signal(signal.SIGALRM, expired)
    signal.alarm(TEST_TIMEOUT)
    yield
    signal.alarm(0)


def _tail(path, size=6000):
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.stat(path).st_size - size))
            return f.read().decode(errors="replace")
    except OSError as error:
        return str(error)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the logs: containerd's (the shims write there), and each VM's console."""
    outcome = yield
    report = outcome.get_result()
    box = item.funcargs.get("box")
    if not report.failed or not box:
        return
    log = box.log_since(getattr(item, "log_start", 0))
    report.sections.append(("containerd log", log[-8000:]))
    for path in glob.glob(f"{box.daemon.state}/io.containerd.runtime.v2.task/*/*/harpoon/*"):
        if path.endswith((".log", ".json", "processes")):
            report.sections.append((path, _tail(path)))


def _sanitizer_reports(folder):
    return {path: _tail(path) for path in glob.glob(f"{folder}/sanitizer.*")}


class Box:
    """What a test drives: containerd through ctr, with the runtime under test."""

    def __init__(self, daemon):
        self.daemon = daemon
        self._imported = set()

    @functools.cached_property
    def vmm(self):
        """Which program is the VM: a key of harpoon.conf's [programs], and a word in the program's name."""
        backend = os.environ.get("HARPOON_TEST_BACKEND", "auto")
        if backend == "auto":
            command = [BUILD / "src/cli/harpoon", "check"]
            done = subprocess.run(command, env=self.daemon.env(), capture_output=True, text=True, check=False)
            backend = re.search(r"^\S+ +backend +(\w+)", done.stdout, re.M).group(1)
        return "vmm" if backend == "kvm" else "qemu"

    def log_since(self, offset):
        try:
            with open(self.daemon.log, "rb") as f:
                f.seek(offset)
                return f.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no containerd log)"

    def log_size(self):
        return os.stat(self.daemon.log).st_size

    def image(self, name):
        """The reference of image `name` of harpoonlib.images, imported on first use."""
        if name not in self._imported:
            self.daemon.import_image(images.ALL[name]())
            self._imported.add(name)
        return images.REFS[name]

    @staticmethod
    def name(prefix="c"):
        return f"{prefix}{next(_ids)}"

    def ctr(self, *args, **kwargs):
        return self.daemon.ctr(*args, **kwargs)

    def args(self, *argv, name=None, image="busybox", options=(), rm=True, runtime=RUNTIME):
        options = list(options)
        return self.daemon.run_args(
            self.image(image), name or self.name(), *argv, runtime=runtime, options=options, rm=rm
        )

    def run(self, *argv, timeout=90, **kwargs):
        """ctr run --rm to its end."""
        return self.daemon.ctr(*self.args(*argv, **kwargs), timeout=timeout)

    def sh(self, script, **kwargs):
        return self.run("sh", "-c", script, **kwargs)

    def run_stdin(self, script, data, timeout=90, **kwargs):
        """ctr run --rm of a shell script with input."""
        args = self.args("sh", "-c", f"echo READY; {script}", **kwargs)
        return self.daemon.ctr_stdin(*args, data=data, timeout=timeout)

    def background(self, *argv, streams=None, **kwargs):
        """ctr run --rm in the background: a Popen whose standard output and error are pipes."""
        return self.daemon.popen(*self.args(*argv, **kwargs), **(streams or {}))

    def detached(self, *argv, options=(), timeout=90, **kwargs):
        """ctr run -d: the name of the running container."""
        name = kwargs.pop("name", None) or self.name()
        done = self.daemon.ctr(
            *self.args(*argv, name=name, options=["-d", "--null-io", *options], **kwargs),
            timeout=timeout,
        )
        assert done.code == 0, done
        return name

    def status(self, name):
        return self.daemon.tasks().get(name, (0, "GONE"))[1]

    def wait_status(self, name, status, timeout=30):
        assert wait_until(lambda: self.status(name) == status, timeout, 0.05), (
            f"{name} is {self.status(name)}, not {status}, after {timeout} s"
        )

    def kill(self, name, signal_name="KILL"):
        return self.ctr("task", "kill", "-s", signal_name, name)

    def delete(self, name):
        """Deletes a stopped container's task and the container: the exit code of the task."""
        done = self.ctr("task", "delete", name)
        assert done.code == 0, done
        gone = self.ctr("container", "rm", name)
        assert gone.code == 0, gone
        match = re.search(r"exit with non-zero exit code (\d+)", done.err)
        return int(match.group(1)) if match else 0

    def kill_and_delete(self, name):
        """The end of a container that was only there to be looked at."""
        done = self.kill(name)
        assert done.code == 0, done
        self.wait_status(name, "STOPPED")
        assert self.delete(name) == 137

    def forget_fifos(self):
        """Removes the FIFOs of clients that were killed or went away: they are the client's to remove."""
        for path in self.daemon.fifos.iterdir():
            shutil.rmtree(path)

    def collect_garbage(self):
        """containerd removes unused snapshots now, not some time."""
        lease = self.ctr("leases", "create").out.strip()
        self.ctr("leases", "delete", "--sync", lease)

    def bundle(self, name):
        return self.daemon.bundle(name)

    def client(self, name):
        """A second client of a container's shim, beside containerd."""
        service = ttrpc.SERVICE if self.daemon.flavour.major < 2 else ttrpc.SERVICE.replace("v2", "v3")
        return ttrpc.Client(ttrpc.address_of(self.bundle(name)), self.daemon.namespace, service)

    def exec(self, name, *argv, exec_id="e", options=(), timeout=60):
        """ctr task exec to its end."""
        args = ["task", "exec", "--fifo-dir", self.daemon.fifos, "--exec-id", exec_id, *options, name, *argv]
        return self.ctr(*args, timeout=timeout)

    def processes(self, name):
        """The host processes of one container: program -> pids."""
        return vm_processes(self.daemon, name)

    def execute(self, name, *argv):
        """What a command in a running container prints."""
        fifos = ["--fifo-dir", self.daemon.fifos]
        done = self.ctr("task", "exec", *fifos, "--exec-id", self.name("e"), name, *argv)
        assert done.code == 0, done
        return done.out

    @staticmethod
    def shim_pid(name):
        """The shim that serves container `name`."""
        pids = shim_pids(name)
        assert pids, f"no shim of {name} among the processes"
        return pids[0]


class Events:
    """`ctr events` in the background: every event line that arrived, parsed."""

    LINE = re.compile(r"^\S+ \S+ \S+ \S+ (\S+) (\S+) (\{.*\})$")

    def __init__(self, box):
        self.box = box
        self.path = box.daemon.folder / f"events-{next(_ids)}"
        self._file = open(self.path, "wb")
        self.process = box.daemon.popen(
            "events", stdin=subprocess.DEVNULL, stdout=self._file, stderr=subprocess.DEVNULL
        )
        self._wait_subscribed()

    def _wait_subscribed(self):
        """Events that come before the subscription are lost, so make one until it is seen."""
        ref = self.box.image("busybox")

        def seen():
            self.box.ctr("image", "label", ref, f"probe={next(_ids)}")
            return "/images/update" in self.path.read_text()

        assert wait_until(seen, 20, 0.05), "ctr events shows nothing"

    def all(self):
        found = []
        for line in self.path.read_text().splitlines():
            match = self.LINE.match(line)
            if match:
                found.append((match.group(2), json.loads(match.group(3))))
        return found

    def of(self, name):
        """[(last word of the topic, event)] of one container, in the order of arrival."""
        return [
            (topic.rsplit("/", 1)[1], event)
            for topic, event in self.all()
            if topic.startswith("/tasks/") and event.get("container_id") == name
        ]

    def wait(self, name, word, timeout=30):
        assert wait_until(
            lambda: any(topic == word for topic, _ in self.of(name)), timeout, 0.05
        ), f"no event {word} of {name}: {self.of(name)}"
        return self.of(name)

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        self._file.close()
        self.path.unlink()


@pytest.fixture(scope="session")
def work_folder():
    """A folder of this session, below build/ unless told otherwise: on a real file system (overlayfs needs one)."""
    folder = pathlib.Path(os.environ.get("HARPOON_TEST_FOLDER", paths.BUILD / "it")) / secrets.token_hex(3)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def remove_cgroups(name):
    """The folder above the containers' cgroups stays, under runc too; a test run's own is not left to the machine."""
    for path in glob.glob(f"/sys/fs/cgroup/*/{name}") + glob.glob(f"/sys/fs/cgroup/{name}"):
        try:
            os.rmdir(path)
        except OSError as error:
            print(f"cgroup {path} stays: {error}", file=sys.stderr)


@pytest.fixture(scope="session")
def session_box(work_folder):
    options = f"log_path={work_folder}/sanitizer:handle_abort=1:abort_on_error=0"
    env = {
        "ASAN_OPTIONS": f"{options}:detect_leaks=1",
        "UBSAN_OPTIONS": f"log_path={work_folder}/sanitizer:print_stacktrace=1:halt_on_error=1",
    }
    try:
        flavour = flavours.find(CONTAINERD)
    except flavours.Missing as why:
        pytest.skip(str(why))
    daemon = containerd_module.Containerd(
        work_folder, build=BUILD, namespace=f"hp{secrets.token_hex(3)}", level="debug", env=env, flavour=flavour
    )
    daemon.prepare()
    # Where the shims' sockets are when containerd's own folder has too long a name; it stays
    os.makedirs("/run/harpoon/s", 0o700)
    if IS_HARPOON and daemon.templates == "auto":
        daemon.build_template()
    daemon.start()
    box = Box(daemon)
    for name in ("busybox", "layers", "user"):
        box.image(name)
    # The first container makes folders that stay (runc's state root, for one).
    for runtime in {RUNTIME, RUNC}:
        done = box.run("true", runtime=runtime)
        assert done.code == 0, done
    yield box
    daemon.close()
    remove_cgroups(daemon.namespace)


@pytest.fixture(scope="session")
def debian(session_box):
    """The Debian image; skips when it cannot be made (no network and nothing in the cache)."""
    try:
        return session_box.image("debian")
    except (RuntimeError, OSError) as error:
        return pytest.skip(f"no Debian image: {error}")


@pytest.fixture(scope="session")
def programs(work_folder):
    """The static programs of tests/volume and tests/network, by name."""
    folder = work_folder / "programs"
    folder.mkdir()
    for source in sorted([*(paths.ROOT / "tests/volume").glob("*.c"), *(paths.ROOT / "tests/network").glob("*.c")]):
        flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
        subprocess.run(["gcc", *flags, "-o", folder / source.stem, source], check=True)
    return folder


@pytest.fixture
def box(session_box, request):
    """The containerd of the session, with its ordinary configuration."""
    request.node.log_start = session_box.log_size()
    if not session_box.daemon.process or session_box.daemon.process.poll() is not None:
        session_box.daemon.start()
    yield session_box
    session_box.daemon.write_conf()


@pytest.fixture
def window(box):
    """VMs of harpoon-vmm have a window of mapped files: 16 MiB."""
    box.daemon.write_conf(f"{box.daemon.conf.read_text()}\n[vm]\ndax_window = 16\n")


@pytest.fixture
def events(box):
    listener = Events(box)
    yield listener
    listener.close()


@pytest.fixture(autouse=True)
def no_leaks(request):
    """Nothing more than before: the test fails when something of it stays."""
    if "box" not in request.fixturenames:
        checker = leaks.Checker(["/run", "/dev/shm"])
        before = checker.take()
        yield
        grown = checker.grown(before)
        if grown:
            pytest.fail(grown, pytrace=False)
        return

    box = request.getfixturevalue("box")
    daemon = box.daemon
    # A checkout below /tmp keeps the machine's /tmp, where others write, too: it tells nothing then.
    private = os.environ.get("HARPOON_TEST_PRIVATE", "").split(":")
    folders = ["/run", "/dev/shm", *(["/tmp"] if "/tmp" in private else []), daemon.state, daemon.fifos, daemon.folder / "tmp", daemon.folder / "s"]
    folders += glob.glob(f"{daemon.root}/io.containerd.runtime*")

    def containerd_pid():
        return {daemon.process.pid} if daemon.process else set()

    checker = leaks.Checker(folders, daemon.root, daemon.namespace, containerd_pid)
    before = checker.take()
    yield
    problems = []
    if not daemon.process or daemon.process.poll() is not None:
        daemon.start()
    left = daemon.remove_all()
    if not daemon.wait_for_builders():
        problems.append("a template is still being made")
    if left:
        problems.append(f"containers left by the test: {' '.join(left)}")
    grown = checker.grown(before, 0.5)
    if grown:
        box.collect_garbage()
        grown = checker.grown(before)
    if grown:
        problems.append(grown)
    for path, text in _sanitizer_reports(daemon.folder).items():
        problems.append(f"sanitizer report:\n{text}")
        os.unlink(path)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def host_folder(work_folder):
    """An empty folder on the host for a test's own files."""
    folder = work_folder / f"host-{next(_ids)}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def named_namespaces():
    """`ip netns` makes /run/netns a mount point when it is first used, and leaves it."""
    netlab.sh("ip netns add first; ip netns del first")


@pytest.fixture(scope="session")
def cni_folders():
    lab = netlab.Cni()
    yield lab
    lab.close()


@pytest.fixture
def cni(cni_folders, box):
    """CNI with a bridge of both families, 10.88.0.1 and fd00:88::1 here."""
    cni_folders.configure(cni_folders.bridge())
    yield cni_folders
    netlab.sh("ip link del cni0 2>/dev/null || true")


@pytest.fixture
def netns(named_namespaces, box):
    """A named namespace with eth0 (10.77.0.2/24, fd00:77::2), whose other end `far` is here as 10.77.0.1."""
    name = "lab"
    netlab.sh(f"""
        ip netns add {name}
        ip link add far type veth peer name eth0 netns {name}
        ip addr add 10.77.0.1/24 dev far; ip addr add fd00:77::1/64 dev far nodad; ip link set far mtu 1400 up
        ip -n {name} link set eth0 mtu 1400 up
        ip -n {name} addr add 10.77.0.2/24 brd + dev eth0; ip -n {name} addr add fd00:77::2/64 dev eth0 nodad
        ip -n {name} route add default via 10.77.0.1
        ip -n {name} -6 route add default via fd00:77::1
    """)
    # Link-local addresses, on both sides, are checked for duplicates first.
    assert wait_until(lambda: "tentative" not in netlab.sh(f"ip addr; ip -n {name} addr"), 10, 0.1)
    yield name
    netlab.sh(f"ip netns del {name}; ip link del far 2>/dev/null || true")


@pytest.fixture
def uplink(named_namespaces, box):
    """A default route of this host: up0 (192.168.50.2, fd00:50::2) leads to the namespace `outside` (.1)."""
    netlab.sh("""
        ip netns add outside
        ip link add up0 type veth peer name out0 netns outside
        ip addr add 192.168.50.2/24 dev up0; ip addr add fd00:50::2/64 dev up0 nodad; ip link set up0 up
        ip -n outside addr add 192.168.50.1/24 dev out0; ip -n outside addr add fd00:50::1/64 dev out0 nodad
        ip -n outside link set out0 up; ip -n outside link set lo up
        ip route add default via 192.168.50.1; ip -6 route add default via fd00:50::1
        echo 0 65535 > /proc/sys/net/ipv4/ping_group_range # passt pings as an ordinary user does
    """)
    assert wait_until(lambda: "tentative" not in netlab.sh("ip addr; ip -n outside addr"), 10, 0.1)
    yield "outside"
    netlab.sh("ip netns del outside; ip link del up0 2>/dev/null || true")
