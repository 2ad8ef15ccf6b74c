"""What changed between two sides besides times: verdicts, outcomes, pins, and what ran at all."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pinstorm.compare.foretold import Foretold
from pinstorm.compare.pairing import RAN, SIDES, Paired

# From the best to the worst.
_ORDER: Final = ("pass", "fail", "timeout", "crash", "lost")
_FAIL: Final = _ORDER.index("fail")
_DID_NOT_RUN: Final = "skip"
# A figure, and how many counters' error bounds are in it; VmPin is the process's own, and exact.
_PINS: Final = (("acquired", 1), ("held", 2), ("leaked", 2), ("vmpin_held_bytes", 0))
# What is told of every case; the other figures only where both sides ended alike.
_ALWAYS: Final = "leaked"
NO_OUTCOME: Final = "-"

Said = Literal["predicted", "either", "unpredicted"]
Missing = Literal["unseen", "open", "not-run"]


@dataclass(frozen=True, slots=True)
class VerdictChange:
    """Verdicts with their counts, of a case that ran on both sides. ``worse``: B's is.

    ``flipped``: no round of one side ended as one of the other did, or it crashed, hung or was lost
    on one side alone. Else it is unsteady: some rounds did, which others on the machine can do.
    """

    index: int
    before: dict[str, int]
    after: dict[str, int]
    reason: str | None
    worse: bool
    flipped: bool


@dataclass(frozen=True, slots=True)
class OutcomeChange:
    """The outcomes seen on each side.

    ``said``: predicted by the rules; either, when a rule of the two allows both; or unpredicted.
    ``rules``, ``sources``: which say so; of an unpredicted change those that say otherwise.
    """

    index: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    said: Said
    rules: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A change of outcome that the rules speak of and that was not seen.

    ``why``: unseen, when it had to be; open, when a rule allows what was seen as well; not-run,
    when a side did not run the case. ``before``, ``after``: what the rules allow.
    """

    index: int
    why: Missing
    seen: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PinChange:
    """A figure's lowest and highest value over the rounds of each side; pages, or bytes of VmPin.

    ``bound``: how far apart error alone could put them.
    """

    index: int
    figure: str
    before: tuple[int, int]
    after: tuple[int, int]
    bound: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """A case that both sides have and only one ran. ``side``: the one that skipped it."""

    index: int
    side: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a case ended on one side: counts of verdicts, and outcomes of what ran."""

    verdicts: dict[str, int]
    outcomes: tuple[str, ...]
    reason: str | None

    @property
    def ran(self) -> bool:
        return any(verdict != _DID_NOT_RUN for verdict in self.verdicts)

    @property
    def worst(self) -> int:
        return max(_rank(verdict) for verdict in self.verdicts if verdict != _DID_NOT_RUN)


Endings = Mapping[int, Mapping[str, Ending]]


def endings(paired: Paired) -> Endings:
    """Index -> side -> how the case ended there."""
    found: dict[int, dict[str, tuple[Counter[str], dict[str, None], list[str]]]] = {}
    columns = ("index", "side", "verdict", "outcome", "reason", "count")
    for index, side, verdict, outcome, reason, count in paired.endings.select(columns).iter_rows():
        empty: tuple[Counter[str], dict[str, None], list[str]] = (Counter(), {}, [])
        verdicts, outcomes, reasons = found.setdefault(index, {}).setdefault(side, empty)
        verdicts[str(verdict)] += count
        if verdict in RAN:
            outcomes[outcome or NO_OUTCOME] = None
        if reason is not None and verdict != "pass":
            reasons.append(reason)
    return {
        index: {
            side: Ending(dict(verdicts), tuple(sorted(outcomes)), min(reasons, default=None))
            for side, (verdicts, outcomes, reasons) in sides.items()
        }
        for index, sides in sorted(found.items())
    }


def not_run(ended: Endings) -> list[NotRun]:
    """The cases that one side skipped and the other ran."""
    found = []
    for index, sides in ended.items():
        skipped = [side for side in SIDES if not sides[side].ran]
        if len(skipped) == 1:
            found.append(NotRun(index, skipped[0], sides[skipped[0]].reason))
    return found


def verdicts(ended: Endings) -> list[VerdictChange]:
    """The cases that ran on both sides and whose worst verdict is not the same."""
    found = []
    for index, (a, b) in _both(ended):
        if a.worst != b.worst:
            worse = b.worst > a.worst
            reason = (b if worse else a).reason
            flipped = a.verdicts.keys().isdisjoint(b.verdicts) or max(a.worst, b.worst) > _FAIL
            found.append(VerdictChange(index, a.verdicts, b.verdicts, reason, worse, flipped))
    return found


def outcomes(ended: Endings, foretold: Mapping[int, Foretold]) -> list[OutcomeChange]:
    """The cases whose outcomes are not the same, each with what the rules say of it."""
    found = []
    for index, (a, b) in _both(ended):
        if a.outcomes and b.outcomes and a.outcomes != b.outcomes:
            told = foretold.get(index)
            said = _said(a.outcomes, b.outcomes, told)
            rules, sources = (told.rules, told.sources) if told else ((), ())
            found.append(OutcomeChange(index, a.outcomes, b.outcomes, said, rules, sources))
    return found


def foreseen(ended: Endings, foretold: Mapping[int, Foretold]) -> list[Foreseen]:
    """The cases whose outcomes the rules have change, and that were not seen to."""
    found = []
    for index, told in foretold.items():
        a, b = (ended[index][side] for side in SIDES)
        if told.before == told.after:
            continue
        why: Missing
        if not (a.outcomes and b.outcomes):
            why = "not-run"
        elif a.outcomes == b.outcomes:
            why = "unseen" if told.changes else "open"
        else:
            continue
        seen = tuple(sorted({*a.outcomes, *b.outcomes}))
        found.append(Foreseen(index, why, seen, told.before, told.after, told.rules))
    return found


def same_outcome(ended: Endings) -> list[int]:
    """The cases that ended in one and the same way in all rounds of both sides."""
    return [
        index for index, (a, b) in _both(ended) if a.outcomes == b.outcomes and len(a.outcomes) == 1
    ]


def pins(paired: Paired, ended: Endings) -> list[PinChange]:
    """Figures whose ranges over the rounds lie apart by more than their error bounds."""
    import polars

    names = [name for name, _ in _PINS]
    by_side = {
        side: paired.rounds.filter(polars.col("side") == side)
        .group_by("index")
        .agg(
            *[polars.col(name).min().name.suffix("_low") for name in names],
            *[polars.col(name).max().name.suffix("_high") for name in names],
            polars.col("pins_bound").max().fill_null(0).alias("bound"),
        )
        for side in SIDES
    }
    joined = by_side["A"].join(by_side["B"], on="index", suffix="_b").sort("index")
    alike, found = set(same_outcome(ended)), []
    for name, counters in _PINS:
        bound = counters * (polars.col("bound") + polars.col("bound_b"))
        apart = (polars.col(f"{name}_low_b") - polars.col(f"{name}_high") > bound) | (
            polars.col(f"{name}_low") - polars.col(f"{name}_high_b") > bound
        )
        columns = [f"{name}_low", f"{name}_high", f"{name}_low_b", f"{name}_high_b"]
        rows = joined.filter(apart).select("index", *columns, bound.alias("allowed"))
        for index, *values, allowed in rows.iter_rows():
            if name == _ALWAYS or index in alike:
                low, high, low_b, high_b = values
                found.append(PinChange(index, name, (low, high), (low_b, high_b), allowed))
    return sorted(found, key=lambda change: change.index)


def with_pins(paired: Paired) -> set[int]:
    """The cases of which both sides have a pin figure that the counters vouch for, or VmPin."""
    import polars

    known = paired.rounds.filter(
        polars.any_horizontal(polars.col(name).is_not_null() for name, _ in _PINS)
    )
    of_side = [set(known.filter(polars.col("side") == side)["index"]) for side in SIDES]
    return of_side[0] & of_side[1]


def _both(ended: Endings) -> Iterable[tuple[int, tuple[Ending, Ending]]]:
    for index, sides in ended.items():
        a, b = (sides[side] for side in SIDES)
        if a.ran and b.ran:
            yield index, (a, b)


def _said(before: Sequence[str], after: Sequence[str], told: Foretold | None) -> Said:
    if told is None:
        return "unpredicted"
    allowed = set(before) <= set(told.before) and set(after) <= set(told.after)
    if not allowed:
        return "unpredicted"
    return "either" if max(len(told.before), len(told.after)) > 1 else "predicted"


def _rank(verdict: str) -> int:
    return _ORDER.index(verdict) if verdict in _ORDER else len(_ORDER)


def to_json(change: Any, labels: Sequence[str]) -> dict[str, Any]:
    """Any of the changes above, with its case's name in place of its index."""
    from dataclasses import asdict

    fields = asdict(change)
    return {"case": labels[fields.pop("index")], **fields}
