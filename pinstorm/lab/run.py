"""``pinstorm lab run``: the host's side. Boot a guest per shape, watch it, and merge what it wrote.

The guest writes the journal while it lives; the host writes to it only between boots, about a case
that a dead guest left unfinished: ``crash`` when the console shows a panic of the kernel's own,
else ``lost``. The run then goes on with the next case in a fresh guest. A boot that never ran a
case is tried once more.
"""

import compileall
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import workloads
from pinstorm import __version__, budget, bundle, host, journal
from pinstorm.errors import ExitCode, Interrupted
from pinstorm.journal import Journal
from pinstorm.lab import accel, boot, console, kernels
from pinstorm.lab.gup_test_module import module_for
from pinstorm.lab.kernels import Kernel
from pinstorm.lab.setup import GUP_TEST_MODULE
from pinstorm.lab.shape import MEMORY_MIB, SHAPES, Shape, shapes_for
from pinstorm.load_case import series
from pinstorm.needs import needs_of
from pinstorm.outcome import exit_code
from pinstorm.runner import Identity
from pinstorm.suite import Suite
from telemetry import kernel_config, packages
from workloads.spec import MIB, Need, Planned

Listener = Callable[[dict[str, Any]], None]
Note = Callable[[str], None]

BOOT_DEADLINE_S = 180.0
# What a guest may be late with a record beyond the case's own deadline before it is given up.
GRACE_S = 60.0
LOST_BOOTS = 2
CONSOLE_LINES = 40
_POLL_S = 0.1


@dataclass(slots=True)
class Done:
    """One kernel's bundle."""

    kernel: Kernel
    path: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False


@dataclass(slots=True)
class _Run:
    """What is constant over the boots of one kernel."""

    suite: Suite
    kernel: Kernel
    path: Path
    accelerator: accel.Accel
    listener: Listener
    note: Note
    include: Sequence[str]
    boots: list[dict[str, Any]] = field(default_factory=list)
    seen_bytes: int = 0
    # Where the console of the case at hand begins: what came before is not its panic.
    console_bytes: int = 0
    console_seen_bytes: int = 0
    # What the guest's command failed of, or the last line of its standard error.
    last_words: str = ""

    @property
    def journal_path(self) -> Path:
        return self.path / bundle.JOURNAL

    @property
    def console_path(self) -> Path:
        return self.path / "console.log"


def resolve_kernels(names: Sequence[str], note: Note = lambda text: None) -> list[Kernel]:
    """The kernels of those names, fetched where the cache lacks them; each release once."""
    found = [kernels.resolve(name, note=note) for name in kernels.expand(list(names))]
    return list({kernel.release: kernel for kernel in found}.values())


def with_gup_test(found: Sequence[Kernel], note: Note) -> list[Kernel]:
    """The same kernels, each with the module of the kernel's own GUP test; UsageError."""
    return [replace(kernel, gup_test=module_for(kernel, note)) for kernel in found]


def check_budget(plan: Sequence[Planned]) -> None:
    """UsageError when a case would pin more than a quarter of a guest's memory."""
    budget.check((planned.case for planned in plan), MEMORY_MIB * MIB // 4)


def make_parent(out: Path | None, suite_name: str) -> Path:
    """The directory that gets one bundle per kernel."""
    return bundle.create(out or bundle.default_path(f"{suite_name}-lab"))


def run_kernel(
    suite: Suite,
    plan: Sequence[Planned],
    kernel: Kernel,
    parent: Path,
    only: str | None,
    listener: Listener,
    note: Note,
    include: Sequence[str] = (),
    resume: bundle.Bundle | None = None,
) -> Done:
    """Run the plan on one kernel into PARENT/RELEASE, or go on with the bundle that is there.

    A Ctrl-C is in what is returned.
    """
    path = bundle.create(parent / kernel.release) if resume is None else resume.path.absolute()
    run = _Run(suite, kernel, path, accel.accelerator(kernel, note), listener, note, include)
    if resume is None:
        Journal.create(run.journal_path).close()
    else:
        bundle.check_resume(resume, suite.sha256, suite.seed, kernel.release, only, suite.rounds)
        _take_over(run, resume, plan)
    bundle.write_manifest(path, _manifest(run, only))
    _compile_sources()
    done = Done(kernel, path)
    try:
        for shape in shapes_for(kernel, _wanted(plan)):
            cases = [planned for planned in plan if _shape_of(planned) in shape.serves]
            _run_shape(run, shape, cases)
    except KeyboardInterrupt:
        done.interrupted = True
    finally:
        bundle.write_manifest(path, _manifest(run, only))
    done.records = journal.read(run.journal_path).records
    bundle.finish(path)
    series.finish(path, run.path.parent.name, done.records)
    return done


def _take_over(run: _Run, old: bundle.Bundle, plan: Sequence[Planned]) -> None:
    """The case that was running when the run was killed is lost, and is not run again."""
    run.boots = list(old.manifest.get("boots", []))
    by_seq = {planned.seq: planned for planned in plan}
    with Journal.append_to(run.journal_path) as lines:
        for seq in old.contents.started:
            lines.record(_ended_by_host(run, by_seq[seq], "lost", "run-killed", ()))
    for leftover in (*run.path.glob(".job-*"), *run.path.glob(".boot-*")):
        leftover.unlink(missing_ok=True)
    for leftover in run.path.glob(".guest-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _new_lines(run)


def shell(kernel: Kernel) -> int:
    """A root shell on the terminal, in a guest that has been set up; its exit code."""
    (shape,) = shapes_for(kernel, dict.fromkeys(SHAPES, tuple(Need)))[-1:]
    setup = [sys.executable, "-m", "pinstorm.lab.setup", *shape.pieces]
    return boot.interactive(kernel, shape, setup)


def index_entry(done: Done) -> dict[str, Any]:
    verdicts: dict[str, int] = {}
    for record in done.records:
        verdicts[record["verdict"]] = verdicts.get(record["verdict"], 0) + 1
    code = ExitCode.INTERRUPTED if done.interrupted else exit_code(done.records)
    return {
        "kernel": done.kernel.release,
        "path": done.path.name,
        "exit_code": int(code),
        "verdicts": verdicts,
    }


def interrupted(done: Done) -> Interrupted:
    return Interrupted(
        f"interrupted after {len(done.records)} cases; the bundle is valid: "
        f"pinstorm lab run SUITE --resume {done.path} goes on"
    )


def _compile_sources() -> None:
    """So that the guest, which is slow and may not write, finds every module compiled."""
    for package in ("pinstorm", "workloads", "telemetry"):
        compileall.compile_dir(str(host.ROOT / package), quiet=2)


def _shape_of(planned: Planned) -> str:
    return workloads.shape(planned.case)


def _wanted(plan: Sequence[Planned]) -> dict[str, set[Need]]:
    """The needs of the cases of each shape."""
    wanted: dict[str, set[Need]] = {}
    for planned in plan:
        wanted.setdefault(_shape_of(planned), set()).update(needs_of(planned.case))
    return wanted


def _run_shape(run: _Run, shape: Shape, cases: Sequence[Planned]) -> None:
    """Boot until every case has a record."""
    lost_boots = 0
    while todo := _unfinished(run, cases):
        before = len(todo)
        started = _run_boot(run, shape, todo)
        _close_unfinished(run, cases)
        if len(_unfinished(run, cases)) < before:
            lost_boots = 0
            continue
        lost_boots += 1
        what = "ran no case" if started else "never came up"
        said = f" ({run.last_words})" if run.last_words else ""
        run.note(f"the guest {what}{said}; its messages are in {run.console_path}")
        if lost_boots == LOST_BOOTS:
            _give_up(run, _unfinished(run, cases))


def _unfinished(run: _Run, cases: Sequence[Planned]) -> list[Planned]:
    done = journal.read(run.journal_path).done
    return [planned for planned in cases if planned.seq not in done]


def _run_boot(run: _Run, shape: Shape, todo: Sequence[Planned]) -> bool:
    """One guest, until it has run its cases, died or hung; whether its command was started."""
    number = len(run.boots)
    job, report = run.path / f".job-{number}.json", run.path / f".boot-{number}.json"
    failed = run.path / f".failed-{number}.json"
    bundle.write_json(job, _job(run, shape, todo, report, failed))
    began_s = time.monotonic()
    run.console_bytes = run.console_seen_bytes = _size(run.console_path)
    # The host's module path, spelled out: what site and its .pth files do takes 2 s in a guest.
    command = [sys.executable, "-S", "-m", "pinstorm.lab.guest", str(job)]
    environment = {"PYTHONPATH": host.module_path()}
    if run.kernel.gup_test is not None:
        environment[GUP_TEST_MODULE] = str(run.kernel.gup_test)
    with boot.boot(
        run.kernel, shape, command, run.path, run.console_path, environment,
        accel=run.accelerator,
    ) as guest:  # fmt: skip
        try:
            ended = _watch(run, guest)
        except KeyboardInterrupt:
            guest.kill()
            _note_interrupted(run)
            raise
        finally:
            started = guest.started
            run.boots.append(
                {
                    "shape": shape.name,
                    "kernel_options": list(shape.kernel_options),
                    "memory_mib": shape.memory_mib,
                    "cpus": shape.cpus,
                    "cases": len(todo),
                    "elapsed_s": round(time.monotonic() - began_s, 3),
                    **_read_report(report),
                }
            )
            run.last_words = str(_read_report(failed).get("error", ""))
            for file in (job, report, failed):
                file.unlink(missing_ok=True)
        if ended != 0:
            _keep_messages(run, guest, ended)
    return started


def _job(
    run: _Run, shape: Shape, todo: Sequence[Planned], report: Path, failed: Path
) -> dict[str, Any]:
    return {
        "run": run.path.parent.name,
        "accel": run.accelerator.name,
        "host": platform.node(),
        "pieces": [*shape.pieces, *(["gup-test"] if run.kernel.gup_test else [])],
        "include": list(run.include),
        "trace": run.suite.trace is not False,
        "journal": str(run.journal_path),
        "report": str(report),
        "failed": str(failed),
        "plan": [planned.to_json() for planned in todo],
    }


def _watch(run: _Run, guest: boot.Guest) -> int | None:
    """Pass the journal's lines on until the guest ends; None when it hung and was killed."""
    give_up_s = time.monotonic() + BOOT_DEADLINE_S
    while (code := guest.poll()) is None:
        for line in _new_lines(run):
            allowed_s = float(line.get("deadline_s", BOOT_DEADLINE_S))
            give_up_s = time.monotonic() + allowed_s + GRACE_S
        if time.monotonic() > give_up_s:
            guest.kill()
            break
        time.sleep(_POLL_S)
    _new_lines(run)
    return code


def _new_lines(run: _Run) -> list[dict[str, Any]]:
    lines, run.seen_bytes = journal.tail(run.journal_path, run.seen_bytes)
    for line in lines:
        if "verdict" in line:
            # What the console showed before the last look belongs to cases that have ended.
            run.console_bytes = run.console_seen_bytes
        run.listener(line)
    run.console_seen_bytes = _size(run.console_path)
    return lines


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _close_unfinished(run: _Run, cases: Sequence[Planned]) -> None:
    """The case that a dead guest left behind: a crash when the kernel said so, else lost."""
    contents = journal.read(run.journal_path)
    if not contents.started and not contents.torn_bytes:
        return
    said = console.lines_of(run.console_path, run.console_bytes)
    panic = console.panic(said)
    emulators = console.is_emulators(panic, run.accelerator)
    if emulators:
        ended = "lost", "emulator", panic[:CONSOLE_LINES]
    elif panic:
        ended = "crash", "kernel-panic", panic[:CONSOLE_LINES]
    else:
        ended = "lost", "guest-gone", said[-CONSOLE_LINES:]
    by_seq = {planned.seq: planned for planned in cases}
    with Journal.append_to(run.journal_path) as lines:
        for seq in contents.started:
            lines.record(_ended_by_host(run, by_seq[seq], *ended))
            if emulators:
                run.note(
                    f"QEMU {run.accelerator.qemu_version} took down the guest of "
                    f"{by_seq[seq].case.id}, and not its kernel (an int3 out of nowhere, mended in "
                    "8.1): run the case again"
                )
    _new_lines(run)


def _give_up(run: _Run, cases: Sequence[Planned]) -> None:
    with Journal.append_to(run.journal_path) as lines:
        for planned in cases:
            tail = console.lines_of(run.console_path, run.console_bytes)[-CONSOLE_LINES:]
            lines.record(_ended_by_host(run, planned, "lost", "boot-lost", tail))
    _new_lines(run)


def _ended_by_host(
    run: _Run, planned: Planned, verdict: str, reason: str, console: Sequence[str]
) -> dict[str, Any]:
    boot_report = run.boots[-1] if run.boots else {}
    identity = Identity(
        run=run.path.parent.name,
        boot=boot_report.get("boot", ""),
        accel=run.accelerator.name,
        host=platform.node(),
        kernel=run.kernel.release,
        kernel_version="",
        device=boot_report.get("device"),
    )
    return {
        **identity.fields(),
        **planned.record_fields(),
        "verdict": verdict,
        "reason": reason,
        "kmsg": list(console),
    }


def _note_interrupted(run: _Run) -> None:
    contents = journal.read(run.journal_path)
    with Journal.append_to(run.journal_path) as lines:
        for seq, start in contents.started.items():
            lines.interrupted(seq, start["start"])


def _keep_messages(run: _Run, guest: boot.Guest, ended: int | None) -> None:
    """What the guest's command and QEMU said goes to the console's file: results never do."""
    output, errors = guest.output()
    if not run.last_words:
        run.last_words = next(reversed(errors.strip().splitlines()), "")
    with open(run.console_path, "a", encoding="utf-8") as console:
        for title, text in (
            ("guest command, standard output", output),
            ("guest command, standard error", errors),
            ("virtme-ng and QEMU", guest.machine_messages()),
        ):
            if text.strip():
                console.write(f"\n--- {title} (exit {ended}) ---\n{text.rstrip()}\n")


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        return report
    except (OSError, ValueError):
        return {}


def _manifest(run: _Run, only: str | None) -> dict[str, Any]:
    """The suite and the host, then the first boot's machine; all boots' own facts in ``boots``."""
    first = next((entry for entry in run.boots if "fingerprint" in entry), {})
    fingerprint: Mapping[str, Any] = first.get("fingerprint", {})
    boots = [{k: v for k, v in entry.items() if k != "fingerprint"} for entry in run.boots]
    return {
        "tool": {"version": __version__, "commit": host.tool_commit()},
        "suite": run.suite.to_manifest(),
        "only": only,
        "accel": run.accelerator.name,
        "qemu": accel.qemu_version(),
        "lab": {
            "kernel": run.kernel.name,
            "release": run.kernel.release,
            "host": platform.node(),
            "gup_test_module": run.kernel.gup_test is not None,
        },
        "identity": first.get("identity"),
        "selftest": first.get("selftest"),
        "trace": first.get("trace"),
        "device": first.get("device"),
        "boots": boots,
        **fingerprint,
        "kernel": {
            "release": run.kernel.release,
            **fingerprint.get("kernel", {}),
            "config": kernel_config.relevant(
                {f"CONFIG_{name}": value for name, value in run.kernel.config().items()}
            ),
        },
        # The guest's user space is this machine's.
        "packages": packages.versions(),
    }
