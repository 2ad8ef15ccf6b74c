"""The interval between two snapshots, and what moves in it by itself.

The pin counters cover the whole machine, so a window holds the pins of everybody. What nobody asked
for is measured before and after each window, each time for at least as long as the window, and a
window whose noise reaches its signal is flagged by whoever judges it.
"""

import time
from dataclasses import dataclass, field

from telemetry.vmstat import Counters, Snapshot


@dataclass(frozen=True, slots=True)
class Delta:
    """What moved between two snapshots, in pages; None where a counter is missing in either.

    ``per_node`` has the nodes that both snapshots have. Each figure is off by at most
    Counters.bound_pages; ``net`` (acquired - released) by at most Counters.held_bound_pages.
    """

    acquired: int | None
    released: int | None
    migrate_success: int | None
    migrate_fail: int | None
    per_node: dict[int, tuple[int, int]] = field(default_factory=dict)
    elapsed_ns: int = 0

    @property
    def net(self) -> int | None:
        if self.acquired is None or self.released is None:
            return None
        return self.acquired - self.released


def between(a: Snapshot, b: Snapshot) -> Delta:
    """What moved from the earlier snapshot ``a`` to the later ``b``."""
    return Delta(
        acquired=_minus(b.acquired, a.acquired),
        released=_minus(b.released, a.released),
        migrate_success=_minus(b.migrate_success, a.migrate_success),
        migrate_fail=_minus(b.migrate_fail, a.migrate_fail),
        per_node={
            node: (b.per_node[node][0] - acquired, b.per_node[node][1] - released)
            for node, (acquired, released) in a.per_node.items()
            if node in b.per_node
        },
        elapsed_ns=b.t_ns - a.t_ns,
    )


def _minus(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


@dataclass(frozen=True, slots=True)
class Ambient:
    """``pages``: the larger of what was acquired and released by others while nothing was asked
    for; None without counters. ``end`` can be the first snapshot of the window that follows."""

    pages: int | None
    elapsed_ns: int
    end: Snapshot


def ambient(
    counters: Counters, at_least_ns: int, begin: Snapshot | None = None, per_node: bool = True
) -> Ambient:
    """Watch the counters for at least ``at_least_ns``, from ``begin`` or from now.

    The caller must pin nothing meanwhile. Without refresh a noise below the bound can stay unseen.
    """
    first = begin or counters.snapshot(per_node)
    while (left_ns := first.t_ns + at_least_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
    end = counters.snapshot(per_node)
    moved = between(first, end)
    pages = None
    if moved.acquired is not None and moved.released is not None:
        pages = max(abs(moved.acquired), abs(moved.released))
    return Ambient(pages, moved.elapsed_ns, end)
