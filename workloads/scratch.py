"""Files of a case's own, nameless, so that not even SIGKILL leaves one behind."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from workloads import libc
from workloads.owner import Owner

# What open(2) says of O_TMPFILE where the file system or the kernel has none.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)


def nameless_file(directory: str, owner: Owner, flags: int = 0) -> int:
    """A descriptor of a new empty file in ``directory``, open for reading and writing."""
    flags |= os.O_RDWR | os.O_CLOEXEC
    try:
        fd = os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            with libc.refusal_of("open", directory):
                raise
        return _named_for_a_moment(directory, owner, flags)
    owner.release_with("scratch file", lambda: os.close(fd))
    return fd


def _named_for_a_moment(directory: str, owner: Owner, flags: int) -> int:
    # A case's processes are one process group, whose leader is the child that the runner knows.
    path = os.path.join(directory, f"{_prefix(os.getpgrp())}{os.urandom(8).hex()}")
    with libc.refusal_of("open", path):
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    owner.release_with("scratch file", lambda: os.close(fd))
    with libc.refusal_of("unlink", path):
        os.unlink(path)
    return fd


def remove_left(directory: str, pid: int) -> None:
    """What a child killed between open and unlink has left, where there is no O_TMPFILE."""
    for path in Path(directory).glob(f"{_prefix(pid)}*"):
        with suppress(OSError):
            path.unlink()


def _prefix(pid: int) -> str:
    return f"pinstorm-{pid}-"
