"""The container's root file system and its mounts: what the host gives is what the container sees."""

import hashlib
import os
import stat
import tarfile

import pytest


@pytest.mark.nested_kvm
@pytest.mark.smoke
def test_layers(box):
    """Whiteouts, opaque folders, modes and owners of a three-layer image."""
    done = box.sh(
        "cat /data/keep /data/replace; ls -A /data /data/opaque; stat -c '%a %u:%g' /data/mode", image="layers"
    )
    assert done.code == 0, done
    assert done.out.split() == [
        "kept", "new", "/data:", "keep", "mode", "opaque", "replace", "/data/opaque:", "above", "4750", "1000:2000",
    ], done


@pytest.mark.smoke
def test_files_links_and_permissions(box):
    script = """
    set -e
    mkdir -p /w/a/b && cd /w
    echo one > f && ln f hard && ln -s f soft && ln -s /nowhere dangling
    [ "$(stat -c %h f)" = 2 ] && [ "$(readlink soft)" = f ] && [ "$(cat soft)" = one ]
    mv hard a/b/moved && [ "$(stat -c %i f)" = "$(stat -c %i a/b/moved)" ]
    echo two >> a/b/moved && [ "$(tail -n 1 f)" = two ]
    rm f && [ "$(stat -c %h a/b/moved)" = 1 ]
    chown 12:34 a/b/moved && chmod 4711 a/b/moved && stat -c '%a %u %g' a/b/moved
    touch -d '2001-02-03 04:05:06' a/b/moved && stat -c %Y a/b/moved
    mkfifo pipe && stat -c %F pipe
    mknod null c 1 3 && stat -c '%F %t %T' null
    echo written > null
    truncate -s 1000000 sparse && stat -c '%s %b' sparse
    rmdir a 2>/dev/null || echo not-empty
    rm -r a pipe null sparse soft dangling && ls -A /w | wc -l
    """
    done = box.sh(script)
    assert done.code == 0, done
    assert done.out.splitlines() == [
        "4711 12 34", "981173106", "fifo", "character special file 1 3", "1000000 0", "not-empty", "0",
    ], done


def test_deleted_file_stays_readable(box):
    done = box.sh("echo kept > /f; exec 3< /f; rm /f; cat <&3; ls /f 2>/dev/null; exec 4<> /g; rm /g; echo x >&4")
    assert (done.code, done.out) == (0, "kept\n"), done


def test_rename_over_and_exchange_of_folders(box):
    script = """
    set -e
    mkdir /w /w/one /w/two; cd /w; echo 1 > one/f; echo 2 > two/g
    mv one/f two/g; cat two/g; ls one | wc -l
    mv one three; [ -d three ]; mv three two/; [ -d two/three ]
    if mv two two/three/x 2>/dev/null; then echo moved into itself; fi
    echo end
    """
    done = box.sh(script)
    assert done.out.split() == ["1", "0", "end"], done


def test_read_only_root(box):
    done = box.run("sh", "-c", "touch /f; mkdir /d; rm /etc/passwd; echo end", options=["--read-only"])
    assert done.code == 0 and done.out == "end\n", done
    assert done.err.lower().count("read-only file system") == 3, done


@pytest.mark.nested_kvm
@pytest.mark.smoke
def test_bind_mount_of_a_folder(box, host_folder):
    (host_folder / "in").write_text("from the host\n")
    options = ["--mount", f"type=bind,src={host_folder},dst=/mnt/host,options=rbind:rw"]
    done = box.sh(
        "cat /mnt/host/in; echo from inside > /mnt/host/out; chown 5:6 /mnt/host/out; chmod 640 /mnt/host/out",
        options=options,
    )
    assert (done.code, done.out) == (0, "from the host\n"), done
    assert (host_folder / "out").read_text() == "from inside\n"
    status = os.stat(host_folder / "out")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 6, 0o640)


@pytest.mark.smoke
def test_bind_mount_of_a_folder_read_only(box, host_folder):
    (host_folder / "in").write_text("x\n")
    options = ["--mount", f"type=bind,src={host_folder},dst=/host,options=rbind:ro"]
    done = box.sh("cat /host/in; touch /host/new; rm /host/in; echo y > /host/in; echo end", options=options)
    assert done.code == 0 and done.out == "x\nend\n", done
    assert done.err.lower().count("read-only file system") == 3, done
    assert os.listdir(host_folder) == ["in"] and (host_folder / "in").read_text() == "x\n"


@pytest.mark.smoke
def test_bind_mount_of_one_file(box, host_folder):
    """The file, and nothing else of its folder."""
    (host_folder / "only").write_text("content\n")
    (host_folder / "secret").write_text("must not be seen\n")
    options = ["--mount", f"type=bind,src={host_folder}/only,dst=/etc/only,options=bind:rw"]
    done = box.sh(
        "cat /etc/only; echo more >> /etc/only; stat -c %s /etc/only; ls /etc; cat /etc/only/../secret",
        options=options,
    )
    assert done.out.splitlines()[:2] == ["content", "13"], done
    assert "secret" not in done.out and "must not" not in done.out, done
    assert (host_folder / "only").read_text() == "content\nmore\n"


def test_bind_mount_of_one_file_read_only(box, host_folder):
    (host_folder / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    options = ["--mount", f"type=bind,src={host_folder}/resolv.conf,dst=/etc/resolv.conf,options=rbind:ro"]
    done = box.sh("cat /etc/resolv.conf; echo x > /etc/resolv.conf", options=options)
    assert done.code != 0 and done.out == "nameserver 192.0.2.1\n", done
    assert "read-only" in done.err.lower(), done


def test_bind_mount_source_missing(box):
    options = ["--mount", "type=bind,src=/no/such/folder,dst=/mnt,options=rbind:rw"]
    done = box.run("true", options=options)
    assert done.code != 0 and "/no/such/folder" in done.err, done


def test_symlink_as_mount_target_stays_inside(box, host_folder):
    """A destination that goes through the image's own symlink is resolved in the container, never on the host."""
    source = host_folder / "source"
    source.mkdir()
    (source / "f").write_text("x\n")
    options = ["--mount", f"type=bind,src={source},dst=/var/run/../../../../mnt/x,options=rbind:rw"]
    done = box.sh("cat /mnt/x/f", options=options)
    assert (done.code, done.out) == (0, "x\n"), done


def test_tmpfs_mount(box):
    options = ["--mount", "type=tmpfs,src=tmpfs,dst=/scratch,options=size=4m:mode=1770:nosuid"]
    done = box.sh(
        "stat -c %a /scratch; grep -c ' /scratch tmpfs ' /proc/mounts; dd if=/dev/zero of=/scratch/f bs=1M count=8",
        options=options,
    )
    assert done.out.split() == ["1770", "1"], done
    assert done.code == 1 and "No space left" in done.err, done


def test_changes_on_the_host_are_seen(box, host_folder):
    """A bind mount is the host's folder, not a copy of it."""
    options = ["--mount", f"type=bind,src={host_folder},dst=/host,options=rbind:rw"]
    process = box.background(
        "sh", "-c", "while read -r name; do cat /host/$name; done", options=options
    )
    try:
        for i in range(3):
            (host_folder / f"f{i}").write_text(f"new {i}\n")
            process.stdin.write(f"f{i}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline() == f"new {i}\n".encode()
    finally:
        process.stdin.close()
        process.stdin = None
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_devices_of_the_host_are_not_reachable(box):
    """A block device node made in the container opens nothing."""
    major, minor = os.major(os.stat("/").st_dev), os.minor(os.stat("/").st_dev)
    done = box.sh(f"mknod /disk b {major} {minor} && head -c 1 /disk | wc -c")
    assert "Operation not permitted" in done.err or done.out.strip() == "0", done


@pytest.mark.slow
def test_large_file_and_checksum(box, host_folder):
    """64 MiB written in the container is what the host reads, and the other way round."""
    data = os.urandom(1 << 20) * 64
    (host_folder / "in").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    options = ["--mount", f"type=bind,src={host_folder},dst=/host,options=rbind:rw"]
    done = box.sh("sha256sum < /host/in; cp /host/in /host/out; cp /host/out /copy; sha256sum < /copy", options=options)
    assert done.code == 0 and done.out.split() == [digest, "-"] * 2, done
    assert hashlib.sha256((host_folder / "out").read_bytes()).hexdigest() == digest


CHURN = """
set -e
mkdir /churn && cd /churn
i=0
while [ $i -lt 300 ]; do
    d=d$((i % 10)); mkdir -p $d
    echo "source $i" > $d/f$i.c.tmp
    mv $d/f$i.c.tmp $d/f$i.c
    { cat $d/f$i.c; echo "object $i"; } > $d/f$i.o
    [ -s $d/f$i.o ] && ! [ -e $d/f$i.c.tmp ]
    i=$((i+1))
done
cat d*/f*.o > all
wc -l < all
ln -s all link && cmp all link
find . -name '*.c' | wc -l
rm -r d*
ls | wc -l
"""


@pytest.mark.smoke
def test_churn_of_small_files(box):
    """What a compile does: many small files made, renamed, read again, removed."""
    done = box.sh(CHURN)
    assert (done.code, done.out.split()) == (0, ["600", "300", "2"]), done


def test_debian_apt_and_dpkg(box, debian):
    done = box.run("apt-get", "--version", image="debian")
    assert done.code == 0 and done.out.startswith("apt 2."), done
    done = box.run("dpkg", "-l", image="debian")
    assert done.code == 0 and len([line for line in done.out.splitlines() if line.startswith("ii")]) > 80, done
    done = box.sh("dpkg --verify && perl -e 'print 6*7, qq(\\n)'", image="debian")
    assert done.code == 0 and done.out.splitlines()[-1] == "42", done


@pytest.mark.slow
def test_debian_tar_of_usr(box, debian, host_folder):
    """tar of /usr as the container sees it, against the tree on the host: names, modes, owners, links, content."""
    options = ["--mount", f"type=bind,src={host_folder},dst=/host,options=rbind:rw"]
    done = box.sh("tar -C / --numeric-owner -cf /host/usr.tar usr", image="debian", options=options, timeout=200)
    assert done.code == 0, done
    inside = listing(host_folder / "usr.tar", "usr/")
    outside = listing(image_layer(box, debian), "usr/")
    assert len(inside) > 1500
    different = [name for name in inside.keys() | outside.keys() if inside.get(name) != outside.get(name)]
    assert not different, [(name, inside.get(name), outside.get(name)) for name in sorted(different)[:10]]


def listing(path, prefix):
    """name -> everything that must be the same; hard links count as files of their own."""
    found = {}
    with tarfile.open(path) as tar:
        for info in tar:
            name = info.name.removeprefix("./")
            if not name.startswith(prefix):
                continue
            content = ""
            if info.isreg() or info.islnk():
                content = hashlib.sha256(tar.extractfile(info).read()).hexdigest()
            kind = b"0" if info.islnk() else info.type
            target = info.linkname if info.issym() else ""
            found[name] = (kind, info.mode, info.uid, info.gid, int(info.mtime) if content else 0, target, content)
    return found


def image_layer(box, ref):
    """The largest blob in containerd's content store is the Debian tree."""
    assert ref
    blobs = box.daemon.root / "io.containerd.content.v1.content" / "blobs" / "sha256"
    return max(blobs.iterdir(), key=lambda path: path.stat().st_size)


def test_debian_package_work(box, debian):
    """dpkg unpacks, configures, lists and removes a package made on the spot."""
    script = """
    set -e
    mkdir -p /p/DEBIAN /p/usr/share/made
    printf 'Package: made\\nVersion: 1\\nArchitecture: all\\nMaintainer: m <m@example.org>\\nDescription: d\\n' > /p/DEBIAN/control
    printf '#!/bin/sh\\necho configured\\n' > /p/DEBIAN/postinst; chmod 755 /p/DEBIAN/postinst
    for i in $(seq 200); do echo $i > /p/usr/share/made/f$i; done
    dpkg-deb --build /p /made.deb >/dev/null
    dpkg -i /made.deb | tail -n 1
    dpkg -L made | wc -l
    dpkg -r made >/dev/null
    [ ! -e /usr/share/made ] && echo removed
    """
    done = box.sh(script, image="debian")
    assert (done.code, done.out.split()) == (0, ["configured", "204", "removed"]), done


def test_debian_churn(box, debian):
    done = box.sh(CHURN, image="debian")
    assert (done.code, done.out.split()) == (0, ["600", "300", "2"]), done
