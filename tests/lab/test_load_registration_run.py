"""Registration load over RDMA, on Soft-RoCE of the newest kernel: pinned, and on demand.

One guest for all of it. What the engines tell stands beside what the kernel tells: its pin
counters, VmPin, and the memory regions that it tracks for the process.
"""

import json
import shutil
import subprocess
from errno import EFAULT, ENODEV, EOPNOTSUPP
from pathlib import Path
from typing import Any

import guest_script
import pytest

from pinstorm import host
from pinstorm.lab.kernels import Kernel
from telemetry.histogram import Histogram
from workloads.load.churn import WARM_UP_PAIRS
from workloads.spec import PAGE_BYTES, Need

NEEDS = (Need.RDMA_DEVICE, Need.RDMA_ODP)
DEADLINE_S = 200.0
SIZE = 64 << 10
PAGES = SIZE // PAGE_BYTES
BOUNCE_BYTES = 1 << 20  # workloads.verbs.BOUNCE_BYTES

Seen = dict[str, Any]


@pytest.fixture(scope="module")
def seen(backports: Kernel, module_tmp: Path) -> Seen:
    """What load_registration_guest.py wrote on the newest kernel."""
    if shutil.which("gcc") is None or not Path("/usr/include/infiniband/verbs.h").exists():
        pytest.skip("no compiler or no verbs.h: apt-get install gcc make libibverbs-dev")
    peers = host.ROOT / "scripts/peers"
    subprocess.run(["make", "-s", "-C", str(peers), f"OUT={module_tmp}"], check=True)
    result = module_tmp / "result.json"
    guest_script.printed(
        "load_registration_guest.py",
        backports,
        module_tmp,
        str(result),
        str(module_tmp / "register_rdma"),
        needs=NEEDS,
        deadline_s=DEADLINE_S,
    )
    found: Seen = json.loads(result.read_text())
    return found


def latencies(load: Seen, kind: str) -> Histogram:
    return Histogram.from_json(load["taken"]["latency"][kind])


@pytest.mark.parametrize("name", ["pinned", "mixed", "read", "demand", "storm", "read-storm"])
def test_each_turn_is_counted_and_timed(seen: Seen, name: str) -> None:
    load, count = seen[name], {"pinned": 20, "mixed": 20, "demand": 20, "storm": 10}.get(name, 5)
    assert load["ended"]
    assert load["taken"]["operations"] == count
    assert load["taken"]["refused"] == {}
    for kind in ("acquire", "release"):
        assert latencies(load, kind).total == count
        assert (latencies(load, kind).percentile(0) or 0) > 0


@pytest.mark.parametrize(
    "name", ["pinned", "mixed", "read", "demand", "storm", "read-storm", "prefetch"]
)
def test_everything_is_given_back(seen: Seen, name: str) -> None:
    load = seen[name]
    assert load["errors"] == []
    acquired, released = load["all_pins"]
    assert acquired == released
    assert load["left"] == [0, []]
    # what the loopback of a storm needs is there from prepare to the end
    assert load["closed"] == load["prepared"]


@pytest.mark.parametrize(("name", "depth"), [("pinned", 1), ("read", 2)])
def test_depth_regions_are_pinned(seen: Seen, name: str, depth: int) -> None:
    load = seen[name]
    for step in ("opened", "standing"):
        assert load[step] == [depth * SIZE, [SIZE] * depth]
    assert load["open_pins"] == [
        (depth + WARM_UP_PAIRS) * PAGES,
        WARM_UP_PAIRS * PAGES,
    ]


@pytest.mark.parametrize("name", ["pinned", "mixed", "read"])
def test_pins_are_those_of_the_kernel(seen: Seen, name: str) -> None:
    load = seen[name]
    assert load["taken"]["pins"] == load["run_pins"][0] > 0
    assert load["taken"]["bytes"] == load["taken"]["pins"] * PAGE_BYTES
    held_bytes = load["standing"][0] - load["opened"][0]
    assert load["run_pins"][0] - load["run_pins"][1] == held_bytes // PAGE_BYTES


def test_regions_of_several_sizes(seen: Seen) -> None:
    load = seen["mixed"]
    sizes = load["standing"][1]
    assert len(sizes) == 3
    assert set(sizes) <= {SIZE, 16 * SIZE}
    assert load["standing"][0] == sum(sizes)
    large = (load["taken"]["bytes"] // SIZE - 20) // 15
    assert 0 < large < 20


@pytest.mark.parametrize("name", ["demand", "storm", "read-storm"])
def test_on_demand_pins_nothing(seen: Seen, name: str) -> None:
    load = seen[name]
    assert load["taken"]["pins"] == 0
    assert load["all_pins"] == [0, 0]
    standing = {"demand": 3, "storm": 3, "read-storm": 1}[name]
    for step in ("opened", "standing"):
        assert load[step][0] == load["prepared"][0]
        assert load[step][1] == sorted(load["prepared"][1] + [SIZE] * standing)


def test_a_storm_faults_every_page_in_each_turn(seen: Seen) -> None:
    load = seen["storm"]
    assert latencies(load, "fault").total == 10
    assert load["faults"] >= 10 * PAGES
    assert load["taken"]["verified"] == 10
    # The device's faults are what takes the time: registering on demand looks at no page.
    fault_ns, acquire_ns = (latencies(load, kind).percentile(50) for kind in ("fault", "acquire"))
    assert fault_ns is not None
    assert acquire_ns is not None
    assert fault_ns > acquire_ns
    assert latencies(seen["read-storm"], "fault").total == 5


def test_without_a_storm_nothing_is_touched(seen: Seen) -> None:
    assert "fault" not in seen["demand"]["taken"]["latency"]
    assert seen["demand"]["faults"] < 20 * PAGES


def test_a_storm_that_leaves_pages_out_is_noticed(seen: Seen) -> None:
    found = seen["shortened"]
    assert found["mismatch"] is not None
    assert f"byte {SIZE - 3 * PAGE_BYTES} of a region of {SIZE} bytes is 0x00" in found["mismatch"]
    assert found["errors"] == []


def test_a_prefetch_is_done_or_refused_and_the_region_stays(seen: Seen) -> None:
    """Debian 12's rdma-core does not pass it on; a later one does."""
    load = seen["prefetch"]
    assert load["taken"]["operations"] == 10
    assert load["standing"] == [0, [SIZE] * 2]
    refused = load["taken"]["refused"]
    if refused:
        # each turn's, and those of open
        assert refused == {"EOPNOTSUPP": 10 + 2 + WARM_UP_PAIRS}
        assert "prefetch" not in load["taken"]["latency"]
        found = seen["prefetch-refused"]
        assert (found["call"], found["errno"]) == ("ibv_advise_mr", EOPNOTSUPP)
        assert found["standing"] == found["left"] == []
    else:
        assert latencies(load, "prefetch").total == 10
        assert seen["prefetch-refused"] == {"standing": [SIZE] * 2, "left": [], "errors": []}


def test_refusals_have_the_errno_of_the_call(seen: Seen) -> None:
    """The second of two regions has the hole; on demand it is the device that finds it."""
    for name, call, number in (
        ("hole", "ibv_reg_mr", EFAULT),
        ("odp-hole", "RDMA WRITE", EFAULT),
        ("no-device", "ibv_open_device", ENODEV),
    ):
        found = seen[name]
        assert (found["call"], found["errno"]) == (call, number)
        assert found["errors"] == []
    assert (seen["hole"]["standing"], seen["hole"]["left"]) == ([SIZE], [])
    # the loopback's own, which the owner gives back
    assert seen["odp-hole"]["standing"] == seen["odp-hole"]["left"] == [BOUNCE_BYTES]


def test_the_peer_does_the_same(seen: Seen) -> None:
    found = seen["peer"]
    assert found["exit"] == 0, found["complained"]
    said = json.loads(found["said"])
    assert said["acquire_ns_median"] > 0
    assert said["release_ns_median"] > 0
    assert said["elapsed_ns"] >= 500_000_000
    pins = (said["pairs"] + WARM_UP_PAIRS) * PAGES
    # The root file system pins pages of its own while the program is read from it.
    assert found["acquired"] == found["released"]
    assert pins <= found["acquired"] < pins + 1000
    assert seen["peer-no-device"]["exit"] == 2
    assert "rxe9" in seen["peer-no-device"]["complained"]
