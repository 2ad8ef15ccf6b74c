"""Ctrl-C and SIGTERM while cases run: raised where the journal stays true, put off elsewhere."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(BaseException):
    """Ctrl-C or SIGTERM, raised in the main thread while a case is observed, or before the next."""


@dataclass(slots=True)
class Interrupts:
    """Raises Interrupt once, and only where the journal stays true: a case that has a start line
    must get its record or its interruption. Elsewhere, and the second time, it is put off."""

    _pending: bool = False
    _allowed: bool = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take the signals over, and give them back to whoever had them."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def raised(self) -> Iterator[None]:
        self._allowed = True
        try:
            self.raise_pending()
            yield
        finally:
            self._allowed = False

    def answered(self) -> None:
        """What was raised has been seen to: only the next one is raised again."""
        self._pending = False

    def raise_pending(self) -> None:
        if self._pending:
            self._allowed = False
            raise Interrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
        if self._allowed:
            self.raise_pending()
