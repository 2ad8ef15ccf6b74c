"""The Parquet files of many bundles as one lazy table, with the columns of now.

A file whose columns have the types of now is scanned together with its neighbours, a thousand at
once; columns it has not are null, others are left out. A file of an older pinstorm, with a column
of another type, is cast.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinstorm.schema import COLUMNS, Column

if TYPE_CHECKING:
    import polars

Note = Callable[[str], None]
# A path is a file that can be scanned as it is.
Part = "tuple[str, Path | polars.LazyFrame]"


def polars_schema(columns: Iterable[Column] = COLUMNS) -> dict[Any, Any]:
    """Column name to polars type; Json is text."""
    import polars

    types: dict[str, Any] = {
        "String": polars.String,
        "Json": polars.String,
        "Int64": polars.Int64,
        "Float64": polars.Float64,
        "Boolean": polars.Boolean,
        "List(Int64)": polars.List(polars.Int64),
        "List(String)": polars.List(polars.String),
    }
    return {column.name: types[column.type] for column in columns}


class Damaged(Exception):
    """A file that is no Parquet file, or not a whole one; the message is polars' own."""


def errors() -> tuple[type[BaseException], ...]:
    """What polars raises for a damaged file, a panic of its included."""
    import polars

    return (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError)


def first_line(error: BaseException) -> str:
    """What is wrong, without polars' account of its plan."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def opened(
    path: Path, columns: Sequence[Column], note: Note, *, verify: bool = False
) -> "Path | polars.LazyFrame":
    """The file, or a frame that casts its columns; ``note`` is told which cannot be cast.

    Reads its footer, and with ``verify`` all of it. Raises Damaged.
    """
    import polars

    types = polars_schema(columns)
    try:
        has = polars.scan_parquet(path, glob=False).collect_schema()
        if verify:
            _read_through(path)
    except errors() as error:
        raise Damaged(first_line(error)) from None
    if all(has.get(name, kind) == kind for name, kind in types.items()):
        return path
    fitted = []
    for name, kind in types.items():
        expression = _cast(name, has[name], kind) if name in has else polars.lit(None, kind)
        if expression is None:
            note(f"{path}: column {name} is {has[name]} and not {kind}; it is left empty")
            expression = polars.lit(None, kind)
        fitted.append(expression.alias(name))
    return polars.scan_parquet(path, glob=False).select(fitted)


def together(
    parts: "Iterable[tuple[str, Path | polars.LazyFrame]]", columns: Sequence[Column]
) -> "polars.LazyFrame":
    """All of them in their order, with the bundle's name of each as the first column."""
    import polars

    types = polars_schema(columns)
    frames = [polars.LazyFrame(schema={"bundle": polars.String, **types})]
    for _, group in itertools.groupby(parts, key=lambda part: isinstance(part[1], Path)):
        frames += _joined(list(group), types)
    return polars.concat(frames[1:] or frames)


def _joined(
    parts: "Sequence[tuple[str, Path | polars.LazyFrame]]", types: Mapping[str, Any]
) -> Iterator["polars.LazyFrame"]:
    """Files as one frame; of frames each one."""
    import polars

    files = {str(path): name for name, path in parts if isinstance(path, Path)}
    if files:
        scanned = polars.scan_parquet(
            list(files),
            glob=False,
            hive_partitioning=False,  # of a directory that is called run=3
            schema=dict(types),
            missing_columns="insert",
            extra_columns="ignore",
            include_file_paths="bundle",
        )
        # Not replace_strict(): polars 2.1 holds the whole table to run it.
        places, names = polars.Enum(list(files)), polars.Series(list(files.values()))
        name = polars.col("bundle").map_batches(
            lambda of_row: names.gather(of_row.cast(places).to_physical()),
            return_dtype=polars.String,
            is_elementwise=True,
        )
        yield scanned.select(name.alias("bundle"), *types)
    for one, frame in parts:
        if not isinstance(frame, Path):
            yield frame.select(polars.lit(one).alias("bundle"), *types)


def last_values(files: Sequence[Path], column: str) -> dict[Path, Any]:
    """The last row's value of an Int64 column, file by file; those that cannot be read are left
    out, those without rows have None."""
    import polars

    if not files:
        return {}
    named = {str(path): path for path in files}
    scanned = polars.scan_parquet(
        list(named),
        glob=False,
        schema={column: polars.Int64},
        extra_columns="ignore",
        missing_columns="insert",
        include_file_paths="path",
    )
    try:
        last = scanned.group_by("path").agg(polars.col(column).last()).collect(engine="streaming")
    except errors():
        if len(files) == 1:
            return {}
        return {path: value for one in files for path, value in last_values([one], column).items()}
    values: dict[Path, Any] = dict.fromkeys(files)
    values.update((named[path], value) for path, value in last.iter_rows())
    return values


def _cast(name: str, has: Any, wanted: Any) -> "polars.Expr | None":
    """None when there is no way from one type to the other."""
    import polars

    column = polars.col(name)
    if wanted == polars.String and (has.is_nested() or has == polars.Struct):
        # {"x":VALUE}: polars writes JSON of structs alone
        text = polars.struct(column.alias("x")).struct.json_encode()
        return polars.when(column.is_not_null()).then(text.str.slice(5).str.head(-1))
    if isinstance(wanted, polars.List) and not isinstance(has, polars.List):
        return None
    expression = column.cast(wanted, strict=False)
    try:
        polars.DataFrame({name: polars.Series([None], dtype=has)}).select(expression)
    except polars.exceptions.PolarsError:
        return None
    return expression


def _read_through(path: Path) -> None:
    """Decode every page, in little memory."""
    import polars

    counts = polars.all().is_not_null().sum()
    polars.scan_parquet(path, glob=False).select(counts).collect(engine="streaming")
