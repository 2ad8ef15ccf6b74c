"""The results as a table of at most 100 columns."""

from collections.abc import Sequence

from benches.pairs import Result

_HEADINGS = ("", "ours", "peer", "unit", "ratio", "interval", "cpu", "pairs")
WIDTH = 100


def render(title: str, results: Sequence[Result]) -> str:
    """One line for each result; ``±`` is half of the spread, ``interval`` that of the ratio."""
    rows = [_HEADINGS, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    lines = [title]
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append(gap.join([name.ljust(widths[0]), *aligned]).rstrip())
    return "\n".join(lines)


def _row(result: Result) -> tuple[str, ...]:
    around = result.ratio_interval
    return (
        result.benchmark.name,
        _with_spread(result.ours, result.ours_spread),
        _with_spread(result.peer, result.peer_spread),
        result.benchmark.unit,
        _ratio(result.ratio),
        "-" if around is None else f"{around.low:.3f}..{around.high:.3f}",
        _ratio(result.cpu_ratio, 2),
        str(result.pairs),
    )


def _with_spread(value: float, spread: float | None) -> str:
    return figure(value) + ("" if spread is None else f" ±{spread * 50:.0f}%")


def figure(value: float) -> str:
    """Three digits or all before the point: ``84,120``, ``12.3``, ``0.41``."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _ratio(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
