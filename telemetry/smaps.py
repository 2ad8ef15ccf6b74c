"""/proc/PID/smaps: what each mapping of a process is, in flags, and what it has in memory.

Bytes here (the kernel prints KiB and calls them kB); levels; per mapping. Since Linux 2.6.14, with
CONFIG_PROC_PAGE_MONITOR; VmFlags since 3.8. To print a mapping the kernel walks its page tables
(1.7 ms for the 197 mappings of a Python process, 6.18), so no more is read than is asked for.
See Documentation/filesystems/proc.rst and show_smap_vma_flags() in fs/proc/task_mmu.c.
"""

import os
import re
from dataclasses import dataclass

# The two letters of a flag that matters to whoever pins.
IO, PFNMAP, MIXEDMAP, HUGETLB, LOCKED, DONTCOPY = "io", "pf", "mm", "ht", "lo", "dc"

_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S{4} ", re.MULTILINE)
# The kernel hands out about a page of text at a time, whole mappings.
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Details:
    """``flags``: as the kernel prints them (``rd``, ``wr``, ``sh``, …). None: not told."""

    start: int
    end: int
    flags: tuple[str, ...]
    kernel_page_bytes: int | None
    rss_bytes: int | None
    locked_bytes: int | None


def parse(text: str, start: int = 0, end: int = 1 << 64) -> list[Details]:
    """The mappings that overlap [start, end), in the order of their addresses."""
    found: list[Details] = []
    headers = list(_HEADER.finditer(text))
    if not headers:
        return found  # a process that has just ended, or a kernel thread
    bodies = [*(header.start() for header in headers[1:]), len(text)]
    for header, body_end in zip(headers, bodies, strict=True):
        first, last = int(header[1], 16), int(header[2], 16)
        if first < end and last > start:
            found.append(_details(first, last, text[header.end() : body_end]))
    return found


def _details(start: int, end: int, body: str) -> Details:
    fields = dict(line.split(":", 1) for line in body.splitlines()[1:] if ":" in line)
    return Details(
        start=start,
        end=end,
        flags=tuple(fields.get("VmFlags", "").split()),
        kernel_page_bytes=_kib(fields, "KernelPageSize"),
        rss_bytes=_kib(fields, "Rss"),
        locked_bytes=_kib(fields, "Locked"),
    )


def _kib(fields: dict[str, str], key: str) -> int | None:
    words = fields.get(key, "").split()
    return int(words[0]) * 1024 if words else None


def read(pid: int | str = "self", start: int = 0, end: int = 1 << 64) -> list[Details]:
    """Those that overlap [start, end); what lies behind it is not even looked at by the kernel.

    Raises PermissionError for another user's process, FileNotFoundError when it is gone.
    """
    fd = os.open(f"/proc/{pid}/smaps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, _CHUNK_BYTES):
            chunks.append(chunk)
            if _last_start(chunk) >= end:
                break
    finally:
        os.close(fd)
    return parse(b"".join(chunks).decode("utf-8", "surrogateescape"), start, end)


def _last_start(chunk: bytes) -> int:
    """Where the last mapping that begins in this chunk begins; -1 when none does."""
    found = _HEADER.findall(chunk.decode("utf-8", "surrogateescape"))
    return int(found[-1][0], 16) if found else -1
