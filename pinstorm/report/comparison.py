"""A comparison on the terminal: what changed first, then what cannot be told. Fits 100 columns."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pinstorm import compare
from pinstorm.compare import Comparison, gate
from pinstorm.compare.change import Foreseen
from pinstorm.compare.pairing import Side
from pinstorm.compare.timing import RATE, Timing
from pinstorm.report.paragraph import Hanging, Harmless
from pinstorm.report.sheet import print_parts, sheet
from pinstorm.units import format_ns

# Of what is alike so many are shown; --wide shows all.
SHOWN: Final = 4
SHOWN_TIMES: Final = 40
SHOWN_DIFFERENCES: Final = 14
STYLES: Final = {"faster": "green", "slower": "bold red", "broken": "bold red", "kept": "green"}

_NOT_TOLD: Final = {
    "few-rounds": "want {wanted} rounds on each side, there {are}: run with --rounds {wanted}",
    "one-run": "are fewer than 9 with one run a side, so that nothing tells the case from the "
    "machine: run them among others, or several times, and give the directories",
    "wide": "vary so much that the interval reaches over the margin: more rounds make it narrower",
}


def show(result: Comparison, *, wide: bool = False) -> None:
    """Print it; ``wide``: every case, and times that did not change, too."""
    print_parts(Harmless(Group(*_parts(result, wide))))


def _parts(result: Comparison, wide: bool) -> list[RenderableType]:
    parts = [
        *_head(result, wide),
        *_verdicts(result),
        *_outcomes(result, wide),
        *_pins(result, wide),
        *_times(result, wide),
        *_gates(result),
    ]
    if not result.changed:
        parts += ["", Text(unchanged(result), style="bold")]
    return parts


def unchanged(result: Comparison) -> str:
    """``nothing changed``, and what that is not said of."""
    untold = result.timings.counts()["can't tell"]
    words = f", as far as can be told: not of {untold} times" if untold else ""
    return f"nothing changed{words}"


def side_words(side: Side) -> str:
    """``runs/x: kernel 6.1.0, kvm, 2 runs of 10 rounds``."""
    count = len(side.manifests)
    runs = f"{count} runs of " if count > 1 else ""
    rounds = "1 round" if side.rounds == 1 else f"{side.rounds} rounds"
    accel = "/".join(side.accels) + (" (emulated)" if side.emulated else "")
    return f"{side.given}: kernel {', '.join(side.kernels)}, {accel}, {runs}{rounds}"


def _head(result: Comparison, wide: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Hanging(f"{side.name}  ", side_words(side)) for side in (result.a, result.b)
    ]
    for side in (result.a, result.b):
        parts += [Hanging("   ", f"{side.name}: {note}") for note in side.notes]
    differences = result.environment
    if differences:
        parts += ["", Text("not the same around them, A -> B", style="bold")]
        parts += [
            Hanging(f"  {one.what}  ", f"{one.a} -> {one.b}")
            for one in differences[: None if wide else SHOWN_DIFFERENCES]
        ]
        parts += _more(len(differences), SHOWN_DIFFERENCES, wide)
    parts += ["", Text(coverage_words(result))]
    for name, cases in result.only.items():
        if cases:
            parts.append(_cases(f"  only in {name} ({len(cases)})  ", cases, wide))
    for side in (result.a, result.b):
        reasons = Counter(str(one.reason) for one in result.not_run if one.side == side.name)
        for reason, count in reasons.most_common():
            words = f"{count} not run in {side.name}, run in the other: {reason}"
            parts.append(Hanging("  ", words))
    return parts


def coverage_words(result: Comparison) -> str:
    """``719 cases in both, of which 547 ran on both sides``."""
    count = len(result.labels)
    cases = "1 case" if count == 1 else f"{count} cases"
    return f"{cases} in both, of which {result.ran} ran on both sides"


def _verdicts(result: Comparison) -> list[RenderableType]:
    style = "bold red" if result.flips else "bold"
    parts: list[RenderableType] = ["", Text(verdict_summary(result), style=style)]
    for one in sorted(result.verdicts, key=lambda one: not one.flipped):
        reason = f" ({one.reason})" if one.reason else ""
        words = f"{compare.counts(one.before)} -> {compare.counts(one.after)}{reason}"
        kind = "" if one.flipped else "unsteady: "
        parts.append(Hanging("  ", f"{kind}{result.labels[one.index]}  {words}"))
    return parts


def verdict_summary(result: Comparison) -> str:
    """``verdicts: no flip, 2 unsteady``."""
    flips, unsteady = len(result.flips), len(result.verdicts) - len(result.flips)
    words = f"{flips} flipped" if flips else "no change" if not unsteady else "no flip"
    return f"verdicts: {words}" + (f", {unsteady} unsteady" if unsteady else "")


def _outcomes(result: Comparison, wide: bool) -> list[RenderableType]:
    parts: list[RenderableType] = ["", Text(outcome_summary(result), style="bold")]
    titles = (
        ("unpredicted", "NO RULE PREDICTS", "bold red"),
        ("predicted", "the rules predict", ""),
        ("either", "a rule leaves open", ""),
    )
    for said, title, style in titles:
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for one in result.outcomes:
            if one.said == said:
                key = compare.outcome_words(one), one.rules
                groups.setdefault(key, []).append(result.labels[one.index])
        for (words, rules), cases in groups.items():
            by = f" by {', '.join(rules)}" if rules else ""
            parts.append(Text(f"  {title}: {words} ({len(cases)}){by}", style=style))
            parts += [Hanging("    ", case) for case in (cases if wide else cases[:SHOWN])]
            parts += _more(len(cases), SHOWN, wide)
    for lacking in result.unseen:
        words = f"  PREDICTED, NOT SEEN: {result.labels[lacking.index]}: {foreseen_words(lacking)}"
        parts.append(Text(words, style="bold red"))
    for why, title in (
        ("open", "may change by a rule, and did not"),
        ("not-run", "predicted, not run on both sides"),
    ):
        cases = [result.labels[one.index] for one in result.foreseen if one.why == why]
        if cases:
            parts.append(_cases(f"  {title} ({len(cases)}): ", cases, wide))
    return parts


def outcome_summary(result: Comparison) -> str:
    """``outcomes: 39 changed: 34 as the rules predict, 5 as a rule leaves open, 0 unpredicted``."""
    counts = Counter(one.said for one in result.outcomes)
    if not result.outcomes:
        words = "no change"
    else:
        words = (
            f"{len(result.outcomes)} changed: {counts['predicted']} as the rules predict, "
            f"{counts['either']} as a rule leaves open, {counts['unpredicted']} unpredicted"
        )
    unseen = f"; {len(result.unseen)} predicted and not seen" if result.unseen else ""
    return f"outcomes: {words}{unseen}"


def foreseen_words(one: Foreseen) -> str:
    """``ok -> EFAULT by longterm-write-file; seen ok``."""
    said = f"{' or '.join(one.before)} -> {' or '.join(one.after)} by {', '.join(one.rules)}"
    return f"{said}; seen {', '.join(one.seen) or 'nothing'}"


def _pins(result: Comparison, wide: bool) -> list[RenderableType]:
    parts: list[RenderableType] = ["", Text(f"pins: {pin_summary(result)}", style="bold")]
    groups: dict[str, list[str]] = {}
    for one in result.pins:
        groups.setdefault(compare.pin_words(one), []).append(result.labels[one.index])
    for words, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        parts.append(_cases(f"  {words} ({len(names)}): ", names, wide))
    return parts


def pin_summary(result: Comparison) -> str:
    """``no change``, and of how many cases that is said where it is not of all."""
    known = len(result.with_pins)
    if not known:
        return "not compared: no figures on both sides that the counters vouch for"
    changed = len({one.index for one in result.pins})
    words = f"{len(result.pins)} figures of {changed} cases changed" if changed else "no change"
    cases = "1 case" if known == 1 else f"{known} cases"
    left = "" if known >= result.ran else f", of {cases} with figures on both sides"
    return f"{words}{left}"


def _times(result: Comparison, wide: bool) -> list[RenderableType]:
    timings = result.timings
    if timings.refused:
        return ["", Text(f"times: not compared: {timings.refused}", style="bold")]
    parts: list[RenderableType] = ["", Text(time_summary(result), style="bold")]
    parts += [Hanging("  ", words) for words in time_notes(result)]
    told = [t for t in timings.all if wide or t.verdict in ("faster", "slower")]
    if told:
        told = sorted(told, key=lambda t: (t.verdict not in ("faster", "slower"), -t.ratio))
        shown = told if wide else told[:SHOWN_TIMES]
        parts += ["", _time_table(result, shown)]
        parts += _more(len(told), SHOWN_TIMES, wide)
    return parts


def time_summary(result: Comparison) -> str:
    """``times: 3 slower, 1 faster, 40 same, 6 can't tell``."""
    counts = result.timings.counts()
    words = [f"{counts[v]} {v}" for v in ("slower", "faster", "same", "can't tell")]
    emulated = ", emulated" if result.emulated else ""
    margin = f"{100 * result.timings.margin:g}"
    return f"times{emulated}: {', '.join(words)} (margin {margin} %)"


def time_notes(result: Comparison) -> list[str]:
    """What all cases share, and why what cannot be told cannot be told."""
    timings, notes = result.timings, []
    for measure, common in timings.common.items():
        if abs(common.ratio - 1) < timings.margin / 2 and not common.attributed:
            continue
        words = f"all {common.cases} cases together, {measure}: {gate.percent(common.ratio)}"
        if common.low is not None and common.high is not None:
            words += f" ({gate.percent(common.low)} to {gate.percent(common.high)} between runs)"
        if common.attributed:
            notes.append(f"{words}: more than runs of one side differ")
        else:
            notes.append(
                f"{words}: another CPU frequency or a busy machine does that as well, "
                "so a case is called only with it and without it"
            )
    reasons = Counter(timing.why for timing in timings.all if timing.why)
    for why, count in reasons.items():
        rounds = [timing.rounds for timing in timings.all if timing.why == why]
        fewest = min(map(min, rounds))
        words = _NOT_TOLD[str(why)].format(
            wanted=timings.rounds_wanted, are=f"is {fewest}" if fewest == 1 else f"are {fewest}"
        )
        notes.append(f"can't tell: these {count} figures {words}")
    notes += [f"not compared: {count} cases {why}" for why, count in timings.left_out.items()]
    return notes


def _time_table(result: Comparison, timings: Sequence[Timing]) -> RenderableType:
    emulated = " emulated" if result.emulated else ""
    header = ("verdict", "figure", f"A{emulated}", f"B{emulated}", "B to A", "interval", "case")
    rows = [
        (
            Text(timing.verdict, style=STYLES.get(timing.verdict, "")),
            *time_cells(timing),
            case_name(result, timing),
        )
        for timing in timings
    ]
    return sheet(header, rows, right=("B to A",))


def time_cells(timing: Timing) -> tuple[str, str, str, str, str]:
    """Figure, A, B, ratio and interval as people read them."""
    words: Callable[[float], str] = format_ns
    if timing.measure == RATE:
        words = "{:.4g}/s".format
    interval = "-"
    if timing.low is not None and timing.high is not None:
        interval = f"{gate.percent(timing.low)} to {gate.percent(timing.high)}".replace(
            " % to", " to"
        )
    return (
        timing.measure.removesuffix(".median"),
        words(timing.a),
        words(timing.b),
        gate.percent(timing.ratio),
        interval,
    )


def case_name(result: Comparison, timing: Timing) -> str:
    """The case, of a load with its job."""
    job = f" [{timing.job}]" if timing.job is not None else ""
    return f"{result.labels[timing.index]}{job}"


def _gates(result: Comparison) -> list[RenderableType]:
    if not result.gates:
        return []
    parts: list[RenderableType] = ["", Text("gates", style="bold")]
    for judged in result.gates:
        parts.append(
            Text.assemble(
                "  ", (judged.state, STYLES.get(judged.state, "yellow")), f"  {judged.gate.text}"
            )
        )
        parts += [Hanging("    ", words) for words in gate_notes(judged)]
    return parts


def gate_notes(judged: gate.Judged) -> list[str]:
    """By which cases it is broken, and of how many it cannot tell."""
    notes = [f"{one.case} {one.how}" for one in judged.broken[: SHOWN * 2]]
    if len(judged.broken) > SHOWN * 2:
        notes.append(f"and {len(judged.broken) - SHOWN * 2} more")
    if judged.why is not None:
        notes.append(f"cannot tell of {judged.untold} of {judged.of}: {judged.why}")
    return notes


def _cases(head: str, cases: Sequence[str], wide: bool) -> RenderableType:
    shown = cases if wide else cases[:SHOWN]
    more = f", and {len(cases) - SHOWN} more" if len(cases) > len(shown) else ""
    return Hanging(head, ", ".join(shown) + more)


def _more(count: int, shown: int, wide: bool) -> list[RenderableType]:
    if wide or count <= shown:
        return []
    return [Text(f"    and {count - shown} more: --wide", style="dim")]
