"""The timed cycles of the cases, pooled: one sorted array for each case and place.

Rounds and bundles of one kernel are one pool. Only cases that ended in ``ok`` are in it: a refused
call's time is another thing. What stays in memory is bounded, however many rows there are.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import polars

from pinstorm.frames import collect
from pinstorm.report.html import plot_places

# Pools beyond these are left out, those with the fewest cycles first.
MOST_POOLS = 3000
# All cycles of a pool are counted; of more than so many only a sample is sorted, for percentiles.
MOST_SORTED = 2500
# A sample is of about so many rows at least: with few of them it could be of none.
_LEAST_ROUNDS = 100

_KEYS = ("place", "case", "workload", "memory", "size_bytes")


@dataclass(frozen=True, slots=True)
class Pool:
    """``cycles``: how many were timed, in how many ``rounds`` (rows). Times in ns, sorted.

    ``lowest_ns``, ``highest_ns`` of acquire and ``release_highest_ns`` are of all of them.
    """

    place: str
    case: str
    workload: str
    memory: str
    variant: str
    size_bytes: int
    folio_order: int | None
    cycles: int
    rounds: int
    lowest_ns: int
    highest_ns: int
    release_highest_ns: int | None
    acquire_ns: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]"
    release_ns: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]"

    @property
    def median_ns(self) -> int:
        """The lower one, as in the table of a run."""
        return percentile(self.acquire_ns, 0.5)

    @property
    def spread_ns(self) -> tuple[int, int]:
        """p10 and p90; of fewer than ten cycles the lowest and the highest."""
        if self.has_deciles:
            return percentile(self.acquire_ns, 0.1), percentile(self.acquire_ns, 0.9)
        return self.lowest_ns, self.highest_ns

    @property
    def has_deciles(self) -> bool:
        return self.cycles >= 10


def percentile(values: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]", share: float) -> int:
    """One of the sorted values: the highest that at most that share of the others is below."""
    return int(values[int(share * (len(values) - 1))])


def pools(cases: polars.LazyFrame) -> tuple[list[Pool], int]:
    """By place, workload, memory and size; and how many pools were left out."""
    timed = cases.filter(
        (polars.col("outcome") == "ok")
        & (polars.col("acquire_ns").list.len() > 0)
        & polars.col("size_bytes").is_not_null()
        & polars.col("workload").is_not_null()
        & polars.col("memory").is_not_null()
    ).with_columns(plot_places.expression())
    lengths = polars.col("acquire_ns").list.len().cast(polars.Int64)
    found = collect(
        timed.group_by(_KEYS)
        .agg(
            lengths.sum().alias("cycles"),
            polars.len().alias("rounds"),
            polars.col("acquire_ns").list.min().min().alias("lowest_ns"),
            polars.col("acquire_ns").list.max().max().alias("highest_ns"),
            polars.col("release_ns").list.max().max().alias("release_highest_ns"),
            polars.col("folio_orders").max(),
        )
        .sort("cycles", "case", "place", descending=[True, False, False])
    )
    left_out = max(0, found.height - MOST_POOLS)
    found = found.head(MOST_POOLS).with_row_index("pool")
    rows = _sampled(timed, found)
    arrays = [_sorted(rows, name, found.height) for name in ("acquire_ns", "release_ns")]
    whole = [
        Pool(
            **{name: row[name] for name in _KEYS},
            variant=plot_places.variant(row["case"]),
            folio_order=largest_folio(row["folio_orders"]),
            cycles=row["cycles"],
            rounds=row["rounds"],
            lowest_ns=row["lowest_ns"],
            highest_ns=row["highest_ns"],
            release_highest_ns=row["release_highest_ns"],
            acquire_ns=arrays[0](row["pool"]),
            release_ns=arrays[1](row["pool"]),
        )
        for row in found.iter_rows(named=True)
        if len(arrays[0](row["pool"]))
    ]
    whole.sort(key=lambda one: (plot_places.order(one.place), one.workload, one.memory, one.case))
    return whole, left_out


def largest_folio(orders: str | None) -> int | None:
    """The highest order of a case's ``folio_orders``; None where there is none."""
    found = json.loads(orders) if orders else None
    known = found if isinstance(found, dict) else {}
    return max((int(order) for order in known if order.isdigit()), default=None)


def _sampled(timed: polars.LazyFrame, found: polars.DataFrame) -> polars.DataFrame:
    """The number of its pool, and the times, of each row that percentiles are of.

    Of a large pool every so many-th row is taken, by a hash of where it is: rows that follow each
    other in a bundle are no fair sample.
    """
    some = found.lazy().select(
        _hash(_KEYS).alias("key"),
        polars.col("pool").cast(polars.UInt32),
        polars.min_horizontal(
            polars.col("cycles") // MOST_SORTED + 1, polars.col("rounds") // _LEAST_ROUNDS + 1
        )
        .cast(polars.UInt64)
        .alias("every"),
    )
    return collect(
        timed.select(
            _hash(_KEYS).alias("key"),
            _hash(("bundle", "seq", "round")).alias("place"),
            "acquire_ns",
            "release_ns",
        )
        .join(some, on="key")
        .filter(polars.col("place") % polars.col("every") == 0)
        .select("pool", "acquire_ns", "release_ns")
    )


def _hash(names: Iterable[str]) -> polars.Expr:
    """Of several columns, cheaper to join on than the words themselves."""
    return polars.struct(names).hash(seed=0)


def _sorted(
    rows: polars.DataFrame, name: str, pools: int
) -> Callable[[int], "numpy.ndarray[Any, numpy.dtype[numpy.int64]]"]:
    """Number of a pool to its times."""
    times = (
        rows.lazy()
        .select("pool", polars.col(name).alias("ns"))
        .explode("ns")
        .drop_nulls()
        .sort("pool", "ns")
        .collect()
    )
    values = times["ns"].to_numpy()
    begins = numpy.searchsorted(times["pool"].to_numpy(), numpy.arange(pools + 1))
    return lambda pool: values[begins[pool] : begins[pool + 1]]
