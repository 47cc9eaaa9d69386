"""A dockerd of our own on a containerd of ours: Debian's programs, unpacked in the cache by scripts/get-clients.

Root, state, socket and log in one folder, nothing system-wide but iptables' rules and the bridges it makes: for the
tests' own namespaces only.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time

from . import paths
from .containerd import Containerd, wait_until

# Debian 12's own (20.10) takes no runtime but runc and its relatives.
SUITES = ("trixie", "sid")


class Missing(Exception):
    """There is no such docker here; the text says why."""


def find(suite):
    """The folder of that suite's docker; raises Missing."""
    folder = paths.cache_dir() / "docker" / suite
    if (folder / "usr/sbin/dockerd").exists():
        return folder
    try:
        why = (paths.cache_dir() / "docker" / f"{suite}.missing").read_text().strip()
    except OSError:
        why = "scripts/get-clients was not run"
    raise Missing(f"the docker of Debian's {suite} is not in the cache: {why}")


class Docker:
    def __init__(self, daemon, suite, folder):
        self.daemon, self.tree = daemon, find(suite)
        self.version = (self.tree / "version").read_text().strip()
        self.folder = folder
        self.socket = folder / "d.sock"
        self.log = folder / "dockerd.log"
        self.process = None
        self.namespace = f"{daemon.namespace}-docker"

    @property
    def major(self):
        return int(self.version.split(".", maxsplit=1)[0])

    def env(self):
        # docker-init, docker-proxy and docker's plugins are the unpacked ones.
        path = f"{self.tree}/usr/sbin:{self.tree}/usr/bin:{self.daemon.env()['PATH']}"
        return dict(
            os.environ, PATH=path, DOCKER_HOST=f"unix://{self.socket}", DOCKER_CONFIG=str(self.folder / "client"),
            HOME=str(self.folder), TMPDIR=str(self.folder), BUILDX_CONFIG=str(self.folder / "buildx"),
        )

    def start(self):
        (self.folder / "client").mkdir(parents=True, exist_ok=True)
        plugins = [f"{self.tree}/usr/{lib}/docker/cli-plugins" for lib in ("libexec", "lib")]
        (self.folder / "client/config.json").write_text(json.dumps({"cliPluginsExtraDirs": plugins}))
        (self.folder / "daemon.json").write_text("{}")
        driver = "overlay2" if self.daemon.snapshotter == "overlayfs" else "vfs"
        command = [
            "dockerd", "--config-file", self.folder / "daemon.json", "--data-root", self.folder / "data", "--exec-root",
            self.folder / "exec", "--pidfile", self.folder / "pid", "--host", f"unix://{self.socket}", "--containerd",
            self.daemon.socket, "--containerd-namespace", self.namespace, "--containerd-plugins-namespace",
            f"{self.namespace}-plugins", "--storage-driver", driver, "--userland-proxy=false", "--init-path",
            self.tree / "usr/bin/tini-static", "--cgroup-parent",
            f"/{self.namespace}", "--bip", "10.66.0.1/24", "--default-address-pool", "base=10.67.0.0/16,size=24",
        ]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [shutil.which(command[0], path=self.env()["PATH"]), *map(str, command[1:])], env=self.env(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )
        if not wait_until(lambda: self.process.poll() is not None or self.docker("version").code == 0, 60, 0.1) or (
            self.process.poll() is not None
        ):
            self.stop()
            raise RuntimeError(f"dockerd did not come up:\n{self.log_tail()}")

    def stop(self, sig=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(60)
        self.process = None

    def log_tail(self, lines=40):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def docker(self, *args, timeout=120, data=None):
        """docker to its end."""
        start = time.monotonic()
        process = self.popen(*args, stdin=subprocess.DEVNULL if data is None else subprocess.PIPE)
        return Containerd.finish(process, start, timeout, data)

    def popen(self, *args, **kwargs):
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)
        program = shutil.which("docker", path=self.env()["PATH"])
        return subprocess.Popen([program, *map(str, args)], env=self.env(), cwd=self.folder, **kwargs)

    def load(self, image, tag):
        """Loads one of our images: an OCI layout, with the manifest beside it that `docker load` wants."""
        copy = self.folder / "load.tar"
        shutil.copyfile(image, copy)
        with tarfile.open(image) as tar:
            digest = json.load(tar.extractfile("index.json"))["manifests"][0]["digest"]
            manifest = json.load(tar.extractfile(f"blobs/{digest.replace(':', '/')}"))

        def path(blob):
            return f"blobs/{blob['digest'].replace(':', '/')}"

        entry = {"Config": path(manifest["config"]), "RepoTags": [tag], "Layers": [path(b) for b in manifest["layers"]]}
        raw = json.dumps([entry]).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(raw)
        with tarfile.open(copy, "a") as tar:
            tar.addfile(info, io.BytesIO(raw))
        done = self.docker("load", "-q", "-i", copy)
        copy.unlink()
        if done.code:
            raise RuntimeError(f"docker load failed: {done!r}")
