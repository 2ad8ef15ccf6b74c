"""``pinstorm pins`` beside processes that hold an MR, registered buffers and packet memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guest_script
import pytest

from pinstorm.lab.kernels import Kernel
from workloads.spec import Need

MIB = 1 << 20
PAGE = 4096


def listed(kernel: Kernel, place: Path) -> dict[str, Any]:
    needs = (Need.RDMA_DEVICE, Need.VFIO, Need.UDMABUF)
    said: dict[str, Any] = json.loads(
        guest_script.printed("held_pins.py", kernel, place, needs=needs)
    )
    assert said["setup"]["device"] == "rxe0", said["setup"]
    return said


def held_by(document: dict[str, Any], pid: int) -> dict[str, dict[str, Any]]:
    """What one process holds, by kind."""
    (holder,) = [holder for holder in document["holders"] if holder["pid"] == pid]
    return {held["kind"]: held for held in holder["held"]}


def size_and_pages(held: dict[str, Any]) -> tuple[int | None, int | None]:
    return held["size_bytes"], held["pages"]


# oldstable has neither on-demand paging in rxe nor, in Debian's build, xsk_diag.
@pytest.mark.parametrize("name", ["backports", pytest.param("oldstable", marks=pytest.mark.slow)])
def test_holders_are_named_with_their_sizes(
    name: str, kernel_named: Callable[[str], Kernel], lab_tmp: Path
) -> None:
    kernel = kernel_named(name)
    said = listed(kernel, lab_tmp)
    new = not kernel.release.startswith("6.1.")
    root, pids = said["root"], said["pids"]

    region = held_by(root, pids["mr"])
    assert list(region) == ["rdma-mr"]
    assert size_and_pages(region["rdma-mr"]) == (256 * MIB, 65536)
    assert region["rdma-mr"]["detail"] == "rxe0"
    ring = held_by(root, pids["ring"])
    assert list(ring) == ["io-uring"], "VmPin of a ring must not be counted again"
    assert size_and_pages(ring["io-uring"]) == (64 * MIB, 16384)
    assert size_and_pages(held_by(root, pids["twice"])["io-uring"]) == (2 * MIB, 512)
    huge = held_by(root, pids["huge"])["io-uring"]
    assert (huge["size_bytes"], huge["pages"], huge["most_pages"]) == (4 * MIB, None, 1024)
    umem = held_by(root, pids["umem"])["xdp-umem"]
    assert size_and_pages(umem) == ((16 * MIB, 4096) if new else (None, None))

    umem = held_by(root, pids["elsewhere"])["xdp-umem"]
    assert size_and_pages(umem) == ((2 * MIB, 512) if new else (None, None))

    if "dma-buf" not in said["refused"]:
        dma_buf = held_by(root, pids["dma-buf"])["udmabuf"]
        assert (dma_buf["size_bytes"], dma_buf["pages"], dma_buf["most_pages"]) == (MIB, None, 256)
    container = held_by(root, pids["vfio"])
    assert size_and_pages(container["vfio"]) == (8 * MIB, 2048)
    assert size_and_pages(container["mlock"]) == (8 * MIB, 0)

    # Others have the device open, too: whose the region of an ended thread is, VmPin tells.
    thread = held_by(root, pids["thread"])["rdma-mr"]
    assert size_and_pages(thread) == (MIB, 256)
    assert None not in [holder["pid"] for holder in root["holders"]]

    if new:
        on_demand = held_by(root, pids["odp"])["rdma-mr"]
        assert size_and_pages(on_demand) == (MIB, 0)
        assert "on demand" in on_demand["detail"]
    else:
        assert "odp" in said["refused"]

    # What the counters say lies between what is known and what is possible.
    least, most = root["unaccounted_range_pages"]
    before = said["before"]["outstanding_pages"]
    assert most >= before
    assert (least is None) == (not new), "of packet memory that has no size no bound is known"
    if least is not None:
        assert least <= before

    user = said["user"]
    assert held_by(user, pids["nobody"])["io-uring"]["size_bytes"] == 4 * MIB
    assert held_by(user, pids["mr"])["rdma-mr"]["size_bytes"] == 256 * MIB
    assert any("run as root" in sentence for sentence in user["hidden"])
    assert [holder["pid"] for holder in said["of_user"]["holders"]] == [pids["nobody"]]
    if new:
        (packets,) = [
            one for one in user["holders"] for h in one["held"] if h["kind"] == "xdp-umem"
        ]
        assert (packets["pid"], packets["uid"]) == (None, 0)

    assert said["after"]["holders"] == []
    assert max(map(len, said["text"].splitlines())) <= 100
