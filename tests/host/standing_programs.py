"""Processes that stand still where a test wants to look at them."""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

NOBODY = 65534


@contextlib.contextmanager
def program(source: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said "ready" and stands still until its input closes."""
    lines = textwrap.dedent(source) + "\nprint('ready', flush=True)\nimport sys\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", lines],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def as_nobody() -> dict[str, Any]:
    """Options of subprocess that make an ordinary user of root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
