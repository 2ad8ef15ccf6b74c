"""The table of cases as text for other programs: CSV, and JSON objects nested like a record.

polars makes the text and writes it while it reads, so that a million cases take little memory.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from pinstorm.frames import Frames
from pinstorm.report.output import Stream
from pinstorm.schema import COLUMNS, SCHEMA_VERSION, Column

if TYPE_CHECKING:
    import polars

# Of the table alone: schema.row() computes them.
COMPUTED = ("acquire_median", "release_median")
_CRLF = "\r\n"


def write_csv(cases: "polars.LazyFrame", stream: Stream) -> None:
    """RFC 4180: ``bundle`` and the columns of cases.parquet, lists as JSON.

    A figure that is not there is empty, an empty text ``""``. Raises PolarsError, OSError.
    """
    import polars

    lists = [column.name for column in COLUMNS if column.type.startswith("List")]
    table = cases.with_columns(
        polars.when(polars.col(name).is_not_null()).then(_encoded(polars.col(name))).alias(name)
        for name in lists
    )
    table.sink_csv(cast(IO[bytes], stream), line_terminator=_CRLF)


def write_json(found: "Frames[polars.LazyFrame]", stream: Stream) -> None:
    """One object: ``schema``; ``bundles``, each with ``bundle``, ``path`` and ``manifest``;
    ``notes``, what could not be read; ``cases``, each with ``bundle`` and the columns of
    cases.parquet where a record has them, null what is not there. A case is a line.

    Raises PolarsError, OSError.
    """
    import polars

    bundles = [
        {"bundle": name, "path": str(found.paths[name]), "manifest": manifest}
        for name, manifest in found.manifests.items()
    ]
    head = {"schema": SCHEMA_VERSION, "bundles": bundles, "notes": found.notes}
    stream.write(json.dumps(head)[:-1].encode() + b', "cases": [\n')
    text = polars.concat_str(polars.lit(","), object_text()).alias("object")
    table = found.cases.select(text)
    rest = cast(IO[bytes], _WithoutFirst(stream))
    table.sink_csv(rest, include_header=False, quote_style="never")
    stream.write(b"]}\n")


class _WithoutFirst(io.RawIOBase):
    """Leaves out the first byte of what it hands on: the comma before the first of a list."""

    def __init__(self, stream: Stream):
        self._stream = stream
        self._begun = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        self._stream.write(data if self._begun else memoryview(data)[1:])
        self._begun = self._begun or size > 0
        return size


def object_text() -> "polars.Expr":
    """A row as a JSON object: each column where it stands in a record, null what is not there."""
    import polars

    root: dict[str, Any] = {"bundle": polars.col("bundle")}
    paths = {_place(column): column for column in COLUMNS}
    for path, column in paths.items():
        if any(path[:length] in paths for length in range(1, len(path))):
            continue  # it is in the JSON text of another column
        place = root
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = column
    return _object(root)


def _place(column: Column) -> tuple[str, ...]:
    """The keys that lead to it in a record; what only the table has keeps its name."""
    path = column.path or column.name
    return tuple(path.split(".")) if path not in COMPUTED else (column.name,)


def _object(node: Mapping[str, Any]) -> "polars.Expr":
    """The members that hold no JSON text are polars' to encode, all at once."""
    import polars

    plain = {name: _plain(member) for name, member in node.items() if not _has_json(member)}
    pieces: list[polars.Expr] = []
    if plain:
        members = [value.alias(name) for name, value in plain.items()]
        pieces.append(polars.struct(members).struct.json_encode().str.strip_suffix("}"))
    for name, member in node.items():
        if name in plain:
            continue
        pieces.append(polars.lit(f'{"," if pieces else "{"}"{name}":'))
        pieces.append(_object(member) if isinstance(member, Mapping) else _json(member))
    return polars.concat_str([*pieces, polars.lit("}")])


def _has_json(member: Any) -> bool:
    if isinstance(member, Mapping):
        return any(_has_json(inner) for inner in member.values())
    return isinstance(member, Column) and member.type == "Json"


def _plain(member: Any) -> "polars.Expr":
    import polars

    if isinstance(member, Mapping):
        return polars.struct(_plain(inner).alias(name) for name, inner in member.items())
    return polars.col(member.name) if isinstance(member, Column) else member


def _json(column: Column) -> "polars.Expr":
    """The text of a column of JSON; of a table that has other text there, that as a string."""
    import polars

    text = polars.col(column.name)
    pairs: Sequence[tuple[str, str]] = (("{", "}"), ("[", "]"), ('"', '"'))
    framed = [text.str.starts_with(begin) & text.str.ends_with(end) for begin, end in pairs]
    told = polars.when(polars.any_horizontal(framed)).then(text).otherwise(_encoded(text))
    return polars.when(text.is_null()).then(polars.lit("null")).otherwise(told)


def _encoded(value: "polars.Expr") -> "polars.Expr":
    """JSON of one value."""
    import polars

    # {"x":VALUE}: polars writes JSON of structs alone
    return polars.struct(value.alias("x")).struct.json_encode().str.slice(5).str.strip_suffix("}")
