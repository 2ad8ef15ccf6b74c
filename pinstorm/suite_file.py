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
from workloads import CIRCUMSTANCES, MEMORY, WORKLOADS
from workloads.spec import DISTURBANCES, PHASES, THROUGH


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
    name: Annotated[str | None, BeforeValidator(values.name)] = Field(
        default=None,
        description="what the run is called; the name of the file when left out",
    )
    seed: int = Field(default=1, description="of the order of the cases, and of what a load draws")
    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="how often the whole suite is run, each time in another order"
    )
    repeat: _Repeat = Field(default=20, description="timed cycles after the observed one")
    warmup: _Repeat = Field(
        default=1, description="cycles before the timed ones that are not timed"
    )
    deadline_s: _Deadline = Field(
        default=30.0, description="seconds until a case that does not end is killed: timeout"
    )
    order: Literal["shuffle", "suite"] = Field(
        default="shuffle", description="by the seed, or as the file has it"
    )
    hold: Annotated[float, BeforeValidator(partial(values.checked, parse_duration))] = Field(
        default=0.0, description="how long the pins are kept between acquire and release"
    )
    trace: bool | None = Field(
        default=None,
        description="trace the kernel's calls; when left out in the lab, and not on a host",
    )


class Exclude(values.Table):
    workload: _Workloads = Field(
        default=(), description="that are left out; all when the key is left out"
    )
    memory: _Memories = Field(
        default=(), description="that are left out; all when the key is left out"
    )
    reason: Annotated[str, Field(min_length=1)] = Field(
        description="why; told when the suite is expanded"
    )


class Matrix(values.Table):
    workload: _Workloads = Field(description="what is done to the memory")
    memory: _Memories = Field(description="what it is done to")
    size: Annotated[tuple[int, ...], BeforeValidator(values.sizes)] = Field(
        description="what is registered or transferred; whole granules are mapped around it"
    )
    access: Annotated[tuple[str, ...], BeforeValidator(values.accesses)] = Field(
        default=(), description="access flags of a registration"
    )
    touch: Annotated[tuple[bool, ...], BeforeValidator(values.flags)] = Field(
        default=(),
        description="whether the device faults the pages in during acquire; true when left out",
    )
    registered: Annotated[tuple[bool, ...], BeforeValidator(values.flags)] = Field(
        default=(), description="transfer into a registered buffer"
    )
    force: Annotated[tuple[bool, ...], BeforeValidator(values.flags)] = Field(
        default=(), description="run although the device lacks the capability: a negative test"
    )
    mode: Annotated[
        tuple[str, ...],
        BeforeValidator(partial(values.known, "mode of gup_test", values.GUP_TEST_MODES)),
    ] = Field(default=(), description="the ioctl of the kernel's GUP test")
    through: Annotated[
        tuple[str, ...], BeforeValidator(partial(values.known, "interface", tuple(THROUGH)))
    ] = Field(default=(), description="the interface that gup-overflow pins through")
    offset: Annotated[tuple[int, ...], BeforeValidator(values.offsets)] = Field(
        default=(), description="where the range begins in its page"
    )
    processes: Annotated[tuple[int, ...], BeforeValidator(partial(values.counts, 1, 64))] = Field(
        default=(), description="so many do the same at once, each to memory of its own"
    )
    user: Annotated[tuple[int, ...], BeforeValidator(partial(values.counts, 1, 2**32 - 2))] = Field(
        default=(), description="the case runs as this ordinary user, without capabilities"
    )
    memlock: Annotated[tuple[int, ...], BeforeValidator(values.limits)] = Field(
        default=(), description="RLIMIT_MEMLOCK of the case"
    )
    under: Annotated[
        tuple[str, ...],
        BeforeValidator(
            partial(values.known, "circumstance", [spec.name for spec in CIRCUMSTANCES])
        ),
    ] = Field(
        default=(), description="what is made wrong around the case, so that it fails of that cause"
    )
    times: Annotated[tuple[int, ...], BeforeValidator(partial(values.counts, 1, 64))] = Field(
        default=(), description="so often the same range is registered at a time"
    )
    during: Annotated[
        tuple[str, ...], BeforeValidator(partial(values.known, "disturbance", DISTURBANCES))
    ] = Field(
        default=(), description="what is done to the memory while it is pinned; no pin may move"
    )
    kill: Annotated[tuple[str, ...], BeforeValidator(partial(values.known, "phase", PHASES))] = (
        Field((), description="SIGKILL at a random moment of that phase; no pin may stay")
    )
    settles: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="so many more cycles, each waiting until the counters rest"
    )
    remedy: bool = Field(
        default=False, description="apply the remedy of the refusal's cause, and try again"
    )
    repeat: _Repeat | None = Field(default=None, description="as in `[run]`, of this entry")
    warmup: _Repeat | None = Field(default=None, description="as in `[run]`, of this entry")
    deadline_s: _Deadline | None = Field(default=None, description="as in `[run]`, of this entry")
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(values.several)] = Field(
        default=(), description="`[[matrix.exclude]]`: pairs that are left out of this entry"
    )

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
    run: Run = Field(default=Run(), description="`[run]`: how the suite is run")
    matrix: Annotated[tuple[Matrix, ...], BeforeValidator(values.several)] = Field(
        default=(),
        description="`[[matrix]]`: cases, one for each combination of the lists of an entry",
    )
    load: Annotated[tuple[LoadTable, ...], BeforeValidator(values.several)] = Field(
        default=(), description="`[[load]]`: jobs that run for a time"
    )
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(values.several)] = Field(
        default=(), description="`[[exclude]]`: pairs that are left out of every matrix"
    )


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
