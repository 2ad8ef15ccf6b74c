"""Run in a guest by test_witness_run: what a killed run leaves in tracefs, and who removes it.

Prints one JSON object. With the argument ``die`` it is the run that is killed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from pinstorm.lab import setup
from pinstorm.witness import witness
from telemetry.gup_trace import GupTrace

TRACEFS = Path("/sys/kernel/tracing")


def there() -> list[str]:
    """Whose instances and groups of kprobe events are in tracefs."""
    lines = (TRACEFS / "kprobe_events").read_text().splitlines()
    groups = {line.split()[0].partition(":")[2].partition("/")[0] for line in lines}
    instances = os.listdir(TRACEFS / "instances")
    return sorted({*(name.removesuffix("_iou") for name in instances), *groups})


def die() -> None:
    """As a run that is killed in a window."""
    with witness(True) as seen:
        seen.follow(os.getpid())
        seen.arm()
        with seen.window():
            print(os.getpid(), seen.missing, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def look() -> dict[str, object]:
    setup.tracing()
    alive = GupTrace.open()
    alive.follow(os.getpid())
    alive.arm(True)
    command = [sys.executable, "-S", __file__, "die"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    left = there()
    with witness(False):  # the next run, which traces nothing itself
        kept = there()
    alive.on()
    Path("/proc/self/cmdline").read_bytes()  # get_user_pages_remote()
    alive.off()
    seen = [call.function for call in alive.read().calls]
    lost = overrun(alive)
    alive.close()
    return {
        "alive": alive.name,
        "killed": killed.stdout.strip(),
        "stderr": killed.stderr,
        "left": left,
        "kept": kept,
        "seen": seen,
        "lost": lost,
        "after": there(),
    }


def overrun(trace: GupTrace) -> str | None:
    """More events than the buffer holds."""
    size = TRACEFS / "instances" / trace.name / "buffer_size_kb"
    size.write_text("8")
    trace.on()
    for _ in range(2000):
        Path("/proc/self/cmdline").read_bytes()
    trace.off()
    return trace.read().lost


if __name__ == "__main__":
    if sys.argv[1:] == ["die"]:
        die()
    print(json.dumps(look()))
