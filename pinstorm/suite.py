"""Suites: TOML files that expand to cases.

A suite has a ``[run]`` table, ``[[matrix]]`` and ``[[load]]`` entries. A load is one case
(pinstorm.suite_load). A matrix is the product of its lists, less what ``[[matrix.exclude]]`` and
the ``[[exclude]]`` of all entries name, each with its reason. Whatever is wrong with the file is a
UsageError of one sentence that names the file, the entry, the value and the remedy. What a kernel
refuses is a case; only what no kernel could run is an error.
"""

import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, Literal

import configs
from pinstorm import suite_file, suite_load
from pinstorm.errors import UsageError
from pinstorm.suite_file import Exclude, Matrix, Run
from pinstorm.suite_values import listed, nearest, plural
from workloads import circumstance_spec, go_together, load_case, workload_spec
from workloads.load.spec import Load
from workloads.spec import Case, Planned

SHIPPED = Path(configs.__file__).parent

_SLOW_DISK_BYTES_S = 20e6
# What an emulated guest may take to start a load, and to bring its antagonists to an end.
_LOAD_S = 90.0

# What a parameter is when the suite does not give it and the workload's spec has no default: such
# a value is left out of the case, so that saying it changes no case's id.
IMPLIED: dict[str, Any] = {
    "touch": True,
    "offset_bytes": 0,
    "processes": 1,
    "force": False,
    "registered": False,
    "times": 1,
}


# Key of a [[matrix]] -> the parameter of its cases, in the order in which they vary.
PARAMETERS: dict[str, str] = {
    "access": "access",
    "touch": "touch",
    "registered": "registered",
    "force": "force",
    "mode": "mode",
    "through": "through",
    "offset": "offset_bytes",
    "processes": "processes",
    "user": "uid",
    "memlock": "memlock_bytes",
    "under": "under",
    "times": "times",
    "during": "during",
    "kill": "kill",
    "size": "size_bytes",
}


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


_APART = Exclusion((), (), "the workload says nothing about that memory")


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``[[matrix]]`` entry, checked; ``params`` are the parameters given, each a list."""

    workloads: tuple[str, ...]
    memories: tuple[str, ...]
    params: dict[str, tuple[Any, ...]]
    repeat: int
    warmup: int
    deadline_s: float
    settles: int
    remedy: bool
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
    # Whether to trace the kernel's calls; None: in the lab, not on a host.
    trace: bool | None
    entries: tuple[Entry, ...]
    loads: tuple[Load, ...] = ()

    def with_hold(self, hold_s: float) -> "Suite":
        """The same, holding that long: every case, and every load. UsageError: no load can."""
        loads = tuple(suite_load.held(load, hold_s) for load in self.loads)
        return replace(self, hold_s=hold_s, loads=loads)

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
            "trace": self.trace,
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


def name_to_give(manifest: Mapping[str, Any]) -> str:
    """What to call a suite on a command line: a shipped one by its bare name, others by path.

    ``manifest``: as of Suite.to_manifest(). A suite with the text of a shipped one is that one,
    wherever the pinstorm that ran it was installed.
    """
    origin = Path(str(manifest.get("origin") or "SUITE"))
    same = [path for path in shipped() if path.name == origin.name]
    for path in same:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if origin == path or sha256 == manifest.get("sha256"):
            return path.stem
    return str(origin)


def parse(text: str, origin: str) -> Suite:
    """Check a suite's text; ``origin`` is what errors call it, and its stem the default name."""
    file = suite_file.read(text, origin)
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
        trace=run.trace,
        entries=tuple(_entry(matrix, run, file.exclude) for matrix in file.matrix),
        loads=tuple(suite_load.load_of(load, seed=run.seed, hold_s=run.hold) for load in file.load),
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
    for load in suite.loads:
        case = load_case(load, suite.deadline_s + _making_s(load))
        if cases.setdefault(case.id, case) is not case:
            raise UsageError(
                f"suite {suite.origin} has two loads of the name {load.name}; rename one of them"
            )
    if not cases:
        raise UsageError(
            f"suite {suite.origin} expands to no case; add a [[matrix]] or [[load]] entry, "
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


def _find(path: str | Path) -> Path:
    # os.path: Path.is_file raises for what lies below a directory that may not be searched.
    if os.path.isfile(path):
        return Path(path)
    names = [file.stem for file in shipped()]
    if str(path) in names:
        return SHIPPED / f"{path}.toml"
    if os.path.isdir(path):
        raise UsageError(
            f"suite {path} is a directory; give a TOML file or one of: {listed(names)}"
        )
    near = nearest(Path(path).stem, names)
    remedy = f'did you mean "{near}"?' if near else "give a TOML file or the name of a shipped one"
    raise UsageError(f"suite {path} is not there; {remedy} (shipped: {listed(names)})")


def _entry(matrix: Matrix, run: Run, everywhere: Sequence[Exclude]) -> Entry:
    given: dict[str, tuple[Any, ...]] = {
        param: getattr(matrix, key) for key, param in PARAMETERS.items()
    }
    return Entry(
        workloads=matrix.workload,
        memories=matrix.memory,
        params={name: values for name, values in given.items() if values},
        repeat=run.repeat if matrix.repeat is None else matrix.repeat,
        warmup=run.warmup if matrix.warmup is None else matrix.warmup,
        deadline_s=run.deadline_s if matrix.deadline_s is None else matrix.deadline_s,
        settles=matrix.settles,
        remedy=matrix.remedy,
        exclude=tuple(
            Exclusion(exclude.workload, exclude.memory, exclude.reason)
            for exclude in (*matrix.exclude, *everywhere)
        ),
    )


def _making_s(load: Load) -> float:
    """What its processes and files may take to be there, emulated and on a slow disk."""
    direct = [job for job in load.jobs if job.workload.startswith("dio-")]
    files_s = sum(job.file_bytes * job.processes for job in direct) / _SLOW_DISK_BYTES_S
    return _LOAD_S + files_s


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
                settles=entry.settles,
                remedy=entry.remedy,
            )
            exclusion = next((e for e in entry.exclude if e.covers(case)), None)
            if not go_together(workload_name, memory_name):
                notes.exclude(case, _APART)
            elif exclusion is None:
                yield case
            else:
                notes.exclude(case, exclusion)


def _case_params(workload_name: str, given: dict[str, Any], notes: "_Notes") -> dict[str, Any]:
    spec = workload_spec(workload_name)
    params = dict(spec.defaults)
    for name, value in given.items():
        if name == "under" and workload_name in circumstance_spec(value).workloads:
            params[name] = value
        elif name != "size_bytes" and name not in spec.params:
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
            f"parameter {param} dropped where the workload has none: {listed(names)}"
            for param, names in self._dropped.items()
        ]
        if self._merged:
            lines.append(f"{self._merged} equal {plural(self._merged, 'case')} merged")
        for case_id in self._differing:
            lines.append(
                f"{case_id} stands in two entries with different repeat, warmup or deadline_s: "
                "those of the first hold"
            )
        for reason, cases in self._excluded.items():
            lines.append(f"{len(cases)} {plural(len(cases), 'case')} excluded: {reason}")
        return lines
