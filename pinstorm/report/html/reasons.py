"""Why cases were skipped, refused and judged as they were: needs, causes and rules, each once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from pinstorm.explain import KNOWLEDGE, Cause
from pinstorm.report.html import aggregates
from pinstorm.report.html.case_details import as_list

# Remedies of one cause differ by what the case was.
_REMEDIES: Final = 3


@dataclass(frozen=True, slots=True)
class Named:
    """A rule or a cause, with its id on the page and what is said of it."""

    id: str
    name: str
    told: tuple[str, ...]
    cases: int


def skips(cases: pl.LazyFrame) -> list[tuple[str, str, int]]:
    """(code, detail and remedy, number of runs) of each unmet need."""
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for text, why, runs in aggregates.skips(cases):
        reasons = [one for one in as_list(text) if isinstance(one, Mapping)]
        for one in reasons or [{"code": why or "no reason"}]:
            code = str(one.get("code"))
            counts[code] += runs
            told = "; ".join(str(one[key]) for key in ("detail", "remedy") if one.get(key))
            words.setdefault(code, told)
    return [(code, words[code], count) for code, count in counts.most_common()]


def rules(runs: pl.DataFrame) -> list[Named]:
    """Each rule with what it expected of those runs, and where it is from."""
    found = (
        runs.filter(pl.col("rule").is_not_null())
        .group_by("rule")
        .agg(
            pl.col("expected_outcomes").list.join(" or ").drop_nulls().unique().sort(),
            pl.col("expected_source").drop_nulls().unique().sort(),
            pl.col("case").n_unique(),
        )
        .sort("rule")
    )
    return [
        Named(
            f"rule-{name}",
            name,
            (f"expects {'; or '.join(expected) or 'nothing'}", *sources),
            cases,
        )
        for name, expected, sources, cases in found.iter_rows()
    ]


def causes(runs: pl.DataFrame) -> list[Named]:
    """Each cause, the most frequent first, with its meaning and what was said to help."""
    found = (
        runs.filter(pl.col("cause").is_not_null())
        .group_by("cause")
        .agg(
            pl.col("remedy").drop_nulls().unique().sort().head(_REMEDIES), pl.col("case").n_unique()
        )
        .sort("case", "cause", descending=[True, False])
    )
    named = []
    for name, remedies, cases in found.iter_rows():
        meaning = [KNOWLEDGE[Cause(name)].meaning] if name in set(Cause) else []
        told = (*meaning, *(f"remedy: {remedy}" for remedy in remedies))
        named.append(Named(f"cause-{name}", name, told, cases))
    return named
