"""A run in Markdown, for a pull request: the verdict, what went wrong and why, then the table.

It fits a comment of GitHub (65,536 characters) whatever the number of cases: what was left out is
said, with the format that has it. Whatever a bundle says is text here, no markup and no mention.
Of several bundles the table has the cases side by side, first those that did not end alike.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pinstorm.frames import Frames, collect
from pinstorm.report.reason import one_line
from pinstorm.report.table import GOOD, MISSING, VERDICTS

if TYPE_CHECKING:
    import polars

MOST_CHARACTERS: Final = 60_000
_MOST_BUNDLES = 20
_MOST_WRONG = 100
_MOST_SIDE_BY_SIDE = 6
# More rows than could fit; they are not read.
_MOST_ROWS = 2000
_MOST_WORDS = 400
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|~#&])")
_FIGURES = ("acquired", "held", "leaked", "vmpin_held_bytes")
# Like the case's id, but sizes in their order: 64KiB before 16MiB.
_ORDER = ("workload", "memory", "access", "size_bytes")

Row = Mapping[str, Any]


def text(found: "Frames[polars.LazyFrame]") -> str:
    """The document. UsageError when a table is damaged."""
    counts = _counts(found.cases)
    totals: dict[str, int] = {}
    for row in counts:
        totals[row["verdict"]] = totals.get(row["verdict"], 0) + row["len"]
    lines = [f"**pinstorm: {_summary(totals)}**", ""]
    lines += _bundles(found.manifests, counts)
    lines += [f"- not read: {_plain(note)}" for note in found.notes]
    lines += _wrong(found.cases, totals, several=len(found.manifests) > 1)
    lines += _skipped(found.cases, totals)
    title, head, rows = _table(found)
    return "\n".join(_that_fit(lines, title, head, rows)) + "\n"


def _counts(cases: "polars.LazyFrame") -> Sequence[Row]:
    """Of each bundle the number of cases by verdict and accel."""
    import polars

    counted = cases.group_by("bundle", "verdict", "accel").agg(polars.len().alias("len"))
    return collect(counted).to_dicts()


def _summary(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    known = [verdict for verdict in (*GOOD, *VERDICTS) if counts.get(verdict)]
    words = [f"{counts[verdict]} {verdict}" for verdict in dict.fromkeys(known)]
    return f"{total} {'case' if total == 1 else 'cases'}: {', '.join(words) or 'nothing ran'}"


def _bundles(manifests: Mapping[str, Row], counts: Sequence[Row]) -> list[str]:
    """What ran where, and with several how it ended."""
    lines = []
    for bundle, manifest in list(manifests.items())[:_MOST_BUNDLES]:
        of_it = {row["verdict"]: 0 for row in counts if row["bundle"] == bundle}
        for row in counts:
            if row["bundle"] == bundle:
                of_it[row["verdict"]] += row["len"]
        emulated = any(row["accel"] == "tcg" for row in counts if row["bundle"] == bundle)
        suite, lab, kernel = (_part(manifest, name) for name in ("suite", "lab", "kernel"))
        said = (
            ("", suite.get("name")),
            ("kernel ", kernel.get("release")),
            ("device ", manifest.get("device")),
            ("on ", lab.get("host") or manifest.get("hostname")),
            ("seed ", suite.get("seed")),
        )
        words = [f"{before}{_plain(str(value))}" for before, value in said if value is not None]
        words += ["times are emulated"] if emulated else []
        ended = f": {_summary(of_it)}" if len(manifests) > 1 else ""
        lines.append(f"- {_code(bundle)} ({', '.join(words) or 'no manifest'}){ended}")
    if left := len(manifests) - _MOST_BUNDLES:
        lines += [f"- and {left} more bundles"] if left > 0 else []
    return lines


def _part(manifest: Row, name: str) -> Row:
    part = manifest.get(name)
    return part if isinstance(part, Mapping) else {}


def _wrong(cases: "polars.LazyFrame", totals: Mapping[str, int], several: bool) -> list[str]:
    """The cases that need attention, the worst first."""
    import polars

    count = sum(number for verdict, number in totals.items() if verdict not in GOOD)
    if not count:
        return []
    order = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
    verdict = polars.col("verdict")
    rows = (
        cases.filter(~verdict.is_in(GOOD))
        .select(
            "bundle",
            "case",
            "round",
            "verdict",
            "outcome",
            "reason",
            "broken",
            "cause",
            "remedy",
            "detail",
        )
        .with_columns(verdict.replace_strict(order, default=0).alias("rank"))
        .sort("rank", maintain_order=True)
        .head(_MOST_WRONG)
    )
    columns = ["bundle", "case", "verdict", "why"] if several else ["case", "verdict", "why"]
    lines = ["", "### Needs attention", "", *_head(columns)]
    for row in collect(rows).to_dicts():
        case = row["case"] + (f" round {row['round']}" if row["round"] else "")
        cells = [_code(case), _plain(row["verdict"]), _why(row)]
        lines.append(_line([_code(row["bundle"]), *cells] if several else cells))
    return lines + ([f"\nand {count - _MOST_WRONG} more"] if count > _MOST_WRONG else [])


def _why(row: Row) -> str:
    """``held: held 3 pages, expected 0; cause …; remedy``."""
    told = [row["reason"] or "no reason given", *(row["broken"] or ())[:1]]
    words = ": ".join(told)
    for before, value in (("cause ", row["cause"]), ("", row["remedy"]), ("", row["detail"])):
        words += f"; {before}{value}" if value else ""
    words = one_line(words)
    return _plain(words if len(words) <= _MOST_WORDS else words[: _MOST_WORDS - 2] + " …")


def _skipped(cases: "polars.LazyFrame", totals: Mapping[str, int]) -> list[str]:
    """Why, the most frequent first. A case has one reason here, the first that it lacked."""
    import polars

    if not totals.get("skip"):
        return []
    rows = (
        cases.filter(polars.col("verdict") == "skip")
        .group_by("reason")
        .agg(polars.len().alias("len"))
        .sort("len", "reason", descending=[True, False])
        .head(_MOST_BUNDLES)
    )
    told = [
        f"{row['len']} {_plain(row['reason'] or 'no reason')}" for row in collect(rows).to_dicts()
    ]
    return ["", f"Skipped: {', '.join(told)}"]


# -- the table ----------------------------------------------------------------------------------


def _table(found: "Frames[polars.LazyFrame]") -> tuple[str, list[str], list[str]]:
    """Its title, head and rows; none of more bundles than can stand side by side."""
    bundles = list(found.manifests)
    if len(bundles) == 1:
        return _of_one(found.cases)
    if len(bundles) <= _MOST_SIDE_BY_SIDE:
        return _side_by_side(found.cases, bundles)
    return "", [], []


def _of_one(cases: "polars.LazyFrame") -> tuple[str, list[str], list[str]]:
    """A line for each case and how it ended, over its rounds."""
    import polars

    keys = ["case", "verdict", "outcome", "accel"]
    rows = (
        cases.filter(polars.col("verdict") != "skip")
        .group_by(*keys, maintain_order=True)
        .agg(
            polars.len().alias("len"),
            *[_one_or_more(name) for name in _FIGURES],
            polars.col("acquire_ns").list.explode().quantile(0.5, "lower").alias("median_ns"),
            *_first_of(_ORDER),
        )
        .sort(*_ORDER, "case", nulls_last=True)
        .head(_MOST_ROWS)
    )
    shown = collect(rows).to_dicts()
    emulated = any(row["accel"] == "tcg" for row in shown)
    pages = [f"{name} pages" for name in ("acquired", "held", "leaked")]
    median = "acquire median us" + (", emulated" if emulated else "")
    head = _head(["case", "verdict", "outcome", *pages, "VmPin KiB", median], right=5)
    return "The cases that ran", head, [_row_of_one(row) for row in shown]


def _first_of(names: Iterable[str]) -> "list[polars.Expr]":
    import polars

    return [polars.col(name).first() for name in names]


def _one_or_more(name: str) -> "polars.Expr":
    """The figure of all rounds; where they differ the least and the most."""
    import polars

    column = polars.col(name)
    return polars.concat_list(column.min(), column.max()).alias(name)


def _row_of_one(row: Row) -> str:
    rounds = f" x{row['len']}" if row["len"] > 1 else ""
    cells = [_code(row["case"]), _plain(row["verdict"]) + rounds, _plain(row["outcome"] or MISSING)]
    cells += [_figure(row[name], 1024 if name.endswith("_bytes") else 1) for name in _FIGURES]
    median_ns = row["median_ns"]
    return _line([*cells, MISSING if median_ns is None else f"{median_ns / 1e3:.1f}"])


def _figure(ends: Sequence[int | None], unit: int) -> str:
    least, most = ends
    if least is None or most is None:
        return MISSING
    words = dict.fromkeys((str(least // unit), str(most // unit)))
    return "..".join(words)


def _side_by_side(
    cases: "polars.LazyFrame", bundles: Sequence[str]
) -> tuple[str, list[str], list[str]]:
    """A line for each case with what each bundle has of it; those that differ come first."""
    import polars

    verdict, outcome = polars.col("verdict"), polars.col("outcome")
    both = polars.concat_str(verdict, outcome, separator=" ", ignore_nulls=True)
    ended = polars.when(verdict == "skip").then(verdict).otherwise(both)
    cells = (
        cases.select("bundle", "case", *_ORDER, ended.alias("ended"))
        .group_by("case", "bundle")
        .agg(polars.col("ended").unique().sort().str.join(", "), *_first_of(_ORDER))
    )
    ran = polars.col("ended") != "skip"
    rows = (
        cells.group_by("case")
        .agg(
            "bundle",
            "ended",
            (polars.col("ended").filter(ran).n_unique() > 1).alias("differ"),
            ran.any().alias("ran"),
            *_first_of(_ORDER),
        )
        .filter("ran")
        .sort(polars.col("differ").not_(), *_ORDER, "case", nulls_last=True)
        .head(_MOST_ROWS)
    )
    lines = []
    for row in collect(rows).to_dicts():
        of_bundle = dict(zip(row["bundle"], row["ended"], strict=True))
        told = [_plain(of_bundle.get(bundle) or MISSING) for bundle in bundles]
        lines.append(_line([_code(row["case"]), "differ" if row["differ"] else "", *told]))
    head = _head(["case", "", *(_code(bundle) for bundle in bundles)])
    return "The cases that ran, side by side", head, lines


def _that_fit(
    lines: Sequence[str], title: str, head: Sequence[str], rows: Sequence[str]
) -> Iterable[str]:
    """All lines, and of the table's as many as there is room for."""
    yield from lines
    if not rows:
        return
    left = MOST_CHARACTERS - sum(len(line) + 1 for line in (*lines, *head))
    shown: list[str] = []
    for row in rows:
        left -= len(row) + 1
        if left < 0:
            break
        shown.append(row)
    yield from ("", f"<details><summary>{title}</summary>", "", *head, *shown)
    if len(shown) < len(rows) or len(rows) == _MOST_ROWS:
        yield from ("", f"These are the first {len(shown)}; --format csv has all.")
    yield from ("", "</details>")


def _head(columns: Sequence[str], right: int = 0) -> list[str]:
    """``right``: so many of the last columns stand to the right."""
    rules = ["---"] * (len(columns) - right) + ["---:"] * right
    return [_line(columns), _line(rules)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(words: str) -> str:
    """Text that is no markup, and that calls nobody."""
    return _MARKUP.sub(r"\\\1", one_line(words)).replace("@", "@<!-- -->")


def _code(words: str) -> str:
    """A name as it is: nothing in it is markup, a bar of a table apart."""
    words = one_line(words).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
    pad = " " if "`" in words else ""
    return f"{fence}{pad}{words}{pad}{fence}" if words else MISSING
