"""``pinstorm doctor``: the pin budget and the findings, or how they differ from another's."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeGuard

from rich.console import RenderableType
from rich.text import Text

from pinstorm.doctor import against
from pinstorm.doctor.against import Difference
from pinstorm.doctor.examination import examine
from pinstorm.doctor.finding import SCHEMA, Budget, Examination, Finding, Status, Topic
from pinstorm.doctor.sight import Options
from pinstorm.evidence_parts import readable
from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import PLAIN_WIDTH, print_json, print_parts, sheet
from pinstorm.units import format_bytes

_STYLES: Final = {Status.OK: "green", Status.LIMITED: "yellow", Status.MISSING: "red"}
_ORDER: Final = (Status.MISSING, Status.LIMITED, Status.OK)
_ID_WIDTH: Final = 18
_INDENT: Final = 2 + 7 + 1 + _ID_WIDTH + 1
# A value that is longer is cut in the table; --json has all of it.
_VALUE_LETTERS: Final = 60
# Where a command may be broken: quoted words may have blanks in them, and options none before them.
_OPTION: Final = re.compile(r" (?=--|&& )")


def show(options: Options, place: Path | None, as_json: bool, note: Any) -> None:
    """UsageError: a device, a directory or FILE that cannot be used."""
    other = None if place is None else against.read(place)
    seen = examine(options, note)
    if other is None:
        if as_json:
            print_json(seen.to_json())
            return
        print_parts(*_lines(seen))
        return
    # as JSON keeps it, or a tuple here would differ from a list there
    here = json.loads(json.dumps(seen.to_json()))
    found = against.differences(here, other)
    if as_json:
        print_json(
            {
                "doctor_schema": SCHEMA,
                "here": here["where"],
                "there": other["where"],
                "differences": [one.to_json() for one in found],
            }
        )
        return
    print_parts(*_difference_lines(here["where"], other["where"], found))


def _lines(seen: Examination) -> Iterator[RenderableType]:
    yield Hanging("", readable(where_words(seen.where)))
    yield ""
    yield Text("how much can be registered in one go", style="bold")
    yield _budget_table(seen.budget)
    yield from _budget_commands(seen.budget)
    for topic in Topic:
        found = [finding for finding in seen.findings if finding.topic == topic]
        yield ""
        yield Text(topic.value, style="bold")
        for finding in sorted(found, key=lambda finding: _ORDER.index(finding.status)):
            yield from _finding_lines(finding)
    yield ""
    yield Text(_sum(seen.findings))


def where_words(where: Mapping[str, Any]) -> str:
    """One line about who looked, where and from what."""
    user = where.get("user") or where.get("uid")
    words = f"{where.get('host')}, Linux {where.get('kernel')}, user {user}"
    started = [*map(str, where.get("launched_by") or [])]
    if where.get("parent"):
        started.append(str(where["parent"]))
    if started:
        words += f", started by {', '.join(started)}"
    if where.get("cgroup") not in (None, "/"):
        words += f", in {where['cgroup']}"
    return f"{words}, {where.get('made_at')}"


def _budget_table(budget: Sequence[Budget]) -> RenderableType:
    rows = [
        (
            one.what,
            one.charged_to or "-",
            "any" if one.largest_bytes is None else format_bytes(one.largest_bytes),
            _refused(one),
            readable(one.because) + (" (not here: see below)" if one.usable is False else ""),
        )
        for one in budget
    ]
    return sheet(("what", "account", "up to", "beyond", "because"), rows, right=("up to",))


def _refused(one: Budget) -> str:
    if one.largest_bytes is None:
        return "-"
    return one.errno or "killed"


def _budget_commands(budget: Sequence[Budget]) -> Iterator[RenderableType]:
    """Each command once: most have the limit in common."""
    for command in dict.fromkeys(one.command for one in budget if one.command):
        raised = ", ".join(one.mechanism for one in budget if one.command == command)
        yield Hanging("raise ", f"{raised}:", indent=6)
        yield _command(command)


def _finding_lines(finding: Finding) -> Iterator[RenderableType]:
    head = f"  {finding.status.value:<7} {finding.id:<{_ID_WIDTH}} "
    yield Hanging(head, readable(finding.seen), indent=_INDENT)
    if finding.status != Status.OK:
        yield Hanging(" " * 10, f"matters to: {finding.why}", indent=12)
    for sentence in finding.unseen:
        yield Hanging(" " * 10, f"not seen: {readable(sentence)}", indent=12)
    if finding.command is not None and finding.status != Status.OK:
        yield _command(finding.command)


def _command(command: str) -> RenderableType:
    """To be copied: what is too long goes on behind a backslash, before an option."""
    lines = ["    fix:"]
    for words in _OPTION.split(readable(command)):
        if len(lines[-1]) + len(words) + len(" \\ ") > PLAIN_WIDTH:
            lines[-1] += " \\"
            lines.append(" " * 8)
        lines[-1] += f" {words}"
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def _sum(findings: Sequence[Finding]) -> str:
    counts = [
        f"{sum(finding.status == status for finding in findings)} {status.value}"
        for status in Status
    ]
    return (
        f"{len(findings)} findings: {', '.join(counts)}; nothing was changed, most fixes need root"
    )


def _difference_lines(
    here: Mapping[str, Any], there: Mapping[str, Any], found: Sequence[Difference]
) -> Iterator[RenderableType]:
    yield Hanging("here:  ", readable(where_words(here)), indent=7)
    yield Hanging("there: ", readable(where_words(there)), indent=7)
    yield ""
    if not found:
        yield Text("no finding and no limit differs")
        return
    yield sheet(
        ("finding", "figure", "here", "there"),
        map(_cells, found),
    )
    yield ""
    yield Text("what it means", style="bold")
    for means in dict.fromkeys(one.means for one in found if one.means):
        names = ", ".join(dict.fromkeys(one.id for one in found if one.means == means))
        yield Hanging("  ", f"{readable(names)}: {means}", indent=4)


def _cells(one: Difference) -> tuple[str, ...]:
    """Of somebody else's file: nothing in it speaks to a terminal, or takes many lines."""
    words = (one.id, one.figure, _value(one, one.here), _value(one, one.there))
    return tuple(readable(_short(word)) for word in words)


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_LETTERS else f"{text[: _VALUE_LETTERS - 1]}…"


def _value(one: Difference, value: Any) -> str:
    """As a person reads it."""
    if value is None:
        return "-"
    if one.id.startswith("budget/") and isinstance(value, Mapping):
        return _bound_words(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_size(value) and one.figure.endswith("_bytes"):
        return "unlimited" if value < 0 else format_bytes(value)
    return value if isinstance(value, str) else json.dumps(value)


def _bound_words(bound: Mapping[str, Any]) -> str:
    largest, by = bound.get("largest_bytes"), bound.get("bound_by")
    if not _is_size(largest):
        return f"bounded by {by}" if by else "any size"
    return f"{format_bytes(largest)}, then {bound.get('errno')} ({by})"


def _is_size(value: Any) -> TypeGuard[int]:
    """In somebody else's file a number can have thousands of digits."""
    return isinstance(value, int) and abs(value) < 1 << 64
