"""Which needs a case has, which of them a machine does not meet, and what is said of it."""

from pathlib import Path
from typing import Any

import pytest

from pinstorm import needs
from pinstorm.errors import UsageError
from pinstorm.needs import devices, interfaces, scratch
from pinstorm.needs.unmet import REMEDIES, lacks
from workloads.spec import Case, Need, Surroundings

GIB = 1 << 30
MIB = 1 << 20


def case(workload: str, memory: str, size_bytes: int = 65536, **params: Any) -> Case:
    return Case(workload, memory, {"size_bytes": size_bytes, **params})


def survey(*lacking: Need, **figures: Any) -> needs.Survey:
    unmet = {need: lacks(need, "not here") for need in lacking}
    return needs.Survey(Surroundings(), unmet, **figures)


def codes(found: list[needs.Unmet]) -> list[str]:
    return [entry.code for entry in found]


def test_every_need_has_a_remedy() -> None:
    of_scratch = {entry.code for entry in scratch.unmet({})}
    assert of_scratch | {need.value for need in REMEDIES} == {need.value for need in Need}


def test_needs_are_those_of_workload_memory_and_parameters() -> None:
    assert needs.needs_of(case("vmsplice", "anon")) == ()
    assert needs.needs_of(case("vfio-map", "ksm")) == (Need.VFIO, Need.KSM)
    ordinary = case("io-uring-register", "anon", uid=65534, memlock_bytes=0)
    assert needs.needs_of(ordinary) == (Need.IO_URING, Need.ORDINARY_USER)


def test_all_unmet_needs_are_told_together() -> None:
    here = survey(Need.VFIO, Need.SECRETMEM)
    assert codes(here.unmet(case("vfio-map", "secretmem"))) == ["vfio", "secretmem"]
    assert here.unmet(case("vmsplice", "anon")) == []


def test_force_asks_for_the_device_but_not_for_what_it_can_do() -> None:
    here = survey(Need.RDMA_ODP)
    assert codes(here.unmet(case("rdma-register-odp", "anon"))) == ["rdma-odp"]
    assert here.unmet(case("rdma-register-odp", "anon", force=True)) == []
    nothing = survey(Need.RDMA_DEVICE, Need.RDMA_ODP)
    assert codes(nothing.unmet(case("rdma-register-odp", "anon", force=True))) == ["rdma-device"]


@pytest.mark.parametrize(
    ("params", "pages"),
    [
        ({"size_bytes": 4 * MIB}, 2),
        ({"size_bytes": 4 * MIB, "offset_bytes": 512}, 3),
        ({"size_bytes": 2 * MIB, "processes": 4}, 4),
    ],
)
def test_huge_pages_of_every_process_and_the_offset(params: dict[str, int], pages: int) -> None:
    wanted = case("vmsplice", "hugetlb-2m", **params)
    enough = survey(free_huge_bytes={Need.HUGETLB_2M: pages * 2 * MIB})
    assert enough.unmet(wanted) == []
    short = survey(free_huge_bytes={Need.HUGETLB_2M: (pages - 1) * 2 * MIB})
    (unmet,) = short.unmet(wanted)
    assert unmet.code == Need.HUGETLB_2M
    assert f"sysctl vm.nr_hugepages={pages}" in unmet.remedy


def test_gigantic_page_is_not_got_by_sysctl() -> None:
    (unmet,) = survey(free_huge_bytes={Need.HUGETLB_1G: 0}).unmet(case("vmsplice", "hugetlb-1g"))
    assert unmet.code == Need.HUGETLB_1G
    assert "1 page of 1 GiB wanted" in unmet.detail
    assert "hugepagesz=1G" in unmet.remedy


def test_movable_memory_of_every_process() -> None:
    here = survey(movable_bytes=8 * MIB)
    assert here.unmet(case("vmsplice", "movable", 4 * MIB)) == []
    assert codes(here.unmet(case("vmsplice", "movable", 4 * MIB, processes=2))) == ["movable"]


def test_plain_memory_is_moved_out_of_cma_by_io_uring() -> None:
    with_cma = survey(Need.IO_URING, movable_bytes=GIB)
    assert codes(with_cma.unmet(case("vmsplice", "anon"))) == ["io-uring"]
    assert codes(with_cma.unmet(case("vmsplice", "ksm"))) == ["io-uring"]
    assert with_cma.unmet(case("vmsplice", "zero-page")) == []
    assert survey(Need.IO_URING).unmet(case("vmsplice", "anon")) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a writable directory"):
        scratch.directories([tmp_path / "none"])


def test_what_this_kernel_refuses_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "GUP_TEST", Path("/nowhere/gup_test"))
    told = {entry.code: entry.detail for entry in interfaces.unmet()}
    assert told["gup-test"] == "/nowhere/gup_test: No such file or directory"


def test_a_device_that_was_named_is_used_or_refused() -> None:
    nodes, unmet = devices.find({"v4l2": "/dev/null", "vfio": "0000:ff:1f.7", "devdax": "/dev/x"})
    assert nodes == {"devdax": "/dev/x"}
    told = {entry.code: entry.detail for entry in unmet}
    assert told["v4l2"].startswith("/dev/null: ")
    assert told["vfio"] == "0000:ff:1f.7: it is behind no IOMMU"


def test_a_limit_above_the_hard_one_is_not_to_be_had() -> None:
    wanted = case("vmsplice", "anon", memlock_bytes=2 * MIB)
    assert survey().unmet(wanted) == []
    (unmet,) = survey(memlock_ceiling_bytes=MIB).unmet(wanted)
    assert unmet.code == Need.MEMLOCK
    assert "2 MiB wanted" in unmet.detail
    assert survey(memlock_ceiling_bytes=2 * MIB).unmet(wanted) == []
