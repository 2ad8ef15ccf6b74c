"""``pinstorm doctor`` in a guest with Soft-RoCE: the device is told, and its refusal predicted."""

import json
from collections.abc import Callable
from errno import ENOMEM
from pathlib import Path
from typing import Any

import guest_script
import pytest

from pinstorm.lab.kernels import Kernel
from workloads.spec import Need

KIB = 1 << 10
# Three examinations, each with a Python of its own: a busy machine's guest takes minutes for them.
DEADLINE_S = 600.0


def examined(kernel: Kernel, place: Path) -> dict[str, Any]:
    needs = (Need.RDMA_DEVICE, Need.VFIO)
    output = guest_script.printed(
        "doctor_guest.py", kernel, place, needs=needs, deadline_s=DEADLINE_S
    )
    said: dict[str, Any] = json.loads(output)
    assert said["setup"]["device"] == "rxe0", said["setup"]
    return said


def finding(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in document["findings"] if one["id"] == name]
    return dict(found)


def budget(document: dict[str, Any], mechanism: str) -> dict[str, Any]:
    (found,) = [one for one in document["budget"] if one["mechanism"] == mechanism]
    return dict(found)


# oldstable has no on-demand paging in rxe, and charges no ring.
@pytest.mark.parametrize("name", ["backports", pytest.param("oldstable", marks=pytest.mark.slow)])
def test_the_device_is_told_and_its_refusal_predicted(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    kernel = kernel_named(name)
    said = examined(kernel, lab_tmp)
    new = not kernel.release.startswith("6.1.")
    root, user, beside = said["root"], said["user"], said["beside"]

    port = finding(root, "rdma-port-rxe0-1")
    assert (port["status"], port["figures"]["link_layer"]) == ("ok", "Ethernet")
    # the lab's interface has an MTU of 9000
    assert port["figures"]["mtu_bytes"] == 4096
    assert finding(root, "rdma-device-rxe0")["figures"]["driver"] == "rxe"
    on_demand = finding(root, "rdma-odp-rxe0")
    assert on_demand["status"] == ("ok" if new else "missing")
    if new:
        assert {"write", "read"} <= {*on_demand["figures"]["odp_rc"]}
    regions = finding(root, "rdma-regions-rxe0")
    assert regions["figures"]["max_mr"] > 1000
    loaded = finding(root, "rdma-modules")["figures"]["loaded"]
    assert {"ib_core", "ib_uverbs", "rdma_rxe"} <= {*loaded}
    assert finding(root, "rdma-nodes")["status"] == "ok"
    assert finding(root, "iommu")["figures"]["groups"] > 0
    assert finding(root, "vfio")["status"] == "ok"
    assert finding(root, "counters-move")["figures"] == {"moving": True}
    assert finding(root, "trace")["figures"] == {"available": True}
    assert finding(root, "kernel-log")["status"] == "ok"

    # RDMA counts for each process alone, so what another one holds changes nothing there
    for document, errnos in ((user, "registered"), (beside, "registered_beside")):
        row = budget(document, "rdma")
        assert (row["largest_bytes"], row["fails_from_bytes"]) == (64 * KIB, 68 * KIB)
        assert row["errno"] == "ENOMEM"
        assert said[errnos] == [0, ENOMEM]
    # and everything where the user is charged
    alone, crowded = (budget(one, "io-uring")["largest_bytes"] for one in (user, beside))
    assert alone - crowded >= 32 * KIB
    held = finding(beside, "memory-charged")
    assert held["levels"]["used_bytes"] == alone - crowded
    assert held["levels"]["holders"] == 1
    in_use = finding(beside, "rdma-regions-rxe0")["levels"]["in_use"]["mr"]
    assert in_use == finding(user, "rdma-regions-rxe0")["levels"]["in_use"]["mr"] + 1
