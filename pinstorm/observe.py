"""One case from its fork to its record: the windows, the noise around them, the deadline.

Every figure is the difference of two snapshots taken while the child stands still (design: "How a
case flows"). The noise of the machine is measured before and after each window, each time at least
as long as the window; how long a window will be is known from the case before it of the same kind,
and where that was too short the interval after it is made longer by what is missing.
"""

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import workloads
from pinstorm import figures
from pinstorm.containment import Containment
from pinstorm.spawn import Child, Zygote, ZygoteDied
from pinstorm.witness import Witness
from telemetry import maps, process_status, window, zoneinfo
from telemetry.vmstat import Counters, Snapshot, settle
from workloads.spec import Case, Surroundings

# vm.stat_interval is rounded to whole seconds and spread over the CPUs.
_FOLD_INTERVALS = 1.2
_MIN_NOISE_NS = 2_000_000
_FIRST_GUESS_NS = 10_000_000
_GUESS_NS_PER_BYTE = 3
_SETTLE_DEADLINE_S = 1.0
# Beside others' pins the counters never rest; what is released late comes within 20 ms.
_NOISY_SETTLE_DEADLINE_S = 0.1
_REST_TRIES = 25
_EXIT_DEADLINE_S = 10.0
# A child that is slow to close is not the case's failure, but it must not hang the run.
_CLOSE_DEADLINE_NS = 10_000_000_000


class _DeadlinePassed(Exception):
    """The case took longer than it may."""


class _ChildEnded(Exception):
    """The child's end of the socket closed in mid-case."""


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

    @property
    def intervals_ns(self) -> list[int]:
        """The interval before the first window, and the one after the last."""
        return [self.before_ns, self.last_ns]


class Observation:
    """Runs one case in a child of the zygote and writes what was seen into ``record``."""

    def __init__(
        self,
        case: Case,
        around: Surroundings,
        counters: Counters,
        expectancy: Expectancy,
        containment: Containment,
        witness: Witness,
    ):
        self._case = case
        self._around = around
        self._counters = counters
        self._expectancy = expectancy
        self._containment = containment
        self._witness = witness
        self._unread_phase: str | None = None
        self._noise = _Noise()
        self._spans: dict[str, tuple[Snapshot, Snapshot]] = {}
        self._phase = "prepare"
        self._zygote_fileno = -1
        self._window_ns: dict[str, int] = {}
        self._cycle_ns = 0
        self._memory_ns = 0
        self._last: Snapshot | None = None
        self._drift = 0
        self._orphaned: int | None = None
        self._phases: dict[str, list[int]] = {}
        self._in_call = workloads.workload_spec(case.workload).scope == "call"
        self._deadline_ns = time.monotonic_ns() + round(case.deadline_s * 1e9)
        self._start: Snapshot | None = None
        self.record: dict[str, Any] = {
            "outcome": None,
            "failed_call": None,
            "failed_phase": None,
            "done_bytes": None,
            "detail": None,
            "placement": None,
            "pins": None,
            "vmpin_bytes": None,
            "vmlck_bytes": None,
            "migrate": None,
            "timing_ns": {"first": None, "acquire": [], "release": [], "settle": None},
            "outcomes": {},
            "phases": self._phases,
            "signal": None,
            "owner_errors": [],
            "gup_calls": None,
            "no_trace": witness.missing or "the case ended before acquire",
        }

    def run(self, zygote: Zygote) -> None:
        """Fork, observe, end. Verdicts that need no oracle are set here: timeout, crash."""
        baseline = self._at_rest()
        try:
            child = zygote.spawn(self._case, self._around)
        except ZygoteDied:
            self.record.update(verdict="crash", reason="zygote-died")
            return
        self._zygote_fileno = zygote.fileno()
        self.record["pid"] = child.pid
        self._containment.admit(child.pid)
        self.record["containment"] = self._containment.kind
        killed = True
        try:
            self._phases_of(child)
            killed = False
        except _DeadlinePassed:
            self.record.update(verdict="timeout", reason="deadline", failed_phase=self._phase)
        except _ChildEnded:
            self.record["failed_phase"] = self._phase
            killed = False
        finally:
            self._end(child, zygote, killed)
        self._read_trace(ended=False)
        self._witness.disarm()
        self._count_orphans(baseline)
        self._write_pins()

    @property
    def unborn(self) -> bool:
        """Whether no child was forked."""
        return "pid" not in self.record

    # -- the phases, in order ------------------------------------------------------------------

    def _phases_of(self, child: Child) -> None:
        if not self._prepare(child):
            self._close(child)
            return
        status = _status(child)
        self.record["cap_ipc_lock"] = process_status.has_capability(status, "CAP_IPC_LOCK")
        self._not_its_time(self._witness.arm)
        self._acquire(child)
        outcome = self.record["outcome"]
        if outcome in ("ok", "short"):
            self._hold(child, status)
            self._release(child)
        self._after_release(child, status)
        self._not_its_time(self._witness.disarm)
        if outcome is not None and self._case.repeat:
            self._cycles(child)
        self._close(child)

    def _prepare(self, child: Child) -> bool:
        began_ns = time.monotonic_ns()
        self._go(child, "prepare")
        answer = self._receive(child)
        self._phases["prepare"] = [began_ns, time.monotonic_ns()]
        if answer["step"] == "prepared":
            self.record["placement"] = answer["placement"]
            self._memory_ns = answer["memory_ns"]
            self.record["memlock_bytes"] = answer["memlock_bytes"]
            return True
        self.record.update(
            failed_phase="prepare",
            failed_call=answer["call"],
            outcome=answer["outcome"],
            detail=answer["detail"],
        )
        return False

    def _acquire(self, child: Child) -> None:
        before = self._quiet("acquire")
        self._start = before
        answer = self._window(child, "acquire", before)
        self.record["outcome"] = answer["outcome"]
        self.record["outcomes"] = {answer["outcome"]: 1}
        self.record["done_bytes"] = answer.get("done_bytes")
        self.record["timing_ns"]["first"] = answer["ns"]
        self._cycle_ns = answer["whole_ns"]
        if answer["outcome"] not in ("ok", "short"):
            self.record["failed_call"] = answer["call"]
            self.record["failed_phase"] = "acquire"
            self.record["detail"] = answer["detail"]
        if answer["outcome"] not in ("ok", "short") or self._in_call:
            # Nothing may stay, but it may come back late: a bio's pages, a migration's leftovers.
            self._settle("acquire")
        self._not_its_time(self._read_trace)

    def _hold(self, child: Child, prepared: process_status.ProcessStatus) -> None:
        self._phase = "hold"
        began_ns = time.monotonic_ns()
        held = _status(child)
        self._write_accounted("held", prepared, held)
        with _ended_child_noticed():
            self.record["memory_of_child"] = {
                "vmlck_bytes": held.vmlck_bytes,
                "vmrss_bytes": held.vmrss_bytes,
                "vma_count": maps.vma_count(child.pid),
            }
        self.record["zones_free"] = zoneinfo.free_pages(zoneinfo.read())
        if self._case.hold_s:
            self._wait_alive(child, self._case.hold_s)
        self._phases["hold"] = [began_ns, time.monotonic_ns()]

    def _release(self, child: Child) -> None:
        answer = self._window(child, "release", self._quiet("release"))
        self._cycle_ns += answer["whole_ns"]
        if answer["outcome"] != "ok":
            self.record.update(
                outcome=answer["outcome"],
                failed_call=answer["call"],
                failed_phase="release",
                detail=answer["detail"],
            )
        self._settle("release")
        self._not_its_time(self._read_trace)

    def _after_release(self, child: Child, prepared: process_status.ProcessStatus) -> None:
        self._write_accounted("after", prepared, _status(child))

    def _write_accounted(
        self,
        when: str,
        prepared: process_status.ProcessStatus,
        now: process_status.ProcessStatus,
    ) -> None:
        """VmPin and VmLck beyond what *prepare* left: a real device pins its own queues as well."""
        for figure in ("vmpin_bytes", "vmlck_bytes"):
            figures_of = self.record.setdefault(figure, None) or {"held": None, "after": None}
            figures_of[when] = _grown(getattr(prepared, figure), getattr(now, figure))
            self.record[figure] = figures_of

    def _cycles(self, child: Child) -> None:
        answer = self._window(child, "cycles", self._quiet("cycles"))
        self.record["timing_ns"]["acquire"] = answer["acquire_ns"]
        self.record["timing_ns"]["release"] = answer["release_ns"]
        outcomes = self.record["outcomes"]
        for outcome, count in answer["outcomes"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        if answer["failed"] is not None:
            self.record.update(
                failed_phase=answer["failed"]["phase"], detail=answer["failed"]["detail"]
            )
        self._settle("cycles")

    def _close(self, child: Child) -> None:
        self._deadline_ns = max(self._deadline_ns, time.monotonic_ns() + _CLOSE_DEADLINE_NS)
        if self._spans:
            self._quiet(None)
        self._go(child, "close")
        self.record["owner_errors"] = self._receive(child)["errors"]

    # -- windows, noise, waiting ---------------------------------------------------------------

    def _window(self, child: Child, phase: str, before: Snapshot) -> dict[str, Any]:
        with contextlib.nullcontext() if phase == "cycles" else self._traced(phase):
            began_ns = time.monotonic_ns()
            self._go(child, phase)
            answer = self._receive(child)
            ended_ns = time.monotonic_ns()
        if phase != "cycles":
            self._wait_for_fold()
        after = self._counters.snapshot()
        self._phases[phase] = [began_ns, ended_ns]
        self._expectancy.learn(self._case, phase, ended_ns - before.t_ns)
        self._measured(phase, before, after, ended_ns)
        return answer

    @contextlib.contextmanager
    def _traced(self, phase: str) -> Iterator[None]:
        self._unread_phase = phase
        with self._witness.window():
            yield

    def _read_trace(self, *, ended: bool = True) -> None:
        """Add the calls of the last window. One that is not known whole makes all of them null."""
        phase, self._unread_phase = self._unread_phase, None
        if phase is None:
            return
        calls, missing = self._witness.seen(phase, ended=ended)
        earlier: list[Any] | None = self.record["gup_calls"] if phase == "release" else []
        if calls is None:
            self.record.update(gup_calls=None, no_trace=missing)
        elif earlier is not None:
            self.record.update(gup_calls=earlier + calls, no_trace=None)

    def _not_its_time(self, work: Callable[[], None]) -> None:
        """Do something between windows: the child stands still, so its deadline is put off."""
        began_ns = time.monotonic_ns()
        work()
        self._deadline_ns += time.monotonic_ns() - began_ns

    def _measured(self, phase: str, before: Snapshot, after: Snapshot, ended_ns: int) -> None:
        """Note the window, and how long the noise is to be watched for its sake."""
        self._spans[phase] = before, after
        self._last = after
        elapsed_ns = self._window_ns[phase] = ended_ns - before.t_ns
        self._noise.owed_ns = elapsed_ns + max(0, elapsed_ns - self._noise.last_ns)

    def _wait_for_fold(self) -> None:
        """An ordinary user cannot have the counters folded; each CPU does it once an interval."""
        if not self._counters.refreshes:
            time.sleep(_FOLD_INTERVALS * self._counters.interval_s)
            self._deadline_ns += round(_FOLD_INTERVALS * self._counters.interval_s * 1e9)

    def _quiet(self, before_phase: str | None) -> Snapshot:
        """Let nothing of ours run, at least as long as the window before and the one to come."""
        if before_phase == "acquire":
            self._wait_for_fold()
        wanted_ns = max(self._noise.owed_ns, _MIN_NOISE_NS)
        if before_phase is not None:
            wanted_ns = max(wanted_ns, self._expected_ns(before_phase))
        ambient = window.ambient(self._counters, wanted_ns)
        # The child stood still: waiting is not its time, and what moved is not its doing.
        self._deadline_ns += ambient.elapsed_ns
        self._noise.pages = max(self._noise.pages, ambient.pages or 0, abs(self._drifted(ambient)))
        if before_phase == "acquire":
            self._noise.before_ns = ambient.elapsed_ns
        self._noise.last_ns = ambient.elapsed_ns
        self._noise.owed_ns = 0
        return ambient.end

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
        cycle_ns = self._cycle_ns
        if workloads.memory_spec(self._case.memory).fresh_each_cycle:
            cycle_ns += self._memory_ns
        return cycle_ns * (self._case.warmup + self._case.repeat) + _FIRST_GUESS_NS

    def _settle(self, phase: str) -> None:
        """Wait for what the kernel gives back later, and count it to the phase that caused it."""
        before, after = self._spans[phase]
        began = self._start
        if began is None or after.outstanding is None:
            return
        settle_ns = 0
        if after.outstanding != began.outstanding:
            after, settle_ns = settle(
                self._counters, lambda now: now.outstanding == began.outstanding, self._settle_s()
            )
            self._measured(phase, before, after, after.t_ns)
        if phase != "cycles":
            times = self.record["timing_ns"]
            times["settle"] = max(times["settle"] or 0, settle_ns)

    def _settle_s(self) -> float:
        return _NOISY_SETTLE_DEADLINE_S if self._noise.pages else _SETTLE_DEADLINE_S

    def _go(self, child: Child, phase: str) -> None:
        self._phase = phase
        try:
            child.channel.send(go=phase)
        except ConnectionError as error:
            raise _ChildEnded from error

    def _receive(self, child: Child) -> dict[str, Any]:
        if not self._spoke(child, self._deadline_ns):
            raise _DeadlinePassed
        try:
            answer = child.channel.receive(self._deadline_ns)
        except TimeoutError as error:
            raise _DeadlinePassed from error
        if answer is None:
            raise _ChildEnded
        if answer["step"] == "broken":
            self.record["error"] = answer["detail"]
            raise _ChildEnded
        return answer

    def _spoke(self, child: Child, until_ns: int) -> bool:
        """Wait for the child's next message; False once CLOCK_MONOTONIC passes ``until_ns``.

        The zygote, or its end, says that the child is gone; the end of the child's own socket does
        not, as long as something that it forked has it open.
        """
        left_s = max(0, until_ns - time.monotonic_ns()) / 1e9
        child_fileno = child.channel.fileno()
        ready, _, _ = select.select([child_fileno, self._zygote_fileno], [], [], left_s)
        if ready and child_fileno not in ready:
            raise _ChildEnded
        return bool(ready)

    def _wait_alive(self, child: Child, seconds: float) -> None:
        """Hold, and notice a child that ends meanwhile. The deadline starts again afterwards."""
        until_ns = time.monotonic_ns() + round(seconds * 1e9)
        if self._spoke(child, until_ns):  # it has nothing to say but that it ended
            raise _ChildEnded
        self._deadline_ns += round(seconds * 1e9)

    def _at_rest(self) -> Snapshot:
        """A snapshot in which no pin of others is on its way, so that none can look like ours."""
        for _ in range(_REST_TRIES):
            ambient = window.ambient(self._counters, _MIN_NOISE_NS, per_node=False)
            if not ambient.pages:
                break
        return ambient.end

    # -- the end -------------------------------------------------------------------------------

    def _end(self, child: Child, zygote: Zygote, killed: bool) -> None:
        """Wait for the child, kill what is left of its tree, and say how it ended."""
        status = None
        try:
            if not killed:
                child.channel.close()
                status = zygote.exit_status(_EXIT_DEADLINE_S)
            self._containment.kill()
            if status is None:
                status = zygote.exit_status(_EXIT_DEADLINE_S)
            if status is None:
                # Stuck in the kernel: the zygote waits for it, and can serve no other case.
                zygote.kill()
        except ZygoteDied:
            # What the child started lives on without it. Its socket closes before it is quite dead.
            zygote.kill()
            self._containment.kill()
            self.record.setdefault("verdict", "crash")
            self.record.setdefault("reason", "zygote-died")
            return
        finally:
            child.channel.close()
        if status and not killed and "error" not in self.record:
            self.record["signal"] = -status if status < 0 else None
            self.record["verdict"] = "crash"
            self.record["reason"] = f"signal-{-status}" if status < 0 else f"exit-{status}"

    def _count_orphans(self, baseline: Snapshot) -> None:
        """Pins still held once the child is gone: nobody is left to give them back."""
        if baseline.outstanding is None:
            return
        rested, _ = settle(
            self._counters,
            lambda now: now.outstanding == baseline.outstanding,
            self._settle_s(),
        )
        if rested.outstanding is not None:
            self._orphaned = rested.outstanding - baseline.outstanding - self._drift

    def _write_pins(self) -> None:
        deltas = {phase: window.between(*span) for phase, span in self._spans.items()}
        acquire = deltas.get("acquire")
        if acquire is not None:
            migrated = {"success": acquire.migrate_success, "fail": acquire.migrate_fail}
            self.record["migrate"] = migrated
            self.record["cma"] = figures.free_cma(*self._spans["acquire"])
        quality = figures.quality(self._counters, self._noise.pages, self._noise.intervals_ns)
        failed = self.record["outcome"] not in ("ok", "short")
        self.record["pins"] = figures.pins(
            deltas, self._window_ns, self._orphaned, quality, refused=failed
        )


@contextlib.contextmanager
def _ended_child_noticed() -> Iterator[None]:
    """The files of /proc/PID vanish with the child: killed from outside, out of memory."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _ChildEnded from error


def _status(child: Child) -> process_status.ProcessStatus:
    with _ended_child_noticed():
        return process_status.read(child.pid)


def _grown(before_bytes: int | None, now_bytes: int | None) -> int | None:
    return None if before_bytes is None or now_bytes is None else now_bytes - before_bytes
