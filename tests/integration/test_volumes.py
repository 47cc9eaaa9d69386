"""Volumes: trees of the host that containers work on, and share with the host and with each other."""

import os
import select
import shutil
import subprocess
import time

import pytest

from harpoonlib.containerd import wait_until

EXERCISE_TURNS = int(os.environ.get("HARPOON_TEST_EXERCISE_TURNS", "6"))
EXERCISE_CHANGES = 60
ENTRIES = int(os.environ.get("HARPOON_TEST_ENTRIES", "10000"))


def bind(source, target, how="rw"):
    return ["--mount", f"type=bind,src={source},dst={target},options=rbind:{how}"]


class Shell:
    """A container in the background that is spoken to line by line."""

    def __init__(self, box, command, options, **kwargs):
        self.process = box.background(*command, options=options, **kwargs)
        self.buffer = b""

    def read(self, timeout=60):
        fd = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            assert select.select([fd], [], [], timeout)[0], "nothing was printed"
            more = os.read(fd, 65536)
            assert more, self.process.stderr.read()
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode("utf-8", "surrogateescape")

    def say(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, text):
        self.say(text)
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.stdin = None
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, (out, err)


# Changes by the host


def collect(shell, wanted, timeout=30):
    """Lines until all wanted ones were there; which ones came."""
    seen = []
    deadline = time.monotonic() + timeout
    while not wanted <= {line.split(" ", 1)[1] for line in seen}:
        assert time.monotonic() < deadline, (wanted, seen)
        seen.append(shell.read(timeout))
    return seen


@pytest.mark.harpoon
def test_changes_by_the_host_are_events_in_the_guest(box, programs, host_folder):
    """What a watcher in a container hears: of its own changes once, of the host's as if they were the guest's."""
    (host_folder / "sub").mkdir()
    (host_folder / "old").write_text("old")
    options = bind(host_folder, "/vol") + bind(programs, "/programs", "ro")
    watch = Shell(box, ["/programs/watch", "/vol", "/vol/sub"], options)
    assert watch.read() == "READY"
    (host_folder / "sub/new").write_text("x")
    collect(watch, {"CREATE, new", "CLOSE_WRITE, new"})
    (host_folder / "old").write_text("changed")
    collect(watch, {"MODIFY, old", "CLOSE_WRITE, old"})
    os.chmod(host_folder / "old", 0o600)
    collect(watch, {"ATTRIB, old"})
    os.mkdir(host_folder / "folder")
    collect(watch, {"CREATE,ISDIR, folder"})
    os.rmdir(host_folder / "folder")
    collect(watch, {"DELETE,ISDIR, folder"})
    (host_folder / "temporary").write_text("another")
    os.rename(host_folder / "temporary", host_folder / "old")
    collect(watch, {"CREATE, old", "DELETE, temporary", "MODIFY, old"})
    os.symlink("old", host_folder / "link")
    collect(watch, {"CREATE, link"})
    os.unlink(host_folder / "old")
    os.unlink(host_folder / "sub/new")
    collect(watch, {"DELETE, old", "DELETE, new"})
    assert sorted(os.listdir(host_folder)) == ["link", "sub"] and os.readlink(host_folder / "link") == "old"
    watch.close()


@pytest.mark.harpoon
def test_events_of_a_read_only_volume_and_of_one_file(box, programs, host_folder):
    """Nothing of a replayed change reaches the host's files."""
    (host_folder / "ro").mkdir()
    (host_folder / "ro/f").write_text("first")
    (host_folder / "single").write_text("first")
    options = bind(host_folder / "ro", "/ro", "ro") + bind(host_folder / "single", "/etc/single")
    watch = Shell(box, ["/programs/watch", "/ro", "/etc/single"], options + bind(programs, "/programs", "ro"))
    assert watch.read() == "READY"
    before = os.stat(host_folder / "ro/f")
    (host_folder / "ro/f").write_text("second")
    with open(host_folder / "single", "a", encoding="utf-8") as f:
        f.write("second")
    collect(watch, {"MODIFY, f", "MODIFY, ", "CLOSE_WRITE, "})
    (host_folder / "ro/f").unlink()
    (host_folder / "ro/g").write_text("kept")
    collect(watch, {"DELETE, f", "CREATE, g"})
    watch.close()
    assert (host_folder / "ro/g").read_text() == "kept" and before.st_size == 5
    assert (host_folder / "single").read_text() == "firstsecond"


@pytest.mark.harpoon
def test_own_changes_are_told_once(box, programs, host_folder):
    options = bind(host_folder, "/vol") + bind(programs, "/programs", "ro")
    script = """
    mkfifo /p; /programs/watch /vol < /p & exec 3> /p
    read go; echo x > /vol/mine; rm /vol/mine; read end; echo >&3; wait
    """
    shell = Shell(box, ["sh", "-c", script], options)
    assert shell.read() == "READY"
    shell.say("go")
    seen = collect(shell, {"DELETE, mine"})
    # What the host changes afterwards comes after all that could still come of the guest's own
    (host_folder / "theirs").write_text("x")
    seen += collect(shell, {"CREATE, theirs"})
    mine = [line.split(" ", 1)[1] for line in seen if line.endswith("mine")]
    assert mine == ["CREATE, mine", "MODIFY, mine", "CLOSE_WRITE, mine", "DELETE, mine"], seen
    shell.say("end")
    shell.close()


# One file, two sides


def test_random_changes_by_guest_and_host_in_turns(box, programs, host_folder):
    options = bind(host_folder, "/vol") + bind(programs, "/programs", "ro")
    guest = Shell(box, ["/programs/exercise", "/vol/f", "4711", "1"], options)
    host = subprocess.Popen(
        [programs / "exercise", host_folder / "f", "4711", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        for turn in range(EXERCISE_TURNS):
            line = f"{turn % 2} {EXERCISE_CHANGES}\n"
            # What the other side has done shows after a second at most: that is the rule, so it is waited for.
            time.sleep(1.1)
            host.stdin.write(line)
            host.stdin.flush()
            assert host.stdout.readline() == "ok\n"
            assert guest.ask(line.strip()) == "ok"
    finally:
        host.stdin.close()
        host.wait(10)
        host.stdout.close()
    guest.close()


# Folders


def test_a_large_folder_under_change(box, host_folder):
    """Listed in the guest while the host adds and removes: what stays is there once. test_fs_fuse.py has 100000 files."""
    many = host_folder / "many"
    many.mkdir()
    for i in range(ENTRIES):
        os.close(os.open(many / f"f{i}", os.O_WRONLY | os.O_CREAT))
    shell = Shell(box, ["sh", "-c", "while read -r go; do find /vol/many | sort | uniq -c | awk "
                        "'$2 ~ /many.f/ { n++; if ($1 != 1) twice++ } END { print n + 0, twice + 0 }'; done"],
                  bind(host_folder, "/vol"))
    shell.say("go")
    for i in range(2000):
        (many / f"extra{i}").touch()
        os.unlink(many / f"extra{i}")
    assert shell.read(200) == f"{ENTRIES} 0"
    shell.close()


def test_odd_sources_and_targets(box, host_folder):
    """Sources that are links, mounts on mounts, and names of all kinds."""
    names = ["with space", "ümlaut", "tab\there", "-rf"]
    (host_folder / "real").mkdir()
    (host_folder / "real/f").write_text("real\n")
    (host_folder / "link").symlink_to("real")
    (host_folder / "file-link").symlink_to("real/f")
    for name in names:
        (host_folder / "real" / name).write_text(name)
    (host_folder / "upper/inner").mkdir(parents=True)
    (host_folder / "upper/f").write_text("upper\n")
    (host_folder / "deepest").write_text("deepest\n")
    options = bind(host_folder / "link", "/a") + bind(host_folder / "file-link", "/etc/f", "ro")
    options += bind(host_folder / "real", "/m") + bind(host_folder / "upper", "/m")
    options += bind(host_folder / "deepest", "/m/inner/file") if (host_folder / "upper/inner/file").write_text("") == 0 else []
    done = box.sh("cat /a/f /etc/f /m/f /m/inner/file; ls /a | wc -l; cat '/a/with space'", options=options)
    assert done.code == 0, done
    assert done.out.splitlines() == ["real", "real", "upper", "deepest", "5", "with space"], done


def test_hundreds_of_mounts(box, host_folder):
    options = []
    for i in range(300):
        (host_folder / f"v{i}").mkdir()
        (host_folder / f"v{i}/id").write_text(f"{i}\n")
        options += bind(host_folder / f"v{i}", f"/many/{i}", "ro" if i % 2 else "rw")
    script = """
    i=0; while [ $i -lt 300 ]; do [ "$(cat /many/$i/id)" = $i ] || echo wrong $i; i=$((i+1)); done
    touch /many/298/w && ! touch /many/299/w 2>/dev/null && grep -c ' /many/' /proc/mounts
    """
    done = box.sh(script, options=options, timeout=200)
    assert (done.code, done.out.split()) == (0, ["300"]), done
    assert (host_folder / "v298/w").exists() and not (host_folder / "v299/w").exists()


# Read-only


def test_recursively_read_only(box, host_folder):
    """What is mounted below the source on the host is as read-only as the rest, in the guest and by the server."""
    (host_folder / "src/below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "below", host_folder / "src/below"], check=True)
    try:
        (host_folder / "src/below/f").write_text("below\n")
        script = "cat /v/below/f; touch /v/g; touch /v/below/g; echo x > /v/below/f; rm /v/below/f; echo end"
        done = box.sh(script, options=bind(host_folder / "src", "/v", "rro"))
        assert done.code == 0 and done.out == "below\nend\n", done
        assert done.err.lower().count("read-only file system") == 4, done
        assert (host_folder / "src/below/f").read_text() == "below\n"
    finally:
        subprocess.run(["umount", host_folder / "src/below"], check=True)


@pytest.mark.harpoon
def test_read_only_is_the_servers_affair(box, host_folder):
    """A container that can mount makes the guest's mount writable, and still changes nothing."""
    (host_folder / "f").write_text("kept")
    script = """
    mount -o remount,rw,bind /v 2>/dev/null
    echo x > /v/f; touch /v/new; chmod 777 /v/f; rm -f /v/f; mkdir /v/d; ln /v/f /v/g; mv /v/f /v/h; truncate -s 0 /v/f
    echo end
    """
    done = box.sh(script, options=["--cap-add", "CAP_SYS_ADMIN", *bind(host_folder, "/v", "ro")])
    assert done.out == "end\n", done
    assert os.listdir(host_folder) == ["f"] and (host_folder / "f").read_text() == "kept"
    assert os.stat(host_folder / "f").st_mode & 0o777 == 0o644


# Space


def test_full_volume(box, host_folder):
    """ENOSPC comes from the call that needs the space, the volume works on, and the host's data is whole."""
    small = host_folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "small", "-o", "size=1m", small], check=True)
    try:
        script = """
        dd if=/dev/zero of=/v/big bs=64k count=100 2>&1 | grep -c 'No space'
        echo more > /v/other; stat -c %s /v/other
        rm /v/big; echo more > /v/other && cat /v/other
        """
        done = box.sh(script, options=bind(small, "/v"))
        assert (done.code, done.out.split()) == (0, ["1", "0", "more"]), done
        assert (small / "other").read_text() == "more\n"
    finally:
        subprocess.run(["umount", small], check=True)


# Two containers


def test_two_containers_on_one_volume(box, host_folder):
    """What one writes, renames and removes the other sees; a sparse file stays one."""
    first = Shell(box, ["sh"], bind(host_folder, "/v"))
    second = Shell(box, ["sh"], bind(host_folder, "/v"))
    try:
        for i in range(5):
            assert first.ask(f"echo {i} > /v/tmp && mv /v/tmp /v/f && echo done") == "done"
            # Seen at once when it is new, and within a second when the other's kernel knew it before
            assert second.ask(f"until [ \"$(cat /v/f)\" = {i} ]; do :; done; echo seen") == "seen"
            assert second.ask(f"echo back {i} >> /v/log && echo done") == "done"
            assert first.ask(f"until [ \"$(tail -n 1 /v/log)\" = 'back {i}' ]; do :; done; echo seen") == "seen"
        assert first.ask("truncate -s 1G /v/sparse && echo x >> /v/sparse && echo done") == "done"
        assert int(second.ask("stat -c %b /v/sparse")) < 1000
        assert second.ask("rm /v/f /v/sparse && echo done") == "done"
        assert first.ask("ls /v") == "log"
    finally:
        first.close()
        second.close()


def test_two_containers_with_one_file_mapped(box, programs, host_folder):
    """What one has written through its mapping, and back to the file, is in the other's mapping, and so are the host's
    changes: nobody opens, reads or asks for anything."""
    shutil.copy(programs / "mapped", host_folder / "mapped")
    path = host_folder / "f"
    path.write_bytes(b"." * 3 * 4096)
    first, second = (Shell(box, ["/v/mapped", "/v/f"], bind(host_folder, "/v")) for _ in range(2))
    try:
        # Both have all of it in their memory
        for shell in (first, second):
            for page in range(3):
                assert shell.ask(f"wait {page} .") == "done"
        for round_ in range(5):
            one, other, third = (chr(ord(start) + round_) for start in "agp")
            assert first.ask(f"set 0 {one}") == "done"
            assert second.ask(f"wait 0 {one}") == "done"
            assert second.ask(f"set 1 {other}") == "done"
            assert first.ask(f"wait 1 {other}") == "done"
            assert path.read_bytes()[:8192] == (one * 4096 + other * 4096).encode()
            with path.open("r+b") as f:
                f.seek(8192)
                f.write(third.encode() * 4096)
            for shell in (first, second):
                assert shell.ask(f"wait 2 {third}") == "done"
    finally:
        first.close()
        second.close()


class HostShell(Shell):
    """A program of the host, spoken to in the same way."""

    def __init__(self, *command):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        self.buffer = b""


def host_locker(programs, path):
    locker = HostShell(programs / "locker", path)
    assert locker.read() == "READY"
    return locker


@pytest.fixture
def lockers(box, programs, host_folder):
    """Two containers and the host, each with the same file open."""
    (host_folder / "f").write_text("x" * 100)
    options = bind(host_folder, "/v") + bind(programs, "/programs", "ro")
    found = [Shell(box, ["/programs/locker", "/v/f"], options) for _ in range(2)]
    for shell in found:
        assert shell.read() == "READY"
    found.append(host_locker(programs, host_folder / "f"))
    yield found
    for locker in found:
        locker.close()


@pytest.mark.parametrize("kind", ["posix", "ofd", "flock"])
def test_locks_between_containers_and_the_host(lockers, kind):
    """Whoever has a lock keeps out the others, wherever they are; a wait can be interrupted, and ends with the lock."""
    for one in lockers:
        others = [locker for locker in lockers if locker is not one]
        assert one.ask(f"try {kind} w 0 10") == "ok"
        for other in others:
            assert other.ask(f"try {kind} r 5 1") == "EAGAIN"
            assert other.ask(f"wait {kind} w 9 1") == "EINTR"
            if kind != "flock":
                assert other.ask(f"get {kind} w 0 0") == "w"
                assert other.ask(f"try {kind} w 10 1") == "ok"
                assert other.ask(f"try {kind} u 10 1") == "ok"
        # Its own lock is no hindrance, and can become another
        assert one.ask(f"try {kind} r 0 10") == "ok"
        for other in others:
            assert other.ask(f"try {kind} r 0 10") == "ok"
        assert one.ask(f"try {kind} w 0 10") == "EAGAIN"
        for other in others:
            assert other.ask(f"try {kind} u 0 0") == "ok"
        for waiter in others:
            assert one.ask(f"try {kind} w 0 10") == "ok"
            waiter.say(f"wait {kind} w 0 10")
            assert one.ask(f"try {kind} u 0 0") == "ok"
            assert waiter.read() == "ok"
            assert waiter.ask(f"try {kind} u 0 0") == "ok"


def test_locks_go_with_their_owner(box, programs, host_folder):
    """With the process that closes the file or dies, and with the whole container."""
    (host_folder / "f").write_text("x" * 100)
    options = bind(host_folder, "/v") + bind(programs, "/programs", "ro")
    host = host_locker(programs, host_folder / "f")
    name = box.detached("sleep", "1000", options=options)
    # The inner sleep keeps the program's input open, and it its lock
    for number, kind in enumerate(("posix", "ofd", "flock")):
        script = f"(echo try {kind} w 0 0; sleep 1000) | /programs/locker /v/f > /out{number}"
        args = ["--exec-id", f"holder{number}", "-d", name, "sh", "-c", script]
        assert box.ctr("task", "exec", "--fifo-dir", box.daemon.fifos, *args).code == 0
        assert wait_until(lambda: box.exec(name, "cat", f"/out{number}").out == "READY\nok\n", 20)
        assert host.ask(f"try {kind} w 0 0") == "EAGAIN"
        box.execute(name, "sh", "-c", "kill -9 $(pidof locker)")
        assert wait_until(lambda: host.ask(f"try {kind} w 0 0") == "ok", 20)
        assert host.ask(f"try {kind} u 0 0") == "ok"
    script = "(echo try posix w 0 0; sleep 1000) | /programs/locker /v/f > /out"
    args = ["--exec-id", "last", "-d", name, "sh", "-c", script]
    assert box.ctr("task", "exec", "--fifo-dir", box.daemon.fifos, *args).code == 0
    assert wait_until(lambda: host.ask("get posix w 0 0") == "w", 20)
    box.kill_and_delete(name)
    assert host.ask("try posix w 0 0") == "ok"
    host.close()
    box.forget_fifos()


def bytes_read(box, name):
    """What the host processes of a container have read from files so far."""
    total = 0
    for pids in box.processes(name).values():
        for pid in pids:
            with open(f"/proc/{pid}/io", encoding="ascii") as f:
                total += int(dict(line.split(": ") for line in f)["rchar"])
    return total


def test_what_was_read_is_kept_until_the_host_writes(box, host_folder):
    """A file that nobody changed is read from the host once, however often it is opened; a changed one anew, at once."""
    size = 4 << 20
    (host_folder / "f").write_bytes(b"1" * size)
    # Times of files are coarse: for two seconds a change may not show in them, and nothing is kept
    assert wait_until(lambda: time.time() - os.stat(host_folder / "f").st_ctime > 4, 10)
    name = box.name()
    shell = Shell(box, ["sh"], bind(host_folder, "/v"), name=name)
    look = "tr -d '[2-9]' < /v/f | wc -c"
    try:
        assert shell.ask(look) == str(size)
        before = bytes_read(box, name)
        for _ in range(3):
            assert shell.ask(look) == str(size)
        assert bytes_read(box, name) - before < size // 2
        with open(host_folder / "f", "r+b") as f:
            f.seek(size // 2)
            f.write(b"2" * 5)
        assert shell.ask(look) == str(size - 5)
        assert bytes_read(box, name) - before >= size
    finally:
        shell.close()
