"""A bare machine of harpoon-vmm or of QEMU on KVM, without a shim: what bench/vmm compares."""

import array
import fcntl
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

from . import paths

BUILD = paths.HOST_BUILD
VMM, FS = BUILD / "src/vmm/harpoon-vmm", BUILD / "src/fs/harpoon-fs"
READY_S = 300
APPEND = (
    "earlyprintk=serial,ttyS0,keep console=ttynull quiet panic=-1 reboot=t dummy.numdummies=0 "
    "rcupdate.rcu_expedited=1 no_timer_check random.trust_cpu=on"
)

# src/vmm/vmm_control.h
MACHINE, DEVICE, START, ATTACH = 1, 2, 3, 7
KIND_VSOCK, KIND_RNG, KIND_BALLOON, KIND_BLK, KIND_NET, KIND_FS = 1, 2, 3, 4, 5, 6
EVENT_RUNNING, EVENT_HELLO = 1, 2
VERSION, REQUEST_LEN, EVENT_LEN, EVENT_TEXT = 4, 2024, 240, 16
STREAM_BOTH_WAYS = 7
HELLO_MAGIC = struct.pack("<I", 0x6E707268)

# A guest of bench/vmmguest.c
GUEST_CID, GUEST_PORT, GUEST_ADDRESS, HOST_ADDRESS = 3, 1024, "10.78.0.2", "10.78.0.1"
TAP, MAC = "vmmbench", "02:00:00:00:78:02"
# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
OFFLOADS = 0xF  # TUN_F_CSUM, TSO4, TSO6, TSO_ECN
NET_HEADER = 12


class Spawned:
    """A program with one descriptor beyond the standard ones, which it finds at 3. (subprocess cannot renumber.)"""

    def __init__(self, program, fd):
        actions = [(os.POSIX_SPAWN_DUP2, fd, 3)]
        self.pid = os.posix_spawn(program, [str(program)], os.environ, file_actions=actions)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        os.waitpid(self.pid, 0)


def make_tap():
    subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"], check=True)
    subprocess.run(["ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", TAP], check=True)
    subprocess.run(["ip", "link", "set", TAP, "up"], check=True)


def open_tap():
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", NET_HEADER))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


class Machine:
    """One boot. Its processes are children and end with the `with`. With a disk the guest is bench/vmmguest.c's, has the
    tap and the shared folder besides, and connect() gives connections over vsock."""

    window_mib = 0

    def __init__(self, mem_mib, initrd=paths.INITRD, disk=None, folder=None):
        self.mem_mib, self.initrd, self.disk, self.folder = mem_mib, initrd, disk, folder
        self.control = self.console = None
        self.nr_streams = 0
        self.children, self.fds = [], []
        self.monitor = None
        self.seconds = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            child.kill()
            child.wait()
        for item in self.fds:
            item.close()

    def last_words(self):
        return _rest(self.console) if self.console else ""

    def pair(self, kind):
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.fds += [ours, theirs]
        return ours, theirs

    def spawn(self, command, fds):
        numbers = [item.fileno() for item in fds]
        child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, pass_fds=numbers)
        self.children.append(child)
        return child

    def start_fs(self, option, channel):
        control, theirs = self.pair(socket.SOCK_SEQPACKET)
        command = [FS, f"{option}={channel.fileno()}", f"--control-fd={theirs.fileno()}"]
        if self.folder:
            command.append(f"--export=bench={self.folder}")
        self.spawn(command, [channel, theirs])
        theirs.close()
        channel.close()
        return control


class Harpoon(Machine):
    name = "harpoon-vmm"

    @staticmethod
    def program_size():
        return stripped_size(VMM)

    def _request(self, control, op, body=b"", fds=()):
        data = struct.pack("<II", op, VERSION) + body
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        control.sendmsg([data.ljust(REQUEST_LEN, b"\0")], ancillary)

    def boot(self):
        begin = time.monotonic()
        control, theirs = self.pair(socket.SOCK_SEQPACKET)
        console, console_end = self.pair(socket.SOCK_STREAM)
        self.control, self.console = control, console
        console.setblocking(False)
        trunk, fs_end = self.pair(socket.SOCK_SEQPACKET)
        self.start_fs("--vmm-fd", fs_end)
        self.monitor = Spawned(VMM, theirs.fileno())
        self.children.append(self.monitor)
        theirs.close()
        files = [os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)]
        files += [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (paths.KERNEL, self.initrd)]
        machine = struct.pack("<QI", self.mem_mib << 20, 1) + APPEND.encode()
        self._request(control, MACHINE, machine, [*files, console_end.fileno()])
        for fd in files:
            os.close(fd)
        console_end.close()
        self._request(control, DEVICE, struct.pack("<IIQ", KIND_VSOCK, 0, GUEST_CID))
        fs = struct.pack("<IIQQI6s", KIND_FS, 0, 0, self.window_mib << 20, 0, b"")
        self._request(control, DEVICE, fs + b"harpoon", [trunk.fileno()])
        trunk.close()
        self._request(control, DEVICE, struct.pack("<IIQ", KIND_BALLOON, 0, 0))
        self._request(control, DEVICE, struct.pack("<IIQ", KIND_RNG, 0, 0))
        if self.disk:
            self._add_disk_and_tap(control)
        self._request(control, START)
        self._wait(control, console)
        self.seconds = time.monotonic() - begin

    def _add_disk_and_tap(self, control):
        with open(self.disk, "r+b") as disk:
            self._request(control, DEVICE, struct.pack("<IIQ", KIND_BLK, 0, 0), [disk.fileno()])
        tap = open_tap()
        mac = bytes.fromhex(MAC.replace(":", ""))
        self._request(control, DEVICE, struct.pack("<IIQQI6s", KIND_NET, 0, 0, 0, OFFLOADS, mac), [tap])
        os.close(tap)

    def connect(self):
        """A connection to the guest; whoever has it closes it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.nr_streams += 1
        self._request(self.control, ATTACH, struct.pack("<II", 15 + self.nr_streams, STREAM_BOTH_WAYS), [theirs.fileno()])
        theirs.close()
        return ours

    @staticmethod
    def _wait(control, console):
        control.settimeout(READY_S)
        while True:
            event = control.recv(EVENT_LEN + 1)
            kind = struct.unpack_from("<I", event)[0] if len(event) == EVENT_LEN else 0
            if kind == EVENT_HELLO and event[EVENT_TEXT:].startswith(HELLO_MAGIC):
                return
            if kind != EVENT_RUNNING:
                text = event[EVENT_TEXT:].rstrip(b"\0")
                sys.exit(f"bench: harpoon-vmm: event {kind} of {len(event)} bytes: {text!r}\n{_rest(console)}")


class Qemu(Machine):
    name = "QEMU microvm"

    @staticmethod
    def program_size():
        return stripped_size(paths.QEMU)

    def command(self, *devices):
        return [
            paths.QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-accel", "kvm", "-cpu", "host",
            "-machine", "microvm,pit=on,pic=on,rtc=on,acpi=off,x-option-roms=off,isa-serial=on,memory-backend=ram",
            "-global", "virtio-mmio.force-legacy=off", "-smp", "1", "-m", f"{self.mem_mib}M",
            "-object", f"memory-backend-memfd,id=ram,size={self.mem_mib}M,share=on",
            "-kernel", paths.KERNEL, "-initrd", self.initrd, "-append", APPEND, *devices,
            "-serial", "chardev:console", "-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on",
            "-device", "virtio-rng-device",
        ]  # fmt: skip

    def boot(self):
        if self.disk:
            self.boot_with_disk()
            return
        begin = time.monotonic()
        fs, fs_end = self.pair(socket.SOCK_STREAM)
        self.start_fs("--vhost-user-fd", fs_end)
        agent, agent_end = self.pair(socket.SOCK_STREAM)
        console, console_end = self.pair(socket.SOCK_STREAM)
        command = self.command(
            "-chardev", f"socket,id=console,fd={console_end.fileno()}",
            "-chardev", f"socket,id=agent,fd={agent_end.fileno()}", "-device", "virtio-serial-device,max_ports=2",
            "-device", f"virtserialport,chardev=agent,nr=1,name={_agent_port()}",
            "-chardev", f"socket,id=fs,fd={fs.fileno()}",
            "-device", "vhost-user-fs-device,chardev=fs,queue-size=1024,tag=harpoon",
        )  # fmt: skip
        self.monitor = self.spawn(command, [console_end, agent_end, fs])
        for item in (console_end, agent_end, fs):
            item.close()
        self._wait(agent, console)
        self.seconds = time.monotonic() - begin

    def boot_with_disk(self):
        """vsock is the host kernel's (vhost), the disk has a thread of its own. Tap and file system are QEMU's own part."""
        subprocess.run(["modprobe", "vhost_vsock"], check=True)
        begin = time.monotonic()
        console = self.disk + ".console"
        fs, fs_end = self.pair(socket.SOCK_STREAM)
        self.start_fs("--vhost-user-fd", fs_end)
        command = self.command(
            "-chardev", f"file,id=console,path={console}",
            "-device", f"vhost-vsock-device,guest-cid={GUEST_CID}", "-object", "iothread,id=disk",
            "-drive", f"if=none,id=disk,file={self.disk},format=raw,cache=writeback,aio=threads",
            "-device", "virtio-blk-device,drive=disk,iothread=disk",
            "-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no",
            "-device", f"virtio-net-device,netdev=net,mac={MAC}", "-chardev", f"socket,id=fs,fd={fs.fileno()}",
            "-device", "vhost-user-fs-device,chardev=fs,queue-size=1024,tag=harpoon",
        )  # fmt: skip
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
            listener.bind((socket.VMADDR_CID_ANY, GUEST_PORT))
            listener.listen()
            listener.settimeout(READY_S)
            self.monitor = self.spawn(command, [fs])
            fs.close()
            try:
                with listener.accept()[0] as agent:
                    agent.recv(64)
            except TimeoutError:
                with open(console, encoding="utf-8", errors="replace") as f:
                    sys.exit(f"bench: QEMU's guest does not greet:\n{f.read()[-3000:]}")
        self.seconds = time.monotonic() - begin

    def connect(self):
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.connect((GUEST_CID, GUEST_PORT))
        return sock

    @staticmethod
    def _wait(agent, console):
        """The console is read all the time: QEMU sends single bytes, of which a socket does not hold many."""
        seen = {agent: b"", console: b""}
        deadline = time.monotonic() + READY_S
        with selectors.DefaultSelector() as selector:
            for sock in seen:
                selector.register(sock, selectors.EVENT_READ)
            while HELLO_MAGIC not in seen[agent]:
                ready = selector.select(max(0, deadline - time.monotonic()))
                for key, _ in ready:
                    data = key.fileobj.recv(4096)
                    seen[key.fileobj] += data
                    ready = ready if data else []
                if not ready:
                    text = seen[console][-3000:].decode(errors="replace")
                    sys.exit(f"bench: QEMU's guest does not greet: {seen[agent]!r}\n{text}")


def _agent_port():
    text = (paths.ROOT / "src/hv/qemu_args.h").read_text()
    return re.search(r'#define QEMU_AGENT_PORT "([^"]+)"', text).group(1)


def _rest(sock):
    try:
        return sock.recv(1 << 20)[-3000:].decode(errors="replace")
    except OSError:
        return ""


def stripped_size(program):
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(["strip", "-o", out.name, program], check=True)
        return os.stat(out.name).st_size
