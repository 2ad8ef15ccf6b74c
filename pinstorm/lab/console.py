"""What a guest's console says of its end: a panic of the kernel, or the emulator's own defect."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pinstorm.lab.accel import Accel
from telemetry.kmsg import DIE_HEADER

_DEATH: Final = re.compile(
    rf"Kernel panic - not syncing|BUG: unable to handle|kernel BUG at|{DIE_HEADER}"
)
# What an int3 makes of it: oops_end() in arch/x86/kernel/dumpstack.c panics in an interrupt, and
# do_exit() for a process that must live.
_OF_INT3: Final = re.compile(
    r"\bint3: 0000 \[#"
    r"|Kernel panic - not syncing: (Fatal exception|Attempted to kill (init|the idle task)!)"
)
_FIRST_INT3: Final = re.compile(r"\bint3: 0000 \[#1\]")
# QEMU's v8.1.0-rc0, deba78709ae8 ("accel/tcg: Always lock pages before translation").
_MENDED: Final = (8, 1)


def lines_of(path: Path, offset_bytes: int = 0) -> list[str]:
    """A console file's lines from there on, without terminal escapes; empty when there is none."""
    try:
        text = path.read_bytes()[offset_bytes:].decode(errors="replace")
    except OSError:
        return []
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r", "", text)
    return [line.rstrip() for line in plain.splitlines() if line.strip()]


def panic(lines: Sequence[str]) -> list[str]:
    """The lines from the kernel's first oops or panic on; empty when there was none."""
    for number, line in enumerate(lines):
        if _DEATH.search(line):
            return list(lines[number:])
    return []


def is_emulators(lines: Sequence[str], accel: Accel) -> bool:
    """Whether a panic is QEMU's and not the kernel's: an int3 that was patched away already.

    ``lines``: as panic() gives them; where anything else went wrong as well, it is the kernel's.
    The kernel patches its code (jump labels, ftrace, probes) with an int3 in its place for a
    moment. An emulated CPU of QEMU before 8.1 can translate the code just then, and goes on with
    the int3 when the kernel knows of none any more. Seen here once in some forty boots, on a busy
    host; reported as "qemu-x86_64 booting with 8.0.0 stil see int3: when running LTP tracing
    testing" to the kernel's list in June 2023.
    """
    if accel.name != "tcg" or not lines or not _FIRST_INT3.search(lines[0]):
        return False
    if not all(_OF_INT3.search(line) for line in lines if _DEATH.search(line)):
        return False
    numbers = re.match(r"(\d+)\.(\d+)", accel.qemu_version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < _MENDED
