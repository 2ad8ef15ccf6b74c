"""The command that raises a limit of whatever started this process, as far as there is one."""

import os
from dataclasses import dataclass
from resource import RLIMIT_AS, getrlimit
from typing import Final


@dataclass(frozen=True, slots=True)
class Resource:
    """``letter``: the shell's (ulimit), which counts in KiB. ``option``: prlimit's, in bytes."""

    letter: str
    option: str


MEMLOCK: Final = Resource("l", "memlock")
ADDRESS_SPACE: Final = Resource("v", "as")


def address_space(soft_bytes: int) -> str | None:
    """Of RLIMIT_AS, whose hard limit is that of this process itself."""
    _, hard_bytes = getrlimit(RLIMIT_AS)
    return command(ADDRESS_SPACE, soft_bytes, hard_bytes)


def command(resource: Resource, soft_bytes: int | None, hard_bytes: int | None) -> str | None:
    """For that process, and all that it starts from now on. -1: unlimited.

    None where the limits are not known, and where that process has no number here: it is outside of
    this PID namespace, and the limit is given where the container is started.
    """
    if soft_bytes is None or hard_bytes is None:
        return None
    if hard_bytes == -1:
        return f"ulimit -S -{resource.letter} unlimited"
    if soft_bytes < hard_bytes // 1024 * 1024:
        return f"ulimit -S -{resource.letter} {hard_bytes // 1024}"
    parent = os.getppid()
    return f"prlimit --pid {parent} --{resource.option}=unlimited:unlimited" if parent else None
