"""The loads: the figures of their jobs, and what was seen over time."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pinstorm.report import load_table
from pinstorm.report.html import aggregates
from pinstorm.report.html.aggregates import Side
from pinstorm.report.html.case_details import as_list, as_object
from pinstorm.report.html.words import SIGNS


@dataclass(frozen=True, slots=True)
class LoadPart:
    id: str
    title: str
    verdict: str
    sign: str
    reason: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    told: tuple[str, ...]


def loads(cases: pl.LazyFrame, sides: Sequence[Side]) -> list[LoadPart]:
    label = {side.key: side for side in sides}
    parts = []
    for number, row in enumerate(aggregates.loads(cases), 1):
        jobs, load = as_list(row["jobs"]), as_object(row["load"])
        side = label[row["side"]]
        record = {"case": row["case"], "jobs": jobs, "load": load}
        if jobs and load and not load_table.is_whole(record):
            jobs, load = [], {}
        head = load_table.header(emulated=side.emulated) if jobs else ()
        title = f"{row['case']} on {side.label}" if len(sides) > 1 else str(row["case"])
        told = load_table.sentences(record) if jobs and load else []
        parts.append(
            LoadPart(
                f"load-{number}",
                title,
                row["verdict"],
                SIGNS.get(row["verdict"], "?"),
                row["reason"] or "",
                tuple(head),
                tuple(tuple(cells) for job in jobs for cells in load_table.job_rows(job)),
                tuple(told),
            )
        )
    return parts
