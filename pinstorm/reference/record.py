"""docs/reference/record.md."""

from pinstorm import schema
from pinstorm.reference import page

# Of the table alone: schema.row() computes them.
_COMPUTED = ("acquire_median", "release_median")


def text() -> str:
    """Where each column of cases.parquet stands in a record of journal.jsonl."""
    lines = page.head(
        "The record of a case",
        "pinstorm/schema.py",
        "One JSON object for each case: a line of `journal.jsonl`, and what `pinstorm report "
        "--json` prints. The path leads through its nesting. `cases.parquet` has the same as "
        "columns, whose types are those of [a bundle's data](../data.md). A figure that could not "
        "be had is null, never 0.",
        f"This is schema {schema.SCHEMA_VERSION}. Fields are added freely; none changes its "
        "meaning without a new number.",
    )
    rows = [
        (
            "-" if column.path in _COMPUTED else f"`{column.path or column.name}`",
            f"`{column.name}`",
            column.unit or "-",
            column.scope,
            column.meaning,
        )
        for column in schema.COLUMNS
    ]
    lines += page.table(("in the record", "column", "unit", "of the", "meaning"), rows)
    return page.whole(lines)
