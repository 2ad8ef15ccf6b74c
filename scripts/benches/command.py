"""The command line of scripts/bench.

Exit codes: 0 all of them ran, 1 one could not be run, 2 usage or a need that is not met, 4 the
figures could not be written, 130 interrupted (what was finished is printed and written).
"""

import argparse
import difflib
import fnmatch
import json
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType

from benches import bundles, direct_io, lab, needs, registration, telemetry_cost
from benches.pairs import BenchFailed, Benchmark
from benches.session import Options, Report
from benches.table import WIDTH, render
from pinstorm.errors import ExitCode, PinstormError, UsageError, WriteError
from pinstorm.lock import only_run
from pinstorm.units import parse_size

# The order in which they run, with the module that runs them.
_MODULES: tuple[tuple[ModuleType, tuple[Benchmark, ...]], ...] = (
    (direct_io, direct_io.BENCHMARKS),
    (registration, tuple(one for one in registration.BENCHMARKS if one.place == "host")),
    (telemetry_cost, telemetry_cost.BENCHMARKS),
    (bundles, bundles.BENCHMARKS),
    (lab, tuple(one for one in registration.BENCHMARKS if one.place == "lab")),
)
BENCHMARKS = tuple(benchmark for _, benchmarks in _MODULES for benchmark in benchmarks)
_TITLES = {
    "peer": "pinstorm beside its peers (a ratio above 1 is faster)",
    "telemetry": "what telemetry costs (a peer is the same without it)",
    "bundles": "a million cases (a peer is polars alone)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        chosen = choose(given.only, given.host)
        if given.list:
            print(listing(chosen))
            return ExitCode.OK
        options = _options(given)
        if given.profile:
            chosen = [_profiled(given.profile)]
        if lacking := needs.unmet(chosen):
            raise UsageError("\nbench: ".join(lacking))
        with _alone(chosen):
            if given.profile:
                return _profile(chosen[0], options)
            return _bench(chosen, options, given.json)
    except PinstormError as error:
        print(f"bench: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/bench", description="pinstorm beside fio and small C programs, in alternation."
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only these (globs too)"
    )
    parser.add_argument("--host", action="store_true", help="none that need the lab")
    parser.add_argument("--list", action="store_true", help="print the benchmarks, and run none")
    parser.add_argument(
        "--pairs", type=int, default=7, metavar="N", help="pairs of each (default 7)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="of each run (default 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--profile", metavar="NAME", help="no pairs: a profile of ours in that benchmark"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="where the file for direct IO is made (default: the current directory)",
    )
    parser.add_argument(
        "--file-size", default="1GiB", metavar="SIZE", help="of that file (default 1GiB)"
    )
    parser.add_argument(
        "--kernel", default="backports", metavar="NAME", help="the lab's (default backports)"
    )
    return parser


def choose(only: Sequence[str], host: bool) -> list[Benchmark]:
    """Those that are named, or all; UsageError with the nearest name for one that is none."""
    for pattern in only:
        if not fnmatch.filter((one.name for one in BENCHMARKS), pattern):
            raise UsageError(_unknown(pattern))
    chosen = [
        one
        for one in BENCHMARKS
        if (not only or any(fnmatch.fnmatchcase(one.name, pattern) for pattern in only))
        and not (host and one.place == "lab")
    ]
    if not chosen:
        raise UsageError(f"{', '.join(only)} needs the lab, which --host leaves out: drop --host")
    return chosen


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [one.name for one in BENCHMARKS], 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else "scripts/bench --list names them"
    return f"there is no benchmark {name!r}: {hint}"


def listing(chosen: Sequence[Benchmark]) -> str:
    """Each with where it runs, what it compares and what limits that."""
    lines = []
    for one in chosen:
        place = "needs the lab" if one.place == "lab" else "on this host"
        lines.append(f"{one.name} ({place}, {one.unit})")
        for text in (one.summary, f"limited by {one.limit}"):
            lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="      ")
    return "\n".join(lines)


def _options(given: argparse.Namespace) -> Options:
    if given.pairs < 1:
        raise UsageError(f"--pairs {given.pairs} is none: give 1 or more, 7 for figures to publish")
    if not 0 < given.seconds < float("inf"):
        raise UsageError(f"--seconds {given.seconds} is no duration: give more than 0, such as 5")
    if not given.scratch.is_dir():
        raise UsageError(f"--scratch {given.scratch} is no directory: name one that is there")
    if given.json is not None and not given.json.absolute().parent.is_dir():
        raise UsageError(f"--json {given.json}: its directory is not there: make it first")
    file_bytes = parse_size(given.file_size)
    if file_bytes < direct_io.LEAST_FILE_BYTES or file_bytes % direct_io.MIB:
        raise UsageError(
            f"--file-size {given.file_size} is not whole MiB from 16MiB on: give such as 1GiB"
        )
    return Options(given.pairs, given.seconds, given.scratch, file_bytes, given.kernel)


def _bench(chosen: Sequence[Benchmark], options: Options, json_path: Path | None) -> int:
    report = Report()
    report.note(conditions())
    code = ExitCode.OK
    try:
        for module, benchmarks in _MODULES:
            if wanted := [one for one in benchmarks if one in chosen]:
                module.run(wanted, options, report)
    except KeyboardInterrupt:
        report.note("interrupted: what follows is what was finished")
        code = ExitCode.INTERRUPTED
    finally:
        _publish(chosen, report, json_path)
    if report.failures and code == ExitCode.OK:
        code = ExitCode.FAILED
    return code


def _publish(chosen: Sequence[Benchmark], report: Report, json_path: Path | None) -> None:
    results = report.results(chosen)
    for kind, title in _TITLES.items():
        if rows := [result for result in results if result.benchmark.kind == kind]:
            print(render(title, rows), end="\n\n")
    for name, why in report.failures.items():
        print(f"{name} failed: {why}")
    if json_path is None:
        return
    try:
        text = json.dumps([result.to_json() for result in results], indent=1)
        json_path.write_text(text + "\n")
    except OSError as error:
        raise WriteError(
            f"{json_path} cannot be written ({os.strerror(error.errno or 0).lower()}): "
            "give --json another file"
        ) from error


def _profiled(name: str) -> Benchmark:
    (benchmark, *others) = choose([name], host=False)
    if others:
        raise UsageError(f"--profile {name} names several benchmarks: give one name")
    return benchmark


def _profile(benchmark: Benchmark, options: Options) -> int:
    (module,) = (module for module, benchmarks in _MODULES if benchmark in benchmarks)
    report = Report()
    try:
        print(module.profile(benchmark, options, report))
    except BenchFailed as error:
        report.failed(benchmark, str(error))
    return ExitCode.FAILED if report.failures else ExitCode.OK


def _alone(chosen: Sequence[Benchmark]) -> AbstractContextManager[None]:
    """What runs on this host pins here, and would be disturbed by who does: as a run it is alone.

    A guest has counters of its own, and who reads bundles pins nothing.
    """
    pins_here = any(one.place == "host" and one.kind != "bundles" for one in chosen)
    return only_run() if pins_here else nullcontext()


def conditions() -> str:
    """What the figures depend on besides the programs: kernel, CPUs, and who else is at work."""
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    busy = " (busy: figures will be rough)" if load > 0.25 * cpus else ""
    return f"kernel {platform.release()}, {cpus} CPUs, load average {load:.2f}{busy}"
