"""Standard input, output and error of a container: every byte, in order, to the end."""

import fcntl
import hashlib
import os
import pty
import random
import struct
import subprocess
import termios
import threading

import pytest
from harpoonlib.containerd import wait_until

# What the containers print without end: 64 KiB of fixed bytes, over and over.
PATTERN_KIB = 64


def pattern_sha256(mib):
    """sha256 of `mib` MiB as `yes 0123456789abcde` prints them."""
    block = b"0123456789abcde\n" * (PATTERN_KIB * 1024 // 16)
    digest = hashlib.sha256()
    for _ in range(mib * 1024 // PATTERN_KIB):
        digest.update(block)
    return digest.hexdigest()


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_out_and_err_are_separate(box):
    done = box.sh("echo out; echo err >&2; echo out2; echo err2 >&2")
    assert (done.code, done.out, done.err) == (0, "out\nout2\n", "err\nerr2\n"), done


@pytest.mark.smoke
def test_binary_output(box):
    done = box.sh("i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %03o $i)\"; i=$((i+1)); done")
    assert done.out_bytes == bytes(range(256)), done


def hash_stream(stream, result):
    digest, size = hashlib.sha256(), 0
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
        size += len(block)
    result.extend([size, digest.hexdigest()])


@pytest.mark.slow
def test_100_mb_through_stdout(box):
    process = box.background("sh", "-c", "yes 0123456789abcde | head -c 104857600; echo done >&2")
    got = []
    reader = threading.Thread(target=hash_stream, args=(process.stdout, got))
    reader.start()
    err = process.stderr.read()
    reader.join()
    assert process.wait(30) == 0 and err == b"done\n", err
    assert got == [100 << 20, pattern_sha256(100)]


@pytest.mark.smoke
def test_both_streams_full_at_once(box):
    """Neither stream may wait for the other."""
    script = "yes 0123456789abcde | head -c 8388608 >&2 & yes 0123456789abcde | head -c 8388608; wait"
    process = box.background("sh", "-c", script)
    out, err = [], []
    threads = [
        threading.Thread(target=hash_stream, args=(process.stdout, out)),
        threading.Thread(target=hash_stream, args=(process.stderr, err)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait(30) == 0
    assert out == err == [8 << 20, pattern_sha256(8)]


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_stdin_small(box):
    done = box.run_stdin("cat; echo end", b"some\0bytes\xff\n")
    assert done.code == 0, done
    assert done.out_bytes == b"some\0bytes\xff\nend\n", done


def test_stdin_empty(box):
    done = box.run_stdin("cat; echo end", b"")
    assert (done.code, done.out) == (0, "end\n"), done


def test_stdin_20_mb(box):
    data = random.Random(7).randbytes(20 << 20)
    done = box.run_stdin("sha256sum", data)
    assert done.code == 0, done
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_stdin_through_and_back(box):
    data = random.Random(8).randbytes(4 << 20)
    done = box.run_stdin("cat", data)
    assert done.code == 0, repr(done)[-3000:]
    assert done.out_bytes == data


def test_stdin_not_read(box):
    """A process that never reads its input ends all the same, with more input waiting than any buffer holds."""
    process = box.background("sh", "-c", "echo READY; exit 3")
    assert process.stdout.read(6) == b"READY\n"
    try:
        out, err = process.communicate(b"x" * (8 << 20), 60)
    except BrokenPipeError:
        out, err = b"", b""
    assert process.returncode == 3, (out, err)


def test_stdin_interactive(box):
    """An answer to each line before the next one is written: nothing is held back."""
    process = box.background("sh", "-c", "while read -r line; do echo \"got $line\"; done; echo bye")
    try:
        for word in ("one", "two", "three"):
            process.stdin.write(f"{word}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline() == f"got {word}\n".encode()
        out, err = process.communicate(None, 30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, b"bye\n", b"")


def test_output_before_a_partial_line_end(box):
    """Bytes come when they are written, not when a line or a block is full."""
    process = box.background("sh", "-c", "printf abc; read -r x; printf $x")
    try:
        assert process.stdout.read(3) == b"abc"
        out, _ = process.communicate(b"def\n", 30)
    finally:
        process.kill()
    assert out == b"def"


@pytest.mark.smoke
def test_slow_reader(box):
    """The reader sleeps while the writer is faster than any buffer: the writer waits, nothing is lost."""
    process = box.background("sh", "-c", "yes 0123456789abcde | head -c 16777216")
    assert process.stdout.read(16) == b"0123456789abcde\n"

    def is_stuck():
        return process.poll() is None

    wait_until(lambda: not is_stuck(), 2)
    assert is_stuck(), "16 MiB cannot fit into the pipes between, so the task cannot have ended"
    rest = []
    hash_stream(process.stdout, rest)
    assert process.wait(60) == 0
    assert rest[0] == (16 << 20) - 16


def test_reader_gone(box):
    """Nobody reads any more: the container is not killed by that, and can be ended."""
    name = box.name()
    process = box.background("sh", "-c", "trap 'echo PIPE >/result' PIPE; while :; do echo line; done", name=name)
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    process.kill()
    process.wait()
    assert box.status(name) == "RUNNING"
    box.kill_and_delete(name)


@pytest.mark.harpoon
def test_background_child_holding_the_output(box):
    """The container ends with its first process, whatever its other processes hold open."""
    done = box.sh("sleep 1000 & echo started")
    assert (done.code, done.out) == (0, "started\n"), done


@pytest.mark.versions
def test_null_io(box):
    done = box.run("sh", "-c", "cat; echo nobody sees this; exit 4", options=["--null-io"])
    assert (done.code, done.out, done.err) == (4, "", ""), done


def test_log_file(box, host_folder):
    """stdout and stderr into a file of the host (file:// URI)."""
    log = host_folder / "sub" / "log"
    done = box.sh("echo out; echo err >&2", options=["--log-uri", f"file://{log}"])
    assert done.code == 0, done
    assert sorted(log.read_text().splitlines()) == ["err", "out"]


@pytest.mark.versions
def test_log_binary(box, host_folder):
    """stdout and stderr into a logging program (binary:// URI)."""
    program = host_folder / "logger"
    program.write_text(
        "#!/bin/sh\n"
        "trap '' TERM\n"
        f"exec >{host_folder}/log 2>&1\n"
        'echo "$CONTAINER_ID $CONTAINER_NAMESPACE $*"\n'
        "exec 5>&-\n"
        "sed 's/^/out: /' <&3\n"
        "sed 's/^/err: /' <&4\n"
        f"mv {host_folder}/log {host_folder}/log.done\n"
    )
    program.chmod(0o755)
    name = box.name()
    done = box.sh("echo one; echo two >&2", name=name, options=["--log-uri", f"binary://{program}?key=value"])
    assert done.code == 0, done
    log = host_folder / "log.done"
    assert wait_until(log.exists, 10), "the logging program did not come to its end"
    assert log.read_text().splitlines() == [
        f"{name} {box.daemon.namespace} key value", "out: one", "err: two"
    ]


@pytest.mark.harpoon
def test_unknown_log_uri(box):
    done = box.run("true", options=["--log-uri", "nosuch://x"])
    assert done.code == 1 and "nosuch" in done.err, done


@pytest.mark.nested_kvm
@pytest.mark.versions
@pytest.mark.smoke
def test_terminal(box):
    """ctr run -t under a terminal of our own."""
    # The window size arrives by a call of its own, some time after the start
    script = (
        "test -t 0 && test -t 1 && test -t 2 && echo all;"
        "until [ \"$(stty size 2>/dev/null)\" = '33 77' ]; do sleep 0.1; done; echo sized;"
        "read -r x; echo \"<$x>\"; exit 9"
    )
    out, code = run_on_terminal(box, box.args("sh", "-c", script, options=["-t"]), b"sized", b"typed\r")
    assert code == 9, out
    # Our own terminal adds a carriage return to the one of the container's
    assert b"all\r\nsized\r\ntyped\r\n<typed>\r\n" in out.replace(b"\r\r\n", b"\r\n"), out


def run_on_terminal(box, args, expect, answer):
    """Runs ctr on a new terminal of 33x77; writes `answer` when `expect` was seen. (output, exit code)"""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    process = box.daemon.popen(
        *args, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    timer = threading.Timer(90, process.kill)
    timer.start()
    out, answered = b"", False
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
        if expect in out and not answered:
            answered = True
            os.write(leader, answer)
    timer.cancel()
    os.close(leader)
    return out, process.wait(10)


@pytest.mark.slow
def test_fast_exits_lose_no_output(box):
    """Thirty containers that end as soon as they have written: every one's output is whole."""
    for i in range(30):
        done = box.sh(f"yes line-{i} | head -n 20000")
        assert done.code == 0, done
        assert done.out_bytes == f"line-{i}\n".encode() * 20000, (i, len(done.out_bytes))


def test_no_reader_at_the_start(box):
    """A task whose client has gone before it wrote anything still runs to its end."""
    name = box.name()
    process = box.background("sh", "-c", "read -r x; exit 5", name=name, streams={"stdin": subprocess.PIPE})
    box.wait_status(name, "RUNNING", 60)
    process.kill()
    process.communicate()
    box.kill_and_delete(name)
    box.forget_fifos()
