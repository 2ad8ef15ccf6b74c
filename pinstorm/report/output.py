"""Where ``pinstorm report`` writes a document: stdout, or the path that a person gave.

A regular file is replaced whole, behind a symbolic link too. A pipe or a character device is
written through and never replaced; a directory, a block device or a socket is refused.
"""

import contextlib
import errno
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pinstorm import journal
from pinstorm.errors import UsageError

_OPTION = "--output"
_REFUSED = {
    stat.S_IFDIR: "a directory",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def check(path: Path) -> None:
    """UsageError when ``path`` is nothing that a document can be written to."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if kind := _REFUSED.get(stat.S_IFMT(mode)):
        raise UsageError(f"{_OPTION} {path} is {kind}; give the name of a file")


def write(text: str, path: Path | None = None) -> None:
    """Write a document, in UTF-8 whatever the locale. Raises UsageError and WriteError."""
    with streamed(path) as document:
        document.write(text.encode(errors="backslashreplace"))


class Stream(io.RawIOBase):
    """What a document is written to, part by part; ``error`` is what ended it."""

    def __init__(self, put: Callable[[Any], None]):
        self._put = put
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        # Whoever writes may swallow it, and go on: the first one is what happened.
        if self.error is not None:
            raise self.error
        try:
            self._put(data)
        except OSError as error:
            self.error = error
            raise
        return len(data)


@contextlib.contextmanager
def streamed(path: Path | None = None) -> Iterator[Stream]:
    """Where to write a document that is never in memory as a whole.

    A regular file takes its name when all of it is written, and not at all when that fails.
    Raises UsageError and WriteError.
    """
    with contextlib.ExitStack() as opened:
        stream = Stream(_write_stdout)
        fd: int | None = None
        try:
            if path is not None:
                check(path)
                fd = _own_descriptor(path)
                put = opened.enter_context(_opened(path, fd))
                stream = Stream(lambda data: _write_all(put, data))
            yield stream
            if stream.error is not None:
                raise stream.error
            opened.close()
        except Exception as error:
            cause = stream.error or (error if isinstance(error, OSError) else None)
            if cause is None:
                raise
            if isinstance(cause, BrokenPipeError) and (path is None or fd is not None):
                raise cause from None
            raise journal.write_error(path or Path("stdout"), cause, _OPTION) from cause


def _opened(path: Path, fd: int | None) -> contextlib.AbstractContextManager[int]:
    """A descriptor that takes the document."""
    if fd is not None:
        return contextlib.nullcontext(fd)
    if _is_written_through(path):
        return _through(path)
    return _beside(Path(os.path.realpath(path)))


def _write_stdout(data: Any) -> None:
    rest = memoryview(data)
    if sys.stdout is None:  # closed by whoever started this
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.flush()
    # An unbuffered stdout (python -u) takes what fits, as write(2) does.
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def _own_descriptor(path: Path) -> int | None:
    """stdout or stderr, where ``path`` is what one of them is: /dev/stdout, and no file anew."""
    for fd in (1, 2):
        try:
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except OSError:
            continue
    return None


def _is_written_through(path: Path) -> bool:
    """Asks the path itself: what /dev/fd/N links to has no name that could be looked up."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


@contextlib.contextmanager
def _through(path: Path) -> Iterator[int]:
    # Without O_CREAT and O_TRUNC: a file that took the name just now is not touched.
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(f"{_OPTION} {path} has just become another file; give another name")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[int]:
    """A new file beside ``path``, which it replaces once it is whole."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(beside, path)
        journal.fsync_directory(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write_all(fd: int, data: Any) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
