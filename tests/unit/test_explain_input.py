"""What the engine is given as people and files give it: spelt otherwise, damaged, or a guess."""

from typing import Any

import pytest
from made_failures import KIB, START, a_piece, a_process, a_record, causes, explained, of_call

from pinstorm import evidence, verdict
from pinstorm.evidence import Evidence
from pinstorm.evidence_parts import readable
from pinstorm.explain import Cause, Failure

DAMAGED = [
    {"process": 5},
    {"pieces": "x"},
    5,
    0,
    [1],
    "x",
    {"pieces": [{"start": "a", "end": None}]},
    {"process": {"pid": 1, "name": "x"}},
    {"process": {**Evidence(a_process()).to_json()["process"], "vmpin_bytes": "many"}},
    {"machine": {"free_huge_bytes": [1]}},
    {"hidden": "x"},
    {"kernel_log": [1]},
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_damaged_evidence_is_told_and_not_used(damaged: Any) -> None:
    record = a_record("rdma-register", "dax-shared", "EOPNOTSUPP", "ibv_reg_mr", evidence=damaged)
    found = explained(record)
    assert found.first.cause == Cause.LONGTERM_ON_DAX  # as without evidence
    told = [sentence for sentence in found.first.evidence if "evidence is damaged" in sentence]
    assert len(told) == 1
    judged = verdict.rejudge([{**record, "expected": None, "reason": None}])
    assert told[0] in judged[0]["explanation"]["evidence"]


def test_an_unknown_cause_tells_the_damage_once() -> None:
    found = explained(a_record("rdma-register", "anon", "EBUSY", "ibv_reg_mr", evidence=5))
    assert found.first.cause == Cause.UNKNOWN
    assert sum("damaged" in sentence for sentence in found.first.evidence) == 1


def test_evidence_of_an_older_and_of_a_newer_pinstorm_is_used() -> None:
    process = Evidence(a_process()).to_json()["process"]
    del process["real_uid"], process["vma_limit"]
    read = Evidence.from_json({"process": {**process, "mood": "good"}, "weather": 5})
    assert read.process == a_process(vma_limit=None)


def test_nothing_of_a_record_speaks_to_a_terminal() -> None:
    piece = a_piece(permissions="rw-s", path="/mnt/\x1b[31mred", fs_type="ext4", dax=True)
    record = a_record("rdma-register", "anon", "EOPNOTSUPP", "ibv_reg_mr")
    found = explained(record, Evidence(a_process(name="a\x1b]0;b\x07"), (piece,)))
    assert all(readable(sentence) == sentence for sentence in found.first.evidence)
    assert "/mnt/?[31mred" in " ".join(found.first.evidence)


def test_readable_keeps_what_people_write() -> None:
    assert readable("größe 大 (x)") == "größe 大 (x)"
    assert readable("a\nb\x9bc\u202ed\udcff") == "a?b?c?d\ufffd"
    assert readable("a\ud800b") == "a?b"


@pytest.mark.parametrize(
    ("spelling", "call"),
    [
        ("IBV_REG_MR()", "ibv_reg_mr"),
        ("  __ibv_reg_mr(pd, 0x7f)", "ibv_reg_mr"),
        ("vfio_iommu_map_dma", "VFIO_IOMMU_MAP_DMA"),
        ("rdma write", "RDMA WRITE"),
        ("rdma traffic", "RDMA traffic"),
        ("MADVISE()", "madvise"),
        ("My_Call()", "My_Call"),
        ("the process", "the process"),
    ],
)
def test_a_call_has_one_spelling(spelling: str, call: str) -> None:
    assert Failure(spelling, "ENOMEM").call == call


def test_the_spelling_of_a_call_changes_no_answer() -> None:
    for call in ("vidioc_qbuf", "VIDIOC_QBUF()"):
        found = of_call(call, "ENODEV")
        assert (found.first.cause, found.first.confidence) == (Cause.DEVICE_GONE, "certain")


@pytest.mark.parametrize(
    "call",
    ["IBV_REG_MR", "__ibv_reg_mr()", "ib_umem_get", "fi_mr_reg", "ucp_mem_map", "uct_md_mem_reg"],
)
def test_rdma_however_it_is_called(call: str) -> None:
    assert evidence._is_rdma(call)


@pytest.mark.parametrize("call", ["io_uring_register", "XDP_UMEM_REG", "file", "mmap"])
def test_what_is_not_rdma(call: str) -> None:
    assert not evidence._is_rdma(call)


def test_a_record_names_no_guess_not_even_a_single_one() -> None:
    found = explained(a_record("io-uring-register", "anon", "ENOMEM", "io_uring_register"))
    assert causes(found) == ["unknown", "no-memory"]
    found = of_call("preadv", "EINVAL")  # a person asked: a guess is better than nothing
    assert causes(found) == ["misaligned"]


@pytest.mark.parametrize("call", ["read", "write", "preadv", "pwritev2", "io_submit"])
def test_an_odd_size_of_anybodys_read_is_likely(call: str) -> None:
    first = of_call(call, "EINVAL", size_bytes=1000).first
    assert (first.cause, first.confidence) == (Cause.MISALIGNED, "likely")


def test_an_odd_size_of_a_case_of_direct_io_is_certain() -> None:
    params = {"size_bytes": 64 * KIB, "offset_bytes": 100}
    record = a_record("dio-read", "anon", "EINVAL", "preadv", params=params)
    first = explained(record).first
    assert record["region"][0] == START + 100
    assert (first.cause, first.confidence) == (Cause.MISALIGNED, "certain")


def test_an_odd_size_where_whole_pages_are_wanted_is_certain() -> None:
    first = of_call("XDP_UMEM_REG", "EINVAL", size_bytes=1000).first
    assert (first.cause, first.confidence) == (Cause.MISALIGNED, "certain")


def test_eagain_alone_is_a_possibility() -> None:
    first = of_call("ibv_reg_mr", "EAGAIN").first
    assert (first.cause, first.confidence) == (Cause.CGROUP_RDMA_LIMIT, "possible")
