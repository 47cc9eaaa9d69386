"""harpoon-fs behind /dev/fuse, for tests: started, given exports through its control socket, and always ended."""

import array
import os
import pathlib
import socket
import struct
import subprocess
import time

REQUEST = struct.Struct("<II64s")
EXPORT, UNEXPORT = 1, 2
READ_ONLY, EXCLUSIVE, ALLOW_DEVICES = 1, 2, 4
REVOKE = 1


def is_mounted(path):
    wanted = str(path).encode("unicode_escape").decode()
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        return any(line.split()[4] == wanted for line in f)


class Server:
    def __init__(self, program, folder, options=()):
        self.mount = pathlib.Path(folder) / "mnt"
        self.mount.mkdir()
        self.log = pathlib.Path(folder) / "fs.log"
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program, f"--mount={self.mount}", f"--control-fd={theirs.fileno()}", *options],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def wait_mounted(self):
        """Served: the root directory answers (the server has confined itself by then)."""
        deadline = time.monotonic() + 20
        while not is_mounted(self.mount):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "harpoon-fs did not mount"
            time.sleep(0.01)
        os.listdir(self.mount)

    def ask(self, op, name, flags=0, fds=(), raw=None):
        """One control message; the answer's error (0 or negative)."""
        message = raw if raw is not None else REQUEST.pack(op, flags, os.fsencode(name))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([message], rights)
        return struct.unpack("<iI", self.control.recv(64))[0]

    def export(self, name, path, flags=0):
        fd = os.open(path, os.O_PATH)
        try:
            assert self.ask(EXPORT, name, flags, [fd]) == 0
        finally:
            os.close(fd)
        return self.mount / name

    def unexport(self, name, revoke=False):
        assert self.ask(UNEXPORT, name, REVOKE if revoke else 0) == 0

    def close(self):
        """Ends the server in the ordinary way; whatever happens, nothing stays mounted or running."""
        try:
            self.control.close()
            code = self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            if is_mounted(self.mount):
                subprocess.run(["umount", "-l", self.mount], check=True)
        text = self.log.read_text()
        assert code == 0, f"harpoon-fs ended with {code}: {text}"
        assert text == "", text
