"""What a run's loads left beside the journal becomes tables, and their sampler's cost is told."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pinstorm import bundle, series_tables


def finish(bundle_path: Path, run: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Write samples.parquet and histograms.parquet where there was a load. Raises WriteError."""
    series_tables.finish_samples(bundle_path, run)
    series_tables.finish_histograms(bundle_path, run)
    if costs := list(_costs(records)):
        path = bundle_path / bundle.MANIFEST
        manifest = json.loads(path.read_bytes())
        bundle.write_json(path, {**manifest, "sampler": costs})


def _costs(records: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """What watching each load cost: ns of CPU, ns it lasted, the share of one core."""
    for record in records:
        sampler = (record.get("load") or {}).get("sampler") or {}
        if sampler.get("cost"):
            yield {"seq": record["seq"], "case": record["case"], **sampler["cost"]}
