"""``pinstorm run``: one suite on this machine, from the plan to the bundle."""

import os
import platform
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinstorm import __version__, budget, bundle, containment, host, journal, needs
from pinstorm.errors import Interrupted
from pinstorm.interrupts import Interrupt
from pinstorm.journal import Journal
from pinstorm.load_case import series
from pinstorm.lock import only_run
from pinstorm.runner import Identity, Runner
from pinstorm.spawn import Zygote
from pinstorm.suite import Suite
from pinstorm.witness import witness
from telemetry import clock, cpuinfo, fingerprint, kmsg, packages
from telemetry.vmstat import Counters
from workloads import scratch
from workloads.spec import Planned

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says about the machine and the output."""

    out: Path | None = None
    resume: Path | None = None
    device: str | None = None
    scratch: Sequence[Path] = ()
    refresh: bool | None = None
    pin_budget_bytes: int | None = None
    setup: bool = False
    # cases that could crash the machine may run
    destructive: bool = False
    only: str | None = None
    # modules with workloads beyond the registry: tests plant faulty ones
    include: Sequence[str] = ()


@dataclass(slots=True)
class Outcome:
    """Where the results are, and every record of the run, those of a resumed bundle included."""

    path: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(suite: Suite, plan: Sequence[Planned], options: Options, listener: Listener) -> Outcome:
    """Run the plan and write the bundle. Raises PinstormError; a Ctrl-C is in the outcome."""
    check_budget(plan, options)
    with (
        _terminated_as_interrupted(),
        only_run(),
        host.restored() as not_restored,
        _counters(options) as counters,
        _kernel_log() as log,
        witness(suite.trace is True) as seen,
    ):
        containment.remove_stale_leaves()
        if options.setup:
            host.provide(plan)
        zygote = Zygote(options.include)
        try:
            zygote.warm_up()
            survey = _survey(options, zygote, log)
            for directory in set(survey.around.scratch.values()):
                scratch.remove_stale(directory)
            path = options.resume or options.out or bundle.default_path(suite.name)
            identity = _identity(path.name, survey.around.device)
            runner = Runner(identity, survey, counters, zygote, log, listener, seen)
        except BaseException:
            zygote.close()
            raise
        try:
            manifest = _manifest(suite, options, identity, runner)
            outcome, lines, rest = _open(suite, plan, options, path, manifest)
            if suite.trace and seen.missing is not None:
                outcome.notes.append(f"no trace of the kernel's calls: {seen.missing}")
            with lines:
                try:
                    runner.run(rest, lines)
                except Interrupt:
                    outcome.interrupted = True
            manifest["clock"].append(clock.pair())
            bundle.write_manifest(outcome.path, manifest)
        finally:
            runner.close()
    outcome.notes += not_restored
    outcome.records = journal.read(outcome.path / bundle.JOURNAL).records
    bundle.finish(outcome.path)
    series.finish(outcome.path, identity.run, outcome.records)
    return outcome


def check_budget(plan: Sequence[Planned], options: Options) -> None:
    """UsageError when a case would pin more than the machine's budget, or the one given."""
    budget_bytes = options.pin_budget_bytes
    if budget_bytes is None:
        budget_bytes = budget.default_bytes()
    budget.check((planned.case for planned in plan), budget_bytes)


def _open(
    suite: Suite, plan: Sequence[Planned], options: Options, path: Path, manifest: dict[str, Any]
) -> tuple[Outcome, Journal, list[Planned]]:
    """A new bundle with its manifest, or the one to go on with and the cases that it lacks."""
    if options.resume is None:
        path = bundle.create(path)
        lines = Journal.create(path / bundle.JOURNAL)
        try:
            bundle.write_manifest(path, manifest)  # last: from here on there is what can be resumed
        except BaseException:
            lines.close()
            (path / bundle.JOURNAL).unlink()
            raise
        return Outcome(path), lines, list(plan)
    old = bundle.open_bundle(options.resume)
    bundle.check_resume(
        old, suite.sha256, suite.seed, platform.release(), options.only, suite.rounds
    )
    outcome = Outcome(options.resume.absolute())
    if old.torn_bytes:
        outcome.notes.append(f"the journal's last line was torn; {old.torn_bytes} bytes cut off")
    manifest["clock"] = [*old.manifest.get("clock", []), *manifest["clock"]]
    lines = Journal.append_to(outcome.path / bundle.JOURNAL)
    same_boot = old.manifest.get("boot") == clock.boot_id()
    for seq, start in sorted(old.contents.started.items()):
        record = _broken_off(old.manifest, next(p for p in plan if p.seq == seq), same_boot)
        lines.record(record)
        outcome.notes.append(
            f"{start['start']} was running when the run ended: {record['verdict']}"
        )
    done = old.contents.done | set(old.contents.started)
    return outcome, lines, [planned for planned in plan if planned.seq not in done]


def _broken_off(manifest: Mapping[str, Any], planned: Planned, same_boot: bool) -> dict[str, Any]:
    """The record of a case that was started and never finished; it is not run again.

    On the same boot the run itself was killed; on another the machine went down under the case,
    and nothing tells whether the kernel did.
    """
    return {
        **manifest["identity"],
        **planned.record_fields(),
        "verdict": "lost",
        "reason": "run-killed" if same_boot else "machine-rebooted",
    }


def _identity(run: str, device: str | None) -> Identity:
    return Identity(
        run=run,
        boot=clock.boot_id() or "",
        # A run in a guest that somebody else booted: its times are emulated all the same.
        accel="tcg" if cpuinfo.read().emulated else "host",
        host=platform.node(),
        kernel=platform.release(),
        kernel_version=platform.version(),
        device=device,
    )


def _manifest(suite: Suite, options: Options, identity: Identity, runner: Runner) -> dict[str, Any]:
    around = runner.survey.around
    return {
        "tool": {"version": __version__, "commit": host.tool_commit()},
        "suite": suite.to_manifest(),
        "only": options.only,
        "boot": identity.boot,
        "accel": identity.accel,
        "identity": identity.fields(),
        "clock": [clock.pair()],
        "selftest": runner.self_test(),
        "trace": runner.witness.report(),
        "device": around.device,
        "scratch": dict(around.scratch),
        "unmet": [entry.to_json() for entry in runner.survey.lacking.values()],
        "containment": runner.containment_kind,
        **fingerprint.collect(),
        "packages": packages.versions(),
    }


def unmet_of(plan: Sequence[Planned], options: Options) -> dict[int, list[needs.Unmet]]:
    """For --dry-run: the unmet needs of each case by seq; nothing is written or run."""
    with _kernel_log() as log:
        zygote = Zygote()
        try:
            zygote.warm_up()
            survey = _survey(options, zygote, log)
        finally:
            zygote.close()
    return {planned.seq: survey.unmet(planned.case) for planned in plan}


def _survey(options: Options, zygote: Zygote, log: kmsg.KernelLog | None) -> needs.Survey:
    return needs.survey(
        device=options.device,
        scratch=options.scratch or needs.default_scratch(),
        capabilities=zygote.capabilities,
        pyverbs_error=zygote.pyverbs_error,
        log=log,
        destructive=options.destructive,
        may_change=options.setup,
    )


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that what was changed is given back; the runner has its own
    way with both while cases run."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _counters(options: Options) -> Iterator[Counters]:
    with Counters(options.refresh) as counters:
        yield counters


@contextmanager
def _kernel_log() -> Iterator[kmsg.KernelLog | None]:
    log = kmsg.KernelLog.open()
    try:
        yield log
    finally:
        if log is not None:
            log.close()


def interrupted(outcome: Outcome) -> Interrupted:
    """The sentence for a run that was broken off."""
    return Interrupted(
        f"interrupted after {len(outcome.records)} cases; the bundle is valid: "
        f"pinstorm run SUITE --resume {os.path.relpath(outcome.path)} goes on"
    )
