"""Scratch directories: their file systems, whether O_DIRECT works there, and what is free."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pinstorm import needs
from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.sight import Sight
from pinstorm.needs import BLOCK_BACKED
from pinstorm.units import format_bytes
from telemetry import mountinfo
from workloads.spec import MIB

_WHY: Final = (
    "files of memories and the targets of direct IO are made there; O_DIRECT pins where it goes to "
    f"a block device ({', '.join(BLOCK_BACKED[:3])}, …)"
)
# What the suites that ship need at once, and some more.
_ENOUGH_BYTES: Final = 512 * MIB


def findings(sight: Sight) -> Iterator[Finding]:
    places = [*(sight.options.scratch or needs.default_scratch())]
    if not places:
        yield Finding(
            "scratch",
            Topic.SCRATCH,
            Status.MISSING,
            "the current directory may not be written, and no other was named",
            _WHY,
            "pinstorm doctor --scratch DIR",
            {"directories": []},
        )
    for number, place in enumerate(places):
        yield _of_place("scratch" if not number else f"scratch-{number + 1}", place)


@dataclass(frozen=True, slots=True)
class _Direct:
    """Whether files opened there take O_DIRECT; ``works`` None: that was not to be found out."""

    works: bool | None
    words: str


def _of_place(name: str, place: Path) -> Finding:
    path = str(place.resolve())
    mount = mountinfo.of_path(path)
    fs_type = None if mount is None else mount.fs_type
    dax = mount is not None and mountinfo.is_dax(mount)
    direct = _direct(path)
    left = os.statvfs(path)
    free = left.f_bavail * left.f_frsize
    words = [f"{path}: {fs_type or 'file system not known'}{' with dax' if dax else ''}"]
    words += [direct.words, f"{format_bytes(free)} free"]
    target = fs_type in BLOCK_BACKED and not dax
    if direct.works and not target:
        words[1] += ", though not to a block device: it pins nothing, or for reasons of its own"
    good = bool(direct.works) and target and free >= _ENOUGH_BYTES
    return Finding(
        name,
        Topic.SCRATCH,
        Status.OK if good else Status.LIMITED,
        ", ".join(words),
        _WHY,
        None if good else "pinstorm doctor --scratch DIR",
        {"path": path, "fs_type": fs_type, "dax": dax, "o_direct": direct.works},
        {"free_bytes": free},
    )


def _direct(path: str) -> _Direct:
    """A file without a name, which is gone when it is closed."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    try:
        os.close(os.open(path, flags | os.O_DIRECT, 0o600))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return _Direct(False, "no O_DIRECT")
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):
            return _Direct(None, "O_DIRECT not tried, as every file here would need a name")
        return _Direct(None, f"no file can be made ({error.strerror})")
    return _Direct(True, "O_DIRECT works")
