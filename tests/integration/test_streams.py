"""Standard streams as a client without ctr's good manners uses them: FIFOs opened late, closed early, never read."""

import hashlib
import os
import subprocess
import threading
import time

import pytest
from conftest import IS_HARPOON
from harpoonlib import ttrpc
from harpoonlib.containerd import wait_until

pytestmark = pytest.mark.skipif(not IS_HARPOON, reason="calls harpoon's shim directly")

LINE = b"0123456789abcde\n"


def rss_kib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))


def fds(pid):
    """What the descriptors of a process are."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    return found


class Warm:
    """A container that only exists for the execs in it."""

    def __init__(self, box, folder):
        self.box, self.folder = box, folder
        self.name = box.detached("sleep", "100000")
        self.shim = box.shim_pid(self.name)
        self.client = box.client(self.name)
        # So that the shim has accepted the connection when its descriptors are counted
        self.client.call("State", id=self.name)
        self.count = 0

    def start(self, script, kinds=ttrpc.Fifos.NAMES, **more):
        """An exec with FIFOs: (its id, the FIFOs)"""
        self.count += 1
        exec_id = f"e{self.count}"
        fifos = ttrpc.Fifos(self.folder, exec_id, kinds)
        self.client.call("Exec", id=self.name, exec_id=exec_id, spec=ttrpc.process_any(["sh", "-c", script]),
                         **fifos.paths, **more)
        self.client.call("Start", id=self.name, exec_id=exec_id)
        return exec_id, fifos

    def end(self, exec_id, fifos, timeout=60):
        """Waits, deletes, removes the FIFOs: the exit status."""
        status = self.client.call("Wait", id=self.name, exec_id=exec_id, timeout=timeout)["exit_status"]
        self.client.call("Delete", id=self.name, exec_id=exec_id)
        fifos.remove()
        return status

    def close_stdin(self, exec_id):
        self.client.call("CloseIO", id=self.name, exec_id=exec_id, stdin=1)


@pytest.fixture
def warm(box, host_folder):
    made = Warm(box, host_folder)
    yield made
    made.client.close()
    box.kill_and_delete(made.name)


def read_all(fd, timeout=60):
    """To the end of the file, as a blocking reader has it."""
    data, deadline = b"", time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            block = os.read(fd, 1 << 20)
        except BlockingIOError:
            time.sleep(0.002)
            continue
        if not block:
            return data
        data += block
    raise TimeoutError(f"no end of the stream, after {len(data)} bytes")


@pytest.mark.slow
def test_stalled_reader_costs_no_memory(box, warm):
    """F30: one process floods a FIFO that nobody reads; the shim stays small, other processes run at full speed."""
    before = rss_kib(warm.shim)
    flood, stalled = warm.start("yes 0123456789abcde | head -c 200000000", ("stdout",))
    for _ in range(3):
        other, fifos = warm.start("yes 0123456789abcde | head -c 4000000", ("stdout",))
        assert read_all(fifos.fds["stdout"]) == LINE * 250000
        assert warm.end(other, fifos) == 0
    assert rss_kib(warm.shim) < before + 1024, "the shim keeps what is not read"
    state = warm.client.call("State", id=warm.name, exec_id=flood)
    assert ttrpc.STATUS[state["status"]] == "RUNNING"
    warm.client.call("Kill", id=warm.name, exec_id=flood, signal=9)
    # The shell is gone, its children hold the stream: the exit does not wait for them
    assert warm.client.call("Wait", id=warm.name, exec_id=flood, timeout=10)["exit_status"] == 137
    warm.client.call("Delete", id=warm.name, exec_id=flood, timeout=20)
    stalled.remove()


def test_reader_goes_and_comes_back(warm):
    """F29: no signal, no loss of what was not read yet, and the next reader goes on where the first one stopped."""
    exec_id, fifos = warm.start("yes 0123456789abcde | head -c 1600000", ("stdout",))
    assert wait_until(lambda: os.path.exists(fifos.paths["stdout"]), 5)
    first = b""
    while len(first) < 16:
        try:
            first += os.read(fifos.fds["stdout"], 16 - len(first))
        except BlockingIOError:
            time.sleep(0.002)
    fifos.close("stdout")
    # Nobody holds the reading end now but the shim
    time.sleep(0.2)
    fifos.fds["stdout"] = os.open(fifos.paths["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    assert first + read_all(fifos.fds["stdout"]) == LINE * 100000
    assert warm.end(exec_id, fifos) == 0


def test_output_before_delete(warm):
    """8 MiB that are read only when Wait was answered, Delete being called at the same time: every byte."""
    for _ in range(3):
        exec_id, fifos = warm.start("yes 0123456789abcde | head -c 8388608", ("stdout",))
        got = []
        reader = threading.Thread(target=lambda into=got, f=fifos: into.append(read_all(f.fds["stdout"])))
        reader.start()
        status = warm.client.call("Wait", id=warm.name, exec_id=exec_id)["exit_status"]
        warm.client.call("Delete", id=warm.name, exec_id=exec_id)
        reader.join()
        fifos.remove()
        assert status == 0 and got[0] == LINE * (8388608 // 16)


def test_background_child_of_an_exec(warm):
    """F32: it holds the output open after the exec's end: Wait does not care, Delete is done within its limit."""
    exec_id, fifos = warm.start("echo out; sleep 1000 & exit 3")
    start = time.monotonic()
    assert warm.client.call("Wait", id=warm.name, exec_id=exec_id, timeout=10)["exit_status"] == 3
    assert time.monotonic() - start < 5
    start = time.monotonic()
    warm.client.call("Delete", id=warm.name, exec_id=exec_id, timeout=30)
    assert time.monotonic() - start < 12
    assert read_all(fifos.fds["stdout"], 5) == b"out\n"
    fifos.remove()


def test_input_closed_before_it_came(warm):
    """F31: CloseIO first, then data, then the writer's end: all of it, then end of file, once."""
    exec_id, fifos = warm.start("cat; echo end")
    warm.close_stdin(exec_id)
    os.write(fifos.fds["stdin"], b"late\n")
    fifos.close("stdin")
    assert read_all(fifos.fds["stdout"]) == b"late\nend\n"
    assert warm.end(exec_id, fifos) == 0


def test_input_closed_before_the_start(warm):
    """CloseIO between Exec and Start."""
    fifos = ttrpc.Fifos(warm.folder, "early")
    warm.client.call("Exec", id=warm.name, exec_id="early", spec=ttrpc.process_any(["sh", "-c", "cat; echo end"]),
                     **fifos.paths)
    warm.close_stdin("early")
    os.write(fifos.fds["stdin"], b"data\n")
    warm.client.call("Start", id=warm.name, exec_id="early")
    fifos.close("stdin")
    assert read_all(fifos.fds["stdout"]) == b"data\nend\n"
    assert warm.end("early", fifos) == 0


def test_input_detached_and_attached_again(warm):
    """A writer that closes is not the end of the input: the next one goes on. Only CloseIO ends it."""
    exec_id, fifos = warm.start("while read -r x; do echo \"<$x>\"; done; echo end", ("stdin", "stdout"))
    got = b""
    for i in range(5):
        os.write(fifos.fds["stdin"], b"%d\n" % i)
        fifos.close("stdin")
        expect = b"<%d>\n" % i
        deadline = time.monotonic() + 20
        while not got.endswith(expect):
            assert time.monotonic() < deadline, got
            try:
                got += os.read(fifos.fds["stdout"], 4096)
            except BlockingIOError:
                time.sleep(0.002)
        fifos.fds["stdin"] = os.open(fifos.paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
    fifos.close("stdin")
    warm.close_stdin(exec_id)
    assert read_all(fifos.fds["stdout"]) == b"end\n"
    assert warm.end(exec_id, fifos) == 0


def test_input_that_nobody_reads(box, warm):
    """F31: the process closes its input; the writer is not told anything bad, no descriptor stays."""
    before = len(os.listdir(f"/proc/{warm.shim}/fd"))
    exec_id, fifos = warm.start("exec <&-; echo closed; sleep 1; exit 6")
    for _ in range(100):
        try:
            os.write(fifos.fds["stdin"], b"x" * 4096)
        except BlockingIOError:
            break
    assert warm.end(exec_id, fifos) == 6
    assert wait_until(lambda: len(os.listdir(f"/proc/{warm.shim}/fd")) == before, 5)


def test_input_never_opened(warm):
    """F31: a FIFO that no client ever opens is an input without data, and no obstacle."""
    path = warm.folder / "alone"
    os.mkfifo(path)
    fifos = ttrpc.Fifos(warm.folder, "alone", ("stdout",))
    warm.client.call("Exec", id=warm.name, exec_id="alone", spec=ttrpc.process_any(["sh", "-c", "echo on; exit 2"]),
                     stdin=str(path), **fifos.paths)
    warm.client.call("Start", id=warm.name, exec_id="alone")
    assert read_all(fifos.fds["stdout"]) == b"on\n"
    assert warm.end("alone", fifos) == 2
    path.unlink()


@pytest.mark.slow
def test_input_of_100_mb(warm):
    exec_id, fifos = warm.start("md5sum", ("stdin", "stdout"))
    block, digest = LINE * 4096, hashlib.md5()
    os.set_blocking(fifos.fds["stdin"], True)
    for _ in range(1600):
        os.write(fifos.fds["stdin"], block)
        digest.update(block)
    fifos.close("stdin")
    warm.close_stdin(exec_id)
    assert read_all(fifos.fds["stdout"]).split()[0].decode() == digest.hexdigest()
    assert warm.end(exec_id, fifos) == 0


@pytest.mark.parametrize("missing", ["stdout", "stderr"])
def test_one_output_only(warm, missing):
    """An output that is not named goes nowhere; the other one works. (runc's shim refuses this.)"""
    kept = "stderr" if missing == "stdout" else "stdout"
    exec_id, fifos = warm.start("echo out; echo err >&2", (kept,))
    assert read_all(fifos.fds[kept]) == (b"out\n" if kept == "stdout" else b"err\n")
    assert warm.end(exec_id, fifos) == 0


@pytest.mark.parametrize("uri,word", [("relative", "absolute"), ("nosuch://x", "nosuch"), ("/no/such/fifo", "/no/such/fifo"),
                                      ("/etc/passwd", "FIFO")])
def test_streams_that_cannot_be(warm, uri, word):
    """Whatever a client names: a sentence with the name in it, and the next exec works."""
    warm.count += 1
    exec_id = f"bad{warm.count}"
    code, text = warm.client.error("Exec", id=warm.name, exec_id=exec_id, stdout=uri, spec=ttrpc.process_any(["true"]))
    if not code:
        code, text = warm.client.error("Start", id=warm.name, exec_id=exec_id)
        warm.client.call("Delete", id=warm.name, exec_id=exec_id)
    assert code and word in text, (code, text)
    good, fifos = warm.start("echo fine", ("stdout",))
    assert read_all(fifos.fds["stdout"]) == b"fine\n"
    assert warm.end(good, fifos) == 0


def test_log_file_that_cannot_be_written(box, host_folder):
    """file:// onto a full file system: the container runs on, the shim says once that output is lost."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", host_folder], check=True)
    start = box.log_size()
    try:
        done = box.sh("yes 0123456789abcde | head -c 1000000; exit 3", options=["--log-uri", f"file://{host_folder}/log"])
        assert done.code == 3, done
        assert (host_folder / "log").stat().st_size <= 64 << 10
    finally:
        subprocess.run(["umount", host_folder], check=True)
    assert box.log_since(start).count("output is lost") == 1


def test_logging_program_that_dies(box, host_folder):
    """binary:// whose program ends at once: the container runs on, and ends with its own code."""
    program = host_folder / "logger"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    done = box.sh("yes 0123456789abcde | head -c 1000000; exit 3", options=["--log-uri", f"binary://{program}"], timeout=60)
    assert done.code == 3, done


# --- many


@pytest.mark.slow
def test_three_hundred_execs_at_once(box, warm):
    """All run at the same time, each with streams of its own; the shim's descriptors and memory are as before."""
    descriptors, memory = fds(warm.shim), rss_kib(warm.shim)
    running = [warm.start(f"read -r x; echo out-{i}-$x; exit $(({i} % 200))", ("stdin", "stdout")) for i in range(300)]
    for _, fifos in running:
        os.write(fifos.fds["stdin"], b"go\n")
    for i, (exec_id, fifos) in enumerate(running):
        assert read_all(fifos.fds["stdout"]) == b"out-%d-go\n" % i
        assert warm.end(exec_id, fifos) == i % 200
    after = []

    def is_as_before():
        after[:] = fds(warm.shim)
        return len(after) <= len(descriptors)

    assert wait_until(is_as_before, 5), "\n".join([*descriptors, "--- after", *after])
    assert rss_kib(warm.shim) < memory + 4096


@pytest.mark.slow
def test_a_thousand_short_execs(warm):
    """F38: none is lost, the shim does not grow."""
    def one(i):
        warm.client.call("Exec", id=warm.name, exec_id=f"s{i}", spec=ttrpc.process_any(["true"]))
        wait = warm.client.send("Wait", id=warm.name, exec_id=f"s{i}")
        warm.client.call("Start", id=warm.name, exec_id=f"s{i}")
        assert warm.client.receive(wait)["exit_status"] == 0
        warm.client.call("Delete", id=warm.name, exec_id=f"s{i}")

    for i in range(100):
        one(i)
    before = rss_kib(warm.shim)
    for i in range(100, 1000):
        one(i)
    assert rss_kib(warm.shim) < before + 256


def test_limit_of_execs(warm):
    """There is one, it is said, and it frees up again."""
    count = 0
    while True:
        code, text = warm.client.error("Exec", id=warm.name, exec_id=f"n{count}", spec=ttrpc.process_any(["true"]))
        if code:
            break
        count += 1
    assert count >= 1000 and code == 8 and str(count) in text, (count, code, text)
    warm.client.call("Delete", id=warm.name, exec_id="n0")
    warm.client.call("Exec", id=warm.name, exec_id="again", spec=ttrpc.process_any(["true"]))
