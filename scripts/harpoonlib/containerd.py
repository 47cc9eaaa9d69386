"""A containerd of our own: Debian's binary with root, state, sockets and log in one folder, nothing system-wide.

One object, one containerd process. `stop` ends containerd only (its shims stay, as in real life); `close` ends
every task first and leaves no process behind.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

from . import flavours, paths

# What plays no part here, and would only warn or take time.
DISABLED = {
    2: (
        "grpc.v1.cri", "tracing.processor.v1.otlp", "internal.v1.opt", "internal.v1.tracing",
        "snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.zfs",
    ),
    3: (
        "grpc.v1.cri", "cri.v1.images", "cri.v1.runtime", "tracing.processor.v1.otlp", "internal.v1.opt",
        "internal.v1.tracing", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.zfs",
        "snapshotter.v1.blockfile", "nri.v1.nri",
    ),
}

CONFIG = """version = {version}
root = "{root}"
state = "{state}"
disabled_plugins = [{disabled}]
[debug]
    level = "{level}"
[grpc]
    address = "{socket}"
"""

HARPOON_CONF = """[vm]
kernel = {kernel}
initrd = {initrd}
backend = {backend}

[programs]
fs_server = {fs_server}
vmm = {vmm}
qemu = {qemu}
cli = {cli}

[templates]
use = {templates}
dir = {template_dir}
"""

# How much longer than on an ordinary machine things may take: every limit here is multiplied by it.
SLOWNESS = float(os.environ.get("HARPOON_TEST_SLOWNESS", "1"))
SLOW_LIMITS = """
[limits]
ready_timeout_ms = {ready}
call_timeout_ms = {call}
"""


def wait_until(predicate, timeout, interval=0.02):
    """Polls until predicate() is true; its last value is the answer, false when time is up."""
    deadline = time.monotonic() + timeout * SLOWNESS
    while True:
        value = predicate()
        if value or time.monotonic() >= deadline:
            return value
        time.sleep(interval)


def template_builders(conf):
    """pids of the processes that make templates for this configuration"""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as f:
                args = f.read().split(b"\0")
            with open(f"/proc/{name}/environ", "rb") as f:
                mine = f"HARPOON_CONFIG={conf}".encode() in f.read().split(b"\0")
        except OSError:
            continue
        if args[1:3] == [b"template", b"build"] and mine:
            found.append(int(name))
    return found


def overlay_works(folder):
    """Whether overlayfs can have its folders here (not on every overlay: containers in containers)."""
    work = pathlib.Path(folder) / "overlay-probe"
    for name in ("lower", "upper", "work", "merged"):
        (work / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={work}/lower,upperdir={work}/upper,workdir={work}/work"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, f"{work}/merged"],
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        subprocess.run(["umount", f"{work}/merged"], check=True)
    shutil.rmtree(work, ignore_errors=True)
    return done.returncode == 0


class Result:
    """A finished command: exit code, raw streams, and the texts of them."""

    def __init__(self, args, code, out, err, seconds):
        self.args, self.code, self.out_bytes, self.err_bytes = args, code, out, err
        self.seconds = seconds

    @property
    def out(self):
        return self.out_bytes.decode(errors="replace")

    @property
    def err(self):
        return self.err_bytes.decode(errors="replace")

    def __repr__(self):
        return (
            f"{' '.join(map(str, self.args))}\nexit code {self.code} after {self.seconds:.2f} s"
            f"\nstdout: {self.out[-2000:]!r}\nstderr: {self.err[-4000:]!r}"
        )


class Containerd:
    """
    `build` is the Meson build folder whose shim and file server are used; `namespace` is containerd's; `flavour` the
    containerd itself (the installed one unless given).
    """

    def __init__(self, folder, build=paths.HOST_BUILD, namespace="default", level="info", env=None, flavour=None):
        self.flavour = flavour or flavours.find(flavours.INSTALLED)
        self.folder = pathlib.Path(folder)
        self.build = pathlib.Path(build)
        self.namespace = namespace
        self.level = level
        self.root = self.folder / "root"
        self.state = self.folder / "state"
        self.fifos = self.folder / "fifo"
        self.socket = self.folder / "containerd.sock"
        self.log = self.folder / "containerd.log"
        self.conf = self.folder / "harpoon.conf"
        self.process = None
        self.snapshotter = "overlayfs"
        self.extra_env = dict(env or {})
        self.templates = os.environ.get("HARPOON_TEST_TEMPLATES", "auto")
        # Kept from one session to the next: what is in it is known by what shaped it.
        self.template_dir = pathlib.Path(os.environ.get("HARPOON_TEST_FOLDER", paths.BUILD)) / "templates"

    def prepare(self):
        """Makes folders and configuration. The socket path must fit in a sockaddr_un."""
        for path in (self.root, self.state, self.fifos, self.folder / "tmp"):
            path.mkdir(parents=True, exist_ok=True)
        if len(f"{self.socket}.ttrpc") > 107:
            raise RuntimeError(f"the path of the source tree is too long for a socket: {self.socket}")
        if not overlay_works(self.root):
            self.snapshotter = "native"
        version = self.flavour.config_version
        config = CONFIG.format(
            version=version, root=self.root, state=self.state, socket=self.socket, level=self.level,
            disabled=", ".join(f'"io.containerd.{name}"' for name in DISABLED[version]),
        )
        (self.folder / "config.toml").write_text(config)
        self.write_conf()

    def write_conf(self, text=None):
        """harpoon.conf of this containerd's shims; `text` None = what the build tree holds."""
        if text is None:
            text = HARPOON_CONF.format(
                kernel=paths.KERNEL,
                initrd=paths.INITRD,
                backend=os.environ.get("HARPOON_TEST_BACKEND", "auto"),
                fs_server=self.build / "src/fs/harpoon-fs",
                vmm=self.build / "src/vmm/harpoon-vmm",
                qemu=paths.QEMU,
                cli=self.build / "src/cli/harpoon",
                templates=self.templates,
                template_dir=self.template_dir,
            )
            if SLOWNESS > 1:
                text += SLOW_LIMITS.format(ready=int(30000 * SLOWNESS), call=int(60000 * SLOWNESS))
        self.conf.write_text(text)

    def build_template(self, *args, timeout=300):
        """The template of the configured size, or of another; there afterwards, whoever made it."""
        command = [self.build / "src/cli/harpoon", "template", "build", *map(str, args)]
        subprocess.run(command, env=self.env(), check=True, timeout=timeout, stdout=subprocess.DEVNULL)

    def wait_for_builders(self, timeout=120):
        """Templates that containers' starts had made in the background are there."""
        return wait_until(lambda: not template_builders(self.conf), timeout, 0.1)

    def env(self):
        env = dict(os.environ)
        # Each containerd has its own runc shim beside it; runc itself is the installed one.
        own = f"{self.build}/src/shim:{self.build}/src/cli:{self.flavour.folder}"
        env["PATH"] = f"{own}:/usr/sbin:/usr/bin:/sbin:/bin"
        env["HARPOON_CONFIG"] = str(self.conf)
        env["TMPDIR"] = str(self.folder / "tmp")
        env["CONTAINERD_SNAPSHOTTER"] = self.snapshotter
        env.update(self.extra_env)
        return env

    def start(self, timeout=30):
        """Starts containerd and returns when it answers."""
        log = open(self.log, "ab", buffering=0)
        with log:
            self.process = subprocess.Popen(
                [self.flavour.folder / "containerd", "--config", str(self.folder / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.env(),
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout * SLOWNESS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if self.socket.exists() and self.ctr("version", timeout=10).code == 0:
                return
            time.sleep(0.02)
        raise RuntimeError(f"containerd did not come up:\n{self.log_tail()}")

    def stop(self, sig=signal.SIGTERM, timeout=20):
        """Ends containerd alone."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(timeout)
        self.process = None

    def restart(self, sig=signal.SIGTERM):
        self.stop(sig)
        self.start()

    def log_tail(self, lines=30):
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return "(no containerd log)"
        return "\n".join(text.splitlines()[-lines:])

    # commands

    def command(self, *args):
        return [str(self.flavour.folder / "ctr"), "-a", str(self.socket), "-n", self.namespace, *map(str, args)]

    def popen(self, *args, **kwargs):
        """ctr in the background; streams are pipes unless given."""
        for stream in ("stdin", "stdout", "stderr"):
            kwargs.setdefault(stream, subprocess.PIPE)
        return subprocess.Popen(self.command(*args), env=self.env(), **kwargs)

    def ctr(self, *args, timeout=60):
        """ctr to its end, without input. Never longer than timeout: then it is killed, and the text says so."""
        start = time.monotonic()
        process = self.popen(*args, stdin=subprocess.DEVNULL)
        return self.finish(process, start, timeout * SLOWNESS)

    def ctr_stdin(self, *args, data, ready=b"READY\n", timeout=60):
        """
        ctr with input. The data goes in when the container has written `ready` to its stdout (it is cut off
        the answer): ctr forgets to pass on an end of input that comes before the task exists.
        """
        start = time.monotonic()
        process = self.popen(*args)
        timeout *= SLOWNESS
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            seen = process.stdout.read(len(ready))
        finally:
            timer.cancel()
        result = self.finish(process, start, timeout, data)
        if seen != ready:
            result.out_bytes = seen + result.out_bytes
            raise RuntimeError(f"the container never said {ready!r}: {result!r}")
        return result

    @staticmethod
    def finish(process, start, timeout, data=None):
        try:
            out, err = process.communicate(data, timeout)
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"\n[no end after {timeout} s, killed]".encode()
            code = -signal.SIGKILL
        return Result(process.args, code, out, err, time.monotonic() - start)

    def run_args(self, image, name, *argv, runtime=paths.RUNTIME, options=(), rm=True):
        """The arguments of `ctr run`."""
        detached = "-d" in options or "--detach" in options
        args = ["run", "--runtime", runtime, "--fifo-dir", self.fifos]
        args += ["--rm"] if rm and not detached else []
        return [*args, *options, image, name, *argv]

    def import_image(self, tar):
        done = self.ctr("image", "import", "--snapshotter", self.snapshotter, tar, timeout=300)
        if done.code:
            raise RuntimeError(f"image import failed: {done!r}")

    def bundle(self, name):
        return self.state / "io.containerd.runtime.v2.task" / self.namespace / name

    def tasks(self):
        """name -> (pid, status)"""
        lines = self.ctr("task", "ls").out.splitlines()[1:]
        return {line.split()[0]: (int(line.split()[1]), line.split()[2]) for line in lines}

    def containers(self):
        return self.ctr("container", "ls", "-q").out.split()

    def remove(self, name):
        """Whatever is left of a container: task, container, snapshot. True when nothing was."""
        clean = True
        if name in self.tasks():
            clean = False
            self.ctr("task", "delete", "-f", name, timeout=20)
        if name in self.containers():
            clean = False
            self.ctr("container", "rm", name, timeout=20)
        return clean

    def remove_all(self):
        """Every container goes. The names of those that were there."""
        names = self.containers()
        for name in names:
            self.remove(name)
        return names

    def close(self):
        """Tasks, then containerd, then what it mounted."""
        try:
            if self.process and self.process.poll() is None:
                self.remove_all()
        finally:
            self.stop()
            self.remove_mounts(self.folder)

    @staticmethod
    def remove_mounts(folder):
        """Unmounts what is mounted below a folder."""
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            points = [line.split()[4] for line in f]
        for point in reversed(points):
            if point.startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", point], check=False)


def vm_info(bundle):
    """The shim's note about a container's VM (backend and why, boot phases); {} when there is none yet."""
    try:
        return json.loads((pathlib.Path(bundle) / "harpoon" / "vm.json").read_text())
    except (OSError, ValueError):
        return {}


def pss_kib(pid):
    """Proportional set size of a process: what it alone uses, plus its part of what it shares."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def shim_pids(name):
    """The shims that serve container `name`, the daemon itself first."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            args = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"containerd-shim-" in args[0] and name.encode() in args:
            found.append(int(entry))
    return sorted(found)


def vm_processes(daemon, name):
    """program -> pids of what runs on the host for one container: its VM's processes, as the shim notes them
    for `delete` (role, pid, start time), and the shim."""
    found = {}
    try:
        lines = (daemon.bundle(name) / "harpoon" / "processes").read_text().splitlines()
    except OSError:
        lines = []
    pids = [int(line.split()[1]) for line in lines] + shim_pids(name)
    for pid in pids:
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except OSError:
            continue
        found.setdefault(program, []).append(pid)
    return found
