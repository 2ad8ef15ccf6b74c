"""The clock that every record uses, its pairing with real time, and the identity of this boot.

All stored times are CLOCK_MONOTONIC nanoseconds (time.monotonic_ns on Linux): they stop during
suspend, never jump with NTP steps, and compare with ``trace_clock mono``. They mean nothing across
boots, so a bundle keeps one pair of (monotonic, real) readings per boot and the boot's id.
``/proc/sys/kernel/random/boot_id``: machine-wide, constant from boot to boot, since Linux 2.4. See
Documentation/admin-guide/sysctl/kernel.rst ("random").
"""

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

now_ns = time.monotonic_ns

# A sleeper comes back late by its timer's slack, 50 us, and by what waking takes.
_SPIN_NS = 500_000


def pair() -> dict[str, int]:
    """The same moment on both clocks, in ns.

    The two are read one after the other, so the monotonic reading is the middle of two around the
    realtime one: the error is half of a clock call, far below what NTP slews away.
    """
    before = time.monotonic_ns()
    realtime = time.time_ns()
    after = time.monotonic_ns()
    return {"monotonic_ns": (before + after) // 2, "realtime_ns": realtime}


def wait_until(moment_ns: int) -> int:
    """Sleep for the most part, then look at the clock again and again; what it says at last."""
    left_ns = moment_ns - time.monotonic_ns() - _SPIN_NS
    if left_ns > 0:
        time.sleep(left_ns / 1e9)
    while (reached_ns := time.monotonic_ns()) < moment_ns:
        pass
    return reached_ns


def boot_id() -> str | None:
    """A UUID made at boot; None in a container that hides it."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
