"""The command line: options in, one call into the library, output and exit code out.

Only this module prints and exits (before it is imported, pinstorm.__main__ does). Everything slow
is imported inside the command that needs it, so that ``pinstorm --help`` answers at once.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pinstorm import completion
from pinstorm.errors import ExitCode, NothingRan, PinstormError, UsageError
from pinstorm.outcome import exit_code

app = typer.Typer(
    help="Make the kernel pin user pages, and record what it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lab_app = typer.Typer(help="Run suites in a virtual machine.", no_args_is_help=True)
app.add_typer(lab_app, name="lab")

SuitePath = Annotated[
    str,
    typer.Argument(
        metavar="SUITE",
        help="A TOML file, or a shipped name.",
        autocompletion=completion.suites,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Where results go; new or empty.")]
Resume = Annotated[
    Path | None, typer.Option("--resume", metavar="BUNDLE", help="Go on with a broken-off run.")
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only", metavar="GLOB", help="Cases by id.", autocompletion=completion.cases_of_suite
    ),
]
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="Run the whole suite N times.")]
Hold = Annotated[str | None, typer.Option("--hold", metavar="60s", help="Keep the pins that long.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Wide = Annotated[bool, typer.Option("--wide", help="All columns, skipped cases too.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")]
Kernels = Annotated[
    list[str] | None,
    typer.Option(
        "--kernel",
        help="oldstable, stable, backports, all, a version prefix or a vmlinuz; repeatable.",
        autocompletion=completion.kernels,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="RDMA device, e.g. mlx5_0.", autocompletion=completion.devices),
]

Scratch = Annotated[
    list[Path] | None,
    typer.Option("--scratch", help="Where files may be made; repeatable.", show_default="."),
]


def _examples(*commands: str) -> str:
    """The end of a command's help. The \\b keeps its lines as they are."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {command}" for command in commands)])


# What print() raises, without a file name, where stdout is a file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# uid_t has 32 bits, and its last value says "none" (setresuid(2)).
_LAST_UID = (1 << 32) - 2


def main() -> None:
    """The command line: errors become one sentence and their exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _occupy_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table in an ASCII locale shows \\xb1 for a plus-minus sign instead of a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = ExitCode.OK
    try:
        # Without its standalone mode typer catches its own Exit, and returns the code.
        code = app(standalone_mode=False) or ExitCode.OK
        if code == ExitCode.INTERRUPTED:  # what it makes of Ctrl-C, without a word
            raise KeyboardInterrupt
        print(end="", flush=True)  # here, where a closed pipe is expected; no stdout is none
        sys.exit(code)
    except PinstormError as error:
        _say(f"pinstorm: {error}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("pinstorm: interrupted", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        _leave_without_output(code)
    except SystemExit as stop:
        # typer makes a failure of its own of it, with no way to tell it not to
        if isinstance(stop.__context__, BrokenPipeError):
            _leave_without_output(code)
        raise
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        print(f"pinstorm: the output cannot be written ({error.strerror})", file=sys.stderr)
        _leave_without_output(ExitCode.WRITE)
    except Exception as error:
        usage = _usage_text(error)
        if usage is None:
            raise
        print(usage, file=sys.stderr)
        sys.exit(ExitCode.USAGE)


def _occupy_standard_streams() -> None:
    """What was closed leads nowhere; or the next file that a case opens would be taken for it.

    sys.stdout stays None: a report that nobody gets is an error of its own.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    if sys.stderr is None:  # print() would take stdout instead
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as we live


def _leave_without_output(code: int) -> NoReturn:
    """The reader (``head``, say) has seen enough, or a disk is full. What is buffered is let go."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.exit(code)


@app.command(
    epilog=_examples(
        "pinstorm run quick --dry-run",
        "pinstorm run quick --device mlx5_0 --scratch /mnt/nvme",
        "pinstorm run quick --only 'io-uring-register/*'",
        "pinstorm run --resume runs/BUNDLE quick",
    )
)
def run(
    suite: SuitePath,
    out: Out = None,
    resume: Resume = None,
    device: Device = None,
    scratch: Scratch = None,
    only: Only = None,
    rounds: Rounds = None,
    hold: Hold = None,
    dry_run: DryRun = False,
    setup: Annotated[
        bool, typer.Option("--setup", help="Change the machine as cases need, and give it back.")
    ] = False,
    destructive: Annotated[
        bool, typer.Option("--destructive", help="Run cases that could crash this machine, too.")
    ] = False,
    no_refresh: Annotated[
        bool, typer.Option("--no-refresh", help="Never run vmstat's refresh on every CPU.")
    ] = False,
    pin_budget: Annotated[
        str | None, typer.Option("--pin-budget", help="Pin at most this much, e.g. 16GiB.")
    ] = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite on this machine; what it cannot do here is skipped, with the reason."""
    from pinstorm import session
    from pinstorm.progress import progress
    from pinstorm.units import parse_size

    loaded, plan = _plan(suite, only, rounds, hold, quiet=as_json)
    options = session.Options(
        out=out,
        resume=resume,
        device=device,
        scratch=tuple(scratch or ()),
        refresh=False if no_refresh else None,
        pin_budget_bytes=parse_size(pin_budget) if pin_budget else None,
        setup=setup,
        destructive=destructive,
        only=only,
    )
    session.check_budget(plan, options)
    if dry_run:
        _show_plan(plan, session.unmet_of(plan, options), as_json)
        return
    with progress(len(plan), loaded.name) as bar:
        outcome = session.run(loaded, plan, options, _bar_listener(bar))
        for note in outcome.notes:
            bar.note(note)
    command = _repeat_with("run", suite, drop=_NOT_REPEATED)
    _report(outcome.records, wide, as_json, command=command, path=outcome.path)
    _write_page(outcome.path, lambda _: command, as_json)
    if outcome.interrupted:
        raise session.interrupted(outcome)
    _exit_with(outcome.records)


@app.command(
    epilog=_examples(
        "pinstorm report runs/BUNDLE",
        "pinstorm report runs/LAB --output matrix.html",
        "pinstorm report runs/BUNDLE --format junit --output junit.xml",
    )
)
def report(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Directories that runs wrote.")
    ],
    rejudge: Annotated[bool, typer.Option("--rejudge", help="Apply this version's rules.")] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="table, html, md, json, csv, junit, ktap, or cases (of kernels).",
            autocompletion=completion.formats,
        ),
    ] = "table",
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write there; of a table its report.html."),
    ] = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Show the tables of bundles and write report.html, or hand them to other programs."""
    from pinstorm.report import emitters, overview
    from pinstorm.report import output as outputs

    emitters.check_format(form)
    if form != emitters.TABLE and (as_json or wide):
        given = "--json" if as_json else "--wide"
        raise UsageError(f"{given} goes with the table, not with --format {form}: drop one")
    if as_json and output is not None:
        raise UsageError("--output is for report.html, which --json does not write: drop one")
    if output is not None:
        outputs.check(output)
    if form not in (emitters.TABLE, emitters.HTML):

        def command(one: Any) -> str:
            return _repeat_command(one.manifest)

        shown = emitters.emit(bundles, form, command=command, rejudge=rejudge, output=output)
        _exit_with(shown)
    found = overview.read(bundles, rejudge=rejudge, tables=form == emitters.TABLE and not as_json)
    if form == emitters.HTML:
        overview.print_page(found.frames, _repeat_command, output)
    elif as_json:
        for one in found.shown:
            _report(found.records(one), wide, True, command="", path=one.path)
            _say_torn(one)
    else:
        _show(found, wide)
        if output is not None:
            overview.print_page(found.frames, _repeat_command, output)
        else:
            output = overview.page_path(bundles)
            overview.write_page(found.frames, _repeat_command, output, option="--output")
        print(f"report: {output}")
    for note in found.notes:
        _say(note)
    if not found.notes and not found.verdicts:
        raise NothingRan("no case has ended yet: wait for the run, or --resume it")
    if found.exit_code == ExitCode.NOTHING_RAN:
        raise NothingRan("every case was skipped; the table says why")
    raise typer.Exit(found.exit_code)


def _say_torn(one: Any) -> None:
    if one.torn_bytes:
        _say(f"the journal's last line is torn: {one.torn_bytes} bytes")


def _show(found: Any, wide: bool) -> None:
    """The tables of a few bundles, a line of each of many."""
    from pinstorm.report import overview

    for one in found.shown:
        _say_torn(one)
        if one.records is not None:
            again = _repeat_command(one.manifest)
            _report(one.records, wide, False, command=again, path=one.path)
    for line in overview.lines(found):
        print(line)


@app.command(
    "explain",
    epilog=_examples(
        "pinstorm explain runs/BUNDLE 'rdma-register/movable-held/*'",
        "pinstorm explain --call ibv_reg_mr --errno ENOMEM --pid 4242",
    ),
)
def explain_(
    bundle: Annotated[
        Path | None, typer.Argument(help="A directory that a run wrote.", show_default=False)
    ] = None,
    case: Annotated[
        str | None,
        typer.Argument(
            help="The id of a case, or a glob.",
            show_default=False,
            autocompletion=completion.cases_of_bundle,
        ),
    ] = None,
    call: Annotated[
        str | None, typer.Option("--call", help="Of another program: the call, e.g. ibv_reg_mr.")
    ] = None,
    error: Annotated[
        str | None, typer.Option("--errno", help="What it gave, by name or number.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="How much it asked for.")] = None,
    pid: Annotated[
        int | None, typer.Option("--pid", min=1, help="Its process, if it still lives.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Why a case was refused, or with --call and --errno another program, and what to do."""
    from pinstorm.evidence_parts import readable
    from pinstorm.report import explanation
    from pinstorm.units import parse_size

    if call is None and error is None:
        if bundle is None or case is None:
            raise UsageError("explain what? give BUNDLE and CASE, or --call and --errno")
        if size is not None or pid is not None:
            raise UsageError("--size and --pid speak of another program: add --call and --errno")
        explanation.show_cases(bundle, case, as_json)
        return
    if call is None or error is None:
        missing = "--call" if call is None else "--errno"
        raise UsageError(f"a call is explained by its errno: add {missing}")
    if bundle is not None:
        raise UsageError(f"{bundle} and --call are two questions: ask one of them")
    if not (call := readable(call.strip())):
        raise UsageError("--call is empty: name the call that was refused, e.g. --call ibv_reg_mr")
    size_bytes = parse_size(size) if size is not None else None
    if size_bytes == 0:
        raise UsageError("--size 0 asks for no memory: leave --size out when it is not known")
    explanation.show_failure(call, error, size_bytes, pid, as_json)


@app.command(
    "list",
    epilog=_examples(
        "pinstorm list --device mlx5_0 --scratch /mnt/nvme",
        "pinstorm list --rules --diff 6.1 7",
    ),
)
def list_(
    rules: Annotated[bool, typer.Option("--rules", help="The oracle's rules and sources.")] = False,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--diff", metavar="A B", help="With --rules: what changes between kernels."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="With --diff: whose cases; the widest shipped.")
    ] = None,
    device: Device = None,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Workloads, memories, suites and rules, what each needs and whether it is met here."""
    from pinstorm.report import listing, rule_listing

    if not rules and (diff is not None or suite is not None):
        raise UsageError("--diff and --suite speak of rules: add --rules")
    if diff is None and suite is not None:
        raise UsageError("--suite says whose cases --diff compares: add --diff A B")
    if diff is not None:
        rule_listing.show_diff(diff, suite, as_json)
        return
    if rules:
        rule_listing.show_rules(as_json)
        return
    listing.show_registry(device, tuple(scratch or ()), as_json)


@app.command(epilog=_examples("pinstorm pins", "pinstorm pins --user postgres --json"))
def pins(
    uid: Annotated[
        int | None, typer.Option("--uid", min=0, help="Only what this user's processes hold.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="The same, by name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Who holds pins on this machine now, and how many no process accounts for."""
    from pinstorm.report import pins_listing

    if user is not None:
        if uid is not None:
            raise UsageError("--uid and --user both say whose: give one of them")
        uid = pins_listing.user_id(user)
    if uid is not None and uid > _LAST_UID:
        raise UsageError(f"user {uid} is no user: ids of users go up to {_LAST_UID}")
    pins_listing.show_pins(uid, as_json)


@app.command(
    epilog=_examples(
        "pinstorm doctor",
        "ssh HOST pinstorm doctor --json | pinstorm doctor --against -",
        "srun pinstorm doctor --json > job.json && pinstorm doctor --against job.json",
    )
)
def doctor(
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="What doctor --json said elsewhere; or -."),
    ] = None,
    device: Device = None,
    scratch: Scratch = None,
    probe_kvm: Annotated[
        bool, typer.Option("--probe-kvm", help="Boot a guest to find out: up to 10 s, once a boot.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What this host can do, as this user, and what stands in the way. Nothing is changed."""
    from pinstorm.doctor.sight import Options
    from pinstorm.report import doctor_listing

    options = Options(device, tuple(scratch or ()), probe_kvm)
    doctor_listing.show(options, against, as_json, _say)


@app.command(
    epilog=_examples(
        "pinstorm compare runs/BEFORE runs/AFTER",
        "pinstorm compare lab/6.1.* lab/7.2.* --format html --output diff.html",
        "pinstorm compare main/ branch/ --gate verdicts --gate 'acquire.p99 <= +10%'",
    )
)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A bundle, or a directory with several.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.")],
    gates: Annotated[
        list[str] | None,
        typer.Option("--gate", help="Exit 1 when broken, e.g. 'acquire.p99 <= +10%'; repeatable."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A gate that cannot tell is broken, too.")
    ] = False,
    margin: Annotated[
        str, typer.Option("--margin", help="Times this close together are the same.")
    ] = "5%",
    form: Annotated[str, typer.Option("--format", help="table, html, md or json.")] = "table",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write there, not on stdout.")
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Every case, and times that did not change, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What changed from A to B: verdicts, outcomes, pins, times; and what cannot be told."""
    from pinstorm.report import comparison_documents as documents

    asked = documents.Asked(tuple(gates or ()), strict, margin, form, output, wide, as_json)
    broken = documents.emit(a, b, asked)
    if broken is not None:
        raise PinstormError(broken)


@lab_app.command(
    "run",
    epilog=_examples(
        "pinstorm lab run quick --kernel stable",
        "pinstorm lab run matrix --kernel all --out three-kernels",
        "pinstorm lab run quick --only 'rdma-register/anon/*'",
    ),
)
def lab_run(
    suite: SuitePath,
    kernel: Kernels = None,
    out: Out = None,
    resume: Resume = None,
    only: Only = None,
    rounds: Rounds = None,
    hold: Hold = None,
    dry_run: DryRun = False,
    gup_test: Annotated[
        bool,
        typer.Option("--gup-test", help="Build the kernel's GUP test as a module, into the cache."),
    ] = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Run a suite in guests, one bundle per kernel: OUT/<release>/ and OUT/index.json."""
    from pinstorm.bundle import open_bundle, read_index, write_index
    from pinstorm.lab import run as lab
    from pinstorm.progress import progress

    loaded, plan = _plan(suite, only, rounds, hold, quiet=as_json)
    lab.check_budget(plan)
    if dry_run:
        _show_plan(plan, {}, as_json, lab=True)
        return
    old = open_bundle(resume) if resume is not None else None
    if old is not None:
        kernel = [old.manifest.get("lab", {}).get("kernel", "backports")]
    kernels = lab.resolve_kernels(kernel or ["backports"], _say)
    if gup_test or (old is not None and old.manifest.get("lab", {}).get("gup_test_module")):
        kernels = lab.with_gup_test(kernels, _say)
    parent = old.path.absolute().parent if old is not None else lab.make_parent(out, loaded.name)
    entries = {entry["kernel"]: entry for entry in read_index(parent)}
    codes = []
    commands: dict[str, str] = {}
    for chosen in kernels:
        with progress(len(plan), f"{loaded.name} on {chosen.release}") as bar:
            done = lab.run_kernel(
                loaded, plan, chosen, parent, only, _bar_listener(bar), bar.note, resume=old
            )
        command = _repeat_with("lab", "run", suite, "--kernel", chosen.name, drop=_NOT_REPEATED)
        _report(done.records, wide, as_json, command=command, path=done.path)
        commands[done.path.name] = command
        entry = entries[chosen.release] = lab.index_entry(done)
        codes.append(entry["exit_code"])
        write_index(parent, list(entries.values()))
        _write_page(done.path, lambda _, command=command: command, as_json)
        if done.interrupted:
            break

    def again(manifest: Mapping[str, Any]) -> str:
        release = (manifest.get("kernel") or {}).get("release")
        return commands.get(str(release)) or _repeat_command(manifest)

    _write_page(parent, again, as_json)
    if done.interrupted:
        raise lab.interrupted(done)
    raise typer.Exit(_worst(codes))


@lab_app.command("shell", epilog=_examples("pinstorm lab shell --kernel oldstable"))
def lab_shell(
    kernel: Annotated[
        str,
        typer.Option("--kernel", help="As for lab run.", autocompletion=completion.kernels),
    ] = "backports",
) -> None:
    """A root shell in a guest that is set up as for a run."""
    from pinstorm.lab import run as lab

    (chosen,) = lab.resolve_kernels([kernel], _say)[:1]
    raise typer.Exit(lab.shell(chosen))


@lab_app.command("kernels", epilog=_examples("pinstorm lab kernels --refresh"))
def lab_kernels(
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the mirror again.")] = False,
    as_json: AsJson = False,
) -> None:
    """The kernels that the lab can boot, and which are here already."""
    from pinstorm.report import listing

    listing.show_kernels(refresh, as_json)


def _plan(
    suite: str, only: str | None, rounds: int | None, hold: str | None, quiet: bool
) -> tuple[Any, list[Any]]:
    from dataclasses import replace

    from pinstorm import suite as suites
    from pinstorm.units import parse_duration

    loaded = suites.load(suite)
    if hold is not None:
        loaded = loaded.with_hold(parse_duration(hold))
    if rounds is not None:
        loaded = replace(loaded, rounds=rounds)
    plan, notes = suites.plan(loaded, only_glob=only)
    if not quiet:
        for note in notes:
            print(note, file=sys.stderr)
    return loaded, plan


def _say(text: str) -> None:
    from pinstorm.evidence_parts import readable

    # Names of files and cases are in it, and anybody's.
    print("\n".join(map(readable, text.splitlines())), file=sys.stderr, flush=True)


def _bar_listener(bar: Any) -> Any:
    def listen(line: Mapping[str, Any]) -> None:
        if "start" in line:
            bar.start(line["start"])
        elif "load" in line and "ops_s" in line:
            bar.load(line)
        elif "verdict" in line:
            bar.done(line)

    return listen


def _show_plan(
    plan: Sequence[Any], unmet: Mapping[int, Any], as_json: bool, *, lab: bool = False
) -> None:
    from pinstorm.report import plan_listing

    plan_listing.show_plan(plan, unmet, as_json, lab=lab)


def _report(
    records: Sequence[dict[str, Any]], wide: bool, as_json: bool, *, command: str, path: Path
) -> None:
    import json

    if as_json:
        for record in records:
            print(json.dumps(record, separators=(",", ":")))
        return
    from pinstorm.report import table

    emulated = any(record.get("accel") == "tcg" for record in records)
    table.show(records, emulated=emulated, wide=wide, command=command)
    print(f"bundle: {path}")


def _write_page(path: Path, command: Any, as_json: bool) -> None:
    """report.html of what has just run; with --json nothing is said of it."""
    from pinstorm import frames
    from pinstorm.report import overview

    page = overview.write_page(frames.scan(path), command, path / overview.REPORT)
    if not as_json:
        print(f"report: {page}")


def _repeat_command(manifest: Mapping[str, Any]) -> str:
    import shlex

    from pinstorm import suite as suites
    from pinstorm.bundle import from_lab

    suite = suites.name_to_give(manifest.get("suite") or {})
    if not from_lab(manifest):
        return shlex.join(["pinstorm", "run", suite])
    lab = manifest.get("lab") or {}
    module = ["--gup-test"] if lab.get("gup_test_module") else []
    kernel = str(lab.get("kernel", "NAME"))
    return shlex.join(["pinstorm", "lab", "run", suite, "--kernel", kernel, *module])


def _worst(codes: Sequence[int]) -> int:
    """Of several kernels: a kernel on which everything was skipped says nothing of the others."""
    order = (ExitCode.NOTHING_RAN, ExitCode.OK, ExitCode.FAILED, ExitCode.LOST, ExitCode.WRITE)
    return max(codes, key=lambda code: order.index(ExitCode(code)))


# Options of a run that say nothing of how a case is run.
_NOT_REPEATED = {"--only": 1, "--out": 1, "--resume": 1, "--rounds": 1, "--wide": 0, "--json": 0}


def _repeat_with(*words: str, drop: Mapping[str, int]) -> str:
    """The command line of now, beginning with ``words`` and without the options in ``drop``."""
    import shlex

    kept, rest = list(words), sys.argv[1:]
    while rest:
        option, *rest = rest
        name, given, _ = option.partition("=")
        if name in drop:
            rest = rest if given else rest[drop[name] :]
        elif name == "--kernel":
            rest = rest if given else rest[1:]
        elif option not in words:
            kept.append(option)
    return shlex.join(["pinstorm", *kept])


def _exit_with(records: Sequence[Mapping[str, Any]]) -> None:
    code = exit_code(records)
    if code == ExitCode.NOTHING_RAN:
        raise NothingRan("every case was skipped; the table says why")
    raise typer.Exit(code)


def _usage_text(error: Exception) -> str | None:
    """typer's own complaints about the command line, as a sentence; None for anything else."""
    # typer has its own copy of click in newer versions, so the classes have no one name.
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    message = str(format_message())
    if type(error).__name__ == "NoArgsIsHelpError":
        return message
    command = getattr(getattr(error, "ctx", None), "command_path", "pinstorm")
    message = message[:1].lower() + message[1:].rstrip(".")
    return f"pinstorm: {message}; see {command} --help"
