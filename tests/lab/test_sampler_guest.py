"""The sampler in a guest with Soft-RoCE: regions and counters against the ``rdma`` program."""

import json
from collections.abc import Callable
from pathlib import Path

import guest_script
import pytest

from pinstorm import samples, series_tables
from pinstorm.lab.kernels import Kernel
from workloads.spec import Need


@pytest.mark.parametrize("name", ["backports", pytest.param("oldstable", marks=pytest.mark.slow)])
def test_regions_show_in_the_series_as_the_program_counts_them(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    kernel = kernel_named(name)
    output = guest_script.printed(
        "sampled_regions.py", kernel, lab_tmp, str(lab_tmp), needs=(Need.RDMA_DEVICE,)
    )
    said = json.loads(output)
    assert said["setup"]["device"] == "rxe0", said["setup"]
    assert not said["report"]["died"]
    assert not {"rdma", "rdma_objects", "rdma_odp"} & set(said["report"]["missing"])
    assert said["regions"] == {}  # rxe counts no faults of its regions on demand

    # What it writes down is not what its own writing pins.
    assert said["idle"]["bytes"] > 0
    assert (said["idle"]["acquired"], said["idle"]["released"]) == (0, 0)

    readings = list(samples.read(lab_tmp))
    for now_ns, objects, counters, registered in said["told"]:
        after = [r for r in readings if r.t_ns > now_ns]
        first = next(r for r in after if r.source == "rdma_objects")
        assert first.values == objects
        assert first.values["mr"] == registered
        port = next(r for r in after if r.source == "rdma").values
        assert (
            counters.items()
            <= {
                key.removeprefix("ports/1/hw_counters/"): value for key, value in port.items()
            }.items()
        )
    lows = [low for _, low, _ in said["report"]["trends"]["mr_count"]]
    assert (lows[0], max(lows), lows[-1]) == (0, 7, 0)

    # The host makes the table of what the guest wrote.
    told = sum(v is not None for r in readings for v in r.values.values())
    assert series_tables.finish_samples(lab_tmp, "r") == lab_tmp / samples.SAMPLES
    assert series_tables.samples_frame(lab_tmp).height == told
