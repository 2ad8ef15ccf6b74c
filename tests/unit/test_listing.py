import json
import re
from typing import get_args

import pytest

from pinstorm import needs, suite
from pinstorm.errors import UsageError
from pinstorm.lab import kernels
from pinstorm.report import listing, plan_listing, rule_listing
from pinstorm.rules import RULES
from pinstorm.rules.rule import ANY, BYTES, PAGES, ZERO, Bound, Release, Symbol
from workloads.spec import Case, Need, Planned

UNMET = needs.Unmet(Need.RDMA_DEVICE, "no device here", "get one")


def quick() -> list[Planned]:
    return suite.plan(suite.load("quick"))[0]


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (ANY, ""),
        (ZERO, "0"),
        (PAGES, "pages"),
        (BYTES, "bytes"),
        (Bound(1, None), "at least 1"),
        (Bound("pages", "twice-pages"), "pages to 2 x pages"),
        (Bound(0, "pages"), "0 to pages"),
        (Bound(None, 3), "at most 3"),
    ],
)
def test_bounds_in_words(bound: Bound, words: str) -> None:
    assert rule_listing.bound_words(bound) == words


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [
        (None, None, "every kernel"),
        ((6, 5), None, "6.5 and later"),
        (None, (6, 3), "before 6.3"),
        ((6, 3), (6, 12), "6.3 and later, before 6.12"),
    ],
)
def test_kernels_in_words(since: Release | None, until: Release | None, words: str) -> None:
    assert rule_listing.kernel_words(since, until) == words


def test_rules_are_all_there_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    rule_listing.show_rules(as_json=False)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert [rule.name for rule in RULES if rule.name not in lines] == []
    assert text.count("\n  source   ") == len(RULES)
    rule_listing.show_rules(as_json=True)
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [
        rule.name for rule in RULES
    ]


def test_plan_of_the_quick_suite_fits(capsys: pytest.CaptureFixture[str]) -> None:
    plan = quick()
    unmet = {planned.seq: [UNMET] for planned in plan if "rdma" in planned.case.workload}
    plan_listing.show_plan(plan, unmet, as_json=False)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert {planned.case.id for planned in plan} <= {
        word for line in lines for word in line.split()
    }
    assert f"{len(plan) - len(unmet)} would run, {len(unmet)} would be skipped" in text
    assert f"  {len(unmet)} skip: rdma-device (no device here; get one)" in text
    assert "most pinned at a time: 16 MiB" in text


def test_plan_is_in_run_order_with_pins_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    plan = quick()
    plan_listing.show_plan(plan, {0: [UNMET]}, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert [case["seq"] for case in document["cases"]] == [planned.seq for planned in plan]
    assert [case["case"] for case in document["cases"]] == [planned.case.id for planned in plan]
    assert document["cases"][0]["unmet"] == [UNMET.to_json()]
    assert document["would_run"] == len(plan) - 1
    for planned, case in zip(plan, document["cases"], strict=True):
        takes_none = planned.case.workload in ("vmsplice", "rdma-register-odp")
        assert case["pins_pages"] == (0 if takes_none else planned.case.pages)


def test_expected_time_counts_holds_and_boots(capsys: pytest.CaptureFixture[str]) -> None:
    held = Case("vmsplice", "anon", {"size_bytes": 4096}, hold_s=60.0)
    assert plan_listing.expected_s([held, held], lab=False) > 120
    plan = [Planned(0, 0, held)]
    plan_listing.show_plan(plan, {}, as_json=True, lab=True)
    lab = json.loads(capsys.readouterr().out)["expected_s"]
    plan_listing.show_plan(plan, {}, as_json=True)
    assert lab >= json.loads(capsys.readouterr().out)["expected_s"] + plan_listing.LAB_BOOT_S


def test_kernels_that_were_never_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [
        kernels.Known("oldstable", None, False),
        kernels.Known("stable", "6.12.1-amd64", True),
    ]
    monkeypatch.setattr(kernels, "cached", lambda: known)
    listing.show_kernels(refresh=False, as_json=False)
    oldstable, stable = (
        line.split() for line in capsys.readouterr().out.splitlines() if "stable " in line
    )
    assert oldstable == ["oldstable", "not", "asked", "yet", "no"]
    assert stable == ["stable", "6.12.1-amd64", "yes"]
    listing.show_kernels(refresh=False, as_json=True)
    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "oldstable",
        "release": None,
        "cached": False,
    }


def test_symbols_of_bounds_are_all_explained() -> None:
    explained = {symbol for symbol, _ in rule_listing.SYMBOL_WORDS}
    assert set(get_args(Symbol)) - explained == {"twice-pages", "pages-and-attempts"}


def test_share_of_observed_rules_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rule_listing.show_rules(as_json=False)
    first = " ".join(capsys.readouterr().out.splitlines()[:2])
    observed = sum(rule.observed for rule in RULES)
    assert first.startswith(f"{len(RULES)} rules: ")
    assert f"{observed} observed (" in first
    counts = [int(number) for number in re.findall(r"(\d+) (?:cite|a doc|the s|obs)", first)]
    assert sum(counts) == len(RULES)


def test_diff_shows_each_rule_once_with_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    rule_listing.show_diff(("6.1", "7"), "quick", as_json=True)
    changes = json.loads(capsys.readouterr().out)
    assert all(change["from"] != change["to"] and change["sources"] for change in changes)
    written = [change for change in changes if change["rule_to"] == "longterm-write-file"]
    cells = {change["case"] for change in written if change["from"] == ["ok"]}
    assert cells == {f"rdma-register/ext4-shared/rw/{size}" for size in ("64KiB", "16MiB")}

    rule_listing.show_diff(("6.1", "7"), "quick", as_json=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert f"6.1 to 7: {len(changes)} cases change their outcome" in text
    shown = [line.strip() for line in text.splitlines()]
    assert [shown.count(change["case"]) for change in changes] == [1] * len(changes)
    (group,) = [part for part in text.split("\n\n") if "6.1 ok  ->  7 EFAULT" in part]
    assert group.count("rule    longterm-write-file (6.5 and later)") == 1
    assert "8ac268436e6d" in group
    assert "are skipped on 6.1, which lacks what the device must have" in text


def test_skipped_cases_of_one_kernel_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    rule_listing.show_diff(("6.1", "6.1"), "quick", as_json=False)
    assert capsys.readouterr().out.count("skipped on 6.1,") == 1


def test_diff_of_a_kernel_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    rule_listing.show_diff(("7.2", "7.2"), "quick", as_json=True)
    assert json.loads(capsys.readouterr().out) == []
    with pytest.raises(UsageError, match="neither a version nor a kernel"):
        rule_listing.show_diff(("7.2", "seven"), "quick", as_json=True)
