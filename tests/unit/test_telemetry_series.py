"""Readers of the time series: files saved from real kernels, each against a second way to read it.

The answers of RDMA netlink stand beside what the ``rdma`` program said of the same moment.
"""

import json
import struct
from pathlib import Path

import pytest

from telemetry import (
    meminfo,
    pressure,
    process_io,
    process_stat,
    process_status,
    rdma_counters,
    rdma_nldev,
    vm_events,
    vmstat,
    zoneinfo,
)

DATA = Path(__file__).parent / "data" / "telemetry"
KERNELS = ("6.1-guest", "6.12-guest", "6.18-host", "7.2-guest")
PRESSURE_KERNELS = ("6.1-guest", "6.18-host", "7.2-guest")
RDMA_KERNELS = ("6.1-guest", "7.2-guest")


def saved(kernel: str, name: str) -> bytes:
    return (DATA / kernel / name).read_bytes()


# -- /proc/pressure -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", PRESSURE_KERNELS)
@pytest.mark.parametrize("resource", pressure.RESOURCES)
def test_pressure_totals_are_those_of_the_full_parse(kernel: str, resource: str) -> None:
    data = saved(kernel, f"pressure_{resource}")
    parsed = pressure.parse(data.decode())
    lines = [stall for stall in (parsed.some, parsed.full) if stall is not None]
    assert pressure.totals_ns(data) == [stall.total_ns for stall in lines]
    assert len(lines) == data.count(b"\n")


def test_pressure_is_in_ns_and_percent() -> None:
    parsed = pressure.parse(saved("7.2-guest", "pressure_io").decode())
    assert parsed.some == pressure.Stall(8.54, 5.67, 1.56, 5_236_912_000)
    assert parsed.full is not None
    assert parsed.full.total_ns == 4_484_313_000


def test_a_line_that_the_kernel_does_not_print_is_none() -> None:
    # cpu up to v5.12
    assert pressure.parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").full is None


# -- /proc/vmstat ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_events_found_in_one_pass_are_those_of_the_full_parse(kernel: str) -> None:
    data = saved(kernel, "vmstat")
    whole = vmstat.parse(data)
    wanted = (*vm_events.in_families(whole), *vm_events.PINS)
    lines = vm_events.Lines(data, wanted)
    assert set(lines.names) == set(wanted)
    last = f"\n{lines.names[-1]} {whole[lines.names[-1]]}\n".encode()
    assert lines.end(data) == data.index(last) + len(last) - 1
    found = dict(zip(lines.names, lines.values(b"\n" + data), strict=True))
    assert found == {name: whole[name] for name in wanted}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_families_have_what_a_load_disturbs(kernel: str) -> None:
    names = vm_events.in_families(vmstat.parse(saved(kernel, "vmstat")))
    for name in ("compact_stall", "pgmigrate_fail", "thp_split_page", "allocstall_normal"):
        assert name in names
    assert ("cma_alloc_success" in names) == (kernel == "7.2-guest")
    assert not [name for name in names if name.startswith("nr_")]


def test_statistics_are_inexact_and_events_exact() -> None:
    assert not vm_events.exact("nr_foll_pin_acquired")
    assert vm_events.exact("pgmigrate_success")


def test_a_reading_that_ends_before_the_last_counter_is_not_whole() -> None:
    data = b"a 1\nb 22\nc 3\n"
    lines = vm_events.Lines(data, ("b", "a"))
    assert lines.names == ("a", "b")
    assert lines.end(b"\na 1\n") == -1
    assert lines.end(b"\na 1\nb 2") == -1
    assert lines.end(b"\na 1\nb 22\n") == 9
    with pytest.raises(ValueError, match="not found"):
        lines.values(b"\na 1\nc 3\n")


def test_a_counter_that_the_kernel_lacks_has_no_name() -> None:
    assert vm_events.Lines(b"a 1\n", ("a", "cma_alloc_fail")).names == ("a",)


# -- /proc/zoneinfo, /proc/meminfo ----------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_free_pages_are_those_of_the_full_parse(kernel: str) -> None:
    data = saved(kernel, "zoneinfo")
    zones = [zone for zone in zoneinfo.parse(data.decode()) if zone.present_pages]
    assert len(zones) >= 3
    heads = zoneinfo.heads(zones)
    assert zoneinfo.free_of(data, heads) == [zone.free_pages for zone in zones]


@pytest.mark.parametrize("kernel", KERNELS)
def test_levels_are_those_of_the_full_parse(kernel: str) -> None:
    data = saved(kernel, "meminfo")
    info = meminfo.parse(data.decode())
    for name, value in (
        ("MemFree", info.free_bytes),
        ("MemAvailable", info.available_bytes),
        ("HugePages_Free", info.hugepages_free),
        ("SwapFree", info.swap_free_bytes),
    ):
        assert meminfo.level_of(b"\n" + data, f"\n{name}:".encode()) == value
    assert (info.cma_free_bytes is not None) == (b"\nCmaFree:" in data)


# -- /proc/PID ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_is_that_of_the_full_parse(kernel: str) -> None:
    data = saved(kernel, "status")
    whole = process_status.parse(data.decode())
    memory = process_status.parse_memory(data)
    assert memory.vmrss_bytes == whole.vmrss_bytes != 0
    assert (memory.vmpin_bytes, memory.vmlck_bytes) == (whole.vmpin_bytes, whole.vmlck_bytes)


def test_memory_of_a_zombie_is_none() -> None:
    gone = process_status.parse_memory(b"Name:\tx\nState:\tZ (zombie)\n")
    assert gone == process_status.Memory(None, None, None)


def test_usage_of_a_process_with_an_odd_name() -> None:
    data = b"12 (a) R (b) S 1 12 12 0 -1 4194304 100 5 7 2 350 40 9 8 20 0 3 0 1000 1 1\n"
    assert process_stat.parse(data) == process_stat.Usage(
        "S", 100, 7, 3_500_000_000, 400_000_000, 3
    )


@pytest.mark.parametrize("kernel", ["6.1-guest", "6.18-host", "7.2-guest"])
def test_usage_of_every_kernel(kernel: str) -> None:
    usage = process_stat.parse(saved(kernel, "stat"))
    assert usage.state == "R"
    assert usage.threads == 1
    assert usage.minor_faults > 100


@pytest.mark.parametrize("kernel", ["6.1-guest", "6.18-host", "7.2-guest"])
def test_storage_bytes_are_those_of_the_full_parse(kernel: str) -> None:
    data = saved(kernel, "io")
    whole = process_io.parse(data)
    assert process_io.storage_bytes(data) == (whole.read_bytes, whole.write_bytes)
    assert None not in (whole.rchar, whole.wchar, whole.read_calls, whole.write_calls)


def test_cancelled_writes_are_not_taken_for_writes() -> None:
    data = b"rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4\ncancelled_write_bytes: 5\n"
    assert process_io.storage_bytes(data) == (3, 4)
    assert process_io.storage_bytes(b"") == (None, None)


# -- RDMA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", RDMA_KERNELS)
def test_device_counters_are_found_wherever_they_lie(kernel: str, tmp_path: Path) -> None:
    tree = json.loads(saved(kernel, "rdma_counters.json"))
    for place, text in {**tree, "hw_counters/device_wide": "9\n"}.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    found = {name: rdma_counters.parse(p.read_bytes()) for name, p in rdma_counters.files(tmp_path)}
    assert found.pop("hw_counters/device_wide") == 9
    wanted = {place for place in tree if not place.endswith("/lifespan")}
    assert set(found) == wanted
    assert len(tree) == len(wanted) + 1
    assert found["ports/1/hw_counters/sent_pkts"] == 0


def test_what_is_no_counter_is_none() -> None:
    assert rdma_counters.parse(b"12\n") == 12
    assert rdma_counters.parse(b"N/A (no PMA)\n") is None
    assert rdma_counters.parse(b"18446744073709551615\n") is None
    assert rdma_counters.parse(b"") is None


@pytest.mark.parametrize("kernel", RDMA_KERNELS)
def test_objects_over_netlink_are_those_of_the_program(kernel: str) -> None:
    (objects,), done = rdma_nldev.parse(saved(kernel, "rdma_nldev.bin"))
    assert not done  # that is a message of its own
    (row,) = json.loads(saved(kernel, "rdma_nldev.json"))
    assert objects.device == row.pop("ifname") == "rxe0"
    assert objects.index == row.pop("ifindex")
    assert objects.counts == row
    assert objects.counts["mr"] == 2


def netlink(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    padding = b"\0" * (-len(payload) % 4)
    return struct.pack("=HH", 4 + len(payload), kind) + payload + padding


def counter(name: bytes, value: int) -> bytes:
    nested = 0x8000  # nla_nest_start() sets NLA_F_NESTED, nla_nest_start_noflag() does not
    inner = attribute(82, name + b"\0") + attribute(83, struct.pack("=Q", value))
    return attribute(81 | nested, inner)


def test_page_faults_of_all_regions_add_up() -> None:
    """Laid out as fill_stat_mr_entry() of v7.2's mlx5 does; no such device was at hand."""
    regions = [
        attribute(80 | 0x8000, counter(b"page_faults", 3) + counter(b"page_prefetch", 1)),
        b"",  # not on demand: no counters
        attribute(80 | 0x8000, counter(b"page_faults", 4)),
    ]
    entries = b"".join(
        attribute(41, attribute(44, struct.pack("=I", number)) + region)
        for number, region in enumerate(regions)
    )
    body = attribute(1, struct.pack("=I", 0)) + attribute(40, entries)
    data = netlink((5 << 10) + 17, body) + netlink(3, struct.pack("=i", 0))
    assert rdma_nldev.parse_statistics(data) == ({"page_faults": 7, "page_prefetch": 1}, True)


def test_the_kernels_refusal_is_an_error() -> None:
    with pytest.raises(OSError, match="Operation not permitted"):
        rdma_nldev.parse(netlink(2, struct.pack("=i", -1) + bytes(16)))
