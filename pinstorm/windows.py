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
from pinstorm import noise
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
# Of a call of which nothing is known yet: 1 ns per byte more. One that was over earlier tells.
_FIRST_CALL_NS = 200_000
# io_uring and AF_XDP give back in a worker, which comes within 20 ms.
_FIRST_SETTLE_NS = 20_000_000
_HOLD_NS = 5_000_000
_SETTLE_DEADLINE_S = 1.0
# What a process held is back so soon after its end: io_uring and AF_XDP take 20 ms.
_EXIT_S = 0.1
# Millions of pins take a kernel worker in an emulated guest a second (gup-overflow, AF_XDP).
_SETTLE_S_PER_PAGE = 5e-6
# Without a change for so long the counters rest, unless pins are missing: then the deadline is
# waited for, because it may be others who hold them.
_REST_S = 0.25
_REST_TRIES = 25
# A load lasts for minutes to days, and no figure of its window is judged but what it left: others
# who pin all the time show in so long, and nobody waits for a second load.
_LOAD_NOISE_NS = 1_000_000_000


@dataclass(slots=True)
class Expectancy:
    """What the cases of a run leave to the next ones.

    How long the windows of each kind of case took, to choose the noise interval before them; and
    what others pinned lately (``recent``).
    """

    recent: noise.Recent = field(default_factory=noise.Recent)
    _seen_ns: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def expected_ns(self, case: Case, phase: str) -> int:
        # Half as long again: the interval before a window should not be the shorter one.
        guess_ns = _FIRST_GUESS_NS + _GUESS_NS_PER_BYTE * case.size_bytes
        return self._seen_ns.get(self._kind(case, phase), guess_ns) * 3 // 2

    def learn(self, case: Case, phase: str, elapsed_ns: int) -> None:
        self._seen_ns[self._kind(case, phase)] = elapsed_ns

    def expected_step_ns(self, case: Case, step: str) -> int:
        """How long the child itself will take, without the windows and messages around it."""
        if step == "hold":
            return _HOLD_NS
        guess_ns = _FIRST_CALL_NS + case.size_bytes
        if step == "settle":
            guess_ns = _FIRST_SETTLE_NS
        return self._seen_ns.get(self._kind(case, f"{step} alone"), guess_ns)

    def learn_step(self, case: Case, step: str, elapsed_ns: int) -> None:
        self.learn(case, f"{step} alone", elapsed_ns)

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
        self._recent = expectancy.recent
        # From here on the child only ends.
        self._standing: Snapshot | None = None
        # The fewest pins outstanding that were seen while something had to be given back.
        self._least: dict[str, int] = {}
        self._stayed: int | None = None
        # The most that was taken between two looks while something had to be given back.
        self._most_taken = 0
        self._began_ns = time.monotonic_ns()
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
        begin, ambient = self._ambient(wanted_ns)
        # The child stood still: waiting is not its time, and what moved is not its doing.
        self._deadline.put_off(ambient.elapsed_ns)
        met_pages = max(ambient.pages or 0, self._met_since_window(begin, ambient.end))
        self._recent.met(met_pages, ambient.end.t_ns)
        self._noise.pages = max(self._noise.pages, met_pages)
        if before_phase == "acquire":
            self._noise.before_ns = ambient.elapsed_ns
            self._first = ambient.end
        self._standing = ambient.end if before_phase is None else None
        if before_phase is None and self._counters.refreshes:
            self._look_again()
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

    def settle(self, phase: str, since_ns: int | None = None) -> int | None:
        """Wait for what the kernel gives back later, and count it to the phase that caused it.

        The nanoseconds that it took, or at most took from ``since_ns`` on; None without counters.
        """
        before, after = self.spans[phase]
        first = self._first
        if first is None or after.outstanding is None:
            return None
        if after.outstanding == first.outstanding:
            self._least[phase] = after.outstanding
            return 0 if since_ns is None else max(0, after.t_ns - since_ns)
        began_ns = time.monotonic_ns()
        after, settle_ns, self._least[phase] = self._given_back(first)
        self._measured(phase, before, after, after.t_ns)
        # While nothing moved any more there was no noise either.
        self._noise.owed_ns -= min(self._noise.owed_ns, after.t_ns - began_ns - settle_ns)
        return settle_ns if since_ns is None else max(0, began_ns + settle_ns - since_ns)

    # -- around the case -----------------------------------------------------------------------

    def at_rest(self) -> Snapshot:
        """A snapshot in which no pin of others is on its way, so that none can look like ours."""
        begin = self._counters.snapshot(per_node=False)
        self._recent.come_back(begin)
        ends = []
        for _ in range(_REST_TRIES):
            ambient = window.ambient(self._counters, _MIN_NOISE_NS, begin, per_node=False)
            begin = ambient.end
            if not ambient.pages:
                return begin
            if self._recent.between_cases:
                self._recent.met(ambient.pages, begin.t_ns)
            ends.append(begin)
        return min(ends, key=lambda end: end.outstanding or 0)

    def orphaned(self, baseline: Snapshot) -> int | None:
        """Pins still held once the child is gone: nobody is left to give them back."""
        if baseline.outstanding is None:
            return None
        if self._standing is not None and self._recent.between_cases:
            # Nothing that ends acquires.
            now = self._counters.snapshot(per_node=False)
            ending = window.between(self._standing, now)
            self._recent.met(ending.acquired or 0, now.t_ns)
        if self._first is not None and self._counters.refreshes:
            # Not to the page: what prepare had pinned (a device's queues) comes back as well.
            self._least["exit"] = self._given_back(self._first, _EXIT_S, at_most=True)[2]
        rested, _, least = self._given_back(baseline)
        self._recent.leave(rested)
        if rested.outstanding is None:
            return None
        self._watch_what_stays(baseline.outstanding, least)
        return rested.outstanding - baseline.outstanding - self._drift

    def moment_in(self, step: str) -> int:
        """Nanoseconds into a step that is to be broken off: anywhere in it, or just behind it."""
        expected_ns = self._expectancy.expected_step_ns(self._case, step)
        return random.randrange(max(1, expected_ns * 11 // 10))

    def took(self, step: str, elapsed_ns: int) -> None:
        """How long the child took for a step, so that a later one of its kind can be broken off."""
        self._expectancy.learn_step(self._case, step, elapsed_ns)

    def rests_again(self) -> bool | None:
        """Whether all that acquire took has come back by now; None without counters."""
        first, now = self._first, self._counters.snapshot()
        if first is None or now.outstanding is None:
            return None
        return now.outstanding == first.outstanding

    def unwatched(self) -> None:
        """Something of ours ran outside of all windows: what has moved since is not noise."""
        self._last = None

    # -- what came out -------------------------------------------------------------------------

    @property
    def deltas(self) -> dict[str, Delta]:
        return {phase: window.between(*span) for phase, span in self.spans.items()}

    @property
    def noise_pages(self) -> int:
        return self._noise.pages

    @property
    def recent_pages(self) -> int:
        """The most that others pinned at a time, from two seconds before the first window on."""
        if not self._counters.refreshes:
            return 0
        since_ns = self._began_ns if self._first is None else self._first.t_ns
        return self._recent.since(since_ns - noise.QUIET_NS)

    @property
    def remaining(self) -> list[int] | None:
        """How many pins more than before acquire were always there: while what was released had to
        come back, and just after the process had ended. None where that was not watched."""
        first, leftover = self._first, self._leftover
        if first is None or first.outstanding is None or leftover is None:
            return None
        if "exit" not in self._least or not self._counters.refreshes:
            return None
        return [leftover - first.outstanding, self._least["exit"] - first.outstanding]

    @property
    def stayed(self) -> int | None:
        """The fewest pins outstanding after the process had ended, beyond the baseline and what
        others began to hold while the child stood still; None where that was not watched."""
        return self._stayed

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
        if phase == "load":
            elapsed_ns = min(elapsed_ns, _LOAD_NOISE_NS)
        self._noise.owed_ns = elapsed_ns + max(0, elapsed_ns - self._noise.last_ns)

    def _wait_for_fold(self) -> None:
        """An ordinary user cannot have the counters folded; each CPU does it once an interval."""
        if not self._counters.refreshes:
            time.sleep(_FOLD_INTERVALS * self._counters.interval_s)
            self._deadline.put_off(round(_FOLD_INTERVALS * self._counters.interval_s * 1e9))

    def _ambient(self, wanted_ns: int) -> tuple[Snapshot, window.Ambient]:
        """Watch so long, in pieces: ``pages`` are the most of one piece, for a loop moves any
        number of pages in time, and holds few of them at a time. With the snapshot at its begin."""
        begin = last = self._counters.snapshot()
        pages = None
        while True:
            left_ns = max(0, begin.t_ns + wanted_ns - last.t_ns)
            piece = window.ambient(self._counters, min(left_ns, noise.PIECE_NS), last)
            if piece.pages is not None:
                pages = max(pages or 0, piece.pages)
            last = piece.end
            if left_ns <= noise.PIECE_NS:
                return begin, window.Ambient(pages, last.t_ns - begin.t_ns, last)

    def _met_since_window(self, begin: Snapshot, now: Snapshot) -> int:
        """Pages that others moved since the last window, while the child stood still.

        A hold can be long: of what came and went more than two seconds ago, no figure is in doubt;
        what has stayed must not look like the case's own.
        """
        last = self._last
        if last is None or last.outstanding is None or now.outstanding is None:
            return 0
        drifted = now.outstanding - last.outstanding
        self._drift += drifted
        if self._recent.between_cases and now.t_ns - last.t_ns < noise.QUIET_NS:
            return max(abs(drifted), noise.moved_pages(last, begin))
        return abs(drifted)

    @property
    def _leftover(self) -> int | None:
        """The fewest outstanding after release, or where there was none after acquire."""
        return self._least.get("release", self._least.get("acquire"))

    def _watch_what_stays(self, baseline_pages: int, least: int) -> None:
        """After the end: does what is still held ever go, and how much do others take meanwhile?

        Beside a loop what drifted between two snapshots is as often negative. Only a rise is taken
        off, so that the error is never in favour of a leak that is none.
        """
        expected = baseline_pages + max(0, self._drift)
        least = min(least, self._least.get("exit", least))
        if least > expected:
            watched = noise.low_point(self._counters, expected)
            if watched is None:
                return
            least = min(least, watched.least)
            self._noise.pages = max(self._noise.pages, watched.rose)
            if self._recent.between_cases:
                self._recent.met(watched.rose, watched.last.t_ns)
            self._recent.leave(watched.last)
        self._stayed = least - expected

    def _look_again(self) -> None:
        """Before the child ends: does it still hold what it did not give back, or was it others?"""
        first, leftover = self._first, self._leftover
        if first is None or leftover is None or leftover <= _outstanding(first):
            return
        now, _, least = self._given_back(first)
        self._deadline.put_off(now.t_ns - (self._standing or now).t_ns)
        if self._recent.between_cases:
            self._recent.met(self._most_taken, now.t_ns)
        self._standing = now
        self._least["release"] = min(leftover, least)

    def _given_back(
        self, wanted: Snapshot, deadline_s: float | None = None, *, at_most: bool = False
    ) -> tuple[Snapshot, int, int]:
        """Wait until no more is outstanding than ``wanted``, or ``at_most`` that.

        The last snapshot, the nanoseconds it took, and the fewest outstanding seen. Beside others
        who pin and unpin the counters never rest, but at times show what is there without them.
        """
        wanted_pages = wanted.outstanding or 0
        seen: list[int] = []
        taken: int | None = None
        self._most_taken = 0

        def enough(now: Snapshot) -> bool:
            nonlocal taken
            if taken is not None and now.acquired is not None:
                self._most_taken = max(self._most_taken, now.acquired - taken)
            taken = now.acquired
            seen.append(_outstanding(now))
            if not exact:
                return seen[-1] == wanted_pages
            return seen[-1] <= wanted_pages

        exact = self._counters.refreshes
        if deadline_s is None:
            missing = _outstanding(self._last) - wanted_pages if self._last is not None else 0
            deadline_s = _SETTLE_DEADLINE_S + max(0, missing) * _SETTLE_S_PER_PAGE
        after, took_ns = settle(self._counters, enough, deadline_s, deadline_s if exact else None)
        rested = at_most or not exact or bool(self._noise.pages)
        if not rested and _outstanding(after) < wanted_pages:
            # More came back than was taken (folio_add_pin() is not counted): is that all?
            after, more_ns = settle(
                self._counters,
                lambda now: _outstanding(now) == wanted_pages,
                _SETTLE_DEADLINE_S,
                _REST_S,
            )
            took_ns += more_ns
            seen.append(_outstanding(after))
        return after, took_ns, min(seen)

    def _expected_ns(self, phase: str) -> int:
        """How long the window will be: the cycles' from the observed cycle, else as before."""
        if phase == "load":
            return _LOAD_NOISE_NS
        if phase != "cycles":
            return self._expectancy.expected_ns(self._case, phase)
        cycle_ns = self.cycle_ns
        if workloads.memory_spec(self._case.memory).fresh_each_cycle:
            cycle_ns += self.memory_ns
        return cycle_ns * (self._case.warmup + self._case.repeat) + _FIRST_GUESS_NS


def _outstanding(snapshot: Snapshot) -> int:
    return snapshot.outstanding or 0
