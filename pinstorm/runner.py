"""Runs a list of cases one after the other: journal, zygote, self-test, kernel log, Ctrl-C.

Used by ``pinstorm run`` on the host and by the guest side of ``pinstorm lab run``; so it imports
nothing that is slow to start. What a case is and how it is observed is pinstorm.observe's.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pinstorm import attribution, containment, explain, figures, noise, verdict
from pinstorm.interrupts import Interrupt, Interrupts
from pinstorm.journal import Journal
from pinstorm.needs import Survey
from pinstorm.observe import Observation
from pinstorm.spawn import Zygote
from pinstorm.windows import Expectancy
from pinstorm.witness import Known, Witness
from telemetry import kmsg, taint
from telemetry.gup_trace import BEHIND
from telemetry.vmstat import Counters
from workloads.spec import MIB, PAGE_BYTES, Case, Planned

# process_vm_writev has pinned its target's pages in every kernel that has the counters (CASE 5 of
# pin_user_pages.rst), while O_DIRECT has only from 6.5 on.
SELF_TEST = Case("process-vm-write", "anon", {"size_bytes": MIB}, repeat=0, warmup=0)

# The trace is to show both ways through GUP: of pages that are there vmsplice takes references on
# the fast one in every kernel, as process_vm_writev takes pins on the slow one.
FAST_SELF_TEST = Case("vmsplice", "anon", {"size_bytes": PAGE_BYTES}, repeat=0, warmup=0)
_SLOW: Final = Known("process_vm_writev", BEHIND[2:], "FOLL_PIN", SELF_TEST.pages)
_FAST: Final = Known("vmsplice", BEHIND[:2], "FOLL_GET", FAST_SELF_TEST.pages)

# Functions and modules of what the workloads exercise, RDMA drivers by their usual prefixes.
_OUR_CODE = re.compile(
    r"gup|pin_user|try_grab|folio_add_pin|io_uring|io_sqe|process_vm|iomap_dio|vmsplice|"
    r"\b(ib|rdma|uverbs|rxe|siw|mlx[45]|irdma|bnxt_re|efa|hns_roce|qedr|hfi1|erdma|mana_ib)_"
)

Listener = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Identity:
    """What every record of a run repeats, so that a record can be read alone."""

    run: str
    boot: str
    accel: str
    host: str
    kernel: str
    kernel_version: str
    device: str | None
    lab: bool = False

    def fields(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "run": self.run,
            "boot": self.boot,
            "accel": self.accel,
            "host": self.host,
            "kernel": self.kernel,
            "kernel_version": self.kernel_version,
            "device": self.device,
        }


@dataclass(slots=True)
class Runner:
    """Everything one run needs, given from outside; ``run`` does the work.

    ``listener`` gets every journal line (start lines and records) as it is written.
    """

    identity: Identity
    survey: Survey
    counters: Counters
    zygote: Zygote
    log: kmsg.KernelLog | None
    listener: Listener
    witness: Witness
    pins_available: bool = True
    _expectancy: Expectancy = field(default_factory=Expectancy)
    _leaves: containment.Leaves = field(default_factory=containment.Leaves)
    _interrupts: Interrupts = field(default_factory=Interrupts)
    # What the kernel logged in the case that runs.
    _log_lines: list[kmsg.Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Counters that are not folded still move by what the case before did.
        alone = self.identity.lab or not self.counters.refreshes
        self._expectancy.recent.between_cases = not alone
        self._expectancy.recent.leave(self.counters.snapshot(per_node=False))

    def self_test(self) -> dict[str, Any]:
        """Pin a known number of pages; where the counters don't move by it, pins are not judged.

        Where the trace does not show it, there is no trace.
        """
        self.witness.follow(self.zygote.pid)
        observation = self._observe(SELF_TEST)
        record = observation.record
        if record["outcome"] == "ok":
            self.witness.prove(record["gup_calls"], _SLOW)
        if self.witness.missing is None:
            fast = self._observe(FAST_SELF_TEST).record
            if fast["outcome"] == "ok":
                self.witness.prove(fast["gup_calls"], _FAST)
        pins = record["pins"]
        moves = pins and pins["acquire"]
        seen = moves["acquired"] if moves else None
        tolerance = 0 if pins is None else pins["bound"]
        surplus = 0 if seen is None else seen - SELF_TEST.pages
        if pins is not None and surplus > tolerance:
            # More is others' doing, if there are any: counters that move are what is to be shown.
            figures.doubt(pins, noise.met_by_watching(self.counters))
            tolerance = surplus if pins["noise"] or pins["recent"] else tolerance
        self.pins_available = (
            record["outcome"] == "ok" and seen is not None and abs(surplus) <= tolerance
        )
        return {
            "call": "process_vm_writev",
            "outcome": record["outcome"],
            "expected_pages": SELF_TEST.pages,
            "acquired_pages": seen,
            "tolerance_pages": tolerance,
            "passed": self.pins_available,
        }

    def run(self, plan: Sequence[Planned], journal: Journal) -> None:
        """Every case of the plan, in order. Raises Interrupt, with the journal valid."""
        with self._interrupts.caught():
            for planned in plan:
                self._interrupts.raise_pending()
                self._run_one(planned, journal)

    @property
    def containment_kind(self) -> str:
        """How the cases of this run are kept together: cgroup or process-group."""
        return self._leaves.containment(self.zygote.pid, self.zygote.mark).kind

    def close(self) -> None:
        self.zygote.close()
        self._leaves.close()

    def _run_one(self, planned: Planned, journal: Journal) -> None:
        case = planned.case
        unmet = self.survey.unmet(case)
        if unmet:
            skip = [entry.to_json() for entry in unmet]
            skipped = {"verdict": "skip", "reason": skip[0]["code"], "skip": skip}
            self._finish(planned, skipped, journal)
            return
        allowed_s = case.deadline_s + case.hold_s
        journal.start(planned.seq, case.id, deadline_s=allowed_s)
        self.listener({"start": case.id, "seq": planned.seq, "deadline_s": allowed_s})
        tainted = taint.read()
        earlier = self._kernel_reports()
        try:
            with self._interrupts.raised():
                observation = self._observe(case, planned, journal.path.parent)
        except Interrupt:
            journal.interrupted(planned.seq, case.id)
            raise
        record = observation.record
        record["kmsg"] = self._kernel_lines(earlier, record.get("pid"))
        if record["evidence"] is not None and self.log is not None:
            record["evidence"]["kernel_log"] = [line.text for line in self._log_lines]
        record["taint"] = taint.new_bits(tainted, taint.read())
        self._finish(planned, record, journal)
        if (record.get("load") or {}).get("stopped") is not None:
            raise Interrupt  # it came while the load ran, which was ended in good order

    def _observe(
        self, case: Case, planned: Planned | None = None, bundle: Path | None = None
    ) -> Observation:
        observation = self._try(case, planned, bundle)
        if observation.unborn:  # the zygote died before the case could begin
            observation = self._try(case, planned, bundle)
        return observation

    def _try(self, case: Case, planned: Planned | None, bundle: Path | None) -> Observation:
        if not self.zygote.alive():
            self.zygote.close()
            self.zygote = Zygote(self.zygote.include)
            self.zygote.warm_up()
            self.witness.follow(self.zygote.pid)
        contained = self._leaves.containment(self.zygote.pid, self.zygote.mark)
        around, lab = self.survey.around, self.identity.lab
        common = (around, self.counters, self._expectancy, contained, self.witness)
        observation: Observation
        if case.load is None or planned is None or bundle is None:
            observation = Observation(case, *common, lab=lab)
        else:
            # Only now: a guest without a load has no time for what one needs.
            from pinstorm.load_case.observation import LoadObservation

            observation = LoadObservation(
                planned,
                *common,
                lab=lab,
                bundle=bundle,
                told=self.listener,
                interrupts=self._interrupts,
            )
        try:
            observation.run(self.zygote)
        except Interrupt:
            contained.kill()
            raise
        return observation

    def _kernel_reports(self) -> list[str] | None:
        """What the kernel complained of since this was last asked; None where it cannot be read."""
        if self.log is None:
            return None
        self._log_lines = self.log.since_last()
        return kmsg.suspicious(self._log_lines)

    def _kernel_lines(self, earlier: list[str] | None, pid: int | None) -> list[Any] | None:
        """None where the log cannot be read, which is not the same as a clean one."""
        reports = self._kernel_reports()
        if earlier is None or reports is None:
            return None
        return kernel_lines(earlier, reports, pid, lab=self.identity.lab)

    def _finish(self, planned: Planned, observed: Mapping[str, Any], journal: Journal) -> None:
        record = {
            **self.identity.fields(),
            **planned.record_fields(),
            "uid": planned.case.params.get("uid", os.geteuid()),
            "target_fs": self.survey.target_fs,
            "driver": self.survey.driver,
            "cause": None,
            "remedy": None,
            "explanation": None,
            "gup_calls": None,
            "no_trace": None,
            "telemetry": {"pins_available": self.pins_available},
            **observed,
        }
        judgement = self._judge(record)
        if self._doubtful(record, judgement, planned.case.warmup + planned.case.repeat):
            # Is there noise that the short intervals did not meet?
            figures.doubt(record["pins"], noise.met_by_watching(self.counters))
            judgement = self._judge(record)
        if record.get("pins"):
            record["pins"]["attributed"] = attribution.attribute(record)
        record["verdict"], record["reason"] = judgement.verdict, judgement.reason
        record["expected"] = judgement.expected
        record["pin_class"] = (judgement.expected or {}).get("pin_class")
        explained = explain.of_record(record)
        if explained is not None:
            first = explained.first
            record["cause"], record["remedy"] = str(first.cause), first.remedy
            record["explanation"] = explained.to_json()
        journal.record(record)
        self.listener(record)

    def _doubtful(
        self, record: Mapping[str, Any], judgement: verdict.Judgement, cycles: int
    ) -> bool:
        """Whether a pin that nobody saw would change what is said of this case.

        A figure that is what its rule says, or what the timed cycles took, was not moved by
        others; and a failure that has nothing to do with pins is none of theirs. In a lab's guest
        there are no others to wait for.
        """
        pins = record.get("pins")
        if not pins or pins["noise"] or pins["recent"]:
            return False
        if judgement.verdict == "fail":
            doubted = {**pins}
            figures.doubt(doubted, 1)
            return self._judge({**record, "pins": doubted}).verdict != "fail"
        if judgement.verdict != "pass" or not pins["exact"] or self.identity.lab:
            return False
        return not figures.confirmed(pins, judgement.expected, cycles)

    def _judge(self, record: Mapping[str, Any]) -> verdict.Judgement:
        return verdict.judge(record, kernel=self.identity.kernel, lab=self.identity.lab)


def kernel_lines(
    earlier: Sequence[str], reports: Sequence[str], pid: int | None, *, lab: bool
) -> list[Any]:
    """The kernel's reports during a case, its own as text, the others marked ``"own": False``.

    What came before the case began is not its own, nor on a host what names neither its process
    nor the code it exercises: both are recorded and not judged.
    """
    own = [report for report in reports if lab or _concerns(report, pid)]
    others = [report for report in reports if not (lab or _concerns(report, pid))]
    return [*own, *({"text": report, "own": False} for report in (*earlier, *others))]


def _concerns(report: str, pid: int | None) -> bool:
    """On a host other subsystems complain as well: ours names the child or the code it is about."""
    return (pid is not None and f"PID: {pid} " in report) or _OUR_CODE.search(report) is not None
