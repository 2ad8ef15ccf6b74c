"""Whose pins they are: the methods one by one, where they end, and what a verdict makes of it."""

from typing import Any

import pytest

from pinstorm import figures, noise, verdict
from pinstorm.attribution import attribute
from telemetry.vmstat import Snapshot

PAGES = 16
BYTES = PAGES * 4096
RDMA = {"workload": "rdma-register", "params": {"size_bytes": BYTES, "access": "rw"}}
RING = {"workload": "io-uring-register"}
PLAIN = {"folio_orders": {"0": PAGES}, "zones": {"Normal": PAGES}, "cma_pages": 0}


def call(**changes: Any) -> dict[str, Any]:
    return {
        "function": "pin_user_pages_fast",
        "flags": ["FOLL_WRITE"],
        "calls": 1,
        "pages_asked": PAGES,
        "pages_returned": PAGES,
        "caller": "iov_iter_extract_pages",
        "via": None,
        "by": "process",
        "phase": "acquire",
        **changes,
    }


BEHIND = call(function="gup_fast_fallback", flags=["FOLL_PIN"], via="pin_user_pages_fast")


def pins(**changes: Any) -> dict[str, Any]:
    return {
        "exact": True,
        "refreshed": True,
        "bound": 0,
        "noise": 0,
        "recent": 0,
        "flagged": False,
        "acquire": {"acquired": PAGES, "released": 0},
        "release": {"acquired": 0, "released": PAGES},
        "held": PAGES,
        "leaked": 0,
        "orphaned": 0,
        "remaining": [0, 0],
        "cycles": None,
        **changes,
    }


def noisy(acquired: int = 900, **changes: Any) -> dict[str, Any]:
    acquire = {"acquired": acquired, "released": acquired - 77}
    return pins(**{"exact": False, "noise": 300, "acquire": acquire, "held": 77, **changes})


def record(**changes: Any) -> dict[str, Any]:
    return {
        "workload": "dio-read",
        "memory": "anon",
        "params": {"size_bytes": BYTES},
        "kernel": "7.2.0",
        "outcome": "ok",
        "outcomes": {"ok": 1},
        "failed_phase": None,
        "failed_call": None,
        "pins": pins(),
        "vmpin_bytes": {"held": 0, "after": 0},
        "vmlck_bytes": {"held": 0, "after": 0},
        "migrate": {"success": 0, "fail": 0},
        "placement": PLAIN,
        "gup_calls": None,
        "no_trace": None,
        "uid": 0,
        "kmsg": [],
        "taint": 0,
        **changes,
    }


def said(**changes: Any) -> tuple[Any, ...]:
    """Acquired and held, each with its method, and whether two methods agree."""
    attributed = attribute(record(**changes))
    assert attributed is not None
    assert attributed["why"]
    method = attributed["method"]
    acquired = attributed["acquired"], method["acquired"]
    held = attributed["held"], method["held"]
    return *acquired, *held, attributed["agree"]


UNKNOWN = (None, "unattributable")
QUIET = (PAGES, "exact-quiet")


def test_on_a_quiet_machine_what_moved_is_the_cases() -> None:
    assert said() == (*QUIET, *QUIET, None)
    assert said(gup_calls=[call(), BEHIND]) == (*QUIET, *QUIET, True)


@pytest.mark.parametrize("change", [{"noise": 1}, {"recent": 1}, {"refreshed": False}])
def test_one_pin_nearby_or_a_stale_counter_leaves_nothing_certain(change: dict[str, int]) -> None:
    assert said(pins=pins(exact=False, **change)) == (*UNKNOWN, *UNKNOWN, None)


def test_beside_others_the_trace_says_what_was_acquired_and_not_what_is_held() -> None:
    traced = said(pins=noisy(), gup_calls=[call(), BEHIND])
    assert traced == (PAGES, "trace", *UNKNOWN, None)
    several = [call(calls=3, pages_returned=48), call(function="pin_user_pages_remote"), BEHIND]
    assert said(pins=noisy(), gup_calls=several)[:2] == (64, "trace")
    assert said(pins=noisy(), gup_calls=[])[:2] == (0, "trace")


@pytest.mark.parametrize(
    "changes",
    [
        {"gup_calls": [call(errors={"EFAULT": 1})]},
        {"gup_calls": [call(by="kernel-thread")]},
        {"gup_calls": [call(unreturned=1)]},
        {"gup_calls": [call()], "outcome": "EFAULT"},
        {"gup_calls": [call()], "migrate": {"success": 16, "fail": 0}},
        {"gup_calls": [call()], "migrate": {"success": 0, "fail": 1}},
        {"gup_calls": [call()], "memory": "zero-page"},
        {"gup_calls": [call()], "memory": "anon-untouched"},
        {"gup_calls": None},
    ],
)
def test_what_the_trace_cannot_show_is_not_attributed_by_it(changes: dict[str, Any]) -> None:
    assert said(pins=noisy(), **changes)[:2] == UNKNOWN


@pytest.mark.parametrize(
    "other",
    [
        call(phase="release"),
        call(function="get_user_pages_fast"),
        call(function="hmm_range_fault"),
        BEHIND,
    ],
)
def test_only_what_pins_in_acquire_is_added_up_and_once(other: dict[str, Any]) -> None:
    assert said(pins=noisy(), gup_calls=[call(), other])[:2] == (PAGES, "trace")


def test_vmpin_says_what_rdma_holds_and_leaks() -> None:
    held = {"held": BYTES, "after": 4096}
    attributed = attribute(record(**RDMA, pins=noisy(), vmpin_bytes=held))
    assert attributed is not None
    assert (attributed["held"], attributed["leaked"]) == (PAGES, 1)
    assert attributed["method"]["leaked"] == "vmpin"


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({**RING, "vmpin_bytes": {"held": BYTES, "after": 0}}, (PAGES, "vmpin")),
        # made with CAP_IPC_LOCK, on 7.2
        ({**RING, "vmpin_bytes": {"held": 0, "after": 0}}, UNKNOWN),
        (
            {
                **RING,
                "vmpin_bytes": {"held": 2 << 20, "after": 0},
                "placement": {**PLAIN, "folio_orders": {"9": PAGES}},
            },
            UNKNOWN,
        ),
        ({**RING, "vmpin_bytes": {"held": BYTES, "after": 0}, "placement": None}, UNKNOWN),
        ({"workload": "af-xdp-umem", "vmpin_bytes": {"held": 0, "after": 0}}, UNKNOWN),
        ({"workload": "vfio-map", "vmpin_bytes": {"held": 0, "after": 0}}, UNKNOWN),
        ({**RDMA, "vmpin_bytes": {"held": None, "after": None}}, UNKNOWN),
        ({**RDMA, "vmpin_bytes": {"held": 0, "after": 0}, "outcome": "EFAULT"}, UNKNOWN),
    ],
)
def test_vmpin_counts_only_where_it_counts_pages(
    changes: dict[str, Any], held: tuple[Any, ...]
) -> None:
    assert said(pins=noisy(), **changes)[2:4] == held


def test_methods_that_disagree_say_so() -> None:
    attributed = attribute(record(gup_calls=[call(pages_returned=15)]))
    assert attributed is not None
    assert attributed["agree"] is False
    assert "do not agree" in attributed["why"]


@pytest.mark.parametrize("given", [None, pins(acquire=None, held=None)])
def test_without_figures_there_is_nothing_to_attribute(given: dict[str, Any] | None) -> None:
    assert attribute(record(pins=given)) is None


# The verdict beside others.


def judged(**changes: Any) -> tuple[str, str | None]:
    judgement = verdict.judge(record(**changes), lab=False)
    return judgement.verdict, judgement.reason


@pytest.mark.parametrize("change", [{"noise": 1}, {"recent": 4096, "noise": 0}])
@pytest.mark.parametrize("acquired", [PAGES, PAGES + 1, 70000])
def test_more_than_the_cases_own_is_nobodys_failure(acquired: int, change: dict[str, int]) -> None:
    found = noisy(acquired, leaked=4096, orphaned=4096, **change)
    assert judged(pins=found) == ("pass", "noisy-window")


def test_fewer_than_the_cases_own_cannot_be_others_doing() -> None:
    assert judged(pins=noisy(PAGES - 1)) == ("fail", "acquired")


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [
        ([16, 0], ("fail", "leaked")),
        # others began to hold in the window, and go on
        ([4112, 4096], ("pass", "noisy-window")),
        ([-4096, 0], ("pass", "noisy-window")),
        ([0, 0], ("pass", "noisy-window")),
        (None, ("pass", "noisy-window")),
    ],
)
def test_a_leak_is_what_stays_until_the_process_ends(
    remaining: list[int] | None, expected: tuple[str, str]
) -> None:
    assert judged(pins=noisy(remaining=remaining)) == expected


@pytest.mark.parametrize("others", [{"noise": 1}, {"noise": 0, "recent": 1}, {"noise": 4095}])
@pytest.mark.parametrize("watched", [{}, {"stayed": 4096}])
def test_what_is_more_than_others_move_and_never_goes_is_a_leak(
    others: dict[str, int], watched: dict[str, int]
) -> None:
    left = noisy(leaked=4096, orphaned=4096, remaining=[4096, 4096], **others, **watched)
    assert judged(pins=left) == ("fail", "orphaned")
    assert judged(pins=left, outcome="EIO", failed_call="read") == ("fail", "outcome")


def test_a_leak_below_what_others_move_is_nobodys_and_nobody_says_there_is_none() -> None:
    left = noisy(leaked=PAGES, orphaned=PAGES, remaining=[PAGES, PAGES], stayed=PAGES)
    assert judged(pins=left) == ("pass", "noisy-window")
    rdma = {"workload": "rdma-register", "params": {"access": "rw", "size_bytes": BYTES}}
    accounted = {"vmpin_bytes": {"held": BYTES, "after": 0}, **rdma}
    found = attribute(record(pins=left, **accounted))
    assert found is not None
    assert (found["leaked"], found["method"]["leaked"]) == (None, "unattributable")
    gone = attribute(record(pins={**left, "stayed": 0}, **accounted))
    assert gone is not None
    assert (gone["leaked"], gone["method"]["leaked"]) == (0, "vmpin")


def test_what_the_trace_shows_is_judged_beside_others() -> None:
    assert judged(pins=noisy(), gup_calls=[call(), BEHIND])[0] == "pass"
    twice = [call(calls=2, pages_returned=32), BEHIND]
    assert judged(pins=noisy(), gup_calls=twice) == ("fail", "acquired")


# Who confirms a figure, and who was there lately.


def test_a_figure_is_confirmed_by_its_rule_or_by_the_timed_cycles() -> None:
    quiet = pins(cycles={"acquired": 6 * PAGES, "released": 6 * PAGES})
    rule = {"acquired": PAGES, "held": PAGES}
    loose = {"acquired": [1, None], "held": [0, None]}
    assert figures.confirmed(pins(), rule, 0)
    assert figures.confirmed(quiet, loose, 6)
    assert not figures.confirmed(quiet, loose, 5)
    assert not figures.confirmed(pins(), loose, 0)
    moved = pins(acquire={"acquired": PAGES + 1, "released": 1}, cycles=quiet["cycles"])
    assert not figures.confirmed(moved, rule, 6)


def snapshot(t_ns: int, acquired: int, released: int = 0) -> Snapshot:
    return Snapshot(t_ns, acquired, released)


def test_a_burst_between_two_cases_is_remembered_for_a_while() -> None:
    recent = noise.Recent(between_cases=True)
    recent.leave(snapshot(0, 100))
    recent.come_back(snapshot(10, 164, 64))
    assert (recent.since(0), recent.since(10), recent.since(11)) == (64, 64, 0)


def test_in_a_guest_what_moves_between_cases_is_the_runs_own() -> None:
    recent = noise.Recent(between_cases=False)
    recent.leave(snapshot(0, 100))
    recent.come_back(snapshot(10, 164, 64))
    assert recent.since(0) == 0
