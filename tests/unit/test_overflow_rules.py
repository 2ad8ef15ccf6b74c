"""gup-overflow: what its suite may say, what the rules make of it, and kernel reports that a rule
requires. Constructed records; what real kernels do is tested in tests/lab."""

import errno
from dataclasses import replace
from typing import Any

import pytest

import workloads
from pinstorm import budget, needs, oracle, suite
from pinstorm.errors import UsageError
from pinstorm.needs.unmet import lacks
from pinstorm.verdict import judge
from workloads.gup_overflow import Overflow
from workloads.spec import (
    MIB,
    OVERFLOW_PINS,
    PAGE_BYTES,
    CallFailed,
    Case,
    Need,
    Surroundings,
    overflow_times,
)

KERNELS = ("6.1.192", "6.12.107+deb13-amd64", "7.2.11+deb13-amd64")
LIMIT = 1 << 21
REPORT = "WARNING: mm/gup.c:143 at try_grab_folio+0x77/0xc0, CPU#1: python/154\nModules linked in:"
OLD_REPORT = "WARNING: CPU: 1 PID: 151 at mm/gup.c:224 try_grab_page+0xd6/0x100\nModules linked in:"


def case(memory: str, through: str, size_bytes: int = 16 * MIB) -> Case:
    return Case("gup-overflow", memory, {"size_bytes": size_bytes, "through": through})


def test_the_limit_is_two_to_the_twenty_one_less_the_pages_own_references() -> None:
    # 1024 for each pin, and of the page's own 16384 mappings and one of the page cache
    for kernel in KERNELS:
        of = oracle.expectation(case("one-page", "rdma", 64 * MIB), kernel)
        assert of.bounds["acquired"] == oracle.Range(LIMIT - 16, LIMIT - 16)
        of = oracle.expectation(case("one-page", "rdma", 2 * MIB), kernel)
        assert of.bounds["acquired"] == oracle.Range(LIMIT, LIMIT)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("through", "size_bytes", "outcome"),
    [
        ("io-uring", 16 * MIB, "EFAULT"),
        # the page has all its pins when a ring asks for the first one of its own
        ("io-uring", 2 * MIB, "ENOMEM"),
        ("rdma", 16 * MIB, "ENOMEM"),
        ("rdma", 2 * MIB, "ENOMEM"),
        ("af-xdp", 16 * MIB, "ENOMEM"),
        ("af-xdp", 2 * MIB, "ENOMEM"),
    ],
)
def test_what_each_interface_makes_of_it(
    kernel: str, through: str, size_bytes: int, outcome: str
) -> None:
    of = oracle.expectation(case("one-page", through, size_bytes), kernel)
    assert of.outcomes == (outcome,)
    assert of.required_messages == of.kernel_messages != ()
    assert of.taint == "W"
    assert of.bounds["held"] == of.bounds["vmpin_bytes"] == oracle.Range(0, 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("through", "vmpin_bytes"), [("rdma", 4224 * 2 * MIB), ("af-xdp", 0)])
def test_large_folio_has_no_such_limit(kernel: str, through: str, vmpin_bytes: int) -> None:
    of = oracle.expectation(case("hugetlb-2m", through, 2 * MIB), kernel)
    assert of.outcomes == ("ok",)
    assert of.bounds["acquired"] == of.bounds["held"] == oracle.Range(4224 * 512, 4224 * 512)
    assert of.bounds["acquired"].low == OVERFLOW_PINS > LIMIT
    assert of.bounds["vmpin_bytes"] == oracle.Range(vmpin_bytes, vmpin_bytes)
    assert (of.required_messages, of.kernel_messages, of.taint) == ((), (), "")


@pytest.mark.parametrize(
    ("kernel", "size_bytes", "held", "vmpin_bytes"),
    [
        ("6.1.192", 2 * MIB, 4224 * 512, 4224 * 2 * MIB),
        ("6.5.13", 2 * MIB, 4224, 4224 * 2 * MIB),
        ("6.5.13", 4 * MIB, 2112 * 1024, 2112 * 4 * MIB),
        ("6.12.107", 4 * MIB, 2112 * 2, 2112 * 4 * MIB),
        ("7.2.11", 2 * MIB, 4224, 0),
    ],
)
def test_io_uring_keeps_one_pin_of_a_large_folio(
    kernel: str, size_bytes: int, held: int, vmpin_bytes: int
) -> None:
    of = oracle.expectation(case("hugetlb-2m", "io-uring", size_bytes), kernel)
    assert of.bounds["held"] == oracle.Range(held, held)
    assert of.bounds["vmpin_bytes"] == oracle.Range(vmpin_bytes, vmpin_bytes)


# -- a report that must be there ---------------------------------------------------------------


def record(**changes: Any) -> dict[str, Any]:
    """What Linux 7.2 makes of one page through RDMA, with changes."""
    pins = LIMIT - 4
    return {
        "kernel": KERNELS[2],
        "accel": "kvm",
        "device": "rxe0",
        "workload": "gup-overflow",
        "memory": "one-page",
        "params": {"through": "rdma", "size_bytes": 16 * MIB},
        "uid": 0,
        "outcome": "ENOMEM",
        "failed_call": "ibv_reg_mr",
        "failed_phase": "acquire",
        "outcomes": {"ENOMEM": 1},
        "placement": {"zones": {"Normal": 4096}, "cma_pages": 0, "folio_orders": {"0": 4096}},
        "pins": {
            "exact": True,
            "bound": 0,
            "noise": 0,
            "acquire": {"acquired": pins, "released": pins},
            "release": None,
            "held": 0,
            "leaked": 0,
            "orphaned": 0,
        },
        "vmpin_bytes": {"held": None, "after": 0},
        "migrate": {"success": 0, "fail": 0},
        "signal": None,
        "kmsg": [REPORT],
        "taint": 1 << 9,
        "owner_errors": [],
        **changes,
    }


@pytest.mark.parametrize("report", [REPORT, OLD_REPORT])
@pytest.mark.parametrize("taint", [0, 1 << 9])
def test_report_that_the_rule_requires_is_there(report: str, taint: int) -> None:
    judged = judge(record(kmsg=[report], taint=taint))
    assert (judged.verdict, judged.reason, judged.expected["broken"]) == ("pass", None, [])


@pytest.mark.parametrize("kmsg", [[], ["WARNING: mm/slub.c:1 at kfree+0x1/0x2"]])
def test_without_it_the_case_fails(kmsg: list[str]) -> None:
    judged = judge(record(kmsg=kmsg))
    assert (judged.verdict, judged.reason) == ("fail", "kernel-log")
    assert any("did not report WARNING" in said for said in judged.expected["broken"])


def test_another_report_fails_it_as_well() -> None:
    judged = judge(record(kmsg=[REPORT, "WARNING: mm/slub.c:1 at kfree+0x1/0x2"]))
    assert (judged.verdict, judged.reason) == ("fail", "kernel-log")
    assert judged.expected["broken"] == [
        "the kernel reported: WARNING: mm/slub.c:1 at kfree+0x1/0x2"
    ]


def test_log_that_cannot_be_read_proves_nothing() -> None:
    judged = judge(record(kmsg=None))
    assert (judged.verdict, judged.reason) == ("pass", "telemetry-unavailable")


def test_wrong_outcome_comes_before_the_log() -> None:
    judged = judge(record(outcome="EFAULT", outcomes={"EFAULT": 1}, kmsg=[]))
    assert (judged.verdict, judged.reason) == ("fail", "outcome")
    assert len(judged.expected["broken"]) == 1


def test_report_is_no_surprise_on_a_large_folio_only() -> None:
    pins = {"acquire": {"acquired": OVERFLOW_PINS, "released": 0}, "held": OVERFLOW_PINS}
    large = record(
        memory="hugetlb-2m",
        params={"through": "af-xdp", "size_bytes": 2 * MIB},
        outcome="ok",
        failed_call=None,
        failed_phase=None,
        outcomes={"ok": 1},
        pins={**record()["pins"], **pins},
        taint=0,
    )
    assert judge(large).reason == "kernel-log"
    assert judge({**large, "kmsg": []}).verdict == "pass"


def test_pins_are_counted_exactly() -> None:
    for pins in (LIMIT - 5, LIMIT - 3):
        figures = {**record()["pins"], "acquire": {"acquired": pins, "released": pins}}
        assert judge(record(pins=figures)).reason == "acquired"


def test_of_two_rules_both_must_require_it() -> None:
    one = oracle.expectation(case("one-page", "rdma"), KERNELS[2])
    other = replace(one, rule="other", required_messages=())
    assert oracle._join(one, one, "undecided: vendor-kernel").required_messages
    assert oracle._join(one, other, "undecided: vendor-kernel").required_messages == ()


# -- the suite, needs and budget ---------------------------------------------------------------

ENTRY = '[[matrix]]\nworkload = "gup-overflow"\nmemory = "one-page"\nsize = "16MiB"\n'


def expand(text: str) -> suite.Expansion:
    return suite.expand(suite.parse(text, "x.toml"))


def test_the_shipped_suite_is_one_cycle_of_each() -> None:
    cases = suite.expand(suite.load("overflow")).cases
    assert {(one.memory, one.params["through"]) for one in cases} == {
        ("one-page", "io-uring"),
        ("one-page", "rdma"),
        ("one-page", "af-xdp"),
        ("hugetlb-2m", "rdma"),
        ("hugetlb-2m", "af-xdp"),
    }
    assert {(one.repeat, one.warmup) for one in cases} == {(0, 0)}


def test_through_is_io_uring_unless_the_suite_says() -> None:
    assert [one.id for one in expand(ENTRY).cases] == [
        "gup-overflow/one-page/16MiB/through=io-uring"
    ]


def test_an_interface_that_there_is_not() -> None:
    with pytest.raises(UsageError, match='no interface "af-xpd"; did you mean "af-xdp"') as caught:
        expand(ENTRY + 'through = "af-xpd"\n')
    assert "[[matrix]] 1, through" in str(caught.value)


def test_memories_it_says_nothing_about_are_left_out() -> None:
    made = expand(ENTRY.replace('"one-page"', '"*"'))
    assert {one.memory for one in made.cases} == {"one-page", "hugetlb-2m"}
    assert any("says nothing about that memory" in note for note in made.notes)
    assert all(one.memory != "one-page" for one in suite.expand(suite.load("matrix")).cases)
    with pytest.raises(UsageError, match="expands to no case"):
        expand(ENTRY.replace("gup-overflow", "vmsplice"))


@pytest.mark.parametrize(
    ("through", "need"),
    [("io-uring", Need.IO_URING), ("rdma", Need.RDMA_DEVICE), ("af-xdp", Need.AF_XDP)],
)
def test_needs_are_those_of_the_interface(through: str, need: Need) -> None:
    assert needs.needs_of(case("one-page", through)) == (
        Need.DESTRUCTIVE,
        Need.CLEAR_WARN_ONCE,
        need,
    )


def test_unless_the_machine_may_crash_it_is_skipped_with_the_remedy() -> None:
    unmet = {Need.DESTRUCTIVE: lacks(Need.DESTRUCTIVE, "the case could crash this machine")}
    (found,) = needs.Survey(Surroundings(), unmet).unmet(case("one-page", "io-uring"))
    assert found.code == "destructive"
    assert "--destructive" in found.remedy
    assert "pinstorm lab run" in found.remedy


def test_the_budget_counts_what_is_mapped() -> None:
    one = case("one-page", "rdma")
    assert workloads.mapped_bytes(one) == 16 * MIB
    budget.check([one], 16 * MIB)
    with pytest.raises(UsageError, match="would pin"):
        budget.check([one], 16 * MIB - 1)


# -- the workload ------------------------------------------------------------------------------


class Registration:
    """One that the kernel takes, or refuses; ``log`` sees it come and go."""

    done_bytes: int | None = None

    def __init__(self, log: list[str], refused: bool = False, stuck: bool = False):
        self._log, self._refused, self._stuck = log, refused, stuck

    def aim_at(self, region: Any) -> None:
        raise AssertionError("not asked for")

    def acquire(self) -> int:
        if self._refused:
            raise CallFailed("ibv_reg_mr", errno.ENOMEM, elapsed_ns=7)
        self._log.append("acquire")
        return 2

    def release(self) -> int:
        self._log.append("release")
        if self._stuck:
            raise CallFailed("ibv_dereg_mr", errno.EBUSY)
        return 3


def test_a_refusal_gives_back_what_came_before_it() -> None:
    log: list[str] = []
    made = [Registration(log), Registration(log), Registration(log, refused=True)]
    with pytest.raises(CallFailed) as caught:
        Overflow(made).acquire()
    assert log == ["acquire", "acquire", "release", "release"]
    refusal = caught.value
    assert (refusal.call, refusal.errno, refusal.elapsed_ns) == ("ibv_reg_mr", errno.ENOMEM, 11)
    assert refusal.detail == "registration 3 of 3"


def test_a_release_that_fails_stops_no_other_and_hides_no_refusal() -> None:
    log: list[str] = []
    made = [Registration(log), Registration(log, stuck=True), Registration(log, refused=True)]
    with pytest.raises(CallFailed) as caught:
        Overflow(made).acquire()
    assert log.count("release") == 2
    assert caught.value.errno == errno.ENOMEM
    assert "one could not be given back: ibv_dereg_mr" in caught.value.detail


def test_all_are_given_back_in_the_end() -> None:
    log: list[str] = []
    overflow = Overflow([Registration(log), Registration(log)])
    assert overflow.acquire() == 4
    assert overflow.release() == 6
    assert overflow.release() == 0
    assert log == ["acquire", "acquire", "release", "release"]


def test_as_many_registrations_as_the_pins_take() -> None:
    assert overflow_times(512) * 512 == OVERFLOW_PINS
    assert (overflow_times(4097) - 1) * 4097 < OVERFLOW_PINS <= overflow_times(4097) * 4097
    assert PAGE_BYTES == 4096
