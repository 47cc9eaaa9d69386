"""Sockets of the host that a container mounts, and name servers on its namespace's loopback interface."""

import os
import pathlib
import random
import socket
import struct
import threading

import pytest

from harpoonlib import netlab

# Connects to a unix socket, sends what it is told to, then copies the answer to stdout until the end.
CLIENT = (
    "use Socket; $| = 1; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; connect($s, pack_sockaddr_un($ARGV[0]))"
    " or die qq(connect: $!\\n); syswrite($s, $ARGV[1]); shutdown($s, 1); my $d;"
    " while (sysread($s, $d, 65536)) { syswrite(STDOUT, $d) }"
)


# Makes so many connections, then uses each.
MANY = (
    "use Socket; my @s; for my $i (0 .. $ARGV[1] - 1) { socket($s[$i], PF_UNIX, SOCK_STREAM, 0) or die;"
    " connect($s[$i], pack_sockaddr_un($ARGV[0])) or die qq(connect: $!\n) }"
    " for my $i (reverse 0 .. $#s) { syswrite($s[$i], qq(n$i\n)); shutdown($s[$i], 1) }"
    " for my $i (0 .. $#s) { my $d; while (sysread($s[$i], $d, 65536)) { print $d } }"
)


class Server:
    """A unix socket server: answers each connection by handler(connection, its peer's uid, gid)."""

    def __init__(self, path, handler, mode=0o666):
        self.path, self.handler = path, handler
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(str(path))
        os.chmod(path, mode)
        self.sock.listen(64)
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def _loop(self):
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn):
        with conn:
            _, uid, gid = struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            self.handler(conn, uid, gid)

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(10)
        os.unlink(self.path)


def read_all(conn):
    data = b""
    while True:
        more = conn.recv(65536)
        if not more:
            return data
        data += more


def echo(conn, uid, gid):
    conn.sendall(f"{uid}:{gid} ".encode() + read_all(conn))


@pytest.fixture
def server(host_folder):
    """A server whose path is short enough for a socket's address."""
    made = []

    def make(handler=echo, mode=0o666):
        folder = pathlib.Path(f"/run/relay-{len(made)}")
        folder.mkdir()
        made.append(Server(folder / "sock", handler, mode))
        return made[-1].path

    yield make
    for item in made:
        item.close()
        item.path.parent.rmdir()


def mount(path, destination="/run/host.sock", kind="bind"):
    return ["--mount", f"type={kind},src={path},dst={destination},options=bind:rw"]


def client(text="hello", path="/run/host.sock"):
    return ["/usr/bin/perl", "-e", CLIENT, path, text]


def test_socket_of_the_host(box, debian, server):
    """A mounted socket can be connected to, from the start and again, by execs too."""
    path = server()
    name = box.detached("sleep", "1000", image="debian", options=mount(path))
    for text in ("one", "two", "three"):
        assert box.execute(name, *client(text)) == f"0:0 {text}"
    assert box.execute(name, "sh", "-c", "[ -S /run/host.sock ] && stat -c %a /run/host.sock") == "666\n"
    box.kill_and_delete(name)


def test_bytes_and_half_close(box, debian, server):
    """A megabyte back, after the guest's side has said that it has no more."""
    data = random.Random(5).randbytes(1 << 20)

    def answer(conn, _uid, _gid):
        assert read_all(conn) == b"give"
        conn.sendall(data)

    path = server(answer)
    done = box.run(*client("give"), image="debian", options=mount(path))
    assert done.code == 0 and done.out_bytes == data, done.code


def test_many_connections_at_once(box, debian, server):
    path = server()
    done = box.run("perl", "-e", MANY, "/run/host.sock", "40", image="debian", options=mount(path))
    assert done.code == 0, done
    assert done.out == "".join(f"0:0 n{i}\n" for i in range(40)), done


def test_server_sees_the_user_of_the_container(box, server):
    """Not root, because the container's process is not; and a socket that user may not open stays closed."""
    path, private = server(), server(mode=0o600)
    options = [*mount(path), *mount(private, "/run/private.sock")]
    for folder in ("/usr", "/lib", "/lib64"):  # perl is the host's; the image is the one that has a user
        options += ["--mount", f"type=bind,src={folder},dst={folder},options=rbind:ro"]
    name = box.detached("sleep", "1000", image="user", options=options)
    assert box.execute(name, "id", "-u") == "1000\n"
    assert box.execute(name, *client("me")) == "1000:1000 me"
    fifos = ["--fifo-dir", box.daemon.fifos]
    done = box.ctr("task", "exec", *fifos, "--exec-id", "no", name, *client("me", "/run/private.sock"))
    assert done.code != 0 and "ermission denied" in done.err, done
    box.kill_and_delete(name)


def test_nobody_listens(box, debian, server):
    """The server has gone: an end, not a hang."""
    path = server()
    name = box.detached("sleep", "1000", image="debian", options=mount(path))
    moved = path.with_name("moved")
    path.rename(moved)
    probe = socket.socket(socket.AF_UNIX)
    moved.unlink()
    probe.bind(str(path))
    # The mounted one is the old file: nobody connects to what has its name now.
    assert box.execute(name, *client("still")) == "0:0 still"
    probe.close()
    box.kill_and_delete(name)


# ---- name servers ----


def dns_answer(query, size=1):
    """Answers a query for A records with `size` of them."""
    end = query.index(b"\0", 12) + 5
    is_a = query[end - 3] == 1
    count = size if is_a else 0
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([10, 9, 8, 7])
    return query[:2] + b"\x81\x80\0\1" + struct.pack(">H", count) + b"\0\0\0\0" + query[12:end] + record * count


@pytest.fixture
def name_server(netns):
    """A name server on 127.0.0.11 of the namespace, TCP only, as docker's is seen by the relay."""
    made = {}

    def make_socket():
        with open(f"/run/netns/{netns}", "rb") as there, open("/proc/thread-self/ns/net", "rb") as here:
            os_setns(there.fileno())
            try:
                netlab.sh("ip link set lo up")
                made["sock"] = socket.socket()
                made["sock"].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made["sock"].bind(("127.0.0.11", 53))
            finally:
                os_setns(here.fileno())

    thread = threading.Thread(target=make_socket)
    thread.start()
    thread.join()
    sock = made["sock"]
    sock.listen(8)
    asked = []

    def serve():
        while True:
            try:
                conn, _ = sock.accept()
            except OSError:
                return
            with conn:
                length = conn.recv(2, socket.MSG_WAITALL)
                if len(length) < 2:
                    continue
                query = conn.recv(struct.unpack(">H", length)[0], socket.MSG_WAITALL)
                asked.append(query)
                answer = dns_answer(query, 100 if b"\3big" in query else 1)
                conn.sendall(struct.pack(">H", len(answer)) + answer)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield asked
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    server.join(10)


def os_setns(fd):
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.mark.harpoon
def test_name_server_on_loopback(box, netns, name_server, host_folder):
    """127.0.0.11 of resolv.conf, which is docker's: asked with datagrams in the guest, answered in the namespace."""
    (host_folder / "resolv.conf").write_text("nameserver 127.0.0.11\noptions ndots:0\n")
    options = [*netlab.joined(netns), *mount(host_folder / "resolv.conf", "/etc/resolv.conf")]
    done = box.sh("nslookup one.example && nslookup two.example", options=options)
    assert done.code == 0 and done.out.count("10.9.8.7") == 2, done
    assert len(name_server) >= 2
