"""What a suite's TOML may hold: the tables, their values, and what is said of a wrong one.

Lists are made of scalars before validation, so that pydantic's errors name one place, not one for
each member of a union. Whatever is wrong becomes a UsageError of one sentence that names the file,
the entry, the value and the remedy.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from pinstorm.errors import UsageError
from pinstorm.units import parse_duration, parse_size
from workloads import CIRCUMSTANCES, MEMORY, WORKLOADS
from workloads.spec import DISTURBANCES, PAGE_BYTES, PHASES, THROUGH

_Read = TypeVar("_Read")

MAX_SIZE_BYTES = 1 << 40

# enum ibv_access_flags, in the order of <infiniband/verbs.h>. ON_DEMAND is a workload of its own.
ACCESS_FLAGS = (
    "LOCAL_WRITE",
    "REMOTE_WRITE",
    "REMOTE_READ",
    "REMOTE_ATOMIC",
    "MW_BIND",
    "RELAXED_ORDERING",
)
ACCESS_SHORT = {"LOCAL_WRITE|REMOTE_WRITE|REMOTE_READ": "rw", "REMOTE_READ": "ro"}

# The gup_test ioctls that get pages; mm/gup_test.h.
GUP_TEST_MODES = ("GUP_FAST", "GUP_BASIC", "PIN_FAST", "PIN_BASIC", "PIN_LONGTERM")


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


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like ``name``; None when none is."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def _several(value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values:
        raise ValueError("the list is empty; name at least one, or leave the key out")
    return values


def _known(kind: str, names: Sequence[str], value: Any) -> tuple[str, ...]:
    """Names, or shell patterns of names: ``"dio-*"``, ``"*"`` for all."""
    found: dict[str, None] = {}
    for name in _several(value):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not a name; write a string or a list of strings")
        matching = [known for known in names if fnmatchcase(known, name)]
        if not matching:
            near = nearest(name, names)
            remedy = f'did you mean "{near}"?' if near else f"there are {listed(names)}"
            raise ValueError(f'there is no {kind} "{name}"; {remedy}')
        found |= dict.fromkeys(matching)
    return tuple(found)


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = []
    for given in _several(value):
        size_bytes = _checked(parse_size, given)
        if size_bytes == 0:
            raise ValueError("a size of 0 is no case; give at least 1 byte")
        _check_largest(size_bytes, given)
        sizes.append(size_bytes)
    return tuple(sizes)


def _check_largest(size_bytes: int, given: Any) -> None:
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError(f"{_value(given)} is over 1 TiB; give a smaller one")


def _accesses(value: Any) -> tuple[str, ...]:
    return tuple(_access(given) for given in _several(value))


def _access(given: Any) -> str:
    """``rw``, ``ro``, or verbs' flag names in verbs' order joined with ``|``."""
    if not isinstance(given, str):
        raise ValueError(f'{given!r} is no access; write "rw", "ro" or verbs flags joined with "|"')
    if given in ACCESS_SHORT.values():
        return given
    flags = {word.strip().removeprefix("IBV_ACCESS_") for word in given.split("|")}
    if "ON_DEMAND" in flags:
        raise ValueError(
            f'access "{given}" has ON_DEMAND; leave it out and use the workload rdma-register-odp'
        )
    for flag in sorted(flags - set(ACCESS_FLAGS)):
        near = nearest(flag, (*ACCESS_FLAGS, *ACCESS_SHORT.values()))
        remedy = f'did you mean "{near}"?' if near else f"there are rw, ro, {listed(ACCESS_FLAGS)}"
        raise ValueError(f'there is no access "{flag}"; {remedy}')
    # ib_check_mr_access() in include/rdma/ib_verbs.h: EINVAL before any page is looked at.
    if flags & {"REMOTE_WRITE", "REMOTE_ATOMIC"} and "LOCAL_WRITE" not in flags:
        raise ValueError(
            f'access "{given}" lets the peer write without LOCAL_WRITE, which every kernel '
            "refuses; add LOCAL_WRITE"
        )
    text = "|".join(flag for flag in ACCESS_FLAGS if flag in flags)
    return ACCESS_SHORT.get(text, text)


def _flags(value: Any) -> tuple[bool, ...]:
    for given in (values := _several(value)):
        if not isinstance(given, bool):
            raise ValueError(f"{given!r} is neither true nor false; write one of them")
    return values


def _offsets(value: Any) -> tuple[int, ...]:
    offsets = tuple(_checked(parse_size, given) for given in _several(value))
    for offset_bytes in offsets:
        if offset_bytes >= PAGE_BYTES:
            raise ValueError(
                f"offset {offset_bytes} must be under {PAGE_BYTES} bytes; give 0 to "
                f"{PAGE_BYTES - 1}"
            )
    return offsets


def _limits(value: Any) -> tuple[int, ...]:
    limits = []
    for given in _several(value):
        limit_bytes = _checked(parse_size, given)
        _check_largest(limit_bytes, given)
        limits.append(limit_bytes)
    return tuple(limits)


def _modes(value: Any) -> tuple[str, ...]:
    return _known("mode of gup_test", GUP_TEST_MODES, value)


def _interfaces(value: Any) -> tuple[str, ...]:
    return _known("interface", tuple(THROUGH), value)


def _circumstances(value: Any) -> tuple[str, ...]:
    return _known("circumstance", [spec.name for spec in CIRCUMSTANCES], value)


def _disturbances(value: Any) -> tuple[str, ...]:
    return _known("disturbance", DISTURBANCES, value)


def _phases(value: Any) -> tuple[str, ...]:
    return _known("phase", PHASES, value)


def _counts(low: int, high: int, value: Any) -> tuple[int, ...]:
    for given in (values := _several(value)):
        if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
            raise ValueError(f"{_value(given)} is no number from {low} to {high}; give one")
    return values


def _checked(reader: Callable[[Any], _Read], value: Any) -> _Read:
    """Let pydantic add the place to a sentence of pinstorm.units."""
    try:
        return reader(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _name(value: Any) -> Any:
    # The name becomes part of a directory's.
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(f'"{value}" is no name; use letters, digits, ".", "_" and "-"')
    return value


_Workloads = Annotated[
    tuple[str, ...],
    BeforeValidator(partial(_known, "workload", [spec.name for spec in WORKLOADS])),
]
_Memories = Annotated[
    tuple[str, ...], BeforeValidator(partial(_known, "memory", [spec.name for spec in MEMORY]))
]
_Repeat = Annotated[int, Field(ge=0, le=1_000_000)]
_Deadline = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Run(_Table):
    name: Annotated[str | None, BeforeValidator(_name)] = None
    seed: int = 1
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    repeat: _Repeat = 20
    warmup: _Repeat = 1
    deadline_s: _Deadline = 30.0
    order: Literal["shuffle", "suite"] = "shuffle"
    hold: Annotated[float, BeforeValidator(partial(_checked, parse_duration))] = 0.0
    trace: bool | None = None


class Exclude(_Table):
    workload: _Workloads = ()
    memory: _Memories = ()
    reason: Annotated[str, Field(min_length=1)]


class Matrix(_Table):
    workload: _Workloads
    memory: _Memories
    size: Annotated[tuple[int, ...], BeforeValidator(_sizes)]
    access: Annotated[tuple[str, ...], BeforeValidator(_accesses)] = ()
    touch: Annotated[tuple[bool, ...], BeforeValidator(_flags)] = ()
    registered: Annotated[tuple[bool, ...], BeforeValidator(_flags)] = ()
    force: Annotated[tuple[bool, ...], BeforeValidator(_flags)] = ()
    mode: Annotated[tuple[str, ...], BeforeValidator(_modes)] = ()
    through: Annotated[tuple[str, ...], BeforeValidator(_interfaces)] = ()
    offset: Annotated[tuple[int, ...], BeforeValidator(_offsets)] = ()
    processes: Annotated[tuple[int, ...], BeforeValidator(partial(_counts, 1, 64))] = ()
    user: Annotated[tuple[int, ...], BeforeValidator(partial(_counts, 1, 2**32 - 2))] = ()
    memlock: Annotated[tuple[int, ...], BeforeValidator(_limits)] = ()
    under: Annotated[tuple[str, ...], BeforeValidator(_circumstances)] = ()
    times: Annotated[tuple[int, ...], BeforeValidator(partial(_counts, 1, 64))] = ()
    during: Annotated[tuple[str, ...], BeforeValidator(_disturbances)] = ()
    kill: Annotated[tuple[str, ...], BeforeValidator(_phases)] = ()
    settles: Annotated[int, Field(ge=0, le=10_000)] = 0
    remedy: bool = False
    repeat: _Repeat | None = None
    warmup: _Repeat | None = None
    deadline_s: _Deadline | None = None
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(_several)] = ()

    @model_validator(mode="after")
    def _killed_does_no_more(self) -> Self:
        for key in ("settles", "remedy"):
            if self.kill and getattr(self, key):
                raise ValueError(
                    f"{key} = {_value(getattr(self, key))} comes after a kill, and a killed case "
                    f"does no more; give {key} and kill in two entries"
                )
        return self


class File(_Table):
    run: Run = Run()
    matrix: Annotated[tuple[Matrix, ...], BeforeValidator(_several)] = ()
    exclude: Annotated[tuple[Exclude, ...], BeforeValidator(_several)] = ()


_TABLES: dict[str, type[_Table]] = {
    "": File,
    "run": Run,
    "matrix": Matrix,
    "exclude": Exclude,
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
            sentence = f"{_place(first['loc'])} = {_value(first['input'])}: {_rule(first)}"
    more = len(errors) - 1
    return sentence + (f" (and {more} more {plural(more, 'error')})" if more else "")


def _remedy(key: str, model: type[_Table]) -> str:
    """What to do about a key that a table does not have."""
    for table, other in (("[run]", Run), ("[[matrix]]", Matrix)):
        if key in other.model_fields:
            return f"it belongs into {table}"
    near = nearest(key, model.model_fields)
    return f'did you mean "{near}"?' if near else f"it takes {listed(model.model_fields)}"


def _rule(error: ErrorDetails) -> str:
    if error["type"] == "model_type":
        return "it must be a table"
    message = error["msg"].replace("Input should be ", "it must be ", 1)
    return message[:1].lower() + message[1:]


def _place(loc: Sequence[str | int]) -> str:
    """``("matrix", 0, "size")`` -> ``[[matrix]] 1, size``; entries count from 1.

    ``("matrix", 0, "exclude", 1)`` -> ``[[matrix]] 1, [[matrix.exclude]] 2``, as TOML has it.
    """
    names = {"matrix": "[[matrix]]", "run": "[run]", "exclude": "[[exclude]]"}
    words: list[str] = []
    for step in loc:
        if isinstance(step, int):
            words[-1] += f" {step + 1}"
        elif step == "exclude" and words:
            words.append("[[matrix.exclude]]")
        else:
            words.append(names.get(step, step))
    return ", ".join(words) or "the file"


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"
