"""docs/cases.md: the five cases of pin_user_pages.rst as kernels were seen to handle them.

From the bundles of one lab run over several kernels: for each workload the entry points of GUP and
the flags at its call site, then the cells in which the kernels differ and the rules that say so.
Nothing that changes from run to run is in it: no times, no paths, no figures that rules leave open.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from pinstorm import oracle, prediction, verdict
from pinstorm.bundle import Bundle
from pinstorm.conformance import NOT_THE_CASE
from pinstorm.lab.debian import release_order
from pinstorm.load_case.judgement import is_load
from pinstorm.prediction import Step
from pinstorm.report import reason
from pinstorm.report.reason import Record
from pinstorm.report.rule_listing import kernel_words
from pinstorm.rules import RULES
from pinstorm.rules.rule import Rule
from workloads import WORKLOADS, workload_spec
from workloads.spec import Case, Need

_CASES: Final = {
    1: "Direct IO",
    2: "RDMA, and every other long-term pin",
    3: "MMU notifiers: nothing is pinned",
    4: "struct page only: FOLL_GET or nothing",
    5: "page data: pinned inside the call",
    0: "the kernel's own test of GUP, mode by mode",
}
# What the functions behind an entry point add, and what the five cases are about.
_KINDS: Final = ("FOLL_GET", "FOLL_PIN")
_RAN: Final = frozenset({"pass", "fail"})
_FIGURES: Final = ("acquired", "held", "vmpin_bytes", "vmlck_bytes")
_WORDS: Final = {"vmpin_bytes": "VmPin", "vmlck_bytes": "VmLck"}

Runs = Mapping[str, Sequence[Record]]


def text(bundles: Sequence[Bundle]) -> str:
    """The document, in Markdown."""
    runs = {
        reason.kernel_of(bundle): [r for r in bundle.records if _has_cell(r)] for bundle in bundles
    }
    runs = {kernel: runs[kernel] for kernel in sorted(runs, key=release_order)}
    suites = sorted({str((b.manifest.get("suite") or {}).get("name")) for b in bundles})
    lines = [
        f"<!-- pinstorm report RUN --format cases --output docs/cases.md; RUN is what pinstorm lab"
        f" run {' '.join(suites)} --kernel all --gup-test --out RUN wrote -->",
        "",
        "# The five cases, seen",
        "",
        "`Documentation/core-api/pin_user_pages.rst` says which flags a call site of the kernel has"
        " to pass. This is what they passed, seen by probes on the running kernels: the functions"
        " with the flags at the call site, and behind the arrow what GUP made of them. `FOLL_` is"
        " left out. A call counts only when the workload's own process, or a kernel thread, made it"
        " in *acquire*.",
        *_seen_tables(runs),
        *_outcome_tables(runs),
        *_figure_tables(runs),
        *_set_tables(runs),
        *_rule_table(runs),
    ]
    return "\n".join(lines) + "\n"


def _has_cell(record: Record) -> bool:
    """A load is several jobs at once; and of a workload of somebody's own nothing is known."""
    known = any(spec.name == record.get("workload") for spec in WORKLOADS)
    return known and isinstance(record.get("params"), Mapping) and not is_load(record)


def case_number(workload: str, params: Mapping[str, Any]) -> int:
    """Which of the five cases a workload belongs to; 0: the kernel's own GUP test."""
    spec = workload_spec(workload)
    if "mode" in params:
        return 0
    if spec.pin_class == "pin-longterm" or params.get("registered"):
        return 2
    if spec.pin_class in ("none", "get"):
        return 3 if spec.pin_class == "none" else 4
    return 1 if Need.TARGET_DIO in spec.needs else 5


def _seen_tables(runs: Runs) -> list[str]:
    found: dict[tuple[int, int, str], dict[str, list[Record]]] = {}
    for kernel, records in runs.items():
        for record in records:
            if record["verdict"] in _RAN:
                by_kernel = found.setdefault(_row_of(record), {})
                by_kernel.setdefault(kernel, []).append(record)
    lines: list[str] = []
    for number, title in _CASES.items():
        rows = {key: value for key, value in found.items() if key[0] == number}
        if not rows:
            continue
        name = f"CASE {number}: {title}" if number else title[:1].upper() + title[1:]
        lines += ["", f"## {name}", "", *_head("workload", *runs)]
        for key in sorted(rows):
            cells = [_calls_cell(rows[key].get(kernel)) for kernel in runs]
            lines.append(_line(f"`{key[2]}`", *cells))
    return lines


def _row_of(record: Record) -> tuple[int, int, str]:
    """A line of the first tables: its CASE, the workload's place in the registry, and its name."""
    params, workload = record["params"], record["workload"]
    order = [spec.name for spec in WORKLOADS].index(workload)
    words = [workload]
    words += [f"{key}={params[key]}" for key in ("access", "mode") if key in params]
    words += ["registered"] if params.get("registered") else []
    return case_number(workload, params), order, " ".join(words)


def _calls_cell(records: Sequence[Record] | None) -> str:
    """Every function with its flags that any of the cases was seen to call."""
    if records is None:
        return "not run"
    traced = [record["gup_calls"] for record in records if record.get("gup_calls") is not None]
    if not traced:
        return "not traced"
    calls = [c for seen in traced for c in seen if _counts(c)]
    entries = {_call_words(call, calls) for call in calls if not call.get("via")}
    if not entries and all(record["params"].get("registered") for record in records):
        return "nothing called (pinned in prepare)"
    return "<br>".join(sorted(entries)) or "nothing called"


def _counts(call: Mapping[str, Any]) -> bool:
    return call.get("phase") in (None, "acquire") and call.get("caller") not in NOT_THE_CASE


def _call_words(call: Mapping[str, Any], calls: Iterable[Mapping[str, Any]]) -> str:
    """``pin_user_pages_fast`` LONGTERM WRITE → PIN."""
    behind = {
        flag
        for other in calls
        if other.get("via") == call["function"]
        for flag in other.get("flags") or ()
        if flag in _KINDS
    }
    words = [f"`{call['function']}`", *sorted(_short(f) for f in call.get("flags") or ())]
    if behind:
        words += ["→", *sorted(_short(flag) for flag in behind)]
    if call.get("by") not in (None, "process"):
        words.append("(kernel thread)")
    return " ".join(words)


def _short(flag: str) -> str:
    return flag.removeprefix("FOLL_")


def _outcome_tables(runs: Runs) -> list[str]:
    """The cells whose outcome is not the same on all kernels that ran them."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for case, by_kernel in _cells(runs).items():
        outcomes = [_outcome(by_kernel.get(kernel)) for kernel in runs]
        ran = [record for record in by_kernel.values() if record["verdict"] in _RAN]
        if len({record["outcome"] for record in ran}) > 1:
            groups.setdefault((*outcomes, _said_by(by_kernel)), []).append(case)
    if not groups:
        return ["", "## Outcomes that differ", "", "None: every cell ended alike on every kernel."]
    lines = ["", "## Outcomes that differ", "", *_head("cells", *runs, "the rules that say so")]
    for key in sorted(groups, key=lambda key: groups[key]):
        cells = "<br>".join(f"`{case}`" for case in sorted(groups[key]))
        lines.append(_line(cells, *key))
    return lines


def _cells(runs: Runs) -> dict[str, dict[str, Record]]:
    """Case -> kernel -> its record, where more than one kernel has the case."""
    found: dict[str, dict[str, Record]] = {}
    for kernel, records in runs.items():
        for record in records:
            found.setdefault(record["case"], {})[kernel] = record
    return {case: found[case] for case in sorted(found) if len(found[case]) > 1}


def _outcome(record: Record | None) -> str:
    if record is None:
        return "-"
    return str(record["outcome"]) if record["verdict"] in _RAN else str(record["verdict"])


def _said_by(by_kernel: Mapping[str, Record]) -> str:
    """The rules that make the difference, between each kernel and the next that ran the case."""
    ran = [record for record in by_kernel.values() if record["verdict"] in _RAN]
    names: dict[str, None] = {}
    for one, other in pairwise(ran):
        if one["outcome"] == other["outcome"]:
            continue
        found = _steps(one, other)
        allowed = {o for r in (one, other) for o in (r.get("expected") or {}).get("outcomes") or ()}
        if not found and {one["outcome"], other["outcome"]} <= allowed:
            found_names = [str(r["expected"]["rule"]) for r in (one, other)]
        else:
            found_names = [step.rule.name for step in found]
        names |= dict.fromkeys(found_names or ["no rule says so"])
    return ", ".join(names)


def _steps(one: Record, other: Record) -> list[Step]:
    case = Case(one["workload"], one["memory"], one["params"])
    return prediction.steps(case, _release(one), _release(other), verdict.machine_of(one))


def _release(record: Record) -> str:
    kernel = oracle.parse_kernel(record["kernel"], record.get("kernel_version") or "")
    return ".".join(map(str, kernel.release))


def _figure_tables(runs: Runs) -> list[str]:
    """The cells that end alike and whose figures are other ones: where rules give one number."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for case, by_kernel in _cells(runs).items():
        ran = {k: r for k, r in by_kernel.items() if r["verdict"] in _RAN}
        names = _differing(ran.values())
        if len({r["outcome"] for r in ran.values()}) == 1 and names:
            shown = [
                _figures(ran[kernel], names) if kernel in ran else _outcome(by_kernel.get(kernel))
                for kernel in runs
            ]
            said = ", ".join(dict.fromkeys(str(r["expected"]["rule"]) for r in ran.values()))
            groups.setdefault((*shown, said), []).append(case)
    if not groups:
        return []
    lines = ["", "## Figures that differ", ""]
    lines += [
        "Figures that a rule says exactly on each kernel, of cells with the same outcome.",
        "",
    ]
    lines += _head("cells", *runs, "the rules that say so")
    for key in sorted(groups, key=lambda key: groups[key]):
        cells = "<br>".join(f"`{case}`" for case in sorted(groups[key]))
        lines.append(_line(cells, *key))
    return lines


def _differing(records: Iterable[Record]) -> list[str]:
    """The figures that are one number on each kernel, and not the same one."""
    expected = [record.get("expected") or {} for record in records]
    values = {name: [said.get(name) for said in expected] for name in _FIGURES}
    return [
        name
        for name, numbers in values.items()
        if all(isinstance(number, int) for number in numbers) and len(set(numbers)) > 1
    ]


def _figures(record: Record, names: Iterable[str]) -> str:
    """``acquired 16 pages, VmPin 64 KiB``."""
    words = []
    for name in names:
        value = record["expected"][name]
        amount = (
            f"{value // 1024} KiB"
            if name.endswith("_bytes")
            else f"{value} {'page' if value == 1 else 'pages'}"
        )
        words.append(f"{_WORDS.get(name, name)} {amount}")
    return ", ".join(words)


def _set_tables(runs: Runs) -> list[str]:
    """The cells of which a rule says that they may end in more than one way, and why."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    ran = [record for records in runs.values() for record in records if record["verdict"] in _RAN]
    for record in ran:
        said = record.get("expected") or {}
        if len(said.get("outcomes") or ()) > 1:
            key = ", ".join(said["outcomes"]), str(said.get("why", ""))
            groups.setdefault(key, {})[record["case"]] = None
    if not groups:
        return []
    count = len({case for cases in groups.values() for case in cases})
    lines = ["", "## Outcomes that depend on more", ""]
    lines += [
        f"{count} of {len({record['case'] for record in ran})} cells have a set of outcomes.",
        "",
    ]
    lines += _head("cells", "outcomes", "what it depends on")
    for key in sorted(groups, key=lambda key: min(groups[key])):
        lines.append(_line("<br>".join(f"`{case}`" for case in sorted(groups[key])), *key))
    return lines


def _rule_table(runs: Runs) -> list[str]:
    """Where the rules of the tables above are written."""
    text = "\n".join(_outcome_tables(runs) + _figure_tables(runs))
    named = {name.strip() for name in text.replace("|", ",").replace("`", "").split(",")}
    used = [rule for rule in RULES if rule.name in named]
    if not used:
        return []
    lines = ["", "## The rules", "", *_head("rule", "kernels", "source")]
    return lines + [_rule_line(rule) for rule in sorted(used, key=lambda rule: rule.name)]


def _rule_line(rule: Rule) -> str:
    source = rule.source + (" (observed)" if rule.observed else "")
    return _line(f"`{rule.name}`", kernel_words(rule.since, rule.until), source)


def _head(*titles: str) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: str) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
