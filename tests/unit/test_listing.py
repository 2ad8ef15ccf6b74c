import json

import pytest

from pinstorm import needs, suite
from pinstorm.lab import kernels
from pinstorm.report import listing
from pinstorm.rules import ANY, BYTES, PAGES, RULES, SOME, ZERO, Bound, Release
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
        (SOME, "at least 1"),
        (Bound("pages", "twice-pages"), "pages to 2 x pages"),
        (Bound(0, "pages"), "0 to pages"),
        (Bound(None, 3), "at most 3"),
    ],
)
def test_bounds_in_words(bound: Bound, words: str) -> None:
    assert listing.bound_words(bound) == words


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
    assert listing.kernel_words(since, until) == words


def test_rules_are_all_there_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show_rules(as_json=False)
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert [rule.name for rule in RULES if rule.name not in lines] == []
    assert text.count("\n  source   ") == len(RULES)
    listing.show_rules(as_json=True)
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [
        rule.name for rule in RULES
    ]


def test_plan_of_the_quick_suite_fits(capsys: pytest.CaptureFixture[str]) -> None:
    plan = quick()
    unmet = {planned.seq: [UNMET] for planned in plan if "rdma" in planned.case.workload}
    listing.show_plan(plan, unmet, as_json=False)
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
    listing.show_plan(plan, {0: [UNMET]}, as_json=True)
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
    assert listing.expected_s([held, held], lab=False) > 120
    plan = [Planned(0, 0, held)]
    listing.show_plan(plan, {}, as_json=True, lab=True)
    lab = json.loads(capsys.readouterr().out)["expected_s"]
    listing.show_plan(plan, {}, as_json=True)
    assert lab >= json.loads(capsys.readouterr().out)["expected_s"] + listing.LAB_BOOT_S


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
