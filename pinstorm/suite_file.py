"""What a suite's TOML may hold: the tables, their values, and what is said of a wrong one.

Lists are made of scalars before validation, so that pydantic's errors name one place, not one for
each member of a union. Whatever is wrong becomes a UsageError of one sentence that names the file,
the entry, the value and the remedy.
"""

import tomllib
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pinstorm import suite_values as values
from pinstorm.errors import UsageError
from pinstorm.suite_load import JobTable, LoadTable, SteadyTable
from pinstorm.units import parse_duration
from workloads import MEMORY, WORKLOADS


def read(text: str, origin: str) -> "File":
    """The checked tables of a suite's text; ``origin`` is what errors call it. UsageError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)[:1].lower() + str(error)[1:]
        raise UsageError(f"suite {origin} is not TOML: {message}; correct that line") from None
    try:
        return File.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"suite {origin}: {_sentence(error, table)}") from None


_Workloads = Annotated[
    tuple[str, ...],
    BeforeValidator(partial(values.known, "workload", [spec.name for spec in WORKLOADS])),
]
_Memories = Annotated[
    tuple[str, ...],
    BeforeValidator(partial(values.known, "memory", [spec.name for spec in MEMORY])),
]
_Repeat = Annotated[int, Field(ge=0, le=1_000_000)]
_Deadline = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Run(values.Table):
    name: Annotated[str | None, BeforeValidator(values.name)] = None
    seed: int = 1
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    repeat: _Repeat = 20
    warmup: _Repeat = 1
    deadline_s: _Deadline = 30.0
    order: Literal["shuffle", "suite"] = "shuffle"
    hold: Annotated[float, BeforeValidator(partial(values.checked, parse_duration))] = 0.0
    trace: bool | None = None


class Exclude(values.Table):
    workload: _Workloads = ()
    memory: _Memories = ()
    reason: Annotated[str, Field(min_length=1)]


class Matrix(values.Table):
    workload: _Workloads
    memory: _Memories
    size: Annotated[tuple[int, ...], BeforeValidator(values.sizes)]
    access: Annotated[tuple[str, ...], BeforeValidator(values.accesses)] = ()
    touch: Annotated[tuple[bool, ...], BeforeValidator(values.flags)] = ()
    registered: Annotated[tuple[bool, ...], BeforeValidator(values.flags)] = ()
    force: Annotated[tuple[bool, ...], BeforeValidator(values.flags)] = ()
    mode: Annotated[tuple[str, ...], BeforeValidator(values.modes)] = ()
    through: Annotated[tuple[str, ...], BeforeValidator(values.interfaces)] = ()
    offset: Annotated[tuple[int, ...], BeforeValidator(values.offsets)] = ()
    processes: Annotated[tuple[int, ...], BeforeValidator(partial(values.counts, 1, 64))] = ()
    user: Annotated[tuple[int, ...], BeforeValidator(partial(values.counts, 1, 2**32 - 2))] = ()
    memlock: Annotated[tuple[int, ...], BeforeValidator(values.limits)] = ()
    under: Annotated[tuple[str, ...], BeforeValidator(values.circumstances)] = ()
    times: Annotated[tuple[int, ...], BeforeValidator(partial(values.counts, 1, 64))] = ()
    during: Annotated[tuple[str, ...], BeforeValidator(values.disturbances)] = ()
    kill: Annotated[tuple[str, ...], BeforeValidator(values.phases)] = ()
    settles: Annotated[int, Field(ge=0, le=10_000)] = 0
    remedy: bool = False
    repeat: _Repeat | None = None
    warmup: _Repeat | None = None
    deadline_s: _Deadline | None = None
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(values.several)] = ()

    @model_validator(mode="after")
    def _killed_does_no_more(self) -> Self:
        for key in ("settles", "remedy"):
            if self.kill and getattr(self, key):
                raise ValueError(
                    f"{key} = {values.shown(getattr(self, key))} comes after a kill, and a killed "
                    f"case does no more; give {key} and kill in two entries"
                )
        return self


class File(values.Table):
    run: Run = Run()
    matrix: Annotated[tuple[Matrix, ...], BeforeValidator(values.several)] = ()
    load: Annotated[tuple[LoadTable, ...], BeforeValidator(values.several)] = ()
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(values.several)] = ()


_TABLES: dict[str, type[values.Table]] = {
    "": File,
    "run": Run,
    "matrix": Matrix,
    "exclude": Exclude,
    "load": LoadTable,
    "job": JobTable,
    "steady": SteadyTable,
}


def _sentence(error: ValidationError, table: dict[str, Any]) -> str:
    """The first of pydantic's errors as: place, value, remedy; and how many more there are."""
    errors = error.errors()
    # Misspelt keys first: a key that is missing is often the one that is misspelt.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    *place, key = first["loc"]
    model = _TABLES[next((str(step) for step in reversed(place) if isinstance(step, str)), "")]
    where = _place(place)
    match first["type"]:
        case "extra_forbidden":
            sentence = f'unknown key "{key}" in {where}; {_remedy(str(key), model)}'
        case "missing":
            sentence = f'{where} lacks the key "{key}"; add it'
        case "value_error":
            sentence = f"{_place(first['loc'])}: {first['ctx']['error']}"
        case _:
            sentence = f"{_place(first['loc'])} = {values.shown(first['input'])}: {_rule(first)}"
    more = len(errors) - 1
    return sentence + (f" (and {more} more {values.plural(more, 'error')})" if more else "")


def _remedy(key: str, model: type[values.Table]) -> str:
    """What to do about a key that a table does not have."""
    for table, other in (("[run]", Run), ("[[matrix]]", Matrix), ("[[load]]", LoadTable)):
        if key in other.model_fields:
            return f"it belongs into {table}"
    near = values.nearest(key, model.model_fields)
    return f'did you mean "{near}"?' if near else f"it takes {values.listed(model.model_fields)}"


def _rule(error: ErrorDetails) -> str:
    if error["type"] == "model_type":
        return "it must be a table"
    message = error["msg"].replace("Input should be ", "it must be ", 1)
    return message[:1].lower() + message[1:]


def _place(loc: Sequence[str | int]) -> str:
    """``("matrix", 0, "size")`` -> ``[[matrix]] 1, size``; entries count from 1.

    ``("matrix", 0, "exclude", 1)`` -> ``[[matrix]] 1, [[matrix.exclude]] 2``, as TOML has it.
    """
    names = {
        "matrix": "[[matrix]]",
        "run": "[run]",
        "exclude": "[[exclude]]",
        "load": "[[load]]",
        "job": "[[load.job]]",
    }
    words: list[str] = []
    for step in loc:
        if isinstance(step, int):
            words[-1] += f" {step + 1}"
        elif step == "exclude" and words:
            words.append("[[matrix.exclude]]")
        else:
            words.append(names.get(step, step))
    return ", ".join(words) or "the file"
