"""Who holds pins on this machine now: what ``pinstorm pins`` prints, and explain's evidence of what
else a user holds.

Levels, at one moment; each figure is from the kernel interface that its telemetry module names.
What leaves no trace in /proc is not seen: V4L2 buffers, requests in flight (direct IO), rings and
sockets whose descriptor was handed over and closed. It is part of what no process accounts for.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pinstorm.held import (
    Held,
    Holder,
    Kind,
    Process,
    Seen,
    holder_of,
    regions_of_nobody,
    umems_of_nobody,
)
from telemetry import process_fds, process_status, rdma, rdma_resource, xdp_diag
from telemetry.process_status import Charge
from telemetry.rdma_resource import MemoryRegion
from telemetry.vmstat import Counters
from telemetry.xdp_diag import XdpSocket

__all__ = ["Census", "Held", "Holder", "Kind", "census", "holders"]


_UNKNOWN = Charge("?", None, None, None)


@dataclass(frozen=True, slots=True)
class Census:
    """``outstanding_pages``: acquired minus released since boot, with its error ``bound_pages``;
    None without counters. ``accounted_pages``: what the holders explain of it, at least;
    ``uncertain_pages``: how much more it can be, None where nothing bounds it. ``moved_pages``: how
    far ``outstanding_pages`` moved while it was looked. ``uid``: whose holders were asked for, None
    of everybody's. ``hidden``: what could not be seen, one sentence each, with the remedy."""

    holders: tuple[Holder, ...]
    acquired: int | None
    released: int | None
    outstanding_pages: int | None
    bound_pages: int
    accounted_pages: int
    hidden: tuple[str, ...] = ()
    uncertain_pages: int | None = 0
    moved_pages: int | None = None
    uid: int | None = None

    @property
    def unaccounted_pages(self) -> int | None:
        """At most: ``uncertain_pages`` of it may be accounted for, too. None of one user's."""
        if self.outstanding_pages is None or self.uid is not None:
            return None
        return self.outstanding_pages - self.accounted_pages

    @property
    def unaccounted_range(self) -> tuple[int | None, int | None]:
        """Least and most, with the counters' error; None where nothing bounds it."""
        most = self.unaccounted_pages
        if most is None:
            return None, None
        uncertain = self.uncertain_pages
        least = None if uncertain is None else most - uncertain - self.bound_pages
        return least, most + self.bound_pages


def holders(
    uid: int | None = None, *, thorough: bool = False
) -> tuple[tuple[Holder, ...], tuple[str, ...]]:
    """Every process that holds something, or those of one user; and what could not be seen.

    ``thorough``, as root: look in what folios registered buffers lie, without which it is not known
    how many pins an io_uring keeps (up to a second for a GiB of them), and enter the network
    namespaces of processes with AF_XDP sockets.
    """
    hidden: list[str] = []
    processes = list(_processes(uid))
    if unseen := sum(process.fds is None for process in processes):
        hidden.append(_unseen_words(unseen))
    orphans = _give_regions(processes, uid, hidden)
    seen = Seen(_sockets(hidden), thorough)
    found = [holder for process in processes if (holder := holder_of(process, seen)) is not None]
    found += [regions_of_nobody(uid, region_list) for region_list in orphans]
    found += umems_of_nobody(seen, uid)
    if seen.busy_rings:
        hidden.append("a busy io_uring did not tell its buffers: ask again")
    if seen.unsized_sockets:
        hidden.append(
            "the packet memory of AF_XDP sockets could not be sized: this kernel has no xsk_diag "
            "(CONFIG_XDP_SOCKETS_DIAG)"
            if seen.sockets is None
            else "the packet memory of AF_XDP sockets of another network namespace could not be "
            "sized: run as root"
        )
    return tuple(found), tuple(hidden)


def _unseen_words(count: int) -> str:
    those = "1 process" if count == 1 else f"{count} processes"
    if os.geteuid() == 0:
        return f"{those} could not be looked into, not by this root either: give it CAP_SYS_PTRACE"
    return f"{those} of other users could not be looked into: run as root"


def _processes(uid: int | None) -> Iterator[Process]:
    """In the order of their ids; kernel threads and zombies left out."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        charge = None
        try:
            charge = process_status.read_charge(pid)
            if charge is None or uid not in (None, charge.uid):
                continue
            yield Process(pid, charge, process_fds.read(pid))
        except PermissionError:
            if charge is not None:
                yield Process(pid, charge, None)
            elif uid is None:  # proc is mounted with hidepid=
                yield Process(pid, _UNKNOWN, None)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _give_regions(
    processes: Sequence[Process], uid: int | None, hidden: list[str]
) -> list[list[MemoryRegion]]:
    """Every memory region to the process that registered it; those of nobody, by device."""
    if not rdma.INFINIBAND.is_dir() or not any(rdma.INFINIBAND.iterdir()):
        return []
    regions = rdma_resource.read_regions()
    if regions is None:
        hidden.append(
            "memory regions of RDMA devices could not be listed: the program rdma is missing or "
            "failed (apt-get install iproute2)"
        )
        return []
    by_pid = {process.pid: process for process in processes}
    orphans: dict[str, list[MemoryRegion]] = defaultdict(list)
    # the kernel's own, which have a name and no process, pin no user pages
    users = [region for region in regions if region.pid is not None or not region.process]
    for region in sorted(users, key=lambda region: region.pid is None):
        owner = _owner(region, by_pid, alone=uid is None)
        if owner is not None:
            owner.regions.append(region)
        elif region.pid is None:
            orphans[region.device].append(region)
    if uid is None:
        return list(orphans.values())
    if orphans:
        count = sum(map(len, orphans.values()))
        are = "1 memory region names" if count == 1 else f"{count} memory regions name"
        hidden.append(f"{are} no process, and so no user: ask for everybody's")
    return []


def _owner(region: MemoryRegion, by_pid: Mapping[int, Process], alone: bool) -> Process | None:
    """The process of the thread that registered it.

    If that has ended: the only process that has the device open, or the only one of these whose
    VmPin has that much that its other regions do not explain. Not where one user's are looked at.
    """
    if region.pid is not None:
        if region.pid in by_pid:
            return by_pid[region.pid]
        try:
            return by_pid.get(process_status.read(region.pid).tgid or 0)
        except OSError:
            return None
    users = [
        process
        for process in by_pid.values()
        if any(rdma.device_of_node(t) == region.device for t in _verbs_nodes(process))
    ]
    if len(users) > 1:
        users = [process for process in users if _unexplained(process) >= (region.size_bytes or 0)]
    return users[0] if alone and len(users) == 1 else None


def _unexplained(process: Process) -> int:
    """Bytes of VmPin."""
    explained = sum(region.size_bytes or 0 for region in process.regions)
    return (process.charge.vmpin_bytes or 0) - explained


def _verbs_nodes(process: Process) -> set[str]:
    return {t for t in (process.fds or {}).values() if t.startswith("/dev/infiniband/uverbs")}


def _sockets(hidden: list[str]) -> dict[int, XdpSocket] | None:
    try:
        return {found.inode: found for found in xdp_diag.read()}
    except xdp_diag.NotOffered:
        return None  # told where a process has such a socket
    except OSError as error:
        hidden.append(f"AF_XDP sockets could not be listed ({error.strerror or error}): ask again")
        return None


def census(uid: int | None = None) -> Census:
    """All of it, or one user's holders beside the machine's counters."""
    with Counters() as counters:
        before = counters.snapshot(per_node=False)
        found, hidden = holders(uid, thorough=True)
        after = counters.snapshot(per_node=False)
        # One reading of a counter lacks at most this; of a difference of two, either may lack it.
        bound = counters.bound_pages
    held = [one for holder in found for one in holder.held]
    accounted = sum(one.pages or 0 for one in held)
    bounded = [one.most_pages for one in held if one.most_pages is not None]
    uncertain = sum(bounded) - accounted if len(bounded) == len(held) else None
    outstanding = after.outstanding
    moved = None
    if outstanding is not None and before.outstanding is not None:
        moved = abs(outstanding - before.outstanding)
    return Census(
        found,
        after.acquired,
        after.released,
        outstanding,
        bound,
        accounted,
        hidden,
        uncertain,
        moved,
        uid,
    )
