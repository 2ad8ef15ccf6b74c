"""``pinstorm pins``: who holds pins on this machine now, and what no process accounts for."""

import pwd
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pinstorm.census import Census, Held, Holder, census
from pinstorm.errors import UsageError
from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import print_json, print_parts
from pinstorm.units import format_bytes, format_pages

CAVEAT = (
    "acquired - released is a sign of leaks, not a size: pins of a moment are in it (direct IO), "
    "and unpins are counted whose pins were not (folio_add_pin() of direct IO on vfat and exfat)"
)
_COLUMNS = "{:>7} {:<12} {:<16} {:>9} {:>9}"
_HELD = "{:>7} {:<12} {:>9} {:>9} {:>15}   "
_INDENT = len(_HELD.format("", "", "", "", ""))


def user_id(name: str) -> int:
    """The number of a user's name, or of a number. UsageError when there is no such user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        if name.isdecimal():
            return int(name)
        raise UsageError(f"no user is called {name!r}: give a name, or --uid NUMBER") from None


def show_pins(uid: int | None, as_json: bool) -> None:
    """Everybody's, or those of one user."""
    taken = census(uid)
    if as_json:
        print_json(to_json(taken))
        return
    print_parts(*_holder_lines(taken), "", *_sum_lines(taken), *_hidden_lines(taken.hidden))


def to_json(taken: Census) -> dict[str, Any]:
    """``unaccounted_range_pages``: least and most, null where nothing bounds it."""
    document = asdict(taken)
    document["holders"] = [asdict(holder) for holder in taken.holders]
    document["unaccounted_pages"] = taken.unaccounted_pages
    document["unaccounted_range_pages"] = list(taken.unaccounted_range)
    return document


def _holder_lines(taken: Census) -> list[RenderableType]:
    if not taken.holders:
        whose = "" if taken.uid is None else f" of user {_user(taken.uid)}"
        return [Text(f"no process{whose} is seen to hold pins")]
    titles = _COLUMNS.format("pid", "user", "process", "VmPin", "VmLck")
    lines: list[RenderableType] = [
        Text(titles, style="bold"),
        Text(_HELD.format("", "holds", "how many", "size", "pages").rstrip(), style="bold"),
    ]
    for holder in taken.holders:
        lines += ["", *_lines_of(holder)]
    return lines


def _lines_of(holder: Holder) -> list[RenderableType]:
    head = _COLUMNS.format(
        "-" if holder.pid is None else holder.pid,
        _user(holder.uid)[:12],
        holder.name,
        _size(holder.vmpin_bytes),
        _size(holder.vmlck_bytes),
    )
    return [Text(head), *[_held_line(held) for held in holder.held]]


def _held_line(held: Held) -> RenderableType:
    columns = _HELD.format("", held.kind, held.count, _size(held.size_bytes), pages_words(held))
    return Hanging(columns, held.detail, indent=_INDENT)


def pages_words(held: Held) -> str:
    """``65536``, ``up to 4096``, ``16 to 17``, ``unknown``."""
    least, most = held.pages, held.most_pages
    if least is not None and least == most:
        return str(least)
    if most is None:
        return f"at least {least}" if least else "unknown"
    return f"{least} to {most}" if least else f"up to {most}"


def _sum_lines(taken: Census) -> list[RenderableType]:
    if taken.outstanding_pages is None:
        return [Text("this kernel does not count pins: nothing to compare with")]
    bound = (
        f", off by at most {taken.bound_pages} (run as root for the exact figure)"
        if taken.bound_pages
        else ""
    )
    moved = f"; moved by {taken.moved_pages} meanwhile" if taken.moved_pages else ""
    lines: list[RenderableType] = [
        _sum_line(
            "acquired - released since boot", f"{_count(taken.outstanding_pages)}{bound}{moved}"
        ),
        _sum_line("accounted for above", _accounted(taken)),
    ]
    if taken.uid is None:
        # Where some could not be looked at, it may well be one of those that has them.
        whose = "by no process that was seen" if taken.hidden else "accounted for by no process"
        lines.append(_sum_line(whose, _unaccounted(taken)))
    return [*lines, Hanging("  ", CAVEAT, indent=2)]


def _sum_line(what: str, figure: str) -> RenderableType:
    return Hanging(f"{what:<32}", figure, indent=32)


def _count(pages: int) -> str:
    return format_pages(pages)


def _accounted(taken: Census) -> str:
    known = _count(taken.accounted_pages)
    if taken.uncertain_pages is None:
        return f"{known} or more: of some it is not known how many"
    return f"{known}, and up to {taken.uncertain_pages} more" if taken.uncertain_pages else known


def _unaccounted(taken: Census) -> str:
    least, most = taken.unaccounted_range
    if least == most:
        return _count(most or 0)
    return f"{most} pages at most" if least is None else f"{least} to {most} pages"


def _hidden_lines(hidden: Sequence[str]) -> list[RenderableType]:
    if not hidden:
        return []
    return ["", Text("not seen", style="bold"), *[Hanging("  ", words) for words in hidden]]


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)


def _user(uid: int | None) -> str:
    if uid is None:
        return "?"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
