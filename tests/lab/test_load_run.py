"""Loads in a guest: RDMA, direct IO and antagonists at once; a planted leak is called one."""

from pathlib import Path
from typing import Any

import polars
import pytest

import workloads
from pinstorm import bundle, samples, suite
from pinstorm.lab import run as lab
from pinstorm.lab.kernels import Kernel
from workloads.load.spec import Job, Load
from workloads.spec import MIB, Case, Planned

KIB = 1 << 10


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The planted engine, here and (through sys.path) in the guest."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    workloads.include("leaky_engine")
    return ("leaky_engine",)


def run(
    kernel: Kernel, directory: Path, *loads: Load, include: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], Path]:
    cases: list[Case] = [workloads.load_case(load, 120.0) for load in loads]
    plan = [Planned(number, 0, case) for number, case in enumerate(cases)]
    loaded = suite.load("load")
    done = lab.run_kernel(
        loaded, plan, kernel, directory, None, lambda line: None, print, include=include
    )
    return done.records, done.path


def job_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(job for job in record["jobs"] if job["name"] == name)


def test_a_planted_leak_is_called_one_within_a_minute(
    backports: Kernel, leaky: tuple[str, ...], lab_tmp: Path
) -> None:
    leaking = Load(
        "leaky", (Job("leaky", "leaky-register", sizes=((64 * KIB, 1.0),)),), 55.0, ramp_s=5.0
    )
    records, _ = run(backports, lab_tmp, leaking, include=leaky)
    (record,) = records
    assert record["verdict"] == "fail", record
    soak = record["load"]["soak"]
    assert soak["outstanding_pages"]["verdict"] == "leak", soak
    # 16 pages of one registration in a thousand
    forgotten = 16 * record["jobs"][0]["ops_s"] / 1000
    assert soak["outstanding_pages"]["slope_per_s"] == pytest.approx(forgotten, rel=0.5)
    assert record["reason"] == "leak"
    assert record["pins"]["leaked"] > 0
    assert record["pins"]["leaked"] % 16 == 0
    assert record["pins"]["orphaned"] <= 0  # the end of the process gives them back


def test_all_at_once_and_nothing_is_left(backports: Kernel, lab_tmp: Path) -> None:
    # At rates that leave some of two emulated processors to each of them.
    names = ("compaction", "dontneed-churn", "fork-storm")
    together = Load(
        "together",
        (
            Job("regions", "rdma-register", sizes=((64 * KIB, 9.0), (MIB, 1.0)), depth=4,
                rate_ops_s=100.0),
            Job("on-demand", "rdma-register-odp", sizes=((64 * KIB, 1.0),), rate_ops_s=5.0,
                params={"storm": True}),
            Job("blocks", "dio-write-uring", depth=8, read_percent=50, verify=True,
                file_bytes=16 * MIB, rate_ops_s=200.0),
            *(Job(name, name, sizes=((8 * MIB, 1.0),), rate_ops_s=1.0) for name in names),
        ),
        duration_s=20.0,
        ramp_s=2.0,
    )  # fmt: skip
    records, path = run(backports, lab_tmp, together)
    (record,) = records
    assert record["verdict"] == "pass", record["expected"]["broken"]
    assert record["pins"]["leaked"] == record["pins"]["orphaned"] == 0
    for job in record["jobs"]:
        assert job["operations"] > 0, job["name"]
    assert job_of(record, "regions")["pins"] >= 16 * job_of(record, "regions")["operations"]
    assert job_of(record, "on-demand")["pins"] == 0
    assert job_of(record, "blocks")["verified"] > 0
    assert record["load"]["sampler"]["died"] is False
    # what was spooled in the guest is a table on the host
    series = polars.read_parquet(path / samples.SAMPLES)
    pins = series.filter(source="vmstat", key="nr_foll_pin_acquired", phase="hold").sort("t_ns")[
        "value"
    ]
    assert pins[-1] - pins[0] > 0
    assert not samples.spool_of(path).exists()
    histograms = polars.read_parquet(path / "histograms.parquet")
    whole = histograms.filter(
        polars.col("t_end_ns").is_null(), job="regions", kind="acquire", phase="hold"
    )
    told = bundle.open_bundle(path).records[0]
    kept = job_of(told, "regions")["latency_ns"]["acquire"]["count"]
    assert whole["count"].sum() >= kept > 0
