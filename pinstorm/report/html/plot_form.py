"""What the report's plots are made of: their parts, signs, axes and numbers.

A figure is plotly's JSON as plain dicts. It names no colour of paper, font or grid: those are the
page's, light or dark. Colours of series are of Okabe and Ito's palette, which the colour-blind tell
apart, without the black and the yellow that vanish on one of the papers; a symbol and a dash go
with each, so that colour is never the only sign.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Rows of a plot's table.
MOST_ROWS = 200
# Of a menu's label or a table's cell, of which a hundred must not fill the page.
_MOST_LETTERS = 80

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
_SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down"),
    *("hexagon", "bowtie", "hourglass"),
)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

# Pixels: above a plot, of ticks and title of the axis below it, of a legend's line.
_TOP = 16
_BELOW = 56
_LEGEND_LINE = 14
# Of a row with its name above it.
ROW = 30

_NS_UNITS = (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1000), ("ns", 1))
_SIZE_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))

# Texts with tags of our own, and the entries of the page's menu, which is no plotly's.
_WITH_MARKUP = frozenset({"hovertemplate", "annotations", "label"})

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a plot in words. ``note``: what was left out."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """``figure``: plotly's ``data`` and ``layout``. ``says``: what it shows and how to read it."""

    id: str
    title: str
    says: str
    figure: Json
    table: Table


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a plot's menu: traces, and what the layout is while it is chosen.

    ``area``: how many pixels high the plot is, without title, ticks and legend.
    """

    label: str
    data: list[Json]
    layout: Json = field(default_factory=dict)
    area: int = 360


def figure(choices: Sequence[Choice], layout: Mapping[str, Any]) -> Json:
    """The first choice; where there are several, with a menu that puts another in its place.

    Each entry of the menu holds its own figures, so the size is that of what is shown, whatever the
    number of entries. All choices have traces of the same type in the same order, as far as they
    go; traces that a choice does not have are hidden.
    """
    choices = [replace(choice, layout=choice.layout | _height(choice)) for choice in choices]
    whole: Json = {
        "margin": {"l": 64, "r": 16, "t": _TOP, "b": _BELOW},
        "hovermode": "closest",
        "showlegend": True,
        # Below the plot, also where the page is too narrow for one beside it.
        "legend": {"orientation": "h", "yanchor": "top", "x": 0, "font": {"size": 11}},
        **layout,
    }
    whole = _laid_over(whole, choices[0].layout)
    slots = max(len(choice.data) for choice in choices)
    data = [
        choices[0].data[number]
        if number < len(choices[0].data)
        else _hidden(_of_slot(choices, number))
        for number in range(slots)
    ]
    if len(choices) > 1:
        whole["updatemenus"] = [_menu(choices, slots)]
    escaped: Json = _escaped({"data": data, "layout": whole})
    return escaped


def escaped(words: str) -> str:
    """For plotly, which reads a text as HTML of a kind: a bundle's names are no markup."""
    return html.escape(words, quote=False)


def _escaped(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {
            name: value if name in _WITH_MARKUP else _escaped(value) for name, value in tree.items()
        }
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return escaped(tree) if isinstance(tree, str) else tree


def _height(choice: Choice) -> Json:
    """Of the whole figure, and where its legend begins: below ticks and title on any page.

    On a narrow page an entry of the legend takes a line: with room for that the plot does not
    become flat there; on a wide one it is higher.
    """
    lines = sum(trace.get("showlegend", True) for trace in choice.data)
    return {
        "height": _TOP + choice.area + _BELOW + _LEGEND_LINE * lines,
        "legend": {"y": round(-_BELOW / choice.area, 3)},
    }


def _hidden(trace: Json) -> Json:
    """What the trace will look like, without its figures: a menu entry brings them."""
    figures = ("x", "y", "customdata", "text", "error_x", "error_y")
    return {name: value for name, value in trace.items() if name not in figures} | {
        "visible": False
    }


def _of_slot(choices: Sequence[Choice], number: int) -> Json:
    return next(choice.data[number] for choice in choices if number < len(choice.data))


def _menu(choices: Sequence[Choice], slots: int) -> Json:
    """The entries of the page's own menu, in the form of plotly's, which no key can open."""
    flat = [[dict(_flat(trace)) for trace in choice.data] for choice in choices]
    every = {path for traces in flat for trace in traces for path in trace}
    paths = [path for path in sorted(every - {"type"}) if _differs(flat, path, slots)]
    buttons = []
    for choice, traces in zip(choices, flat, strict=True):
        traces += [{"visible": False}] * (slots - len(traces))
        restyle: Json = {path: [trace.get(path) for trace in traces] for path in paths}
        restyle["visible"] = [trace.get("visible", True) for trace in traces]
        buttons.append(
            {
                "label": shortened(choice.label),
                "method": "update",
                "args": [restyle, dict(_flat(choice.layout))],
            }
        )
    return {"buttons": buttons}


def _differs(flat: Sequence[Sequence[Json]], path: str, slots: int) -> bool:
    """Whether the choices do not agree on that attribute of some trace."""
    missing = object()
    for slot in range(slots):
        said = [traces[slot].get(path, missing) for traces in flat if slot < len(traces)]
        if any(value != said[0] for value in said):
            return True
    return False


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``a.b``: plotly's way to name one attribute."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> Json:
    whole = dict(under)
    for name, value in over.items():
        below = whole.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        whole[name] = _laid_over(below, value) if both and below else value
    return whole


def sign(number: int) -> tuple[str, str, str]:
    """Colour, symbol and dash of the series of that number; no two of the first 77 are the same."""
    return (
        _COLOURS[number % len(_COLOURS)],
        _SYMBOLS[number % len(_SYMBOLS)],
        _DASHES[number % len(_DASHES)],
    )


def line(number: int, *, markers: bool = True) -> Json:
    """``mode``, ``line`` and ``marker`` of a series."""
    colour, _, dash = sign(number)
    found: Json = {"mode": "lines", "line": {"color": colour, "dash": dash, "width": 2}}
    if markers:
        found |= {"mode": "lines+markers", "marker": marks(number)}
    return found


def marks(number: int, size: int = 9) -> Json:
    """``marker`` of a series without a line."""
    colour, symbol, _ = sign(number)
    return {"color": colour, "symbol": symbol, "size": size}


def shown(value: float | None) -> float | int | None:
    """Four significant digits, which is more than a screen shows; None stays None."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def ns_words(value: float | None) -> str:
    """``41.3 µs``; ``-`` of none."""
    if value is None:
        return "-"
    for unit, factor in _NS_UNITS:
        if abs(value) >= factor:
            return f"{_digits(value / factor)} {unit}"
    return f"{_digits(value)} ns"


def size_words(size_bytes: int | None) -> str:
    """``64KiB`` as in the names of cases; ``1.5MiB`` of what no unit divides; ``-`` of none."""
    if size_bytes is None:
        return "-"
    for unit, factor in _SIZE_UNITS:
        if size_bytes >= factor:
            return f"{_digits(size_bytes / factor)}{unit}"
    return f"{size_bytes}B"


def number_words(value: float | None) -> str:
    """``1 234 567``, ``12.3``, ``-`` of none."""
    if value is None:
        return "-"
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", " ")
    return _digits(value)


def _digits(value: float) -> str:
    rounded = float(f"{value:.3g}")
    return str(int(rounded)) if rounded.is_integer() else f"{rounded:g}"


def ns_axis(values: Iterable[float], title: str) -> Json:
    """A logarithmic axis with ticks as 1 µs, 10 µs; between them where that would be too few."""
    low, high = _ends(values)
    return _log_axis(low, high, title) | _ticks(_decimal_ticks(low, high), ns_words)


def count_axis(values: Iterable[float], title: str) -> Json:
    """A logarithmic axis with ticks as 1, 10, 100."""
    low, high = _ends(values)
    return _log_axis(low, high, title) | _ticks(_decimal_ticks(low, high), number_words)


def size_axis(values: Iterable[int], title: str) -> Json:
    """A logarithmic axis with ticks as 4KiB, 64KiB, 1MiB."""
    low, high = _ends(values)
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    # Few enough for a narrow page, and 4KiB, 64KiB, 1MiB among them.
    step = next(step for step in (1, 2, 4, 8, 16) if (last - first) / step <= 7)
    ticks = [2.0**power for power in range(first - first % step, last + 1, step)]
    return _log_axis(low, high, title) | _ticks(ticks, lambda value: size_words(int(value)))


def rows(names: Sequence[str]) -> tuple[Json, Json]:
    """A row for each name, the first at the top: its trace, and the axes that it needs.

    Each name stands above its row: beside it a long one would leave a narrow page no room for the
    figures. It is text on an axis of its own, so that it stays where it is when one zooms.
    """
    trace: Json = {
        "type": "scatter",
        "mode": "text",
        "x": [0] * len(names),
        # A little above the row: on it are the marks.
        "y": [round(len(names) - 0.88 - number, 2) for number in range(len(names))],
        "text": list(names),
        "textposition": "top right",
        "textfont": {"size": 11},
        "hoverinfo": "skip",
        "showlegend": False,
        "xaxis": "x9",
        "yaxis": "y9",
        "cliponaxis": False,
    }
    span = [-0.6, len(names) - 0.2]
    return trace, {
        "xaxis9": {"overlaying": "x", "range": [0, 1], "visible": False, "fixedrange": True},
        "yaxis9": {"overlaying": "y", "range": span, "visible": False, "fixedrange": True},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": list(names)[::-1],
            "range": span,
            "fixedrange": True,
            "dtick": 1,
            "showticklabels": False,
        },
    }


def rows_area(names: Sequence[object]) -> int:
    """How high a plot of so many rows is, in pixels."""
    return 40 + ROW * len(names)


def _ends(values: Iterable[float]) -> tuple[float, float]:
    positive = [value for value in values if value > 0] or [1.0]
    return min(positive), max(positive)


def _log_axis(low: float, high: float, title: str) -> Json:
    # Room for error bars' ends and for marks: a twelfth of the span, at least a fifth of a decade.
    room = max(math.log10(high / low) / 12, 0.2)
    return {
        "type": "log",
        "title": {"text": title, "standoff": 8},
        "range": [round(math.log10(low) - room, 3), round(math.log10(high) + room, 3)],
    }


def _decimal_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    decades = last - first - 2
    steps = (1, 2, 5) if decades <= 1 else (1, 3) if decades <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return ticks[:: 1 + (decades > 8)]


def _ticks(values: Sequence[float], words: Any) -> Json:
    return {
        "tickmode": "array",
        "tickvals": [shown(value) for value in values],
        "ticktext": [words(value) for value in values],
    }


def page_words(order: int | None, page_bytes: int) -> str:
    """The largest folio that the memory is made of: ``2MiB``; empty where that is not known."""
    return "" if order is None else size_words(page_bytes << order)


def menu_note(entries: int, there: int) -> str:
    """What the table says of a menu that has not room for everything; empty where it has."""
    return "" if entries >= there else f"The plot's menu has {entries} of {there} entries."


def shortened(text: str, most: int = _MOST_LETTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> Table:
    """The first ``MOST_ROWS`` rows; the note says how many more there are."""
    every = list(rows)
    if len(every) > MOST_ROWS:
        left = f"{len(every) - MOST_ROWS} more rows are left out."
        note = f"{left} {note}".strip()
    cells = [tuple(shortened(cell) for cell in row) for row in every[:MOST_ROWS]]
    return Table(tuple(head), cells, note)
