"""Networks: the interfaces of a container's namespace are the guest's, whoever made them, and whenever."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import tarfile
import threading

import pytest

from conftest import RUNTIME
from harpoonlib import images, netlab, paths
from harpoonlib.containerd import wait_until

# Bytes of the large transfer, each way
TRANSFER = int(os.environ.get("HARPOON_TEST_TRANSFER", "1000")) * 1000 * 1000


def refused(box, options):
    """A container that does not start; ctr leaves it behind then."""
    name = box.name()
    done = box.sh("true", name=name, options=options)
    assert done.code != 0, done
    box.daemon.remove(name)
    return done


def addresses(text, device="eth0"):
    """{(address/length, scope)} of `ip -o addr`."""
    found = re.findall(rf"{device}(?:@\S+)?\s+inet6?\s+(\S+)(?: peer \S+)?.*? scope (\S+)", text)
    return set(found)


def routes(text):
    """Lines of `ip route`, without what busybox does not print (next hops) or prints differently."""
    lines = set()
    for line in text.splitlines():
        line = re.sub(r"\s+(proto|pref|error|weight) \S+", "", line.strip())
        line = re.sub(r"\b(linkdown|dead|default$)", "default" if line == "default" else "", line)
        if line and not line.startswith(("broadcast", "local", "multicast", "ff00::", "nexthop")):
            lines.add(" ".join(line.split()))
    return lines


def serve(sock, handler):
    """Serves connections in the background until the socket is closed."""

    def loop():
        while True:
            try:
                conn, _ = sock.accept()
            except OSError:
                return
            with conn:
                handler(conn)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def listener():
    """Makes listening sockets, which are closed at the end."""
    made = []

    def make(address, handler, family=socket.AF_INET):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(8)
        made.append((sock, serve(sock, handler)))
        return sock.getsockname()[1]

    yield make
    for sock, thread in made:
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        thread.join(10)


def connect(address, timeout=60):
    """A connection to a server in a container that may still be starting."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

    def attempt():
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(10)
        try:
            sock.connect(address)
            return sock
        except OSError:
            sock.close()
            return None

    sock = wait_until(attempt, timeout, 0.1)
    assert sock, f"nobody listens at {address}"
    sock.settimeout(timeout)
    return sock


def read_all(sock):
    data = b""
    while True:
        more = sock.recv(1 << 16)
        if not more:
            return data
        data += more


def pid_netns(box, name):
    return f"/proc/{box.daemon.tasks()[name][0]}/ns/net"


@pytest.mark.smoke
def test_no_network_is_loopback_only(box):
    done = box.sh("ls /sys/class/net; ip -o addr; ip route; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo pong")
    assert done.code == 0, done
    assert done.out.splitlines()[0] == "lo" and "eth" not in done.out and "pong" in done.out, done


@pytest.mark.nested_kvm
@pytest.mark.smoke
def test_cni_bridge(box, cni):
    """ctr gives the namespace its interface between Create and Start."""
    script = (
        "ip -o addr; echo ==; ip route; echo ==; ip -6 route; echo ==; cat /sys/class/net/eth0/address;"
        "cat /sys/class/net/eth0/mtu; ls /sys/class/net;"
        "ping -c 2 -W 10 10.88.0.1 && ping -c 2 -W 10 fd00:88::1"
    )
    done = box.sh(script, options=["--cni"])
    assert done.code == 0, done
    parts = done.out.split("==\n")
    here = addresses(parts[0])
    # Which one of the range depends on who had one before
    own = [address for address, scope in here if scope == "global"]
    assert sorted(re.sub(r"[0-9a-f]+/", "N/", address) for address in own) == ["10.88.0.N/24", "fd00:88::N/64"], done
    assert "default via 10.88.0.1 dev eth0" in parts[1], done
    assert "default via fd00:88::1 dev eth0" in parts[2], done
    rest = parts[3].splitlines()
    assert rest[1] == "1500" and "eth0" in rest and "eth1" not in rest, done
    assert done.out.count("0% packet loss") == 2, done


def test_guest_mirrors_the_namespace(box, netns):
    """Addresses, routes of every table, MTU, hardware address and neighbours are those of the namespace."""
    netlab.sh(
        """
        ip link set eth0 address 02:00:00:00:77:02
        ip addr add 10.77.9.9/32 dev eth0
        ip route add 10.1.0.0/16 via 10.77.0.9
        ip route add 10.2.0.0/16 nexthop via 10.77.0.11 nexthop via 10.77.0.12
        ip route add 10.3.0.0/16 via 192.168.1.1 dev eth0 onlink
        ip route add 10.4.0.0/16 dev eth0 scope link metric 55
        ip route add blackhole 10.5.0.0/16
        ip route add 10.6.0.0/16 via 10.77.0.6 table 100
        ip -6 route add fd00:1::/48 via fd00:77::9
        ip neigh add 10.77.0.99 lladdr 02:00:00:00:77:99 dev eth0 nud permanent
        ip neigh add fd00:77::99 lladdr 02:00:00:00:77:98 dev eth0 nud permanent
        """,
        netns,
    )
    show = "ip -o addr show dev eth0; echo ==; ip route; echo ==; ip -6 route; echo ==; ip route show table 100"
    want = netlab.sh(show, netns).split("==\n")
    done = box.sh(
        f"{show}; echo ==; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip neigh", options=netlab.joined(netns)
    )
    assert done.code == 0, done
    have = done.out.split("==\n")
    assert addresses(have[0]) == addresses(want[0]), (want[0], done)
    for i in (1, 2, 3):
        assert routes(have[i]) == routes(want[i]), (want[i], done)
    last = have[4].splitlines()
    assert last[:2] == ["02:00:00:00:77:02", "1400"], done
    assert "10.77.0.99 dev eth0 lladdr 02:00:00:00:77:99" in have[4] and "PERMANENT" in have[4], done
    assert "fd00:77::99 dev eth0 lladdr 02:00:00:00:77:98" in have[4], done
    # Nothing has changed for the namespace.
    assert netlab.sh(show, netns).split("==\n") == want


def test_several_interfaces(box, cni):
    """Three interfaces with names of their own; a network device that has no use is not seen."""
    conf = box.daemon.conf.read_text() + "[network]\nnics = 4\n"
    box.daemon.write_conf(conf)
    cni.configure(
        cni.bridge(),
        cni.script("""
            ip link add net1 type veth peer name net1far
            ip link add storage0 type veth peer name storefar
            ip link set storage0 mtu 9000
            ip link set net1 up; ip link set storage0 up
            ip addr add 10.91.0.1/24 dev net1; ip addr add 10.92.0.1/24 dev storage0
        """),
    )
    done = box.sh("ls /sys/class/net | tr '\\n' ' '; cat /sys/class/net/storage0/mtu; ip -o -4 addr", options=["--cni"])
    assert done.code == 0, done
    names = done.out.splitlines()[0].split()
    assert {"lo", "eth0", "net1", "storage0"} <= set(names) and not {"eth1", "eth2", "eth3"} & set(names), done
    assert "10.91.0.1/24" in done.out and "10.92.0.1/24" in done.out and "9000" in done.out, done


@pytest.mark.harpoon
def test_more_interfaces_than_devices(box, netns):
    netlab.sh("for i in 1 2 3; do ip link add d$i type veth peer name e$i; ip link set d$i up; done", netns)
    done = refused(box, netlab.joined(netns))
    assert "raise 'nics' of harpoon.conf" in done.err, done


def test_two_containers(box, cni, host_folder):
    """From one VM to another by name of its address, over the bridge."""
    (host_folder / "page").write_text("from the other VM\n")
    mount = ["--mount", f"type=bind,src={host_folder},dst=/srv,options=rbind:ro"]
    server = box.detached("httpd", "-f", "-p", "80", "-h", "/srv", options=["--cni", *mount])
    text = netlab.sh("ip -o -4 addr show dev eth0", pid_netns(box, server))
    address = re.search(r"inet (\S+)/", text).group(1)
    with connect((address, 80)) as sock:
        sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        assert b"from the other VM" in read_all(sock)
    done = box.sh(f"wget -q -O - http://{address}/page", options=["--cni"])
    assert (done.code, done.out) == (0, "from the other VM\n"), done
    box.kill_and_delete(server)
    # ctr run -d leaves the end of CNI to its caller.
    netlab.sh("rm -rf /var/lib/cni/networks/lab /var/lib/cni/results")


def test_ping_from_outside(box, netns):
    """The guest answers ARP, neighbour discovery and ping, and nobody else does."""
    name = box.detached("sleep", "1000", options=netlab.joined(netns))
    for address in ("10.77.0.2", "fd00:77::2"):
        assert "0% packet loss" in netlab.sh(f"ping -c 3 -i 0.2 -W 20 {address}")
    # The guest's own counters: every one of them reached it.
    text = box.execute(name, "cat", "/proc/net/snmp")
    rows = [line.split() for line in text.splitlines() if line.startswith("Icmp:")]
    assert int(dict(zip(*rows))["InEchos"]) == 3, text
    box.kill_and_delete(name)


@pytest.mark.harpoon
def test_namespace_is_as_before(box, netns):
    """After the VM, the namespace's own stack has its interface back."""
    before = netlab.sh("ip -o addr; ip route; ip -6 route; tc qdisc; tc filter show dev eth0 ingress", netns)
    name = box.detached("sleep", "1000", options=netlab.joined(netns))
    assert "ingress" in netlab.sh("tc qdisc show dev eth0", netns)
    box.kill_and_delete(name)
    assert netlab.sh("ip -o addr; ip route; ip -6 route; tc qdisc; tc filter show dev eth0 ingress", netns) == before
    assert "0% packet loss" in netlab.sh("ping -c 1 -W 5 10.77.0.2")


@pytest.mark.harpoon
def test_namespace_is_as_before_after_a_crash(box, netns):
    """The shim is killed: the `delete` command takes traffic control away."""
    name = box.detached("sleep", "1000", options=netlab.joined(netns))
    os.kill(box.shim_pid(name), signal.SIGKILL)
    box.wait_status(name, "GONE")
    assert wait_until(lambda: "ingress" not in netlab.sh("tc qdisc show dev eth0", netns), 20), "still there"
    box.ctr("container", "rm", name)
    assert "0% packet loss" in netlab.sh("ping -c 1 -W 5 10.77.0.2")


@pytest.mark.harpoon
def test_two_vms_do_not_share_an_interface(box, netns):
    first = box.detached("sleep", "1000", options=netlab.joined(netns))
    done = refused(box, netlab.joined(netns))
    assert "two VMs cannot share an interface" in done.err, done
    # The first one does not suffer.
    assert "0% packet loss" in netlab.sh("ping -c 1 -W 20 10.77.0.2")
    box.kill_and_delete(first)


@pytest.mark.harpoon
def test_namespace_that_was_a_vms_own(box, cni):
    """Kept by somebody after the container's end, another container has the interface, and nothing of the first VM's."""
    name = box.detached("sleep", "1000", options=["--cni"])
    with open(pid_netns(box, name), encoding="ascii") as kept:
        box.kill_and_delete(name)
        path = f"/proc/{os.getpid()}/fd/{kept.fileno()}"
        assert "hpn0" in netlab.sh("ip -o link", path)
        done = box.sh("ls /sys/class/net; ping -c 1 -W 10 10.88.0.1", options=["--with-ns", f"network:{path}"])
        assert done.code == 0 and done.out.splitlines()[:2] == ["eth0", "lo"], done
    # ctr run -d leaves the end of CNI to its caller.
    netlab.sh("rm -rf /var/lib/cni/networks/lab /var/lib/cni/results")


@pytest.mark.harpoon
def test_not_a_namespace(box, host_folder):
    (host_folder / "file").touch()
    for path in (host_folder / "file", host_folder / "nothing"):
        done = refused(box, ["--with-ns", f"network:{path}"])
        assert "network namespace" in done.err, done


def test_large_transfer(box, netns):
    """There and back through the guest, bit for bit."""
    name = box.detached("nc", "-l", "-p", "9", "-e", "cat", options=netlab.joined(netns))
    sent, received = hashlib.sha256(), hashlib.sha256()
    block = random.Random(1).randbytes(1 << 20)
    with connect(("10.77.0.2", 9)) as sock:

        def send():
            left = TRANSFER
            while left:
                part = block[: min(left, len(block))]
                sock.sendall(part)
                sent.update(part)
                left -= len(part)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        size = 0
        while True:
            data = sock.recv(1 << 20)
            if not data:
                break
            received.update(data)
            size += len(data)
        sender.join()
    assert size == TRANSFER and received.digest() == sent.digest()
    box.wait_status(name, "STOPPED")
    assert box.delete(name) == 0


UDP_ECHO = (
    "use Socket; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; bind($s, sockaddr_in(53, INADDR_ANY)) or die;"
    "while (my $from = recv($s, my $data, 65536, 0)) { send($s, $data, 0, $from) }"
)


def test_udp(box, netns, debian):
    """Datagrams of all sizes, fragments too."""
    name = box.detached("perl", "-e", UDP_ECHO, image="debian", options=netlab.joined(netns))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect(("10.77.0.2", 53))

        def answer(data):
            try:
                sock.send(data)
                return sock.recv(65536)
            except OSError:
                return None

        assert wait_until(lambda: answer(b"ready") == b"ready", 60), "no answer"
        sock.settimeout(20)
        for size in (1, 1372, 1373, 8000, 60000):
            data = random.Random(size).randbytes(size)
            assert answer(data) == data, size
    box.kill_and_delete(name)


def test_ipv6_server(box, netns):
    name = box.detached("nc", "-l", "-p", "80", "-e", "echo", "six", options=netlab.joined(netns))
    with connect(("fd00:77::2", 80)) as sock:
        assert read_all(sock) == b"six\n"
    box.wait_status(name, "STOPPED")
    assert box.delete(name) == 0


def test_dns_file(box, cni, host_folder):
    """A name server by its address in resolv.conf, asked over the network."""
    (host_folder / "resolv.conf").write_text("nameserver 10.88.0.1\n")
    mount = f"type=bind,src={host_folder}/resolv.conf,dst=/etc/resolv.conf,options=rbind:ro"
    name = box.detached("sleep", "1000", options=["--cni", "--mount", mount])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("10.88.0.1", 53))
        sock.settimeout(60)

        def answer():
            for _ in range(2):
                query, peer = sock.recvfrom(512)
                end = query.index(b"\0", 12) + 5
                kind = query[end - 3]
                found = kind == 1
                head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if found else b"\0\0") + b"\0\0\0\0"
                record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([10, 88, 0, 200]) if found else b""
                sock.sendto(head + query[12:end] + record, peer)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        text = box.execute(name, "nslookup", "lab.example")
    assert "10.88.0.200" in text, text
    box.kill_and_delete(name)
    netlab.sh("rm -rf /var/lib/cni/networks/lab /var/lib/cni/results")


# ---- the host's network, by passt ----


@contextlib.contextmanager
def serve_outside(netns, text):
    """A TCP server in a namespace, for one connection of each family; its process."""
    program = (
        "import socket, sys\n"
        "for family, address in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):\n"
        "    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)\n"
        "    s.bind((address, 80)); s.listen(); print('ready', flush=True) if family == socket.AF_INET else None\n"
        f"    c, peer = s.accept(); c.sendall((peer[0] + ' {text}\\n').encode()); c.close()\n"
    )
    command = ["nsenter", f"--net=/run/netns/{netns}", "/usr/bin/python3", "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.harpoon
def test_host_network(box, uplink):
    """Connections leave with the host's address; the guest's interface looks like the host's."""
    with serve_outside(uplink, "hello") as server:
        script = (
            "ip -o addr show dev up0; ip route; echo ==; nc -w 30 192.168.50.1 80; nc -w 30 fd00:50::1 80;"
            "ping -c 1 -W 20 192.168.50.1"
        )
        done = box.sh(script, options=["--net-host"])
        assert done.code == 0, done
        head, rest = done.out.split("==\n")
        here = addresses(head, "up0")
        assert ("192.168.50.2/24", "global") in here and ("fd00:50::2/64", "global") in here, done
        assert "default via 192.168.50.1 dev up0" in head, done
        assert "192.168.50.2 hello" in rest and "fd00:50::2 hello" in rest, done
        assert server.wait(20) == 0, done


@pytest.mark.harpoon
def test_host_network_listens(box, uplink):
    """What listens in the guest can be reached at the host's addresses, as long as it listens."""
    script = "nc -ll -p 80 -e echo all & httpd -f -p 127.0.0.1:81 -h / & echo $! > /pid; sleep 1000"
    name = box.detached("sh", "-c", script, options=["--net-host"])
    for address in (("192.168.50.2", 80), ("127.0.0.1", 80)):
        with connect(address) as sock:
            assert read_all(sock) == b"all\n"
    with connect(("127.0.0.1", 81)) as sock:
        sock.sendall(b"GET /pid HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in read_all(sock)
    client = "import socket; s = socket.create_connection(('192.168.50.2', 80), 60); print(s.recv(99).decode())"
    assert "all" in netlab.sh(f'/usr/bin/python3 -c "{client}"', uplink)

    def refuses(port):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED

    box.execute(name, "sh", "-c", "kill $(cat /pid)")
    assert wait_until(lambda: refuses(81), 20, 0.1) and not refuses(80)
    box.kill_and_delete(name)
    assert refuses(80)


def ask(sock, text):
    """What a server of datagrams answers; lost ones are sent again, also those of before it served."""
    answers = []

    def is_answered():
        try:
            sock.send(text)
            answers.append(sock.recv(70000))
        except (TimeoutError, ConnectionRefusedError):
            return False
        return True

    sock.settimeout(1)
    assert wait_until(is_answered, 60, 0.1)
    return answers[0]


def refuses(sock):
    """Nobody is at the port: what is sent comes back as an error."""
    try:
        sock.send(b"x")
        sock.recv(10)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        pass
    return False


def udp(address, family=socket.AF_INET):
    """Takes answers only from the address that it asks."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect(address)
    return sock


@pytest.mark.harpoon
def test_host_network_datagrams(box, uplink, programs):
    """Servers of datagrams, too: every peer has its own answers, from the address it asked, as long as somebody serves."""
    netlab.sh("ip addr add 192.168.50.7/24 dev up0")
    script = "/programs/udp serve 69 & echo $! > /pid; /programs/udp serve 70 local & sleep 1000"
    options = ["--net-host", "--mount", f"type=bind,src={programs},dst=/programs,options=rbind:ro"]
    name = box.detached("sh", "-c", script, options=options)
    with udp(("127.0.0.1", 69)) as one, udp(("127.0.0.1", 69)) as two, udp(("127.0.0.1", 70)) as local:
        assert ask(one, b"one") == b"one" and ask(two, b"two") == b"two" and ask(local, b"local") == b"local"
        assert ask(one, b"") == b"" and ask(two, b"x" * 60000) == b"x" * 60000
        with udp(("::1", 69), socket.AF_INET6) as six:
            assert ask(six, b"six") == b"six"
        with udp(("192.168.50.2", 70)) as other:
            other.settimeout(10)
            assert refuses(other)
        client = (
            "import socket, sys; s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET,"
            "socket.SOCK_DGRAM); s.connect((sys.argv[1], 69)); s.settimeout(20); s.send(sys.argv[1].encode());"
            "print(s.recv(99).decode())"
        )
        for address in ("192.168.50.2", "192.168.50.7", "fd00:50::2"):
            assert netlab.sh(f'/usr/bin/python3 -c "{client}" {address}', uplink).strip() == address
        # More peers than are remembered: the oldest make room, and may come again
        for number in range(300):
            with udp(("127.0.0.1", 69)) as peer:
                assert ask(peer, b"%d" % number) == b"%d" % number
        assert ask(one, b"again") == b"again"
        box.execute(name, "sh", "-c", "kill $(cat /pid)")
        assert wait_until(lambda: refuses(one) and refuses(two), 20, 0.1)
        assert ask(local, b"local") == b"local"
    box.kill_and_delete(name)


@pytest.mark.harpoon
def test_host_network_server_that_begins(box, uplink, programs):
    """Who serves and speaks first does both from one port, as without a VM."""
    peer = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.168.50.1", 5061))
s.settimeout(60)
print(*s.recvfrom(99), flush=True)
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.connect(("192.168.50.2", 5060))
for sock in (s, other):
    sock.settimeout(20)
    sock.sendto(b"answer", ("192.168.50.2", 5060)) if sock is s else sock.send(b"answer")
    got = b"first"
    while got == b"first":
        got = sock.recv(99)
    print(got, flush=True)
"""
    options = ["--net-host", "--mount", f"type=bind,src={programs},dst=/programs,options=rbind:ro"]
    command = ["nsenter", f"--net=/run/netns/{uplink}", "/usr/bin/python3", "-c", peer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        name = box.detached("/programs/udp", "serve", "5060", "first", "192.168.50.1", "5061", options=options)
        out, _ = process.communicate(timeout=120)
    assert out.splitlines() == ["b'first' ('192.168.50.2', 5060)", "b'answer'", "b'answer'"], out
    box.kill_and_delete(name)


@pytest.mark.harpoon
def test_host_network_ends_with_the_vm(box, uplink):
    """passt is one of the VM's processes: unprivileged, and gone when the VM is killed."""
    name = box.detached("sleep", "1000", options=["--net-host"])
    pids = [pid for program, found in box.processes(name).items() if program.startswith("passt") for pid in found]
    assert len(pids) == 1, box.processes(name)
    status = pathlib.Path(f"/proc/{pids[0]}/status").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.M) and not re.search(r"^Uid:\s+0\s", status, re.M), status
    box.kill_and_delete(name)
    assert not pathlib.Path(f"/proc/{pids[0]}").exists()


@pytest.mark.harpoon
def test_host_network_of_an_offline_host(box):
    """Without a default route there is nothing to lend: loopback, and a word in the log."""
    done = box.sh("ls /sys/class/net", options=["--net-host"])
    assert (done.code, done.out) == (0, "lo\n"), done


# ---- namespaces prepared by OCI hooks ----

HOOK = """\
#!/usr/bin/python3
import json, os, sys
os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
sys.path.insert(0, {scripts!r})
from harpoonlib import netlab
state = json.load(sys.stdin)
conf = json.loads({conf!r})
ports = {{"portMappings": [{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}]}}
netns = "/proc/%d/ns/net" % state["pid"] if state.get("pid") else ""
netlab.invoke(sys.argv[1], conf, state["id"], netns, ports)
"""


def spec_with_hooks(box, cni, folder, *argv):
    """A config.json as nerdctl writes it: CNI is called by hooks, on the host, with the task's pid."""
    conf = cni.configure(cni.bridge(), {"type": "portmap", "capabilities": {"portMappings": True}}, name="hooks")
    hook = folder / "hook"
    hook.write_text(HOOK.format(scripts=str(paths.ROOT / "scripts"), conf=json.dumps(conf)))
    hook.chmod(0o755)
    (folder / "rootfs").mkdir()
    tarfile.open(fileobj=io.BytesIO(images.busybox_layer())).extractall(folder / "rootfs")
    spec = json.loads(box.ctr("oci", "spec").out)
    spec["root"]["path"] = str(folder / "rootfs")
    # What is there otherwise is the folder of all
    spec["linux"]["cgroupsPath"] = f"/{box.daemon.namespace}/{box.name()}"
    spec["process"].update(args=list(argv), env=["PATH=/bin"])
    spec["hooks"] = {
        "createRuntime": [{"path": str(hook), "args": ["hook", "ADD"]}],
        "poststop": [{"path": str(hook), "args": ["hook", "DEL"]}],
    }
    (folder / "config.json").write_text(json.dumps(spec))
    return folder / "config.json"


def test_hooks_and_a_published_port(box, cni, uplink, host_folder):
    """The interface appears inside Create; a port of the host leads into the VM; poststop takes it away."""
    config = spec_with_hooks(box, cni, host_folder, "nc", "-ll", "-p", "80", "-e", "echo", "published")
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    name = box.name()
    options = ["-d", "--null-io", "--config", config]
    done = box.ctr(*box.daemon.run_args(name, "", runtime=RUNTIME, options=options)[:-1])
    assert done.code == 0, done
    # From another host, through NAT; and from this one to the container itself.
    with connect(("10.88.0.2", 80)) as sock:
        assert read_all(sock) == b"published\n"
    client = "import socket; s = socket.create_connection(('192.168.50.2', 8080), 60); print(s.recv(99).decode())"
    assert "published" in netlab.sh(f'/usr/bin/python3 -c "{client}"', uplink)
    box.kill_and_delete(name)
    assert "10.88.0.2" not in netlab.sh("iptables -t nat -S")
    assert not list(netlab.DATA.glob("networks/hooks/10.88*"))
