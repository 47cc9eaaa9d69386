"""Docker itself, as its users have it: `docker run --runtime io.containerd.harpoon.v1`, with two dockers
of Debian's. dockerd runs on the tests' containerd, in the tests' namespaces.
"""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import textwrap

import pytest
from conftest import RUNTIME
from harpoonlib import docker as docker_module
from harpoonlib import images, netlab
from harpoonlib.containerd import wait_until


EVERY = pytest.mark.parametrize("docker", docker_module.SUITES, indirect=True)
NEWEST = pytest.mark.parametrize("docker", docker_module.SUITES[-1:], indirect=True)


@pytest.fixture(scope="module")
def docker(request, session_box, work_folder):
    folder = work_folder / "docker"
    folder.mkdir()
    try:
        one = docker_module.Docker(session_box.daemon, request.param, folder)
    except docker_module.Missing as why:
        shutil.rmtree(folder)
        pytest.skip(str(why))
    one.start()
    one.load(images.busybox(), "busybox:latest")
    # The first container makes folders that stay, and so does runc under BuildKit.
    run(one, "busybox", "true")
    pathlib.Path("/run/runc").mkdir(0o700, exist_ok=True)
    yield one
    one.stop()
    session_box.daemon.remove_mounts(folder)
    netlab.sh("for l in docker0 $(ls /sys/class/net | grep '^br-'); do ip link del $l; done 2>/dev/null || true")
    netlab.sh("for t in nat filter mangle raw; do iptables -t $t -F; iptables -t $t -X; ip6tables -t $t -F; ip6tables -t $t -X; done")
    netlab.sh("iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def d(docker, box):
    """docker, with a clean table: what a test leaves is removed, and the log shown when it fails."""
    yield docker
    names = docker.docker("ps", "-aq").out.split()
    if names:
        docker.docker("rm", "-fv", *names)
    docker.docker("network", "prune", "-f")
    docker.docker("volume", "prune", "-f")
    print(docker.log_tail())


def run(d, *args, code=0, **kwargs):
    """docker run --rm: standard output."""
    done = d.docker("run", "--rm", "--runtime", RUNTIME, *args, **kwargs)
    assert done.code == code, (done, d.log_tail())
    return done.out


def detached(d, *args):
    done = d.docker("run", "-d", "--runtime", RUNTIME, *args)
    assert done.code == 0, (done, d.log_tail())
    return done.out.strip()


def ok(d, *args, **kwargs):
    done = d.docker(*args, **kwargs)
    assert done.code == 0, (done, d.log_tail())
    return done.out


def read(address, port, timeout=60):
    """What a server says to whoever connects, once it is there."""

    def attempt():
        try:
            with socket.create_connection((address, port), 5) as sock:
                return sock.makefile().read()
        except OSError:
            return None

    return wait_until(attempt, timeout, 0.1)


@EVERY
def test_run(d):
    """Streams, exit codes, environment, user, host name; a kernel of its own."""
    out = run(d, "-e", "A=b", "-h", "named", "-w", "/tmp", "busybox", "sh", "-c", "echo $A; hostname; pwd; uname -r")
    lines = out.splitlines()
    assert lines[:3] == ["b", "named", "/tmp"]
    assert lines[3] != subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout.strip()
    done = d.docker("run", "--rm", "-i", "--runtime", RUNTIME, "busybox", "sh", "-c", "cat; echo err >&2; exit 7", data=b"x" * 300000)
    assert (done.code, len(done.out_bytes), done.err) == (7, 300000, "err\n")
    assert run(d, "-u", "1000:1000", "--read-only", "busybox", "sh", "-c", "id -u; touch /x || echo ro") == "1000\nro\n"
    assert "seccomp:\t2" in run(d, "--cap-drop", "ALL", "busybox", "grep", "-i", "seccomp:", "/proc/self/status").lower()


@NEWEST
def test_life_of_a_container(d):
    """exec, logs, top, stats, inspect, pause, cp, update, stop, start again, restart, wait."""
    name = detached(d, "--name", "life", "-m", "128m", "--cpus", "1", "busybox", "sh", "-c",
                    "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done")
    assert wait_until(lambda: "up" in ok(d, "logs", "life"), 30, 0.2)
    assert ok(d, "exec", "life", "sh", "-c", "echo in; ls /proc | grep -c '^[0-9]'").startswith("in\n")
    done = d.docker("exec", "life", "sh", "-c", "exit 9")
    assert done.code == 9, done
    # dockerd looks for the container's processes with the host's ps: it sees the VM.
    assert "qemu" in ok(d, "top", "life") or "harpoon-vmm" in ok(d, "top", "life")
    state = json.loads(ok(d, "inspect", "life"))[0]
    assert state["State"]["Status"] == "running" and state["Id"] == name
    assert re.search(r"iB / 128MiB", ok(d, "stats", "--no-stream", "life"))
    (d.folder / "f").write_text("copied\n")
    ok(d, "cp", d.folder / "f", "life:/root/f")
    assert ok(d, "exec", "life", "cat", "/root/f") == "copied\n"
    ok(d, "pause", "life")
    assert "paused" in ok(d, "ps", "--format", "{{.Status}}").lower()
    ok(d, "unpause", "life")
    ok(d, "update", "-m", "256m", "--memory-swap", "256m", "life")
    assert ok(d, "exec", "life", "cat", "/sys/fs/cgroup/memory.max").strip() == str(256 << 20)
    ok(d, "stop", "-t", "20", "life")
    assert ok(d, "inspect", "-f", "{{.State.ExitCode}}", "life") == "5\n" and "bye" in ok(d, "logs", "life")
    ok(d, "start", "life")
    assert ok(d, "exec", "life", "cat", "/root/f") == "copied\n"
    ok(d, "kill", "life")
    assert ok(d, "wait", "life") == "137\n"


@EVERY
def test_networks_and_ports(d):
    """The bridge, a published port, and names on a network of its own (docker's name server is on 127.0.0.11)."""
    detached(d, "--name", "web", "-p", "8088:80", "busybox", "nc", "-ll", "-p", "80", "-e", "echo", "from the VM")
    address = ok(d, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web").strip()
    assert address.startswith("10.66.0.")
    assert read(address, 80) == "from the VM\n" and read("10.66.0.1", 8088) == "from the VM\n"
    assert "0% packet loss" in run(d, "busybox", "ping", "-c", "2", "-W", "20", address)
    ok(d, "network", "create", "lab")
    detached(d, "--name", "server", "--network", "lab", "busybox", "nc", "-ll", "-p", "80", "-e", "echo", "by name")
    out = run(d, "--network", "lab", "busybox", "sh", "-c", "cat /etc/resolv.conf; nc -w 20 server 80")
    assert "nameserver 127.0.0.11" in out and out.endswith("by name\n"), out
    assert run(d, "--network", "none", "busybox", "ls", "/sys/class/net") == "lo\n"


@NEWEST
def test_volumes(d):
    """A named volume shared by two VMs at once, a folder of the host, tmpfs, --init."""
    (d.folder / "shared").mkdir(exist_ok=True)
    detached(d, "--name", "writer", "-v", "data:/data", "busybox", "sh", "-c", "echo first > /data/f; sleep 1000")
    assert wait_until(lambda: d.docker("run", "--rm", "--runtime", RUNTIME, "-v", "data:/d", "busybox", "cat", "/d/f").out == "first\n", 60)
    run(d, "-v", "data:/data", "-v", f"{d.folder}/shared:/host", "busybox", "sh", "-c", "echo second >> /data/f; cp /data/f /host/f")
    assert (d.folder / "shared/f").read_text() == "first\nsecond\n"
    assert ok(d, "exec", "writer", "cat", "/data/f") == "first\nsecond\n"
    out = run(d, "--init", "--tmpfs", "/t:size=1m", "busybox", "sh", "-c", "df -k /t | tail -n 1; cat /proc/1/comm")
    assert re.search(r"\s1024\s", out) and out.splitlines()[-1] in ("docker-init", "tini-static"), out


COMPOSE = """\
services:
  web:
    image: busybox
    runtime: {runtime}
    command: sh -c 'echo "$$GREETING" > /srv/page; httpd -f -p 80 -h /srv'
    environment: {{GREETING: "hello from compose"}}
    volumes: ["content:/srv"]
    ports: ["8089:80"]
    healthcheck: {{test: ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/page"], interval: 1s, timeout: 20s, retries: 30}}
  client:
    image: busybox
    runtime: {runtime}
    command: sh -c 'wget -q -O - http://web/page; sleep 1000'
    depends_on: {{web: {{condition: service_healthy}}}}
volumes: {{content: {{}}}}
"""


@NEWEST
def test_compose(d):
    """Two services, one waits for the other's health and talks to it by name."""
    if d.docker("compose", "version").code != 0:
        pytest.skip(f"docker {d.version} of Debian comes without compose v2")
    project = d.folder / "project"
    project.mkdir()
    (project / "compose.yaml").write_text(COMPOSE.format(runtime=RUNTIME))
    compose = ["compose", "--project-directory", project, "-f", project / "compose.yaml"]
    ok(d, *compose, "up", "-d", "--quiet-pull", timeout=180)
    try:
        assert wait_until(lambda: "hello from compose" in ok(d, *compose, "logs", "client"), 60, 0.3)
        assert sorted(ok(d, *compose, "ps", "--services").split()) == ["client", "web"]
        assert ok(d, *compose, "exec", "-T", "client", "cat", "/etc/hostname").strip()
        with socket.create_connection(("10.66.0.1", 8089), 60) as sock:
            sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            assert "hello from compose" in sock.makefile().read()
    finally:
        ok(d, *compose, "down", "-v", "-t", "2", timeout=180)
    assert not ok(d, "ps", "-aq")


@NEWEST
def test_built_image(d):
    """An image that docker's BuildKit builds (its RUN steps are runc's: dockerd gives it no other) runs in a VM."""
    if d.docker("buildx", "version").code != 0:
        pytest.skip(f"docker {d.version} of Debian comes without buildx")
    context = d.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(textwrap.dedent("""\
        FROM busybox AS first
        RUN echo built > /made && chmod 4755 /bin/busybox
        FROM busybox
        COPY --from=first /made /made
        COPY --chown=1000:1000 file /file
        USER 1000
        ENTRYPOINT ["cat"]
        CMD ["/made", "/file"]
        """))
    (context / "file").write_text("of the context\n")
    ok(d, "buildx", "build", "-q", "-t", "built", context, timeout=180)
    assert run(d, "built") == "built\nof the context\n"
