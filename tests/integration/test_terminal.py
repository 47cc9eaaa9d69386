"""Terminals: size, signals from the keyboard, job control, end of file, much output, coming and going of clients."""

import fcntl
import hashlib
import os
import pty
import re
import select
import struct
import termios
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib import ttrpc
from harpoonlib.containerd import wait_until


class Console:
    """A program (ctr) on a terminal of ours, as under a person's fingers."""

    def __init__(self, box, args, rows=24, columns=80):
        self.leader, follower = pty.openpty()
        self.size(rows, columns)
        self.process = box.daemon.popen(
            *args, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)
        self.text = b""

    def size(self, rows, columns):
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self, deadline):
        ready, _, _ = select.select([self.leader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self.leader, 65536)
        except OSError:
            data = b""
        self.text += data.replace(b"\r", b"")
        return bool(data)

    def expect(self, pattern, timeout=60):
        """Reads until the output since the last match holds the pattern; forgets it up to there."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.text)
            if match:
                self.text = self.text[match.end():]
                return match
            assert self._read(deadline), f"no {pattern!r} in {self.text[-3000:]!r}"

    def type(self, data):
        os.write(self.leader, data)

    def end(self, timeout=60):
        """(all output that was not matched, exit code)"""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        code = self.process.wait(max(1, deadline - time.monotonic()))
        os.close(self.leader)
        return self.text, code


@pytest.fixture
def console(box):
    made = []

    def make(*argv, options=(), **kwargs):
        made.append(Console(box, box.args(*argv, options=["-t", *options]), **kwargs))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_resize(console):
    """Every change of the window arrives, as a size and as a signal."""
    script = "trap 'stty size' WINCH; trap 'exit 4' INT; stty size; echo READY; while :; do sleep 0.05; done"
    c = console("sh", "-c", script, rows=31, columns=101)
    c.expect(rb"READY")
    for rows, columns in ((50, 132), (10, 20), (200, 300)):
        c.size(rows, columns)
        c.expect(rb"\b%d %d\n" % (rows, columns))
    c.type(b"\x03")
    assert c.end()[1] == 4


@pytest.mark.harpoon
def test_resize_storm(box, console):
    """F33: ten thousand changes of size; the last one holds, the shim's memory stays."""
    name = box.name()
    c = Console(box, box.args("sh", "-c", "echo READY; read -r x; stty size; exit 3", name=name, options=["-t"]))
    c.expect(rb"READY")
    shim = box.shim_pid(name)
    with box.client(name) as client:
        client.call("ResizePty", id=name, width=80, height=25)
        before = rss_kib(shim)
        for i in range(10_000):
            client.call("ResizePty", id=name, width=100 + i % 50, height=33)
        client.call("ResizePty", id=name, width=123, height=45)
        assert rss_kib(shim) < before + 1024
    c.type(b"\n")
    c.expect(rb"45 123")
    assert c.end()[1] == 3


def test_interrupt_from_the_keyboard(console):
    """Ctrl-C reaches the program in front, not the shell that waits for it."""
    c = console("sh", "-i")
    c.expect(rb"# ")
    # What is typed before the job is in front would interrupt the shell: the job itself says that it is there
    c.type(b"(echo JOB-RU''NS; exec sleep 1000)\n")
    c.expect(rb"JOB-RUNS\n")
    c.type(b"\x03")
    c.expect(rb"# ")
    c.type(b"echo $?-after\n")
    c.expect(rb"130-after\n")
    c.type(b"exit 7\n")
    assert c.end()[1] == 7


def test_job_control(console):
    """Ctrl-Z stops a job, bg and fg continue it: the terminal is the shell's controlling one."""
    c = console("sh", "-i")
    c.expect(rb"# ")
    c.type(b"(echo CA''T-RUNS; exec cat)\n")
    c.expect(rb"CAT-RUNS\n")
    c.type(b"one\n")
    c.expect(rb"one\none\n")
    c.type(b"\x1a")
    c.expect(rb"Stopped")
    c.type(b"jobs; echo $((40 + 2))-jobs\n")
    c.expect(rb"Stopped")
    c.expect(rb"42-jobs")
    c.type(b"fg\n")
    c.expect(rb"exec cat")
    c.type(b"two\n")
    c.expect(rb"two\ntwo\n")
    c.type(b"\x04")
    c.expect(rb"# ")
    c.type(b"exit 0\n")
    assert c.end()[1] == 0


def test_end_of_file_from_the_keyboard(console):
    """Ctrl-D ends what reads, and only that."""
    c = console("sh", "-c", "echo READY; cat; echo between; cat; exit 5")
    c.expect(rb"READY")
    c.type(b"a\n")
    c.expect(rb"a\na\n")
    c.type(b"\x04")
    c.expect(rb"between")
    c.type(b"\x04")
    assert c.end()[1] == 5


def test_terminal_is_the_controlling_one(console):
    c = console("sh", "-c", "tty; echo hello >/dev/tty; ls -l /proc/self/fd/0 /dev/console; exit 2")
    text, code = c.end()
    assert code == 2 and b"/dev/pts/0" in text and b"hello" in text and b"not a tty" not in text, text


def test_no_output_is_lost_at_the_end(console):
    """F33: the last bytes of a program that writes much and ends at once."""
    for i in range(3):
        c = console("seq", "1", "20000")
        text, code = c.end()
        assert code == 0 and text.split() == [b"%d" % n for n in range(1, 20001)], (i, text[-100:])


@pytest.mark.slow
def test_100_mb_through_a_terminal(console):
    """Each byte, in order; the terminal makes \\r\\n of each \\n."""
    line = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
    count = (100 << 20) // (len(line) + 1)
    # A MiB at a time: an emulated processor would spend minutes on what `yes` and `head` say to each other
    make = f"yes {line.decode()} | head -n {count // 100} > /run/mib"
    c = console("sh", "-c", f"stty -opost; {make}; for i in $(seq 100); do dd if=/run/mib bs=1M 2>/dev/null; done; echo END")
    digest, size, tail = hashlib.sha256(), 0, b""
    while True:
        try:
            data = os.read(c.leader, 1 << 20)
        except OSError:
            break
        if not data:
            break
        data = (tail + data).replace(b"\r\n", b"\n")
        # Half of a \r\n waits for its other half; the last line is not part of the sum
        keep = min(len(data), 16)
        tail, data = data[-keep:], data[:-keep]
        digest.update(data)
        size += len(data)
    digest.update(tail.removesuffix(b"END\n"))
    size += len(tail.removesuffix(b"END\n"))
    assert c.process.wait(30) == 0 and tail.endswith(b"END\n"), tail
    want = hashlib.sha256()
    block = (line + b"\n") * 4096
    for _ in range(count // 4096):
        want.update(block)
    want.update((line + b"\n") * (count % 4096))
    assert (size, digest.hexdigest()) == (count * (len(line) + 1), want.hexdigest())


def rss_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))


def test_attach_and_detach(box):
    """F33: clients come and go (killed, as it may be): the process does not notice, the next one goes on."""
    name = box.name()
    script = "echo READY; n=0; while read -r x; do n=$((n+1)); echo \"$n:$x\"; [ $x = end ] && exit 8; done; exit 9"
    first = Console(box, box.args("sh", "-c", script, name=name, options=["-t"], rm=False))
    first.expect(rb"READY")
    first.type(b"one\n")
    first.expect(rb"1:one")
    first.process.kill()
    first.process.wait()
    assert box.status(name) == "RUNNING"
    for i in range(2, 6):
        c = Console(box, ["task", "attach", name])
        c.type(b"word\n")
        c.expect(rb"%d:word" % i)
        c.process.kill()
        c.process.wait()
        assert box.status(name) == "RUNNING"
    last = Console(box, ["task", "attach", name])
    last.type(b"end\n")
    last.expect(rb"6:end")
    # `ctr task attach` deletes the task at its end
    assert last.end()[1] == 8
    assert wait_until(lambda: name not in box.daemon.tasks(), 10)
    assert box.ctr("container", "rm", name).code == 0
    box.forget_fifos()


@pytest.mark.harpoon
def test_exec_with_a_terminal(box):
    """An exec has a terminal of its own, its own size, and its own controlling one."""
    name = box.detached("sleep", "1000")
    args = ["task", "exec", "--fifo-dir", box.daemon.fifos, "-t", "--exec-id", "t", name, "sh", "-c"]
    c = Console(box, [*args, "until [ \"$(stty size)\" = '44 55' ]; do sleep 0.1; done; tty; read -r x; exit $x"], 44, 55)
    c.expect(rb"/dev/pts/\d+")
    c.type(b"6\n")
    assert c.end()[1] == 6
    box.kill_and_delete(name)


@pytest.mark.skipif(not IS_HARPOON, reason="calls harpoon's shim")
def test_hang_up(box, host_folder):
    """All writers of a terminal's input closed, the shim's own too: the process is hung up, as with runc."""
    name = box.detached("sleep", "1000")
    fifos = ttrpc.Fifos(host_folder, "h", ("stdin", "stdout"))
    got = []
    with box.client(name) as client:
        client.call("Exec", id=name, exec_id="h", terminal=1, spec=ttrpc.process_any(
            ["sh", "-c", "trap 'exit 33' HUP; echo READY; while :; do sleep 0.05; done"], terminal=True),
            stdin=fifos.paths["stdin"], stdout=fifos.paths["stdout"])
        client.call("Start", id=name, exec_id="h")

        def text():
            try:
                got.append(os.read(fifos.fds["stdout"], 4096))
            except BlockingIOError:
                pass
            return b"".join(got)

        assert wait_until(lambda: b"READY" in text(), 20)
        fifos.close("stdin")
        client.call("CloseIO", id=name, exec_id="h", stdin=1)
        assert client.call("Wait", id=name, exec_id="h", timeout=20)["exit_status"] == 33
        client.call("Delete", id=name, exec_id="h")
    fifos.remove()
    box.kill_and_delete(name)
