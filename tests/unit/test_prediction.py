"""What the rules say changes between kernels, against what was seen, in both directions."""

from typing import Any

import pytest

from pinstorm import prediction
from pinstorm.errors import UsageError
from workloads.spec import Case

SIZE = {"size_bytes": 65536}
FILE = Case("rdma-register", "ext4-shared", {**SIZE, "access": "rw"})
ANON = Case("rdma-register", "anon", {**SIZE, "access": "rw"})
ODP = Case("rdma-register-odp", "anon", {**SIZE, "access": "rw"})
FORCED = Case("rdma-register-odp", "anon", {**SIZE, "access": "rw", "force": True})
# GUP-fast may take the copies, or the slow path refuse them.
COPIED = Case("rdma-register", "dax-private-cowed", {**SIZE, "access": "rw"})


def record(case: Case, outcome: str, kernel: str, **more: Any) -> dict[str, Any]:
    return {
        "case": case.id,
        "workload": case.workload,
        "memory": case.memory,
        "params": dict(case.params),
        "kernel": kernel,
        "outcome": outcome,
        "verdict": "pass",
        "uid": 0,
        "driver": "rxe",
        **more,
    }


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("7", "7.1000000"),
        ("6.1", "6.1.1000000"),
        ("6.12.113+deb13-amd64", "6.12.113+deb13-amd64"),
        ("6.1.0-54-amd64", "6.1.1000000"),
        ("oldstable", "6.1.1000000"),
    ],
)
def test_names_of_kernels(name: str, release: str) -> None:
    assert prediction.release_named(name, {"oldstable": "6.1.0-54-amd64"}) == release


def test_a_kernel_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="'oldest' is neither a version nor a kernel"):
        prediction.release_named("oldest", {"oldstable": "6.1.0-54-amd64"})


def test_the_rule_that_begins_is_the_one_that_says_so() -> None:
    (change,) = prediction.predicted_changes([ANON, FILE], "6.1.150", "7.2")
    assert (change.case, change.before, change.after) == (FILE.id, ("ok",), ("EFAULT",))
    assert change.rules == ("longterm", "longterm-write-file")
    assert "v6.5" in change.sources[1]
    (step,) = prediction.steps(FILE, "6.1.150", "7.2")
    assert (step.release, step.rule.name) == ((6, 5), "longterm-write-file")
    assert (step.before, step.after) == (("ok",), ("EFAULT",))
    assert not prediction.predicted_changes([ANON, FILE], "6.12", "7.2")


def test_every_change_has_a_step_whichever_way_it_is_looked_at() -> None:
    for case in (FILE, FORCED):
        forward = prediction.steps(case, "6.1", "7.2")
        assert forward == prediction.steps(case, "7.2", "6.1")
        assert forward[-1].after != forward[0].before
    # EINVAL, from 6.2 EOPNOTSUPP, from 6.15 ok
    assert [step.release for step in prediction.steps(FORCED, "6.1", "7.2")] == [(6, 2), (6, 15)]


def test_what_a_kernel_would_skip_is_no_change() -> None:
    assert prediction.lacks_capability(ODP, "6.1")
    assert not prediction.lacks_capability(ODP, "7.2")
    assert not prediction.lacks_capability(FORCED, "6.1")
    changes = prediction.predicted_changes([ODP, FORCED], "6.1", "7.2")
    assert [change.case for change in changes] == [FORCED.id]


def test_prediction_and_observation_agree() -> None:
    old = [record(FILE, "ok", "6.1.150"), record(ANON, "ok", "6.1.150")]
    new = [record(FILE, "EFAULT", "7.2.1"), record(ANON, "ok", "7.2.1")]
    assert prediction.observed_changes(old, new) == {FILE.id: ("ok", "EFAULT")}
    compared = prediction.compare(old, new)
    assert compared.equal
    assert compared.agreed == [FILE.id]


def test_a_change_that_was_said_and_not_seen() -> None:
    compared = prediction.compare(
        [record(FILE, "ok", "6.1.150")], [record(FILE, "ok", "7.2.1", verdict="fail")]
    )
    assert not compared.equal
    assert (compared.agreed, compared.unseen, compared.unsaid) == ([], [FILE.id], [])


@pytest.mark.parametrize(("case", "outcome"), [(ANON, "ENOMEM"), (FILE, "EPERM")])
def test_a_change_that_was_seen_and_not_said(case: Case, outcome: str) -> None:
    compared = prediction.compare(
        [record(case, "ok", "6.1.150")], [record(case, outcome, "7.2.1", verdict="fail")]
    )
    assert not compared.equal
    assert compared.unsaid == [case.id]


def test_cells_whose_rule_is_a_set_prove_nothing() -> None:
    compared = prediction.compare(
        [record(COPIED, "ok", "6.12.1")], [record(COPIED, "EOPNOTSUPP", "7.2.1")]
    )
    assert compared.equal
    assert compared.sets == [COPIED.id]


def test_only_cases_that_ran_on_both_count() -> None:
    old = [record(ODP, "EINVAL", "6.1.150", verdict="skip"), record(FILE, "ok", "6.1.150")]
    new = [record(ODP, "ok", "7.2.1")]
    assert prediction.observed_changes(old, new) == {}
    assert prediction.compare(old, new).equal
