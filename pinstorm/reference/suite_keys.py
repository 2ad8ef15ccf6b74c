"""docs/reference/suite.md."""

import functools
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pinstorm import suite, suite_values
from pinstorm.reference import page
from pinstorm.suite_file import Exclude, File, Matrix, Run
from pinstorm.suite_load import KEYS_OF, LOADABLE, JobTable, LoadTable, SteadyTable
from workloads import WORKLOADS

# Of a longer list the page of workloads says the names.
_FEW = 8


def text() -> str:
    """Every table of a suite with its keys, and which workload knows which parameter."""
    lines = page.head(
        "Keys of a suite",
        "pinstorm/suite_file.py and pinstorm/suite_load.py",
        "A suite is a TOML file that expands to cases. No other keys than these are allowed, and "
        "every wrong value is one sentence that names the place and the remedy. "
        "`pinstorm run SUITE --dry-run` expands it and runs nothing. "
        "The suites that ship are in `configs/`.",
    )
    for title, model, words in _TABLES:
        lines += ["", f"## {title}", *(["", page.prose(words)] if words else [])]
        lines += page.table(("key", "value", "default", "meaning"), _rows(model))
    lines += [
        "",
        "## Which workload knows which parameter",
        "",
        page.prose(
            "`size`, and the keys that say how often (`repeat`, `warmup`, `settles`, …), are of "
            "every workload. `under` names its workloads itself "
            "([list](workloads.md#circumstances)). A parameter that a workload lacks is dropped, "
            "equal cases are merged, and both are told."
        ),
    ]
    lines += page.table(("workload", "parameters"), _parameters())
    lines += ["", "## Which keys of a job are for some workloads only"]
    rows = [
        (f"`{key}`", "every workload that pins" if names == LOADABLE else page.code(names))
        for key, names in KEYS_OF.items()
    ]
    lines += page.table(("key", "workloads"), rows)
    return page.whole(lines)


_TABLES = (
    ("The file", File, ""),
    ("[run]", Run, ""),
    (
        "[[matrix]]",
        Matrix,
        "Every combination of the lists is a case. A key that is left out is no parameter of the "
        "case.",
    ),
    ("[[exclude]] and [[matrix.exclude]]", Exclude, ""),
    ("[[load]]", LoadTable, "See [loads](../loads.md). The keys of a job may stand here, too."),
    ("[[load.job]]", JobTable, ""),
    ("steady of a load", SteadyTable, ""),
)


def _rows(model: type[suite_values.Table]) -> list[tuple[str, ...]]:
    """A load has the keys of its jobs as well; they are told once, of the job."""
    of_jobs = JobTable.model_fields.keys() - {"name"} if model is LoadTable else set()
    return [
        (f"`{name}`", _value(field), _default(field), field.description or "")
        for name, field in model.model_fields.items()
        if name not in of_jobs
    ]


def _value(field: FieldInfo) -> str:
    """What may be written there, as the reader of the value says, or the type."""
    readers = [mark for mark in _marks(field) if isinstance(mark, BeforeValidator)]
    kind = _without_none(field.annotation)
    if readers and (words := _reader_words(readers[0].func)):
        several = get_origin(kind) is tuple and words != "tables" and " list " not in words
        return words + (", or a list" if several else "")
    if get_origin(kind) is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("whole number" if kind is int else "number") + _range(field)
    if isinstance(kind, type) and issubclass(kind, suite_values.Table):
        return "table"
    return "table" if get_origin(kind) is dict else "text"


def _reader_words(reader: Any) -> str:
    """The first sentence of its docstring; of a partial what was bound says more."""
    if not isinstance(reader, functools.partial):
        if reader is suite_values.several:
            return "tables"
        first = " ".join((reader.__doc__ or "").partition("\n\n")[0].split())
        return _lower(first.partition(". ")[0].removesuffix(".")).replace("``", "`")
    bound = reader.args
    if reader.func is suite_values.checked:
        return _reader_words(bound[0])
    if reader.func is suite_values.counts:
        return f"whole number, {bound[0]} to {bound[1]}"
    kind, names = bound
    if len(names) <= _FEW:
        return page.code(names)
    link = f"[{kind}](workloads.md)"
    return f"{link}, or a shell pattern" if reader.func is suite_values.known else link


def _marks(field: FieldInfo) -> list[Any]:
    """What stands beside the type; of ``X | None`` that of X, too."""
    marks = list(field.metadata)
    for part in get_args(field.annotation):
        marks += getattr(part, "__metadata__", ())
    return [inner for mark in marks for inner in (getattr(mark, "metadata", None) or [mark])]


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        (kind,) = [part for part in get_args(kind) if part is not NoneType]
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _range(field: FieldInfo) -> str:
    found = {}
    for mark in _marks(field):
        for name in ("gt", "ge", "lt", "le"):
            if (bound := getattr(mark, name, None)) is not None:
                found[name] = bound
    low = f"over {found['gt']:g}" if "gt" in found else ""
    low = f"from {found['ge']}" if "ge" in found else low
    high = f"to {found['le']}" if "le" in found else ""
    words = " ".join(part for part in (low, high) if part)
    return f", {words}" if words else ""


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if (
        field.default is None
        or field.default == ()
        or isinstance(field.default, suite_values.Table)
    ):
        return "-"
    return f"`{suite_values.shown(field.default)}`"


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]


def _parameters() -> list[tuple[str, str]]:
    keys = {param: key for key, param in suite.PARAMETERS.items()}
    return [
        (
            f"`{spec.name}`",
            ", ".join(
                f"`{keys[param]}`"
                + (f" (`{spec.defaults[param]}`)" if param in spec.defaults else "")
                for param in spec.params
            ),
        )
        for spec in WORKLOADS
    ]
