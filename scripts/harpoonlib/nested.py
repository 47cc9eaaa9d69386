"""A nested host: Debian's kernel in an emulated AMD processor that has virtualization, so with a real /dev/kvm.

Its root is this machine's, read-only through our own harpoon-fs; see tests/nested/init for how it is laid out.
Every process here is a child of this one and dies with it; nothing is left on disk but what the command wrote
to the folders that were shared for that.
"""

import ctypes
import os
import pathlib
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

from . import cpio, hostkernel, hosttsc, paths

FILES = paths.ROOT / "tests/nested"
BUSYBOX = pathlib.Path("/bin/busybox")
SCRATCH_BYTES = 8 << 30
CONSOLE_MAX = 256 << 10
PR_SET_PDEATHSIG = 1
# Five-level paging would make every page walk of the emulator longer, and gives nothing here.
CPU = "max,la57=off"


class Failed(RuntimeError):
    """The nested host itself did not do its work; the text has its console."""


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _initrd(kernel, shares, command):
    archive = cpio.Archive()
    for name in ("bin", "dev", "modules"):
        archive.folder(name)
    archive.device("dev/console", 0o600, 5, 1)
    archive.device("dev/null", 0o666, 1, 3)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    archive.link("bin/sh", "busybox")
    archive.file("init", (FILES / "init").read_bytes(), 0o755)
    archive.file("stage2", (FILES / "stage2").read_bytes(), 0o755)
    files = kernel.module_files(hostkernel.EARLY)
    for path in files:
        archive.file(f"modules/{path.name}", path.read_bytes())
    archive.file("modules/order", "".join(f"{path.name}\n" for path in files).encode())
    archive.file("shares", "".join(f"{path}\n" for path in shares).encode())
    archive.file("command", command.encode())
    return archive.bytes()


def _script(command, cwd, env):
    lines = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    lines += [f"cd {shlex.quote(str(cwd))}", f"exec {shlex.join(map(str, command))}"]
    return "\n".join(lines) + "\n"


class _Pipe:
    """One output of the machine: a pipe whose writing end QEMU has."""

    def __init__(self, sink):
        self.read_fd, self.write_fd = os.pipe()
        self.sink = sink

    def pump(self):
        """False at its end."""
        data = os.read(self.read_fd, 1 << 16)
        if data:
            self.sink(data)
        return bool(data)


class Machine:
    """
    One run of one command. `shares` are folders that the command may write for good, seen at their own paths;
    the source tree and the user's cache are always among them.
    """

    def __init__(self, command, *, cpus=1, mem_mib=3072, cwd=None, env=None, shares=(), build=paths.HOST_BUILD):
        self.command, self.cpus, self.mem_mib, self.build = list(command), cpus, mem_mib, pathlib.Path(build)
        self.cwd = pathlib.Path(cwd or os.getcwd())
        self.env = dict(env or {})
        self.shares = [paths.ROOT, paths.cache_dir(), *map(pathlib.Path, shares)]
        self.console = b""
        self.code = b""
        self._children = []

    def _take_console(self, data):
        self.console = (self.console + data)[-CONSOLE_MAX:]

    def _take_code(self, data):
        self.code += data

    def _spawn(self, command, pass_fds):
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=pass_fds,
            preexec_fn=_die_with_parent,
        )
        self._children.append(child)
        return child

    def _start_file_server(self, kernel, sock):
        command = [self.build / "src/fs/harpoon-fs", f"--vhost-user-fd={sock.fileno()}", "--log-level=error"]
        command += ["--export=root=/:ro:exclusive", f"--export=modules={kernel.modules}:ro:exclusive"]
        # Exclusive: while it runs nobody else changes what it uses, and it keeps what it has read. Without that every
        # program is read anew over the channel each time it is started.
        command += [f"--export=share{i}={path}:exclusive" for i, path in enumerate(self.shares)]
        return self._spawn(command, [sock.fileno()])

    def _qemu_args(self, kernel, initrd, fs_fd, disk_fd, pipes):
        append = "console=ttyS0 quiet cryptomgr.notests panic=-1 tsc=reliable no_timer_check random.trust_cpu=on mitigations=off"
        # See hosttsc: without it the clock in there ran at 1.6 times its speed on a busy machine, and all time limits
        # with it. The other clocks (hpet, acpi_pm) are right, but each reading leaves the emulated processor, and
        # kvmclock in the guests of the nested host is made of its TSC anyway.
        khz = hosttsc.khz()
        append += f" tsc_early_khz={khz}" if khz else ""
        args = [
            paths.QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35,memory-backend=ram,usb=off,sata=off,smbus=off", "-accel", "tcg,thread=multi", "-cpu", CPU,
            "-smp", str(self.cpus), "-m", f"{self.mem_mib}M",
            "-object", f"memory-backend-memfd,id=ram,size={self.mem_mib}M,share=on",
            "-kernel", kernel.image, "-initrd", initrd, "-append", append,
            "-chardev", f"socket,id=fs,fd={fs_fd}",
            "-device", "vhost-user-fs-pci,chardev=fs,queue-size=1024,tag=harpoon",
            "-add-fd", f"fd={disk_fd},set=1",
            "-blockdev", "driver=file,node-name=scratch,filename=/dev/fdset/1,locking=off,cache.no-flush=on",
            "-device", "virtio-blk-pci,drive=scratch",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=8",
        ]  # fmt: skip
        for number, (name, pipe) in enumerate(pipes.items(), 2):
            args += ["-add-fd", f"fd={pipe.write_fd},set={number}"]
            args += ["-chardev", f"file,id={name},path=/dev/fdset/{number},append=on"]
            if name == "console":
                args += ["-serial", f"chardev:{name}"]
            else:
                args += ["-device", f"virtserialport,chardev={name},name={name}"]
        return args

    def _start(self, folder, kernel, pipes):
        initrd, disk = folder / "initrd", folder / "scratch"
        initrd.write_bytes(_initrd(kernel, self.shares, _script(self.command, self.cwd, self.env)))
        with open(disk, "wb") as f:
            f.truncate(SCRATCH_BYTES)
        subprocess.run(
            ["/usr/sbin/mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", disk],
            check=True,
        )
        ours, theirs = socket.socketpair()
        disk_fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._start_file_server(kernel, theirs)
            fds = [ours.fileno(), disk_fd, *(pipe.write_fd for pipe in pipes.values())]
            return self._spawn(self._qemu_args(kernel, initrd, ours.fileno(), disk_fd, pipes), fds)
        finally:
            ours.close()
            theirs.close()
            os.close(disk_fd)
            for pipe in pipes.values():
                os.close(pipe.write_fd)

    def _pump(self, pipes, deadline):
        """Until QEMU has closed everything. False when time is up."""
        with selectors.DefaultSelector() as selector:
            for pipe in pipes.values():
                selector.register(pipe.read_fd, selectors.EVENT_READ, pipe)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(left):
                    if not key.data.pump():
                        selector.unregister(key.fd)
        return True

    def _end(self):
        for child in self._children:
            child.kill()
            child.wait()
        self._children.clear()

    def run(self, timeout, out, err):
        """The exit code of the command; its output goes to the functions `out` and `err` as it comes."""
        kernel = hostkernel.get()
        pipes = {
            "console": _Pipe(self._take_console),
            "out": _Pipe(out),
            "err": _Pipe(err),
            "code": _Pipe(self._take_code),
        }
        deadline = time.monotonic() + timeout
        try:
            with tempfile.TemporaryDirectory(prefix="nested-", dir=paths.BUILD) as folder:
                self._start(pathlib.Path(folder), kernel, pipes)
                in_time = self._pump(pipes, deadline)
        finally:
            self._end()
            for pipe in pipes.values():
                os.close(pipe.read_fd)
        text = self.console.decode(errors="replace")
        if not in_time:
            raise Failed(f"the command did not end in {timeout} s; console of the nested host:\n{text}")
        if not self.code.strip().isdigit():
            raise Failed(f"the nested host ended before the command did; its console:\n{text}")
        return int(self.code)


def _write_all(fd):
    def write(data):
        while data:
            data = data[os.write(fd, data) :]

    return write


def run(command, timeout=900, **kwargs):
    """Runs a command in a nested host with this process's output as its own. Raises Failed."""
    sys.stdout.flush()
    # So that the working folder is removed as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return Machine(command, **kwargs).run(timeout, _write_all(1), _write_all(2))
