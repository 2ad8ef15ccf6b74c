"""The witness of a run: the trace of GUP's calls, or why there is none.

On a host the events are patched into the kernel for the observed cycle only, so that the timed
cycles run through the kernel's own code. Emulated times are not compared, and patching costs 0.2 s
a case there, so in such a lab the events stay and are only switched on for the windows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from telemetry import gup_trace
from telemetry.gup_trace import GupTrace, TraceUnavailable

NOT_ASKED: Final = "not asked for: [run] trace = true in the suite"


@dataclass(frozen=True, slots=True)
class Known:
    """What a self-test's system call is known to do: so many pages, with that flag, in one of these
    functions behind the entry points."""

    call: str
    functions: tuple[str, ...]
    flag: str
    pages: int


class Witness:
    """What the runner asks for every case; all of it does nothing where there is no trace.

    ``missing`` says why there is none, None when there is one.
    """

    def __init__(self, trace: GupTrace | None, missing: str | None, *, stays_armed: bool = False):
        self._trace = trace
        self._stays_armed = stays_armed
        self._armed = False
        self.missing = missing

    def follow(self, pid: int) -> None:
        """The cases will be descendants of that process: the zygote."""
        with self._or_missing() as trace:
            if trace is not None:
                trace.follow(pid)

    def arm(self) -> None:
        """Before the observed cycle."""
        with self._or_missing() as trace:
            if trace is not None and not self._armed:
                trace.arm(True)
                self._armed = True

    def disarm(self) -> None:
        """After the observed cycle, before anything is timed."""
        if not self._stays_armed:
            with self._or_missing() as trace:
                if trace is not None and self._armed:
                    trace.arm(False)
                    self._armed = False

    @contextmanager
    def window(self) -> Iterator[None]:
        """The interval in which calls are recorded."""
        with self._or_missing() as trace:
            if trace is not None:
                trace.on()
        try:
            yield
        finally:
            with self._or_missing() as trace:
                if trace is not None:
                    trace.off()

    def seen(self, phase: str, *, ended: bool = True) -> tuple[list[dict[str, Any]] | None, str]:
        """The calls of the window before, or None and why. ``ended``: the case was not cut off."""
        with self._or_missing() as trace:
            if trace is not None:
                seen = trace.read()
                if seen.lost is not None and (ended or not seen.only_unreturned):
                    return None, seen.lost
                return [call.to_json(phase) for call in seen.calls], ""
        return None, self.missing or ""

    def report(self) -> dict[str, Any]:
        """The manifest's ``trace``."""
        if self._trace is None or self.missing is not None:
            return {"available": False, "detail": self.missing}
        return {
            "available": True,
            "functions": list(self._trace.functions),
            "refused": list(self._trace.refused),
            "flags": self._trace.layout_source,
        }

    def prove(self, calls: Sequence[dict[str, Any]] | None, known: Known) -> None:
        """A trace that does not show what the self-test is known to have called is no trace."""
        shown = sum(
            call["pages_returned"]
            for call in calls or ()
            if call["via"] is not None
            and call["by"] == "process"
            and call["function"] in known.functions
            and known.flag in call["flags"]
        )
        if self.missing is None and shown < known.pages:
            self.missing = (
                f"the trace showed {known.flag} of {shown} pages in the self-test, in which "
                f"{known.call} took {known.pages}"
            )

    @contextmanager
    def _or_missing(self) -> Iterator[GupTrace | None]:
        """The trace; what fails from here on is why there is none."""
        try:
            yield self._trace if self.missing is None else None
        except OSError as error:
            self.missing = f"the trace broke: {error.strerror or error}"


@contextmanager
def witness(wanted: bool, *, stays_armed: bool = False) -> Iterator[Witness]:
    """The witness of one run; whatever happens, nothing of it stays in the kernel."""
    trace, missing = None, None
    if wanted:
        try:
            trace = GupTrace.open()
        except TraceUnavailable as error:
            missing = str(error)
    else:
        missing = NOT_ASKED
        _clean()
    try:
        yield Witness(trace, missing, stays_armed=stays_armed)
    finally:
        if trace is not None:
            trace.close()


def _clean() -> None:
    """A run that traces nothing still removes what a killed one left."""
    with suppress(TraceUnavailable):
        gup_trace.remove_stale()
