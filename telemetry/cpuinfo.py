"""/proc/cpuinfo: what the processor is called.

Machine-wide, one block per online CPU, worded differently by each architecture. See
Documentation/filesystems/proc.rst.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# x86; POWER; s390; RISC-V; arm64 names no model but has these two numbers
_MODEL_KEYS = ("model name", "cpu", "processor 0", "uarch", "CPU implementer")


@dataclass(frozen=True, slots=True)
class Cpu:
    model: str | None
    microcode: str | None
    online: int
    hypervisor: bool | None

    @property
    def emulated(self) -> bool:
        """Whether QEMU's TCG makes it up: its ``max`` says so (target/i386/cpu.c), and a time
        measured there is none of any machine. Other models do not tell."""
        return (self.model or "").startswith("QEMU TCG CPU")


def parse(text: str, online: int) -> Cpu:
    """``hypervisor``: x86's flag that a hypervisor runs below; None where there are no flags."""
    first: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            first.setdefault(key.strip(), value.strip())
    flags = first.get("flags")
    return Cpu(
        model=_first_of(_MODEL_KEYS, first),
        microcode=first.get("microcode"),
        online=online,
        hypervisor=None if flags is None else "hypervisor" in flags.split(),
    )


def _first_of(keys: Iterable[str], values: dict[str, str]) -> str | None:
    return next((values[key] for key in keys if values.get(key)), None)


def read() -> Cpu:
    text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    return parse(text, os.sysconf("SC_NPROCESSORS_ONLN"))
