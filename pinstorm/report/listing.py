"""What there is, and what a run would do: registry, rules, kernels, the plan of a suite.

Text for people fits 100 columns; ``--json`` prints one JSON document and nothing else.
"""

import json
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinstorm import needs, suite
from pinstorm.needs import Survey, Unmet
from pinstorm.report.table import PLAIN_WIDTH, Hanging
from pinstorm.rules import RULES, Bound, Release, Rule
from pinstorm.units import format_bytes, format_seconds
from workloads import MEMORY, WORKLOADS, memory_spec, workload_spec
from workloads.spec import Case, MemorySpec, Planned, WorkloadSpec

# One workload and one memory that need nothing: beside them a case shows the other's needs alone.
_NEEDLESS_WORKLOAD = "vmsplice"
_NEEDLESS_MEMORY = "anon"

# Rough seconds a case of configs/quick.toml, on two cores that others used too (load 2 to 3). Host:
# the mean of one run of 32 cases. Guests under emulation: the means of runs on 6.1, 6.12 and 7.2
# were 0.15 to 1.2 s, and the rest of a boot 15 to 45 s; the figures here lie between.
HOST_CASE_S = 0.16
LAB_CASE_S = 0.6
LAB_BOOT_S = 30.0

_FIGURES = ("acquired", "held", "vmpin_bytes", "migrate_success", "migrate_fail")
_SYMBOLS = (
    ("pages", "the case's size in pages of 4 KiB"),
    ("folios", "the folios that the size touches"),
    ("bytes", "the size in whole pages, in bytes"),
    ("folio-bytes", "the same in whole folios"),
)


# pinstorm list


def show_registry(device: str | None, scratch: Sequence[Path], as_json: bool) -> None:
    """Workloads, memories and suites, what each needs and whether this machine has it."""
    survey = _survey(device, scratch)
    registry = _registry(survey)
    if as_json:
        _print_json(registry)
        return
    _print(
        _about(registry),
        "",
        _table(
            ("workload", "pin class", "here", "needs", "what it does"),
            [
                (w["name"], w["pin_class"], _yes(w["met"]), ", ".join(w["needs"]), w["summary"])
                for w in registry["workloads"]
            ],
        ),
        "",
        _table(
            ("memory", "backing", "here", "needs", "what it is"),
            [
                (m["name"], m["backing"], _yes(m["met"]), ", ".join(m["needs"]), m["summary"])
                for m in registry["memories"]
            ],
        ),
        "",
        _table(
            ("suite", "cases", "run here", "what it is"),
            [
                (s["name"], str(s["cases"]), str(s["runnable"]), s["summary"])
                for s in registry["suites"]
            ],
            right=("cases", "run here"),
        ),
        "",
        *_remedies(registry["unmet"]),
    )


def _survey(device: str | None, scratch: Sequence[Path]) -> Survey:
    # Here, not above: show_rules and show_kernels start no process.
    from pinstorm.spawn import Zygote
    from telemetry import kmsg

    log = kmsg.KernelLog.open()
    zygote = Zygote()
    try:
        zygote.warm_up()
        return needs.survey(
            device=device,
            scratch=scratch or needs.default_scratch(),
            capabilities=zygote.capabilities,
            pyverbs_error=zygote.pyverbs_error,
            log=log,
        )
    finally:
        zygote.close()
        if log is not None:
            log.close()


def _registry(survey: Survey) -> dict[str, Any]:
    workloads = [_workload_entry(spec, survey) for spec in WORKLOADS]
    memories = [_memory_entry(spec, survey) for spec in MEMORY]
    suites = [_suite_entry(path, survey) for path in suite.shipped()]
    unmet = {code: entry for spec in workloads + memories for code, entry in spec["unmet"].items()}
    return {
        "kernel": platform.release(),
        "device": survey.around.device,
        "scratch": dict(survey.around.scratch),
        "workloads": [{**entry, "unmet": list(entry["unmet"])} for entry in workloads],
        "memories": [{**entry, "unmet": list(entry["unmet"])} for entry in memories],
        "suites": suites,
        "unmet": [entry.to_json() for entry in unmet.values()],
    }


def _workload_entry(spec: WorkloadSpec, survey: Survey) -> dict[str, Any]:
    params = {"size_bytes": memory_spec(_NEEDLESS_MEMORY).granule_bytes, **spec.defaults}
    unmet = survey.unmet(Case(spec.name, _NEEDLESS_MEMORY, params))
    return {
        "name": spec.name,
        "summary": spec.summary,
        "pin_class": spec.pin_class,
        "scope": spec.scope,
        "params": list(spec.params),
        "defaults": dict(spec.defaults),
        "needs": [need.value for need in spec.needs],
        "met": not unmet,
        "unmet": {entry.code: entry for entry in unmet},
    }


def _memory_entry(spec: MemorySpec, survey: Survey) -> dict[str, Any]:
    unmet = survey.unmet(Case(_NEEDLESS_WORKLOAD, spec.name, {"size_bytes": spec.granule_bytes}))
    return {
        "name": spec.name,
        "summary": spec.summary,
        "backing": spec.backing,
        "shared": spec.shared,
        "granule_bytes": spec.granule_bytes,
        "fresh_each_cycle": spec.fresh_each_cycle,
        "guest_shape": spec.shape,
        "needs": [need.value for need in spec.needs],
        "met": not unmet,
        "unmet": {entry.code: entry for entry in unmet},
    }


def _suite_entry(path: Path, survey: Survey) -> dict[str, Any]:
    loaded = suite.load(path)
    cases = suite.expand(loaded).cases
    return {
        "name": path.stem,
        "path": str(path),
        "summary": _first_comment(loaded.text),
        "rounds": loaded.rounds,
        "cases": len(cases),
        "runnable": sum(not survey.unmet(case) for case in cases),
    }


def _first_comment(text: str) -> str:
    """The first line of a suite, when it is a comment: what the suite is for."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _about(registry: Mapping[str, Any]) -> Text:
    scratch = ", ".join(f"{kind} {path}" for kind, path in registry["scratch"].items()) or "none"
    return Text(
        f"kernel   {registry['kernel']}\n"
        f"device   {registry['device'] or 'none'}\n"
        f"scratch  {scratch}"
    )


def _yes(met: bool) -> Text:
    return Text("yes", style="green") if met else Text("no", style="red")


def _remedies(unmet: Sequence[Mapping[str, str]]) -> list[RenderableType]:
    if not unmet:
        return [Text("every need is met here")]
    lines: list[RenderableType] = [Text("not here", style="bold")]
    return lines + [
        Hanging("  ", f"{entry['code']}: {entry['detail']}; {entry['remedy']}") for entry in unmet
    ]


# pinstorm list --rules


def show_rules(as_json: bool) -> None:
    """Every rule of the oracle with what it demands and where that is written."""
    if as_json:
        _print_json([_rule_entry(rule) for rule in RULES])
        return
    parts: list[RenderableType] = [
        Text(
            "Of the rules that fit a case and a kernel, those of the kernel's earliest check win,\n"
            "then the one with the most conditions. Leaked and orphaned must always be 0."
        ),
        "",
        *[Text(f"  {symbol:<12} {words}") for symbol, words in _SYMBOLS],
    ]
    for pin_class in dict.fromkeys(rule.pin_class for rule in RULES):
        group = [rule for rule in RULES if rule.pin_class == pin_class]
        parts += ["", Text(f"pin class {pin_class}: {len(group)} rules", style="bold underline")]
        for rule in group:
            parts += ["", *_rule_lines(rule)]
    _print(*parts)


def _rule_lines(rule: Rule) -> list[RenderableType]:
    figures = [("acquired", rule.acquired), ("held", rule.held), ("VmPin", rule.vmpin_bytes)]
    figures += [("migrated", rule.migrate_success), ("not migrated", rule.migrate_fail)]
    expected = [f"{name} {bound_words(bound)}" for name, bound in figures if bound_words(bound)]
    lines = [
        ("", rule.name),
        ("  cases    ", ", ".join(f"{k} {_value(v)}" for k, v in rule.when.items())),
        ("  kernels  ", f"{kernel_words(rule.since, rule.until)}; {_CHECKS[rule.check.name]}"),
        ("  expect   ", "; ".join([" or ".join(rule.outcomes), *expected])),
        ("  because  ", rule.why),
        ("  source   ", rule.source + (" (observed)" if rule.observed else "")),
    ]
    return [
        Text(text, style="bold") if not head else Hanging(head, text, indent=len(head))
        for head, text in lines
        if text
    ]


_CHECKS = {
    "ARGUMENTS": "decided by the arguments",
    "MAPPING": "decided by the mapping",
    "PAGES": "decided by where the pages lie",
    "ACCOUNTING": "decided after pinning, by the accounting",
    "DONE": "nothing refuses",
}


def kernel_words(since: Release | None, until: Release | None) -> str:
    """``6.5 and later``, ``before 6.3``, ``6.3 up to 6.12 (not in it)``, ``every kernel``."""
    first = ".".join(map(str, since or ()))
    last = ".".join(map(str, until or ()))
    if first and last:
        return f"{first} and later, before {last}"
    if first:
        return f"{first} and later"
    return f"before {last}" if last else "every kernel"


def bound_words(bound: Bound) -> str:
    """``pages``, ``0 to pages``, ``at least 2 x pages``; empty when anything goes."""
    low, high = (
        "" if amount is None else str(amount).replace("twice-", "2 x ")
        for amount in (bound.low, bound.high)
    )
    if low == high:
        return low
    if not high:
        return f"at least {low}"
    return f"{low} to {high}" if low else f"at most {high}"


def _value(value: Any) -> str:
    if isinstance(value, frozenset):
        return " or ".join(sorted(str(one).lower() for one in value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rule_entry(rule: Rule) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": rule.name,
        "pin_class": rule.pin_class,
        "check": rule.check.name.lower(),
        "when": {
            name: sorted(map(str, value)) if isinstance(value, frozenset) else value
            for name, value in rule.when.items()
        },
        "since": ".".join(map(str, rule.since)) if rule.since else None,
        "until": ".".join(map(str, rule.until)) if rule.until else None,
        "outcomes": list(rule.outcomes),
    }
    for figure in _FIGURES:
        bound: Bound = getattr(rule, figure)
        entry[figure] = {"low": bound.low, "high": bound.high}
    return {**entry, "source": rule.source, "observed": rule.observed, "why": rule.why or None}


# pinstorm lab kernels


def show_kernels(refresh: bool, as_json: bool) -> None:
    """The kernels that the lab can boot; ``refresh`` asks the mirror what there is."""
    from pinstorm.lab import kernels

    known = kernels.available() if refresh else kernels.cached()
    if as_json:
        _print_json([asdict(kernel) for kernel in known])
        return
    rows = [(k.name, k.release or "not asked yet", _yes(k.cached)) for k in known]
    parts: list[RenderableType] = [_table(("name", "release", "in the cache"), rows)]
    if not refresh and not all(kernel.cached for kernel in known):
        parts += ["", Text("a run fetches what is missing; --refresh asks the mirror what it has")]
    _print(*parts)


# --dry-run


def show_plan(
    plan: Sequence[Planned],
    unmet: Mapping[int, Sequence[Unmet]],
    as_json: bool,
    *,
    lab: bool = False,
) -> None:
    """What a run would do, in its order: cases, needs unmet, pins, expected time.

    ``lab``: it would run in guests, whose needs are known only once they have booted.
    """
    if as_json:
        _print_json(_plan_entry(plan, unmet, lab))
        return
    rounds = len({planned.round for planned in plan})
    rows: list[tuple[str | Text, ...]] = []
    for planned in plan:
        codes = ", ".join(entry.code for entry in unmet.get(planned.seq, ()))
        rows.append(
            (
                str(planned.seq),
                planned.case.id,
                str(pinned_pages(planned.case)),
                str(planned.case.repeat),
                Text(f"skip: {codes}" if codes else "run", style="dim" if codes else "green"),
            )
        )
    figures = ("pins\npages", "timed\ncycles")
    if lab:
        rows = [row[:-1] for row in rows]
    header = ("seq", "case", *figures) if lab else ("seq", "case", *figures, "here")
    parts: list[RenderableType] = [_table(header, rows, right=("seq", *figures))]
    parts += ["", Text(_plan_summary(plan, unmet, rounds), style="bold")]
    found = {entry.code: entry for entries in unmet.values() for entry in entries}
    counts = Counter(entry.code for entries in unmet.values() for entry in entries)
    parts += [
        Hanging(f"  {count} skip: {code}", f" ({found[code].detail}; {found[code].remedy})")
        for code, count in counts.most_common()
    ]
    if lab:
        parts.append(Text("what a guest lacks is known once it has booted; it is skipped then"))
    parts.append(Text(f"most pinned at a time: {format_bytes(_peak_bytes(plan, unmet))}"))
    parts += [Hanging("", _time_words(plan, unmet, lab))]
    _print(*parts)


def pinned_pages(case: Case) -> int:
    """The pages that the case asks the kernel to pin at a time; 0 where its class takes no pin."""
    takes_pins = workload_spec(case.workload).pin_class in ("pin", "pin-longterm")
    return case.pages if takes_pins else 0


def expected_s(cases: Iterable[Case], lab: bool) -> float:
    """A guess at the seconds of cases that run one after the other, without boots."""
    each_s = LAB_CASE_S if lab else HOST_CASE_S
    return sum(each_s + case.hold_s for case in cases)


def _will_run(plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]]) -> list[Case]:
    return [planned.case for planned in plan if not unmet.get(planned.seq)]


def _boots(plan: Sequence[Planned]) -> int:
    return len({memory_spec(planned.case.memory).shape for planned in plan})


def _peak_bytes(plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]]) -> int:
    """What the budget is held against: the mapped size of the largest case that pins."""
    sizes = [
        memory_spec(case.memory).mapped_bytes(case.size_bytes)
        for case in _will_run(plan, unmet)
        if pinned_pages(case)
    ]
    return max(sizes, default=0)


def _plan_summary(
    plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]], rounds: int
) -> str:
    running = len(_will_run(plan, unmet))
    words = f"{len(plan)} {'case' if len(plan) == 1 else 'cases'}"
    words += f" in {rounds} rounds" if rounds > 1 else ""
    skipped = len(plan) - running
    return f"{words}: {running} would run" + (f", {skipped} would be skipped" if skipped else "")


def _time_words(plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]], lab: bool) -> str:
    cases = _will_run(plan, unmet)
    at_most_s = sum(case.deadline_s for case in cases)
    where = "in guests under emulation, 0.15 to 1.2 s seen" if lab else "on a host"
    each_s = LAB_CASE_S if lab else HOST_CASE_S
    total_s = expected_s(cases, lab)
    boots = ""
    if lab:
        total_s += _boots(plan) * LAB_BOOT_S
        shapes = "one guest shape" if _boots(plan) == 1 else f"each of {_boots(plan)} guest shapes"
        boots = f", and a boot of {LAB_BOOT_S:.0f} s for {shapes}"
    return (
        f"expected time: about {format_seconds(total_s)} (roughly: {len(cases)} x "
        f"{each_s} s, as the quick suite took on a busy 2-core machine {where}; their holds"
        f"{boots}; large cases take longer); their deadlines allow {format_seconds(at_most_s)}"
    )


def _plan_entry(
    plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]], lab: bool
) -> dict[str, Any]:
    cases = _will_run(plan, unmet)
    boots_s = _boots(plan) * LAB_BOOT_S if lab else 0.0
    return {
        "cases": [
            {
                "seq": planned.seq,
                "round": planned.round,
                "case": planned.case.id,
                "pins_pages": pinned_pages(planned.case),
                "repeat": planned.case.repeat,
                "hold_s": planned.case.hold_s,
                "deadline_s": planned.case.deadline_s,
                "unmet": [entry.to_json() for entry in unmet.get(planned.seq, ())],
            }
            for planned in plan
        ],
        "would_run": len(cases),
        "peak_pinned_bytes": _peak_bytes(plan, unmet),
        "expected_s": round(expected_s(cases, lab) + boots_s, 3),
        "deadlines_s": sum(case.deadline_s for case in cases),
    }


# How it is printed.


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[str] = ()
) -> Table:
    """The last column may go on on the next line, no other."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in header:
        table.add_column(
            Text(title, style="bold"),
            justify="right" if title in right else "left",
            no_wrap=title != header[-1] or title in right,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*[cell if isinstance(cell, Text) else Text(cell) for cell in row])
    return table


def _print(*parts: RenderableType) -> None:
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(Group(*parts), crop=False)
    # rich fills the last column with blanks, which whoever copies a line gets too
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))
