"""Text that folds by its own rules, for rich: paragraphs, and the names of cases."""

import re
import textwrap
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

# C0 but for line feeds and tabs, DEL, C1, and what turns the direction of text.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Harmless:
    """What it holds, without what a terminal would obey: anybody may have written a bundle."""

    inner: RenderableType

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.inner)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield Segment(_OBEYED.sub("", segment.text), segment.style, segment.control)


@dataclass(frozen=True, slots=True)
class Hanging:
    """A paragraph whose later lines stand ``indent`` columns in; no trailing blanks."""

    head: str
    text: str
    indent: int = 4

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wrapped = textwrap.wrap(
            self.head + self.text,
            width=options.max_width,
            subsequent_indent=" " * self.indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield Text("\n".join(wrapped), no_wrap=True, overflow="ignore")


@dataclass(frozen=True, slots=True)
class CaseName:
    """A case's id, which goes on on the next line behind a slash where it has to."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(len(word) for word in self._words())
        return Measurement(longest, len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for word in self._words():
            if lines[-1] and len(lines[-1]) + len(word) > options.max_width:
                lines.append("")
            lines[-1] += word
        yield Text("\n".join(lines), overflow="fold")

    def _words(self) -> list[str]:
        *words, last = self.text.split("/")
        return [*(f"{word}/" for word in words), last]
