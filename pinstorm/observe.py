"""One case from its fork to its record: the phases in order, and what is looked at in each.

The figures come from pinstorm.windows, which takes its snapshots while the child stands still
(design: "How a case flows"). A refusal is looked into at once, while the process that met it still
stands as it stood (pinstorm.evidence).
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import workloads
from pinstorm import evidence, figures, remedy
from pinstorm.circumstances import Circumstance, CircumstanceFailed
from pinstorm.containment import Containment
from pinstorm.spawn import Child, Zygote, ZygoteDied
from pinstorm.talk import ChildEnded, Deadline, DeadlinePassed, Talk
from pinstorm.windows import Expectancy, Windows
from pinstorm.witness import Witness
from telemetry import clock, maps, process_status, zoneinfo
from telemetry.vmstat import Counters
from telemetry.window import Delta
from workloads import scratch
from workloads.disturbance import SPENDING
from workloads.spec import Case, Planned, Surroundings

_EXIT_DEADLINE_S = 10.0
# A child that is slow to close is not the case's failure, but it must not hang the run.
_CLOSE_DEADLINE_NS = 10_000_000_000

_DONE = ("ok", "short")


class _Killed(Exception):
    """The case asks for a SIGKILL here, and it was sent."""


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
        *,
        lab: bool,
    ):
        """``lab``: the machine is a guest of the lab, which may be changed by any remedy."""
        self._case = case
        self._around = around
        self._counters = counters
        self._containment = containment
        self._witness = witness
        self._lab = lab
        self._circumstance = Circumstance(case, around, containment)
        self._unread_phase: str | None = None
        self._deadline = Deadline(case.deadline_s)
        self._windows = Windows(case, counters, expectancy, self._deadline)
        self._orphaned: int | None = None
        # The processes of the case beside the child itself: job, process, pid.
        self._members: list[dict[str, int]] = []
        self._settled: list[Delta] = []
        self._phases: dict[str, list[int]] = {}
        self._in_call = workloads.workload_spec(case.workload).scope == "call"
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
            "killed": None,
            "disturbed": None,
            "evidence": None,
            "retries": [],
            "owner_errors": [],
            "gup_calls": None,
            "no_trace": witness.missing or "the case ended before acquire",
        }

    def run(self, zygote: Zygote) -> None:
        """Fork, observe, end. Verdicts that need no oracle are set here: timeout, crash."""
        try:
            with self._circumstance:
                self._run(zygote)
        except CircumstanceFailed as error:
            self.record.update(failed_phase="prepare", detail=str(error))
        self.record["owner_errors"] = [*self.record["owner_errors"], *self._circumstance.left]

    def _run(self, zygote: Zygote) -> None:
        baseline = self._windows.at_rest()
        try:
            child = zygote.spawn(self._case, self._around)
        except ZygoteDied:
            self.record.update(verdict="crash", reason="zygote-died")
            return
        talk = Talk(child, zygote.fileno(), self._deadline)
        self.record["pid"] = child.pid
        self._containment.admit(child.pid)
        self.record["containment"] = self._containment.kind
        killed = True
        try:
            self._phases_of(child, talk)
            killed = False
        except _Killed:
            pass
        except DeadlinePassed:
            self.record.update(verdict="timeout", reason="deadline", failed_phase=talk.step)
        except ChildEnded as ended:
            self.record["failed_phase"] = talk.step
            if ended.why is not None:
                self.record["error"] = ended.why
            killed = False
        finally:
            self._end(child, zygote, killed)
        if killed or "verdict" in self.record:
            for directory in self._around.scratch.values():
                scratch.remove_left(directory, child.pid, self._case.params.get("uid"))
        self._read_trace(ended=False)
        self._witness.disarm()
        self._orphaned = self._windows.orphaned(baseline)
        self._write_pins()

    @property
    def unborn(self) -> bool:
        """Whether no child was forked."""
        return "pid" not in self.record

    # -- the phases, in order ------------------------------------------------------------------

    def _phases_of(self, child: Child, talk: Talk) -> None:
        if not self._prepare(child, talk):
            self._close(talk)
            return
        status = _status(child)
        self.record["cap_ipc_lock"] = process_status.has_capability(status, "CAP_IPC_LOCK")
        with self._deadline.stopped():
            self._circumstance.tighten(child.pid)
            self._witness.arm()
        self._acquire(child, talk)
        outcome = self.record["outcome"]
        if outcome in _DONE:
            self._hold(child, talk, status)
            self._release(talk)
        self._write_accounted("after", status, _status(child))
        with self._deadline.stopped():
            self._witness.disarm()
        if outcome not in _DONE and self._case.remedy:
            self._retry(child, talk)
            self._windows.unwatched()
        elif outcome in _DONE and self._case.settles:
            self._settles(talk)
        if self._case.repeat:
            self._cycles(talk)
        self._close(talk)

    def _prepare(self, child: Child, talk: Talk) -> bool:
        began_ns = time.monotonic_ns()
        answer = self._ask(talk, "prepare")
        self._took("prepare", answer)
        self._phases["prepare"] = [began_ns, time.monotonic_ns()]
        if answer["step"] == "prepared":
            self.record["placement"] = answer["placement"]
            self.record["memlock_bytes"] = answer["memlock_bytes"]
            self.record["region"] = answer["region"]
            self._members = answer["members"]
            self._windows.memory_ns = answer["memory_ns"]
            return True
        self._refused("prepare", answer)
        self._look_into_it(child)
        return False

    def _acquire(self, child: Child, talk: Talk) -> None:
        answer = self._step(talk, "acquire")
        self._took("acquire", answer)
        self.record["outcome"] = answer["outcome"]
        self.record["outcomes"] = {answer["outcome"]: 1}
        self.record["done_bytes"] = answer.get("done_bytes")
        self.record["timing_ns"]["first"] = answer["ns"]
        self._windows.cycle_ns = answer["whole_ns"]
        if answer["outcome"] not in _DONE:
            self._refused("acquire", answer)
        if answer["outcome"] not in _DONE or self._in_call:
            # Nothing may stay, but it may come back late: a bio's pages, a migration's leftovers.
            self._settle("acquire")
        with self._deadline.stopped():
            self._read_trace()
        if answer["outcome"] != "ok":
            self._look_into_it(child)

    def _hold(self, child: Child, talk: Talk, prepared: process_status.ProcessStatus) -> None:
        talk.step = "hold"
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
        if "during" in self._case.params:
            self._disturb(child, talk, prepared)
        if self._case.params.get("kill") == "hold":
            self._kill_standing(talk, "hold")
        if self._case.hold_s:
            talk.stand(self._case.hold_s)
        self._phases["hold"] = [began_ns, time.monotonic_ns()]

    def _disturb(self, child: Child, talk: Talk, prepared: process_status.ProcessStatus) -> None:
        """What must not touch the pins: ``during``. Its window is ``pins.disturb``."""
        answer = self._step(talk, "disturb", window="disturb")
        self.record["disturbed"] = {
            "outcome": answer["outcome"],
            "call": answer.get("call"),
            "detail": answer["detail"],
            "vmpin_bytes": _grown(prepared.vmpin_bytes, _status(child).vmpin_bytes),
        }

    def _release(self, talk: Talk) -> None:
        answer = self._step(talk, "release")
        self._took("release", answer)
        self._windows.cycle_ns += answer["whole_ns"]
        if answer["outcome"] != "ok":
            self._refused("release", answer)
        if self._case.params.get("kill") == "settle":
            self._kill_standing(talk, "settle")
        self._settle("release")
        with self._deadline.stopped():
            self._read_trace()
        if self._case.params.get("during") in SPENDING and (
            self._case.repeat or self._case.settles
        ):
            talk.ask("renew")

    def _settles(self, talk: Talk) -> None:
        """Cycles that each wait until the counters rest: how late the kernel gives back."""
        settled_ns: list[int] = []
        for _ in range(self._case.settles):
            if workloads.memory_spec(self._case.memory).fresh_each_cycle:
                talk.ask("renew")
            acquired = self._step(talk, "acquire", window="settles")
            self._count(acquired["outcome"])
            if acquired["outcome"] not in _DONE:
                break
            released = talk.ask("release")
            if released["outcome"] != "ok":
                self._count(released["outcome"])
                break
            given_back = acquired if self._in_call else released
            rested_ns = self._windows.settle("settles", given_back["ended_ns"])
            if rested_ns is None:
                break
            settled_ns.append(rested_ns)
            self._settled.append(self._windows.deltas["settles"])
        self.record["timing_ns"]["settles"] = settled_ns

    def _count(self, outcome: str) -> None:
        """One more cycle that ended so."""
        outcomes = self.record["outcomes"]
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def _cycles(self, talk: Talk) -> None:
        answer = self._step(talk, "cycles")
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

    def _close(self, talk: Talk) -> None:
        self._deadline.leave(_CLOSE_DEADLINE_NS)
        if self._windows.spans:
            self._windows.quiet(None)
        self.record["owner_errors"] = talk.ask("close")["errors"]

    # -- a refusal -----------------------------------------------------------------------------

    def _refused(self, phase: str, answer: dict[str, Any]) -> None:
        self.record.update(
            failed_phase=phase,
            failed_call=answer["call"],
            outcome=answer["outcome"],
            detail=answer["detail"],
        )

    def _look_into_it(self, child: Child) -> None:
        """What can be known of the refusal, now that the process stands where it met it."""
        with self._deadline.stopped(), _ended_child_noticed():
            self.record["evidence"] = evidence.collect(
                self._case, child.pid, self.record, self._around
            ).to_json()

    def _retry(self, child: Child, talk: Talk) -> None:
        """Apply the remedy of the cause that was found, and try again in the same process."""

        def apply_it(command: str) -> dict[str, object]:
            with self._deadline.stopped():
                return remedy.apply(command, child.pid, lab=self._lab)

        def look(failure: Mapping[str, Any]) -> dict[str, Any]:
            with _ended_child_noticed():
                found = evidence.collect(self._case, child.pid, failure, self._around)
            return found.to_json()

        remedy.try_again(self._failure(), self.record["retries"], talk, apply_it, look)

    def _failure(self) -> dict[str, Any]:
        """The record as far as it goes, with what the runner will add to it."""
        said = {"kernel": os.uname().release, "device": self._around.device}
        return {**said, **Planned(0, 0, self._case).record_fields(), **self.record}

    # -- steps, trace --------------------------------------------------------------------------

    def _ask(self, talk: Talk, step: str) -> dict[str, Any]:
        """Have a step taken; a case that is to be killed in it is."""
        if self._case.params.get("kill") != step:
            return talk.ask(step)
        return self._kill_in(talk, step)

    def _kill_in(self, talk: Talk, step: str) -> NoReturn:
        """SIGKILL at a random moment of a step; one that was over by then tells how long it is."""
        wanted_ns = self._windows.moment_in(step)
        talk.tell(step)
        begins_ns = talk.answer()["begins_ns"]
        sent_ns = clock.wait_until(begins_ns + wanted_ns)
        self._containment.kill_child()
        self._containment.kill()
        said = talk.last_word()
        if said is not None:
            self._took(step, said)
        self._killed(step, sent_ns - begins_ns, inside=said is None)

    def _kill_standing(self, talk: Talk, phase: str) -> NoReturn:
        """SIGKILL to a child that has nothing to do; of settle, while the kernel may have."""
        after_ns = self._windows.moment_in(phase)
        talk.stand(after_ns / 1e9)
        rested = self._windows.rests_again() if phase == "settle" else False
        self._containment.kill()
        self._killed(phase, after_ns, inside=None if rested is None else not rested)

    def _killed(self, phase: str, after_ns: int, *, inside: bool | None) -> NoReturn:
        """``inside``: the step, or what was to come back, was not over; None: it is not known."""
        self.record["killed"] = {
            "phase": phase,
            "after_ns": after_ns,
            "inside": inside,
            "signal": None,
        }
        raise _Killed

    def _took(self, step: str, answer: dict[str, Any]) -> None:
        """In a first cycle, as that is the one to be killed in."""
        if "whole_ns" in answer:
            self._windows.took(step, answer["whole_ns"])

    def _step(self, talk: Talk, step: str, window: str | None = None) -> dict[str, Any]:
        """Have a step taken in a window of its own."""
        phase = window or step
        before = self._windows.quiet(phase)
        with self._traced(phase) if phase in ("acquire", "release") else contextlib.nullcontext():
            began_ns = time.monotonic_ns()
            answer = self._ask(talk, step)
            ended_ns = time.monotonic_ns()
        self._phases[phase] = [began_ns, ended_ns]
        self._windows.end(phase, before, ended_ns)
        return answer

    def _settle(self, phase: str) -> None:
        settled_ns = self._windows.settle(phase)
        if phase == "release" and settled_ns is not None:
            self._windows.took("settle", settled_ns)
        times = self.record["timing_ns"]
        if phase != "cycles" and settled_ns is not None:
            times["settle"] = max(times["settle"] or 0, settled_ns)

    def _traced(self, phase: str) -> contextlib.AbstractContextManager[None]:
        self._unread_phase = phase
        return self._witness.window()

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
            # What the child started lives on without it.
            self._containment.kill()
            self.record.setdefault("verdict", "crash")
            self.record.setdefault("reason", "zygote-died")
            return
        finally:
            child.channel.close()
        if self.record["killed"] is not None and status is not None:
            self.record["killed"]["signal"] = -status if status < 0 else None
        if status and not killed and "error" not in self.record:
            self.record["signal"] = -status if status < 0 else None
            self.record["verdict"] = "crash"
            self.record["reason"] = f"signal-{-status}" if status < 0 else f"exit-{status}"

    def _write_pins(self) -> None:
        deltas = self._windows.deltas
        acquire = deltas.get("acquire")
        if acquire is not None:
            migrated = {"success": acquire.migrate_success, "fail": acquire.migrate_fail}
            self.record["migrate"] = migrated
            self.record["cma"] = figures.free_cma(*self._windows.spans["acquire"])
        windows = self._windows
        quality = figures.quality(
            self._counters, windows.noise_pages, windows.recent_pages, windows.noise_ns
        )
        quality["remaining"] = windows.remaining
        quality["stayed"] = windows.stayed
        failed = self.record["outcome"] not in _DONE
        pins = figures.pins(
            deltas, self._windows.lasted_ns, self._orphaned, quality, refused=failed
        )
        if pins is not None:
            pins["settles"] = figures.moved(self._settled)
            if self.record["killed"] is not None:
                pins["leaked"] = None  # it was not to give anything back
        self.record["pins"] = pins


@contextlib.contextmanager
def _ended_child_noticed() -> Iterator[None]:
    """The files of /proc/PID vanish with the child: killed from outside, out of memory."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ChildEnded from error


def _status(child: Child) -> process_status.ProcessStatus:
    with _ended_child_noticed():
        return process_status.read(child.pid)


def _grown(before_bytes: int | None, now_bytes: int | None) -> int | None:
    return None if before_bytes is None or now_bytes is None else now_bytes - before_bytes
