"""configs/counters.toml on three kernels, and more than a hundred random kills on one."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinstorm import suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from pinstorm.outcome import exit_code
from pinstorm.report import table
from workloads.spec import DISTURBANCES, MIB, PHASES

# The two that differ most: a run on 6.12 says nothing that 7.2 does not.
KERNELS = (pytest.param("oldstable", marks=pytest.mark.slow), "backports")
LEAST_PASSES = 160
LEAST_KILLS = 100
KILL_ROUNDS = 3
SMALL_PAGES = 16
HUGE_PAGES = 512

Records = dict[str, dict[str, Any]]


def run(
    kernel: Kernel, directory: Path, only: str | None = None, rounds: int | None = None
) -> list[dict[str, Any]]:
    loaded = suite.load("counters")
    plan, _ = suite.plan(loaded, rounds, only)
    began = time.monotonic()
    done = lab.run_kernel(loaded, plan, kernel, directory, only, lambda line: None, print)
    print(f"{kernel.name}: {len(plan)} cases in {time.monotonic() - began:.0f} s")
    assert len(done.records) == len(plan)
    others = [r for r in done.records if r["verdict"] not in ("pass", "skip")]
    assert not others, [(r["case"], r["verdict"], r["reason"], r["expected"]) for r in others]
    assert exit_code(done.records) == 0
    return list(done.records)


@pytest.mark.parametrize("name", KERNELS)
def test_the_counters_pass(name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path) -> None:
    kernel = kernel_named(name)
    records = run(kernel, lab_tmp)
    print("\n".join(table._settling(records, emulated=True)))
    by_case = {record["case"]: record for record in records}
    assert len([r for r in records if r["verdict"] == "pass"]) >= LEAST_PASSES
    per_pin(by_case)
    per_folio(by_case, name)
    refusals_that_move_both(by_case)
    survivors(records)
    distributions(records)
    assert_killed(records, least=30)


def per_pin(records: Records) -> None:
    for workload in ("rdma-register/anon/rw", "io-uring-register/anon"):
        for times in (1, 2, 3):
            suffix = "" if times == 1 else f"/times={times}"
            figures = records[f"{workload}/64KiB{suffix}"]["pins"]
            assert figures["acquire"]["acquired"] == figures["held"] == times * SMALL_PAGES
    for size, pages in (("64KiB", SMALL_PAGES), ("2MiB", HUGE_PAGES), ("4MiB", 2 * HUGE_PAGES)):
        for memory in ("thp", "hugetlb-2m", "memfd-hugetlb"):
            record = records[f"rdma-register/{memory}/rw/{size}"]
            assert record["pins"]["held"] == pages
            assert record["vmpin_bytes"]["held"] == pages * 4096


def per_folio(records: Records, name: str) -> None:
    """Pins that io_uring keeps of 64 KiB and 2 MiB in one folio, and of 4 MiB in two."""
    kept = {"oldstable": (16, 512, 1024), "stable": (1, 1, 2), "backports": (1, 1, 2)}
    seen = tuple(
        records[f"io-uring-register/hugetlb-2m/{size}"]["pins"]["held"]
        for size in ("64KiB", "2MiB", "4MiB")
    )
    assert seen == kept[name]
    # counted once for each ring, of an ordinary user in every kernel
    limited = "io-uring-register/thp/64KiB/memlock_bytes=8388608"
    for case in (f"{limited}/uid=65534", f"{limited}/times=2/uid=65534"):
        assert records[case]["vmpin_bytes"]["held"] == 2 * MIB


def refusals_that_move_both(records: Records) -> None:
    for case in ("rdma-register/hole/rw/64KiB", "io-uring-register/hole/64KiB"):
        moved = records[case]["pins"]
        assert moved["acquire"] == {"acquired": 8, "released": 8}
        assert moved["held"] == 0
    assert records["dio-write/zero-page/64KiB"]["pins"]["acquire"]["acquired"] == 0
    assert records["rdma-register/zero-page/ro/64KiB"]["pins"]["held"] == SMALL_PAGES


def survivors(records: list[dict[str, Any]]) -> None:
    during = [record for record in records if "during" in record["params"]]
    assert {record["params"]["during"] for record in during} == set(DISTURBANCES)
    assert {record["workload"] for record in during} == {
        "rdma-register",
        "io-uring-register",
        "af-xdp-umem",
    }
    for record in during:
        assert record["disturbed"]["outcome"] == "ok"
        assert record["disturbed"]["vmpin_bytes"] == record["vmpin_bytes"]["held"]
        moved = record["pins"]["disturb"]
        assert moved["acquired"] - moved["released"] == 0


def distributions(records: list[dict[str, Any]]) -> None:
    settled = [record for record in records if (record.get("timing_ns") or {}).get("settles")]
    assert len(settled) >= 9
    for record in settled:
        assert len(record["timing_ns"]["settles"]) == 20
        assert record["pins"]["settles"]["acquired"] == record["pins"]["settles"]["released"]


def assert_killed(records: list[dict[str, Any]], least: int) -> None:
    """All died of the signal, and the counters came back; a table of where it met them."""
    killed = [record for record in records if record.get("killed")]
    assert len(killed) >= least
    for record in killed:
        assert record["killed"]["signal"] == 9
        assert record["pins"]["orphaned"] == 0, record["case"]
    for phase in PHASES:
        inside = Counter(
            str(record["killed"]["inside"])
            for record in killed
            if record["params"]["kill"] == phase
        )
        print(f"killed in {phase}: {sum(inside.values())}, inside: {json.dumps(inside)}")
        assert inside


@pytest.mark.slow
def test_a_hundred_random_kills(backports: Kernel, lab_tmp: Path) -> None:
    records = run(backports, lab_tmp, only="*kill=*", rounds=KILL_ROUNDS)
    assert_killed(records, LEAST_KILLS)
    moments = [record["killed"]["after_ns"] for record in records if record.get("killed")]
    assert len(set(moments)) > LEAST_KILLS // 2
    inside = [
        record
        for record in records
        if record["params"]["kill"] in ("acquire", "release") and record["killed"]["inside"]
    ]
    # random kills that were always too late would show nothing of the calls
    assert len(inside) >= 10
