"""The cache directory: what was fetched or found out once and is used again by later runs.

``$PINSTORM_CACHE``, else ``$XDG_CACHE_HOME/pinstorm``, else ``~/.cache/pinstorm``. Everything in it
can be deleted at any time; nothing half-written ever carries its final name.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pinstorm.errors import UsageError, WriteError


def cache_dir() -> Path:
    """The cache directory, made when it is missing; WriteError when it cannot be made."""
    path = cache_path()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"cache directory {path} cannot be made ({error.strerror}): set PINSTORM_CACHE to a "
            "directory that can be written"
        ) from error
    return path


def cache_path() -> Path:
    """Where the cache directory is or would be; nothing is made. UsageError: it has no place."""
    try:
        return _cache_path(os.environ)
    except (RuntimeError, OSError) as error:  # a user without a home; a directory that is gone
        raise UsageError(
            f"the cache directory has no place ({error}): set PINSTORM_CACHE to one, by its whole "
            "path"
        ) from error


def _cache_path(environ: Mapping[str, str]) -> Path:
    if named := environ.get("PINSTORM_CACHE"):
        return Path(named).expanduser().absolute()
    if base := environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser().absolute() / "pinstorm"
    return Path.home() / ".cache" / "pinstorm"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of ``path`` (a file beside it named ``.lock``) for the block.

    The lock is the kernel's (flock), so it goes with the process, however that ends.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WriteError(
            f"lock file {lock} cannot be opened ({error.strerror}): set PINSTORM_CACHE to a "
            "directory that can be written"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A temporary directory beside ``target`` that becomes ``target`` when the block succeeds.

    An older ``target`` is replaced. When the block fails, nothing of it stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by the JSON of ``value`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(value, file, indent=1, sort_keys=True)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty when the file is missing or is not one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
