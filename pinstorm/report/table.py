"""The table of a run: one line a case, then what was skipped and why, then what went wrong.

Fits 100 columns. Counts are in pages and times in microseconds, as the headers say; ``-`` is a
figure that was not there, never 0. With several rounds, equal results of a case share a line.
"""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low, quantiles
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pinstorm.report import load_table
from pinstorm.report.paragraph import CaseName, Hanging, Harmless
from pinstorm.report.reason import cause_words
from pinstorm.report.sheet import PLAIN_WIDTH

Record = Mapping[str, Any]


# A percentile of fewer timings says nothing: then the maximum stands instead.
CYCLES_FOR_P99 = 100
MISSING = "-"
DETAIL_LINES = 8

# The order in which a reader wants them.
VERDICTS = ("crash", "timeout", "lost", "fail", "pass", "skip")
GOOD = ("pass", "skip")
STYLES = {"pass": "green", "skip": "dim"}


@dataclass(frozen=True, slots=True)
class Line:
    """The records of one case, over the rounds, that show the same result; the last one counts."""

    records: tuple[Record, ...]

    @property
    def last(self) -> Record:
        return self.records[-1]

    def times_ns(self, phase: str) -> list[int]:
        return [t for record in self.records for t in (_at(record, f"timing_ns.{phase}") or [])]


@dataclass(frozen=True, slots=True)
class Field:
    """A column: header lines, and the cell's text; numbers stand to the right."""

    header: str
    cell: Callable[[Line], str]
    left: bool = False


def show(
    records: Sequence[Record],
    *,
    emulated: bool,
    wide: bool = False,
    command: str = "pinstorm run SUITE",
    file: TextIO | None = None,
) -> None:
    """Print the report on stdout, or ``file``; without a terminal 100 columns and no colours."""
    stream = file or sys.stdout
    if stream is None:  # closed by whoever started this
        return
    terminal = stream.isatty()
    console = Console(
        file=stream, width=None if terminal else PLAIN_WIDTH, highlight=False, emoji=False
    )
    report = Harmless(render(records, emulated=emulated, wide=wide, command=command))
    if wide:
        # All of it, and the terminal may break the lines: a squeezed table hides figures.
        needed = Measurement.get(console, console.options.update(width=400), report).maximum
        console.width = max(console.width, needed)
    console.print(report, crop=False)


def render(
    records: Sequence[Record],
    *,
    emulated: bool,
    wide: bool = False,
    width: int | None = None,
    command: str = "pinstorm run SUITE",
) -> RenderableType:
    """The report of a run's records.

    ``emulated``: the times were measured under TCG. ``command``: what ran the suite, to which
    ``--only CASE`` is added to repeat a case alone. ``width`` fixes the table's width.
    """
    lines = _lines(records)
    shown = [line for line in lines if wide or line.last["verdict"] != "skip"]
    parts: list[RenderableType] = []
    if shown:
        parts += [_table(shown, _fields(shown, wide), emulated, width), ""]
    parts += load_table.parts(records, emulated=emulated)
    for line in lines:
        if line.last["verdict"] not in GOOD:
            parts += [_failure(line, command), ""]
    parts.append(_summary(records))
    parts += [
        Hanging(f"  {count} skip: {code}", f" ({words})" if words else "")
        for code, count, words in _skips(records)
    ]
    parts += [Hanging("  ", words) for words in _settling(records, emulated)]
    parts += [Text(note, style="dim") for note in _notes(records, emulated)]
    return Group(*parts)


def summary(records: Iterable[Record]) -> str:
    """``99 cases: 50 pass, 49 skip``."""
    return summary_of(Counter(str(record["verdict"]) for record in records))


def summary_of(counts: Mapping[str, int]) -> str:
    """The same, of the number of each verdict."""
    total = sum(counts.values())
    words = [f"{counts[verdict]} {verdict}" for verdict in _verdicts(counts)]
    return f"{total} {_plural(total, 'case')}: {', '.join(words) or 'nothing ran'}"


def _verdicts(counts: Mapping[str, int]) -> list[str]:
    """Those counted: pass and skip first, then what went wrong."""
    order = (*GOOD, *VERDICTS)
    return [verdict for verdict in dict.fromkeys(order) if counts.get(verdict)]


def _lines(records: Sequence[Record]) -> list[Line]:
    alike: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        pins = record.get("pins") or {}
        key = (
            record["case"],
            record["verdict"],
            record.get("reason"),
            record.get("outcome"),
            record.get("cause"),
            pins.get("held"),
            pins.get("leaked"),
        )
        alike.setdefault(key, []).append(record)
    lines = [Line(tuple(group)) for group in alike.values()]
    return sorted(lines, key=lambda line: (_rank(line.last["verdict"]), _natural(line.last)))


def _rank(verdict: str) -> int:
    return VERDICTS.index(verdict) if verdict in VERDICTS else 0


def _natural(record: Record) -> tuple[str, str, str, int, str]:
    """Like the case's id, but sizes in their order: 64KiB before 16MiB."""
    case_id = str(record["case"])
    params = record.get("params") or {}
    words = [*case_id.split("/"), "", ""]
    return words[0], words[1], str(params.get("access")), params.get("size_bytes") or 0, case_id


def _fields(lines: Sequence[Line], wide: bool) -> Sequence[Field]:
    """The columns; the causes have none in a run of which nothing was refused."""
    if wide:
        return WIDE
    return NARROW_WITH_CAUSE if any(line.last.get("cause") for line in lines) else NARROW


def _table(
    lines: Sequence[Line], fields: Sequence[Field], emulated: bool, width: int | None
) -> Table:
    # The narrow table stands a column closer, so that the longest names of cases stay whole.
    gap = 1 if fields is WIDE else 0
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0), width=width
    )
    for field in fields:
        header = field.header
        if emulated and header.endswith(" us"):
            header += "\nemulated"
        table.add_column(
            Text(header, style="bold", justify="left" if field.left else "right"),
            justify="left" if field.left else "right",
            # Only a case's name may go on on the next line; no figure is ever cut.
            no_wrap=field.header != "case",
            overflow="fold",
        )
    for line in lines:
        verdict = str(line.last["verdict"])
        table.add_row(
            *[
                Text(field.cell(line), style=STYLES.get(verdict, "bold red"))
                if field.header == "verdict"
                else CaseName(field.cell(line))
                if field.header == "case"
                else Text(field.cell(line))
                for field in fields
            ]
        )
    return table


# The cells.


def _verdict(line: Line) -> str:
    count = len(line.records)
    return str(line.last["verdict"]) + (f" x{count}" if count > 1 else "")


def _outcome_and_cause(line: Line) -> str:
    """One below the other: the names of cases are too long for a column more."""
    outcome, cause = _or_missing(_at(line.last, "outcome")), line.last.get("cause")
    return f"{outcome}\n{cause}" if cause else outcome


def _pages(path: str, bound: str = "bound") -> Callable[[Line], str]:
    """A pin figure; one that is not exact carries its error bound, two counters' a larger one, or
    where others' pins may be in it nobody knows by how much, a tilde."""

    def cell(line: Line) -> str:
        figure = _at(line.last, path)
        if figure is None:
            return MISSING
        pins = line.last.get("pins") or {}
        off_by = pins.get(bound, pins.get("bound"))
        if pins.get("noise") or pins.get("recent"):
            return f"~{figure}"
        return f"{figure}±{off_by}" if pins.get("exact") is False and off_by else str(figure)

    return cell


def _figure(path: str) -> Callable[[Line], str]:
    return lambda line: _or_missing(_at(line.last, path))


def _kib(path: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        size_bytes = _at(line.last, path)
        return MISSING if size_bytes is None else str(size_bytes // 1024)

    return cell


def _median_us(phase: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        times_ns = line.times_ns(phase)
        return _us(median_low(times_ns)) if times_ns else MISSING

    return cell


def _high_us(line: Line) -> str:
    """The maximum, or the 99th percentile of 100 timed cycles and more; it says which."""
    times_ns = line.times_ns("acquire")
    if not times_ns:
        return MISSING
    if len(times_ns) < CYCLES_FOR_P99:
        return f"max {_us(max(times_ns))}"
    return f"p99 {_us(quantiles(times_ns, n=100, method='inclusive')[98])}"


def _one_us(path: str) -> Callable[[Line], str]:
    def cell(line: Line) -> str:
        time_ns = _at(line.last, path)
        return MISSING if time_ns is None else _us(time_ns)

    return cell


def _us(time_ns: float) -> str:
    """Microseconds, three digits before the whole number takes over: 2.31, 41.3, 18250."""
    time_us = time_ns / 1000
    return f"{time_us:.{2 if time_us < 9.995 else 1 if time_us < 99.95 else 0}f}"


def _migrated(line: Line) -> str:
    success, fail = _at(line.last, "migrate.success"), _at(line.last, "migrate.fail")
    if success is None and fail is None:
        return MISSING
    return f"{_or_missing(success)}/{_or_missing(fail)}"


def _noise(line: Line) -> str:
    noise = _or_missing(_at(line.last, "pins.noise"))
    return noise + ("!" if _at(line.last, "pins.flagged") else "")


def _own(line: Line) -> str:
    """``4096 trace / 4096 vmpin``: what is the case's own of acquired and held, and who says so."""
    attributed = _at(line.last, "pins.attributed")
    if not attributed:
        return MISSING
    words = []
    for name in ("acquired", "held"):
        pages, method = attributed[name], attributed["method"][name]
        words.append(method if pages is None else f"{pages} {method}")
    return words[0] if words[0] == words[1] else " / ".join(words)


def _placement(line: Line) -> str:
    """``Normal 4096 (CMA 512)``: pages by zone just before acquire."""
    zones = _at(line.last, "placement.zones")
    if not zones:
        return MISSING
    words = ", ".join(f"{zone} {pages}" for zone, pages in zones.items())
    cma_pages = _at(line.last, "placement.cma_pages")
    return words + (f" (CMA {cma_pages})" if cma_pages else "")


_CASE = Field("case", lambda line: str(line.last["case"]), left=True)
_VERDICT = Field("verdict", _verdict, left=True)
_OUTCOME = Field("outcome", _figure("outcome"), left=True)
_OUTCOME_AND_CAUSE = Field("outcome\ncause", _outcome_and_cause, left=True)
_CAUSE = Field("cause", lambda line: str(line.last.get("cause") or ""), left=True)
_ACQUIRED = Field("acquired\npages", _pages("pins.acquire.acquired"))
_HELD = Field("held\npages", _pages("pins.held", "net_bound"))
_LEAKED = Field("leaked\npages", _pages("pins.leaked", "net_bound"))
_VMPIN = Field("VmPin\nKiB", _kib("vmpin_bytes.held"))
_MEDIAN = Field("acquire\nmedian us", _median_us("acquire"))

NARROW = (_CASE, _VERDICT, _OUTCOME, _ACQUIRED, _HELD, _LEAKED, _VMPIN, _MEDIAN)
NARROW_WITH_CAUSE = (_CASE, _VERDICT, _OUTCOME_AND_CAUSE, *NARROW[3:])
WIDE = (
    _CASE,
    _VERDICT,
    _OUTCOME,
    _CAUSE,
    _ACQUIRED,
    _HELD,
    Field("released\npages", _pages("pins.release.released")),
    _LEAKED,
    Field("noise\npages", _noise),
    Field("own acquired\n/ held pages", _own, left=True),
    _VMPIN,
    Field("migrated\nok/failed", _migrated),
    Field("first\nacquire us", _one_us("timing_ns.first")),
    _MEDIAN,
    Field("acquire\nhigh us", _high_us),
    Field("release\nmedian us", _median_us("release")),
    Field("settle\ntime us", _one_us("timing_ns.settle")),
    Field("placement\npages by zone", _placement, left=True),
)


# What stands below the table.


def _failure(line: Line, command: str) -> RenderableType:
    record = line.last
    head = Text.assemble((_verdict(line), "bold red"), "  ", str(record["case"]))
    body = [f"reason: {record.get('reason') or 'none given'}{_outcome_words(record)}"]
    expected = record.get("expected") or {}
    body += [f"broken: {_bound(bound)}" for bound in expected.get("broken") or []]
    if expected.get("rule"):
        body.append(f"rule: {expected['rule']}, {expected.get('source') or 'no source'}")
    body += cause_words(record)
    body += _indented("detail", str(record.get("detail") or ""))
    body += _indented("kernel log", "\n".join(_log_line(item) for item in record.get("kmsg") or []))
    # One line however long: it is there to be copied.
    again = Text(
        f"  repeat: {command} --only {shlex.quote(str(record['case']))}",
        no_wrap=True,
        overflow="ignore",
    )
    return Group(head, *[Hanging("  ", text) for text in body], again)


def _outcome_words(record: Record) -> str:
    words = []
    if record.get("outcome"):
        allowed = _at(record, "expected.outcomes")
        words.append(f"outcome {record['outcome']}")
        if allowed and record["outcome"] not in allowed:
            words[-1] += f", expected {' or '.join(allowed)}"
    if record.get("failed_call"):
        words.append(f"{record['failed_call']} failed in {record.get('failed_phase') or 'acquire'}")
    if record.get("signal") is not None:
        words.append(f"signal {record['signal']}")
    return f" ({'; '.join(words)})" if words else ""


def _bound(bound: Any) -> str:
    if isinstance(bound, Mapping):
        return ", ".join(f"{key} {value}" for key, value in bound.items())
    return str(bound)


def _log_line(item: Any) -> str:
    return str(item.get("text", item)) if isinstance(item, Mapping) else str(item)


def _indented(name: str, text: str) -> list[str]:
    """The last lines of a text, each on its own line; one line stands beside its name."""
    lines = text.splitlines()
    if len(lines) <= 1:
        return [f"{name}: {line}" for line in lines]
    return [f"{name}:", *[f"  {line}" for line in lines[-DETAIL_LINES:]]]


def _summary(records: Sequence[Record]) -> Text:
    good = all(record["verdict"] in GOOD for record in records)
    return Text(summary(records), style="bold" if good else "bold red")


def _skips(records: Iterable[Record]) -> list[tuple[str, int, str]]:
    """(code, number of cases, detail and remedy) of each unmet need, the most frequent first."""
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for record in records:
        if record["verdict"] != "skip":
            continue
        reasons = record.get("skip") or [{"code": record.get("reason") or "no reason"}]
        for code in dict.fromkeys(str(reason["code"]) for reason in reasons):
            counts[code] += 1
        for reason in reasons:
            told = "; ".join(str(reason[key]) for key in ("detail", "remedy") if reason.get(key))
            words.setdefault(str(reason["code"]), told)
    return [(code, count, words[code]) for code, count in counts.most_common()]


def _settling(records: Sequence[Record], emulated: bool) -> list[str]:
    """How late each workload gave back, over all its settling cycles; never a p99 of under 100."""
    unit = "emulated us" if emulated else "us"
    times_ns: dict[str, list[int]] = {}
    for record in records:
        if settled := _at(record, "timing_ns.settles"):
            times_ns.setdefault(str(record["workload"]), []).extend(settled)
    return [
        f"settle time of {workload}, {len(times)} releases, {unit} at most: min {_us(min(times))}, "
        f"median {_us(median_low(times))}, p90 {_us(_p90(times))}, max {_us(max(times))}"
        for workload, times in times_ns.items()
    ]


def _p90(times_ns: Sequence[int]) -> int:
    """The smallest that nine in ten do not exceed."""
    return sorted(times_ns)[-(-9 * len(times_ns) // 10) - 1]


def _notes(records: Sequence[Record], emulated: bool) -> list[str]:
    notes = []
    ran = [record for record in records if record["verdict"] != "skip"]
    if sum(count for _, count, _ in _skips(records)) > len(records) - len(ran):
        notes.append("a skipped case counts once for each of its reasons")
    with_pins = [record["pins"] for record in ran if record.get("pins")]
    if with_pins:
        clean = sum(1 for pins in with_pins if pins.get("exact") and pins.get("noise") == 0)
        notes.append(f"pin figures exact, noise 0: {clean} of {len(with_pins)} cases")
    if len(with_pins) < len(ran):
        notes.append(f"pin figures missing: {len(ran) - len(with_pins)} of {len(ran)} cases")
    unknown = sum(1 for pins in with_pins if _unattributable(pins))
    if unknown:
        notes.append(
            f"others pinned nearby: whose the pins of {unknown} {_plural(unknown, 'case')} are "
            "cannot all be known (~; --wide shows what is the case's own)"
        )
    flagged = sum(1 for pins in with_pins if pins.get("flagged"))
    if flagged:
        notes.append(
            f"noise of other processes reaches the pin figures of {flagged} "
            f"{_plural(flagged, 'case')} (! in --wide); quieten the machine and run again"
        )
    reasons = Counter(str(record["reason"]) for record in ran if _passed_with_reason(record))
    notes += [f"{count} pass, but {reason}" for reason, count in reasons.most_common()]
    if emulated and ran:
        notes.append("times are emulated (no KVM): compare them with nothing")
    return notes


def _unattributable(pins: Mapping[str, Any]) -> bool:
    """Whether a figure may be others', of those that there are: a killed case has no leaked."""
    methods = (pins.get("attributed") or {}).get("method") or {}
    return any(
        how == "unattributable" and (figure != "leaked" or pins.get("leaked") is not None)
        for figure, how in methods.items()
    )


def _passed_with_reason(record: Record) -> bool:
    """A pass that says less than others: its rule was undecided, or no pins could be judged."""
    return record["verdict"] == "pass" and bool(record.get("reason"))


def _at(record: Record, path: str) -> Any:
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _or_missing(value: Any) -> str:
    return MISSING if value is None else str(value)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"
