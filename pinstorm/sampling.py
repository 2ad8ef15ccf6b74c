"""The runner's side of the sampler: start it, say what to watch and what is going on, and stop it.

A sampler that dies, or does not answer, takes nothing of the run along: from then on there is no
time series, and the report says so.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pinstorm import journal
from pinstorm.host import module_path
from pinstorm.spawn import MARK
from pinstorm.spool import SEGMENT_BYTES, segments
from workloads.channel import Channel

# Python and a few small modules; emulated, that is seconds.
_START_DEADLINE_S = 60.0
_REPORT_DEADLINE_S = 20.0
_END_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a sampler did, and what it cost.

    ``cost``: ``cpu_ns``, ``elapsed_ns``, ``share`` of one core. ``sources``: by name ``hz_asked``,
    ``hz_got``, ``readings``, ``ns_per_reading`` (CPU), ``missed`` (ticks that passed unused),
    ``slower`` (how often the rate was halved, because a reading costs so much), ``failure``.
    ``missing``: sources that this machine lacks, and why. ``bytes``: of the spool. ``halved``: how
    often all rates were, because it fills; ``eased``: how often they are now, because the sampler
    took too much of a core. ``error``: why nothing was written any more.
    ``trends``: by figure ``[t_s, low, mean]`` of each bucket of time, ``t_s`` in seconds since
    ``began_ns``, which is when the last phase ``hold`` began, else the sampler. ``died``: it ended
    before it was told to, or did not answer; all but ``bytes`` is then empty.
    """

    died: bool
    bytes: int
    began_ns: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    halved: int = 0
    eased: int = 0
    error: str | None = None
    trends: Mapping[str, list[list[float]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Sampling:
    """One sampler, from its start to its report."""

    def __init__(
        self,
        spool: Path,
        *,
        hz: float,
        device: str | None,
        limit_bytes: int = 1 << 30,
        segment_bytes: int = SEGMENT_BYTES,
    ):
        """``spool``: the directory of its files (pinstorm.samples.spool_of), made if need be.
        ``hz``: readings of the pin counters a second, to 1000; other sources have at most that."""
        self._spool = spool
        self._wanted = {
            "spool": str(spool),
            "hz": hz,
            "device": device,
            "limit_bytes": limit_bytes,
            "segment_bytes": segment_bytes,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._report: Report | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and return once it samples. WriteError where its files cannot be."""
        try:
            self._spool.mkdir(exist_ok=True)
        except OSError as error:
            raise journal.write_error(self._spool, error) from error
        self._channel, theirs = Channel.pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-m", "pinstorm.sampler", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # A Ctrl-C on the terminal is the runner's to handle.
                start_new_session=True,
            )
        self._tell(**self._wanted)
        self._answer(_START_DEADLINE_S)

    def watch(self, pids: Sequence[int], own: Sequence[int]) -> None:
        """The loaded processes, and pinstorm's own beside the sampler; no others from now on."""
        self._tell(watch=list(pids), own=list(own))

    def mark(self, seq: int | None, case: str | None, phase: str | None) -> None:
        """What the readings from now on belong to."""
        mark = {"t_ns": time.monotonic_ns(), "seq": seq, "phase": phase, "case": case}
        self._tell(mark=mark)

    def report(self) -> Report:
        """What it did up to now; it goes on."""
        return self._asked("report")

    def stop(self) -> Report:
        """Have it write what it has, report, and end. The same report when asked again."""
        if self._report is None:
            self._report = self._asked("stop")
            self.close()
        return self._report

    def close(self) -> None:
        """Whatever happened: the process is gone."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is None:
            return
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._process.send_signal(number)  # to this pid, and only while it is unreaped
            # The end of its channel is enough for one that listens.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_DEADLINE_S)
                return

    def _asked(self, what: str) -> Report:
        self._tell(**{what: True})
        answer = self._answer(_REPORT_DEADLINE_S)
        if answer is None:
            return Report(died=True, bytes=_bytes_in(self._spool))
        return Report(died=False, **answer["report"])

    def _tell(self, **message: Any) -> None:
        if self._channel is None:
            return
        with contextlib.suppress(OSError):  # it has died: the report will say so
            self._channel.send(**message)

    def _answer(self, deadline_s: float) -> dict[str, Any] | None:
        if self._channel is None:
            return None
        with contextlib.suppress(OSError):  # TimeoutError is one
            return self._channel.receive(time.monotonic_ns() + round(deadline_s * 1e9))
        return None


def _environment() -> dict[str, str]:
    """As of the zygote: no site, our own module path spelled out.

    Without the zygote's mark: what a case leaves behind is looked for by it.
    """
    kept = {name: value for name, value in os.environ.items() if name != MARK}
    return {
        **kept,
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": module_path(),
    }


def _bytes_in(spool: Path) -> int:
    sizes = 0
    for path in segments(spool):
        with contextlib.suppress(OSError):
            sizes += path.stat().st_size
    return sizes
