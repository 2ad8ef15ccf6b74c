"""Verdicts on what pins must survive (``during``), and on what must end them (``kill``).

Pure functions of a record: each gives (reason, sentence) of what is broken.
"""

import signal
from collections.abc import Mapping
from typing import Any

from pinstorm.rules import counters

Broken = list[tuple[str, str]]


def sources(params: Mapping[str, Any]) -> dict[str, str]:
    """Where it is written what the pins must survive, and when they are given back."""
    found = {}
    if "during" in params:
        found["disturb_source"] = counters.SURVIVED[params["during"]]
    if "kill" in params:
        found["kill_source"] = counters.GIVEN_BACK
    return found


def of_kill(record: Mapping[str, Any]) -> Broken:
    """A case that was to get SIGKILL must have got it, and died of it."""
    phase, killed = record["params"].get("kill"), record.get("killed")
    if phase is None:
        return []
    if killed is None:
        ended = record.get("outcome") or "nothing that is known"
        return [("kill", f"SIGKILL was to come in {phase}; the case ended before, with {ended}")]
    if killed.get("signal") != signal.SIGKILL:
        return [("kill", f"SIGKILL was sent in {phase}, and the process did not die of it")]
    return []


def of_disturbance(record: Mapping[str, Any], tolerance_pages: int | None) -> Broken:
    """What was done to the memory or process while it held pins: no pin, no VmPin may move.

    ``tolerance_pages``: None where the pin figures are not judged.
    """
    disturbed, during = record.get("disturbed"), record["params"].get("during")
    if during is None:
        return []
    if disturbed is None:
        if record.get("outcome") not in ("ok", "short"):
            return []  # nothing was held that could be disturbed
        return [("disturb", f"{during} was to be done while the pins were held, and was not")]
    if disturbed["outcome"] != "ok":
        refused = f"{disturbed['call']} gave {disturbed['outcome']}"
        return [("disturb", f"{during} did not take place: {refused}")]
    broken: Broken = []
    moved = (record.get("pins") or {}).get("disturb")
    if tolerance_pages is not None and moved is not None:
        net = moved["acquired"] - moved["released"]
        if abs(net) > tolerance_pages:
            pages = "1 page" if abs(net) == 1 else f"{abs(net)} pages"
            what = "taken" if net > 0 else "given back"
            broken.append(("disturb", f"{pages} {what} by {during}, expected 0"))
    held, now = (record.get("vmpin_bytes") or {}).get("held"), disturbed["vmpin_bytes"]
    if held is not None and now is not None and held != now:
        broken.append(("disturb", f"VmPin {now} bytes after {during}, and {held} before"))
    return broken
