"""What a load's jobs did: a table below that of the cases, and what was seen over time.

One line a job and kind of latency. Rates are a second, of the load's steady part where it had one,
else of the whole hold; ``-`` is a figure that was not there.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import PLAIN_WIDTH, sheet
from pinstorm.units import format_bytes, format_seconds

Record = Mapping[str, Any]

_MISSING = "-"
_FIGURES = (
    "ops\n/s",
    "bytes\n/s",
    "pins\n/s",
    "cpu/op\nus",
    "p50\nus",
    "p99\nus",
    "p99.9\nus",
    "max\nus",
)
# Between two columns; and what a job's name has at least.
_GAP = 2
_LEAST_NAME = 9
_COUNT_FOR_P99_9 = 1000
_COUNT_FOR_P99 = 100


def parts(records: Sequence[Record], *, emulated: bool) -> list[RenderableType]:
    """Nothing where no load has run."""
    found: list[RenderableType] = []
    for record in records:
        if record.get("jobs") and is_whole(record):
            found += [*_load(record, emulated), ""]
    return found


def is_whole(record: Record) -> bool:
    """Whether its jobs and load have all that is told of them; a bundle may be anybody's."""
    try:
        sentences(record)
        return all(job_rows(job) for job in record["jobs"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return False


def header(*, emulated: bool) -> tuple[str, ...]:
    """The heads of the columns of job_rows()."""
    return ("job", "call", *(f"{name}\nemu-\nlated" if emulated else name for name in _FIGURES))


def sentences(record: Record) -> list[str]:
    """Whether it was steady, what grew or did not, what the sampler cost; of its jobs and load."""
    sampler = _sampler_words(record["load"])
    told = [_steady_words(record), *_soak_words(record["load"])]
    return [*told, sampler] if sampler is not None else told


def _load(record: Record, emulated: bool) -> list[RenderableType]:
    head = header(emulated=emulated)
    rows = [row for job in record["jobs"] for row in job_rows(job)]
    steady, *told = sentences(record)
    title = f"{record['case']}: {steady}{' (emulated)' if emulated else ''}"
    table = sheet(head, _with_room(head, rows), right=head[2:])
    return [Text(title, style="bold"), table, *[Hanging("  ", words) for words in told]]


def _with_room(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Names go on in the next line where the figures need the room: those must never be cut."""
    others = [
        max(len(line) for cell in column for line in cell.splitlines() or [""]) + _GAP
        for column in list(zip(heads, *rows, strict=True))[1:]
    ]
    width = max(_LEAST_NAME, PLAIN_WIDTH - sum(others))
    return [("\n".join(textwrap.wrap(name, width)), *rest) for name, *rest in rows]


def job_rows(job: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each kind of latency; what is of the whole job stands in the first."""
    name = job["name"] if job["processes"] == 1 else f"{job['name']} x {job['processes']}"
    kinds = job["latency_ns"] or {_MISSING: {}}
    rows: list[tuple[str, ...]] = []
    for number, (kind, latency) in enumerate(kinds.items()):
        first = number == 0
        rows.append(
            (
                name if first else "",
                kind,
                _rate(job["ops_s"]) if first else "",
                _bytes(job["bytes_s"]) if first else "",
                _rate(job["pins_s"]) if first else "",
                _us(job["cpu_ns_per_op"]) if first else "",
                *_latencies(latency),
            )
        )
    return rows


def _latencies(latency: Mapping[str, Any]) -> tuple[str, ...]:
    """A percentile of too few values says nothing, and is left out."""
    count = latency.get("count", 0)
    return (
        _us(latency.get("p50")),
        _us(latency.get("p99")) if count >= _COUNT_FOR_P99 else _MISSING,
        _us(latency.get("p99_9")) if count >= _COUNT_FOR_P99_9 else _MISSING,
        _us(latency.get("max")),
    )


def _steady_words(record: Record) -> str:
    load = record["load"]
    steady = load["steady"]
    if not any(job.get("elapsed_ns") for job in record["jobs"]):
        return "nothing was counted"
    failure = load.get("failure")
    if failure or load.get("stopped"):
        whose = f"job {failure['job']}" if failure else load["stopped"]
        return f"ended early ({whose}): figures of what was done until then"
    if steady is None:
        return f"held {format_seconds(load['duration_s'])}"
    if not steady["reached"] and load["duration_s"] < load["steady_window_s"]:
        return f"{format_seconds(load['duration_s'])}, too short to be called steady"
    if not steady["reached"]:
        return f"not steady within {format_seconds(load['duration_s'])}: figures of all of it"
    after_s = steady["after_intervals"] * load["interval_s"]
    # A window has to be seen before it is known to be steady: figures are of what comes after it.
    lasted_ns = [job["elapsed_ns"] for job in record["jobs"] if job.get("part") == "steady"]
    whose = f"the last {format_seconds(max(lasted_ns) / 1e9)}" if lasted_ns else "all of it"
    return f"steady from {format_seconds(after_s)} on, figures of {whose}"


def _soak_words(load: Mapping[str, Any]) -> list[str]:
    """What grew, or may have; and in one line each what did not, and what was too short to tell."""
    soak = load.get("soak") or {}
    words = []
    short = {key: trend for key, trend in soak.items() if trend["reason"] == "too-short"}
    for key, trend in soak.items():
        if trend["verdict"] == "no-leak" or key in short:
            continue
        low, high = trend["low_per_s"], trend["high_per_s"]
        more_s = trend.get("more_s")
        more = f"; {format_seconds(more_s)} more would tell" if more_s else ""
        interval = f"{low:+.3g} to {high:+.3g} a second"
        words.append(f"{key}: {trend['verdict']} ({trend['reason']}), {interval}{more}")
    if flat := [key for key, trend in soak.items() if trend["verdict"] == "no-leak"]:
        words.append(f"no leak of {', '.join(flat)}")
    if short:
        more_s = max(trend["more_s"] or 0 for trend in short.values())
        more = f": {format_seconds(more_s)} more would" if more_s >= 1 else ""
        words.append(f"too short to tell a leak{more}")
    return words


def _sampler_words(load: Mapping[str, Any]) -> str | None:
    cost = (load.get("sampler") or {}).get("cost")
    if not cost or cost.get("share") is None:
        return None
    return f"the sampler took {cost['share'] * 100:.2f} % of a core"


def _rate(value: float | None) -> str:
    if value is None:
        return _MISSING
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: float | None) -> str:
    return _MISSING if value is None else format_bytes(round(value))


def _us(value_ns: float | None) -> str:
    if value_ns is None:
        return _MISSING
    return f"{value_ns / 1000:.0f}" if value_ns >= 100_000 else f"{value_ns / 1000:.3g}"
