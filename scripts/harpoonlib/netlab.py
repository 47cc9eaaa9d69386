"""Networks to test with: CNI for `ctr run --cni`, and namespaces with links made by hand.

For the tests' own namespaces only (tests/inside). Where ctr looks for CNI's programs and configuration is fixed, so
a tmpfs is put over each of those folders; empty folders are made for that, which stay.
"""

import json
import os
import pathlib
import socket
import subprocess
import textwrap

PLUGINS = pathlib.Path("/usr/lib/cni")
BIN = pathlib.Path("/opt/cni/bin")
CONF = pathlib.Path("/etc/cni/net.d")
DATA = pathlib.Path("/var/lib/cni")

# A CNI plugin that runs a script in the container's namespace: "add" and "del" of the configuration.
SCRIPT_PLUGIN = """\
    #!/usr/bin/python3
    import json, os, subprocess, sys
    conf = json.load(sys.stdin)
    command = os.environ["CNI_COMMAND"]
    if command == "VERSION":
        print(json.dumps({"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}))
        sys.exit(0)
    script = conf.get(command.lower(), "true")
    env = dict(os.environ, NS=os.environ["CNI_NETNS"], PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    inside = ["nsenter", "--net=" + env["NS"]] if env["NS"] else []
    subprocess.run([*inside, "sh", "-ec", script], env=env, check=True, stdout=sys.stderr)
    print(json.dumps(conf.get("prevResult") or {"cniVersion": "0.4.0", "ips": []}))
"""


def run(*args, **kwargs):
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True, check=False, **kwargs)
    if done.returncode:
        raise RuntimeError(f"{args[0]}: exit code {done.returncode}: {done.stdout} {done.stderr}")
    return done.stdout


def sh(script, netns=None):
    """A shell script of the host, or of a namespace given by name or by /proc/PID/ns/net."""
    inside = []
    if netns:
        inside = ["nsenter", f"--net={netns if str(netns).startswith('/') else f'/run/netns/{netns}'}"]
    done = subprocess.run([*inside, "sh", "-ec", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Cni:
    """CNI as `ctr run --cni` finds it."""

    def __init__(self):
        for folder in (BIN, CONF, DATA):
            folder.mkdir(parents=True, exist_ok=True)
            run("mount", "-t", "tmpfs", "-o", "mode=0755", "harpoon-cni", folder)
        for plugin in PLUGINS.iterdir():
            (BIN / plugin.name).symlink_to(plugin)
        script = BIN / "harpoon-script"
        script.write_text(textwrap.dedent(SCRIPT_PLUGIN))
        script.chmod(0o755)

    def close(self):
        for folder in (BIN, CONF, DATA):
            run("umount", folder)

    @staticmethod
    def configure(*plugins, name="lab"):
        for old in CONF.iterdir():
            old.unlink()
        conf = {"cniVersion": "0.4.0", "name": name, "plugins": list(plugins)}
        (CONF / "10-lab.conflist").write_text(json.dumps(conf))
        return conf

    @staticmethod
    def bridge(v4="10.88.0.0/24", v6="fd00:88::/64", **more):
        """Debian's bridge plugin with addresses of both families, and default routes."""
        return {
            "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
            "ipam": {
                "type": "host-local", "dataDir": str(DATA / "networks"),
                "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
            **more,
        }

    @staticmethod
    def portmap(host_port, port, protocol="tcp"):
        """Publishes a port, for every container: what a client would say of each is part of the configuration."""
        mapping = {"hostPort": host_port, "containerPort": port, "protocol": protocol}
        return {"type": "portmap", "runtimeConfig": {"portMappings": [mapping]}}

    @staticmethod
    def script(add, delete="true"):
        return {"type": "harpoon-script", "add": add, "del": delete}


def invoke(command, conf, container, netns, args=None):
    """Runs a chain of CNI plugins by hand, as nerdctl's hook does: ADD or DEL. The last result."""
    plugins = conf["plugins"] if command == "ADD" else list(reversed(conf["plugins"]))
    result = None
    env = dict(
        os.environ, CNI_COMMAND=command, CNI_CONTAINERID=container, CNI_NETNS=netns, CNI_IFNAME="eth0",
        CNI_PATH=str(BIN),
    )
    for plugin in plugins:
        config = {"cniVersion": conf["cniVersion"], "name": conf["name"], **plugin}
        if args and plugin.get("capabilities"):
            config["runtimeConfig"] = args
        if result:
            config["prevResult"] = result
        out = run(BIN / plugin["type"], input=json.dumps(config), env=env)
        result = json.loads(out) if out.strip() else result
    return result


def joined(name):
    """Options of `ctr run` for a container in the namespace `name`."""
    return ["--with-ns", f"network:/run/netns/{name}"]


def answers(address, port, timeout=2):
    """Somebody takes TCP connections there."""
    try:
        with socket.create_connection((address, port), timeout):
            return True
    except OSError:
        return False


def namespaces():
    """Names of `ip netns`."""
    folder = pathlib.Path("/run/netns")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def traffic_control():
    """Taps and ingress traffic control of this and of every named namespace: what a VM may leave behind."""
    found = set()
    for name in [None, *namespaces()]:
        option = ["-n", name] if name else []
        for tool, word in ((["ip", *option, "-o", "link"], ": hpn"), (["tc", *option, "qdisc"], "ingress")):
            done = subprocess.run(tool, capture_output=True, text=True, check=False)
            found.update(f"{name or 'host'}: {line.strip()}" for line in done.stdout.splitlines() if word in line)
    return found
