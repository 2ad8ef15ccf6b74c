"""/proc/PID/mountinfo: what is mounted where, in this process's mount namespace.

Since Linux 2.6.26. ``root`` is the folder of the file system that is mounted (bind mounts,
containers). See Documentation/filesystems/proc.rst, section 3.5.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """``device`` is ``major:minor`` as stat reports it for files on it (btrfs and overlay apart).

    ``options`` belong to the mount, ``super_options`` to the file system.
    """

    mount_point: str
    fs_type: str
    source: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]
    device: str
    root: str


def parse(text: str) -> list[Mount]:
    """In the order of mounting: a later mount hides an earlier one at the same place."""
    return [_parse_line(line) for line in text.splitlines() if " - " in line]


def _parse_line(line: str) -> Mount:
    # Any number of optional fields stand before the dash.
    words, tail = (part.split(" ") for part in line.split(" - ", 1))
    return Mount(
        mount_point=_unescape(words[4]),
        fs_type=tail[0],
        source=_unescape(tail[1]),
        options=tuple(words[5].split(",")),
        super_options=tuple(tail[2].split(",")) if len(tail) > 2 else (),
        device=words[2],
        root=_unescape(words[3]),
    )


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash in octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def read(pid: int | str = "self") -> list[Mount]:
    """Raises PermissionError for a process that may not be traced, FileNotFoundError when gone."""
    path = Path(f"/proc/{pid}/mountinfo")
    return parse(path.read_text(encoding="utf-8", errors="surrogateescape"))


def of_path(path: str | os.PathLike[str], mounts: Sequence[Mount] | None = None) -> Mount | None:
    """The mount that holds the path (which need not exist), links followed."""
    real = os.path.realpath(path)
    best: Mount | None = None
    for mount in read() if mounts is None else mounts:
        point = mount.mount_point
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.mount_point)):
            best = mount
    return best


def of_type(fs_type: str, mounts: Iterable[Mount] | None = None) -> list[Mount]:
    return [mount for mount in (read() if mounts is None else mounts) if mount.fs_type == fs_type]


def cgroup2(mounts: Iterable[Mount] | None = None) -> Mount | None:
    """The cgroup v2 hierarchy; with v1 beside it, it is mounted at a sub folder."""
    return next(iter(of_type("cgroup2", mounts)), None)


def is_dax(mount: Mount) -> bool:
    """Whether every file on it is accessed directly (``dax`` or ``dax=always``).

    With ``dax=inode``, the default where the device can do it, each file decides: not told here.
    """
    return bool({"dax", "dax=always"} & {*mount.options, *mount.super_options})
