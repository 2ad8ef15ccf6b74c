"""``reclaim``: page cache is reclaimed, and read in again.

Its memory is a shared mapping of a file without a name and without blocks: clean page cache, which
needs neither swap nor a disk. ``own-group``: memory.reclaim (since Linux v5.19) of a control group
of its own, into which the process moves; it is removed at the end. ``load-group``: of the group
that the whole load runs in, so that what the others have is reclaimed too. Both want the memory
controller of cgroup v2. ``madv-pageout``: MADV_PAGEOUT of the mapping, which needs nothing.
``any``: the first of them that there is, but not the load's. See
Documentation/admin-guide/cgroup-v2.rst, madvise(2).
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns

from telemetry import cgroup, gup_trace
from workloads import libc, scratch
from workloads.antagonists.act import (
    Acting,
    Done,
    asked_bytes,
    die_first,
    look,
    parameters,
)
from workloads.load.engine import Engine, Work
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, PrepareFailed


def prepare(work: Work, owner: Owner) -> Engine:
    die_first()
    through = str(parameters(work)["through"])
    size = asked_bytes(work)
    give_up = _by_group(through, size, owner) if through != "madv-pageout" else None
    if give_up is None and through != "any" and through != "madv-pageout":
        raise PrepareFailed(
            "no control group of this process has memory.reclaim: it wants cgroup v2 with the"
            ' memory controller enabled for the groups below, and Linux 5.19; or through = "any"'
        )
    # Read in by the member of a group, page cache is charged to that group.
    address = _map_cache(work, size, owner)
    memory = libc.view(address, size).toreadonly()
    if give_up is None:

        def give_up() -> None:
            libc.madvise(address, size, libc.MADV_PAGEOUT)

    def act() -> Done | None:
        if not look(memory, work):
            return None
        before = libc.pages_in_memory(address, size)
        start_ns = monotonic_ns()
        give_up()
        elapsed_ns = monotonic_ns() - start_ns
        return elapsed_ns, max(0, before - libc.pages_in_memory(address, size)) * PAGE_BYTES

    return Acting(work, act)


def _map_cache(work: Work, size: int, owner: Owner) -> int:
    """Read only, and all of it a hole: there is nothing to be written back, ever."""
    file = scratch.nameless_file(work.around.scratch["target"], owner)
    with libc.refusal_of("ftruncate"):
        os.ftruncate(file, size)
    address = libc.mmap(0, size, libc.PROT_READ, libc.MAP_SHARED, file)
    owner.release_with("mapped page cache", lambda: libc.munmap(address, size))
    return address


def _by_group(through: str, size: int, owner: Owner) -> Callable[[], None] | None:
    """What writes to memory.reclaim; None where there is no such file."""
    group = cgroup.own_v2()
    if group is None:
        return None
    leaf = group if through == "load-group" else _move_into_leaf(_above(group), group, owner)
    if leaf is None or not (leaf / "memory.reclaim").exists():
        return None
    path = leaf / "memory.reclaim"
    with libc.refusal_of("open", str(path)):
        switch = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    owner.release_with(str(path), lambda: os.close(switch))
    wanted = str(size).encode()

    def give_up() -> None:
        with libc.refusal_of("write", str(path)):
            try:
                os.pwrite(switch, wanted, 0)
            except OSError as error:
                # It reclaimed less than it was asked to: what is left cannot be had now.
                if error.errno != errno.EAGAIN:
                    raise

    return give_up


def _above(group: Path) -> Path:
    """The group in which runs make their leaves: pinstorm.containment removes what is stale there.

    Beside the run's own leaf, because a group with processes cannot give its controllers on.
    """
    return group.parent if group.name.startswith("pinstorm_") else group


def _move_into_leaf(above: Path, group: Path, owner: Owner) -> Path | None:
    """A new group that this process is in; None where it would have no memory controller."""
    leaf = above / gup_trace.own_name()
    with suppress(OSError):
        if "memory" in (above / "cgroup.subtree_control").read_text().split():
            leaf.mkdir()
            owner.release_with(str(leaf), leaf.rmdir)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
            owner.release_with(
                f"membership of {leaf}",
                lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            )
            return leaf
    return None
