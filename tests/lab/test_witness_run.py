"""The witness on real kernels: what GUP is seen to be called with, and that nothing is left."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import guest_script
import pytest

import workloads
from pinstorm import bundle, suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from workloads.spec import Case, Planned

SMALL = {"size_bytes": 65536}
PAGES = 16


def numbered(*cases: Case) -> list[Planned]:
    return [Planned(seq, 0, case) for seq, case in enumerate(cases)]


@pytest.fixture
def quick() -> suite.Suite:
    return suite.load("quick")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    workloads.include("faulty_witness")
    return ("faulty_witness",)


def entry_points(record: dict[str, Any]) -> dict[str, set[str]]:
    calls = [call for call in record["gup_calls"] if call["via"] is None]
    return {call["function"]: set(call["flags"]) for call in calls}


def behind(record: dict[str, Any]) -> list[set[str]]:
    return [set(call["flags"]) for call in record["gup_calls"] if call["via"] is not None]


@pytest.mark.parametrize(
    "name", ["backports", "oldstable", pytest.param("stable", marks=pytest.mark.slow)]
)
def test_pin_classes_are_seen_at_their_call_sites(
    name: str,
    kernel_named: Callable[[str], Kernel],
    quick: suite.Suite,
    faulty: tuple[str, ...],
    lab_tmp: Path,
) -> None:
    """CASE 1, 2, 4 and 5 of pin_user_pages.rst, and a workload that claims what is not so."""
    kernel = kernel_named(name)
    plan = numbered(
        Case("dio-read", "anon", SMALL, repeat=1),
        Case("rdma-register", "anon", {"access": "rw", **SMALL}, repeat=1),
        Case("rdma-register", "anon", {"access": "ro", **SMALL}, repeat=1),
        Case("rdma-register-odp", "anon-untouched", {"access": "rw", **SMALL}, repeat=1),
        Case("vmsplice", "anon", SMALL, repeat=1),
        Case("process-vm-write", "anon", SMALL, repeat=1),
        Case("gets-but-says-it-pins", "anon", SMALL, repeat=1),
        # 6.1 hands a direct write to threads of io_uring, which no fork event announces.
        Case("dio-write-uring", "anon", {"size_bytes": 16 << 20}, repeat=1),
    )
    done = lab.run_kernel(quick, plan, kernel, lab_tmp, None, lambda line: None, print, faulty)
    read, rdma, read_only, on_demand, splice, page_data, claims, ring = sorted(
        done.records, key=lambda record: int(record["seq"])
    )
    old = kernel.release.startswith("6.1.")

    direct = entry_points(read)
    assert direct == {("get" if old else "pin") + "_user_pages_fast": {"FOLL_WRITE"}}
    assert all(("FOLL_GET" if old else "FOLL_PIN") in flags for flags in behind(read))
    assert entry_points(rdma) == {"pin_user_pages_fast": {"FOLL_WRITE", "FOLL_LONGTERM"}}
    assert all({"FOLL_PIN", "FOLL_LONGTERM"} <= flags for flags in behind(rdma))
    forced = {"FOLL_WRITE", "FOLL_FORCE"} if old else set()
    assert entry_points(read_only) == {"pin_user_pages_fast": {"FOLL_LONGTERM", *forced}}
    assert entry_points(splice) == {"get_user_pages_fast": set()}
    assert entry_points(page_data) == {"pin_user_pages_remote": {"FOLL_WRITE"}}
    for record in (read, rdma, read_only, splice, page_data):
        assert record["verdict"] == "pass", record["expected"]
        assert behind(record)
        assert {call["phase"] for call in record["gup_calls"]} == {"acquire"}
        first = next(call for call in record["gup_calls"] if call["via"] is None)
        assert (first["pages_asked"], first["pages_returned"]) == (PAGES, PAGES)
    assert rdma["gup_calls"][0]["caller"].endswith(("ib_umem_get", "ib_umem_get_va"))
    if kernel.release.startswith("7"):
        faults = on_demand["gup_calls"]
        assert {call["function"] for call in faults} == {"hmm_range_fault"}
        # rxe's worker faults in what the device is told to write.
        assert "kernel-thread" in {call["by"] for call in faults}

    assert ring["verdict"] == "pass", ring["expected"]
    written = [call["pages_returned"] for call in ring["gup_calls"] if call["via"] is None]
    assert sum(written) == 4096

    if not old:
        assert (claims["verdict"], claims["reason"]) == ("fail", "pin-class")
        sentence = claims["expected"]["broken"][0]
        assert sentence.startswith("the kernel called get_user_pages_fast with no flags from ")
    traced = bundle.open_bundle(done.path).manifest["trace"]
    assert traced["available"]
    assert traced["refused"] == []
    assert traced["flags"] == ("macros of v5.6 to v6.2" if old else "btf")


def test_no_trace_is_null_and_says_why(
    backports: Kernel, quick: suite.Suite, lab_tmp: Path
) -> None:
    plan = numbered(Case("process-vm-write", "anon", SMALL, repeat=1))
    untraced = replace(quick, trace=False)
    done = lab.run_kernel(untraced, plan, backports, lab_tmp, None, lambda line: None, print)
    (record,) = done.records
    assert record["verdict"] == "pass"
    assert record["gup_calls"] is None
    assert "trace = true" in record["no_trace"]
    assert bundle.open_bundle(done.path).manifest["trace"]["available"] is False


@pytest.mark.parametrize("name", ["backports", pytest.param("oldstable", marks=pytest.mark.slow)])
def test_what_a_killed_run_left_is_removed_and_a_live_ones_is_not(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    kernel = kernel_named(name)
    output = guest_script.printed("killed_trace.py", kernel, lab_tmp, deadline_s=180)
    said = json.loads(output)
    pid, missing = said["killed"].split(" ", 1)
    assert missing == "None", said["stderr"]
    (killed,) = set(said["left"]) - {said["alive"]}
    assert killed.startswith(f"pinstorm_{pid}_")
    assert said["kept"] == [said["alive"]]
    assert "get_user_pages_remote" in said["seen"]
    assert "events were lost" in said["lost"]
    assert said["after"] == []
