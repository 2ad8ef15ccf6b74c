"""What RDMA devices say they can do, asked in a process of its own: ``python -m`` this, DEVICE…

A provider's library does what it likes in the process that loads it, and a device that hangs is
left behind by its deadline. One JSON document: ``pyverbs_error``, and ``devices`` by name, each
with what workloads.verbs tells of it, or ``error``. Nothing is registered with a device.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pinstorm.host import module_path
from workloads import libc

_DEADLINE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answers:
    """``pyverbs_error``: why pyverbs cannot be used. ``unanswered``: why there is no answer at all.
    ``devices``: what each said, by name."""

    pyverbs_error: str | None = None
    unanswered: str | None = None
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, device: str) -> dict[str, Any]:
        """As workloads.zygote's capabilities: with ``error`` where it did not say."""
        return self.devices.get(device, {"error": self.unanswered or "it was not asked"})


def ask(devices: Sequence[str]) -> Answers:
    """Start it, and wait for its answers, half a minute: a guest that is emulated takes seconds."""
    # as the zygote is started: what site would do again takes seconds in a guest
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": module_path(),
    }
    command = [sys.executable, "-S", "-m", __spec__.name, *devices]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        return Answers(unanswered=f"the devices did not answer within {_DEADLINE_S:.0f} s")
    except OSError as error:
        return Answers(unanswered=f"{sys.executable} cannot be started: {error.strerror}")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        why = f"the process that asked ended with {done.returncode}: {last}"
        return Answers(unanswered=why)
    return Answers(answer["pyverbs_error"], devices=answer["devices"])


def _answer(devices: Sequence[str]) -> dict[str, Any]:
    try:
        from workloads import verbs
    except ImportError as error:
        return {"pyverbs_error": str(error), "devices": {}}
    found: dict[str, dict[str, Any]] = {}
    for device in devices:
        try:
            found[device] = {**verbs.capabilities(device), **verbs.describe(device)}
        except Exception as error:  # whatever a provider's library raises
            found[device] = {"error": str(error)}
    return {"pyverbs_error": None, "devices": found}


if __name__ == "__main__":
    libc.die_with_parent()  # whoever kills doctor has not heard of this process
    json.dump(_answer(sys.argv[1:]), sys.stdout)
