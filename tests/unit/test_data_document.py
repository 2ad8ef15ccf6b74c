"""docs/data.md is what the code makes, and what it says of pinstorm.load() runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars
import pytest

from pinstorm.reference import data

ROOT = Path(__file__).parents[2]
REAL = Path(__file__).parent / "data"


def test_the_document_is_what_the_code_makes() -> None:
    # scripts/docs writes it.
    assert (ROOT / "docs/data.md").read_text() == data.text()


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> polars.DataFrame:
    """What an example of the document leaves, run below the real bundles."""
    for name in ("bundle-schema-1", "bundle-load"):
        shutil.copytree(REAL / name, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert request.param in data.text()
    left: dict[str, Any] = {}
    exec(request.param, left)
    frame = left["result"]
    assert isinstance(frame, polars.DataFrame)
    return frame


@pytest.mark.parametrize("result", [data.LATENCY], indirect=True)
def test_latency_by_size(result: polars.DataFrame) -> None:
    lines = (REAL / "bundle-schema-1/journal.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "verdict" in record]
    (record,) = [r for r in records if r["case"] == "rdma-register/anon/rw/16MiB"]
    times_ns = sorted(record["timing_ns"]["acquire"])
    row = result.row(
        by_predicate=(polars.col("workload") == "rdma-register")
        & (polars.col("memory") == "anon")
        & (polars.col("size_bytes") == 16 << 20),
        named=True,
    )
    assert row["accel"] == "tcg"
    assert row["calls"] == len(times_ns)
    assert row["p50_ns"] == times_ns[(len(times_ns) - 1) // 2]


@pytest.mark.parametrize("result", [data.PINNED], indirect=True)
def test_samples_joined_with_their_case(result: polars.DataFrame) -> None:
    assert result.height > 100
    assert set(result["case"]) == {"load/everything"}
    before = result.filter(polars.col("seconds") < 0)
    assert set(before["phase"]) == {"prepare"}
    assert before["pages"].min() == 0
    assert before["pages"].max() <= result["held"][0]
    hold = result.filter(phase="hold")
    assert hold["seconds"].is_between(5, 606).all()
    # The load itself held that many; what else is pinned is on top of it.
    assert hold["pages"].median() >= result["held"][0] * 0.9


@pytest.mark.parametrize("result", [data.PERCENTILES], indirect=True)
def test_percentiles_are_those_of_the_record(result: polars.DataFrame) -> None:
    cases = polars.read_parquet(REAL / "bundle-load/cases.parquet")
    jobs = {job["name"]: job for job in json.loads(cases["jobs"][0])}
    assert set(result["job"]) == {"regions", "blocks"}
    for row in result.iter_rows(named=True):
        told = jobs[row["job"]]["latency_ns"][row["kind"]]
        assert row["calls"] == told["count"]
        for name, figure in (("p50_ns", "p50"), ("p99_ns", "p99"), ("p999_ns", "p99_9")):
            assert row[name] == told[figure]
