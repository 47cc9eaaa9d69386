"""Archives in cpio's "newc" format, as the kernel unpacks them for its first root file system.

Written from names and bytes alone: times and owners are fixed, and device nodes need no root, because they are
entries of the archive and never exist here.
"""

import stat

ALIGN = 4


def _pad(length):
    return b"\0" * (-length % ALIGN)


class Archive:
    def __init__(self):
        self._parts = []

    def _add(self, name, mode, data=b"", nlink=1, rdev=(0, 0)):
        """One member: header, name and data, the last two padded to 4."""
        path = name.encode() + b"\0"
        ino = 0 if name == "TRAILER!!!" else len(self._parts) + 1
        fields = (ino, mode, 0, 0, nlink, 0, len(data), 0, 0, *rdev, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts.append(head + _pad(len(head)) + data + _pad(len(data)))

    def folder(self, name, mode=0o755):
        self._add(name, stat.S_IFDIR | mode, nlink=2)

    def device(self, name, mode, major, minor):
        self._add(name, stat.S_IFCHR | mode, rdev=(major, minor))

    def file(self, name, data, mode=0o644):
        self._add(name, stat.S_IFREG | mode, data=data)

    def link(self, name, target):
        self._add(name, stat.S_IFLNK | 0o777, data=target.encode())

    def bytes(self):
        self._add("TRAILER!!!", 0)
        data = b"".join(self._parts)
        self._parts.pop()
        return data
