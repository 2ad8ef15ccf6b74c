"""/proc/PID/ns/user: the user namespace of a process, in which its capabilities count.

Since Linux 3.8; a level; per process. The initial namespace has the same inode number on every
kernel: PROC_USER_INIT_INO in include/linux/proc_ns.h, since 3.19, USER_NS_INIT_INO in
include/uapi/linux/nsfs.h now. What the kernel asks with capable(), as RDMA and io_uring do for
CAP_IPC_LOCK, is asked there. See user_namespaces(7).
"""

import os
import re

_INITIAL_INODE = 0xEFFFFFFD
_LINK = re.compile(r"user:\[(\d+)\]")


def parse(link: str) -> int:
    """The inode number of ``user:[4026531837]``; ValueError for anything else."""
    found = _LINK.fullmatch(link)
    if found is None:
        raise ValueError(f"{link!r} is no link to a user namespace")
    return int(found[1])


def is_initial(pid: int | str = "self") -> bool:
    """Whether the process's capabilities are capabilities for the kernel itself.

    Raises PermissionError for a process that may not be traced, FileNotFoundError when it is gone.
    """
    return parse(os.readlink(f"/proc/{pid}/ns/user")) == _INITIAL_INODE
