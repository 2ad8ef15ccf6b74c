"""How much of what moved is the case's own, and how that is known (``pins.attributed``).

The counters cover the whole machine. Beside others' pins they tell the case's only where something
else says which are its own: the trace of the case's processes, or VmPin.

========================  ==========================================================================
``exact-quiet``           the counters, folded, and nobody else pinned around the windows nor in the
                          seconds before: what moved is the case's
``trace``                 the pages that GUP handed to the calls of the case's process tree. It does
                          not show what GUP takes and gives back by itself (a migration, a partly
                          bad range), the calls of kernel threads that work for the case, nor any
                          unpin: so it says what was acquired by calls that all succeeded, and
                          nothing of held
``vmpin``                 the growth of VmPin, where the workload accounts there page by page. Never
                          AF_XDP and direct IO (nothing), vfio (VmLck), io_uring with whole folios
                          or made with CAP_IPC_LOCK (since 7.2 nothing)
``unattributable``        others pinned nearby, or the counters could not be folded
========================  ==========================================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workloads import memory_spec
from workloads.spec import PAGE_BYTES

Method = Literal["exact-quiet", "trace", "vmpin", "unattributable"]

_DONE = ("ok", "short")
# What pins: its flags show FOLL_PIN only in the functions behind it.
_PINNING = "pin_user_pages"
_FOLIOS = "memfd_pin_folios"


@dataclass(frozen=True, slots=True)
class _Figure:
    """``pages`` by ``method``, or None and ``why`` not."""

    pages: int | None
    method: Method
    why: str


def attribute(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """``{"acquired", "held", "leaked": pages or None, "method": {figure: …}, "agree", "why"}``.

    None without pins. ``agree``: whether two methods say the same of a figure; None where there
    are no two. Pure: a function of the record's pins, gup_calls, vmpin_bytes, params, placement.
    """
    pins = record.get("pins")
    if pins is None or pins.get("acquire") is None:
        return None
    acquired = _chosen("acquired", _quiet(pins, pins["acquire"]["acquired"]), _traced(record))
    held = _chosen("held", _quiet(pins, pins.get("held")), _accounted(record, "held"))
    leaked = _chosen("leaked", _quiet(pins, pins.get("leaked")), _accounted_after(record))
    figures = {"acquired": acquired, "held": held, "leaked": leaked}
    agreements = [agree for _, agree in figures.values() if agree is not None]
    return {
        **{name: figure.pages for name, (figure, _) in figures.items()},
        "method": {name: figure.method for name, (figure, _) in figures.items()},
        "agree": all(agreements) if agreements else None,
        "why": _told([(figure, name) for name, (figure, _) in figures.items()]),
    }


def _chosen(name: str, quiet: _Figure, other: _Figure) -> tuple[_Figure, bool | None]:
    """The better of two methods, and whether they agree where both say something."""
    if quiet.pages is None and other.pages is None:
        return _Figure(None, "unattributable", f"{quiet.why}; {other.why}"), None
    if quiet.pages is None:
        return other, None
    if other.pages is None:
        return quiet, None
    if quiet.pages == other.pages:
        return _Figure(quiet.pages, quiet.method, f"{quiet.why}, and {other.why}"), True
    differ = f"{quiet.why} ({quiet.pages}), but {other.why} ({other.pages}): they do not agree"
    return _Figure(quiet.pages, quiet.method, differ), False


def _told(figures: list[tuple[_Figure, str]]) -> str:
    """One sentence for figures that are known, or unknown, for the same reason."""
    names: dict[str, list[str]] = {}
    for figure, name in figures:
        names.setdefault(figure.why, []).append(name)
    return "; ".join(f"{' and '.join(named)}: {why}" for why, named in names.items())


def _quiet(pins: Mapping[str, Any], pages: int | None) -> _Figure:
    if not pins.get("refreshed", pins.get("exact")):
        why = f"the counters were not folded, and are off by up to {pins.get('bound')} pages"
        return _Figure(None, "unattributable", why)
    others = max(pins.get("noise") or 0, pins.get("recent") or 0)
    if others or not pins.get("exact"):
        return _Figure(None, "unattributable", f"others moved {others} pages at a time nearby")
    return _Figure(pages, "exact-quiet", "nobody else pinned around the windows")


def _traced(record: Mapping[str, Any]) -> _Figure:
    """What GUP handed to the case's calls in acquire, where that is all that they acquired."""
    calls = record.get("gup_calls")
    if calls is None:
        return _Figure(None, "trace", "there was no trace")
    pinning = [
        call
        for call in calls
        if call["phase"] == "acquire"
        and call["via"] is None
        and (call["function"].startswith(_PINNING) or call["function"] == _FOLIOS)
    ]
    unsure = _traced_in_part(record, pinning)
    if unsure is not None:
        return _Figure(None, "trace", f"the trace does not show {unsure}")
    pages = sum(call["pages_returned"] for call in pinning)
    return _Figure(pages, "trace", "the trace shows the calls of the case's processes")


def _traced_in_part(record: Mapping[str, Any], pinning: list[Mapping[str, Any]]) -> str | None:
    """What moved the counters, or did not, without the trace showing it; None where nothing."""
    if record.get("outcome") not in _DONE or any(call.get("errors") for call in pinning):
        return "what is taken and given back by a call that fails"
    if any(call["by"] != "process" for call in pinning):
        return "for whom a kernel thread pins"
    if any(call.get("unreturned") for call in pinning):
        return "what a call took that was not seen to return"
    migrate = record.get("migrate") or {}
    if migrate.get("success") or migrate.get("fail"):
        return "the pins that are taken again after a migration"
    if memory_spec(record["memory"]).present != "own":
        # The zero page is pinned without being counted; what is to be copied is taken twice.
        return "which pages of such a memory are counted"
    return None


def _accounted(record: Mapping[str, Any], when: str) -> _Figure:
    """VmPin in pages, where this workload accounts each of its pins there."""
    size_bytes = (record.get("vmpin_bytes") or {}).get(when)
    workload = record["workload"]
    if workload == "rdma-register":
        why = "RDMA accounts each page in VmPin"
    elif workload != "io-uring-register":
        return _Figure(None, "vmpin", f"{workload} accounts no pins in VmPin")
    elif not _plain_pages(record):
        return _Figure(None, "vmpin", "io_uring keeps one pin of a folio, and accounts all of it")
    elif not (record.get("vmpin_bytes") or {}).get("held"):
        return _Figure(None, "vmpin", "the ring was made with CAP_IPC_LOCK, or accounts nothing")
    else:
        why = "io_uring accounts each page in VmPin"
    if size_bytes is None or record.get("outcome") not in _DONE:
        return _Figure(None, "vmpin", "VmPin was not read while pages were held")
    return _Figure(size_bytes // PAGE_BYTES, "vmpin", why)


def _accounted_after(record: Mapping[str, Any]) -> _Figure:
    """What VmPin says is still held, unless pins stayed that it does not count any more."""
    stays = record["pins"].get("stayed") or 0
    if stays > 0:
        why = f"{stays} pages stayed after the process had ended, and VmPin cannot say whose"
        return _Figure(None, "vmpin", why)
    return _accounted(record, "after")


def _plain_pages(record: Mapping[str, Any]) -> bool:
    """Whether every page is known to have lain in a folio of its own."""
    orders = (record.get("placement") or {}).get("folio_orders")
    return orders is not None and {int(order) for order in orders} == {0}
