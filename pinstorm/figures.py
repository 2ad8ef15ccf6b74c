"""A record's pin figures, from what moved in its windows.

Everything in pages of PAGE_SIZE. ``held`` is acquired minus released when acquire has returned (or,
where nothing may stay, when the counters rest); ``leaked`` the same over acquire and release.
``disturb``: what moved while the memory was disturbed (``during``), which should be nothing.
``load``: what a load moved; what it did not give back by its end is part of ``leaked``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from telemetry.vmstat import Counters, Snapshot
from telemetry.window import Delta


def quality(
    counters: Counters, noise_pages: int, recent_pages: int, noise_ns: list[int]
) -> dict[str, Any]:
    """How far the figures can be trusted: ``bound`` for one counter, ``net_bound`` for two.

    ``noise``: pages that others moved around the windows; ``recent``: and in the two seconds
    before, which is when the next burst of theirs can hide in a window.
    """
    return {
        "exact": counters.refreshes and noise_pages == recent_pages == 0,
        "refreshed": counters.refreshes,
        "bound": counters.bound_pages,
        "net_bound": counters.held_bound_pages,
        "noise": noise_pages,
        "recent": recent_pages,
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
        unknown = dict.fromkeys(
            ("acquire", "release", "disturb", "load", "held", "leaked", "cycles")
        )
        if orphaned is None:
            return None
        return {**trust, **unknown, "flagged": False, "orphaned": orphaned, "per_node": {}}
    if acquire.acquired is None or acquire.released is None or acquire.net is None:
        return None
    load = deltas.get("load")
    leaked = sum(delta.net or 0 for delta in (acquire, load, release) if delta is not None)
    return {
        **trust,
        "flagged": _reached(trust["noise"], _moves(acquire)),
        "acquire": _moves(acquire),
        "release": _moves(release),
        "held": acquire.net,
        # Without a release the kernel refused: whatever is still there was never given back.
        "leaked": leaked if release is not None or refused else None,
        "orphaned": orphaned,
        "disturb": _moves(deltas.get("disturb")),
        "load": _moves(load),
        "cycles": _moves(cycles),
        "per_node": {str(node): list(pair) for node, pair in acquire.per_node.items()},
        "window_ns": dict(window_ns),
    }


def moved(deltas: Sequence[Delta]) -> dict[str, int | None] | None:
    """What several windows moved together; None when there was none, or no counters."""
    acquired = [delta.acquired for delta in deltas if delta.acquired is not None]
    released = [delta.released for delta in deltas if delta.released is not None]
    return {"acquired": sum(acquired), "released": sum(released)} if acquired else None


def doubt(pins: dict[str, Any], noise_pages: int) -> None:
    """Take noise that was only met later into a record's ``pins``."""
    if noise_pages:
        pins["noise"] = max(pins["noise"], noise_pages)
        pins["exact"] = False
        pins["flagged"] = pins["flagged"] or _reached(pins["noise"], pins["acquire"])


def confirmed(pins: Mapping[str, Any], expected: Mapping[str, Any], cycles: int) -> bool:
    """Whether acquired and held are what the rule says to the page, or acquired what each of the
    ``cycles`` timed ones took: a pin of others that fell into the window would have moved them."""
    moves, timed = pins["acquire"], pins["cycles"]
    if moves is None:
        return True
    if (moves["acquired"], pins["held"]) == (expected.get("acquired"), expected.get("held")):
        return True
    once = moves["acquired"] + ((pins["release"] or {}).get("acquired") or 0)
    return timed is not None and cycles > 0 and timed["acquired"] == cycles * once


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
