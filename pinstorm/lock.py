"""One run per machine at a time: two runs would count each other's pins."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinstorm.errors import UsageError

_NAME = "pinstorm.lock"


@contextmanager
def only_run() -> Iterator[None]:
    """Hold the machine-wide lock; UsageError naming the pid of the run that has it."""
    path = _path()
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            raise UsageError(
                f"another pinstorm run (pid {pid}) is using this machine's pin counters; "
                "wait for it or stop it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _path() -> Path:
    """/run/lock is writable for every user on the distributions we know; /run is root's."""
    for directory in (Path("/run/lock"), Path("/run")):
        # Where only root may make the file, everybody may lock it once it is there.
        if (directory / _NAME).exists() or (directory.is_dir() and os.access(directory, os.W_OK)):
            return directory / _NAME
    return Path(tempfile.gettempdir()) / _NAME


def _open(path: Path) -> int:
    try:
        # Without O_CREAT first: fs.protected_regular refuses it on another user's file in a
        # sticky directory, to root as well.
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.fchmod(descriptor, 0o666)
        return descriptor
    except PermissionError as error:
        raise UsageError(f"lock file {path} cannot be opened; remove it") from error
