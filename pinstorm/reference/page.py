"""What the pages of the reference are made of: a head that says who made it, and tables."""

import textwrap
from collections.abc import Iterable, Sequence

_MADE = "<!-- made by scripts/docs from {source}; edit that -->"


def head(title: str, source: str, *paragraphs: str) -> list[str]:
    """The title, the source that the page is made from (a path of this repository), the lead."""
    lines = [f"# {title}", "", _MADE.format(source=source)]
    for paragraph in paragraphs:
        lines += ["", prose(paragraph)]
    return lines


def prose(words: str) -> str:
    """A paragraph, or an item of a list, in lines of at most 100 columns."""
    indent = "  " if words.startswith("- ") else ""
    return textwrap.fill(
        words, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of Markdown, with an empty line before it; a bar in a cell is escaped."""
    lines = ["", _row(columns), _row(["---"] * len(columns))]
    return lines + [_row([cell.replace("|", "\\|") for cell in row]) for row in rows]


def code(words: Iterable[object]) -> str:
    """``a``, ``b``: each in code; a dash when there is none."""
    return ", ".join(f"`{word}`" for word in words) or "-"


def whole(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
