"""Private anonymous pages that a write must copy, because somebody else has them too.

``forked``: a child has them, which lives as long as the memory. ``ksm``: a second mapping has the
same content, and KSM made one page of each two.

The pages leave CMA and ZONE_MOVABLE before they are shared: a long-term pin would unshare them. KSM
allocates no page, it keeps one of the two (try_to_merge_two_pages() in mm/ksm.c).
"""

import os
import socket
import time

from telemetry import kpageflags
from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.anon import stay_small
from workloads.memory.evacuation import leave_movable
from workloads.memory.proof import count_exclusive, require_pages, require_shared
from workloads.owner import Owner
from workloads.spec import MemorySpec, Need, PrepareFailed, Surroundings

ANONYMOUS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
READY_DEADLINE_S = 10.0
MERGE_DEADLINE_S = 10.0
MERGE_POLL_S = 0.002


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    merged = Need.KSM in memory.needs
    region = map_region(memory, size_bytes, owner, ANONYMOUS, low=merged)
    stay_small(region)
    if merged:
        twin = map_region(memory, size_bytes, owner, ANONYMOUS, low=True)
        stay_small(twin)
        _merge(region, twin, around)
        return region
    write_every_page(region)
    leave_movable(region, around)
    _share_with_child(owner)
    require_shared(region, "shared with the child")
    return region


def _share_with_child(owner: Owner) -> None:
    """Fork a process that sleeps until the owner, or the kernel after SIGKILL, hangs up.

    Not a signal: once this process is an ordinary user's it may not send one to the child, which
    still is root's, and neither may the kernel in its name (PR_SET_PDEATHSIG).
    """
    ours, its = socket.socketpair()
    owner.release_with("line to the child", ours.close)
    pid = os.fork()
    if pid == 0:
        _be_child(its.fileno())
    its.close()
    owner.release_with("child", lambda: _hang_up(ours, pid))
    ours.settimeout(READY_DEADLINE_S)
    if not ours.recv(1):
        raise PrepareFailed("the child that shares the memory died")


def _be_child(line: int) -> None:
    """Touches none of the memory, and gives back what else the parent had open."""
    try:
        os.closerange(0, line)
        os.closerange(line + 1, os.sysconf("SC_OPEN_MAX"))
        os.write(line, b"!")
        os.read(line, 1)
    finally:
        os._exit(0)


def _hang_up(line: socket.socket, pid: int) -> None:
    line.close()
    _, status = os.waitpid(pid, 0)
    if status:
        raise ChildProcessError(f"the child that shared the memory ended with status {status}")


def _merge(region: Region, twin: Region, around: Surroundings) -> None:
    """The same random bytes in both: each page finds exactly one that is equal.

    Pages that are all equal would leave some alone, where max_page_sharing of them are merged.

    Both lie where no earlier cycle's pages lay (map_region's ``low``): ksmd remembers an address
    after its page has gone, and looks ever less often at those that were not merged for long
    (should_skip_rmap_item() of v6.12, smart_scan). A page and its twin would miss each other.
    """
    content = os.urandom(region.mapped_bytes)
    for half in (region, twin):
        half.buffer[:] = content
        leave_movable(half, around)
    for half in (region, twin):
        libc.madvise(half.address, half.mapped_bytes, libc.MADV_MERGEABLE)
    _wait_until_merged(region)
    require_pages(region, around, "merged by KSM", have=kpageflags.KSM)


def _wait_until_merged(region: Region) -> None:
    """Until every page is mapped by the twin too.

    Not until ksm_merging_pages of this process says so: pages of an earlier cycle, unmapped by now,
    are counted until ksmd comes by.
    """
    deadline = time.monotonic() + MERGE_DEADLINE_S
    while (single := count_exclusive(region)) and time.monotonic() < deadline:
        time.sleep(MERGE_POLL_S)
    if single:
        raise PrepareFailed(
            f"{single} of {region.pages} pages were not merged within {MERGE_DEADLINE_S:g} s:"
            " is KSM on (/sys/kernel/mm/ksm/run), and fast enough?"
        )
