"""Two sides compared: what changed, what cannot be told, and what must not have changed.

A side is a bundle, or a directory with several. docs/comparing.md says how it decides.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pinstorm.compare import change, effect, environment, foretold, gate, pairing, timing
from pinstorm.compare.change import (
    Foreseen,
    NotRun,
    OutcomeChange,
    PinChange,
    VerdictChange,
)
from pinstorm.compare.environment import Difference
from pinstorm.compare.gate import Gate, Judged
from pinstorm.compare.pairing import Paired, Side
from pinstorm.compare.timing import Timings

SCHEMA: Final = 1
MARGIN: Final = effect.MARGIN


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is told of two sides. Changes name cases by their index in ``labels``.

    ``with_pins``: the cases whose pins could be compared.
    """

    a: Side
    b: Side
    labels: list[str]
    only: dict[str, list[str]]
    ran: int
    environment: list[Difference]
    verdicts: list[VerdictChange]
    outcomes: list[OutcomeChange]
    foreseen: list[Foreseen]
    pins: list[PinChange]
    with_pins: set[int]
    not_run: list[NotRun]
    timings: Timings
    gates: list[Judged]

    @property
    def emulated(self) -> bool:
        """Whether the times were measured under emulation, on both sides."""
        return self.a.emulated and self.b.emulated

    @property
    def unpredicted(self) -> list[OutcomeChange]:
        """Outcome changes that no rule accounts for."""
        return [one for one in self.outcomes if one.said == "unpredicted"]

    @property
    def flips(self) -> list[VerdictChange]:
        """Verdicts that flipped; the other changes are of cases that are unsteady."""
        return [one for one in self.verdicts if one.flipped]

    @property
    def unseen(self) -> list[Foreseen]:
        """Outcome changes that had to be, by the rules, and were not."""
        return [one for one in self.foreseen if one.why == "unseen"]

    @property
    def changed(self) -> bool:
        """Whether anything did; a case that a rule leaves open is none."""
        outcomes = [one for one in self.outcomes if one.said != "either"]
        counts = self.timings.counts()
        return bool(self.flips or outcomes or self.pins or counts["faster"] or counts["slower"])

    def to_json(self) -> dict[str, Any]:
        def cases(changes: Sequence[Any]) -> list[dict[str, Any]]:
            return [change.to_json(one, self.labels) for one in changes]

        timings = self.timings
        return {
            "schema": SCHEMA,
            "a": _side(self.a),
            "b": _side(self.b),
            "cases": len(self.labels),
            "ran_on_both": self.ran,
            "changed": self.changed,
            "emulated": self.emulated,
            "only": self.only,
            "environment": [one.to_json() for one in self.environment],
            "verdicts": cases(self.verdicts),
            "outcomes": cases(self.outcomes),
            "foreseen": cases(self.foreseen),
            "pins": cases(self.pins),
            "pins_compared": len(self.with_pins),
            "not_run": cases(self.not_run),
            "timing": {
                "refused": timings.refused,
                "alpha": timings.alpha,
                "margin": timings.margin,
                "comparisons": timings.comparisons,
                "rounds_wanted": timings.rounds_wanted,
                "common": {name: asdict(common) for name, common in timings.common.items()},
                "verdicts": dict(timings.counts()),
                "not_compared": timings.left_out,
            },
            "timings": cases(timings.all),
            "gates": [one.to_json() for one in self.gates],
        }


def compare(
    path_a: Path, path_b: Path, *, margin: float = MARGIN, gates: Sequence[Gate] = ()
) -> Comparison:
    """Compare what lies at two paths. Raises UsageError when they cannot be compared."""
    paired = pairing.pair(path_a, path_b)
    ended = change.endings(paired)
    alike = change.same_outcome(ended)
    differing = [
        index
        for index, sides in ended.items()
        if sides["A"].outcomes != sides["B"].outcomes and sides["A"].ran and sides["B"].ran
    ]
    told = foretold.foretell(paired, differing)
    both = [index for index, sides in ended.items() if sides["A"].ran and sides["B"].ran]
    timings = timing.compare(paired, alike, len(both), margin=margin)
    result = Comparison(
        paired.a,
        paired.b,
        paired.labels,
        paired.only,
        len(both),
        environment.differences(paired),
        change.verdicts(ended),
        change.outcomes(ended, told),
        change.foreseen(ended, told),
        change.pins(paired, ended),
        change.with_pins(paired),
        change.not_run(ended),
        timings,
        [],
    )
    result.gates.extend(_judge(one, result, paired, both) for one in gates)
    return result


def _judge(one: Gate, result: Comparison, paired: Paired, both: Sequence[int]) -> Judged:
    if one.what in gate.FIGURES:
        return _judge_figure(one, result, paired)
    labels = result.labels
    if one.what == gate.CASES:
        ran = [*labels, *paired.ran_only_in_a]
        changes = [(label, f"only in {result.a.given}") for label in paired.ran_only_in_a]
        changes += [
            (labels[n.index], f"not run in {result.b.given}")
            for n in result.not_run
            if n.side == "B"
        ]
        count = sum(map(one.covers, ran))
        return gate.judge_thing(one, changes, count, None if count else one.nothing("both have"))
    changes = []
    untold = None if any(one.covers(labels[i]) for i in both) else one.nothing("ran on both")
    if one.what == gate.VERDICTS:
        worse = [v for v in result.flips if v.worse]
        unsteady = [labels[v.index] for v in result.verdicts if v.worse and not v.flipped]
        if any(map(one.covers, unsteady)):
            untold = untold or f"unsteady: {', '.join(filter(one.covers, unsteady))}"
        changes = [(labels[v.index], f"{counts(v.before)} -> {counts(v.after)}") for v in worse]
    elif one.what == gate.OUTCOMES:
        seen = [o for o in result.outcomes if o.said != "either"]
        changes = [(labels[o.index], outcome_words(o)) for o in seen]
    elif one.what == gate.PREDICTIONS:
        changes = [(labels[o.index], outcome_words(o)) for o in result.unpredicted]
        changes += [
            (labels[u.index], f"{' or '.join(u.seen)}, predicted {' or '.join(u.after)}")
            for u in result.unseen
        ]
    else:
        changes = [(labels[p.index], pin_words(p)) for p in result.pins]
        if not any(one.covers(labels[i]) for i in result.with_pins):
            untold = one.nothing("has pin figures on both sides that the counters vouch for")
    return gate.judge_thing(one, changes, sum(map(one.covers, labels)), untold)


def _judge_figure(one: Gate, result: Comparison, paired: Paired) -> Judged:
    timings = result.timings
    lacking = timings.refused or one.nothing("has that figure on both sides")
    if one.what in gate.PERCENTILES:
        found = timing.percentiles(paired, timings, one.what) if not timings.refused else []
        if not timings.refused:
            lacking = one.nothing(f"has {timing.CYCLES_FOR_P99} timed cycles on each side")
        found += [t for t in timings.all if t.job is not None and t.measure == one.what]
    else:
        found = [t for t in timings.all if t.measure == one.what]
    return gate.judge_figure(one, found, result.labels, lacking, timings.rounds_wanted)


def counts(verdicts: dict[str, int]) -> str:
    """``pass``, or of several rounds that do not agree ``7 pass, 1 fail``."""
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))


def outcome_words(one: OutcomeChange) -> str:
    """``ok -> EFAULT``."""
    return f"{' or '.join(one.before)} -> {' or '.join(one.after)}"


def pin_words(one: PinChange) -> str:
    """``held 16 -> 1 pages``, ``VmPin 64 -> 2048 KiB``."""
    ranges = (one.before, one.after)
    if one.figure.endswith("_bytes"):
        ranges = tuple((low // 1024, high // 1024) for low, high in ranges)  # type: ignore[assignment]
        return f"VmPin {' -> '.join(map(_range, ranges))} KiB"
    return f"{one.figure} {' -> '.join(map(_range, ranges))} pages"


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return str(low) if low == high else f"{low}..{high}"


def _side(side: Side) -> dict[str, Any]:
    return {
        "given": side.given,
        "bundles": [str(path) for path in side.paths.values()],
        "kernels": list(side.kernels),
        "accels": list(side.accels),
        "rounds": side.rounds,
        "notes": list(side.notes),
    }
