"""Real work in containers: servers, databases, compilers and package managers, as they come from Debian.

What they answer is compared with what is known to be right, never with a clock. Everything here must hold under any
runtime. The programs are in the image `workloads`.
"""

import concurrent.futures
import contextlib
import hashlib
import http.client
import os
import random
import re
import socket
import subprocess
import textwrap
import zipfile

import pytest
from harpoonlib import netlab
from harpoonlib.containerd import wait_until

MIB = 1 << 20
# An emulated processor runs a database here.
LONG = 240


@pytest.fixture(scope="session")
def workloads(session_box):
    """The image; skips when it cannot be made (no network and nothing in the cache)."""
    try:
        return session_box.image("workloads")
    except (RuntimeError, OSError) as error:
        return pytest.skip(f"no image of workloads: {error}")


def bind(source, target, mode="rw"):
    return ["--mount", f"type=bind,src={source},dst={target},options=rbind:{mode}"]


@contextlib.contextmanager
def running(box, *argv, stop="TERM", code=0, **kwargs):
    """A container in the foreground of a `ctr run --rm`, which also takes its network down. Ended by a signal."""
    name = kwargs.setdefault("name", box.name())
    process = box.background(*argv, **kwargs)
    try:
        assert wait_until(lambda: box.status(name) == "RUNNING" or process.poll() is not None, 60, 0.1)
        yield name
    except BaseException:
        stop = "KILL"
        raise
    finally:
        box.kill(name, stop)
        out, err = process.communicate(timeout=60)
        text = (out + err).decode(errors="replace")
        print(f"{name} ended with {process.returncode}: {text[-3000:]}")
    assert process.returncode == code, text


def address_of(box, name):
    """The container's address on the bridge."""
    pid = box.daemon.tasks()[name][0]
    text = wait_until(lambda: netlab.sh("ip -o -4 addr show dev eth0 || true", f"/proc/{pid}/ns/net"), 10, 0.1)
    return re.search(r"inet (\S+)/", text).group(1)


def wait_for_port(address, port, timeout=60):
    def attempt():
        with contextlib.suppress(OSError), socket.create_connection((address, port), 5):
            return True
        return False

    assert wait_until(attempt, timeout, 0.1), f"nobody listens at {address} port {port}"


def python_in(netns, program):
    """What a Python program prints in a named network namespace."""
    command = ["nsenter", f"--net=/run/netns/{netns}", "/usr/bin/python3", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done
    return done.stdout


# ---- nginx ----

NGINX_CONF = """\
daemon off; worker_processes 2; error_log /log/error.log; pid /run/nginx.pid;
events { worker_connections 256; }
http {
    include /etc/nginx/mime.types; access_log /log/access.log; sendfile on; gzip on; gzip_types text/plain;
    server { listen 80; root /srv; location /echo { return 200 "$request_method $arg_q"; } }
}
"""


def test_nginx_through_a_published_port(box, cni, uplink, host_folder, workloads):
    """Pages, ranges, compression, many connections at once: from another host through the port, and directly."""
    for name in ("srv", "log", "conf"):
        (host_folder / name).mkdir()
    big = random.Random(7).randbytes(6 * MIB + 123)
    (host_folder / "srv/big").write_bytes(big)
    text = "".join(f"line {i}\n" for i in range(20000))
    (host_folder / "srv/text.txt").write_text(text)
    (host_folder / "conf/nginx.conf").write_text(NGINX_CONF)
    cni.configure(cni.bridge(), cni.portmap(8080, 80))
    netlab.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")
    options = ["--cni", *bind(host_folder / "srv", "/srv", "ro"), *bind(host_folder / "log", "/log"),
               *bind(host_folder / "conf", "/conf", "ro")]
    command = ["nginx", "-c", "/conf/nginx.conf"]
    with running(box, *command, image="workloads", options=options, stop="QUIT") as name:
        address = address_of(box, name)
        wait_for_port(address, 80)
        # From another host: 192.168.50.2 is this one, 8080 leads into the VM.
        seen = python_in(uplink, """
            import hashlib, urllib.request
            url = "http://192.168.50.2:8080/"
            print(hashlib.sha256(urllib.request.urlopen(url + "big", timeout=60).read()).hexdigest())
            print(urllib.request.urlopen(url + "echo?q=harpoon", timeout=60).read().decode())
        """)
        assert seen.split("\n")[:2] == [hashlib.sha256(big).hexdigest(), "GET harpoon"]
        requests = 3
        client = http.client.HTTPConnection(address, 80, timeout=60)
        for method, path, headers, status, body in (
            ("GET", "/big", {"Range": "bytes=1000000-1065535"}, 206, big[1000000:1065536]),
            ("GET", "/big", {"Range": "bytes=-7"}, 206, big[-7:]),
            ("HEAD", "/text.txt", {}, 200, b""),
            ("GET", "/nothing", {}, 404, None),
            ("POST", "/echo?q=x", {}, 200, b"POST x"),
        ):
            client.request(method, path, headers=headers)
            answer = client.getresponse()
            data = answer.read()
            assert answer.status == status and (body is None or data == body), (method, path, answer.status)
            requests += 1
        client.request("GET", "/text.txt", headers={"Accept-Encoding": "gzip"})
        answer = client.getresponse()
        assert answer.getheader("Content-Encoding") == "gzip"
        unpacked = subprocess.run(["gzip", "-dc"], input=answer.read(), capture_output=True, check=True).stdout
        assert unpacked == text.encode()
        client.close()

        def fetch(i):
            one = http.client.HTTPConnection(address, 80, timeout=60)
            one.request("GET", f"/echo?q={i}")
            body = one.getresponse().read()
            one.close()
            return body

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            assert list(pool.map(fetch, range(100))) == [f"GET {i}".encode() for i in range(100)]
        requests += 100
        # What the volume shows is true while the container runs: files that change on the host, logs as they grow.
        (host_folder / "srv/new").write_text("made on the host\n")
        client = http.client.HTTPConnection(address, 80, timeout=60)
        client.request("GET", "/new")
        assert client.getresponse().read() == b"made on the host\n"
    lines = (host_folder / "log/access.log").read_text().splitlines()
    assert len(lines) == requests + 1, lines[-5:]
    # NAT does not hide who asks.
    assert sum(line.startswith("192.168.50.1 ") for line in lines) == 2, lines[:5]
    assert "8080" not in netlab.sh("iptables -t nat -S")


# ---- PostgreSQL ----

POSTGRES = "export PATH=/usr/lib/postgresql/15/bin:$PATH PGHOST=/tmp PGUSER=postgres; cd /tmp;"


PG_CONF = """\
listen_addresses = ''
unix_socket_directories = '/tmp'
shared_buffers = 16MB
max_connections = 10
autovacuum = off
jit = off
"""


def postgres(box, volume):
    """A running server, its data on the volume."""
    command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "/usr/lib/postgresql/15/bin/postgres"]
    options = [*bind(volume, "/data"), "--memory-limit", str(384 * MIB)]
    return box.detached(*command, "-D", "/data/pg", image="workloads", options=options)


def pg(box, name, command):
    """What a client of the server prints."""
    done = box.exec(name, "sh", "-ec", f"{POSTGRES} {command}", exec_id=box.name("e"), timeout=LONG)
    assert done.code == 0, done
    return done.out


def psql(box, name, *statements):
    """The last statement's rows, unaligned."""
    args = [word for text in statements for word in ("-c", text)]
    quoted = " ".join(f"'{word}'" for word in args)
    return pg(box, name, f"psql -qAtX -v ON_ERROR_STOP=1 {quoted}").strip()


def wait_for_postgres(box, name):
    def answers():
        done = box.exec(name, "sh", "-c", f"{POSTGRES} pg_isready -q", exec_id=box.name("e"))
        return done.code == 0

    assert wait_until(answers, LONG, 0.3), f"{name}: {box.status(name)}"


def test_postgresql_survives_its_container(box, host_folder, workloads):
    """pgbench, the VM killed in the middle of it, the same volume in another container: nothing committed is lost."""
    # The package made these files when it was installed; on an emulated processor initdb takes its time.
    done = box.run("cp", "-a", "/var/lib/postgresql/15/main", "/data/pg", image="workloads", options=bind(host_folder, "/data"))
    assert done.code == 0, done
    (host_folder / "pg/postgresql.conf").write_text(PG_CONF)
    (host_folder / "pg/pg_hba.conf").write_text("local all all trust\n")
    (host_folder / "pg/pg_ident.conf").touch()
    name = postgres(box, host_folder)
    wait_for_postgres(box, name)
    psql(box, name, "create table kept (n int primary key, t text)",
         "insert into kept select i, md5(i::text) from generate_series(1, 5000) i", "checkpoint")
    want = hashlib.md5("".join(hashlib.md5(str(i).encode()).hexdigest() for i in range(1, 5001)).encode()).hexdigest()
    checksum = "select md5(string_agg(t, $$$$ order by n)) from kept"
    assert psql(box, name, checksum) == want
    pg(box, name, "pgbench -i -I dtGvp -s 1 -q postgres 2>&1")
    out = pg(box, name, "pgbench -n -c 4 -j 2 -t 50 postgres")
    assert "number of transactions actually processed: 200/200" in out, out
    history = (
        "select (select count(*) from pgbench_history), (select sum(abalance) from pgbench_accounts) = "
        "(select sum(delta) from pgbench_history), (select sum(bbalance) from pgbench_branches) = "
        "(select sum(delta) from pgbench_history), (select sum(tbalance) from pgbench_tellers) = "
        "(select sum(delta) from pgbench_history)"
    )
    assert psql(box, name, history) == "200|t|t|t"
    # The power fails under load. What pgbench's clients saw committed must be there.
    bench = box.daemon.popen(
        "task", "exec", "--fifo-dir", box.daemon.fifos, "--exec-id", "bench", name, "sh", "-ec",
        f"{POSTGRES} pgbench -n -c 4 -j 2 -T 600 -P 1 postgres", stdin=subprocess.DEVNULL,
    )
    assert wait_until(lambda: int(psql(box, name, "select count(*) from pgbench_history")) > 230, LONG, 0.5)
    committed = int(psql(box, name, "select count(*) from pgbench_history"))
    box.kill_and_delete(name)
    bench.communicate(timeout=60)
    box.forget_fifos()

    # Its pid file, too, is of another life: the new server's own pid is the same, which it must not take for another's.
    second = postgres(box, host_folder)
    wait_for_postgres(box, second)
    assert psql(box, second, checksum) == want
    found = psql(box, second, history).split("|")
    assert int(found[0]) >= committed and found[1:] == ["t", "t", "t"], (committed, found)
    psql(box, second, "insert into kept values (5001, $$second$$)", "vacuum full kept", "reindex table kept")
    assert psql(box, second, "select count(*) from kept") == "5001"
    # An orderly end this time: a fast shutdown leaves nothing to recover.
    assert box.kill(second, "INT").code == 0
    box.wait_status(second, "STOPPED", 60)
    assert box.delete(second) == 0
    control = box.run(
        "/usr/lib/postgresql/15/bin/pg_controldata", "/data/pg", image="workloads", options=bind(host_folder, "/data", "ro")
    )
    assert re.search(r"Database cluster state:\s+shut down$", control.out, re.M), control


# ---- Redis ----


class Resp:
    """As much of Redis' protocol as the test speaks."""

    def __init__(self, address, port=6379):
        self.sock = socket.create_connection((address, port), 60)
        self.file = self.sock.makefile("rb")

    def close(self):
        self.file.close()
        self.sock.close()

    def send(self, *args):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in args]
        self.sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def answer(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        assert kind not in (b"-", b""), line
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self.file.read(int(rest) + 2)[:-2] if int(rest) >= 0 else None
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return rest.decode()

    def call(self, *args):
        self.send(*args)
        return self.answer()


def redis(box, volume, netns):
    command = ["redis-server", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--protected-mode", "no",
               "--save", ""]
    return box.detached(*command, image="workloads", options=[*netlab.joined(netns), *bind(volume, "/data")])


def test_redis(box, netns, host_folder, workloads):
    """redis-benchmark's counters come out exactly; a forked save and a log that is replayed after a crash hold all of it."""
    name = redis(box, host_folder, netns)
    wait_for_port("10.77.0.2", 6379)
    tests = "set,get,incr,lpush,rpush,sadd,hset"
    out = box.execute(name, "redis-benchmark", "-n", "1000", "-c", "20", "-P", "5", "-t", tests, "--csv")
    assert len(out.splitlines()) == 8, out
    source = random.Random(3)
    values = {f"key:{i}": source.randbytes(source.choice((1, 100, 5000))) for i in range(500)}
    client = Resp("10.77.0.2")
    for key, value in values.items():
        client.send("SET", key, value)
    assert [client.answer() for _ in values] == ["OK"] * len(values)
    large = source.randbytes(5 * MIB)
    assert client.call("SET", "large", large) == "OK"

    def check(one):
        assert one.call("GET", "counter:__rand_int__") == b"1000"
        assert one.call("LLEN", "mylist") == 2000
        assert one.call("MGET", *values) == list(values.values())
        assert one.call("GET", "large") == large

    check(client)
    # A child with all of the memory, copied on write, writes the snapshot while the parent goes on.
    assert "started" in client.call("BGSAVE")
    assert client.call("INCR", "during") == 1
    assert wait_until(lambda: b"rdb_bgsave_in_progress:0" in client.call("INFO", "persistence"), 60, 0.2)
    assert b"rdb_last_bgsave_status:ok" in client.call("INFO", "persistence")
    client.close()
    box.kill_and_delete(name)

    second = redis(box, host_folder, netns)
    wait_for_port("10.77.0.2", 6379)
    client = Resp("10.77.0.2")
    assert wait_until(lambda: b"\nloading:0" in client.call("INFO", "persistence"), 60, 0.2)
    check(client)
    assert client.call("GET", "during") == b"1"
    client.close()
    assert box.kill(second, "TERM").code == 0
    box.wait_status(second, "STOPPED")
    assert box.delete(second) == 0


# ---- git, make and gcc ----


def project(folder):
    """A C project of some files, and what its program prints."""
    modules = {
        "sieve": "for (long i = 2, n = 0; ; i++) { int p = 1; for (long d = 2; d * d <= i; d++) if (i % d == 0) p = 0;"
                 " n += p; if (n == 500) return i; }",
        "collatz": "long n = 27, steps = 0; while (n != 1) { n = n % 2 ? 3 * n + 1 : n / 2; steps++; } return steps;",
        "fib": "long a = 0, b = 1; for (int i = 0; i < 80; i++) { long c = a + b; a = b; b = c; } return a;",
        "fnv": "unsigned int h = 2166136261u; for (const char *p = \"harpoon\"; *p; p++) h = (h ^ (unsigned char)*p)"
               " * 16777619u; return h;",
    }
    (folder / "src").mkdir(parents=True)
    header = "".join(f"long {name}(void);\n" for name in modules)
    (folder / "src/all.h").write_text(header)
    for name, body in modules.items():
        (folder / f"src/{name}.c").write_text(f'#include "all.h"\nlong {name}(void)\n{{\n\t{body}\n}}\n')
    calls = "".join(f'\tprintf("{name} %ld\\n", {name}());\n' for name in modules)
    (folder / "src/main.c").write_text(
        f'#include <stdio.h>\n#include "all.h"\nint main(void)\n{{\n{calls}\treturn 0;\n}}\n'
    )
    (folder / "Makefile").write_text(textwrap.dedent("""\
        CFLAGS = -O1 -Wall -Werror -MMD
        objects = $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))
        build/program: build/liball.a build/main.o
        \t$(CC) -o $@ build/main.o -Lbuild -lall
        build/liball.a: $(filter-out build/main.o,$(objects))
        \tar rcs $@ $^
        build/%.o: src/%.c | build
        \t$(CC) $(CFLAGS) -c -o $@ $<
        build:
        \tmkdir $@
        check: build/program
        \t./build/program > build/out && diff -u expected build/out && echo all well
        -include build/*.d
        """))
    hash_ = 2166136261
    for byte in b"harpoon":
        hash_ = ((hash_ ^ byte) * 16777619) & 0xFFFFFFFF
    expected = f"sieve 3571\ncollatz 111\nfib 23416728348467685\nfnv {hash_}\n"
    (folder / "expected").write_text(expected)
    return expected


COMMIT = """
cd /git/project; git init -q -b main; git config user.name A; git config user.email a@example.com
git add .; git commit -qm first; echo '/build/' > .gitignore; git add .; git commit -qm second; git tag -am t v1
git clone -q --bare . /git/project.git; git -C /git/project.git rev-parse main
exec git daemon --reuseaddr --export-all --base-path=/git /git
"""

BUILD_IT = """
git clone -q git://{address}/project.git /build/project
cd /build/project
git fsck --full --strict 2>&1; git describe
make -j2 check | tail -n 1
# Only what changed is built again: times of files are what make believes in.
make -q build/program && echo up to date
sleep 1; touch src/fib.c; make build/program | grep -c ' -c '
git status --porcelain; git log --format=%s | tr '\\n' ' '; echo
cat build/out
"""


def test_git_clone_and_make(box, cni, host_folder, workloads):
    """A repository made in one VM, cloned over the network into another, compiled there, its program's output compared."""
    for name in ("git", "work"):
        (host_folder / name).mkdir()
    expected = project(host_folder / "git/project")
    options = ["--cni", *bind(host_folder / "git", "/git"), "--env", "HOME=/root"]
    with running(box, "sh", "-ec", COMMIT, image="workloads", options=options, stop="KILL", code=137) as server:
        address = address_of(box, server)
        wait_for_port(address, 9418)
        options = ["--cni", *bind(host_folder / "work", "/build"), "--env", "HOME=/root", "--annotation", "io.harpoon.vcpus=2"]
        done = box.sh(f"set -e; {BUILD_IT.format(address=address)}", image="workloads", options=options, timeout=LONG)
        assert done.code == 0, done
        lines = done.out.splitlines()
        assert lines[:4] == ["v1", "all well", "up to date", "1"], done
        assert lines[4].split() == ["second", "first"] and done.out.endswith(expected), done
    # The volume holds what was built, and it is the host's: its program runs here.
    program = host_folder / "work/project/build/program"
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == expected


# ---- Python ----


def wheel(folder):
    """A wheel with one module and one command."""
    out = folder / "harpoon_sample-1.2-py3-none-any.whl"
    info = "harpoon_sample-1.2.dist-info"
    files = {
        "harpoon_sample.py": "def main():\n    import sys\n    print('sample', sys.prefix)\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: harpoon-sample\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nharpoon-sample = harpoon_sample:main\n",
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))


def test_python_venv(box, host_folder, workloads):
    """python3 -m venv with pip in it, a package installed there, threads, processes and sqlite from there."""
    wheel(host_folder)
    program = """
import concurrent.futures, hashlib, multiprocessing, sqlite3, sys
assert sys.prefix != sys.base_prefix
with multiprocessing.Pool(2) as pool:
    print(sum(pool.map(abs, range(-50, 50))))
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(hashlib.sha256(b"".join(pool.map(bytes, [[i] for i in range(100)]))).hexdigest())
db = sqlite3.connect("/v/data.db", isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("create table t (n integer)")
db.executemany("insert into t values (?)", [(i,) for i in range(1000)])
print(db.execute("select sum(n), count(*) from t").fetchone())
print(db.execute("pragma integrity_check").fetchone()[0])
"""
    (host_folder / "program.py").write_text(program)
    script = """
    python3 -m venv /root/env
    /root/env/bin/pip --version | grep -o 'from /root/env'
    /root/env/bin/pip install -q --no-index --disable-pip-version-check /v/harpoon_sample-1.2-py3-none-any.whl 2>&1
    /root/env/bin/harpoon-sample
    /root/env/bin/python /v/program.py
    """
    done = box.sh(f"set -e; {script}", image="workloads", options=bind(host_folder, "/v"), timeout=LONG)
    digest = hashlib.sha256(bytes(range(100))).hexdigest()
    want = ["from /root/env", "sample /root/env", "2500", digest, "(499500, 1000)", "ok"]
    assert done.code == 0 and done.out.splitlines() == want, done


# ---- apt ----


def package(folder, name, depends, postinst):
    """A Debian package with a program, a configuration file and a script; its entry in Packages."""
    tree = folder / name
    for path in ("DEBIAN", "usr/bin", "etc"):
        (tree / path).mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1.5-1\nArchitecture: all\nMaintainer: A <a@example.com>\nDepends: {depends}\n"
    control += f"Description: sample\n The package {name}.\n"
    (tree / "DEBIAN/control").write_text(control)
    (tree / "DEBIAN/conffiles").write_text(f"/etc/{name}.conf\n")
    (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\nset -e\n{postinst}\n")
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / f"etc/{name}.conf").write_text(f"# of {name}\n")
    (tree / f"usr/bin/{name}").write_text(f"#!/bin/sh\necho {name} runs\n")
    (tree / f"usr/bin/{name}").chmod(0o755)
    out = folder / "pool" / f"{name}_1.5-1_all.deb"
    out.parent.mkdir(exist_ok=True)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, out], check=True, stdout=subprocess.DEVNULL)
    raw = out.read_bytes()
    return control + f"Filename: pool/{out.name}\nSize: {len(raw)}\nSHA256: {hashlib.sha256(raw).hexdigest()}\n\n"


def test_apt_from_another_container(box, cni, host_folder, debian):
    """apt-get update, install, reinstall and purge, against a repository that a second VM serves."""
    repo = host_folder / "repo"
    repo.mkdir()
    entries = package(repo, "hpn-lib", "libc6", "getent group hpn >/dev/null || groupadd -r hpn; touch /var/lib/hpn-lib.done")
    entries += package(repo, "hpn-tool", "hpn-lib (>= 1.5), dash", "hpn-lib; echo from postinst > /var/lib/hpn-tool.out")
    (repo / "Packages").write_text(entries)
    (host_folder / "big").write_bytes(os.urandom(1))
    serve = ["httpd", "-f", "-p", "80", "-h", "/srv"]
    with running(box, *serve, options=["--cni", *bind(repo, "/srv", "ro")], stop="KILL", code=137) as server:
        address = address_of(box, server)
        wait_for_port(address, 80)
        script = f"""
        rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
        echo 'deb [trusted=yes] http://{address}/ ./' > /etc/apt/sources.list
        apt-get -q update 2>&1
        apt-get -q -y install hpn-tool 2>&1
        hpn-tool; cat /var/lib/hpn-tool.out; test -e /var/lib/hpn-lib.done; getent group hpn | cut -d: -f1
        dpkg -s hpn-tool hpn-lib | grep -c 'Status: install ok installed'
        apt-get -q -y --reinstall install hpn-lib 2>&1
        apt-get -q -y purge hpn-lib 2>&1
        dpkg -V; dpkg --audit; test ! -e /etc/hpn-lib.conf; ! command -v hpn-tool; echo clean
        """
        options = ["--cni", "--env", "DEBIAN_FRONTEND=noninteractive"]
        done = box.sh(f"set -e; {script}", image="debian", options=options, timeout=LONG)
        assert done.code == 0, done
        for text in ("hpn-tool runs\nfrom postinst\nhpn\n2\n", "Setting up hpn-tool (1.5-1)", "Purging configuration files for hpn-lib"):
            assert text in done.out, done
        assert done.out.endswith("clean\n"), done
