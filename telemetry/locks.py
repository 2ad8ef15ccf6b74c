"""/proc/locks: who holds which file lock on this machine.

Levels; of this PID namespace (since Linux 4.8 those of other namespaces are left out, or have a pid
of 0); readable by anyone. A waiting lock stands below the one it waits for, with ``->``. See
proc_locks(5).
"""

import os
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True)
class Lock:
    """``kind``: FLOCK, POSIX, OFDLCK, LEASE. ``file``: (major, minor, inode)."""

    kind: str
    access: str
    pid: int
    file: tuple[int, int, int]


def parse(text: str) -> list[Lock]:
    """Those that are held; waiting ones are left out, and those of no file."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 6 or words[1] == "->" or words[5].count(":") != 2:
            continue
        major, minor, inode = words[5].split(":")
        place = (int(major, 16), int(minor, 16), int(inode))
        found.append(Lock(words[1], words[3], int(words[4]), place))
    return found


def holders_of(path: Path) -> list[Lock]:
    """Raises FileNotFoundError where there is no such file; empty where nobody holds it."""
    about = os.stat(path)
    place = (os.major(about.st_dev), os.minor(about.st_dev), about.st_ino)
    try:
        return [lock for lock in parse(LOCKS.read_text(encoding="ascii")) if lock.file == place]
    except OSError:
        return []
