"""The frequency of this machine's time stamp counter.

An emulator that counts no instructions hands it to its guest as it is. On a busy machine a guest that measures it
against an emulated timer gets a figure that may be half of the truth, and its clock then runs at twice the speed; so
whoever starts it measures, and tells.
"""

import ctypes
import mmap
import pathlib
import time

CLOCKSOURCE = pathlib.Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
# rdtsc; shl rdx, 32; or rax, rdx; ret
CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")
SPAN_S = 0.1


def _reading(rdtsc):
    """(ticks, ns) of one moment: of several tries the one that was interrupted least."""
    tries = []
    for _ in range(10):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = rdtsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        tries.append((after - before, ticks, (before + after) // 2))
    return min(tries)[1:]


def khz():
    """0 where the kernel itself does not keep time by it."""
    try:
        if CLOCKSOURCE.read_text().strip() not in ("tsc", "kvm-clock"):
            return 0
    except OSError:
        return 0
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page.write(CODE)
        anchor = ctypes.c_char.from_buffer(page)
        rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))
        ticks, ns = _reading(rdtsc)
        time.sleep(SPAN_S)
        more_ticks, more_ns = _reading(rdtsc)
        del anchor
    return round((more_ticks - ticks) * 1_000_000 / (more_ns - ns))
