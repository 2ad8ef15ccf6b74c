"""The plots of the report, in the order in which they are shown."""

from typing import TYPE_CHECKING

from pinstorm.frames import Frames
from pinstorm.report.html import (
    plot_cycles,
    plot_distribution,
    plot_held,
    plot_latency,
    plot_migration,
    plot_places,
    plot_series,
)
from pinstorm.report.html.plot_form import Plot, Table

if TYPE_CHECKING:
    import polars

__all__ = ["Plot", "Table", "plots"]


def plots(frames: "Frames[polars.LazyFrame]") -> list[Plot]:
    """Those of which there are figures. Together under 1.5 MB as JSON, whatever there is.

    Rows are grouped and thinned before they are held: memory is bounded.
    """
    page_bytes = plot_places.usual_page_bytes(frames.manifests)
    pools, left_out = plot_cycles.pools(frames.cases)
    return [
        *plot_latency.plots(pools, left_out, page_bytes),
        *plot_distribution.cdf(pools),
        *plot_distribution.load_percentiles(frames.histograms, frames.manifests),
        *plot_held.plots(frames.cases, frames.manifests),
        *plot_migration.plots(frames.cases, page_bytes),
        *plot_series.plots(frames.cases, frames.samples, frames.histograms, frames.manifests),
    ]
