"""What a reader should know first: the verdict of all runs, and what needs attention."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from pinstorm.report.html.aggregates import Side
from pinstorm.report.html.loads import LoadPart
from pinstorm.report.html.words import DIFFERS, SIGNS, plural

_IN_LIST: Final = 8


@dataclass(frozen=True, slots=True)
class Concern:
    """``tone``: bad, or doubt. ``cases``: (id, case); ``more``: how many are not named."""

    tone: str
    sign: str
    what: str
    cases: tuple[tuple[str, str], ...]
    more: int
    where: str


def verdict_line(
    counts: Counter[str], cases: pl.DataFrame, sides: Sequence[Side]
) -> tuple[str, str, str]:
    """One sentence: how many did what; its tone, and the verdict whose sign it has."""
    total = counts.total()
    order = dict.fromkeys(("pass", "fail", "crash", "timeout", "lost", "skip", *sorted(counts)))
    each = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in order if counts[verdict])
    bad = total - counts["pass"] - counts["skip"]
    what = plural(cases.height, "case")
    if len(sides) > 1:
        what += f" on {plural(len(sides), 'kernel')}"
    if total != cases.height:
        what += f", {plural(total, 'run')}"
    if not total:
        return "No case has ended.", "doubt", "lost"
    said = f"{what}: {each}."
    if bad:
        of = "runs" if total != cases.height else "cases"
        return f"{bad:,} of {total:,} {of} did not pass. {said}", "bad", "fail"
    if not counts["pass"]:
        return f"Everything was skipped. {said}", "doubt", "skip"
    return f"All that ran passed. {said}", "good", "pass"


def concerns(
    cases: pl.DataFrame,
    states: pl.DataFrame,
    loads: Sequence[LoadPart],
    ids: Mapping[str, str],
    verdicts: Mapping[str, int],
) -> Iterator[Concern]:
    """Fails, then leaks, then figures that nobody can attribute, then what only looks odd."""
    order = dict.fromkeys(("fail", "crash", "timeout", "lost", *sorted(verdicts)))
    for verdict in order:
        if verdict in ("pass", "skip") or not verdicts.get(verdict):
            continue
        names = states.filter(pl.col("verdict") == verdict)["case"].unique()
        found = cases.filter(pl.col("case").is_in(names.implode()))
        sign = SIGNS.get(verdict, SIGNS["fail"])
        yield _concern(found, ids, "bad", sign, f"{{}}: {_plain(verdict)}", "#look")
    leaked = cases.filter(pl.col("leak") > 0)
    if leaked.height:
        what = "{} left pins behind (leaked or orphaned)"
        yield _concern(leaked, ids, "bad", SIGNS["fail"], what, "#look")
    for load in loads:
        for words in load.told:
            if ": leak (" in words or ": inconclusive (" in words:
                tone = "bad" if ": leak (" in words else "doubt"
                what = f"{load.title}: soak, {words}"
                yield Concern(
                    tone, SIGNS["fail" if tone == "bad" else "lost"], what, (), 0, f"#{load.id}"
                )
    for key, what in (
        ("unknown", "whose the pins of {} were cannot all be known: others pinned nearby"),
        ("flagged", "noise of others reaches the pin figures of {}"),
        ("inexact", "pin figures of {} are not exact"),
    ):
        found = cases.filter(pl.col(key) > 0)
        if found.height:
            yield _concern(found, ids, "doubt", "~", what, "#cases")
    differ = cases.filter("differs")
    if differ.height:
        what = "{}: the kernels differ in verdict or outcome"
        yield _concern(differ, ids, "note", DIFFERS, what, "#look")
    doubted = cases.filter(pl.col("doubt") > 0)
    for why in doubted["reason"].unique().sort():
        found = doubted.filter(pl.col("reason") == why)
        yield _concern(found, ids, "note", "*", f"{{}}: pass, but {_plain(why)}", "#look")
    retried = cases.filter(pl.col("retried") > 0)
    if retried.height:
        yield _concern(retried, ids, "note", "*", "{}: tried again, with a remedy", "#look")


def _plain(text: str) -> str:
    """For a template of str.format."""
    return text.replace("{", "{{").replace("}", "}}")


def _concern(
    found: pl.DataFrame, ids: Mapping[str, str], tone: str, sign: str, what: str, where: str
) -> Concern:
    names = [case for case in found["case"].head(_IN_LIST).to_list() if case in ids]
    return Concern(
        tone,
        sign,
        what.format(plural(found.height, "case")),
        tuple((ids[case], case) for case in names),
        found.height - len(names),
        where,
    )
