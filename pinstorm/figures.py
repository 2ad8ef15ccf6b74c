"""A record's pin figures, from what moved in its windows.

Everything in pages of PAGE_SIZE. ``held`` is acquired minus released when acquire has returned (or,
where nothing may stay, when the counters rest); ``leaked`` the same over acquire and release.
"""

from collections.abc import Mapping
from typing import Any

from telemetry.vmstat import Counters, Snapshot
from telemetry.window import Delta


def quality(counters: Counters, noise_pages: int, noise_ns: list[int]) -> dict[str, Any]:
    """How far the figures can be trusted: ``bound`` for one counter, ``net_bound`` for two."""
    return {
        "exact": counters.refreshes and noise_pages == 0,
        "refreshed": counters.refreshes,
        "bound": counters.bound_pages,
        "net_bound": counters.held_bound_pages,
        "noise": noise_pages,
        "noise_ns": noise_ns,
    }


def pins(
    deltas: Mapping[str, Delta],
    window_ns: Mapping[str, int],
    orphaned: int | None,
    trust: Mapping[str, Any],
    *,
    refused: bool,
) -> dict[str, Any] | None:
    """The record's ``pins``; None where the counters are missing.

    A case that ended before its first window can still have left pins behind: then only
    ``orphaned`` is known.
    """
    acquire, release, cycles = (deltas.get(phase) for phase in ("acquire", "release", "cycles"))
    if acquire is None:
        unknown = dict.fromkeys(("acquire", "release", "held", "leaked", "cycles"))
        if orphaned is None:
            return None
        return {**trust, **unknown, "flagged": False, "orphaned": orphaned, "per_node": {}}
    if acquire.acquired is None or acquire.released is None or acquire.net is None:
        return None
    leaked = acquire.net + ((release.net or 0) if release is not None else 0)
    return {
        **trust,
        "flagged": _reached(trust["noise"], _moves(acquire)),
        "acquire": _moves(acquire),
        "release": _moves(release),
        "held": acquire.net,
        # Without a release the kernel refused: whatever is still there was never given back.
        "leaked": leaked if release is not None or refused else None,
        "orphaned": orphaned,
        "cycles": _moves(cycles),
        "per_node": {str(node): list(pair) for node, pair in acquire.per_node.items()},
        "window_ns": dict(window_ns),
    }


def doubt(pins: dict[str, Any], noise_pages: int) -> None:
    """Take noise that was only met later into a record's ``pins``."""
    if noise_pages:
        pins["noise"] = max(pins["noise"], noise_pages)
        pins["exact"] = False
        pins["flagged"] = pins["flagged"] or _reached(pins["noise"], pins["acquire"])


def free_cma(before: Snapshot, after: Snapshot) -> dict[str, int | None] | None:
    """Free CMA pages around acquire; None on a kernel without CMA."""
    if before.free_cma_pages is None:
        return None
    return {"free_pages_before": before.free_cma_pages, "free_pages_after": after.free_cma_pages}


def _reached(noise_pages: int, moves: Mapping[str, int | None] | None) -> bool:
    """Whether the noise is as large as what moved; never for a case that has no window."""
    if moves is None:
        return False
    return 0 < noise_pages >= max(moved or 0 for moved in moves.values())


def _moves(delta: Delta | None) -> dict[str, int | None] | None:
    if delta is None:
        return None
    return {"acquired": delta.acquired, "released": delta.released}
