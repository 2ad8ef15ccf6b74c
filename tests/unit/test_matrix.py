"""The matrix is whole, and the rules say one thing of each of its cells on every lab kernel."""

from collections import Counter

import pytest

from pinstorm import oracle, suite
from pinstorm.rules import RULES
from workloads import MEMORY, WORKLOADS, go_together
from workloads.spec import Case, Need

KERNELS = ("6.1.170", "6.12.113", "7.2.11")
# Under 5 % of the cells may have more than one outcome, and of the rules no better source than a
# measurement.
SHARE = 0.05

MATRIX = suite.load("matrix")
CASES = suite.expand(MATRIX).cases


def test_every_pair_is_there_or_excluded_for_one_reason() -> None:
    present = {(case.workload, case.memory) for case in CASES}
    excluded: dict[tuple[str, str], set[str]] = {}
    for entry in MATRIX.entries:
        for workload in entry.workloads:
            for memory in entry.memories:
                if not go_together(workload, memory):
                    continue
                case = Case(workload, memory, {"size_bytes": 65536})
                for exclusion in entry.exclude:
                    if exclusion.covers(case):
                        excluded.setdefault((workload, memory), set()).add(exclusion.reason)
    pairs = {
        (workload.name, memory.name)
        for workload in WORKLOADS
        for memory in MEMORY
        # what could crash a machine has a suite of its own: configs/overflow.toml
        if go_together(workload.name, memory.name) and Need.DESTRUCTIVE not in workload.needs
    }
    assert present | set(excluded) == pairs
    assert not present & set(excluded)
    assert all(len(reasons) == 1 for reasons in excluded.values())


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_rule_speaks_of_every_cell(kernel: str) -> None:
    wrong = []
    for case in CASES:
        try:
            oracle.expectation(case, kernel)
        except (oracle.NoRule, oracle.AmbiguousRules) as error:
            wrong.append(f"{case.id}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kernel", KERNELS)
def test_few_cells_have_more_than_one_outcome(kernel: str) -> None:
    sets = [case.id for case in CASES if len(oracle.expectation(case, kernel).outcomes) > 1]
    assert len(sets) <= SHARE * len(CASES), sets


def test_few_rules_rest_on_a_measurement_alone() -> None:
    kinds = Counter(rule.observed for rule in RULES)
    assert kinds[True] <= SHARE * len(RULES)
