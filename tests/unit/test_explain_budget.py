"""The budget of a user: what is charged to it and what is not, and how sure the answer is."""

import pytest
from made_failures import KIB, a_record, an_ordinary_process, causes, explained, of_call

from pinstorm.evidence import Evidence, Holding
from pinstorm.explain import Cause

MIB = 1024 * KIB
USER = {"uid": 65534}
UNLIMITED = "prlimit --pid 4242 --memlock=unlimited:unlimited"
RING = a_record("io-uring-register", "anon", "ENOMEM", "io_uring_register", params=USER)


def rival(kind: str, size_bytes: int | None) -> Holding:
    return Holding(99, "python3", kind, size_bytes)


def seen(*holdings: Holding, own: tuple[Holding, ...] | None = ()) -> Evidence:
    return Evidence(process=an_ordinary_process(MIB), holdings=holdings, own_holdings=own)


@pytest.mark.parametrize("kind", ["io-uring", "xdp-umem", "iommufd"])
def test_what_is_charged_to_the_user_counts(kind: str) -> None:
    first = explained(RING, seen(rival(kind, 1000 * KIB))).first
    assert (first.cause, first.confidence) == (Cause.PIN_BUDGET_OF_USER, "certain")
    assert "the limit alone is enough: others of this user hold the rest" in first.evidence


@pytest.mark.parametrize("kind", ["mlock", "rdma-mr", "vfio", "vmpin", "vhost-vdpa", "udmabuf"])
def test_what_is_charged_to_a_process_does_not(kind: str) -> None:
    found = explained(RING, seen(rival(kind, 1000 * KIB)))
    assert "pin-budget-of-user" not in causes(found)


def test_an_iommufd_of_no_known_size_says_nothing() -> None:
    assert "pin-budget-of-user" not in causes(explained(RING, seen(rival("iommufd", None))))


def test_a_holder_that_is_not_charged_is_not_named() -> None:
    found = explained(RING, seen(rival("io-uring", 1000 * KIB), rival("mlock", 500 * KIB)))
    assert "mlock" not in " ".join(found.first.evidence)


def test_the_limit_is_raised_beyond_all_that_is_held() -> None:
    own = (Holding(4242, "me", "io-uring", 100 * KIB),)
    first = explained(RING, seen(rival("io-uring", 900 * KIB), own=own)).first
    assert first.cause == Cause.PIN_BUDGET_OF_USER
    assert first.command is not None
    soft = int(first.command.rpartition("=")[2].split(":")[0])
    assert soft >= (100 + 900 + 64) * KIB


@pytest.mark.parametrize(
    "evidence",
    [
        seen(rival("io-uring", None)),
        seen(rival("io-uring", 8 * KIB)),
        seen(rival("io-uring", 1000 * KIB), rival("xdp-umem", None)),
        seen(rival("io-uring", 1000 * KIB), own=(Holding(4242, "me", "io-uring", None),)),
        Evidence(process=an_ordinary_process(MIB)),
    ],
)
def test_where_sizes_are_not_known_the_limit_is_lifted(evidence: Evidence) -> None:
    found = explained(RING, evidence)
    budget = next(one for one in found.findings if one.cause == Cause.PIN_BUDGET_OF_USER)
    assert budget.command == UNLIMITED


def test_a_possibility_is_worded_as_one() -> None:
    found = explained(RING, seen(rival("io-uring", 8 * KIB)))
    budget = next(one for one in found.findings if one.cause == Cause.PIN_BUDGET_OF_USER)
    assert budget.confidence == "possible"
    assert "the limit alone is enough: others of this user may hold the rest" in budget.evidence


@pytest.mark.parametrize(
    ("own", "confidence"),
    [
        (None, "likely"),
        ((Holding(4242, "me", "io-uring", None),), "likely"),
        ((Holding(4242, "me", "io-uring", 1000 * KIB),), "certain"),
        ((Holding(4242, "me", "xdp-umem", 1000 * KIB),), "certain"),
    ],
)
def test_vmpin_alone_makes_nothing_of_a_ring_certain(
    own: tuple[Holding, ...] | None, confidence: str
) -> None:
    process = an_ordinary_process(MIB, vmpin_bytes=1000 * KIB)
    first = explained(RING, Evidence(process=process, holdings=(), own_holdings=own)).first
    assert (first.cause, first.confidence) == (Cause.MEMLOCK_LIMIT, confidence)


def test_vmpin_that_is_rdmas_fills_no_budget_of_a_ring() -> None:
    process = an_ordinary_process(MIB, vmpin_bytes=1000 * KIB)
    own = (Holding(4242, "me", "rdma-mr", 1000 * KIB),)
    found = explained(RING, Evidence(process=process, holdings=(), own_holdings=own))
    assert not {"memlock-limit", "pin-budget-of-user"} & set(causes(found))


def test_a_registration_beyond_the_limit_itself_needs_no_census_to_be_certain() -> None:
    first = explained(RING, Evidence(process=an_ordinary_process(32 * KIB))).first
    assert (first.cause, first.confidence) == (Cause.MEMLOCK_LIMIT, "certain")
    assert first.command == UNLIMITED  # what else the user holds was not looked at


def test_a_limit_that_is_enough_is_never_lowered() -> None:
    """mmap's EAGAIN may have nothing to do with the limit, which is above what was asked for."""
    evidence = Evidence(process=an_ordinary_process(MIB))
    found = of_call("mmap", "EAGAIN", evidence, size_bytes=64 * KIB)
    limit = next(one for one in found.findings if one.cause == Cause.MEMLOCK_LIMIT)
    assert limit.command == UNLIMITED
    small = Evidence(process=an_ordinary_process(32 * KIB))
    found = of_call("mmap", "EAGAIN", small, size_bytes=64 * KIB)
    limit = next(one for one in found.findings if one.cause == Cause.MEMLOCK_LIMIT)
    assert limit.command == f"prlimit --pid 4242 --memlock={64 * KIB}:{64 * KIB}"


@pytest.mark.parametrize("memlock_bytes", [0, 32 * KIB])
def test_a_limit_that_is_not_enough_for_one_blames_nobody_else(memlock_bytes: int) -> None:
    params = {**USER, "memlock_bytes": memlock_bytes}
    record = a_record("io-uring-register", "anon", "ENOMEM", "io_uring_register", params=params)
    busy = (rival("io-uring", MIB),)
    process = an_ordinary_process(memlock_bytes)
    for seen_then in (Evidence(), Evidence(process=process, holdings=busy, own_holdings=())):
        found = explained(record, seen_then)
        assert found.first.cause == Cause.MEMLOCK_LIMIT
        assert "pin-budget-of-user" not in causes(found)
