"""configs/overflow.toml on three kernels: what a small page with 2^21 pins comes to, and that a
large folio with more is nothing special."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pinstorm import suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from workloads.spec import MIB, Case, Planned

LIMIT = 1 << 21
LARGE_BYTES = 2 * MIB
# 16 MiB are 4096 mappings of the page, and the page cache has it too: four pins' worth.
PINS = LIMIT - 4
OUTCOMES = {"io-uring": "EFAULT", "rdma": "ENOMEM", "af-xdp": "ENOMEM"}


def run(
    kernel: Kernel, plan: Iterable[Planned], out: Path, include: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    plan = list(plan)
    loaded = suite.load("overflow")
    done = lab.run_kernel(loaded, plan, kernel, out, None, lambda line: None, print, include)
    assert len(done.records) == len(plan)
    return done.records


@pytest.mark.parametrize("name", ["backports", pytest.param("oldstable", marks=pytest.mark.slow)])
def test_small_page_has_a_limit_and_a_large_folio_has_not(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    plan, _ = suite.plan(suite.load("overflow"))
    records = run(kernel_named(name), plan, lab_tmp)
    others = [r for r in records if (r["verdict"], r["reason"]) != ("pass", None)]
    assert not others, [(r["case"], r["verdict"], r["reason"], r.get("expected")) for r in others]
    for record in records:
        pins = record["pins"]
        assert (pins["exact"], pins["leaked"], pins["orphaned"]) == (True, 0, 0), record["case"]
        assert record["vmpin_bytes"]["after"] == 0
        if record["memory"] == "one-page":
            check_refused(record)
        else:
            check_taken(record)
    assert sum(record["taint"] == 1 << 9 for record in records) == 1  # once set it stays: W


def check_refused(record: dict[str, Any]) -> None:
    through = record["params"]["through"]
    assert record["outcome"] == OUTCOMES[through]
    assert record["pins"]["acquire"] == {"acquired": PINS, "released": PINS}, record["case"]
    first_lines = [report.splitlines()[0] for report in record["kmsg"]]
    assert any("mm/gup.c" in line and "try_grab_" in line for line in first_lines), first_lines
    slow = [call for call in record["gup_calls"] if call["function"] == "__get_user_pages"]
    assert slow, "the errno is the slow path's"
    if through == "rdma":  # what was missing was asked for again
        assert any(call.get("errors") == {"ENOMEM": 1} for call in record["gup_calls"])


def check_taken(record: dict[str, Any]) -> None:
    assert record["outcome"] == "ok"
    acquired = record["pins"]["acquire"]["acquired"]
    assert acquired == record["pins"]["held"] > LIMIT
    assert record["kmsg"] == []
    registered = acquired // 512
    charged = registered * LARGE_BYTES if record["params"]["through"] == "rdma" else 0
    assert record["vmpin_bytes"]["held"] == charged


def test_the_kernel_warns_once_a_boot_unless_it_is_made_to_forget(
    backports: Kernel, lab_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    cases = [
        Case(
            "gup-overflow",
            "one-page",
            {"size_bytes": size_bytes, "through": "io-uring"},
            repeat=0,
            warmup=0,
        )
        for size_bytes in (8 * MIB, 16 * MIB)
    ]
    plan = [Planned(seq, 0, case) for seq, case in enumerate(cases)]
    first, second = run(backports, plan, lab_tmp, ("unarmed_overflow",))
    assert (first["verdict"], first["outcome"]) == ("pass", "EFAULT")
    assert (second["verdict"], second["reason"]) == ("fail", "kernel-log")
    assert second["outcome"] == "EFAULT"
    assert second["kmsg"] == []
    assert "did not report" in second["expected"]["broken"][0]
