"""Migration and CMA: what had to be moved before it could be pinned, and how long that took."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import polars

from pinstorm.frames import collect
from pinstorm.report.html import plot_places
from pinstorm.report.html.plot_cycles import largest_folio
from pinstorm.report.html.plot_form import (
    Choice,
    Json,
    Plot,
    Table,
    count_axis,
    figure,
    marks,
    ns_axis,
    ns_words,
    number_words,
    page_words,
    rows,
    rows_area,
    shown,
    size_words,
    table,
)

_MOST_ROWS = 45
_MOST_MOVED = 450


@dataclass(frozen=True, slots=True)
class _Moved:
    """One case on one kernel; of several rounds the medians. Pages, ns."""

    place: str
    case: str
    workload: str
    memory: str
    size_bytes: int | None
    folio_orders: str | None
    cma_pages: float | None
    success: float | None
    fail: float | None
    first_ns: float | None
    cases: int

    @property
    def emulated(self) -> bool:
        return plot_places.is_emulated(self.place)


def plots(cases: polars.LazyFrame, page_bytes: int) -> list[Plot]:
    """Nothing where nothing was migrated and nothing long-term lay in CMA."""
    moved, left_out = _moved(cases)
    if not moved:
        return []
    keyed = sorted(moved, key=lambda one: (one.emulated, one.workload))
    choices = [
        _choice(workload, emulated, list(some))
        for (emulated, workload), some in groupby(keyed, lambda one: (one.emulated, one.workload))
    ]
    emulated = (
        " Emulated times have menu entries of their own." if any(o.emulated for o in moved) else ""
    )
    return [
        Plot(
            "migration",
            "Migration and CMA",
            "Pages of a case that lay in CMA just before acquire, pages that were migrated, and "
            "migrations that failed (of the whole machine, while the case acquired; median of the "
            "rounds), beside the time of that first acquire. A long-term pin must move pages "
            "out of CMA and ZONE_MOVABLE: the disc lies in the square then; a cross is a page that "
            f"would not move.{emulated}",
            figure(choices, {}),
            _table(moved, left_out, page_bytes),
        )
    ]


def _moved(cases: polars.LazyFrame) -> tuple[list[_Moved], int]:
    count = polars.col
    keys = ("place", "case", "workload", "memory", "size_bytes")
    found = collect(
        cases.filter(
            (count("migrate_success") > 0)
            | (count("migrate_fail") > 0)
            | (
                (count("cma_pages") > 0)
                & (count("pin_class") == "pin-longterm")
                & (count("outcome") == "ok")
            )
        )
        .filter(count("workload").is_not_null() & count("memory").is_not_null())
        .with_columns(plot_places.expression())
        .group_by(keys)
        .agg(
            polars.col("folio_orders").max(),
            count("cma_pages").median(),
            count("migrate_success").median().alias("success"),
            count("migrate_fail").median().alias("fail"),
            count("first_ns").median(),
            polars.len().alias("cases"),
        )
    ).sort(
        polars.sum_horizontal("success", "fail"),
        "cma_pages",
        *keys,
        descending=[True, True, *[False] * len(keys)],
        nulls_last=True,
    )
    left_out = max(0, found.height - _MOST_MOVED)
    return [_Moved(**row) for row in found.head(_MOST_MOVED).iter_rows(named=True)], left_out


def _choice(workload: str, emulated: bool, moved: Sequence[_Moved]) -> Choice:
    places = sorted({one.place for one in moved}, key=plot_places.order)
    # What moved most, but the kernels of one case beside each other.
    cases = list(dict.fromkeys(one.case for one in moved))
    some = sorted(moved, key=lambda one: (cases.index(one.case), plot_places.order(one.place)))[
        :_MOST_ROWS
    ]
    short = plot_places.short_names(places)
    short = {place: name.removesuffix(plot_places.EMULATED) for place, name in short.items()}
    names = [_name(one, short[one.place] if len(places) > 1 else "") for one in some]
    figures = (
        ("in CMA before", "square-open", 1, [one.cma_pages for one in some]),
        ("migrated", "circle", 0, [one.success for one in some]),
        ("failed", "x", 4, [one.fail for one in some]),
    )
    names_trace, axes = rows(names)
    data = [names_trace] + [
        _marks(title, names, values, "pages", marks(number, 13 if number == 1 else 8), symbol)
        for title, symbol, number, values in figures
    ]
    times = [one.first_ns for one in some]
    how = plot_places.EMULATED if emulated else ""
    data.append(
        _marks(f"first acquire{how}", names, times, "ns", marks(2), "diamond") | {"xaxis": "x2"}
    )
    amounts = [value for *_, values in figures for value in values if value]
    return Choice(
        f"{workload}{how}",
        data,
        {
            **axes,
            "margin": {"l": 16},
            "xaxis": count_axis(amounts, "pages") | {"domain": [0, 0.56]},
            "xaxis2": ns_axis([time for time in times if time], f"time{how}")
            | {"domain": [0.64, 1], "anchor": "y"},
        },
        rows_area(names),
    )


def _name(one: _Moved, kernel: str) -> str:
    words = [one.memory, plot_places.variant(one.case)]
    words.append(size_words(one.size_bytes) if one.size_bytes is not None else "")
    words.append(f"· {kernel}" if kernel else "")
    return " ".join(word for word in words if word)


def _marks(
    title: str,
    names: Sequence[str],
    values: Sequence[float | None],
    unit: str,
    look: Json,
    symbol: str,
) -> Json:
    """A figure that is 0 has no mark: the axis is logarithmic."""
    there = [(name, value) for name, value in zip(names, values, strict=True) if value]
    words = ns_words if unit == "ns" else lambda value: f"{number_words(value)} pages"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": title,
        "x": [shown(value) for _, value in there],
        "y": [name for name, _ in there],
        "customdata": [words(value) for _, value in there],
        "hovertemplate": "%{y}: %{customdata} %{fullData.name}<extra></extra>",
        "marker": {**look, "symbol": symbol},
    }


def _table(moved: Sequence[_Moved], left_out: int, page_bytes: int) -> Table:
    cells = [
        (
            one.case,
            one.place,
            page_words(largest_folio(one.folio_orders), page_bytes) or "-",
            number_words(one.cma_pages),
            number_words(one.success),
            number_words(one.fail),
            ns_words(one.first_ns),
            number_words(one.cases),
        )
        for one in moved
    ]
    head = ("case", "kernel", "folio", "in CMA", "migrated", "failed", "first acquire", "rounds")
    return table(head, cells, f"{left_out} more cases are not shown." if left_out else "")
