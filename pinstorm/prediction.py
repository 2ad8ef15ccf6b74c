"""Which outcomes change between two kernels: what the rules say, and what two runs saw.

Pure functions. A cell whose rule allows several outcomes (on either kernel) proves nothing about
the other side, and is kept apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pinstorm import oracle, verdict
from pinstorm.errors import UsageError
from pinstorm.oracle import Expectation, Machine, NoRule
from pinstorm.rules import RULES
from pinstorm.rules.rule import Check, Release, Rule
from workloads import workload_spec
from workloads.spec import CAPABILITIES, Case

# Later than any release of its kind.
_NEWEST: Final = 10**6
# Verdicts of cases that ran to an outcome of their own.
_RAN: Final = frozenset({"pass", "fail"})


@dataclass(frozen=True, slots=True)
class Change:
    """One case whose outcome differs between kernel ``a`` and kernel ``b``, and which rules say so.

    ``rules``: one or two names, as one rule ends at ``b`` or another begins there; their sources.
    """

    case: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    rules: tuple[str, str]
    sources: tuple[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "from": list(self.before),
            "to": list(self.after),
            "rule_from": self.rules[0],
            "rule_to": self.rules[1],
            "sources": list(dict.fromkeys(self.sources)),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Prediction against observation over the cases that ran on both kernels.

    ``agreed``: changes that were said and seen; ``unseen``: said, not seen; ``unsaid``: seen, not
    said, or seen otherwise than said; ``sets``: cases whose rule is a set, which say nothing.
    """

    agreed: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the two say the same, in both directions."""
        return not self.unseen and not self.unsaid


def release_named(name: str, known: Mapping[str, str] | None = None) -> str:
    """A kernel release that rules can be looked up for: ``6.1``, ``7``, a release, a lab's name.

    ``known``: releases by the lab's names. A name without a patch level stands for the newest of
    its kind, as Debian's 6.1.0-54 is one of the newest 6.1.y. Raises UsageError.
    """
    release = (known or {}).get(name, name)
    if release.isdigit():
        return f"{release}.{_NEWEST}"
    try:
        kernel = oracle.parse_kernel(release)
    except ValueError:
        raise UsageError(
            f"kernel {name!r} is neither a version nor a kernel that the lab has fetched: give "
            "6.1, 7, a release, or a name of pinstorm lab kernels"
        ) from None
    if kernel.vendor or len(kernel.release) > 2:
        return release
    return ".".join(map(str, (*kernel.release, _NEWEST)))


def expectations(
    cases: Iterable[Case],
    release: str,
    machine: Machine | None = None,
    *,
    version: str = "",
    rules: Iterable[Rule] = RULES,
) -> dict[str, Expectation]:
    """What the rules say of each case on a kernel; cases without a rule are left out."""
    found, rules = {}, tuple(rules)
    for case in cases:
        try:
            found[case.id] = oracle.expectation(
                case, release, machine, kernel_version=version, rules=rules
            )
        except NoRule:
            continue
    return found


def lacks_capability(
    case: Case, release: str, machine: Machine | None = None, rules: Iterable[Rule] = RULES
) -> bool:
    """Whether the rules say that the device's driver cannot do on that kernel what a case needs.

    Such a case is skipped; with ``force`` it runs, as a negative test.
    """
    if case.params.get("force") or CAPABILITIES.isdisjoint(workload_spec(case.workload).needs):
        return False
    try:
        number = oracle.parse_kernel(release).release
        rule = oracle.find_rule(oracle.facts(case, machine), number, rules)
    except NoRule:
        return False
    return rule.check == Check.ARGUMENTS and "driver" in rule.when and "ok" not in rule.outcomes


def predicted_changes(
    cases: Sequence[Case],
    release_a: str,
    release_b: str,
    machine: Machine | None = None,
    *,
    rules: Iterable[Rule] = RULES,
) -> list[Change]:
    """The cases whose outcomes the rules say change from one kernel to the other, in order.

    A case that one of them would skip, for want of a capability of the device, is not among them.
    """
    rules = tuple(rules)
    cases = [
        case
        for case in cases
        if not any(lacks_capability(case, name, machine, rules) for name in (release_a, release_b))
    ]
    one = expectations(cases, release_a, machine, rules=rules)
    other = expectations(cases, release_b, machine, rules=rules)
    return changes_between(one, other)


def changes_between(
    one: Mapping[str, Expectation], other: Mapping[str, Expectation]
) -> list[Change]:
    """The cases of both whose allowed outcomes are not the same."""
    return [
        Change(
            case,
            before.outcomes,
            other[case].outcomes,
            (before.rule, other[case].rule),
            (before.source, other[case].source),
        )
        for case, before in one.items()
        if case in other and set(before.outcomes) != set(other[case].outcomes)
    ]


@dataclass(frozen=True, slots=True)
class Step:
    """A release at which the outcomes of a case change, and the rule that says so."""

    release: Release
    rule: Rule
    before: tuple[str, ...]
    after: tuple[str, ...]


def steps(
    case: Case,
    release_a: str,
    release_b: str,
    machine: Machine | None = None,
    *,
    rules: Iterable[Rule] = RULES,
) -> list[Step]:
    """How the outcomes of a case came to change between two kernels, release by release.

    The rule of a step is the one that begins there, or else the one that ends.
    """
    rules = tuple(rules)
    known = oracle.facts(case, machine)
    first, last = (oracle.parse_kernel(name).release for name in (release_a, release_b))
    if first > last:
        first, last = last, first
    bounds = {bound for rule in rules for bound in (rule.since, rule.until) if bound}
    rule, found = oracle.find_rule(known, first, rules), []
    for release in sorted(bound for bound in bounds if first < bound <= last):
        new = oracle.find_rule(known, release, rules)
        if set(new.outcomes) != set(rule.outcomes):
            says = rule if rule.until == release and new.since != release else new
            found.append(Step(release, says, rule.outcomes, new.outcomes))
        rule = new
    return found


def observed_changes(
    records_a: Iterable[Mapping[str, Any]], records_b: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Case -> the outcomes seen, where they differ; of the cases that ran on both kernels."""
    one, other = _outcomes(records_a), _outcomes(records_b)
    return {
        case: (outcome, other[case])
        for case, outcome in one.items()
        if case in other and outcome != other[case]
    }


def compare(
    records_a: Sequence[Mapping[str, Any]], records_b: Sequence[Mapping[str, Any]]
) -> Comparison:
    """Whether the rules predict the changes between two kernels' records, in both directions.

    The rules of today are asked, for the machine that each record describes.
    """
    predicted = {change.case: change for change in recorded_changes(records_a, records_b)}
    seen, sets = observed_changes(records_a, records_b), _sets(records_a, records_b)
    result = Comparison(sets=sorted(sets))
    for case in sorted((predicted.keys() | seen.keys()) - sets):
        change = predicted.get(case)
        said = None if change is None else (change.before[0], change.after[0])
        if said == seen.get(case):
            result.agreed.append(case)
        elif case not in seen:
            result.unseen.append(case)
        else:
            result.unsaid.append(case)
    return result


def recorded_changes(
    records_a: Iterable[Mapping[str, Any]], records_b: Iterable[Mapping[str, Any]]
) -> list[Change]:
    """Predicted changes for the cases that ran on both kernels, on the machines they ran on."""
    return changes_between(_expected(records_a), _expected(records_b))


def _outcomes(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {str(r["case"]): str(r["outcome"]) for r in records if r["verdict"] in _RAN}


def _expected(records: Iterable[Mapping[str, Any]]) -> dict[str, Expectation]:
    """What the rules of today say of each record that ran, on the machine that it describes."""
    found: dict[str, Expectation] = {}
    for record in records:
        if record["verdict"] in _RAN:
            case = Case(record["workload"], record["memory"], record["params"])
            machine, version = verdict.machine_of(record), record.get("kernel_version") or ""
            found |= expectations([case], record["kernel"], machine, version=version)
    return found


def _sets(*runs: Iterable[Mapping[str, Any]]) -> set[str]:
    return {
        case
        for records in runs
        for case, expected in _expected(records).items()
        if len(expected.outcomes) > 1
    }
