"""harpoon-fs as a file system: the whole server, confined as in production, mounted through /dev/fuse.

Most tests run on an ordinary directory and on overlayfs, which is what root file systems are. The kernel's FUSE
client is the same code that a guest has; what differs from a VM is the channel alone.
"""

import ctypes
import errno
import fcntl
import filecmp
import hashlib
import itertools
import mmap
import os
import pathlib
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tarfile
import threading
import time

import pytest

import fs_server
from conftest import BUILD

PROGRAM = BUILD / "src/fs/harpoon-fs"
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
USER = 1234  # nobody in particular
SANITIZED = "asan" in BUILD.name

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root"),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse"),
]

_folders = itertools.count()


@pytest.fixture
def folder(work_folder):
    path = work_folder / f"fs-{next(_folders)}"
    path.mkdir()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder):
    s = fs_server.Server(PROGRAM, folder)
    try:
        s.wait_mounted()
        yield s
    finally:
        s.close()


@pytest.fixture(params=["directory", "overlay"])
def backing(request, folder):
    """Where an export's files are."""
    if request.param == "directory":
        path = folder / "tree"
        path.mkdir()
        path.chmod(0o755)
        yield path
        return
    for name in ("lower", "upper", "work", "tree"):
        (folder / name).mkdir()
    (folder / "lower/from-lower").write_text("lower")
    (folder / "lower/dir").mkdir()
    (folder / "lower/dir/inner").write_text("inner")
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, folder / "tree"], check=True)
    try:
        yield folder / "tree"
    finally:
        subprocess.run(["umount", folder / "tree"], check=True)


@pytest.fixture
def tree(server, backing):
    """An exported tree as the client sees it, for this client alone."""
    yield server.export("tree", backing, fs_server.EXCLUSIVE)
    server.unexport("tree", revoke=True)


@pytest.fixture
def shared(server, backing):
    """The same, shared with others on the host."""
    yield server.export("shared", backing)
    server.unexport("shared", revoke=True)


def as_user(fn, uid=USER, gid=USER, groups=()):
    """Runs fn in a child with these ids; an OSError's number or None comes back."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            fn()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status not in (255, -signal.SIGBUS, -signal.SIGSEGV), "the child failed"
    return status or None


def call(name, *args):
    if getattr(LIBC, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def rename2(old, new, flags):
    call("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def name_open_file(fd, path):
    source = os.fsencode(f"/proc/self/fd/{fd}")
    call("linkat", AT_FDCWD, source, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW)


def fails_with(number):
    class Raises:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert isinstance(error, OSError), f"no error, {errno.errorcode[number]} expected"
            assert error.errno == number, error
            return True

    return Raises()


def drop_caches(path):
    """What the client knows of a file's pages is forgotten."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def snapshot(top):
    """Everything that tar keeps of a tree, by relative path."""
    found = {}
    for path in sorted(pathlib.Path(top).rglob("*")):
        st = path.lstat()
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        size = st.st_size if not stat.S_ISDIR(st.st_mode) else 0
        nlink = st.st_nlink if not stat.S_ISDIR(st.st_mode) else 0
        found[str(path.relative_to(top))] = (
            st.st_mode, st.st_uid, st.st_gid, size, st.st_mtime_ns, nlink, content,
        )
    return found


# Whole trees


def make_varied_tree(top):
    random_bytes = random.Random(7)
    top.mkdir()
    for i in range(12):
        d = top / f"dir{i}" / "deeper"
        d.mkdir(parents=True)
        for j in range(25):
            (d / f"file{j}").write_bytes(random_bytes.randbytes(random_bytes.randrange(20000)))
            os.chmod(d / f"file{j}", random_bytes.choice([0o644, 0o600, 0o4755, 0o2755, 0o444]))
            os.utime(d / f"file{j}", ns=(10**18 + j, 10**18 + j * 1001))
        os.symlink("../file-not-there", d / "dangling")
        os.symlink("file1", d / "link")
        os.link(d / "file2", d / "hard")
        os.chown(d / "file3", 1000 + i, 2000)
    os.mkfifo(top / "fifo")
    (top / "big").write_bytes(random_bytes.randbytes(5 << 20))


def test_tree_through_tar_and_back(tree, folder):
    make_varied_tree(folder / "origin")
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "origin", "t")
    subprocess.run(["tar", "xpf", folder / "a.tar", "-C", tree, "--same-owner"], check=True)
    want = snapshot(folder / "origin")
    got = snapshot(tree / "t")
    # tar has whole seconds in this format for times
    assert {k: v[:4] + v[5:] for k, v in got.items()} == {k: v[:4] + v[5:] for k, v in want.items()}
    subprocess.run(["cp", "-a", folder / "origin", tree / "copy"], check=True)
    assert snapshot(tree / "copy") == want
    subprocess.run(["cp", "-a", tree / "copy", folder / "back"], check=True)
    assert snapshot(folder / "back") == want
    subprocess.run(["rm", "-rf", tree / "t", tree / "copy"], check=True)
    assert not (tree / "t").exists() and not (tree / "copy").exists()


def test_host_sees_the_same(tree, backing):
    make_varied_tree(tree / "t")
    assert snapshot(tree / "t") == snapshot(backing / "t")
    inodes = {p.name: p.lstat().st_ino for p in (backing / "t").iterdir()}
    assert {p.name: p.lstat().st_ino for p in (tree / "t").iterdir()} == inodes


def test_lower_files_are_copied_up(tree, backing):
    if not (backing / "from-lower").exists():
        pytest.skip("about overlayfs")
    before = (tree / "from-lower").stat()
    with open(tree / "from-lower", "r+", encoding="utf-8") as f:
        f.write("UPPER")
    assert (tree / "from-lower").read_text() == "UPPER"
    assert (backing / "from-lower").read_text() == "UPPER"
    assert (tree / "from-lower").stat().st_ino == before.st_ino
    os.link(tree / "dir/inner", tree / "hard")
    (tree / "dir/inner").unlink()
    os.link(tree / "hard", tree / "harder")
    assert (tree / "harder").stat().st_nlink == 2
    shutil.rmtree(tree / "dir")
    (tree / "dir").mkdir()
    assert os.listdir(tree / "dir") == []


# Names


def test_rename_flags(tree):
    (tree / "a").write_text("a")
    (tree / "b").write_text("b")
    with fails_with(errno.EEXIST):
        rename2(tree / "a", tree / "b", RENAME_NOREPLACE)
    rename2(tree / "a", tree / "b", RENAME_EXCHANGE)
    assert ((tree / "a").read_text(), (tree / "b").read_text()) == ("b", "a")
    rename2(tree / "a", tree / "c", RENAME_NOREPLACE)
    with fails_with(errno.EINVAL):
        rename2(tree / "b", tree / "c", RENAME_NOREPLACE | RENAME_EXCHANGE)
    os.rename(tree / "b", tree / "c")
    assert sorted(p.name for p in tree.iterdir() if len(p.name) == 1) == ["c"]
    (tree / "d").mkdir()
    (tree / "d/x").touch()
    (tree / "e").mkdir()
    with fails_with(errno.ENOTEMPTY):
        os.rename(tree / "e", tree / "d")
    with fails_with(errno.EINVAL):
        os.rename(tree / "d", tree / "d/inside")
    os.rename(tree / "d", tree / "e")
    assert (tree / "e/x").exists()


def test_rename_leaving_a_whiteout(tree, backing):
    if (backing / "from-lower").exists():
        pytest.skip("overlayfs has whiteouts of its own")
    (tree / "w").write_text("w")
    rename2(tree / "w", tree / "moved", RENAME_WHITEOUT)
    st = (tree / "w").lstat()
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
    assert (tree / "moved").read_text() == "w"


def test_links(tree):
    (tree / "f").write_text("x")
    os.link(tree / "f", tree / "g")
    assert (tree / "g").stat().st_nlink == 2
    assert (tree / "g").stat().st_ino == (tree / "f").stat().st_ino
    (tree / "f").unlink()
    assert (tree / "g").stat().st_nlink == 1
    os.symlink("x" * 4095, tree / "long")
    assert os.readlink(tree / "long") == "x" * 4095
    os.symlink("loop", tree / "loop")
    with fails_with(errno.ELOOP):
        open(tree / "loop", encoding="utf-8")
    os.link(tree / "loop", tree / "loop2", follow_symlinks=False)
    assert (tree / "loop2").lstat().st_nlink == 2
    os.chown(tree / "loop", 5, 6, follow_symlinks=False)
    assert (tree / "loop").lstat().st_uid == 5
    os.utime(tree / "loop", ns=(1, 2), follow_symlinks=False)
    assert (tree / "loop").lstat().st_mtime_ns == 2


def test_odd_names(tree, backing):
    names = [b"n" * 255, b"\xff\xfe not utf-8", b"new\nline", b"\x1b[31m", b" ", b"-rf", b"...", b"\\", b"'\""]
    for name in names:
        fd = os.open(os.path.join(os.fsencode(tree), name), os.O_CREAT | os.O_WRONLY | os.O_EXCL)
        os.close(fd)
    assert set(names) <= set(os.listdir(os.fsencode(backing)))
    with fails_with(errno.ENAMETOOLONG):
        open(tree / ("n" * 256), "w", encoding="utf-8")
    for name in names:
        os.unlink(os.path.join(os.fsencode(tree), name))


def test_deep_directories(tree):
    os.makedirs(tree / "/".join(["d" * 20] * 150))
    depth = sum(1 for _ in os.walk(tree / ("d" * 20)))
    assert depth == 150
    shutil.rmtree(tree / ("d" * 20))


def test_many_entries_and_removal_while_reading(tree):
    d = tree / "many"
    d.mkdir()
    names = {f"file-{i:05d}" for i in range(5000)}
    for name in names:
        (d / name).touch()
    assert set(os.listdir(d)) == names
    seen = []
    with os.scandir(d) as it:
        for entry in it:
            seen.append(entry.name)
            if entry.name != "file-00000":
                os.unlink(entry.path)
    assert len(seen) == len(set(seen)) and set(seen) == names
    assert os.listdir(d) == ["file-00000"]


def test_removal_by_others_while_reading(tree):
    d = tree / "many"
    d.mkdir()
    stay = {f"stay-{i}" for i in range(1000)}
    for name in stay | {f"go-{i}" for i in range(2000)}:
        (d / name).touch()
    thread = threading.Thread(target=lambda: [(d / f"go-{i}").unlink() for i in range(2000)])
    thread.start()
    while thread.is_alive():
        found = os.listdir(d)
        assert len(found) == len(set(found)) and stay <= set(found)
    thread.join()
    assert set(os.listdir(d)) == stay


def test_a_folder_of_100000_files_under_change(server, folder):
    """Listed again and again while the host adds and removes others: what stays is there once, each time."""
    many = folder / "many"
    many.mkdir()
    seen = server.export("many", many)
    stay = {f"stay-{i}" for i in range(100000)}
    for name in stay:
        os.close(os.open(many / name, os.O_WRONLY | os.O_CREAT))
    done = threading.Event()

    def change():
        for i in itertools.count():
            (many / f"comes-{i % 50}").touch()
            (many / f"comes-{i % 50}").unlink()
            if done.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3):
            found = [name for name in os.listdir(seen) if name.startswith("stay-")]
            assert len(found) == len(stay) and set(found) == stay
    finally:
        done.set()
        thread.join()


# Data


def test_random_operations_against_a_model(tree):
    chance = random.Random(42)
    model = bytearray()
    path = tree / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    for step in range(1500):
        off, size = chance.randrange(300000), chance.randrange(1, 40000)
        what = chance.randrange(8)
        if what in (0, 1, 2):
            data = chance.randbytes(size)
            if len(model) < off:
                model.extend(bytes(off - len(model)))
            model[off : off + size] = data
            assert os.pwrite(fd, data, off) == size
        elif what in (3, 4):
            assert os.pread(fd, size, off) == bytes(model[off : off + size]), step
        elif what == 5:
            length = chance.randrange(350000)
            os.ftruncate(fd, length)
            del model[length:]
            model.extend(bytes(length - len(model)))
        elif what == 6 and len(model) > 4096:
            with mmap.mmap(fd, len(model)) as m:
                at = off % (len(model) - 100)
                m[at : at + 100] = model[at : at + 100] = chance.randbytes(100)
                m.flush()
        else:
            drop_caches(path)
        if step % 50 == 0:
            assert os.fstat(fd).st_size == len(model)
    os.close(fd)
    assert path.read_bytes() == bytes(model)


def test_large_file(tree, folder):
    with open(folder / "big", "wb") as f:
        for i in range(64):
            f.write(hashlib.sha512(b"%d" % i).digest() * 16384)
    shutil.copyfile(folder / "big", tree / "big")
    drop_caches(tree / "big")
    assert filecmp.cmp(folder / "big", tree / "big", shallow=False)
    os.truncate(tree / "big", 10)
    assert (tree / "big").stat().st_size == 10


def test_appending(tree):
    path = tree / "log"

    def writer(tag):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for i in range(300):
            os.write(fd, b"%s%06d\n" % (tag, i))
        os.close(fd)

    pids = []
    for tag in (b"a", b"b", b"c"):
        pid = os.fork()
        if not pid:
            writer(tag)
            os._exit(0)
        pids.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 900 and len(set(lines)) == 900
    # O_APPEND switched off and on at an open file
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"X", 0)
    size = os.fstat(fd).st_size
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.pwrite(fd, b"Y", 0)
    os.close(fd)
    content = path.read_bytes()
    assert content[:1] == b"X" and content[-1:] == b"Y" and len(content) == size + 1 == 900 * 8 + 1


def test_holes(tree):
    fd = os.open(tree / "sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 5 << 30)
    assert os.fstat(fd).st_size == (5 << 30) + 3
    assert os.fstat(fd).st_blocks < 1000
    assert os.lseek(fd, 0, os.SEEK_DATA) == 5 << 30
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    with fails_with(errno.ENXIO):
        os.lseek(fd, 6 << 30, os.SEEK_DATA)
    os.ftruncate(fd, 0)
    os.posix_fallocate(fd, 0, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20 and os.fstat(fd).st_blocks >= 2048
    os.pwrite(fd, b"x" * 65536, 0)
    call("fallocate", fd, 3, ctypes.c_long(4096), ctypes.c_long(8192))  # punch a hole, keep the size
    assert os.pread(fd, 16384, 0) == b"x" * 4096 + bytes(8192) + b"x" * 4096
    with fails_with(errno.EOPNOTSUPP):
        call("fallocate", fd, 8, ctypes.c_long(0), ctypes.c_long(4096))  # collapse
    with fails_with(errno.EFBIG):
        os.pwrite(fd, b"x", (1 << 63) - 2)
    os.close(fd)


def test_copy_file_range(tree):
    data = os.urandom(300000)
    (tree / "from").write_bytes(data)
    a = os.open(tree / "from", os.O_RDONLY)
    b = os.open(tree / "to", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(data):
        done += os.copy_file_range(a, b, len(data) - done)
    assert (tree / "to").read_bytes() == data
    assert os.copy_file_range(a, b, 100, 0, 0) == 100
    os.lseek(a, 0, os.SEEK_SET)
    assert os.sendfile(b, a, 0, 1000) == 1000
    os.close(a)
    os.close(b)


def test_mapping(tree, backing):
    (tree / "f").write_bytes(bytes(100000))
    with open(tree / "f", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[50000:50005] = b"hello"
        m.flush()
        assert (backing / "f").read_bytes()[50000:50005] == b"hello"
        with mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE) as private:
            private[0:1] = b"P"
            assert m[0:1] == b"\0"
    shutil.copy("/bin/true", tree / "true")
    assert subprocess.run([tree / "true"], check=False).returncode == 0
    (tree / "script").write_text("#!/bin/sh\necho ran $1\n")
    (tree / "script").chmod(0o755)
    assert subprocess.run([tree / "script", "it"], capture_output=True, check=True).stdout == b"ran it\n"


def test_open_files_without_names(tree):
    fd = os.open(tree / "f", os.O_RDWR | os.O_CREAT)
    os.unlink(tree / "f")
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b"still here")
    os.fchmod(fd, 0o640)
    os.ftruncate(fd, 5)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 100) == b"still"
    assert stat.S_IMODE(os.fstat(again).st_mode) == 0o640
    os.close(again)
    os.close(fd)
    (tree / "a").write_text("a")
    (tree / "b").write_text("b")
    with open(tree / "b", encoding="utf-8") as old:
        os.rename(tree / "a", tree / "b")
        assert old.read() == "b"


def test_temporary_files(tree):
    fd = os.open(tree, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"secret")
    assert os.fstat(fd).st_nlink == 0
    name_open_file(fd, tree / "named")
    os.close(fd)
    assert (tree / "named").read_bytes() == b"secret"
    # O_EXCL: it may never get a name
    fd = os.open(tree, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with fails_with(errno.ENOENT):
        name_open_file(fd, tree / "never")
    os.close(fd)


def test_direct_and_synchronous_io(tree):
    fd = os.open(tree / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    buffer = mmap.mmap(-1, 8192)
    buffer.write(b"d" * 8192)
    assert os.writev(fd, [buffer]) == 8192
    assert os.preadv(fd, [buffer], 0) == 8192
    os.close(fd)
    fd = os.open(tree / "f", os.O_WRONLY | os.O_SYNC)
    os.write(fd, b"synchronous")
    os.fdatasync(fd)
    os.close(fd)
    fd = os.open(tree, os.O_RDONLY)
    os.fsync(fd)
    call("syncfs", fd)
    os.close(fd)


# Attributes


def test_times(tree):
    (tree / "f").touch()
    for ns in (0, 1, 999999999, 1234567890123456789, 2**31 * 10**9 + 5):
        os.utime(tree / "f", ns=(ns, ns + 1))
        st = (tree / "f").stat()
        assert (st.st_atime_ns, st.st_mtime_ns) == (ns, ns + 1)
    before = (tree / "f").stat().st_mtime_ns
    (tree / "f").write_text("x")
    assert (tree / "f").stat().st_mtime_ns > before - 2**31 * 10**9
    changed = (tree / "f").stat().st_ctime_ns
    time.sleep(0.02)
    (tree / "f").chmod(0o600)
    assert (tree / "f").stat().st_ctime_ns > changed


def test_statfs(tree, backing):
    ours, theirs = os.statvfs(tree), os.statvfs(backing)
    for field in ("f_bsize", "f_blocks", "f_files", "f_namemax", "f_frsize"):
        assert getattr(ours, field) == getattr(theirs, field), field


def test_extended_attributes(tree, backing):
    f = tree / "f"
    f.touch()
    os.setxattr(f, "user.a", b"1")
    os.setxattr(f, "user.empty", b"")
    os.setxattr(f, "user.big", b"v" * 1000)
    assert os.getxattr(f, "user.big") == b"v" * 1000
    assert sorted(os.listxattr(f)) == ["user.a", "user.big", "user.empty"]
    with fails_with(errno.EEXIST):
        os.setxattr(f, "user.a", b"2", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(f, "user.b", b"2", os.XATTR_REPLACE)
    os.removexattr(f, "user.a")
    with fails_with(errno.ENODATA):
        os.getxattr(f, "user.a")
    # trusted.* is the host's: overlayfs keeps its own there
    with fails_with(errno.EPERM):
        os.setxattr(f, "trusted.t", b"1")
    os.setxattr(backing / "f", "trusted.t", b"1")
    assert "trusted.t" not in os.listxattr(f)
    with fails_with(errno.ENODATA):
        os.getxattr(f, "trusted.t")
    # file capabilities pass, and go when the file is written to
    capability = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)
    os.setxattr(f, "security.capability", capability)
    assert os.getxattr(backing / "f", "security.capability") == capability
    f.write_text("changed")
    with fails_with(errno.ENODATA):
        os.getxattr(backing / "f", "security.capability")
    os.symlink("f", tree / "link")
    with fails_with(errno.EPERM):
        os.setxattr(tree / "link", "user.x", b"1", follow_symlinks=False)


def acl(*entries):
    """The kernel's binary form: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


NOBODY = 0xFFFFFFFF
ACL_USER = acl((1, 6, NOBODY), (2, 4, USER), (4, 0, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))


def test_access_control_lists(tree):
    f = tree / "f"
    f.write_text("for one user")
    f.chmod(0o600)
    assert as_user(lambda: f.read_text()) == errno.EACCES
    os.setxattr(f, "system.posix_acl_access", ACL_USER)
    assert as_user(lambda: f.read_text()) is None
    assert as_user(lambda: f.read_text(), USER + 1) == errno.EACCES
    # a default list decides instead of the umask
    d = tree / "d"
    d.mkdir()
    os.setxattr(
        d,
        "system.posix_acl_default",
        acl((1, 7, NOBODY), (2, 7, USER), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)),
    )
    old = os.umask(0o077)
    try:
        (d / "inherits").touch()
        (tree / "masked").touch()
    finally:
        os.umask(old)
    assert stat.S_IMODE((d / "inherits").stat().st_mode) == 0o660
    assert stat.S_IMODE((tree / "masked").stat().st_mode) == 0o600
    assert b"system.posix_acl_access" in [os.fsencode(n) for n in os.listxattr(d / "inherits")]


# Users and privileges


def test_permissions(tree):
    (tree / "private").write_text("x")
    (tree / "private").chmod(0o600)
    (tree / "closed").mkdir(mode=0o700)
    assert as_user(lambda: open(tree / "private", encoding="utf-8")) == errno.EACCES
    assert as_user(lambda: os.listdir(tree / "closed")) == errno.EACCES
    assert as_user(lambda: (tree / "mine").touch()) == errno.EACCES
    assert as_user(lambda: os.chown(tree / "private", USER, USER)) == errno.EPERM
    assert as_user(lambda: os.chmod(tree / "private", 0o777)) == errno.EPERM
    (tree / "sticky").mkdir()
    (tree / "sticky").chmod(0o1777)
    (tree / "sticky/roots").touch()
    assert as_user(lambda: (tree / "sticky/roots").unlink()) == errno.EPERM
    assert as_user(lambda: (tree / "sticky/own").touch()) is None
    st = (tree / "sticky/own").stat()
    assert (st.st_uid, st.st_gid) == (USER, USER)
    assert as_user(lambda: (tree / "sticky/own").unlink()) is None


def test_new_files_belong_to_the_user(tree, backing):
    d = tree / "d"
    d.mkdir()
    d.chmod(0o777)

    def make():
        os.umask(0o027)
        (d / "file").touch()
        (d / "dir").mkdir()
        os.mkfifo(d / "fifo")
        os.symlink("x", d / "link")
        os.open(d / "tmp", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)

    assert as_user(make, USER, USER + 1) is None
    for name, mode in (("file", 0o640), ("dir", 0o750), ("fifo", 0o640), ("tmp", 0o440)):
        st = (backing / "d" / name).lstat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (USER, USER + 1, mode), name
    assert (backing / "d/link").lstat().st_uid == USER


def test_set_group_id_directories(tree):
    d = tree / "d"
    d.mkdir()
    os.chown(d, 0, 50)
    d.chmod(0o2777)

    def make(name):
        os.umask(0)
        os.close(os.open(d / name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o2755))

    assert as_user(lambda: make("stranger")) is None
    assert as_user(lambda: make("member"), groups=[50]) is None
    assert as_user(lambda: (d / "sub").mkdir()) is None
    assert (d / "stranger").stat().st_gid == 50
    assert stat.S_IMODE((d / "stranger").stat().st_mode) == 0o755
    assert stat.S_IMODE((d / "member").stat().st_mode) == 0o2755
    assert (d / "sub").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("change", ["write", "truncate", "open-truncate", "chown", "fallocate", "append"])
def test_privilege_bits_go(tree, change):
    f = tree / "f"
    f.write_text("program")
    os.chown(f, USER, USER)
    f.chmod(0o6755)
    (tree / "f").stat()

    def act():
        if change == "write":
            os.write(os.open(f, os.O_WRONLY), b"x")
        elif change == "append":
            os.write(os.open(f, os.O_WRONLY | os.O_APPEND), b"x")
        elif change == "truncate":
            os.truncate(f, 3)
        elif change == "open-truncate":
            os.open(f, os.O_WRONLY | os.O_TRUNC)
        elif change == "fallocate":
            os.posix_fallocate(os.open(f, os.O_WRONLY), 0, 100000)
        else:
            os.chown(f, USER, USER + 1)

    assert as_user(act, groups=[USER + 1]) is None
    assert stat.S_IMODE(f.stat().st_mode) == 0o755


def test_device_nodes_are_refused(tree):
    with fails_with(errno.EPERM):
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with fails_with(errno.EPERM):
        os.mknod(tree / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
    os.mknod(tree / "file", stat.S_IFREG | 0o600)
    os.mknod(tree / "sock", stat.S_IFSOCK | 0o600)


def test_existing_device_nodes_are_seen(tree, backing):
    try:
        os.mknod(backing / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no device nodes on this host")
    st = (tree / "null").stat()
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == os.makedev(1, 3)


# What is the client's own affair


def test_fifos_and_sockets(tree):
    os.mkfifo(tree / "fifo")
    pid = os.fork()
    if not pid:
        (tree / "fifo").write_text("through")
        os._exit(0)
    assert (tree / "fifo").read_text() == "through"
    assert os.waitpid(pid, 0)[1] == 0
    here = os.getcwd()
    os.chdir(tree)  # the path must fit in a socket address
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind("sock")
            listener.listen()
            client.connect("sock")
            client.sendall(b"hi")
            with listener.accept()[0] as peer:
                assert peer.recv(10) == b"hi"
    finally:
        os.chdir(here)
    assert stat.S_ISSOCK((tree / "sock").stat().st_mode)


def test_locks(tree):
    (tree / "f").touch()
    with open(tree / "f", "w", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        fcntl.lockf(f, fcntl.LOCK_EX)

        def lock(fn):
            fn(os.open(tree / "f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)

        assert as_user(lambda: lock(fcntl.flock), 0, 0) == errno.EAGAIN
        assert as_user(lambda: lock(fcntl.lockf), 0, 0) == errno.EAGAIN
    assert as_user(lambda: lock(fcntl.flock), 0, 0) is None
    assert as_user(lambda: lock(fcntl.lockf), 0, 0) is None


# Several at once


def churn(top, tag, rounds):
    for i in range(rounds):
        d = top / f"{tag}-{i}"
        d.mkdir()
        for j in range(10):
            (d / f"{j}").write_text(f"{tag} {i} {j}")
        for j in range(10):
            os.rename(d / f"{j}", d / f"r{j}")
        assert len(os.listdir(d)) == 10
        assert (d / "r7").read_text() == f"{tag} {i} 7"
        shutil.rmtree(d)


def test_several_processes_at_once(tree):
    def run(tag):
        pid = os.fork()
        if not pid:
            try:
                churn(tree / "work", tag, 30)
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    (tree / "work").mkdir()
    pids = [run(tag) for tag in "abcd"]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert os.listdir(tree / "work") == []


def test_changes_on_the_host_show_in_a_second(shared, backing):
    (backing / "f").write_text("old")
    assert (shared / "f").read_text() == "old"
    assert not (shared / "new").exists()
    (backing / "f").write_text("newer")
    (backing / "new").touch()
    assert (shared / "new").exists()
    deadline = time.monotonic() + 1.5
    while (shared / "f").read_text() != "newer":
        assert time.monotonic() < deadline, "stale for longer than said"
        time.sleep(0.05)


# Exports


def test_read_only_exports(server, folder):
    d = folder / "d"
    d.mkdir()
    (d / "f").write_text("x")
    ro = server.export("ro", d, fs_server.READ_ONLY)
    before = (d / "f").stat().st_atime_ns
    assert (ro / "f").read_text() == "x"
    for attempt in (
        lambda: (ro / "f").write_text("y"),
        lambda: (ro / "g").touch(),
        lambda: (ro / "f").unlink(),
        lambda: os.rename(ro / "f", ro / "g"),
        lambda: (ro / "f").chmod(0o777),
        lambda: os.setxattr(ro / "f", "user.x", b""),
        lambda: os.utime(ro / "f"),
        lambda: os.link(ro / "f", ro / "g"),
        lambda: os.symlink("x", ro / "g"),
        lambda: os.mkfifo(ro / "g"),
        lambda: os.truncate(ro / "f", 0),
    ):
        with fails_with(errno.EROFS):
            attempt()
    assert (d / "f").stat().st_atime_ns == before
    assert os.listdir(d) == ["f"] and (d / "f").read_text() == "x"
    with fails_with(errno.EROFS):
        (server.mount / "in-root").touch()


def test_single_files(server, folder):
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    (folder / "secret").write_text("not exported")
    f = server.export("hosts", folder / "hosts")
    assert f.read_text() == "127.0.0.1 localhost\n"
    f.write_text("changed\n")
    assert (folder / "hosts").read_text() == "changed\n"
    assert f.is_file() and os.listdir(server.mount) == ["hosts"]
    for path in (f / "../secret", f / "x", server.mount / "secret"):
        assert not path.exists()


def test_exports_come_and_go(server, folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "f").write_text(name)
    a = server.export("a", folder / "a", fs_server.EXCLUSIVE)
    b = server.export("b", folder / "b")
    assert sorted(os.listdir(server.mount)) == ["a", "b"]
    with open(a / "f", "r+", encoding="utf-8") as held:
        server.unexport("a")
        with fails_with(errno.ENOENT):
            os.stat(server.mount / "a")
        assert os.listdir(server.mount) == ["b"]
        held.write("still writable")
    assert (folder / "a/f").read_text() == "still writable"
    with fails_with(errno.EXDEV):
        os.rename(b / "f", server.export("c", folder / "a") / "f")
    server.export("a", folder / "b")
    assert (server.mount / "a/f").read_text() == "b"


def test_a_revoked_export_leaves_the_host_free(server, folder):
    """The host unmounts what was exported while the client still has names, files and directories of it."""
    (folder / "m").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "t", folder / "m"], check=True)
    try:
        ours = server.export("m", folder / "m", fs_server.EXCLUSIVE)
        (ours / "d").mkdir()
        (ours / "d/f").write_text("x")
        fd = os.open(ours / "d/f", os.O_RDWR)
        dir_fd = os.open(ours / "d", os.O_RDONLY)
        assert subprocess.run(["umount", folder / "m"], capture_output=True, check=False).returncode != 0
        server.unexport("m", revoke=True)
        subprocess.run(["umount", folder / "m"], check=True)
    except BaseException:
        subprocess.run(["umount", "-l", folder / "m"], check=False)
        raise
    with fails_with(errno.ESTALE):
        os.write(fd, b"y")
    with fails_with(errno.ESTALE):
        os.fchmod(fd, 0o600)
    os.close(fd)
    os.close(dir_fd)
    held = [os.readlink(p) for p in pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert not [h for h in held if h.startswith(str(folder / "m"))]


def test_control_messages_are_checked(server, folder):
    (folder / "d").mkdir()
    os.symlink("/etc", folder / "link")
    fd = os.open(folder / "d", os.O_PATH)
    plain = os.open(folder / "d", os.O_RDONLY)
    link = os.open(folder / "link", os.O_PATH | os.O_NOFOLLOW)
    ask = server.ask
    request = fs_server.REQUEST
    assert ask(fs_server.EXPORT, "x") == -errno.EBADF
    assert ask(fs_server.EXPORT, "x", 0, [plain]) == -errno.EINVAL
    assert ask(fs_server.EXPORT, "x", 0, [link]) == -errno.ELOOP
    assert ask(fs_server.EXPORT, "x", 0x100, [fd]) == -errno.EINVAL
    for name in ("", ".", "..", "a/b", "/"):
        assert ask(fs_server.EXPORT, name, 0, [fd]) == -errno.EINVAL
    assert ask(fs_server.EXPORT, "x", 0, [fd, fd]) == -errno.EINVAL
    assert ask(fs_server.EXPORT, "x", 0, [fd] * 20) == -errno.EINVAL
    assert ask(fs_server.UNEXPORT, "x") == -errno.ENOENT
    assert ask(fs_server.UNEXPORT, "x", 0, [fd]) == -errno.EINVAL
    assert ask(99, "x") == -errno.ENOSYS
    assert ask(0, "", raw=b"short") == -errno.EINVAL
    assert ask(0, "", raw=request.pack(1, 0, b"x") + b"+") == -errno.EINVAL
    assert ask(0, "", raw=request.pack(1, 0, b"n" * 64), fds=[fd]) == -errno.EINVAL
    assert ask(fs_server.EXPORT, "x", 0, [fd]) == 0
    assert ask(fs_server.EXPORT, "x", 0, [fd]) == -errno.EEXIST
    for one in (fd, plain, link):
        os.close(one)
    # None of the descriptors that were refused has stayed with the server.
    held = [os.readlink(p) for p in pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert held.count(str(folder / "d")) == 1 and str(folder / "link") not in held


# Confinement


def status_of(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def test_posture(server, folder):
    (folder / "d").mkdir()
    server.export("d", folder / "d")
    pid = server.process.pid
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        status = status_of(f"{pid}/task/{task.name}")
        # CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID SETFCAP
        for field in ("CapPrm", "CapEff"):
            assert int(status[field], 16) == 0x800000DB, (task, field)
        for field in ("CapInh", "CapBnd", "CapAmb"):
            assert int(status[field], 16) == 0, (task, field)
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        assert status["Groups"].strip() == ""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8") as f:
        lines = f.read().splitlines()
    assert len(lines) == 1 and " ro," in lines[0] and "tmpfs" in lines[0]
    assert os.listdir(f"/proc/{pid}/root") == []
    for name in ("mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    with open(f"/proc/{pid}/net/dev", encoding="utf-8") as f:
        assert [line.split(":")[0].strip() for line in f.read().splitlines()[2:]] == ["lo"]
    known = (str(folder / "d"), str(folder / "fs.log"), "/dev/null", "/dev/fuse", "anon_inode", "socket", "pipe", "/")
    held = [os.readlink(p) for p in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    assert [h for h in held if not h.startswith(known)] == []


def test_foreign_descriptors_are_closed(folder):
    (folder / "secret").write_text("secret")
    fd = os.open(folder / "secret", os.O_RDONLY)
    os.set_inheritable(fd, True)
    server = None
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD, 500)
        os.set_inheritable(high, True)
        # As a careless parent would start it: everything inheritable is inherited.
        original = subprocess.Popen

        def careless(*args, **kwargs):
            kwargs["close_fds"] = False
            for one in kwargs.pop("pass_fds"):
                os.set_inheritable(one, True)
            return original(*args, **kwargs)

        fs_server.subprocess.Popen = careless
        try:
            server = fs_server.Server(PROGRAM, folder)
        finally:
            fs_server.subprocess.Popen = original
        server.wait_mounted()
        held = [os.readlink(p) for p in pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir()]
        assert str(folder / "secret") not in held
        os.close(high)
    finally:
        os.close(fd)
        if server:
            server.close()


def test_links_swapped_under_the_server(server, folder):
    """A directory and a link out of the tree take turns under one name; the server follows no link."""
    tree = folder / "tree"
    (tree / "real").mkdir(parents=True)
    (folder / "outside").mkdir()
    (folder / "outside/f").write_text("canary")
    os.symlink("../outside", tree / "link")
    (tree / "real/f").write_text("inside")
    os.rename(tree / "real", tree / "name")
    ours = server.export("tree", tree)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            rename2(tree / "name", tree / "link", RENAME_EXCHANGE)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                # ../outside of the client's mount is not there
                seen.add((ours / "name/f").read_text())
                (ours / "name/new").write_text("x")
                (ours / "name/new").unlink()
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP), error
    finally:
        stop.set()
        thread.join()
    assert seen <= {"inside"}
    assert os.listdir(folder / "outside") == ["f"]
    assert (folder / "outside/f").read_text() == "canary"


@pytest.mark.skipif(SANITIZED, reason="sanitizer builds only report calls that are not allowed")
def test_all_operations_pass_the_filter(server, folder):
    """Calls that C libraries make in more than one way, each once (rename without flags, writes with)."""
    (folder / "d").mkdir()
    d = server.export("d", folder / "d")
    (d / "a").write_text("a")
    os.rename(d / "a", d / "b")
    rename2(d / "b", d / "c", RENAME_NOREPLACE)
    fd = os.open(d / "c", os.O_RDWR | os.O_APPEND | os.O_DSYNC)
    os.write(fd, b"x")
    os.preadv(fd, [bytearray(10)], 0)
    os.close(fd)
    assert as_user(lambda: (d / "c").read_text()) is None
    assert server.process.poll() is None


# Beginning and end


def test_the_end_of_the_control_socket_ends_the_server(server):
    server.control.shutdown(socket.SHUT_RDWR)
    assert server.process.wait(20) == 0


def test_unmounting_ends_the_server(server):
    subprocess.run(["umount", server.mount], check=True)
    assert server.process.wait(20) == 0


@pytest.mark.parametrize(
    "options, text",
    [
        ([], "give one of"),
        (["--mount=/x", "--fuse-fd=3"], "descriptor 3"),
        (["--vhost-user-fd=77"], "descriptor 77"),
        (["--vhost-user-fd=x"], "takes a number"),
        (["--fuse-fd=1"], "takes a number"),
        (["--mount=/not/there"], "/not/there"),
        (["--mount=/", "extra"], "extra"),
        (["--workers=0", "--mount=/x"], "takes a number"),
        (["--request-queues=99", "--mount=/x"], "takes a number"),
        (["--export=x", "--mount=/x"], "NAME=PATH"),
        (["--export=x=/not/there", "--mount=/x"], "/not/there"),
        (["--export=x=/:odd", "--mount=/x"], "odd"),
        (["--log-level=loud"], "loud"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_options_are_explained(options, text):
    done = subprocess.run([PROGRAM, *options], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode in (1, 2)
    assert text in done.stderr and done.stdout == ""


def test_help_and_version():
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert "--vhost-user-fd" in done.stdout and done.stderr == ""
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("harpoon-fs ")
