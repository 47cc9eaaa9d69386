"""The host's clock is set while a container runs. In the nested host only, whose clock is nobody else's."""

import time

import pytest
from harpoonlib.containerd import wait_until

pytestmark = pytest.mark.nested

YEAR = 365 * 86400


def apart(box, name):
    """Seconds that the container's clock is ahead of the host's."""
    before = time.time()
    done = box.exec(name, "date", "+%s")
    assert done.code == 0, done
    now = int(done.out)
    return 0 if before - 1.5 <= now <= time.time() + 0.5 else now - before


def test_host_clock_is_set(box):
    """Forward, back, and back to what it was: the container's clock follows, nothing runs out, and it ends as ever."""
    # Its shell looks for the signal between two commands
    name = box.detached("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done", rm=False)
    assert apart(box, name) == 0
    right = time.time() - time.monotonic()
    try:
        for step in (10 * YEAR, -11 * YEAR, YEAR):
            time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
            assert wait_until(lambda: apart(box, name) == 0, 60), (step, apart(box, name))
            assert box.status(name) == "RUNNING"
    finally:
        time.clock_settime(time.CLOCK_REALTIME, right + time.monotonic())
    assert box.ctr("task", "kill", "-s", "TERM", name).code == 0
    box.wait_status(name, "STOPPED")
    assert box.delete(name) == 7
