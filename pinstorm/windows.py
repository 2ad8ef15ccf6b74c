"""The windows of one case, and the noise of the machine around them.

Every figure is the difference of two snapshots taken while the child stands still. The noise is
measured before and after each window, each time at least as long as the window; how long a window
will be is known from the case before it of the same kind, and where that was too short the interval
after it is made longer by what is missing.
"""

import random
import time
from dataclasses import dataclass, field
from typing import Any

import workloads
from pinstorm.talk import Deadline
from telemetry import window
from telemetry.vmstat import Counters, Snapshot, settle
from telemetry.window import Delta
from workloads.spec import Case

# vm.stat_interval is rounded to whole seconds and spread over the CPUs.
_FOLD_INTERVALS = 1.2
_MIN_NOISE_NS = 2_000_000
_FIRST_GUESS_NS = 10_000_000
_GUESS_NS_PER_BYTE = 3
_SETTLE_DEADLINE_S = 1.0
# Beside others' pins the counters never rest; what is released late comes within 20 ms.
_NOISY_SETTLE_DEADLINE_S = 0.1
_REST_TRIES = 25


@dataclass(slots=True)
class Expectancy:
    """How long the windows of each kind of case took, to choose the noise interval before them."""

    _seen_ns: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def expected_ns(self, case: Case, phase: str) -> int:
        # Half as long again: the interval before a window should not be the shorter one.
        guess_ns = _FIRST_GUESS_NS + _GUESS_NS_PER_BYTE * case.size_bytes
        return self._seen_ns.get(self._kind(case, phase), guess_ns) * 3 // 2

    def learn(self, case: Case, phase: str, elapsed_ns: int) -> None:
        self._seen_ns[self._kind(case, phase)] = elapsed_ns

    @staticmethod
    def _kind(case: Case, phase: str) -> tuple[Any, ...]:
        memory = workloads.memory_spec(case.memory)
        return case.workload, case.size_bytes, phase, memory.backing, memory.fresh_each_cycle


@dataclass(slots=True)
class _Noise:
    """The pages that moved in the intervals around the windows, when nothing of ours ran."""

    pages: int = 0
    before_ns: int = 0
    last_ns: int = 0
    owed_ns: int = 0


class Windows:
    """The snapshots of one case, from before it is forked until it is gone.

    ``spans``: the two snapshots of each phase; ``lasted_ns``: how long each was.
    """

    def __init__(self, case: Case, counters: Counters, expectancy: Expectancy, deadline: Deadline):
        self._case = case
        self._counters = counters
        self._expectancy = expectancy
        self._deadline = deadline
        self._noise = _Noise()
        self._first: Snapshot | None = None
        self._last: Snapshot | None = None
        self._drift = 0
        self.spans: dict[str, tuple[Snapshot, Snapshot]] = {}
        self.lasted_ns: dict[str, int] = {}
        # What a cycle took, acquire and release, and the making of its memory.
        self.cycle_ns = 0
        self.memory_ns = 0

    # -- around a window -----------------------------------------------------------------------

    def quiet(self, before_phase: str | None) -> Snapshot:
        """Let nothing of ours run, at least as long as the window before and the one to come.

        The snapshot is the first of the window ``before_phase``.
        """
        if before_phase == "acquire":
            self._wait_for_fold()
        wanted_ns = max(self._noise.owed_ns, _MIN_NOISE_NS)
        if before_phase is not None:
            wanted_ns = max(wanted_ns, self._expected_ns(before_phase))
        ambient = window.ambient(self._counters, wanted_ns)
        # The child stood still: waiting is not its time, and what moved is not its doing.
        self._deadline.put_off(ambient.elapsed_ns)
        self._noise.pages = max(self._noise.pages, ambient.pages or 0, abs(self._drifted(ambient)))
        if before_phase == "acquire":
            self._noise.before_ns = ambient.elapsed_ns
            self._first = ambient.end
        self._noise.last_ns = ambient.elapsed_ns
        self._noise.owed_ns = 0
        return ambient.end

    def end(self, phase: str, before: Snapshot, ended_ns: int) -> None:
        """The window that began with ``before``; its step was over at ``ended_ns``."""
        if phase != "cycles":
            self._wait_for_fold()
        after = self._counters.snapshot()
        self._expectancy.learn(self._case, phase, ended_ns - before.t_ns)
        self._measured(phase, before, after, ended_ns)

    def settle(self, phase: str) -> int | None:
        """Wait for what the kernel gives back later, and count it to the phase that caused it.

        The nanoseconds that it took; None without counters.
        """
        before, after = self.spans[phase]
        first = self._first
        if first is None or after.outstanding is None:
            return None
        if after.outstanding == first.outstanding:
            return 0
        after, settle_ns = settle(
            self._counters, lambda now: now.outstanding == first.outstanding, self._settle_s()
        )
        self._measured(phase, before, after, after.t_ns)
        return settle_ns

    # -- around the case -----------------------------------------------------------------------

    def at_rest(self) -> Snapshot:
        """A snapshot in which no pin of others is on its way, so that none can look like ours."""
        for _ in range(_REST_TRIES):
            ambient = window.ambient(self._counters, _MIN_NOISE_NS, per_node=False)
            if not ambient.pages:
                break
        return ambient.end

    def orphaned(self, baseline: Snapshot) -> int | None:
        """Pins still held once the child is gone: nobody is left to give them back."""
        if baseline.outstanding is None:
            return None
        rested, _ = settle(
            self._counters,
            lambda now: now.outstanding == baseline.outstanding,
            self._settle_s(),
        )
        if rested.outstanding is None:
            return None
        return rested.outstanding - baseline.outstanding - self._drift

    def moment_in(self, phase: str) -> int:
        """Nanoseconds into a phase that is to be broken off: anywhere in it, or just behind it."""
        return random.randrange(self._expected_ns(phase))

    # -- what came out -------------------------------------------------------------------------

    @property
    def deltas(self) -> dict[str, Delta]:
        return {phase: window.between(*span) for phase, span in self.spans.items()}

    @property
    def noise_pages(self) -> int:
        return self._noise.pages

    @property
    def noise_ns(self) -> list[int]:
        """The interval before the first window, and the one after the last."""
        return [self._noise.before_ns, self._noise.last_ns]

    # ------------------------------------------------------------------------------------------

    def _measured(self, phase: str, before: Snapshot, after: Snapshot, ended_ns: int) -> None:
        """Note the window, and how long the noise is to be watched for its sake."""
        self.spans[phase] = before, after
        self._last = after
        elapsed_ns = self.lasted_ns[phase] = ended_ns - before.t_ns
        self._noise.owed_ns = elapsed_ns + max(0, elapsed_ns - self._noise.last_ns)

    def _wait_for_fold(self) -> None:
        """An ordinary user cannot have the counters folded; each CPU does it once an interval."""
        if not self._counters.refreshes:
            time.sleep(_FOLD_INTERVALS * self._counters.interval_s)
            self._deadline.put_off(round(_FOLD_INTERVALS * self._counters.interval_s * 1e9))

    def _drifted(self, ambient: window.Ambient) -> int:
        """Net pages that others pinned since the last window: a hold can be long."""
        if self._last is None or None in (self._last.outstanding, ambient.end.outstanding):
            return 0
        assert self._last.outstanding is not None
        assert ambient.end.outstanding is not None
        drifted = ambient.end.outstanding - self._last.outstanding
        self._drift += drifted
        return drifted

    def _expected_ns(self, phase: str) -> int:
        """How long the window will be: the cycles' from the observed cycle, else as before."""
        if phase != "cycles":
            return self._expectancy.expected_ns(self._case, phase)
        cycle_ns = self.cycle_ns
        if workloads.memory_spec(self._case.memory).fresh_each_cycle:
            cycle_ns += self.memory_ns
        return cycle_ns * (self._case.warmup + self._case.repeat) + _FIRST_GUESS_NS

    def _settle_s(self) -> float:
        return _NOISY_SETTLE_DEADLINE_S if self._noise.pages else _SETTLE_DEADLINE_S
