"""/proc/PID/cgroup and the memory files of control groups: how much memory this process may use.

Bytes; levels; the limit of each group holds for it and everything below, so the tightest on the way
up decides. v2: memory.max and memory.current (Linux 4.5; the root group has neither); v1:
memory.limit_in_bytes and memory.usage_in_bytes (2.6.25), where no limit is a number near 2^63. Both
hierarchies can be there at once, v2 at a sub folder: mountinfo says where. See
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from telemetry import mountinfo
from telemetry.mountinfo import Mount

# PAGE_COUNTER_MAX in bytes: what v1 prints for "no limit", rounded to pages.
V1_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Membership:
    """One line: ``hierarchy`` 0 with no ``controllers`` is v2."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One group that limits memory. ``inactive_file_bytes``: page cache counted in the usage that
    is given up first. ``failures``: how often the limit was met and nothing could be given up
    (v2: ``oom`` of memory.events, 4.5, the group's and those below it), or how often it was met at
    all (v1: memory.failcnt). ``limit_file``: where the limit is written, by name."""

    group: str
    limit_bytes: int
    usage_bytes: int | None
    inactive_file_bytes: int | None
    failures: int | None = None
    limit_file: str = "memory.max"

    @property
    def available_bytes(self) -> int:
        """What can still be taken before the limit is met."""
        used = (self.usage_bytes or 0) - (self.inactive_file_bytes or 0)
        return max(0, self.limit_bytes - max(0, used))


def parse(text: str) -> list[Membership]:
    rows = (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return [
        Membership(int(number), tuple(names.split(",")) if names else (), path)
        for number, names, path in rows
    ]


def read(pid: int | str = "self") -> list[Membership]:
    """Raises FileNotFoundError or ProcessLookupError when the process is gone."""
    path = Path(f"/proc/{pid}/cgroup")
    return parse(path.read_text(encoding="utf-8", errors="surrogateescape"))


def folder(membership: Membership, mount: Mount) -> Path:
    """Where the group is visible below the mount, which may show only part of the hierarchy.

    The mount point itself when the group lies outside of what is mounted (containers without a
    cgroup namespace).
    """
    group, root = PurePosixPath(membership.path), PurePosixPath(mount.root)
    if ".." in group.parts or not group.is_relative_to(root):
        return Path(mount.mount_point)
    return Path(mount.mount_point) / group.relative_to(root)


def own_v2() -> Path | None:
    """The folder of this process's v2 group; None without v2."""
    found = _v2(read(), mountinfo.read())
    return None if found is None else found[0]


def groups_upwards(controller: str, pid: int | str = "self") -> list[Path]:
    """The folders of a process's groups from its own upwards: v2, then v1 of that controller.

    The controller need not be enabled in them. Raises as ``read``.
    """
    memberships, mounts = read(pid), mountinfo.read()
    found = [_v2(memberships, mounts), _v1(controller, memberships, mounts)]
    return [path for places in found if places is not None for path in _upwards(*places)]


def is_hidden(controller: str, pid: int | str = "self") -> bool:
    """Whether the process is in groups of that controller, or of v2, whose files are not shown.

    Then no limit is seen, and there may be one: a chroot, a container. Raises as ``read``.
    """
    if not any(not one.controllers or controller in one.controllers for one in read(pid)):
        return False
    shown = groups_upwards(controller, pid)
    return not any((group / "cgroup.procs").exists() for group in shown)


def memory_limits(pid: int | str = "self") -> list[MemoryLimit]:
    """Every limit that holds for the process, from its own group upwards; v2 before v1."""
    found = []
    for path in groups_upwards("memory", pid):
        v2 = _limit(path, "memory.max", "memory.current", "inactive_file")
        v1 = _limit(path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        found += [limit for limit in (v2, v1) if limit is not None]
    return found


def _v2(memberships: Iterable[Membership], mounts: list[Mount]) -> tuple[Path, Path] | None:
    """(own group, mount point); None without v2."""
    mount = mountinfo.cgroup2(mounts)
    membership = next((item for item in memberships if not item.controllers), None)
    if mount is None or membership is None:
        return None
    return folder(membership, mount), Path(mount.mount_point)


def _v1(
    controller: str, memberships: Iterable[Membership], mounts: list[Mount]
) -> tuple[Path, Path] | None:
    """(own group, mount point) of the v1 hierarchy of that controller; None without it."""
    membership = next((item for item in memberships if controller in item.controllers), None)
    for mount in mountinfo.of_type("cgroup", mounts):
        if membership is not None and controller in mount.super_options:
            return folder(membership, mount), Path(mount.mount_point)
    return None


def tightest(limits: Iterable[MemoryLimit]) -> MemoryLimit | None:
    """The one that leaves least; None: nothing limits this process but the machine."""
    return min(limits, key=lambda limit: limit.available_bytes, default=None)


def _upwards(path: Path, top: Path) -> Iterator[Path]:
    yield path
    while path != top and top in path.parents:
        path = path.parent
        yield path


def _limit(path: Path, limit_file: str, usage_file: str, stat_key: str) -> MemoryLimit | None:
    limit = _number(path / limit_file)
    if limit is None or limit >= V1_UNLIMITED:
        return None
    return MemoryLimit(
        group=str(path),
        limit_bytes=limit,
        usage_bytes=_number(path / usage_file),
        inactive_file_bytes=_stat(path / "memory.stat", stat_key),
        failures=_failures(path),
        limit_file=limit_file,
    )


def _failures(path: Path) -> int | None:
    met = _number(path / "memory.failcnt")
    return _stat(path / "memory.events", "oom") if met is None else met


def _number(path: Path) -> int | None:
    """None where the file is absent or says ``max``."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None


def _stat(path: Path, key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return None
