"""docs/cases.md out of a lab run over two kernels."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_bundles import made_of

from pinstorm.bundle import Bundle
from pinstorm.report import cases, reason
from workloads import WORKLOADS

OLD, NEW = "6.1.0-54-amd64", "7.2.11+deb13-amd64"
SIZE = {"size_bytes": 65536}


def seen(function: str, *flags: str, via: str | None = None) -> dict[str, Any]:
    call = {"function": function, "flags": list(flags), "calls": 1, "phase": "acquire"}
    return {**call, "via": via, "by": "process"}


def ran(kernel: str, case: str, calls: Any, **more: Any) -> dict[str, Any]:
    workload, memory = case.split("/")[:2]
    params = {**SIZE, **({"access": "rw"} if workload == "rdma-register" else {})}
    return {
        "case": case,
        "workload": workload,
        "memory": memory,
        "params": params,
        "verdict": "pass",
        "outcome": "ok",
        "kernel": kernel,
        "driver": "rxe",
        "target_fs": "ext4",
        "gup_calls": calls,
        "expected": {"rule": "longterm", "outcomes": ["ok"]},
        **more,
    }


def two_kernels() -> list[Bundle]:
    file = "rdma-register/ext4-shared/rw/64KiB"
    register = [
        seen("pin_user_pages_fast", "FOLL_WRITE", "FOLL_LONGTERM"),
        seen("gup_fast_fallback", "FOLL_PIN", "FOLL_WRITE", via="pin_user_pages_fast"),
    ]
    get = [seen("get_user_pages_fast", "FOLL_WRITE")]
    pin = [seen("pin_user_pages_fast", "FOLL_WRITE")]
    none = {"rule": "dio-get", "outcomes": ["ok"], "acquired": 0}
    some = {"rule": "dio-pin", "outcomes": ["ok"], "acquired": 16}
    old = [
        ran(OLD, file, register),
        ran(OLD, "dio-read/anon/64KiB", get, expected=none),
        ran(OLD, "vmsplice/anon/64KiB", None),
    ]
    new = [
        ran(NEW, file, register, outcome="EFAULT"),
        ran(NEW, "dio-read/anon/64KiB", pin, expected=some),
        ran(NEW, "vmsplice/anon/64KiB", []),
    ]
    return [made_of(*new, kernel=NEW), made_of(*old, kernel=OLD)]


def line_of(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{start}")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def table(text: str, title: str) -> str:
    return text.split(f"## {title}")[1].split("\n## ")[0]


def test_call_sites_of_each_kernel_oldest_first() -> None:
    text = cases.text(two_kernels())
    first = text.splitlines()[0]
    assert "pinstorm report RUN --format cases" in first
    assert "pinstorm lab run few --kernel all" in first
    direct = table(text, "CASE 1")
    assert f"| workload | {OLD} | {NEW} |" in direct
    assert line_of(direct, "dio-read") == [
        "`dio-read`",
        "`get_user_pages_fast` WRITE",
        "`pin_user_pages_fast` WRITE",
    ]
    register = line_of(table(text, "CASE 2"), "rdma-register")
    assert register[1:] == ["`pin_user_pages_fast` LONGTERM WRITE → PIN"] * 2
    assert line_of(table(text, "CASE 4"), "vmsplice")[1:] == ["not traced", "nothing called"]


def test_what_was_pinned_in_prepare_is_told() -> None:
    params = {**SIZE, "registered": True}
    case = "dio-read-uring/anon/64KiB/registered=true"
    text = cases.text([made_of(ran(NEW, case, [], params=params), kernel=NEW)])
    line = line_of(table(text, "CASE 2"), "dio-read-uring registered")
    assert line[1:] == ["nothing called (pinned in prepare)"]


def test_calls_for_other_reasons_than_the_case_are_left_out() -> None:
    futex = {**seen("get_user_pages_fast", "FOLL_WRITE"), "caller": "get_futex_key"}
    behind = seen("internal_get_user_pages_fast", "FOLL_GET", via="get_user_pages_fast")
    calls = [futex, {**behind, "caller": "get_futex_key"}]
    text = cases.text([made_of(ran(NEW, "vmsplice/anon/64KiB", calls), kernel=NEW)])
    assert line_of(table(text, "CASE 4"), "vmsplice")[1:] == ["nothing called"]


def test_differences_with_the_rule_that_says_so() -> None:
    text = cases.text(two_kernels())
    outcomes = line_of(table(text, "Outcomes that differ"), "rdma-register")
    assert outcomes[1:] == ["ok", "EFAULT", "longterm-write-file"]
    figures = line_of(table(text, "Figures that differ"), "dio-read")
    assert figures[1:] == ["acquired 0 pages", "acquired 16 pages", "dio-get, dio-pin"]
    rules = table(text, "The rules")
    assert "v6.5" in line_of(rules, "longterm-write-file")[2]
    assert "rdma-memlock" not in rules


def test_a_difference_that_no_rule_says_is_told() -> None:
    bundles = two_kernels()
    bundles[0].records[2]["outcome"] = "EPERM"
    outcomes = table(cases.text(bundles), "Outcomes that differ")
    assert line_of(outcomes, "vmsplice")[1:] == ["ok", "EPERM", "no rule says so"]


def test_deterministic() -> None:
    one, other = two_kernels()
    shuffled = made_of(*reversed(one.records), kernel=NEW)
    assert cases.text([one, other]) == cases.text([other, shuffled])


def test_every_workload_belongs_to_a_case() -> None:
    numbers = {spec.name: cases.case_number(spec.name, spec.defaults) for spec in WORKLOADS}
    assert set(numbers.values()) == set(range(6))
    assert numbers["rdma-register"] == numbers["io-uring-register"] == 2
    assert numbers["rdma-register-odp"] == 3
    assert numbers["vmsplice"] == numbers["msg-zerocopy"] == 4
    assert numbers["process-vm-read"] == 5
    assert cases.case_number("dio-read-uring", {"registered": True}) == 2
    assert cases.case_number("dio-read-uring", {}) == numbers["dio-read"] == 1


def test_a_lab_runs_parent_gives_all_its_bundles(tmp_path: Path) -> None:
    entries = []
    for bundle in two_kernels():
        name = reason.kernel_of(bundle)
        (tmp_path / name).mkdir()
        manifest = {"schema": 1, **bundle.manifest}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        lines = [json.dumps({"seq": n, **r}) + "\n" for n, r in enumerate(bundle.records)]
        (tmp_path / name / "journal.jsonl").write_text("".join(lines))
        entries.append({"kernel": name, "path": name})
    (tmp_path / "index.json").write_text(json.dumps({"schema": 1, "bundles": entries}))
    assert [reason.kernel_of(one) for one in reason.bundles(tmp_path)] == [NEW, OLD]
    assert len(reason.bundles(tmp_path / OLD)) == 1


@pytest.mark.parametrize("words", ["a|b"])
def test_cells_do_not_break_the_table(words: str) -> None:
    bundle = made_of(ran(NEW, "vmsplice/anon/64KiB", [seen(words)]), kernel=NEW)
    assert "`a\\|b`" in cases.text([bundle])


def test_a_load_has_no_cell() -> None:
    old, new = two_kernels()
    load = {**new.records[0], "case": "load/x", "workload": "load", "memory": "jobs"}
    new.contents.records.append(load)
    text = cases.text([old, new])
    assert "load/x" not in text
    assert text == cases.text(two_kernels())


def test_a_workload_of_somebodys_own_has_no_cell() -> None:
    bundles = two_kernels()
    own = ran(OLD, "their-own/anon/64KiB", None)
    bundles[0].contents.records.extend([own, {"case": "x/y", "verdict": "pass"}])
    assert cases.text(bundles) == cases.text(two_kernels())
