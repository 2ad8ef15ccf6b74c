"""/proc/PID/limits: the resource limits of a process, soft and hard.

Bytes where the kernel counts bytes, else as the resource counts; a level; per process, each with
its own. Since Linux 2.6.24; readable by anyone. See proc_pid_limits(5) and setrlimit(2).
"""

import re
from dataclasses import dataclass
from pathlib import Path

# resource.RLIM_INFINITY
UNLIMITED = -1

MEMLOCK = "Max locked memory"
ADDRESS_SPACE = "Max address space"

# The names have spaces, the columns are padded: fs/proc/base.c, proc_pid_limits().
_LINE = re.compile(r"^(Max .+?) {2,}(\w+) +(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Limit:
    """UNLIMITED where there is none."""

    soft: int
    hard: int


def parse(text: str) -> dict[str, Limit]:
    """By the kernel's name of it: ``Max locked memory``."""
    return {name: Limit(_number(soft), _number(hard)) for name, soft, hard in _LINE.findall(text)}


def _number(word: str) -> int:
    return UNLIMITED if word == "unlimited" else int(word)


def read(pid: int | str = "self") -> dict[str, Limit]:
    """Raises FileNotFoundError or ProcessLookupError when the process is gone."""
    return parse(Path(f"/proc/{pid}/limits").read_text(encoding="ascii"))
