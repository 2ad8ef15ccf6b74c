"""The pin figures of a record against the bounds of its rule. Pure functions.

Beside others' pins only what they cannot have done is judged: counters that only grow show no less
than the case's own, and what the trace and VmPin show is its own (pinstorm.attribution).
"""

from collections.abc import Mapping
from typing import Any

from pinstorm import attribution
from pinstorm.findings import Findings
from pinstorm.oracle import Figure, Range
from workloads import memory_spec


def compare(record: Mapping[str, Any], bounds: Mapping[Figure, Range], findings: Findings) -> None:
    """All figures, where the machine was quiet."""
    pins = record["pins"]
    compare_leaks(pins, findings)
    acquired, held = (pins.get("acquire") or {}).get("acquired"), pins.get("held")
    if acquired is not None and not within(acquired, bounds["acquired"], tolerance_pages(pins)):
        findings.add("acquired", f"acquired {pages_text(acquired)}, expected {bounds['acquired']}")
    if held is not None and not within(held, bounds["held"], net_tolerance(pins)):
        findings.add("held", f"held {pages_text(held)}, expected {bounds['held']}")
    _compare_nodes(record, findings)


def compare_beside_others(
    record: Mapping[str, Any], bounds: Mapping[Figure, Range], findings: Findings
) -> None:
    """Only what others' pins cannot have done: counters that only grow show no less than the
    case's own, and what the trace and VmPin show is its own."""
    pins = record["pins"]
    compare_remaining(pins, findings)
    acquired, low = (pins.get("acquire") or {}).get("acquired"), bounds["acquired"].low
    if acquired is not None and low is not None and acquired < low - int(pins.get("bound") or 0):
        findings.add("acquired", f"acquired {pages_text(acquired)}, expected {bounds['acquired']}")
    known = attribution.attribute(record) or {}
    figures: tuple[Figure, ...] = ("acquired", "held")
    for figure in figures:
        pages = known.get(figure)
        if pages is not None and not within(pages, bounds[figure], 0):
            method = known["method"][figure]
            findings.add(
                figure, f"{figure} {pages_text(pages)} by {method}, expected {bounds[figure]}"
            )


def compare_remaining(pins: Mapping[str, Any], findings: Findings) -> None:
    """Beside others, a leak is what never came back, and did as soon as the process had ended; or
    what has stayed since then, and is more than others were seen to move at a time.

    Less than that may be others', who began to hold theirs: nobody can know.
    """
    others = max(int(pins.get("noise") or 0), int(pins.get("recent") or 0))
    stays = stayed(pins)
    if stays is not None and stays > others + 2 * int(pins.get("bound") or 0):
        findings.add(
            "orphaned",
            f"{pages_text(stays)} stayed after the process had ended, expected 0; "
            f"others moved at most {others} at a time",
        )
    released, ended = pins.get("remaining") or (0, 0)
    if released > 0 >= ended:
        findings.add("leaked", f"{pages_text(released)} held after release until the process ended")


def stayed(pins: Mapping[str, Any]) -> int | None:
    """The fewest pages beyond the baseline that were seen after the process had ended.

    Of a record without that watch the least that it knows; None where it knows nothing.
    """
    if pins.get("stayed") is not None:
        return int(pins["stayed"])
    known = [pins["orphaned"]] if pins.get("orphaned") is not None else []
    if known and pins.get("remaining"):
        known.append(pins["remaining"][1])
    return min(known, default=None)


def _compare_nodes(record: Mapping[str, Any], findings: Findings) -> None:
    """Pages that all lay on one node, and stayed where they were, are charged to that node."""
    nodes = (record.get("placement") or {}).get("nodes") or {}
    moved = (record.get("migrate") or {}).get("success")
    if len(nodes) != 1 or moved or memory_spec(record["memory"]).present != "own":
        return
    (home,) = nodes
    pins = record["pins"]
    for node, (acquired, _) in sorted((pins.get("per_node") or {}).items()):
        if node != home and acquired > tolerance_pages(pins):
            findings.add(
                "node", f"{pages_text(acquired)} charged to node {node}, all of them lie on {home}"
            )


def tolerance_pages(pins: Mapping[str, Any]) -> int:
    """By how many pages one counter's movement may be off: stale counters and others' pins."""
    return int(pins.get("bound") or 0) + int(pins.get("noise") or 0)


def net_tolerance(pins: Mapping[str, Any]) -> int:
    """The same for acquired minus released, which is two counters."""
    return 2 * int(pins.get("bound") or 0) + int(pins.get("noise") or 0)


def compare_leaks(pins: Mapping[str, Any], findings: Findings) -> None:
    """What was never given back, whatever else came of the case."""
    tolerance = net_tolerance(pins)
    leaked, orphaned = pins.get("leaked") or 0, pins.get("orphaned") or 0
    if leaked > tolerance:
        findings.add("leaked", f"{pages_text(leaked)} still held after release, expected 0")
    elif leaked < -tolerance:
        findings.add("leaked", f"{pages_text(-leaked)} more given back than taken, expected 0")
    # Fewer than when the case began is nothing of the case's: another process held a pin then (the
    # root over 9p pins pages for its reads), and has given it back since.
    if orphaned > tolerance:
        findings.add(
            "orphaned", f"{pages_text(orphaned)} still held after the process had ended, expected 0"
        )
    for which, name in (("cycles", "timed"), ("settles", "settling")):
        cycles = pins.get(which)
        if cycles is not None and abs(cycles["acquired"] - cycles["released"]) > tolerance:
            took, gave = cycles["acquired"], cycles["released"]
            findings.add("leaked", f"the {name} cycles took {took} pins and gave back {gave}")


def pages_text(count: int) -> str:
    return f"{count} page" if count == 1 else f"{count} pages"


def within(value: int, bound: Range, tolerance: int) -> bool:
    if bound.low is not None and value < bound.low - tolerance:
        return False
    return bound.high is None or value <= bound.high + tolerance
