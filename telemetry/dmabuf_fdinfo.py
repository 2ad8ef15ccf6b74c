"""/proc/PID/fdinfo/FD of a dma-buf: its size, and who exported it.

A level, per dma-buf. ``size`` and ``exp_name`` since Linux 5.3 (dma_buf_show_fdinfo() in
drivers/dma-buf/dma-buf.c), ``ino`` since 5.19: processes that share a dma-buf see the same.
``udmabuf`` is the exporter of user pages: from 6.11 on it pins the memory's folios, one pin each,
before it only refers to the pages. See Documentation/filesystems/proc.rst.
"""

import re
from dataclasses import dataclass

from telemetry import fdinfo

LINK = "/dmabuf:"  # how /proc/PID/fd names one
UDMABUF = "udmabuf"

_LINE = re.compile(r"^(ino|size|exp_name):\t(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DmaBuf:
    """``inode``: None before 5.19."""

    inode: int | None
    size_bytes: int
    exporter: str


def parse(text: str) -> DmaBuf | None:
    """None of a descriptor that is no dma-buf."""
    # the first of each: a name given by the user comes last
    fields = dict(reversed(_LINE.findall(text)))
    if "size" not in fields or "exp_name" not in fields:
        return None
    inode = fields.get("ino")
    return DmaBuf(int(inode) if inode else None, int(fields["size"]), fields["exp_name"])


def read(pid: int | str, fd: int) -> DmaBuf | None:
    """Raises PermissionError for another's process, FileNotFoundError when it is gone."""
    return parse(fdinfo.read_text(pid, fd))
