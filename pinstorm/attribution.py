"""How much of what moved is the case's own, and how that is known (``pins.attributed``).

The counters cover the whole machine. Beside others' pins they tell the case's only where something
else says which are its own: the trace of the case's processes, or VmPin.
"""

from collections.abc import Mapping
from typing import Any, Literal

Method = Literal["exact-quiet", "trace", "vmpin", "unattributable"]


def attribute(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """``{"acquired": pages | None, "held": pages | None, "method": …, "why": …}``; None without
    pins. Pure: a function of the record's pins, gup_calls, vmpin_bytes and params."""
    return None
