"""One load from its fork to its record: a case whose hold is the load itself.

Prepare makes memory and files, acquire opens what stays pinned throughout (registered buffers),
then the jobs run in a window of their own while the sampler watches from outside, and release gives
back what was opened. Leaks are judged over all of it.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workloads
from pinstorm import evidence, samples, soak
from pinstorm.containment import Containment
from pinstorm.interrupts import Interrupt, Interrupts
from pinstorm.intervals import Intervals
from pinstorm.load_case.tally import LoadTally, said_of_load
from pinstorm.observe import Observation
from pinstorm.sampling import Report, Sampling
from pinstorm.spawn import Child, Zygote
from pinstorm.talk import Talk
from pinstorm.windows import Expectancy
from pinstorm.witness import Witness
from telemetry.vmstat import Counters
from workloads.load.spec import Load
from workloads.spec import Planned, Surroundings, errno_name

# How long the workers may take to begin and to drain, beyond the load itself.
_GRACE_S = 30.0

# What is known of a refusal; that of the first is told.
_REFUSAL = ("failed_phase", "failed_call", "outcome", "detail")

Told = Callable[[dict[str, Any]], None]


class LoadObservation(Observation):
    """Runs a load in a child of the zygote, with a sampler beside it."""

    def __init__(
        self,
        planned: Planned,
        around: Surroundings,
        counters: Counters,
        expectancy: Expectancy,
        containment: Containment,
        witness: Witness,
        *,
        lab: bool,
        bundle: Path,
        told: Told,
        interrupts: Interrupts,
    ):
        """``bundle``: where its series go. ``told`` gets the rates as they come."""
        super().__init__(planned.case, around, counters, expectancy, containment, witness, lab=lab)
        assert planned.case.load is not None
        self._load: Load = planned.case.load
        self._seq = planned.seq
        self._tally = LoadTally(self._load)
        self._intervals = Intervals(bundle)
        self._sampling: Sampling | None = None
        if self._load.sample_hz:
            self._sampling = Sampling(
                samples.spool_of(bundle), hz=self._load.sample_hz, device=around.device
            )
        self._told = told
        self._interrupts = interrupts
        self._stopped = False
        self._told_intervals = 0
        self._holding = False
        self.record["jobs"] = []
        self.record["load"] = said_of_load(self._load)
        self.record["no_trace"] = "a load is not traced"

    def _run(self, zygote: Zygote) -> None:
        try:
            super()._run(zygote)
        finally:
            if self._sampling is not None:
                self._sampling.close()
            self._intervals.close()
            self._write_load()

    def _phases_of(self, child: Child, talk: Talk) -> None:
        if not self._prepare(child, talk):
            self._close(talk)
            return
        self._acquire(child, talk)
        if self.record["outcome"] == "ok":
            self._hold_load(child, talk)
            self._release(talk)
        else:
            # What the others had opened by then, and that one before its refusal, is no leak.
            first = {key: self.record[key] for key in _REFUSAL}
            self._release(talk)
            self.record.update(first)
        self._close(talk)

    def _prepare(self, child: Child, talk: Talk) -> bool:
        if self._sampling is not None:
            with self._deadline.stopped():
                self._sampling.start()
            self._mark("prepare")
        if not super()._prepare(child, talk):
            return False
        self.record["region"] = None  # each job has memory of its own
        if self._sampling is not None:
            pids = [member["pid"] for member in self._members]
            self._sampling.watch(pids, [os.getpid()])
        return True

    def _refused(self, phase: str, answer: dict[str, Any]) -> None:
        """As of any case; and which job it was."""
        super()._refused(phase, answer)
        if answer.get("job") is not None and self.record["load"]["failure"] is None:
            self.record["load"]["failure"] = {
                name: answer[name] for name in ("job", "process", "call", "detail")
            }

    def _look_into_it(self, child: Child) -> None:
        """The worker that was refused stands where it met it; its leader knows nothing."""
        failure = self.record["load"]["failure"]
        if failure is None or failure.get("call") is None:
            return
        number = next(n for n, job in enumerate(self._load.jobs) if job.name == failure["job"])
        pids = [
            member["pid"]
            for member in self._members
            if (member["job"], member["process"]) == (number, failure["process"])
        ]
        case = workloads.job_case(self._load.jobs[number])
        with self._deadline.stopped():
            for pid in pids:
                found = evidence.collect(case, pid, self.record, self._around)
                self.record["evidence"] = found.to_json()

    def _hold_load(self, child: Child, talk: Talk) -> None:
        """The load, in a window of its own; then what the sampler saw."""
        self._deadline.put_off(round((self._case.hold_s + _GRACE_S) * 1e9))
        self._mark("ramp")
        answer = self._step(talk, "load")
        self._phases.update(answer["spans"])
        load = self.record["load"]
        load["stopped"], load["failure"] = answer["stopped"], answer["failure"]
        if answer["failure"] is not None:
            self._refused("hold", _refusal(answer["failure"]))
            self._look_into_it(child)
            if "error" in answer["failure"]:
                self.record["error"] = self.record["detail"]
            self.record["outcomes"] = {self.record["outcome"]: 1}
        if self._sampling is not None:
            self._judge_series(self._sampling.stop())

    def _judge_series(self, report: Report) -> None:
        """What grew while the load held; then the sampler's work is done."""
        load = self.record["load"]
        load["sampler"] = {key: value for key, value in report.to_json().items() if key != "trends"}
        trends = {
            key: [(t_s, low, mean) for t_s, low, mean in points]
            for key, points in report.trends.items()
        }
        # Unfolded counters: a difference may be off by so much.
        quanta = {"outstanding_pages": float(2 * self._counters.unrefreshed_bound_pages)}
        judged = soak.judge_all(trends, quanta=quanta)
        load["soak"] = {key: trend.to_json() for key, trend in judged.items()}

    def _mark(self, phase: str) -> None:
        if self._sampling is not None:
            self._sampling.mark(self._seq, self._case.id, phase)

    def _traced(self, phase: str) -> contextlib.AbstractContextManager[None]:
        """Several jobs at once: no rule says what all of them together may call."""
        return contextlib.nullcontext()

    def _ask(self, talk: Talk, step: str) -> dict[str, Any]:
        """As of any case; but a load tells its intervals before it has done."""
        if step != "load":
            return super()._ask(talk, step)
        talk.tell(step)
        while True:
            try:
                with self._interrupts.raised():
                    talk.wait()
            except Interrupt:
                if self._stopped:
                    raise  # asked for twice: at once, then
                # What it did up to now is what somebody waited for: end it in good order.
                self._stopped = True
                self._interrupts.answered()
                talk.say(go="stop", why="interrupted")
                continue
            if (answer := talk.answer())["step"] != "interval":
                return answer
            self._took_interval(answer)

    def _took_interval(self, interval: dict[str, Any]) -> None:
        if interval["phase"] == "hold" and not self._holding:
            self._holding = True
            self._mark("hold")
        self._tally.add(interval)
        job = self._load.jobs[interval["job"]].name
        self._intervals.note({**interval, "seq": self._seq, "case": self._case.id, "job": job})
        rates = self._tally.rates()
        if len(rates) > self._told_intervals:
            self._told_intervals = len(rates)
            self._told(
                {
                    "load": self._case.id,
                    "seq": self._seq,
                    "ops_s": rates[-1],
                    "elapsed_s": len(rates) * self._load.interval_s,
                    "duration_s": self._load.duration_s,
                    "t_ns": time.monotonic_ns(),
                }
            )

    def _write_load(self) -> None:
        self.record["jobs"] = self._tally.jobs_json()
        self.record["load"]["steady"] = self._tally.steadiness.to_json()


def _refusal(failure: dict[str, Any]) -> dict[str, Any]:
    """What ended the load, as an answer to any step says it."""
    where = f"job {failure['job']}"
    if "errno" in failure:
        detail = "; ".join(filter(None, (where, failure["detail"])))
        return {"call": failure["call"], "outcome": errno_name(failure["errno"]), "detail": detail}
    if "mismatch" in failure:
        # As of any read whose bytes are wrong.
        return {"call": "verify", "outcome": "EIO", "detail": f"{where}: {failure['mismatch']}"}
    return {"call": None, "outcome": None, "detail": f"{where}: {failure['error']}"}
