"""A thousand bundles made of a real one, and what a program needs to read them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars

from pinstorm import schema

_ROOT = Path(__file__).parents[2]


def multiplied(
    source: Path, directory: Path, bundles: int, rows: int, *, journals: bool = False, seed: int = 1
) -> Path:
    """So many bundles with so many rows each below ``directory``, all like a real one.

    Each is a run of its own on the same machine: the cases of ``source``, again and again as
    further rounds, with every time drawn anew from around the real one, and one case in a thousand
    failed. Their tables of samples and histograms are the real ones. ``journals``: write also the
    journal that such cases.parquet is made of, with the fields that are columns.
    """
    real = polars.read_parquet(source / "cases.parquet")
    manifest = json.loads((source / "manifest.json").read_bytes())
    random = np.random.default_rng(seed)
    rounds = -(-rows // real.height)
    whole = polars.concat([real] * rounds).head(rows)
    whole = whole.with_columns(
        polars.int_range(polars.len(), dtype=polars.Int64).alias("seq"),
        (polars.int_range(polars.len(), dtype=polars.Int64) // real.height).alias("round"),
    )
    series = [source / name for name in ("samples.parquet", "histograms.parquet")]
    for number in range(bundles):
        path = directory / f"run-{number:04}"
        path.mkdir(parents=True)
        made = _another_run(whole, path.name, random)
        made.write_parquet(path / "cases.parquet")
        identity = {**(manifest.get("identity") or {}), "run": path.name}
        (path / "manifest.json").write_text(json.dumps({**manifest, "identity": identity}))
        for table in series:
            if table.exists():
                shutil.copy(table, path)
        if journals:
            lines = (json.dumps(_nested(row)) + "\n" for row in made.iter_rows(named=True))
            (path / "journal.jsonl").write_text("".join(lines))
    return directory


def _another_run(whole: polars.DataFrame, run: str, random: Any) -> polars.DataFrame:
    factor = polars.Series(random.lognormal(0.0, 0.05, whole.height))
    failed = polars.Series(random.random(whole.height) < 0.001)
    ran = polars.col("verdict") == "pass"
    times = ["first_ns", "acquire_median_ns", "release_median_ns", "settle_ns"]
    lists = ["acquire_ns", "release_ns"]
    return whole.with_columns(
        polars.lit(run).alias("run"),
        *[(polars.col(name) * factor).cast(polars.Int64) for name in times],
        *[(polars.col(name) * factor).cast(polars.List(polars.Int64)) for name in lists],
        polars.when(failed & ran).then(polars.lit("fail")).otherwise("verdict").alias("verdict"),
        polars.when(failed & ran).then(polars.lit("held")).otherwise("reason").alias("reason"),
    )


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """The record that such a row is made of."""
    record: dict[str, Any] = {}
    for column in schema.COLUMNS:
        value = row.get(column.name)
        if value is None or column.name.endswith("_median_ns"):
            continue
        *outer, name = (column.path or column.name).split(".")
        place = record
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = json.loads(value) if column.type == "Json" else value
    return record


def measured(program: str, *arguments: str) -> tuple[int, float]:
    """What a Python program prints, run as a process of its own: its peak in bytes, and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak_bytes, seconds = done.stdout.split()
    return int(peak_bytes), float(seconds)
