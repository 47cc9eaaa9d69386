"""What an exec costs: Task Exec + Start + Wait + Delete of `true` over the shim's own socket, in a warm container."""

import os
import time

from . import images, paths, ttrpc

RUNC = "io.containerd.runc.v2"
CALLS = ("Exec", "Start", "Wait", "Delete")


class Target:
    """A running container of one runtime, and a connection to its shim. `fifos` None = no streams."""

    def __init__(self, daemon, runtime, fifo_folder=None):
        self.daemon, self.name, self.folder = daemon, f"exec-{runtime.split('.')[2]}", fifo_folder
        args = daemon.run_args(images.BUSYBOX_REF, self.name, "sleep", "100000", runtime=runtime,
                               options=["-d", "--null-io"])
        done = daemon.ctr(*args, timeout=120)
        if done.code:
            raise RuntimeError(f"{done!r}")
        self.client = ttrpc.Client(ttrpc.address_of(daemon.bundle(self.name)), daemon.namespace, self._service())
        self.count = 0

    def _service(self):
        return ttrpc.SERVICE if self.daemon.flavour.major < 2 else ttrpc.SERVICE.replace("v2", "v3")

    def once(self):
        """One exec: milliseconds of each call, and of all."""
        self.count += 1
        names = {"id": self.name, "exec_id": f"e{self.count}"}
        fifos = ttrpc.Fifos(self.folder, names["exec_id"], ("stdout", "stderr")) if self.folder else None
        spec = ttrpc.process_any(["true"])
        at = [time.perf_counter()]
        self.client.call("Exec", spec=spec, **names, **(fifos.paths if fifos else {}))
        at.append(time.perf_counter())
        self.client.call("Start", **names)
        at.append(time.perf_counter())
        status = self.client.call("Wait", **names)["exit_status"]
        at.append(time.perf_counter())
        self.client.call("Delete", **names)
        at.append(time.perf_counter())
        if fifos:
            fifos.remove()
        if status:
            raise RuntimeError(f"{self.name}: `true` ended with {status}")
        steps = {call: (at[i + 1] - at[i]) * 1000 for i, call in enumerate(CALLS)}
        return steps | {"all": (at[-1] - at[0]) * 1000}

    def close(self):
        self.client.close()
        self.daemon.remove(self.name)


def measure(daemon, rounds, with_streams=False):
    """runtime -> call -> [ms]; the runtimes take turns."""
    folder = None
    if with_streams:
        folder = daemon.folder / "exec-fifos"
        os.makedirs(folder, exist_ok=True)
    found = {}
    targets = {}
    try:
        for runtime in (paths.RUNTIME, RUNC):
            targets[runtime] = Target(daemon, runtime, folder)
            for _ in range(5):
                targets[runtime].once()
        for _ in range(rounds):
            for runtime, target in targets.items():
                for call, ms in target.once().items():
                    found.setdefault(runtime, {}).setdefault(call, []).append(ms)
    finally:
        for target in targets.values():
            target.close()
    return found
