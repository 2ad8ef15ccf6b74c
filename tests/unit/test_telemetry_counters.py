"""vmstat, window and zoneinfo: parsing files saved from real kernels, and the error bound."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from telemetry import vmstat, window, zoneinfo
from telemetry.vmstat import Snapshot
from telemetry.zoneinfo import Zone

DATA = Path(__file__).parent / "data" / "telemetry"
KERNELS = ("6.1-guest", "6.12-guest", "6.18-host", "7.2-guest")


def zones_of(kernel: str) -> tuple[Zone, ...]:
    return zoneinfo.parse((DATA / kernel / "zoneinfo").read_text())


@pytest.mark.parametrize("kernel", KERNELS)
def test_vmstat_has_the_counters_on_every_kernel(kernel: str) -> None:
    data = (DATA / kernel / "vmstat").read_bytes()
    counters = vmstat.parse(data)
    for name in ("nr_foll_pin_acquired", "nr_foll_pin_released", "pgmigrate_fail", "nr_free_cma"):
        assert name in counters
    assert len(counters) == data.count(b"\n")


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_value_is_found_as_the_full_parse_finds_it(kernel: str) -> None:
    data = (DATA / kernel / "vmstat").read_bytes()
    for name, value in vmstat.parse(data).items():
        assert vmstat.value_of(b"\n" + data, b"\n" + name.encode() + b" ") == value


def test_a_missing_counter_is_none_not_zero() -> None:
    assert vmstat.value_of(b"\nnr_free_pages 3\n", b"\nnr_foll_pin_acquired ") is None
    assert Snapshot(1, None, None).outstanding is None
    assert Snapshot(1, 0, 0).outstanding == 0


def test_a_name_that_ends_in_another_is_not_mistaken_for_it() -> None:
    data = b"\nthp_pgmigrate_success 7\npgmigrate_success 3\n"
    assert vmstat.value_of(data, b"\npgmigrate_success ") == 3


@pytest.mark.parametrize("kernel", KERNELS)
def test_zones_do_not_overlap_and_are_found_by_frame(kernel: str) -> None:
    zones = zoneinfo.populated(zones_of(kernel))
    for lower, upper in pairwise(zones):
        assert lower.end_pfn is not None
        assert upper.start_pfn is not None
        assert lower.end_pfn <= upper.start_pfn
    for zone in zones:
        assert zone.start_pfn is not None
        assert zoneinfo.zone_of(zone.start_pfn, zones) == zone
        assert zoneinfo.zone_of(zone.start_pfn + zone.spanned_pages - 1, zones) == zone
    assert zoneinfo.zone_of(0, zones) is None


def test_zoneinfo_of_a_guest_with_a_movable_zone_and_pmem() -> None:
    by_name = {zone.name: zone for zone in zones_of("6.12-guest")}
    assert by_name["Movable"].start_pfn == 1180672
    assert by_name["Movable"].spanned_pages == 916480
    assert by_name["Movable"].stat_thresholds == (24, 24)
    # ZONE_DEVICE: spanned, but without a place
    assert by_name["Device"].spanned_pages == 131072
    assert by_name["Device"].start_pfn is None
    assert by_name["Device"].stat_threshold is None
    assert "Device" not in zoneinfo.free_pages(by_name.values())


def test_zoneinfo_counts_cma_pages() -> None:
    by_name = {zone.name: zone for zone in zones_of("7.2-guest")}
    assert by_name["Normal"].cma_pages == 2600 * 256


def test_count_pages_splits_at_the_edges() -> None:
    zones = zones_of("6.12-guest")
    frames = [4095, 4096, 4096, 1048575, 1048576, 1180671, 1180672, 1 << 40]
    counts = {zone.name: count for zone, count in zoneinfo.count_pages(frames, zones)}
    assert counts == {"DMA": 1, "DMA32": 3, "Normal": 2, "Movable": 1}


# The T that was measured in the same guest or host, by pinning one page at a time until the
# counter moved, is one less than the number of pins that took: 24 (6.12), 28 (6.18 host, later).
@pytest.mark.parametrize(("kernel", "measured"), [("6.12-guest", 24), ("6.18-host", 28)])
def test_the_bound_covers_the_threshold_that_was_measured(kernel: str, measured: int) -> None:
    assert vmstat.delta_bound(zones_of(kernel), online_cpus=2) >= 2 * measured


def zone(node: int, present: int, thresholds: tuple[int, ...], managed: int | None = None) -> Zone:
    pages = present if managed is None else managed
    return Zone(node, "Normal", 0, present, present, pages, 0, 0, thresholds)


def test_the_bound_adds_nodes_and_cpus_and_takes_the_largest_zone() -> None:
    small, large = zone(0, 4000, (4, 4)), zone(0, 600_000, (24, 24))
    assert vmstat.delta_bound([small, large], 2) == 48
    assert vmstat.delta_bound([small, large, zone(1, 600_000, (24, 24))], 2) == 96


def test_the_bound_does_not_believe_a_threshold_lowered_by_memory_pressure() -> None:
    # set_pgdat_percpu_threshold() touches the zones' thresholds only, the node's stays at 24.
    assert vmstat.delta_bound([zone(0, 600_000, (1, 1))], 2) == 48
    assert vmstat.delta_bound([zone(0, 600_000, (1, 1), managed=1000)], 2) == 48


def test_the_bound_is_capped_by_the_kernels_cap() -> None:
    assert vmstat.delta_bound([zone(0, 1 << 30, (125,) * 512)], 512) == 125 * 512


@pytest.mark.parametrize("kernel", ["6.1-guest", "6.12-guest", "7.2-guest"])
def test_the_normal_threshold_is_the_kernels(kernel: str) -> None:
    # (The table in the comment above calculate_normal_threshold() does not always follow its code.)
    for zone_ in zoneinfo.populated(zones_of(kernel)):
        alone = zone(0, zone_.managed_pages, ())
        assert vmstat.delta_bound([alone], 2) == 2 * (zone_.stat_threshold or 0)


@pytest.mark.parametrize(("threshold", "cpus", "gib"), [(16, 2, 0.95), (24, 2, 3), (112, 64, 12)])
def test_the_normal_threshold_grows_with_cpus_and_memory(
    threshold: int, cpus: int, gib: float
) -> None:
    pages = int(gib * (1 << 30)) // 4096
    assert vmstat.delta_bound([zone(0, pages, ())], cpus) == threshold * cpus


def test_between_subtracts_and_keeps_what_is_missing() -> None:
    first = Snapshot(100, 10, 7, {0: (10, 7), 1: (0, 0)}, 1, 0)
    last = Snapshot(350, 30, 20, {0: (30, 20)}, None, 2)
    delta = window.between(first, last)
    assert (delta.acquired, delta.released, delta.net) == (20, 13, 7)
    assert (delta.migrate_success, delta.migrate_fail) == (None, 2)
    assert delta.per_node == {0: (20, 13)}
    assert delta.elapsed_ns == 250


class Scripted:
    """Stands in for Counters: gives the readings of a script, the last one for ever."""

    refreshes = True
    interval_s = 1.0

    def __init__(self, readings: list[tuple[int, int]]):
        self.readings = readings

    def snapshot(self, per_node: bool = True) -> Snapshot:
        acquired, released = self.readings[0]
        if len(self.readings) > 1:
            self.readings.pop(0)
        return Snapshot(vmstat.time.monotonic_ns(), acquired, released)


def settled(
    readings: list[tuple[int, int]], deadline_s: float, rest_s: float
) -> tuple[Snapshot, int]:
    done: Callable[[Snapshot], bool] = lambda snapshot: snapshot.outstanding == 0  # noqa: E731
    return vmstat.settle(Scripted(readings), done, deadline_s, rest_s)  # type: ignore[arg-type]


def test_settle_returns_at_once_when_all_is_given_back() -> None:
    last, settle_ns = settled([(8, 8)], 1, 1)
    assert last.outstanding == 0
    assert settle_ns < 100_000_000


def test_settle_waits_for_late_releases() -> None:
    last, settle_ns = settled([(8, 0), (8, 0), (8, 3), (8, 8)], 5, 1)
    assert last.outstanding == 0
    assert settle_ns > 0


def test_settle_ends_when_the_counters_rest_and_tells_the_last_change() -> None:
    last, settle_ns = settled([(8, 0), (8, 5)], 5, 0.05)
    assert last.outstanding == 3
    assert 0 < settle_ns < 50_000_000


def test_settle_ends_at_the_deadline() -> None:
    endless = [(count, 0) for count in range(1, 100_000)]
    last, settle_ns = settled(endless, 0.05, 1)
    assert last.outstanding != 0
    assert settle_ns < 1_000_000_000


def test_ambient_is_the_larger_of_both_and_none_without_counters() -> None:
    counters = Scripted([(0, 0), (3, 9)])
    seen = window.ambient(counters, 1000)  # type: ignore[arg-type]
    assert seen.pages == 9
    assert seen.elapsed_ns >= 1000
    blind = Scripted([(0, 0)])
    blind.snapshot = lambda per_node=True: Snapshot(  # type: ignore[method-assign]
        vmstat.time.monotonic_ns(), None, None
    )
    assert window.ambient(blind, 0).pages is None  # type: ignore[arg-type]
