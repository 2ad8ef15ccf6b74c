"""All there is to say of one case: its figures on every kernel side by side, and then why.

From one run of each kernel, the last of its worst. What several kernels say alike stands once.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pinstorm.explain import KNOWLEDGE, Cause
from pinstorm.report import reason
from pinstorm.report.html.aggregates import SEVERITY, VERDICTS, Side
from pinstorm.report.html.words import DIFFERS, MISSING, SIGNS, kib, pages, plural, ranged, us

Row = Mapping[str, Any]

_LOG_LINES: Final = 60
_CALLS: Final = 12


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value for each kernel, ``-`` where there is none."""

    name: str
    values: tuple[str, ...]
    differs: bool


@dataclass(frozen=True, slots=True)
class Saying:
    """``kernels``: who says it, empty of all. ``kind``: prose, or text that is shown as it is."""

    term: str
    kernels: str
    lines: tuple[str, ...]
    kind: str = "prose"


@dataclass(frozen=True, slots=True)
class Detail:
    id: str
    case: str
    verdict: str
    sign: str
    why: str
    answers: tuple[tuple[str, str], ...]
    kernels: tuple[str, ...]
    figures: tuple[Figure, ...]
    sayings: tuple[Saying, ...]


def detail(
    case: str,
    id: str,
    groups: Sequence[Row],
    runs: Sequence[Row],
    sides: Sequence[Side],
    command: Callable[[str], str],
) -> Detail:
    """``groups``: its rows of aggregates.groups; ``runs``: of aggregates.picked; one a kernel.

    ``command``: what runs a bundle's suite again, by the bundle's name.
    """
    group_of = {group["side"]: group for group in groups}
    run_of = {run["side"]: run for run in runs}
    here = [side for side in sides if side.key in group_of and side.key in run_of]
    worst = max(groups, key=lambda group: group["severity"])
    verdict = next((name for name in VERDICTS if worst[f"v_{name}"]), VERDICTS[3])
    sayings = [(side.label, list(_sayings(run_of[side.key], command))) for side in here]
    answers = tuple((side.label, answer(group_of[side.key], run_of[side.key])) for side in here)
    return Detail(
        id=id,
        case=case,
        verdict=verdict,
        sign=SIGNS[verdict],
        why=_why(groups, runs, answers),
        answers=answers if len({told for _, told in answers}) > 1 else answers[:1],
        kernels=tuple(side.label for side in here),
        figures=tuple(_figures(here, group_of, run_of)),
        sayings=tuple(_merged(sayings)),
    )


def answer(group: Row, run: Row) -> str:
    """``EFAULT``; of what did not pass its verdict too; of runs that differ each verdict."""
    counts = {name: group[f"v_{name}"] for name in VERDICTS if group[f"v_{name}"]}
    if len(counts) > 1:
        return ", ".join(f"{count} {name}" for name, count in counts.items())
    outcome = run["outcome"]
    if run["verdict"] == "pass":
        return str(outcome or "pass")
    return f"{run['verdict']}, outcome {outcome}" if outcome else str(run["verdict"])


def _why(groups: Sequence[Row], runs: Sequence[Row], answers: Sequence[tuple[str, str]]) -> str:
    """Why it is among the cases to look at."""
    words = []
    failed = [run for run in runs if SEVERITY.get(run["verdict"], 2) >= SEVERITY["fail"]]
    words += sorted({str(run["reason"] or run["verdict"]) for run in failed})
    if any(group["leak"] for group in groups):
        words.append("leaked")
    ran = {told for _, told in answers if not told.startswith("skip")}
    if len(ran) > 1:
        words.append(f"{DIFFERS} the kernels differ")
    words += sorted(
        {f"pass, but {r['reason']}" for r in runs if r["verdict"] == "pass" and r["reason"]}
    )
    if any((run["retries"] or "[]") != "[]" for run in runs):
        words.append("retried")
    return "; ".join(dict.fromkeys(words))


def _figures(
    here: Sequence[Side], group_of: Mapping[str, Row], run_of: Mapping[str, Row]
) -> Iterator[Figure]:
    emulated = all(side.emulated for side in here)

    def line(name: str, told: Callable[[Row, Row], str]) -> Iterator[Figure]:
        values = tuple(told(group_of[side.key], run_of[side.key]) for side in here)
        if any(value not in (MISSING, "") for value in values):
            yield Figure(name, values, len(set(values)) > 1)

    def time(name: str, key: str) -> Iterator[Figure]:
        values = tuple(
            us(group_of[side.key][key]) + (" emulated" if side.emulated and not emulated else "")
            for side in here
        )
        # Times of different kernels are never alike: no mark.
        if any(group_of[side.key][key] is not None for side in here):
            yield Figure(f"{name}, µs" + (", emulated" if emulated else ""), values, False)

    if any(group["runs"] > 1 for group in group_of.values()):
        yield from line("runs", lambda group, run: str(group["runs"]))
    yield from line("verdict", lambda group, run: _verdicts(group))
    yield from line("reason", lambda group, run: run["reason"] or MISSING)
    yield from line("outcome", lambda group, run: run["outcome"] or MISSING)
    yield from line(
        "expected", lambda group, run: " or ".join(run["expected_outcomes"] or ()) or MISSING
    )
    yield from line("refused by", lambda group, run: _refused(run))
    yield from line("acquired, pages", lambda group, run: pages(group, "acquired"))
    yield from line("held, pages", lambda group, run: pages(group, "held"))
    yield from line("leaked, pages", lambda group, run: pages(group, "leaked"))
    if any(group["orphaned_high"] for group in group_of.values()):
        yield from line("orphaned, pages", lambda group, run: pages(group, "orphaned"))
    yield from line("own acquired / held", lambda group, run: _own(run))
    yield from line("VmPin, KiB", lambda group, run: kib(group, "vmpin_held_bytes"))
    if any(group["vmlck_held_bytes_high"] for group in group_of.values()):
        yield from line("VmLck, KiB", lambda group, run: kib(group, "vmlck_held_bytes"))
    if any(
        group["migrate_success_high"] or group["migrate_fail_high"] for group in group_of.values()
    ):
        yield from line("migrated / failed, pages", lambda group, run: _migrated(group))
    yield from time("first acquire", "first_ns")
    yield from time("acquire median", "acquire_median_ns")
    yield from time("release median", "release_median_ns")
    yield from line("placement, pages", lambda group, run: _placement(run))
    yield from line("folio orders, pages", lambda group, run: _counted(run["folio_orders"]))
    yield from line("device", lambda group, run: run["device"] or MISSING)


def _verdicts(group: Row) -> str:
    found = [(name, group[f"v_{name}"]) for name in VERDICTS if group[f"v_{name}"]]
    if group["runs"] == 1:
        return found[0][0] if found else MISSING
    return ", ".join(f"{count} {name}" for name, count in found)


def _refused(run: Row) -> str:
    if not run["failed_call"]:
        return MISSING
    return f"{run['failed_call']} in {run['failed_phase'] or 'acquire'}"


def _own(run: Row) -> str:
    """Only where the counters alone do not say it."""
    methods = as_object(run["attribution"])
    if all(method == "exact-quiet" for method in methods.values()):
        return MISSING
    words = []
    for name in ("acquired", "held"):
        figure, how = run[f"attributed_{name}"], methods.get(name)
        words.append(str(how) if figure is None else f"{figure} ({how})")
    return " / ".join(words)


def _migrated(group: Row) -> str:
    return f"{ranged(group, 'migrate_success')} / {ranged(group, 'migrate_fail')}"


def _placement(run: Row) -> str:
    zones = _counted(run["placement_zones"])
    return zones + (f" (CMA {run['cma_pages']})" if run["cma_pages"] else "")


def _counted(text: str | None) -> str:
    """``Normal 4096``, ``0: 17``"""
    found = parsed(text)
    if not isinstance(found, Mapping) or not found:
        return MISSING
    return ", ".join(f"{key}{':' if key.isdigit() else ''} {count}" for key, count in found.items())


def _sayings(run: Row, command: Callable[[str], str]) -> Iterator[Saying]:
    def said(term: str, *lines: Any, kind: str = "prose") -> Iterator[Saying]:
        if told := tuple(str(line) for line in lines if line):
            yield Saying(term, "", told, kind)

    yield from said("broken", *(run["broken"] or ()))
    if run["rule"]:
        yield from said("rule", f"{run['rule']}: {run['expected_source'] or 'no source'}")
    found = as_object(run["explanation"])
    if run["cause"]:
        sure = f" ({found['confidence']})" if found.get("confidence") else ""
        yield from said("cause", f"{run['cause']}{sure}{_meaning(run['cause'])}")
    yield from said("evidence", *_listed(found.get("evidence")))
    yield from said("remedy", run["remedy"])
    yield from said(reason.HELPED, found.get("command"), kind="code")
    yield from said("instead", found.get("instead"), kind="code")
    yield from said("retried", *(_retry(one) for one in as_list(run["retries"])))
    yield from said("disturbed", _plain(parsed(run["disturbed"])))
    yield from said("needs not met", *(_need(one) for one in as_list(run["skip"])))
    if run["signal"] is not None:
        yield from said("signal", str(run["signal"]))
    yield from said(
        "detail", run["detail"], kind="text" if "\n" in (run["detail"] or "") else "prose"
    )
    yield from said("not given back", *(run["owner_errors"] or ()))
    log = list(run["kmsg"] or ())
    if len(log) > _LOG_LINES:
        log = [f"({len(log) - _LOG_LINES} lines before)", *log[-_LOG_LINES:]]
    yield from said("kernel log", "\n".join(log), kind="text")
    yield from said("the kernel's calls", *_calls(as_list(run["gup_calls"])), kind="code")
    again = f"{command(run['bundle'])} --only {shlex.quote(run['case'])}"
    yield from said("repeat", again, kind="command")


def _meaning(cause: str) -> str:
    try:
        return f": {KNOWLEDGE[Cause(cause)].meaning}"
    except (KeyError, ValueError):
        return ""


def _retry(one: Any) -> str:
    if not isinstance(one, Mapping):
        return str(one)
    return f"{one.get('command') or 'again'}: outcome {one.get('outcome')}"


def _need(one: Any) -> str:
    if not isinstance(one, Mapping):
        return str(one)
    return ": ".join(str(one[key]) for key in ("code", "detail", "remedy") if one.get(key))


def _plain(found: Any) -> str | None:
    if not isinstance(found, Mapping):
        return None if found is None else str(found)
    return ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)


def _calls(calls: Sequence[Any]) -> Iterator[str]:
    """``pin_user_pages_fast LONGTERM WRITE: 16 of 16 pages, acquire``, entry points alone."""
    entries = [call for call in calls if isinstance(call, Mapping) and not call.get("via")]
    for call in entries[:_CALLS]:
        flags = " ".join(sorted(str(f).removeprefix("FOLL_") for f in _listed(call.get("flags"))))
        pages = f"{call.get('pages_returned')} of {call.get('pages_asked')} pages"
        yield f"{call.get('function')} {flags}: {pages} in {call.get('phase')}"
    if len(entries) > _CALLS:
        yield f"and {plural(len(entries) - _CALLS, 'more call')}"


def _merged(of_kernels: Sequence[tuple[str, list[Saying]]]) -> Iterator[Saying]:
    """What kernels say alike, once, in the order of the terms."""
    who: dict[Saying, list[str]] = {}
    for label, sayings in of_kernels:
        for saying in sayings:
            who.setdefault(saying, []).append(label)
    order = {saying.term: None for _, sayings in of_kernels for saying in sayings}
    ranks = {term: rank for rank, term in enumerate(_in_order(order))}
    for saying in sorted(who, key=lambda saying: ranks[saying.term]):
        everyone = len(who[saying]) == len(of_kernels)
        kernels = "" if everyone else " ".join(who[saying])
        yield Saying(saying.term, kernels, saying.lines, saying.kind)


_TERMS: Final = (
    "broken", "rule", "cause", "evidence", "remedy", reason.HELPED, "instead", "retried",
    "disturbed", "needs not met", "signal", "detail", "not given back", "kernel log",
    "the kernel's calls", "repeat",
)  # fmt: skip


def _in_order(terms: Mapping[str, None]) -> list[str]:
    return [term for term in _TERMS if term in terms]


def parsed(text: str | None) -> Any:
    """JSON of a column; None where there is none, or what nobody can read."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_object(text: str | None) -> Mapping[str, Any]:
    """The same, of a column of objects; {} where it is none."""
    found = parsed(text)
    return found if isinstance(found, Mapping) else {}


def as_list(text: str | None) -> list[Any]:
    """The same, of a column of lists; [] where it is none."""
    return _listed(parsed(text))


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []
