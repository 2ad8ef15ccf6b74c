"""/proc/meminfo: the machine's memory, huge pages and CMA.

Bytes here (the kernel prints KiB and calls them kB), huge page figures in huge pages of the default
size; levels; machine-wide, not per cgroup. MemAvailable since Linux 3.14; CmaTotal and CmaFree only
on kernels with CONFIG_CMA. See Documentation/filesystems/proc.rst.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MEMINFO = Path("/proc/meminfo")

_READ_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class MemInfo:
    total_bytes: int | None
    free_bytes: int | None
    available_bytes: int | None
    mlocked_bytes: int | None
    unevictable_bytes: int | None
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    cma_total_bytes: int | None
    cma_free_bytes: int | None
    hugepages_total: int | None
    hugepages_free: int | None
    hugepages_reserved: int | None
    hugepages_surplus: int | None
    hugepage_bytes: int | None
    hugetlb_bytes: int | None
    anon_huge_bytes: int | None
    commit_limit_bytes: int | None
    committed_bytes: int | None


def parse(text: str) -> MemInfo:
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words:
            values[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return MemInfo(
        total_bytes=values.get("MemTotal"),
        free_bytes=values.get("MemFree"),
        available_bytes=values.get("MemAvailable"),
        mlocked_bytes=values.get("Mlocked"),
        unevictable_bytes=values.get("Unevictable"),
        swap_total_bytes=values.get("SwapTotal"),
        swap_free_bytes=values.get("SwapFree"),
        cma_total_bytes=values.get("CmaTotal"),
        cma_free_bytes=values.get("CmaFree"),
        hugepages_total=values.get("HugePages_Total"),
        hugepages_free=values.get("HugePages_Free"),
        hugepages_reserved=values.get("HugePages_Rsvd"),
        hugepages_surplus=values.get("HugePages_Surp"),
        hugepage_bytes=values.get("Hugepagesize"),
        hugetlb_bytes=values.get("Hugetlb"),
        anon_huge_bytes=values.get("AnonHugePages"),
        commit_limit_bytes=values.get("CommitLimit"),
        committed_bytes=values.get("Committed_AS"),
    )


def read() -> MemInfo:
    return parse(MEMINFO.read_text(encoding="ascii"))


class Levels:
    """Some lines of the file, which is held open: ``names``, those that this kernel has.

    ``wanted``: the kernel's names, ``MemFree``, ``CmaFree``, …
    """

    def __init__(self, wanted: Iterable[str]):
        """OSError where there is no such file."""
        self._fd = os.open(MEMINFO, os.O_RDONLY | os.O_CLOEXEC)
        data = self.read()
        self.names = tuple(name for name in wanted if f"\n{name}:".encode() in data)
        self._keys = tuple(f"\n{name}:".encode() for name in self.names)

    def read(self) -> bytes:
        """For ``values``."""
        return b"\n" + os.pread(self._fd, _READ_BYTES, 0)

    def values(self, data: bytes) -> list[int]:
        """In the order of ``names``: bytes, and huge pages where the line has no unit."""
        return [level_of(data, key) for key in self._keys]

    def close(self) -> None:
        os.close(self._fd)


def level_of(data: bytes, key: bytes) -> int:
    """``key`` is ``b"\\nNAME:"``; data starts with a newline. ValueError: there is no such line."""
    start = data.index(key) + len(key)
    words = data[start : data.index(b"\n", start)].split()
    return int(words[0]) * (1024 if words[-1] == b"kB" else 1)
