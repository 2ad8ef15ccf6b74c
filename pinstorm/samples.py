"""samples.parquet: the time series of a run, one row for each figure of each reading.

While a run lives, and after it was killed, its readings are in the spool (pinstorm.spool), a
directory of the bundle; ``read`` gives them. At the end of the run pinstorm.series_tables makes the
table of them and removes the spool: on the host, also for a guest's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pinstorm import spool
from pinstorm.schema import Column
from pinstorm.spool import INEXACT, NONE

SAMPLES = "samples.parquet"
_SPOOL = "samples"

COLUMNS = (
    Column("run", "String", "", "run", "name of the run"),
    Column("case", "String", "", "case", "the case that was running; null between cases"),
    Column("seq", "Int64", "", "case", "its position in the run, as in cases.parquet"),
    Column("phase", "String", "", "case", "what it was doing"),
    Column("t_ns", "Int64", "ns", "machine", "CLOCK_MONOTONIC just after the reading"),
    Column("source", "String", "", "run", "what was read; see below"),
    Column("pid", "Int64", "", "process", "whose figure it is; null of the whole machine's"),
    Column("key", "String", "", "run", "the figure's name"),
    Column("value", "Int64", "", "machine", "the figure; its name says the unit, or it is a count"),
    Column("exact", "Boolean", "", "machine", "false: folded per CPU only now and then"),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a source. ``values``: None what could not be had. ``inexact``: their names."""

    t_ns: int
    source: str
    pid: int | None
    values: Mapping[str, int | None]
    inexact: frozenset[str]
    seq: int | None
    case: str | None
    phase: str | None


def spool_of(bundle_path: Path) -> Path:
    """Where the sampler of a run in this bundle writes."""
    return bundle_path / _SPOOL


def read(bundle_path: Path) -> Iterator[Reading]:
    """What the spool has, in the order in which it was written; nothing once it is finished.

    UsageError for a damaged line; the torn last one of a segment is left out.
    """
    names: dict[tuple[str, ...], tuple[tuple[str, ...], frozenset[str]]] = {}
    for path in spool.segments(spool_of(bundle_path)):
        for head, line in spool.lines(path):
            if head.keys not in names:
                keys = tuple(key.removesuffix(INEXACT) for key in head.keys)
                inexact = frozenset(key[:-1] for key in head.keys if key.endswith(INEXACT))
                names[head.keys] = keys, inexact
            keys, inexact = names[head.keys]
            t_ns, who, *words = line.decode().split(" ")
            pid = who.partition("/")[2]
            values = [None if word == NONE else int(word) for word in words]
            yield Reading(
                int(t_ns),
                head.source,
                int(pid) if pid else None,
                dict(zip(keys, values, strict=True)),
                inexact,
                head.mark.seq,
                head.mark.case,
                head.mark.phase,
            )
