"""Which outcomes the rules of today say a case has on each side, and which rules change them.

The rules are asked for the machine that a record describes, as pinstorm.prediction does; of a case
without a rule (a workload of somebody's own) what its record kept counts.
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinstorm import oracle, prediction, verdict
from pinstorm.bundle import JOURNAL
from pinstorm.compare.pairing import RAN, Paired, Side
from pinstorm.manifest_form import part
from pinstorm.oracle import AmbiguousRules, NoRule
from workloads.spec import Case

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Foretold:
    """The outcomes allowed on each side; the rules that make them differ, or that stand behind."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    rules: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether the outcome must be another one: each side has only one."""
        return len(self.before) == len(self.after) == 1 and self.before != self.after


@dataclass(frozen=True, slots=True)
class _Allowed:
    outcomes: tuple[str, ...]
    rule: str
    source: str
    record: Record


def foretell(paired: Paired, changed: Collection[int]) -> dict[int, Foretold]:
    """By index. Between equal kernels only for ``changed``: no rule says that others do."""
    other_kernel = _versions(paired.a) != _versions(paired.b)
    wanted = range(len(paired.labels)) if other_kernel and not paired.by_kernel else changed
    if not wanted:
        return {}
    a, b = (_allowed(paired, side, wanted) for side in paired.sides)
    return {index: _foretold(a[index], b[index]) for index in sorted(a.keys() & b.keys())}


def _versions(side: Side) -> set[tuple[str, str]]:
    """A kernel is its release and how it was built."""
    found = set()
    for manifest in side.manifests.values():
        kernel = part(manifest, "kernel")
        found.add((str(kernel.get("release")), str(kernel.get("version"))))
    return found


def _allowed(paired: Paired, side: Side, wanted: Collection[int]) -> dict[int, _Allowed]:
    """Of each wanted case what the rules say of its first record on that side, best one that ran.

    What could not be run for want of a capability of the device has no outcome to be foretold.
    """
    names = {(paired.kernels[index], paired.cases[index]): index for index in wanted}
    ran: dict[int, Record] = {}
    others: dict[int, Record] = {}
    for path in side.paths.values():
        for record in _records(path):
            on = str(record.get("kernel") or "") if paired.by_kernel else ""
            index = names.get((on, str(record.get("case"))))
            if index is not None:
                (ran if record["verdict"] in RAN else others).setdefault(index, record)
            if len(ran) == len(names):
                break
        if len(ran.keys() | others.keys()) == len(names):
            break
    found = {}
    for index, record in {**others, **ran}.items():
        if (allowed := _expected(record)) is not None:
            found[index] = allowed
    return found


def _records(path: Path) -> Iterator[Record]:
    """The records as the journal has them: the tables lack what rules ask of the machine."""
    with contextlib.suppress(OSError), open(path / JOURNAL, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):  # torn, or nobody's
                record = json.loads(line)
                if isinstance(record, dict) and "verdict" in record:
                    yield record


def _expected(record: Record) -> _Allowed | None:
    try:
        case = Case(record["workload"], record["memory"], record["params"])
        machine, version = verdict.machine_of(record), record.get("kernel_version") or ""
        if record["verdict"] not in RAN and prediction.lacks_capability(
            case, record["kernel"], machine
        ):
            return None
        said = oracle.expectation(case, record["kernel"], machine, kernel_version=version)
        return _Allowed(said.outcomes, said.rule, said.source, record)
    except (NoRule, AmbiguousRules, KeyError, ValueError, TypeError):
        kept = record.get("expected") or {}
    if not kept.get("outcomes"):
        return None
    rule, source = (str(kept.get(name) or "") for name in ("rule", "source"))
    return _Allowed(tuple(kept["outcomes"]), rule, source, record)


def _foretold(a: _Allowed, b: _Allowed) -> Foretold:
    before, after = (tuple(sorted(one.outcomes)) for one in (a, b))
    if before != after and (named := _steps(a.record, b.record)):
        return Foretold(before, after, *named)
    rules = tuple(dict.fromkeys(name for name in (a.rule, b.rule) if name))
    sources = tuple(dict.fromkeys(name for name in (a.source, b.source) if name))
    return Foretold(before, after, rules, sources)


def _steps(a: Record, b: Record) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The rules at whose releases the outcome changes, and their sources; None without one."""
    try:
        case = Case(a["workload"], a["memory"], a["params"])
        releases = [
            oracle.parse_kernel(one["kernel"], one.get("kernel_version") or "").release
            for one in (a, b)
        ]
        names = [".".join(map(str, release)) for release in releases]
        steps = prediction.steps(case, names[0], names[1], verdict.machine_of(a))
    except (NoRule, AmbiguousRules, KeyError, ValueError):
        return None
    rules = {step.rule.name: step.rule.source for step in steps}
    return (tuple(rules), tuple(dict.fromkeys(rules.values()))) if rules else None
