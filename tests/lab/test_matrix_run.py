"""configs/matrix.toml on three kernels: each cell judged, each pin class seen at its call site."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinstorm import oracle, prediction, suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from pinstorm.outcome import exit_code
from pinstorm.report import table

LEAST_PASSES = 250
# Those that differ most; the one between them takes four minutes more.
KERNELS = ("oldstable", pytest.param("stable", marks=pytest.mark.slow), "backports")
PAIRS = [
    ("oldstable", "backports"),
    *(
        pytest.param(pair, marks=pytest.mark.slow)
        for pair in (("oldstable", "stable"), ("stable", "backports"))
    ),
]

Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Records]:
    """The records of the kernels that have run so far, by the lab's name."""
    return {}


@pytest.mark.parametrize("name", KERNELS)
def test_the_matrix_passes(
    name: str,
    kernel_named: Callable[[str], Kernel],
    lab_tmp: Path,
    bundles: dict[str, Records],
) -> None:
    loaded = suite.load("matrix")
    plan, _ = suite.plan(loaded)
    done = lab.run_kernel(loaded, plan, kernel_named(name), lab_tmp, None, lambda line: None, print)
    bundles[name] = done.records
    assert len(done.records) == len(plan)
    others = [r for r in done.records if r["verdict"] not in ("pass", "skip")]
    assert not others, [(r["case"], r["verdict"], r["reason"], r.get("expected")) for r in others]
    passed = [record for record in done.records if record["verdict"] == "pass"]
    assert len(passed) >= LEAST_PASSES
    assert exit_code(done.records) == 0
    # a guest traces: what was seen is there of every case that came as far as its acquire
    untraced = [record for record in passed if record["gup_calls"] is None]
    assert all(record["failed_phase"] == "prepare" for record in untraced)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_rules_say_what_changes_between_kernels(
    pair: tuple[str, str], bundles: dict[str, Records]
) -> None:
    if not set(pair) <= set(bundles):
        pytest.skip("the matrix has not run on both")
    before, after = (bundles[name] for name in pair)
    difference = prediction.compare(before, after)
    assert difference.equal, (difference.unsaid, difference.unseen)
    # the comparison had something to compare
    assert difference.agreed


def test_a_wrong_rule_turns_the_run_red(
    backports: Kernel, lab_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = suite.load("matrix")
    case = "rdma-register/ext4-shared/rw/64KiB"
    plan, _ = suite.plan(loaded, only_glob=case)
    done = lab.run_kernel(
        loaded, plan, backports, lab_tmp, case, lambda line: None, print,
        include=("broken_rules",),
    )  # fmt: skip
    (record,) = done.records
    assert (record["verdict"], record["reason"]) == ("fail", "outcome")
    assert exit_code(done.records) == 1
    capsys.readouterr()
    table.show(done.records, emulated=True, wide=False, command="pinstorm lab run matrix")
    said = " ".join(capsys.readouterr().out.split())  # long lines are folded
    assert "ibv_reg_mr gave EFAULT, expected ok" in said
    assert "rule: longterm-write-file" in said
    assert "disallow FOLL_LONGTERM GUP-nonfast writing to file-backed mappings" in said
    assert f"pinstorm lab run matrix --only {shlex.quote(case)}" in said


def test_the_rules_themselves_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """6.1 and 7 do not say the same of every case, or the comparisons above prove nothing."""
    cases = suite.expand(suite.load("matrix")).cases
    changed = [
        case
        for case in cases
        if oracle.expectation(case, "6.1").outcomes != oracle.expectation(case, "7.2").outcomes
    ]
    assert len(changed) > 10
