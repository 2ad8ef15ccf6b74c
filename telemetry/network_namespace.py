"""/proc/PID/ns/net: the network namespace of a process.

Since Linux 3.0; a level; per thread (of the first one here). Sockets, and what netlink tells of
them, are those of one namespace. To look needs the right to trace the process, to enter another one
CAP_SYS_ADMIN. See network_namespaces(7).
"""

import os


def name(pid: int | str = "self") -> str:
    """``net:[4026531840]``. PermissionError of another's process, FileNotFoundError when gone."""
    return os.readlink(_path(pid))


def open_of(pid: int | str) -> int:
    """A descriptor for setns(2), to be closed."""
    return os.open(_path(pid), os.O_RDONLY | os.O_CLOEXEC)


def _path(pid: int | str) -> str:
    return f"/proc/{pid}/ns/net"
