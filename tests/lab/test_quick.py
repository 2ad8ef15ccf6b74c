"""configs/quick.toml on three kernels: the issue's own figures, on real kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinstorm import bundle, suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel

MIB16 = 16 << 20
# The whole matrix, which has these cases, runs on the earlier kernels as well.
NAMES = ["backports", *(pytest.param(n, marks=pytest.mark.slow) for n in ("stable", "oldstable"))]
PAGES = 4096


def by_case(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {record["case"]: record for record in records}


@pytest.mark.parametrize("name", NAMES)
def test_quick_suite_passes(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    loaded = suite.load("quick")
    plan, _ = suite.plan(loaded)
    kernel = kernel_named(name)
    done = lab.run_kernel(loaded, plan, kernel, lab_tmp, None, lambda line: None, print)
    assert len(done.records) == len(plan)
    others = [r for r in done.records if r["verdict"] not in ("pass", "skip")]
    assert not others, [(r["case"], r["verdict"], r["reason"], r.get("expected")) for r in others]
    passed = [record for record in done.records if record["verdict"] == "pass"]
    assert len(passed) >= 60
    quiet = [r for r in passed if r["pins"]["exact"] and r["pins"]["noise"] == 0]
    assert len(quiet) >= 0.95 * len(passed)
    manifest = bundle.open_bundle(done.path).manifest
    assert manifest["selftest"]["passed"]
    assert manifest["kernel"]["release"] == kernel.release
    check_by_kernel(by_case(done.records), tuple(map(int, kernel.release.split(".")[:2])))


def check_by_kernel(records: dict[str, dict[str, Any]], release: tuple[int, ...]) -> None:
    anon = records["rdma-register/anon/rw/16MiB"]
    assert anon["pins"]["acquire"]["acquired"] == PAGES
    assert (anon["pins"]["held"], anon["pins"]["leaked"]) == (PAGES, 0)
    assert anon["migrate"] == {"success": 0, "fail": 0}
    assert anon["vmpin_bytes"] == {"held": MIB16, "after": 0}

    assert records["rdma-register/dax-shared/rw/16MiB"]["outcome"] == "EOPNOTSUPP"
    shared = records["rdma-register/ext4-shared/rw/16MiB"]
    assert shared["outcome"] == ("EFAULT" if release >= (6, 5) else "ok")

    movable = records["rdma-register/movable/rw/16MiB"]
    assert movable["outcome"] == "ok"
    assert movable["migrate"]["success"] > 0
    held = records["rdma-register/movable-held/rw/16MiB"]
    assert held["outcome"] == "ENOMEM"
    assert held["migrate"]["fail"] > 0

    read = records["dio-read/anon/16MiB"]
    assert read["pins"]["acquire"]["acquired"] == (PAGES if release >= (6, 5) else 0)
    assert read["pins"]["held"] == 0
    assert records["vmsplice/anon/16MiB"]["pins"]["acquire"]["acquired"] == 0

    on_demand = records["rdma-register-odp/anon/rw/16MiB"]
    if release >= (6, 15):
        assert on_demand["outcome"] == "ok"
        assert on_demand["pins"]["held"] == 0
        assert on_demand["pins"]["acquire"]["acquired"] == 0
    else:
        assert on_demand["verdict"] == "skip"
        assert on_demand["reason"] == "rdma-odp"
