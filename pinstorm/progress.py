"""Live progress on stderr: which case runs, how many are done, how long it takes.

On a terminal one line that is redrawn; elsewhere (a file, a CI log) a plain line now and then. A
case that went wrong is told at once on a line of its own in both.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from pinstorm.units import format_seconds

PLAIN_EVERY_CASES = 10
PLAIN_EVERY_S = 5.0
# A load can last for days.
PLAIN_LOAD_EVERY_S = 30.0
# How many of the latest cases the remaining time is reckoned from: a lab's boots come in between.
ETA_CASES = 30

QUIET_VERDICTS = ("pass", "skip")


class Bar(Protocol):
    """What a run tells its progress; also a context manager."""

    def start(self, case_id: str) -> None:
        """A case begins."""

    def done(self, record: Mapping[str, Any]) -> None:
        """A case ended; a record that is neither pass nor skip is told at once."""

    def load(self, told: Mapping[str, Any]) -> None:
        """How a load fares: ``load``, ``ops_s``, ``elapsed_s`` and ``duration_s``."""

    def note(self, text: str) -> None:
        """Say something that is no case: a boot, a set-up that failed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def progress(total: int, label: str, stream: TextIO | None = None) -> Bar:
    """A bar for ``total`` cases of all rounds: live on a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return LiveBar(total, label, stream)
    return PlainBar(total, label, stream)


class PlainBar:
    """One line each 10 cases or 5 s, and one at the end."""

    def __init__(self, total: int, label: str, stream: TextIO):
        self._stream = stream
        self._label = label
        self._tally = Tally(total)
        self._told_done = 0
        self._told_at = time.monotonic()

    def start(self, case_id: str) -> None:
        pass

    def done(self, record: Mapping[str, Any]) -> None:
        self._tally.count(record)
        if record.get("verdict") not in QUIET_VERDICTS:
            self._print(_failure(record))
        due = self._tally.done - self._told_done >= PLAIN_EVERY_CASES
        if due or time.monotonic() - self._told_at >= PLAIN_EVERY_S:
            self._tell()

    def load(self, told: Mapping[str, Any]) -> None:
        if time.monotonic() - self._told_at >= PLAIN_LOAD_EVERY_S:
            self._print(f"{told['load']}: {_load_words(told)}")
            self._told_at = time.monotonic()

    def note(self, text: str) -> None:
        self._print(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A run that was refused has nothing to tell: the error alone is what there is to read.
        refused = error is not None and not self._tally.done
        if self._told_done != self._tally.done or not (self._tally.done or refused):
            self._tell()

    def _tell(self) -> None:
        tally = self._tally
        words = [f"{self._label}: {tally.done}/{tally.total} cases", tally.verdicts()]
        words.append(format_seconds(tally.elapsed_s))
        eta = tally.eta_s
        if eta is not None and tally.done < tally.total:
            words.append(f"about {format_seconds(eta)} left")
        self._print(", ".join(word for word in words if word))
        self._told_done, self._told_at = tally.done, time.monotonic()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveBar:
    """One redrawn line: label, bar, done/total, elapsed, time left, the running case."""

    def __init__(self, total: int, label: str, stream: TextIO):
        # rich itself leaves colours out when NO_COLOR is set.
        self._console = Console(file=stream)
        self._tally = Tally(total)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            _TallyColumn(self._tally),
            _CaseColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, case="")

    def start(self, case_id: str) -> None:
        self._progress.update(self._task, case=case_id)

    def done(self, record: Mapping[str, Any]) -> None:
        self._tally.count(record)
        if record.get("verdict") not in QUIET_VERDICTS:
            self._progress.console.print(Text(_failure(record), style="red"))
        self._progress.update(self._task, completed=self._tally.done)

    def load(self, told: Mapping[str, Any]) -> None:
        self._progress.update(self._task, case=f"{told['load']}: {_load_words(told)}")

    def note(self, text: str) -> None:
        self._progress.console.print(Text(text, style="dim"))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class Tally:
    """How far a run is. ``eta_s`` is reckoned from the latest cases; None before the second."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self._begun = time.monotonic()
        # The ends of cases alone: before the first there may be a boot.
        self._ends: deque[float] = deque(maxlen=ETA_CASES + 1)
        self._verdicts: dict[str, int] = {}

    def count(self, record: Mapping[str, Any]) -> None:
        self.done += 1
        self._ends.append(time.monotonic())
        verdict = str(record.get("verdict"))
        self._verdicts[verdict] = self._verdicts.get(verdict, 0) + 1

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    @property
    def eta_s(self) -> float | None:
        if self.done < 2:
            return None
        per_case = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return per_case * max(self.total - self.done, 0)

    def verdicts(self) -> str:
        """``31 pass, 2 skip``, in the order in which they first came."""
        return ", ".join(f"{count} {verdict}" for verdict, count in self._verdicts.items())


class _TallyColumn(ProgressColumn):
    """``12/99  0:14  eta 1:05`` from the tally, whose estimate looks at the latest cases only."""

    def __init__(self, tally: Tally):
        super().__init__(Column(no_wrap=True))
        self._tally = tally

    def render(self, task: Task) -> Text:
        eta = self._tally.eta_s
        left = "" if eta is None else f"  eta {format_seconds(eta)}"
        return Text(
            f"{self._tally.done}/{self._tally.total}  {format_seconds(self._tally.elapsed_s)}{left}"
        )


class _CaseColumn(ProgressColumn):
    """The running case: the only column that a narrow terminal cuts."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["case"], no_wrap=True, overflow="ellipsis")


def _load_words(told: Mapping[str, Any]) -> str:
    elapsed, whole = format_seconds(told["elapsed_s"]), format_seconds(told["duration_s"])
    return f"{told['ops_s']:.0f} ops/s, {elapsed} of {whole}"


def _failure(record: Mapping[str, Any]) -> str:
    reason = record.get("reason") or "no reason"
    outcome = record.get("outcome")
    return f"{record.get('verdict')}: {record.get('case')}: {reason}" + (
        f" (outcome {outcome})" if outcome else ""
    )
