"""What a run's loads left beside the journal becomes tables: series of samples, histograms."""

from pathlib import Path

from pinstorm import series_tables


def finish(bundle_path: Path, run: str) -> None:
    """Write samples.parquet and histograms.parquet where there was a load. Raises WriteError."""
    series_tables.finish_samples(bundle_path, run)
    series_tables.finish_histograms(bundle_path, run)
