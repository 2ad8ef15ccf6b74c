"""Other people's programs in a guest: refused for lack of a limit, looked at, and helped.

One guest for all of it. ib_write_bw, of perftest, says which call failed and not with which errno,
and ends; but its server waits for a partner before it registers anything, and can be looked at.
"""

import json
import shutil
from errno import EAGAIN, ENOMEM
from pathlib import Path
from typing import Any

import guest_script
import pytest

from pinstorm.evidence import Evidence
from pinstorm.lab.kernels import Kernel
from workloads.spec import Need

NEEDS = (Need.RDMA_DEVICE, Need.SCRATCH_DAX, Need.SCRATCH_EXT4, Need.SECRETMEM)
DEADLINE_S = 300.0


@pytest.fixture(scope="module")
def seen(backports: Kernel, module_tmp: Path) -> dict[str, Any]:
    """What programs_guest.py wrote on the newest kernel."""
    if shutil.which("ib_write_bw") is None:
        pytest.skip("ib_write_bw is not installed: apt-get install perftest")
    result = module_tmp / "result.json"
    guest_script.printed(
        "programs_guest.py", backports, module_tmp, str(result), needs=NEEDS, deadline_s=DEADLINE_S
    )
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def first_of(answer: dict[str, Any]) -> dict[str, Any]:
    assert "explanation" in answer, answer
    explanation: dict[str, Any] = answer["explanation"]
    return explanation


def test_ib_write_bw_is_refused_and_ends(seen: dict[str, Any]) -> None:
    server = seen["bandwidth"]["server"]
    assert seen["bandwidth"]["listening"], server
    assert server["exit"] == 1
    assert "Couldn't allocate MR" in server["said"]


def test_its_limit_is_the_first_cause_while_it_waits(seen: dict[str, Any]) -> None:
    """How much it will ask for is not known, so nothing is certain; the limit is told."""
    first = first_of(seen["bandwidth"]["seen"])
    assert first["cause"] == "memlock-limit"
    assert any("64 KiB" in sentence for sentence in first["evidence"]), first
    assert first["remedy"]


def test_without_a_process_the_causes_are_guesses(seen: dict[str, Any]) -> None:
    """Nothing was looked at, so nothing is certain; what people meet most comes first."""
    found = first_of(seen["ended"])
    assert found["cause"] == "memlock-limit"
    every = [found, *found["others"]]
    assert {one["confidence"] for one in every} == {"possible"}
    assert {"device-limit", "vma-limit", "no-memory"} & {one["cause"] for one in every}
    assert found["command"] is None


def test_the_command_that_is_given_helps_ib_write_bw(seen: dict[str, Any]) -> None:
    remedied = seen["remedied"]
    first = first_of(remedied["seen"])
    assert (first["cause"], first["confidence"]) == ("memlock-limit", "certain")
    assert first["command"].startswith("prlimit --pid ")
    assert remedied["seen"]["applied"] == 0, remedied["seen"]
    assert (remedied["server"]["exit"], remedied["client"]["exit"]) == (0, 0), remedied
    assert "BW average" in remedied["client"]["said"]


def test_a_program_that_lives_on_is_explained_with_certainty(seen: dict[str, Any]) -> None:
    registration = seen["registration"]
    assert registration["first"] == str(ENOMEM)
    first = first_of(registration["seen"])
    assert (first["cause"], first["confidence"]) == ("memlock-limit", "certain")
    assert registration["seen"]["applied"] == 0
    assert registration["second"] == "0"


# -- the evidence itself, against a state that the guest made -----------------------------------


@pytest.fixture
def state(seen: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = seen["obstructed"]["state"]
    assert found["refused"] == EAGAIN
    return found


@pytest.fixture
def foreign(seen: dict[str, Any]) -> Evidence:
    return Evidence.from_json(seen["obstructed"]["foreign"])


def test_what_cannot_be_pinned_is_found_without_knowing_the_range(
    seen: dict[str, Any], state: dict[str, Any], foreign: Evidence
) -> None:
    """Secret memory, then DAX, then the file; and not one of the libraries it has mapped."""
    assert foreign.pieces is not None
    starts = [piece.start for piece in foreign.pieces]
    assert starts[:3] == [state["at"][kind] for kind in ("secret", "dax", "ext4")]
    assert [piece.fs_type for piece in foreign.pieces[:3]] == ["secretmem", "ext4", "ext4"]
    assert [piece.dax for piece in foreign.pieces[1:3]] == [True, False]
    assert foreign.pieces[1].path == seen["obstructed"]["files"]["dax"]
    # what is left are doorbells of the device
    assert all({"io", "pf"} & {*piece.flags} for piece in foreign.pieces[3:])


def test_groups_are_found_upwards_and_the_one_that_is_used_up_first(foreign: Evidence) -> None:
    assert foreign.groups is not None
    rdma = [group for group in foreign.groups if group.controller == "rdma"]
    assert [(group.group, group.resource, group.limit, group.used) for group in rdma] == [
        ("/sys/fs/cgroup/upper/leaf", "hca_object", 12, 12),
        ("/sys/fs/cgroup/upper", "hca_handle", 7, 1),
    ]
    assert rdma[0].failures == 1
    assert rdma[0].device == "rxe0"


def test_the_device_that_it_has_open_and_what_is_in_use(
    state: dict[str, Any], foreign: Evidence
) -> None:
    device = foreign.device
    assert device is not None
    assert (device.name, device.present, device.driver) == ("rxe0", True, "rxe")
    assert device.mrs == state["regions"]
    # drivers/infiniband/sw/rxe/rxe_param.h: RXE_MAX_MR_INDEX - RXE_MIN_MR_INDEX
    assert device.max_mr is not None
    assert device.max_mr > 1000
    assert device.port_states == ("ACTIVE",)
    assert foreign.process is not None
    assert foreign.process.vmpin_bytes == state["regions"] * 65536
    assert foreign.hidden == ()


def test_a_case_sees_the_piece_that_it_handed_over(
    seen: dict[str, Any], state: dict[str, Any]
) -> None:
    for kind, message in seen["obstructed"]["own"].items():
        found = Evidence.from_json(message)
        assert found.pieces is not None
        (piece,) = found.pieces
        assert (piece.start, piece.end) == (state["at"][kind], state["at"][kind] + 65536)
        assert piece.dax is (kind == "dax")
        assert piece.fs_type == ("secretmem" if kind == "secret" else "ext4")
        assert {"rd", "wr", "sh"} <= {*piece.flags}
        assert found.device is not None
        # as the survey told, and not asked again; nor is anything counted for this errno
        assert (found.device.max_mr, found.device.mrs) == (5, None)
        assert found.hidden == ()
