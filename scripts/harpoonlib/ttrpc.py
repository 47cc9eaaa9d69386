"""A client of a shim's Task service, as containerd is one: ttrpc over the shim's socket. For tests and benchmarks, which
must see the very codes and texts of an answer, and call in an order that no other client would.

One thread. Any number of calls can be under way: `send` gives a ticket, `receive` waits for its answer.
"""

import json
import os
import socket
import struct
import time

SERVICE = "containerd.task.v2.Task"
HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE = 1, 2

# field -> (number, kind): s string, b bytes, u varint, or a nested message; [kind] = repeated
ANY = {"type_url": (1, "s"), "value": (2, "b")}
TIMESTAMP = {"seconds": (1, "u"), "nanos": (2, "u")}
PROCESS = {"id": (1, "s"), "exec_id": (2, "s")}
STDIO = {"terminal": (3, "u"), "stdin": (4, "s"), "stdout": (5, "s"), "stderr": (6, "s")}
MOUNT = {"type": (1, "s"), "source": (2, "s"), "target": (3, "s"), "options": (4, ["s"])}
PID = {"pid": (1, "u")}
EMPTY = {}
METHODS = {
    "State": (PROCESS, {
        "id": (1, "s"), "bundle": (2, "s"), "pid": (3, "u"), "status": (4, "u"), "stdin": (5, "s"), "stdout": (6, "s"),
        "stderr": (7, "s"), "terminal": (8, "u"), "exit_status": (9, "u"), "exited_at": (10, TIMESTAMP),
        "exec_id": (11, "s"),
    }),
    "Create": ({
        "id": (1, "s"), "bundle": (2, "s"), "rootfs": (3, [MOUNT]), **{
            name: (number + 1, kind) for name, (number, kind) in STDIO.items()
        }, "checkpoint": (8, "s"), "parent_checkpoint": (9, "s"),
    }, PID),
    "Start": (PROCESS, PID),
    "Delete": (PROCESS, {"pid": (1, "u"), "exit_status": (2, "u"), "exited_at": (3, TIMESTAMP)}),
    "Pids": (PROCESS, {"processes": (1, [{"pid": (1, "u"), "info": (2, ANY)}])}),
    "Pause": (PROCESS, EMPTY),
    "Resume": (PROCESS, EMPTY),
    "Checkpoint": ({"id": (1, "s"), "path": (2, "s"), "options": (3, ANY)}, EMPTY),
    "Kill": ({**PROCESS, "signal": (3, "u"), "all": (4, "u")}, EMPTY),
    "Exec": ({**PROCESS, **STDIO, "spec": (7, ANY)}, EMPTY),
    "ResizePty": ({**PROCESS, "width": (3, "u"), "height": (4, "u")}, EMPTY),
    "CloseIO": ({**PROCESS, "stdin": (3, "u")}, EMPTY),
    "Update": ({"id": (1, "s"), "resources": (2, ANY)}, EMPTY),
    "Wait": (PROCESS, {"exit_status": (1, "u"), "exited_at": (2, TIMESTAMP)}),
    "Stats": (PROCESS, {"stats": (1, ANY)}),
    "Connect": (PROCESS, {"shim_pid": (1, "u"), "task_pid": (2, "u"), "version": (3, "s")}),
    "Shutdown": ({"id": (1, "s"), "now": (2, "u")}, EMPTY),
}
CALL = {
    "service": (1, "s"), "method": (2, "s"), "payload": (3, "b"), "timeout_nano": (4, "u"),
    "metadata": (5, [{"key": (1, "s"), "value": (2, "s")}]),
}
ANSWER = {"status": (1, {"code": (1, "u"), "message": (2, "s")}), "payload": (2, "b")}

STATUS = ["UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING"]
# google.rpc.Code
UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 2, 3, 4, 5, 6
FAILED_PRECONDITION, UNIMPLEMENTED, UNAVAILABLE = 9, 12, 14


class Error(Exception):
    """The answer is an error."""

    def __init__(self, code, text):
        super().__init__(f"code {code}: {text}")
        self.code, self.text = code, text


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(fields, values):
    out = b""
    for name, value in values.items():
        number, kind = fields[name]
        for item in value if isinstance(kind, list) else [value]:
            inner = kind[0] if isinstance(kind, list) else kind
            if inner == "u":
                out += varint(number << 3) + varint(int(item)) if item else b""
                continue
            data = item.encode() if inner == "s" else item if inner == "b" else encode(inner, item)
            out += varint(number << 3 | 2) + varint(len(data)) + data if data or isinstance(inner, dict) else b""
    return out


def _read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _wire(data):
    """(field number, value) in turn; lengths are followed, doubles and the like are skipped."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
        elif key & 7 == 2:
            size, at = _read_varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            value, at = None, at + (8 if key & 7 == 1 else 4)
        yield key >> 3, value


def decode(fields, data):
    """A dict with every field; what is not on the wire has its default (None for a message)."""
    empty = {"s": "", "b": b"", "u": 0}
    by_number = {number: (name, kind) for name, (number, kind) in fields.items()}
    out = {
        name: [] if isinstance(kind, list) else empty.get(kind) if isinstance(kind, str) else None
        for name, (_, kind) in fields.items()
    }
    for number, value in _wire(data):
        name, kind = by_number.get(number, (None, None))
        if name is None:
            continue
        inner = kind[0] if isinstance(kind, list) else kind
        if inner == "s":
            value = value.decode()
        elif isinstance(inner, dict):
            value = decode(inner, value)
        if isinstance(kind, list):
            out[name].append(value)
        else:
            out[name] = value
    return out


def address_of(bundle):
    """Where the shim of a bundle listens: containerd's note about it (2.x), or the shim's own (1.x)."""
    try:
        with open(f"{bundle}/bootstrap.json", encoding="utf-8") as f:
            text = json.load(f)["address"]
    except FileNotFoundError:
        with open(f"{bundle}/address", encoding="utf-8") as f:
            text = f.read()
    return text.removeprefix("unix://")


class Client:
    def __init__(self, path, namespace="default", service=SERVICE):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._service, self._namespace = service, namespace
        self._next, self._buffer, self._answers, self._methods = 1, b"", {}, {}

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, method, **fields):
        """A call; what comes back is for receive()."""
        request, _ = METHODS[method]
        call = {
            "service": self._service, "method": method, "payload": encode(request, fields),
            "metadata": [{"key": "containerd-namespace-ttrpc", "value": self._namespace}],
        }
        data = encode(CALL, call)
        ticket, self._next = self._next, self._next + 2
        self._methods[ticket] = method
        self._socket.sendall(HEADER.pack(len(data), ticket, REQUEST, 0) + data)
        return ticket

    def is_answered(self, ticket):
        """Whether the answer is here already."""
        self._fill(time.monotonic(), ticket)
        return ticket in self._answers

    def receive(self, ticket, timeout=60):
        """The answer as a dict; raises Error, TimeoutError, ConnectionError."""
        self._fill(time.monotonic() + timeout, ticket)
        if ticket not in self._answers:
            raise TimeoutError(f"{self._methods[ticket]} is not answered after {timeout} s")
        answer = decode(ANSWER, self._answers.pop(ticket))
        method = self._methods.pop(ticket)
        if answer["status"] and answer["status"]["code"]:
            raise Error(answer["status"]["code"], answer["status"]["message"])
        return decode(METHODS[method][1], answer["payload"])

    def call(self, method, timeout=60, **fields):
        return self.receive(self.send(method, **fields), timeout)

    def error(self, method, timeout=60, **fields):
        """(code, text) of a call that must fail; (0, '') when it does not."""
        try:
            self.call(method, timeout, **fields)
        except Error as error:
            return error.code, error.text
        return 0, ""

    def _fill(self, deadline, ticket):
        """Reads until the answer to `ticket` is here, or it is past `deadline`."""
        while ticket not in self._answers:
            if self._take_frame():
                continue
            self._socket.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                data = self._socket.recv(65536)
            except (TimeoutError, BlockingIOError):
                return
            finally:
                self._socket.settimeout(None)
            if not data:
                raise ConnectionError("the shim closed the connection")
            self._buffer += data

    def _take_frame(self):
        if len(self._buffer) < HEADER.size:
            return False
        size, stream, kind, _ = HEADER.unpack_from(self._buffer)
        if len(self._buffer) < HEADER.size + size:
            return False
        if kind == RESPONSE:
            self._answers[stream] = self._buffer[HEADER.size:HEADER.size + size]
        self._buffer = self._buffer[HEADER.size + size:]
        return True


def process_any(args, **more):
    """The spec of an exec process: what `ctr task exec` sends, with changes."""
    spec = {
        "args": list(args), "cwd": "/", "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "user": {"uid": 0, "gid": 0}, **more,
    }
    url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
    return {"type_url": url, "value": json.dumps(spec).encode()}


def resources_any(resources):
    url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
    return {"type_url": url, "value": json.dumps(resources).encode()}


class Fifos:
    """The three FIFOs of a process, held open by us as a client does. `kinds` names those that exist."""

    NAMES = ("stdin", "stdout", "stderr")

    def __init__(self, folder, name, kinds=NAMES):
        self.paths = {kind: f"{folder}/{name}-{kind}" for kind in kinds}
        self.fds = {}
        for kind, path in self.paths.items():
            os.mkfifo(path, 0o600)
            # Never waits for the other side
            self.fds[kind] = os.open(path, (os.O_RDWR if kind == "stdin" else os.O_RDONLY) | os.O_NONBLOCK)

    def close(self, *kinds):
        for kind in kinds or list(self.fds):
            os.close(self.fds.pop(kind))

    def remove(self):
        self.close()
        for path in self.paths.values():
            os.unlink(path)
