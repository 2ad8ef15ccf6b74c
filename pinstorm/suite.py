"""Suites: TOML files that expand to cases.

A suite has a ``[run]`` table and ``[[matrix]]`` entries; an entry is the product of its lists.
Whatever is wrong with the file is a UsageError of one sentence that names the file, the entry, the
value and the remedy. What a kernel refuses is a case; only what no kernel could run is an error.
"""

import hashlib
import os
import random
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

import configs
from pinstorm.errors import UsageError
from pinstorm.units import parse_duration, parse_size
from workloads import MEMORY, WORKLOADS, workload_spec
from workloads.spec import Case, Planned

_Read = TypeVar("_Read")

MAX_SIZE_BYTES = 1 << 40
SHIPPED = Path(configs.__file__).parent

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

# What a parameter is when the suite does not give it and the workload's spec has no default: such
# a value is left out of the case, so that saying it changes no case's id.
IMPLIED: dict[str, Any] = {"touch": True}


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Pairs of an entry that are left out, and why; an empty tuple means every name."""

    workloads: tuple[str, ...]
    memories: tuple[str, ...]
    reason: str

    def covers(self, case: Case) -> bool:
        return (not self.workloads or case.workload in self.workloads) and (
            not self.memories or case.memory in self.memories
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``[[matrix]]`` entry, checked; ``params`` are the parameters given, each a list."""

    workloads: tuple[str, ...]
    memories: tuple[str, ...]
    params: dict[str, tuple[Any, ...]]
    repeat: int
    warmup: int
    deadline_s: float
    exclude: tuple[Exclusion, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as written, checked, with its text and the sha256 of that text in hex."""

    name: str
    origin: str
    text: str
    sha256: str
    seed: int
    rounds: int
    repeat: int
    warmup: int
    deadline_s: float
    order: Literal["shuffle", "suite"]
    hold_s: float
    entries: tuple[Entry, ...]

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's ``suite``; pinstorm.bundle.check_resume reads it back."""
        return {
            "name": self.name,
            "origin": self.origin,
            "text": self.text,
            "sha256": self.sha256,
            "seed": self.seed,
            "rounds": self.rounds,
            "order": self.order,
            "hold_s": self.hold_s,
        }


@dataclass(frozen=True, slots=True)
class Expansion:
    """The cases of one round in run order, and what was dropped, merged and excluded."""

    cases: tuple[Case, ...]
    notes: list[str]


def load(path: str | Path) -> Suite:
    """Read the suite at ``path``, or the shipped one of that bare name (``quick``)."""
    file = _find(path)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"suite {file} is not UTF-8 text; give a TOML file") from None
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UsageError(f"cannot read suite {file}: {reason}; give a TOML file") from None
    return parse(text, str(file))


def parse(text: str, origin: str) -> Suite:
    """Check a suite's text; ``origin`` is what errors call it, and its stem the default name."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)[:1].lower() + str(error)[1:]
        raise UsageError(f"suite {origin} is not TOML: {message}; correct that line") from None
    try:
        file = _File.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"suite {origin}: {_sentence(error, table)}") from None
    run = file.run
    return Suite(
        name=run.name or Path(origin).stem,
        origin=origin,
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        seed=run.seed,
        rounds=run.rounds,
        repeat=run.repeat,
        warmup=run.warmup,
        deadline_s=run.deadline_s,
        order=run.order,
        hold_s=run.hold,
        entries=tuple(_entry(matrix, run) for matrix in file.matrix),
    )


def expand(suite: Suite, round_index: int = 0) -> Expansion:
    """The cases of one round, in the order in which that round runs them.

    Parameters that a workload lacks are dropped and equal cases merged, and the notes say so.
    Each round has its own order, which follows from the seed. Raises UsageError when there is no
    case.
    """
    notes = _Notes()
    cases: dict[str, Case] = {}
    for entry in suite.entries:
        for case in _entry_cases(entry, suite.hold_s, notes):
            known = cases.setdefault(case.id, case)
            if known is not case:
                notes.merge(case, known)
    if not cases:
        raise UsageError(
            f"suite {suite.origin} expands to no case; add a [[matrix]] entry, "
            "or exclude less in those it has"
        )
    ordered = list(cases.values())
    if suite.order == "shuffle":
        # A string seeds the generator the same way in every Python; a tuple would not.
        random.Random(f"{suite.seed}/{round_index}").shuffle(ordered)
    return Expansion(tuple(ordered), notes.lines())


def plan(
    suite: Suite, rounds: int | None = None, only_glob: str | None = None
) -> tuple[list[Planned], list[str]]:
    """Every case of every round with its seq, and the notes of the expansion.

    ``rounds`` overrides the suite's, ``only_glob`` selects cases by id. The same arguments give
    the same list, which is what --resume relies on.
    """
    planned: list[Planned] = []
    notes: list[str] = []
    for index in range(suite.rounds if rounds is None else rounds):
        expansion = expand(suite, index)
        notes = expansion.notes
        cases = only(expansion.cases, only_glob) if only_glob else expansion.cases
        for case in cases:
            planned.append(Planned(len(planned), index, case))
    return planned, notes


def only(cases: Sequence[Case], glob: str) -> tuple[Case, ...]:
    """The cases whose id matches the shell pattern, in their order; UsageError when none does."""
    chosen = tuple(case for case in cases if fnmatchcase(case.id, glob))
    if not chosen:
        near = nearest(glob, [case.id for case in cases], cutoff=0.0)
        raise UsageError(f'no case matches --only "{glob}"; the nearest is "{near}"')
    return chosen


def shipped() -> list[Path]:
    """The suites that come with pinstorm, by name."""
    return sorted(SHIPPED.glob("*.toml"))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like ``name``; None when none is."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def _find(path: str | Path) -> Path:
    # os.path: Path.is_file raises for what lies below a directory that may not be searched.
    if os.path.isfile(path):
        return Path(path)
    names = [file.stem for file in shipped()]
    if str(path) in names:
        return SHIPPED / f"{path}.toml"
    if os.path.isdir(path):
        raise UsageError(f"suite {path} is a directory; give a TOML file or one of: {_list(names)}")
    near = nearest(Path(path).stem, names)
    remedy = f'did you mean "{near}"?' if near else "give a TOML file or the name of a shipped one"
    raise UsageError(f"suite {path} is not there; {remedy} (shipped: {_list(names)})")


# What the TOML may hold. Lists are made of scalars before validation, so that pydantic's errors
# name one place, not one for each member of a union.


def _listed(value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values:
        raise ValueError("the list is empty; name at least one, or leave the key out")
    return values


def _known(kind: str, names: Sequence[str], value: Any) -> tuple[str, ...]:
    values = _listed(value)
    for name in values:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not a name; write a string or a list of strings")
        if name not in names:
            near = nearest(name, names)
            remedy = f'did you mean "{near}"?' if near else f"there are {_list(names)}"
            raise ValueError(f'there is no {kind} "{name}"; {remedy}')
    return values


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = []
    for given in _listed(value):
        size_bytes = _checked(parse_size, given)
        if size_bytes == 0:
            raise ValueError("a size of 0 is no case; give at least 1 byte")
        if size_bytes > MAX_SIZE_BYTES:
            raise ValueError(f"{_value(given)} is over 1 TiB; give a smaller one")
        sizes.append(size_bytes)
    return tuple(sizes)


def _accesses(value: Any) -> tuple[str, ...]:
    return tuple(_access(given) for given in _listed(value))


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
        remedy = f'did you mean "{near}"?' if near else f"there are rw, ro, {_list(ACCESS_FLAGS)}"
        raise ValueError(f'there is no access "{flag}"; {remedy}')
    # ib_check_mr_access() in include/rdma/ib_verbs.h: EINVAL before any page is looked at.
    if flags & {"REMOTE_WRITE", "REMOTE_ATOMIC"} and "LOCAL_WRITE" not in flags:
        raise ValueError(
            f'access "{given}" lets the peer write without LOCAL_WRITE, which every kernel '
            "refuses; add LOCAL_WRITE"
        )
    text = "|".join(flag for flag in ACCESS_FLAGS if flag in flags)
    return ACCESS_SHORT.get(text, text)


def _touches(value: Any) -> tuple[bool, ...]:
    for given in (values := _listed(value)):
        if not isinstance(given, bool):
            raise ValueError(f"{given!r} is neither true nor false; write one of them")
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


class _Run(_Table):
    name: Annotated[str | None, BeforeValidator(_name)] = None
    seed: int = 1
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    repeat: _Repeat = 20
    warmup: _Repeat = 1
    deadline_s: _Deadline = 30.0
    order: Literal["shuffle", "suite"] = "shuffle"
    hold: Annotated[float, BeforeValidator(partial(_checked, parse_duration))] = 0.0


class _Exclude(_Table):
    workload: _Workloads = ()
    memory: _Memories = ()
    reason: Annotated[str, Field(min_length=1)]


class _Matrix(_Table):
    workload: _Workloads
    memory: _Memories
    size: Annotated[tuple[int, ...], BeforeValidator(_sizes)]
    access: Annotated[tuple[str, ...], BeforeValidator(_accesses)] = ()
    touch: Annotated[tuple[bool, ...], BeforeValidator(_touches)] = ()
    repeat: _Repeat | None = None
    warmup: _Repeat | None = None
    deadline_s: _Deadline | None = None
    exclude: Annotated[tuple[_Exclude, ...], BeforeValidator(_listed)] = ()


class _File(_Table):
    run: _Run = _Run()
    matrix: Annotated[tuple[_Matrix, ...], BeforeValidator(_listed)] = ()


_TABLES: dict[str, type[_Table]] = {
    "": _File,
    "run": _Run,
    "matrix": _Matrix,
    "exclude": _Exclude,
}


def _entry(matrix: _Matrix, run: _Run) -> Entry:
    given = {"access": matrix.access, "touch": matrix.touch, "size_bytes": matrix.size}
    return Entry(
        workloads=matrix.workload,
        memories=matrix.memory,
        params={name: values for name, values in given.items() if values},
        repeat=run.repeat if matrix.repeat is None else matrix.repeat,
        warmup=run.warmup if matrix.warmup is None else matrix.warmup,
        deadline_s=run.deadline_s if matrix.deadline_s is None else matrix.deadline_s,
        exclude=tuple(
            Exclusion(exclude.workload, exclude.memory, exclude.reason)
            for exclude in matrix.exclude
        ),
    )


def _entry_cases(entry: Entry, hold_s: float, notes: "_Notes") -> Iterator[Case]:
    names = list(entry.params)
    for workload_name, memory_name in product(entry.workloads, entry.memories):
        for values in product(*entry.params.values()):
            case = Case(
                workload_name,
                memory_name,
                _case_params(workload_name, dict(zip(names, values, strict=True)), notes),
                repeat=entry.repeat,
                warmup=entry.warmup,
                deadline_s=entry.deadline_s,
                hold_s=hold_s,
            )
            exclusion = next((e for e in entry.exclude if e.covers(case)), None)
            if exclusion is None:
                yield case
            else:
                notes.exclude(case, exclusion)


def _case_params(workload_name: str, given: dict[str, Any], notes: "_Notes") -> dict[str, Any]:
    spec = workload_spec(workload_name)
    params = dict(spec.defaults)
    for name, value in given.items():
        if name != "size_bytes" and name not in spec.params:
            notes.drop(workload_name, name)
        elif name not in IMPLIED or value != IMPLIED[name]:
            params[name] = value
    return params


class _Notes:
    """Collects what expansion left out, to tell it in one line a kind."""

    def __init__(self) -> None:
        self._dropped: dict[str, dict[str, None]] = {}
        self._merged = 0
        self._differing: dict[str, None] = {}
        self._excluded: dict[str, dict[str, None]] = {}

    def drop(self, workload_name: str, param: str) -> None:
        self._dropped.setdefault(param, {})[workload_name] = None

    def merge(self, case: Case, known: Case) -> None:
        self._merged += 1
        if case != known:
            self._differing[case.id] = None

    def exclude(self, case: Case, exclusion: Exclusion) -> None:
        self._excluded.setdefault(exclusion.reason, {})[case.id] = None

    def lines(self) -> list[str]:
        lines = [
            f"parameter {param} dropped where the workload has none: {_list(names)}"
            for param, names in self._dropped.items()
        ]
        if self._merged:
            lines.append(f"{self._merged} equal {_plural(self._merged, 'case')} merged")
        for case_id in self._differing:
            lines.append(
                f"{case_id} stands in two entries with different repeat, warmup or deadline_s: "
                "those of the first hold"
            )
        for reason, cases in self._excluded.items():
            lines.append(f"{len(cases)} {_plural(len(cases), 'case')} excluded: {reason}")
        return lines


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
            near = nearest(str(key), model.model_fields)
            remedy = f'did you mean "{near}"?' if near else f"it takes {_list(model.model_fields)}"
            sentence = f'unknown key "{key}" in {where}; {remedy}'
        case "missing":
            sentence = f'{where} lacks the key "{key}"; add it'
        case "value_error":
            sentence = f"{_place(first['loc'])}: {first['ctx']['error']}"
        case _:
            sentence = f"{_place(first['loc'])} = {_value(first['input'])}: {_rule(first)}"
    more = len(errors) - 1
    return sentence + (f" (and {more} more {_plural(more, 'error')})" if more else "")


def _rule(error: ErrorDetails) -> str:
    if error["type"] == "model_type":
        return "it must be a table"
    message = error["msg"].replace("Input should be ", "it must be ", 1)
    return message[:1].lower() + message[1:]


def _place(loc: Sequence[str | int]) -> str:
    """``("matrix", 0, "size")`` -> ``[[matrix]] 1, size``; entries count from 1."""
    words: list[str] = []
    for step in loc:
        if isinstance(step, int):
            words[-1] += f" {step + 1}"
        else:
            words.append({"matrix": "[[matrix]]", "run": "[run]"}.get(step, step))
    return ", ".join(words) or "the file"


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"
