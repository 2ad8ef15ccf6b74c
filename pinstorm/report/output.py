"""Where ``pinstorm report`` writes a document: stdout, or the path that a person gave.

A regular file is replaced whole, behind a symbolic link too. A pipe or a character device is
written through and never replaced; a directory, a block device or a socket is refused.
"""

import os
import stat
import sys
from pathlib import Path

from pinstorm import journal
from pinstorm.bundle import write_bytes
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
    data = text.encode(errors="backslashreplace")
    if path is None:
        _write_stdout(data)
        return
    check(path)
    fd = _own_descriptor(path)
    try:
        if fd is not None:
            _write_all(fd, data)
        elif _is_written_through(path):
            _write_through(path, data)
        else:
            write_bytes(Path(os.path.realpath(path)), data, option=_OPTION)
    except OSError as error:
        if fd is not None and isinstance(error, BrokenPipeError):
            raise
        raise journal.write_error(path, error, _OPTION) from error


def _write_stdout(data: bytes) -> None:
    rest = memoryview(data)
    try:
        sys.stdout.flush()
        # An unbuffered stdout (python -u) takes what fits, as write(2) does.
        while rest:
            rest = rest[sys.stdout.buffer.write(rest) :]
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise journal.write_error(Path("stdout"), error, _OPTION) from error


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


def _write_through(path: Path, data: bytes) -> None:
    # Without O_CREAT and O_TRUNC: a file that took the name just now is not touched.
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(f"{_OPTION} {path} has just become another file; give another name")
        _write_all(fd, data)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
