"""The kernel's own GUP test in guests: its modes, what they pin, and what becomes of a refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinstorm import suite
from pinstorm.errors import UsageError
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from workloads.gup_test import NUMBERS
from workloads.spec import PAGE_BYTES

SUITE = f"""
[run]
name = "gup-test"
repeat = 2

[[matrix]]
workload = "gup-test"
memory = ["anon", "thp", "memfd", "hole", "prot-none", "movable"]
mode = {list(NUMBERS)}
size = "64KiB"

[[matrix]]
workload = "gup-test"
memory = "anon"
mode = {list(NUMBERS)}
size = "16MiB"
"""


def run(kernel: Kernel, out: Path) -> list[dict[str, Any]]:
    loaded = suite.parse(SUITE, "gup-test.toml")
    plan, _ = suite.plan(loaded)
    done = lab.run_kernel(loaded, plan, kernel, out, None, lambda line: None, print)
    assert len(done.records) == len(plan)
    return done.records


def got_pages(record: dict[str, Any]) -> int:
    """What the ioctl says it got: all of it, or the bytes up to the first refusal."""
    done_bytes = record["done_bytes"]
    size_bytes = record["params"]["size_bytes"] if done_bytes is None else done_bytes
    return int(size_bytes) // PAGE_BYTES


@pytest.mark.parametrize("name", ["backports"])  # a build fetches 250 MB for each
def test_every_mode_passes_and_its_pages_agree_with_the_counters(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    try:
        (kernel,) = lab.with_gup_test([kernel_named(name)], print)
    except UsageError as error:
        pytest.skip(str(error))
    records = run(kernel, lab_tmp)
    others = [r for r in records if r["verdict"] != "pass"]
    assert not others, [(r["case"], r["verdict"], r["reason"], r.get("expected")) for r in others]
    for record in records:
        mode, pages = record["params"]["mode"], got_pages(record)
        pins = record["pins"]
        twice = record["memory"] == "movable" and mode == "PIN_LONGTERM"
        wanted = 0 if mode.startswith("GUP") else pages * (2 if twice else 1)
        assert pins["acquire"] == {"acquired": wanted, "released": wanted}, record["case"]
        assert (pins["held"], pins["leaked"]) == (0, 0)
        whole = record["memory"] not in ("hole", "prot-none")
        assert record["outcome"] == ("ok" if whole else "short")
        assert pages == record["params"]["size_bytes"] // PAGE_BYTES or not whole
    hole = next(r for r in records if r["case"] == "gup-test/hole/64KiB/mode=PIN_FAST")
    assert got_pages(hole) == 8


def test_without_the_module_the_cases_are_skipped_with_the_remedy(
    backports: Kernel, lab_tmp: Path
) -> None:
    if backports.has("GUP_TEST"):
        pytest.skip("this kernel has CONFIG_GUP_TEST")
    records = run(backports, lab_tmp)
    assert {record["verdict"] for record in records} == {"skip"}
    assert {record["reason"] for record in records} == {"gup-test"}
    (unmet,) = records[0]["skip"]
    assert "--gup-test" in unmet["remedy"]
