"""docs/data.md: what is in a bundle, how to read it, and every column of its tables."""

from pinstorm import intervals, samples, schema
from pinstorm.reference import page

_BUNDLE = """\
A run writes a directory, the bundle:

- `manifest.json`: what ran where. The suite's text and sha256, seed, tool version and commit,
  kernel (release, command line, configuration of interest), CPU, memory, NUMA nodes, sysctls,
  limits, RDMA devices, package versions, the counters' self-test, in the lab every boot with its
  options and set-up; pairs of CLOCK_MONOTONIC and real time.
- `journal.jsonl`: one JSON object a line, fsynced. `{"start": CASE, "seq": N, …}` before a case,
  its record after it, `{"interrupted": CASE, "seq": N}` when Ctrl-C came in between. A torn last
  line is tolerated. [The record's fields](reference/record.md) are those below, and a few more.
- `cases.parquet`: the records as a table, with the columns below.
- `samples.parquet`, `histograms.parquet`: of loads, figures over time and latencies; while the
  run lives `samples/` and `intervals.jsonl`.
- `report.html`: the page for people, from the end of the run on; `pinstorm report` makes it anew.
- `console.log`: in the lab, what the guests' kernels said.

Times are nanoseconds of CLOCK_MONOTONIC, sizes bytes, pins pages of PAGE_SIZE. A figure that could
not be had is null, never 0. `accel` is `tcg` where a time was measured under emulation: such times
are compared with nothing."""

# Each is run by the tests, below a directory with bundles in ``runs``, and leaves ``result``.
LATENCY = """\
import pinstorm
from polars import col

runs = pinstorm.scan("runs")
times = col("acquire_ns").list.explode()
result = (
    runs.cases.filter(verdict="pass", outcome="ok")
    .group_by("accel", "kernel", "workload", "memory", "size_bytes")
    .agg(
        times.count().alias("calls"),
        times.quantile(0.5, "lower").alias("p50_ns"),
        times.quantile(0.99, "lower").alias("p99_ns"),
    )
    .sort("p99_ns", descending=True)
    .collect(engine="streaming")
)
"""

PINNED = """\
import polars
import pinstorm
from polars import col

runs = pinstorm.scan("runs")
begun_ns = col("phases").str.json_path_match("$.load[0]").cast(polars.Int64)
loads = runs.cases.filter(workload="load").select("bundle", "seq", "held", begun_ns=begun_ns)
result = (
    runs.samples.filter(source="vmstat", key="outstanding_pages")
    .join(loads, on=["bundle", "seq"])
    .select("bundle", "case", "phase", "held", pages="value",
            seconds=(col("t_ns") - col("begun_ns")) / 1e9)
    .collect()
)
"""

PERCENTILES = """\
import pinstorm
from polars import col

runs = pinstorm.scan("runs")
one = ["bundle", "case", "job", "kind"]
totals = runs.histograms.filter(col("t_end_ns").is_null(), phase="hold").sort("low_ns")
reached = totals.with_columns(
    below=col("count").cum_sum().over(one), calls=col("count").sum().over(one)
)
result = (
    reached.group_by(*one)
    .agg(
        col("calls").first(),
        *[
            col("high_ns").filter(col("below") >= share * col("calls")).first().alias(name)
            for name, share in (("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999))
        ],
    )
    .sort(one)
    .collect()
)
"""

_READING = f"""\
## Reading it

`pinstorm.load(path)` gives a bundle's tables as [polars](https://docs.pola.rs) frames, `.cases`,
`.samples` and `.histograms`, and `.manifests` by bundle. The path may be a bundle, the parent
that a lab run wrote, a directory with any of these below it, or a list of such. The first column,
`bundle`, is the last part of its path (of a lab run the kernel), with as much of what is before
it as tells two of them apart. `pinstorm.scan(path)` gives lazy frames, of which polars reads no
more than a query needs: a thousand bundles with a million cases are grouped in seconds and in
less than 1 GiB. `load` of so many wants names:
`pinstorm.load("runs", columns=["case", "acquire_ns"])`.

What can be read is read, and `.notes` has a sentence for the rest. Columns that an older pinstorm
did not know are null, one whose type has changed is cast. Of a run that has not ended, the cases
come from its journal (one that was begun is `lost`, reason `unfinished`), and the samples and
histograms from their spools. Half a bundle has what it has: without a manifest, `.manifests` has
`{{}}` for it. A damaged cases.parquet is replaced by its journal. A bundle of a newer schema is
left out. When there is nothing at all to be read, `UsageError` says why.

The acquire latency of everything that succeeded, by size, over all rounds. Emulated times
(`accel` is `tcg`) stay apart from real ones:

```python
{LATENCY}```

How many pages were pinned on the whole machine while a load ran, beside what the load held.
Samples and cases are joined by `bundle` and `seq`, and `phases` has the times:

```python
{PINNED}```

Percentiles of a load's calls, from its histograms: the upper end of the first bucket that so many
calls do not exceed. Rows without `t_end_ns` are the totals of a phase; adding the intervals up
gives the same, so take the one or the others:

```python
{PERCENTILES}```

Other programs get the same from `pinstorm report BUNDLE… --format`:

- `csv`: RFC 4180, a line a case, `bundle` and the columns of cases.parquet. Lists are JSON, a
  figure that could not be had is empty.
- `json`: one object. `schema`; `bundles`, each with `bundle`, `path` and `manifest`; `notes`;
  `cases`, each with `bundle` and the columns where [a record](reference/record.md) has them, all
  of them, null where there is nothing. A case is a line.
- `md`: for a pull request. The verdict, what needs attention and why, and a table; of several
  bundles side by side. It always fits a comment.
"""

_SERIES = """\
## Time series: samples.parquet

While a load runs, the sampler, a process of its own, reads the machine's counters and those of the
loaded processes, each source at its own rate, and never forces the kernel to fold its counters. One
row is one figure of one reading. What could not be had has no row.
"""

_SOURCES = (
    (
        "vmstat",
        "as the load says (`sample_hz`)",
        (
            "pins acquired and released since boot, their difference `outstanding_pages`, pages "
            "migrated, compaction, free CMA"
        ),
    ),
    (
        "vm_events",
        "2 Hz",
        "compaction, migration, huge pages, reclaim, CMA allocations: /proc/vmstat's own names",
    ),
    (
        "pressure",
        "5 Hz",
        "ns that tasks stood still for CPU, memory, IO (PSI), `some` or all of them (`full`)",
    ),
    ("zoneinfo", "5 Hz", "free pages of each zone"),
    ("meminfo", "5 Hz", "free, available, locked memory, free CMA, huge pages"),
    (
        "process",
        "5 Hz",
        (
            "VmPin, VmLck, VmRSS, CPU time, faults, threads, bytes from and to storage; of each "
            "loaded process"
        ),
    ),
    ("own", "1 Hz", "the same of pinstorm's own: runner and sampler"),
    ("process_tables", "1 Hz", "mappings and open files of each loaded process"),
    ("rdma", "5 Hz", "the device's counters, by their place below /sys/class/infiniband/DEVICE"),
    ("rdma_objects", "5 Hz", "memory regions, queue pairs, … of the device"),
    (
        "rdma_odp",
        "1 Hz",
        (
            "page faults and invalidations of its regions on demand, where the driver counts them"
            " (mlx5)"
        ),
    ),
)

_SAMPLING = """\
A source whose reading costs more than 1 % of a core (vmstat: 8 %) is read half as often, until it
does not; so are all when the sampler takes more than 5 % (or 1 % for each 100 Hz asked). A tick
that came too late is counted as missed and not made up for. The record's `load.sampler` has, for
each source, the rate asked and had, readings, ns of CPU for each, ticks missed; and the sampler's
own cost.

While the run lives, and after it was killed, the readings are in the bundle's directory
`samples/`: plain lines, each segment readable alone, flushed twice a second. They are bounded, 1
GiB by default: each time that half of what is left is used, all rates are halved. At the end of
the run they become samples.parquet. `exact` is false for figures that the kernel folds per CPU
only now and then: the difference of two readings of a pin counter can be off by as much as
without a refresh ([measuring.md](measuring.md))."""

_LATENCIES = """\
## Latencies: histograms.parquet

The histograms of a load, for each interval and in total, added up exactly over the processes of a
job. Buckets are at most 1/128 of their values wide. `intervals.jsonl`, from which the table is
made, has what each process told of each interval; of a long load neighbouring intervals become
one."""


def text() -> str:
    """The document: prose around the tables of columns, which the schema's modules give."""
    lead = page.head("A bundle's data", "pinstorm/reference/data.py")
    parts = (
        "\n".join(lead),
        _BUNDLE,
        _READING,
        _SERIES,
        "\n".join(page.table(("source", "read at most", "figures"), _SOURCES)),
        _SAMPLING,
        schema.markdown(samples.COLUMNS),
        _LATENCIES,
        schema.markdown(intervals.COLUMNS),
        "## Columns of cases.parquet",
        schema.markdown(),
    )
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
