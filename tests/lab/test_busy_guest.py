"""Attribution in a guest where somebody else pins and unpins all the time: trace and VmPin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workloads
from pinstorm import suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from workloads.spec import Case, Planned

PAGES = {65536: 16, 16 << 20: 4096}


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    here = Path(__file__).parent
    for directory in (here.parent / "host", here):
        monkeypatch.syspath_prepend(str(directory))
    for module in ("faulty_workloads", "busy_guests"):
        workloads.include(module)
    return ("faulty_workloads", "busy_guests")


@pytest.mark.parametrize("name", ["backports", pytest.param("oldstable", marks=pytest.mark.slow)])
def test_verdicts_hold_and_figures_are_the_cases_own(
    name: str, kernel_named: Callable[[str], Kernel], busy: tuple[str, ...], lab_tmp: Path
) -> None:
    kernel = kernel_named(name)
    release = tuple(map(int, kernel.release.split(".")[:2]))
    cases = [Case("faulty-leak", "anon", {"size_bytes": 65536}, repeat=1)]
    for size_bytes in PAGES:
        size = {"size_bytes": size_bytes}
        cases.append(Case("rdma-register", "anon", {"access": "rw", **size}, repeat=3))
        cases.append(Case("io-uring-register", "anon", size, repeat=3))
        cases.append(Case("dio-read", "anon", size, repeat=3))
    plan = [Planned(seq, 0, case) for seq, case in enumerate(cases)]
    done = lab.run_kernel(
        suite.load("quick"), plan, kernel, lab_tmp, None, lambda line: None, print, busy
    )
    assert len(done.records) == len(plan)
    for record in done.records:
        check(record, release)
    (leak,) = (record for record in done.records if record["workload"] == "faulty-leak")
    assert leak["verdict"] == "fail"
    noisy = [record for record in done.records if record["reason"] == "noisy-window"]
    assert len(noisy) >= len(plan) // 2, "the antagonist did not show: nothing was tested"


def check(record: dict[str, Any], release: tuple[int, ...]) -> None:
    pins, workload = record["pins"], record["workload"]
    pages = PAGES[record["params"]["size_bytes"]]
    if workload == "faulty-leak":
        return
    assert record["verdict"] == "pass", (record["case"], record["expected"], pins)
    attributed = pins["attributed"]
    acquired = 0 if workload == "dio-read" and release < (6, 5) else pages
    if pins["exact"]:
        assert (pins["acquire"]["acquired"], attributed["agree"]) == (acquired, True)
    else:
        assert record["reason"] == "noisy-window"
        assert attributed["method"]["acquired"] == "trace", attributed
    assert attributed["acquired"] == acquired, attributed
    if workload == "rdma-register" or (workload == "io-uring-register" and release < (7, 2)):
        assert attributed["method"]["held"] in ("vmpin", "exact-quiet")
        assert (attributed["held"], attributed["leaked"]) == (pages, 0)
    elif not pins["exact"]:
        assert attributed["method"]["held"] == "unattributable"
        assert attributed["held"] is None
