"""A thousand bundles with a million cases: read, grouped and written, beside polars alone.

The peer is the same query on the same Parquet files, without names of bundles, columns that older
ones lack, journals that may know more, and damage that is looked for.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benches.many_bundles import measured, multiplied
from benches.pairs import BenchFailed, Benchmark, Sample, Side
from benches.session import Options, Report, run_pairs

BUNDLES = 1000
ROWS = 1000
# A real one, trimmed, in the checkout.
_SOURCE = Path(__file__).parents[2] / "tests/unit/data/bundle-schema-1"

BENCHMARKS = (
    Benchmark(
        "bundles-group-1m-seconds",
        "s",
        False,
        "1,000,000 cases of 1,000 bundles grouped by bundle and verdict, beside polars alone",
        "the start of Python, and 3,000 small files to open",
        kind="bundles",
    ),
    Benchmark(
        "bundles-group-1m-memory",
        "MiB",
        False,
        "the same: the most memory that the process had",
        "Python, polars and the manifests",
        kind="bundles",
    ),
    Benchmark(
        "bundles-csv-1m-seconds",
        "s",
        False,
        "report --format csv of them, beside polars' own CSV of the columns that are no lists",
        "ours reads everything once before it writes, to meet damage first",
        kind="bundles",
    ),
    Benchmark(
        "bundles-csv-1m-memory",
        "MiB",
        False,
        "the same: the most memory that the process had",
        "Python, polars and the manifests",
        kind="bundles",
    ),
)

_GROUPED = 'agg(polars.len(), polars.col("acquire_median_ns").median())'
_BARE = """
import glob, polars
from polars import selectors
files = sorted(glob.glob(sys.argv[1] + "/*/cases.parquet"))
cases = polars.scan_parquet(files, include_file_paths="bundle")
"""
_PROGRAMS: dict[tuple[str, Side], str] = {
    ("group", "ours"): f"""
import polars
from pinstorm import frames
cases = frames.scan(sys.argv[1]).cases
shown = frames.collect(cases.group_by("bundle", "verdict").{_GROUPED})
assert shown["len"].sum() == int(sys.argv[2])
""",
    ("group", "peer"): _BARE
    + f"""
shown = cases.group_by("bundle", "verdict").{_GROUPED}.collect(engine="streaming")
assert shown["len"].sum() == int(sys.argv[2])
""",
    ("csv", "ours"): """
from pathlib import Path
from pinstorm.report import emitters
emitters.emit(Path(sys.argv[1]), "csv", command=str, output=Path("/dev/null"))
""",
    ("csv", "peer"): _BARE
    + """
cases.select(~selectors.list()).sink_csv("/dev/null")
""",
}
_MEASURED = """
import sys, time
began = time.monotonic()
{program}
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[0]) * 1024, time.monotonic() - began)
"""


class Reading:
    """One benchmark on bundles that are there: see benches.session.Comparison."""

    def __init__(self, benchmark: Benchmark, directory: Path):
        self.benchmark = benchmark
        self._directory = directory

    def warm_up(self) -> None:
        """The files are in the page cache: they were just written."""

    def run(self, side: Side) -> Sample:
        _, task, _, figure = self.benchmark.name.split("-")
        program = _MEASURED.format(program=_PROGRAMS[task, side])
        try:
            peak_bytes, seconds = measured(program, str(self._directory), str(BUNDLES * ROWS))
        except AssertionError as error:
            raise BenchFailed(str(error).strip().splitlines()[-1]) from None
        return Sample(peak_bytes / (1 << 20) if figure == "memory" else seconds)


def run(chosen: Sequence[Benchmark], options: Options, report: Report) -> None:
    """All of them on the same bundles."""
    with _made(options.scratch, report) as directory:
        for benchmark in chosen:
            run_pairs(Reading(benchmark, directory), options.pairs, report)


def profile(benchmark: Benchmark, options: Options, report: Report) -> str:
    """What polars does of it, in its own words."""
    from pinstorm import frames

    with _made(options.scratch, report) as directory:
        grouped = frames.scan(directory).cases.group_by("bundle", "verdict").len()
        return grouped.explain(engine="streaming")


@contextmanager
def _made(scratch: Path, report: Report) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="pinstorm-bench-", dir=scratch))
    try:
        multiplied(_SOURCE, directory, BUNDLES, ROWS)
        report.note(f"made {BUNDLES} bundles of {ROWS} cases each below {directory}")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
