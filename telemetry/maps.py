"""/proc/PID/maps: the mappings (VMAs) of a process.

Addresses in bytes, half open; a level; per process. Since Linux 1.x. vm.max_map_count limits how
many there may be: pins split mappings where MADV_DONTFORK is set per region. See
Documentation/filesystems/proc.rst.
"""

import os
from dataclasses import dataclass
from pathlib import Path

# The kernel gives at most a page or so at a time.
_READ_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class Mapping:
    """``permissions`` as the kernel prints them: ``rw-p`` private, ``rw-s`` shared."""

    start: int
    end: int
    permissions: str
    offset_bytes: int
    device: str
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"


def parse(text: str) -> list[Mapping]:
    return [_parse_line(line) for line in text.splitlines() if line]


def _parse_line(line: str) -> Mapping:
    words = line.split(maxsplit=5)
    start, end = words[0].split("-")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        permissions=words[1],
        offset_bytes=int(words[2], 16),
        device=words[3],
        inode=int(words[4]),
        path=words[5] if len(words) > 5 else "",
    )


def read(pid: int | str = "self") -> list[Mapping]:
    """Raises PermissionError for another user's process, FileNotFoundError when it is gone."""
    return parse(read_text(pid))


def read_text(pid: int | str = "self") -> str:
    """As the kernel gives it, for whoever wants to look at it more than once."""
    return _path(pid).read_text(encoding="utf-8", errors="surrogateescape")


def overlapping(text: str, start: int, end: int) -> list[Mapping]:
    """Those with a byte in [start, end), in the order of their addresses."""
    found = []
    for line in text.splitlines():
        first, _, rest = line.partition("-")
        if int(first, 16) >= end:
            break
        if int(rest.partition(" ")[0], 16) > start:
            found.append(_parse_line(line))
    return found


def limited_count(text: str) -> int:
    """What vm.max_map_count limits: all of them but [vsyscall], which no process has of its own."""
    return text.count("\n") - text.count(" [vsyscall]\n")


def vma_count(pid: int | str = "self") -> int:
    """How many mappings: one line each. [vsyscall] is listed, yet not counted by the limit."""
    fd = os.open(_path(pid), os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = 0
        while data := os.read(fd, _READ_BYTES):
            lines += data.count(b"\n")
        return lines
    finally:
        os.close(fd)


def _path(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/maps")


def mapping_of(address: int, mappings: list[Mapping]) -> Mapping | None:
    return next((vma for vma in mappings if vma.start <= address < vma.end), None)
