"""Every refusal that the rules expect of the shipped suites gets its cause from its facts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_failures import a_record

from pinstorm import bundle, explain, oracle, suite, verdict
from pinstorm.explain import KNOWLEDGE, Cause, calls, causes
from workloads.spec import Case

ROOT = Path(__file__).parents[2]
REAL = Path(__file__).parent / "data" / "bundle-schema-1"
KERNELS = (
    ("6.1.0-54-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-1"),
    ("6.12.113+deb13-amd64", ""),
    ("7.2.11+deb13-amd64", ""),
)
# What the memory alone must come out as, whatever the call, where nothing else is in the way.
OF_MEMORY = {
    "dax-shared": {Cause.LONGTERM_ON_DAX},
    "dax-private": {Cause.LONGTERM_ON_DAX},
    "dax-private-cowed": {Cause.LONGTERM_ON_DAX},
    "ext4-shared": {Cause.LONGTERM_ON_FILE},
    "xfs-shared": {Cause.LONGTERM_ON_FILE},
    "btrfs-shared": {Cause.LONGTERM_ON_FILE},
    "ext4-private": {Cause.KERNEL_UNSUPPORTED},
    "devdax": {Cause.KERNEL_UNSUPPORTED},
    "tmpfs-file": {Cause.KERNEL_UNSUPPORTED},
    "movable-held": {Cause.MIGRATION_FAILED},
    "hole": {Cause.NOT_MAPPED},
    "past-eof": {Cause.NOT_MAPPED},
    "unmapped": {Cause.NOT_MAPPED},
    "beyond": {Cause.BAD_ADDRESS},
    "io-mapping": {Cause.IO_MAPPING},
    "prot-none": {Cause.PROTECTION},
    "prot-read": {Cause.PROTECTION},
    "secretmem": {Cause.SECRET_MEMORY},
    "anon": {Cause.MISALIGNED, Cause.MEMLOCK_LIMIT},
}


def _refusals() -> Iterator[tuple[Case, dict[str, Any]]]:
    for kernel, version in KERNELS:
        for case in suite.expand(suite.load("matrix")).cases:
            expected = oracle.expectation(
                case, kernel, oracle.Machine(target_fs="ext4"), kernel_version=version
            )
            for outcome in expected.outcomes:
                if outcome != "ok":
                    record = _record(case, outcome, expected.prepare_calls)
                    yield case, {**record, "kernel": kernel, "kernel_version": version}


def _record(case: Case, outcome: str, prepare_calls: tuple[str, ...]) -> dict[str, Any]:
    call = None if outcome == "short" else calls.of_workload(case.workload)
    if case.workload == "rdma-register-odp" and outcome != "EFAULT":
        call = "ibv_reg_mr"
    record = a_record(case.workload, case.memory, outcome, call, params=dict(case.params))
    if prepare_calls:
        record.update(failed_phase="prepare", failed_call=prepare_calls[0])
    if case.memory == "beyond":
        record["region"] = [1 << 56, case.size_bytes]
    if case.memory == "movable-held":
        record["migrate"] = {"success": 0, "fail": 16, "noise": 0}
    return record


REFUSALS = list(_refusals())


def test_there_are_many() -> None:
    assert len(REFUSALS) > 700


def test_each_gets_the_cause_of_its_memory_and_call() -> None:
    wrong = []
    for case, record in REFUSALS:
        found = explain.of_record(record)
        assert found is not None, case.id
        wanted = OF_MEMORY.get(case.memory, set())
        if record["failed_call"] == "ibv_reg_mr" and case.workload == "rdma-register-odp":
            wanted = {Cause.ODP_UNSUPPORTED}
        elif record["outcome"] == "EBADFD":
            wanted = {Cause.KERNEL_UNSUPPORTED}
        if found.first.cause not in wanted or found.first.confidence == "possible":
            wrong.append(f"{case.id} {record['kernel']} {record['outcome']}: {found.first}")
    assert not wrong, "\n".join(wrong[:20])


def test_what_is_proposed_instead_is_a_case_that_the_rules_say_is_ok() -> None:
    proposed = 0
    known = {one.id for one in suite.expand(suite.load("matrix")).cases}
    for case, record in REFUSALS:
        found = explain.of_record(record)
        assert found is not None
        if found.first.instead is None:
            assert found.first.cause == Cause.MEMLOCK_LIMIT, case.id
            continue
        proposed += 1
        assert found.first.instead != case.id
        assert found.first.instead in known
    assert proposed > 600


@pytest.mark.parametrize(
    ("case", "kernel", "instead"),
    [
        (
            ("rdma-register", "dax-shared", {"access": "rw"}),
            2,
            "rdma-register-odp/dax-shared/rw/64KiB",
        ),
        (("rdma-register", "dax-shared", {"access": "rw"}), 1, "rdma-register/devdax/rw/64KiB"),
        (
            ("rdma-register", "ext4-shared", {"access": "rw"}),
            2,
            "rdma-register/ext4-shared/ro/64KiB",
        ),
        (("io-uring-register", "ext4-shared", {}), 2, "io-uring-register/memfd/64KiB"),
        (
            ("dio-read-uring", "dax-shared", {"registered": True}),
            2,
            "dio-read-uring/dax-shared/64KiB",
        ),
        (("rdma-register", "movable-held", {"access": "rw"}), 2, "rdma-register/movable/rw/64KiB"),
        (("af-xdp-umem", "anon", {"offset_bytes": 512}), 2, "af-xdp-umem/anon/64KiB"),
        (("rdma-register-odp", "dax-shared", {"access": "rw"}), 0, "rdma-register/anon/rw/64KiB"),
        (("rdma-register", "hole", {"access": "ro"}), 0, "rdma-register/anon/ro/64KiB"),
        (("udmabuf", "past-eof", {}), 2, "udmabuf/memfd/64KiB"),
    ],
)
def test_the_nearest_case_is_proposed(
    case: tuple[str, str, dict[str, Any]], kernel: int, instead: str
) -> None:
    workload, memory, params = case
    wanted = {"size_bytes": 65536, **params}
    (record,) = [
        record
        for one, record in REFUSALS
        if (one.workload, one.memory, dict(one.params)) == (workload, memory, wanted)
        and record["kernel"] == KERNELS[kernel][0]
    ]
    found = explain.of_record(record)
    assert found is not None
    assert found.first.instead == instead


def test_a_real_bundle_is_explained_when_it_is_judged_again() -> None:
    records = bundle.open_bundle(REAL).records
    assert not any(record.get("cause") for record in records)
    judged = verdict.rejudge(records)
    refused = [r for r in judged if r["outcome"] not in (None, "ok") and r["verdict"] != "skip"]
    assert refused
    named = {(r["memory"], r["cause"], r["explanation"]["confidence"]) for r in refused}
    assert named == {
        ("dax-shared", "longterm-on-dax", "likely"),
        ("ext4-shared", "longterm-on-file", "likely"),
        ("movable-held", "migration-failed", "certain"),
    }
    assert not any(r["cause"] for r in judged if r["outcome"] == "ok")
    json.dumps(judged)


def test_the_document_is_made_from_the_causes() -> None:
    # Write causes.markdown() into it when a cause changes.
    text = (ROOT / "docs/causes.md").read_text()
    assert text == causes.markdown()
    assert "docs/causes.md" in (ROOT / "README.md").read_text()
    assert set(KNOWLEDGE) == set(Cause)
    assert set(causes.COMMON) == set(Cause)
    assert max(map(len, text.splitlines())) <= 100
