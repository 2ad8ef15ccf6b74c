"""What was held against what VmPin says: on one line where the pinner accounts by the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import polars

from pinstorm.frames import collect
from pinstorm.report.html import plot_places
from pinstorm.report.html.plot_form import (
    Choice,
    Json,
    Plot,
    Table,
    figure,
    marks,
    number_words,
    shown,
    size_axis,
    size_words,
    table,
)

_MOST_GROUPS = 600
# Marks of one place are set side by side, so many octaves apart;
_APART = 0.22
# And rows of what is 0 below each other: a part of the axis, at least so many octaves.
_ROW = 0.06
_LEAST_ROW = 0.6


@dataclass(frozen=True, slots=True)
class _Group:
    """Cases of one workload that held as much, and of which VmPin said the same."""

    kernel: str
    workload: str
    held_bytes: int
    vmpin_bytes: int
    vmlck_bytes: int | None
    exact: bool
    cases: int
    memory: str | None
    others: bool

    @property
    def on_line(self) -> bool:
        return self.held_bytes == self.vmpin_bytes

    @property
    def memories(self) -> str:
        """One of them."""
        return f"{self.memory or '-'}{' and others' if self.others else ''}"

    def words(self) -> str:
        """Where the point lies, and what that means."""
        if self.on_line:
            return "same"
        if not self.vmpin_bytes:
            locked = self.vmlck_bytes
            return f"no VmPin, VmLck {size_words(locked)}" if locked else "not in VmPin"
        if self.vmpin_bytes > self.held_bytes:
            return "VmPin more than pins"
        return "VmPin less than pins"


def plots(cases: polars.LazyFrame, manifests: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    """Nothing where nothing was held."""
    groups, left_out = _groups(cases, manifests)
    if not groups:
        return []
    by_kernel = groupby(groups, key=lambda group: group.kernel)
    choices = [_choice(kernel, list(some)) for kernel, some in by_kernel]
    return [
        Plot(
            "held-vmpin",
            "Held against VmPin",
            "Bytes held (held pages times the page size, from the machine's counters) against the "
            "growth of the process's VmPin. On the dashed line the pinner accounts for each page "
            "(RDMA). Look below it: VmPin 0 is a pinner that accounts elsewhere (vfio: VmLck) or "
            "nowhere (AF_XDP, V4L2, io_uring with CAP_IPC_LOCK), and "
            "VmPin of one process is less than what two hold; above it, one pin holds a large "
            "folio (io_uring: held 1 for 2 MiB). Open marks are bounds, not exact; on the line "
            "marks of one place are set side by side, at 0 each workload has its own row.",
            figure(choices, {}),
            _table(groups, left_out),
        )
    ]


def _groups(
    cases: polars.LazyFrame, manifests: Mapping[str, Mapping[str, Any]]
) -> tuple[list[_Group], int]:
    sizes = plot_places.page_bytes(manifests)
    pages = polars.LazyFrame(
        {"bundle": list(sizes), "page_bytes": list(sizes.values())},
        schema={"bundle": polars.String, "page_bytes": polars.Int64},
    )
    # What the case held of its own, where others pinned beside it.
    held = polars.coalesce("attributed_held", "held")
    found = collect(
        cases.join(pages, on="bundle")
        .with_columns((held * polars.col("page_bytes")).alias("held_bytes"))
        .filter(
            ((polars.col("held_bytes") > 0) | (polars.col("vmpin_held_bytes") > 0))
            & polars.col("vmpin_held_bytes").is_not_null()
            & (polars.col("held_bytes") >= 0)
            & polars.col("workload").is_not_null()
        )
        .group_by(
            polars.col("kernel").fill_null("unknown kernel"),
            "workload",
            "held_bytes",
            polars.col("vmpin_held_bytes").alias("vmpin_bytes"),
            (polars.col("pins_exact").fill_null(False)).alias("exact"),
        )
        .agg(
            polars.col("vmlck_held_bytes").max().alias("vmlck_bytes"),
            polars.len().alias("cases"),
            polars.col("memory").min(),
            (polars.col("memory").min() != polars.col("memory").max()).alias("others"),
        )
        .sort(
            polars.col("held_bytes") == polars.col("vmpin_bytes"),
            polars.col("cases"),
            "kernel",
            "workload",
            "held_bytes",
            "vmpin_bytes",
            "exact",
            descending=[False, True, *[False] * 5],
        )
    )
    left_out = max(0, found.height - _MOST_GROUPS)
    groups = [_Group(**row) for row in found.head(_MOST_GROUPS).iter_rows(named=True)]
    groups.sort(key=lambda group: (plot_places.order(group.kernel), group.workload))
    return groups, left_out


def _choice(kernel: str, groups: Sequence[_Group]) -> Choice:
    amounts = [b for group in groups for b in (group.held_bytes, group.vmpin_bytes) if b]
    # A logarithmic axis has no 0: it gets a place of its own, below the least.
    zero = min(amounts) / 8
    lane = 2 ** max(_LEAST_ROW, _ROW * math.log2(max(amounts) / zero))
    x_axis = _axis([group.held_bytes for group in groups], zero, "held, times the page size")
    y_axis = _axis([group.vmpin_bytes for group in groups], zero, "growth of VmPin")
    if not all(group.vmpin_bytes for group in groups):
        lanes = len({group.workload for group in groups})
        y_axis["range"][0] = round(math.log10(zero / lane**lanes), 3)
    low, high = min(amounts) / 2, max(amounts) * 2
    data: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "VmPin = held",
            "x": [low, high],
            "y": [low, high],
            "line": {"color": "#888888", "dash": "dash", "width": 1},
            "hoverinfo": "skip",
        }
    ]
    beside = _side_by_side(groups)
    for number, (workload, some) in enumerate(groupby(groups, key=lambda group: group.workload)):
        mine = list(some)
        look = marks(number, 11)
        symbol = look["symbol"]
        row = zero / lane**number
        look["symbol"] = [symbol if group.exact else f"{symbol}-open" for group in mine]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": workload,
                # Along the line, so that none is moved off it.
                "x": [round((group.held_bytes or zero) * beside[group]) for group in mine],
                "y": [
                    round(group.vmpin_bytes * beside[group]) if group.vmpin_bytes else shown(row)
                    for group in mine
                ],
                "customdata": [_hover(group) for group in mine],
                "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
                "marker": look,
            }
        )
    return Choice(
        kernel,
        data,
        {
            "xaxis": x_axis,
            "yaxis": y_axis,
            # Above the rows of what is 0.
            "shapes": [
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": zero * 2, "y1": zero * 2}
                | {"line": {"color": "#888888", "width": 1, "dash": "dot"}}
            ],
        },
    )


def _axis(amounts: Sequence[int], zero: float, title: str) -> Json:
    """With a tick for 0 where something is there."""
    positive = [amount for amount in amounts if amount]
    if all(amounts):
        return size_axis(positive, title)
    axis = size_axis([int(zero), *positive], title)
    ticks = [tick for tick in axis["tickvals"] if tick >= zero * 4]
    words = [size_words(int(tick)) for tick in ticks]
    return axis | {"tickvals": [zero, *ticks], "ticktext": ["0", *words]}


def _side_by_side(groups: Sequence[_Group]) -> dict[_Group, float]:
    """By what each is moved: marks of one place would hide each other. At 0 none is."""
    places: dict[tuple[int, int], list[_Group]] = {}
    beside = {group: 1.0 for group in groups}
    for group in groups:
        if group.vmpin_bytes:
            places.setdefault((group.held_bytes, group.vmpin_bytes), []).append(group)
    return beside | {
        group: 2 ** (_APART * (number - (len(some) - 1) / 2))
        for some in places.values()
        for number, group in enumerate(some)
    }


def _hover(group: _Group) -> str:
    return (
        f"held {size_words(group.held_bytes)}, VmPin {size_words(group.vmpin_bytes)}, "
        f"{group.cases} cases ({group.memories})"
    )


def _table(groups: Sequence[_Group], left_out: int) -> Table:
    """What is off the line first."""
    order = sorted(groups, key=lambda g: (g.on_line, -max(g.held_bytes, g.vmpin_bytes), -g.cases))
    rows = [
        (
            group.workload,
            group.memories,
            group.kernel,
            size_words(group.held_bytes),
            size_words(group.vmpin_bytes),
            size_words(group.vmlck_bytes),
            group.words(),
            "exact" if group.exact else "bound",
            number_words(group.cases),
        )
        for group in order
    ]
    head = ("workload", "memory", "kernel", "held", "VmPin", "VmLck", "is", "held is", "cases")
    return table(head, rows, f"{left_out} more groups are not shown." if left_out else "")
