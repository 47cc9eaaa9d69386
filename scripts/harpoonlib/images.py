"""Container images made on the spot, with nothing from a registry.

Every image is an OCI image layout in one tar, as `ctr image import` takes it. The same input gives the same
bytes. Slow ones (the Debian tree) are kept in the user's cache folder under a key of everything that
shaped them.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile

from . import paths

BUSYBOX_REF = "docker.io/library/busybox:latest"
LAYERS_REF = "docker.io/library/layers:latest"
USER_REF = "docker.io/library/user:latest"
DEBIAN_REF = "docker.io/library/debian:latest"
REDIS_REF = "docker.io/library/redis:latest"
WORKLOADS_REF = "docker.io/library/workloads:latest"

SUITE = "bookworm"
# What the tests of real work run; nobody reads manuals there.
WORKLOADS = (
    "nginx-light", "postgresql-15", "redis-server", "redis-tools", "git", "gcc", "libc6-dev", "make",
    "python3-venv",
)
# Nor compiles at run time in a database, at link time, or with sanitizers: a third of the image.
WORKLOADS_WITHOUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*",
    "/usr/share/i18n/*", "/usr/lib/x86_64-linux-gnu/libLLVM*", "/usr/lib/x86_64-linux-gnu/libz3*",
    "/usr/lib/postgresql/*/lib/bitcode/*", "/usr/lib/gcc/*/lto1", "/usr/bin/*lto-dump*", "/usr/lib/x86_64-linux-gnu/lib?san.so*",
    "/usr/lib/gcc/*/lib?san*",
)

# Part of every cache key: raise it when what this file makes changes.
REVISION = "1"

PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"
GROUP = "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"


class Layer:
    """One layer in the making: a tar with fixed times and owners."""

    def __init__(self):
        self._raw = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._raw, mode="w", format=tarfile.PAX_FORMAT)

    def _entry(self, name, kind, mode, uid=0, gid=0):
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = mode
        info.uid, info.gid = uid, gid
        return info

    def dir(self, name, mode=0o755, uid=0, gid=0):
        self._tar.addfile(self._entry(name, tarfile.DIRTYPE, mode, uid, gid))

    def file(self, name, data, mode=0o644, uid=0, gid=0):
        raw = data.encode() if isinstance(data, str) else data
        info = self._entry(name, tarfile.REGTYPE, mode, uid, gid)
        info.size = len(raw)
        self._tar.addfile(info, io.BytesIO(raw))

    def symlink(self, name, target):
        info = self._entry(name, tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._tar.addfile(info)

    def bytes(self):
        self._tar.close()
        return self._raw.getvalue()


def _sha256_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class _Layout:
    """Writes an OCI image layout tar. Layers are bytes or paths of uncompressed tars."""

    def __init__(self, out):
        self._tar = tarfile.open(out, mode="w", format=tarfile.PAX_FORMAT)

    def _add(self, name, data):
        info = tarfile.TarInfo(name)
        info.mode = 0o644
        if isinstance(data, bytes):
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
            return
        info.size = os.stat(data).st_size
        with open(data, "rb") as f:
            self._tar.addfile(info, f)

    def _blob(self, data, media_type):
        if isinstance(data, bytes):
            digest, size = hashlib.sha256(data).hexdigest(), len(data)
        else:
            digest, size = _sha256_file(data), os.stat(data).st_size
        self._add(f"blobs/sha256/{digest}", data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}

    def _json(self, value, media_type):
        raw = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        return self._blob(raw, media_type)

    def write(self, ref, layers, config):
        prefix = "application/vnd.oci.image."
        blobs = [self._blob(layer, prefix + "layer.v1.tar") for layer in layers]
        image = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [blob["digest"] for blob in blobs]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": prefix + "manifest.v1+json",
            "config": self._json(image, prefix + "config.v1+json"),
            "layers": blobs,
        }
        entry = self._json(manifest, prefix + "manifest.v1+json")
        entry["annotations"] = {"io.containerd.image.name": ref}
        entry["platform"] = {"architecture": "amd64", "os": "linux"}
        self._add("index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        self._add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        self._tar.close()


def write_image(out, ref, layers, **config):
    """Writes image `ref` to the tar `out`; config are OCI image config keys (Cmd, Env, User, ...)."""
    config.setdefault("Cmd", ["/bin/sh"])
    config.setdefault("Env", ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    tmp = f"{out}.{os.getpid()}"
    _Layout(tmp).write(ref, layers, config)
    os.rename(tmp, out)


def busybox_layer():
    binary = pathlib.Path(shutil.which("busybox", path="/bin:/usr/bin") or "/bin/busybox").read_bytes()
    applets = subprocess.run(
        ["/bin/busybox", "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    layer = Layer()
    for name in ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var"):
        layer.dir(name)
    layer.dir("tmp", 0o1777)
    layer.dir("home/user", 0o755, 1000, 1000)
    layer.file("bin/busybox", binary, 0o755)
    for applet in sorted(set(applets) - {"busybox"}):
        layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", PASSWD)
    layer.file("etc/group", GROUP)
    return layer.bytes()


def layers_layers():
    """Three layers where the upper ones replace, remove and empty what the lower ones hold."""
    middle = Layer()
    middle.dir("data")
    middle.file("data/keep", "kept\n")
    middle.file("data/replace", "old\n")
    middle.file("data/remove", "gone soon\n")
    middle.dir("data/opaque")
    middle.file("data/opaque/below", "hidden\n")
    middle.file("data/mode", "x", 0o4750, 1000, 2000)
    top = Layer()
    top.dir("data")
    top.file("data/replace", "new\n")
    top.file("data/.wh.remove", "")
    top.dir("data/opaque")
    top.file("data/opaque/.wh..wh..opq", "")
    top.file("data/opaque/above", "seen\n")
    return [busybox_layer(), middle.bytes(), top.bytes()]


def _cached(name, key, make):
    """cache/images/<name>-<key>.tar, made once; the older ones of that name are removed."""
    folder = paths.cache_dir() / "images"
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(f"{REVISION}\n{key}".encode()).hexdigest()[:20]
    out = folder / f"{name}-{digest}.tar"
    if not out.exists():
        make(out)
        for old in folder.glob(f"{name}-*.tar"):
            if old != out:
                old.unlink(missing_ok=True)
    return out


def _busybox_key():
    return _sha256_file("/bin/busybox")


def busybox():
    return _cached(
        "busybox", _busybox_key(), lambda out: write_image(out, BUSYBOX_REF, [busybox_layer()])
    )


def layers():
    return _cached(
        "layers", _busybox_key(), lambda out: write_image(out, LAYERS_REF, layers_layers())
    )


def user():
    """An image whose config asks for a user, a folder and variables."""

    def make(out):
        write_image(
            out,
            USER_REF,
            [busybox_layer()],
            User="user",
            WorkingDir="/home/user",
            Env=["PATH=/bin", "FROM_IMAGE=yes"],
        )

    return _cached("user", _busybox_key(), make)


def _without_devices(source, out):
    with tarfile.open(source) as old, tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as new:
        for info in old:
            if info.isdev() and not info.isfifo():
                continue
            new.addfile(info, old.extractfile(info) if info.isreg() else None)


def _mmdebstrap(out, ref, *options, variant="minbase", **config):
    """An image of one layer: what mmdebstrap makes with those options. Needs the network."""
    work = pathlib.Path(f"{out}.work")
    work.mkdir(exist_ok=True)
    try:
        command = ["mmdebstrap", "--quiet", f"--variant={variant}", "--format=tar", *options]
        command += [SUITE, work / "tree.tar"]
        env = dict(os.environ, SOURCE_DATE_EPOCH="1700000000")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"mmdebstrap failed:\n{done.stderr[-2000:]}")
        _without_devices(work / "tree.tar", work / "layer.tar")
        write_image(out, ref, [work / "layer.tar"], **config)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def debian():
    """A Debian tree (mmdebstrap, variant minbase). Needs the network the first time."""

    def make(out):
        include = "--include=dash,coreutils,tar,findutils,gzip"
        _mmdebstrap(out, DEBIAN_REF, include, Cmd=["/bin/bash"])

    return _cached("debian", f"{SUITE} minbase", make)


def redis():
    """A Redis with what it is linked to, from Debian, and nothing else. Needs the network the first time."""
    packages = "redis-server,redis-tools,dash"
    options = [f"--include={packages}", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    options.append("--dpkgopt=path-exclude=/usr/share/man/*")

    def make(out):
        _mmdebstrap(out, REDIS_REF, *options, variant="extract", Cmd=["redis-server"])

    return _cached("redis", f"{SUITE} {packages}", make)


def workloads():
    """A Debian tree with servers and a compiler. Needs the network the first time."""
    options = [f"--include={','.join(WORKLOADS)}", "--aptopt=APT::Install-Recommends false"]
    options += [f"--dpkgopt=path-exclude={path}" for path in WORKLOADS_WITHOUT]

    def make(out):
        _mmdebstrap(out, WORKLOADS_REF, *options, Cmd=["/bin/bash"])

    return _cached("workloads", f"{SUITE} {options}", make)


ALL = {
    "busybox": busybox, "layers": layers, "user": user, "debian": debian, "redis": redis, "workloads": workloads,
}
REFS = {
    "busybox": BUSYBOX_REF, "layers": LAYERS_REF, "user": USER_REF, "debian": DEBIAN_REF, "redis": REDIS_REF,
    "workloads": WORKLOADS_REF,
}
