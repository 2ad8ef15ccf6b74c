"""/proc/PID/fd: what a process has open.

One link per descriptor: a path, or ``anon_inode:[io_uring]``, ``socket:[30398]``. A level; of the
process's table of descriptors (a thread that has its own is not looked at). To look needs the
right to trace the process. A socket's protocol is in its extended attribute
system.sockprotoname, since Linux 3.7; ``XDP`` of AF_XDP (net/xdp/xsk.c). What was handed to the
kernel and closed here (a ring's own file table, a message in flight) does not show.
See Documentation/filesystems/proc.rst.
"""

import contextlib
import os

IO_URING = "anon_inode:[io_uring]"
PERF_EVENT = "anon_inode:[perf_event]"
XDP = "XDP"

_SOCKET = "socket:["


def read(pid: int | str = "self") -> dict[int, str]:
    """Target by descriptor. PermissionError of another's process, FileNotFoundError when gone."""
    folder = _folder(pid)
    found = {}
    for name in os.listdir(folder):
        # closed since, or (in this process) the listing's own descriptor
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"{folder}/{name}")
    return found


def count(pid: int | str = "self") -> int:
    """How many descriptors are open. PermissionError, FileNotFoundError as in ``read``.

    Since Linux kernel commit f1f1f2569901 ("proc: report open files as size in stat() for
    /proc/pid/fd") (in v6.2) the directory's size says it; before it is 0, and they are listed.
    """
    folder = _folder(pid)
    return os.stat(folder).st_size or len(os.listdir(folder))


def socket_inode(target: str) -> int | None:
    """``socket:[30398]`` -> 30398; None of what is no socket."""
    return int(target[len(_SOCKET) : -1]) if target.startswith(_SOCKET) else None


def socket_protocol(pid: int | str, fd: int) -> str | None:
    """``TCP``, ``UNIX``, ``XDP``, …; None when it is gone, or the kernel has no such attribute."""
    with contextlib.suppress(OSError):
        value = os.getxattr(f"{_folder(pid)}/{fd}", "system.sockprotoname")
        return value.rstrip(b"\0").decode(errors="replace")
    return None


def _folder(pid: int | str) -> str:
    return f"/proc/{pid}/fd"
