"""Acquire latency: against size, and by memory where there may be one size only."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from pinstorm.report.html import plot_places
from pinstorm.report.html.plot_cycles import MOST_SORTED, Pool
from pinstorm.report.html.plot_form import (
    Choice,
    Json,
    Plot,
    Table,
    figure,
    line,
    marks,
    menu_note,
    ns_axis,
    ns_words,
    number_words,
    page_words,
    rows_area,
    shown,
    size_axis,
    size_words,
    table,
)
from pinstorm.report.html.plot_form import (
    rows as rows_of,
)

# Of one menu entry: more cannot be told apart, or do not fit a screen.
_MOST_SERIES = 14
_MOST_ROWS = 50
# Of a plot, so that it stays small.
_MOST_POINTS = 1400

_SPREAD = (
    "Bars reach from p10 to p90 of all timed cycles of all rounds, of fewer than ten cycles from "
    "the lowest to the highest"
)


def plots(pools: Sequence[Pool], left_out: int, page_bytes: int) -> list[Plot]:
    """Nothing where no cycle was timed."""
    by_size = _by_size(pools, page_bytes)
    by_memory = _by_memory(pools, page_bytes)
    found = []
    if by_size:
        series = _with_sizes(pools)
        some = [pool for pool in pools if _series(pool) in series]
        cut = menu_note(len(by_size), len({key[:2] for key in series}))
        found.append(
            Plot(
                "acquire-by-size",
                "Acquire latency against size",
                "Median time of acquire (µs, ms) against the size asked for; lines are memories, "
                f"with the size of their largest folio. {_SPREAD}. A line that rises more slowly "
                f"than the size shows a cost per call, one with it a cost per page.{_apart(some)}",
                figure(by_size, {}),
                _table(some, left_out, page_bytes, cut),
            )
        )
    if by_memory:
        there = {(plot_places.is_emulated(pool.place), pool.workload) for pool in pools}
        cut = menu_note(len(by_memory), len(there))
        found.append(
            Plot(
                "acquire-by-memory",
                "Acquire latency by memory",
                "Median time of acquire (µs, ms) of each memory, with the size of its largest "
                f"folio; marks are kernels. {_SPREAD}. Look for memories far to the right of the "
                f"others, and for marks of one row whose bars do not meet.{_apart(pools)}",
                figure(by_memory, {}),
                _table(pools, left_out, page_bytes, cut),
            )
        )
    return found


def _apart(pools: Iterable[Pool]) -> str:
    if any(plot_places.is_emulated(pool.place) for pool in pools):
        return " Emulated times are apart from others, and say nothing about hardware."
    return ""


def _series(pool: Pool) -> tuple[str, str, str, str]:
    return pool.place, pool.workload, pool.memory, pool.variant


def _with_sizes(pools: Iterable[Pool]) -> dict[tuple[str, str, str, str], list[Pool]]:
    """Series of at least two sizes."""
    series: dict[tuple[str, str, str, str], list[Pool]] = {}
    for pool in pools:
        series.setdefault(_series(pool), []).append(pool)
    return {
        key: sorted(some, key=lambda pool: pool.size_bytes)
        for key, some in series.items()
        if len({pool.size_bytes for pool in some}) > 1
    }


def _by_size(pools: Sequence[Pool], page_bytes: int) -> list[Choice]:
    choices: list[Choice] = []
    points = 0
    short = plot_places.short_names({pool.place for pool in pools})
    for (place, workload), keys in groupby(
        _with_sizes(pools).items(), key=lambda item: item[0][:2]
    ):
        # Those with most sizes; then in the order of names, as a legend is searched.
        most = sorted((some for _, some in keys), key=lambda some: -len(some))[:_MOST_SERIES]
        most.sort(key=lambda some: (some[0].memory, some[0].variant))
        shown_pools = [pool for some in most for pool in some]
        if choices and points + len(shown_pools) > _MOST_POINTS:
            break
        points += len(shown_pools)
        choices.append(
            Choice(
                f"{workload} · {short[place]}",
                [_line(some, number, page_bytes) for number, some in enumerate(most)],
                {
                    "xaxis": size_axis(
                        (pool.size_bytes for pool in shown_pools), "size registered or asked for"
                    ),
                    "yaxis": ns_axis(_times(shown_pools), _time_title(place)),
                },
            )
        )
    return choices


def _time_title(place: str) -> str:
    return "time of acquire" + (plot_places.EMULATED if plot_places.is_emulated(place) else "")


def _times(pools: Iterable[Pool]) -> list[float]:
    return [time for pool in pools for time in (*pool.spread_ns, pool.median_ns)]


def _line(pools: Sequence[Pool], number: int, page_bytes: int) -> Json:
    orders = {page_words(pool.folio_order, page_bytes) for pool in pools} - {""}
    pages = f" ({' to '.join(_by_bytes(pools, page_bytes))})" if orders else ""
    return {
        "type": "scatter",
        "name": f"{pools[0].memory}{pages} {pools[0].variant}".strip(),
        "x": [pool.size_bytes for pool in pools],
        "y": [shown(pool.median_ns) for pool in pools],
        "error_y": _bars(pools),
        "customdata": [_hover(pool) for pool in pools],
        "hovertemplate": "%{fullData.name}, %{x}<br>%{customdata}<extra></extra>",
        **line(number),
    }


def _by_bytes(pools: Iterable[Pool], page_bytes: int) -> list[str]:
    """The smallest and the largest folio, once where they are the same."""
    orders = [pool.folio_order for pool in pools if pool.folio_order is not None]
    return [page_words(order, page_bytes) for order in sorted({min(orders), max(orders)})]


def _bars(pools: Iterable[Pool]) -> Json:
    ends = [(pool.median_ns, *pool.spread_ns) for pool in pools]
    return {
        "type": "data",
        "symmetric": False,
        "array": [shown(high - median) for median, _, high in ends],
        "arrayminus": [shown(median - low) for median, low, _ in ends],
        "thickness": 1,
        "width": 3,
    }


def _hover(pool: Pool) -> str:
    low, high = (ns_words(end) for end in pool.spread_ns)
    return f"{ns_words(pool.median_ns)} ({low} to {high}, {number_words(pool.cycles)} cycles)"


def _by_memory(pools: Sequence[Pool], page_bytes: int) -> list[Choice]:
    """Real and emulated times are never in one picture."""
    choices: list[Choice] = []
    points = 0
    keyed = sorted(pools, key=lambda pool: (plot_places.is_emulated(pool.place), pool.workload))
    for (emulated, workload), group in groupby(
        keyed, key=lambda pool: (plot_places.is_emulated(pool.place), pool.workload)
    ):
        rows: dict[tuple[int, str, str], list[Pool]] = {}
        for pool in group:
            rows.setdefault((pool.size_bytes, pool.memory, pool.variant), []).append(pool)
        # By size, and the slowest at the top.
        order = sorted(rows, key=lambda row: (-row[0], -max(p.median_ns for p in rows[row])))
        order = order[:_MOST_ROWS]
        some = [pool for row in order for pool in rows[row]]
        if choices and points + len(some) > _MOST_POINTS:
            break
        points += len(some)
        sizes = len({size for size, _, _ in order}) > 1
        names = {row: _row_name(row, rows[row], page_bytes, sizes) for row in order}
        places = sorted({pool.place for pool in some}, key=plot_places.order)
        how = plot_places.EMULATED if emulated else ""
        whole = f", {size_words(order[0][0])}" if not sizes else ""
        names_trace, axes = rows_of([names[row] for row in order])
        choices.append(
            Choice(
                f"{workload}{how}",
                [
                    names_trace,
                    *(
                        _row_marks(
                            [
                                (names[row], p)
                                for row in order
                                for p in rows[row]
                                if p.place == place
                            ],
                            place,
                            number,
                        )
                        for number, place in enumerate(places)
                    ),
                ],
                {
                    **axes,
                    "margin": {"l": 16},
                    "xaxis": ns_axis(_times(some), f"time of acquire{whole}{how}"),
                },
                rows_area(order),
            )
        )
    return choices


def _row_name(
    row: tuple[int, str, str], pools: Sequence[Pool], page_bytes: int, sizes: bool
) -> str:
    size, memory, variant = row
    orders = [pool.folio_order for pool in pools if pool.folio_order is not None]
    pages = f"({page_words(max(orders), page_bytes)})" if orders else ""
    words = [memory, variant, pages, size_words(size) if sizes else ""]
    return " ".join(word for word in words if word)


def _row_marks(pools: Sequence[tuple[str, Pool]], place: str, number: int) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": place,
        "showlegend": True,
        "x": [shown(pool.median_ns) for _, pool in pools],
        "y": [name for name, _ in pools],
        "error_x": _bars([pool for _, pool in pools]),
        "customdata": [_hover(pool) for _, pool in pools],
        "hovertemplate": "%{y}, %{fullData.name}<br>%{customdata}<extra></extra>",
        "marker": marks(number),
    }


def _table(pools: Sequence[Pool], left_out: int, page_bytes: int, cut: str) -> Table:
    """The slowest first."""
    rows = [
        (
            pool.workload,
            f"{pool.memory} {pool.variant}".strip(),
            page_words(pool.folio_order, page_bytes) or "-",
            size_words(pool.size_bytes),
            pool.place,
            ns_words(pool.median_ns),
            " to ".join(ns_words(end) for end in pool.spread_ns),
            "p10 to p90" if pool.has_deciles else "lowest to highest",
            number_words(pool.cycles),
        )
        for pool in sorted(
            pools, key=lambda pool: (plot_places.is_emulated(pool.place), -pool.median_ns)
        )
    ]
    head = (
        "workload",
        "memory",
        "folio",
        "size",
        "kernel",
        "median",
        "from, to",
        "which",
        "cycles",
    )
    few = f"Of {left_out} more cases with fewer cycles nothing is shown." if left_out else ""
    sampled = (
        f"Of more than {MOST_SORTED} cycles of a case the median and percentiles are of a sample."
        if any(pool.cycles > MOST_SORTED for pool in pools)
        else ""
    )
    return table(head, rows, " ".join(words for words in (few, sampled, cut) if words))
