"""Files of a case's own, nameless, so that not even SIGKILL leaves one behind.

Where the file system has no O_TMPFILE a file has a name from its open to its unlink. What a SIGKILL
in between leaves is removed by the runner, and what one of the runner as well leaves, by the next
run: ``remove_stale``.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from workloads import libc
from workloads.owner import Owner

# What open(2) says of O_TMPFILE where the file system or the kernel has none.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)

# As _named_for_a_moment makes them: the process group, and eight random bytes.
_NAME = re.compile(r"pinstorm-([1-9][0-9]*)-[0-9a-f]{16}")


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
    path = os.path.join(directory, f"pinstorm-{os.getpgrp()}-{os.urandom(8).hex()}")
    with libc.refusal_of("open", path):
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    owner.release_with("scratch file", lambda: os.close(fd))
    # a run in another PID namespace may take it for one that was left
    with libc.refusal_of("unlink", path), suppress(FileNotFoundError):
        os.unlink(path)
    return fd


def remove_left(directory: str, pid: int, uid: int | None = None) -> None:
    """What a child killed between open and unlink has left, where there is no O_TMPFILE.

    ``uid``: the user that the child may have become.
    """
    owners = {os.geteuid()} if uid is None else {os.geteuid(), uid}
    for path, group in _named(directory, owners):
        if group == pid:
            with suppress(OSError):
                path.unlink()


def remove_stale(directory: str) -> None:
    """The same, of runs that were killed together with their child; of this user's alone."""
    for path, group in _named(directory, {os.geteuid()}):
        if not _lives(group):
            with suppress(OSError):
                path.unlink()


def _named(directory: str, owners: set[int]) -> Iterator[tuple[Path, int]]:
    """Files that can only be such: regular, empty (nothing is written before the unlink), owned by
    one of ``owners``, and named so. Each with its process group."""
    with suppress(OSError):
        for path in Path(directory).iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            with suppress(OSError):
                about = path.lstat()
                ours = stat.S_ISREG(about.st_mode) and about.st_uid in owners
                if ours and about.st_size == 0:
                    yield path, int(match[1])


def _lives(group: int) -> bool:
    """Whether a process of that group is there, or of that pid; if it cannot be known, it is."""
    for ask in (os.killpg, os.kill):
        try:
            ask(group, 0)
        except ProcessLookupError:
            continue
        except (OSError, OverflowError):
            return True
        return True
    return False
