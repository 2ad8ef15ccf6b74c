"""Starts the antagonist beside the runner of a guest; planted through lab.run_kernel(include=…).

The runner imports what is planted before it starts its zygote; so the antagonist is no descendant
of the zygote, which the trace would follow and the end of a case would kill. It ends with the
runner, which holds its standard input.
"""

import os
import subprocess
import sys
from pathlib import Path

from workloads.spec import WorkloadSpec

WORKLOADS: tuple[WorkloadSpec, ...] = ()

ANTAGONIST = Path(__file__).parents[1] / "host" / "antagonist.py"
PLANS = (("register", 1 << 20, 0, 20), ("copy", 1 << 16, 2, 30))


def start(kind: str, *numbers: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(ANTAGONIST), kind, *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "pinned\n"
    return process


if getattr(sys.modules["__main__"].__spec__, "name", None) == "pinstorm.lab.guest":
    STARTED = [start(*plan) for plan in PLANS]
