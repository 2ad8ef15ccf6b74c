"""How lists are printed: tables that fit 100 columns, or one JSON document."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100


def yes(met: bool) -> Text:
    return Text("yes", style="green") if met else Text("no", style="red")


def sheet(
    header: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[str] = ()
) -> Table:
    """The last column may go on on the next line, no other."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in header:
        table.add_column(
            Text(title, style="bold"),
            justify="right" if title in right else "left",
            no_wrap=title != header[-1] or title in right,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*[cell if isinstance(cell, Text) else Text(cell) for cell in row])
    return table


def print_parts(*parts: RenderableType) -> None:
    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if at_terminal else PLAIN_WIDTH
    console = Console(width=width, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(Group(*parts), crop=False)
    # rich fills the last column with blanks, which whoever copies a line gets too
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))
