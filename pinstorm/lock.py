"""One run per machine at a time: two runs would count each other's pins."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinstorm.errors import UsageError
from telemetry import locks

_NAME = "pinstorm.lock"
# Anybody may write in /run/lock: no link is followed.
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


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


def running() -> int | None:
    """The pid of the run that has this machine now; None: no run is seen. Takes no lock."""
    try:
        held = locks.holders_of(_path())
    except OSError:
        return None
    return next((lock.pid for lock in held if lock.kind == "FLOCK"), None)


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
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        descriptor = os.open(path, _FLAGS | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)
    except OSError as error:
        raise UsageError(f"lock file {path} cannot be opened; remove it") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        os.close(descriptor)
        raise UsageError(f"lock file {path} is not a file of pinstorm's; remove it")
    return descriptor
