"""judge() on records that were written by hand: constructed inputs to pure logic, no kernel's
answers. What real kernels answer is tested in tests/host and tests/lab."""

import copy
from typing import Any

import pytest

from pinstorm import oracle, verdict
from pinstorm.verdict import Judgement, judge, rejudge
from pinstorm.witness import NOT_ASKED
from workloads.spec import MIB

PAGES = 4096
BYTES = 16 * MIB
WARNING = "WARNING: CPU: 0 PID: 77 at mm/gup.c:140 try_grab_folio+0x1/0x2\nCall Trace:"
OOPS = "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP"


def record(**changes: Any) -> dict[str, Any]:
    """A passing rdma-register of 16 MiB of anonymous memory in the lab, with changes."""
    return {
        "kernel": "7.2.11+deb13-amd64",
        "accel": "kvm",
        "device": "rxe0",
        "workload": "rdma-register",
        "memory": "anon",
        "params": {"access": "rw", "size_bytes": BYTES},
        "uid": 0,
        "outcome": "ok",
        "failed_call": None,
        "failed_phase": None,
        "detail": None,
        "outcomes": {"ok": 22},
        "placement": placement(),
        "pins": pins(),
        "vmpin_bytes": {"held": BYTES, "after": 0},
        "migrate": {"success": 0, "fail": 0},
        "signal": None,
        "kmsg": [],
        "taint": "",
        "owner_errors": [],
        "telemetry": {"pins_available": True},
        **changes,
    }


def placement(**changes: Any) -> dict[str, Any]:
    return {
        "zones": {"Normal": PAGES},
        "cma_pages": 0,
        "folio_orders": {"0": PAGES},
        **changes,
    }


def pins(**changes: Any) -> dict[str, Any]:
    return {
        "exact": True,
        "bound": 0,
        "noise": 0,
        "flagged": False,
        "acquire": {"acquired": PAGES, "released": 0},
        "release": {"acquired": 0, "released": PAGES},
        "held": PAGES,
        "leaked": 0,
        "orphaned": 0,
        "cycles": {"acquired": 21 * PAGES, "released": 21 * PAGES},
        **changes,
    }


def refused(outcome: str, memory: str, **changes: Any) -> dict[str, Any]:
    """A refusal of the same registration on another memory."""
    fields: dict[str, Any] = {
        "memory": memory,
        "outcome": outcome,
        "failed_call": "ibv_reg_mr",
        "failed_phase": "acquire",
        "outcomes": {outcome: 22},
        "pins": pins(
            acquire={"acquired": 1, "released": 1},
            release=None,
            held=0,
            cycles={"acquired": 21, "released": 21},
        ),
        "vmpin_bytes": {"held": None, "after": 0},
    }
    return record(**{**fields, **changes})


def short(judgement: Judgement) -> tuple[str, str | None]:
    return judgement.verdict, judgement.reason


def test_a_case_that_does_as_the_rules_say_passes() -> None:
    judgement = judge(record())
    assert short(judgement) == ("pass", None)
    assert judgement.expected["rule"] == "longterm"
    assert judgement.expected["broken"] == []


@pytest.mark.parametrize(
    ("outcome", "memory", "changes"),
    [
        ("EFAULT", "ext4-shared", {}),
        ("EOPNOTSUPP", "dax-shared", {"pins": None}),
        ("ENOMEM", "movable-held", {"migrate": {"success": 511, "fail": 1}}),
    ],
)
def test_an_expected_refusal_passes(outcome: str, memory: str, changes: dict[str, Any]) -> None:
    assert judge(refused(outcome, memory, **changes)).verdict == "pass"


BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"outcome": "ENOMEM", "failed_call": "ibv_reg_mr"}, "outcome", "ibv_reg_mr gave ENOMEM"),
    ({"outcome": "short"}, "outcome", "outcome short, expected ok"),
    ({"outcomes": {"ok": 21, "ENOMEM": 1}}, "unstable", "1 ENOMEM, 21 ok"),
    ({"pins": pins(leaked=12)}, "leaked", "12 pages still held after release, expected 0"),
    ({"pins": pins(leaked=-3)}, "leaked", "3 pages more given back than taken, expected 0"),
    ({"pins": pins(orphaned=1)}, "orphaned", "1 page still held after the process had ended"),
    (
        {"pins": pins(cycles={"acquired": 9, "released": 8})},
        "leaked",
        "the timed cycles took 9 pins and gave back 8",
    ),
    ({"pins": pins(acquire={"acquired": 8192, "released": 4096})}, "acquired", "acquired 8192"),
    ({"pins": pins(held=12)}, "held", "held 12 pages, expected 4096"),
    ({"vmpin_bytes": {"held": 0, "after": 0}}, "vmpin", "VmPin 0 bytes while held, expected 16777"),
    ({"vmpin_bytes": {"held": BYTES, "after": 4096}}, "vmpin", "VmPin 4096 bytes after release"),
    ({"migrate": {"success": 7, "fail": 0}}, "migrate", "7 pages migrated, expected 0"),
    ({"kmsg": [WARNING]}, "kernel-log", "the kernel reported: WARNING: CPU: 0 PID: 77"),
    ({"taint": "W"}, "taint", "the kernel was tainted: W"),
    ({"owner_errors": ["memory: EINVAL"]}, "release", "could not be given back: memory: EINVAL"),
    (
        {"outcome": "EBUSY", "failed_call": "ibv_dereg_mr", "failed_phase": "release"},
        "release",
        "release failed: ibv_dereg_mr gave EBUSY",
    ),
    (
        {
            "outcome": "ENOMEM",
            "failed_call": "mmap",
            "failed_phase": "prepare",
            "detail": "no free hugepages",
            "pins": None,
            "migrate": None,
        },
        "prepare",
        "the case could not be prepared: no free hugepages",
    ),
    (
        {"outcome": None, "failed_phase": "prepare", "detail": "pages lie in CMA", "pins": None},
        "prepare",
        "the case could not be prepared: pages lie in CMA",
    ),
]


@pytest.mark.parametrize(("changes", "reason", "sentence"), BROKEN)
def test_what_is_broken_is_named_and_told(
    changes: dict[str, Any], reason: str, sentence: str
) -> None:
    judgement = judge(record(**changes))
    assert short(judgement) == ("fail", reason)
    assert any(sentence in broken for broken in judgement.expected["broken"])


def test_a_pin_that_others_gave_back_meanwhile_is_no_orphan() -> None:
    assert judge(record(pins=pins(orphaned=-1))).verdict == "pass"


def test_the_first_cause_is_the_reason_and_all_are_told() -> None:
    judgement = judge(record(pins=pins(held=4095, leaked=1), taint="W"))
    assert short(judgement) == ("fail", "leaked")
    assert len(judgement.expected["broken"]) == 3


def test_a_wrong_outcome_is_not_measured_by_the_right_ones_bounds() -> None:
    judgement = judge(refused("EFAULT", "anon"))
    assert short(judgement) == ("fail", "outcome")
    assert judgement.expected["broken"] == ["ibv_reg_mr gave EFAULT, expected ok"]


def test_a_wrong_outcome_that_leaks_tells_both() -> None:
    judgement = judge(refused("EFAULT", "anon", pins=pins(leaked=5)))
    assert short(judgement) == ("fail", "outcome")
    assert len(judgement.expected["broken"]) == 2


def test_a_case_without_a_rule_fails() -> None:
    judgement = judge(record(workload="load/mixed"))
    assert short(judgement) == ("fail", "no-rule")
    assert judgement.expected["rule"] is None


def test_migration_must_happen_where_it_is_demanded() -> None:
    moved = pins(acquire={"acquired": 2 * PAGES, "released": PAGES})
    fields: dict[str, Any] = {
        "memory": "movable",
        "pins": moved,
        "placement": placement(cma_pages=PAGES),
    }
    assert judge(record(**fields, migrate={"success": PAGES, "fail": 0})).verdict == "pass"
    judgement = judge(record(**fields))
    assert short(judgement) == ("fail", "migrate")
    assert judgement.expected["broken"] == ["0 pages migrated, expected 4096 to 8192"]


def test_on_a_host_migration_by_others_is_not_the_cases() -> None:
    assert judge(record(migrate={"success": 7, "fail": 3}), lab=False).verdict == "pass"


def test_pages_that_lay_in_cma_may_move_whatever_the_memory() -> None:
    moved = record(
        memory="ext4-shared",
        params={"access": "ro", "size_bytes": BYTES},
        pins=pins(acquire={"acquired": 3 * PAGES, "released": 2 * PAGES}),
        migrate={"success": PAGES, "fail": 0},
    )
    assert judge({**moved, "placement": placement(cma_pages=PAGES)}).verdict == "pass"
    assert judge({**moved, "placement": None}).verdict == "pass"
    assert judge(moved).verdict == "fail"


def test_large_folios_of_a_memfd_are_kept_once() -> None:
    kept = record(
        workload="io-uring-register",
        memory="memfd",
        params={"size_bytes": BYTES},
        uid=65534,
        cap_ipc_lock=False,
        memlock_bytes=-1,
        pins=pins(acquire={"acquired": PAGES, "released": PAGES - 8}, held=8),
    )
    assert judge({**kept, "placement": placement(folio_orders={"9": PAGES})}).verdict == "pass"
    assert short(judge(kept)) == ("fail", "held")


@pytest.mark.parametrize("held", [PAGES - 300, PAGES + 300])
def test_stale_counters_are_allowed_for(held: int) -> None:
    near = pins(exact=False, bound=250, held=held, leaked=300)
    assert judge(record(pins=near)).verdict == "pass"
    assert judge(record(pins={**near, "bound": 100})).verdict == "fail"


def test_noise_is_allowed_for() -> None:
    assert judge(record(pins=pins(noise=2, held=PAGES + 2, leaked=2))).verdict == "pass"


def test_a_flagged_window_is_judged_by_the_rest() -> None:
    noisy = pins(flagged=True, noise=9000, held=1, leaked=700)
    judgement = judge(record(pins=noisy))
    assert short(judgement) == ("pass", "noisy-window")
    assert judgement.expected["pins"] == "noisy-window"
    assert short(judge(record(pins=noisy, outcome="EIO"))) == ("fail", "outcome")


@pytest.mark.parametrize(
    "changes", [{"pins": None}, {"telemetry": {"pins_available": False}, "pins": pins(held=0)}]
)
def test_without_counters_pins_are_not_judged_and_the_rest_is(changes: dict[str, Any]) -> None:
    judgement = judge(record(**changes))
    assert short(judgement) == ("pass", "telemetry-unavailable")
    assert judgement.expected["pins"] == "telemetry-unavailable"
    broken = judge(record(**changes, vmpin_bytes={"held": 0, "after": 0}))
    assert short(broken) == ("fail", "vmpin")


def test_missing_figures_are_not_zero() -> None:
    judgement = judge(
        record(
            vmpin_bytes={"held": None, "after": None},
            migrate={"success": None, "fail": None},
            taint=None,
            pins=pins(leaked=None, orphaned=None, held=None, cycles=None),
        )
    )
    assert short(judgement) == ("pass", "telemetry-unavailable")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"verdict": "skip", "reason": "thp", "outcome": None, "pins": None}, ("skip", "thp")),
        ({"skip": [{"code": "rdma-device"}], "outcome": None}, ("skip", "rdma-device")),
        ({"verdict": "timeout", "reason": "deadline", "outcome": None}, ("timeout", "deadline")),
        ({"verdict": "timeout", "reason": "deadline", "signal": 9}, ("timeout", "deadline")),
        ({"verdict": "lost", "reason": "qemu-killed", "outcome": None}, ("lost", "qemu-killed")),
        ({"verdict": "crash", "reason": "exit-1"}, ("crash", "exit-1")),
        ({"signal": 11, "outcome": None}, ("crash", "signal-11")),
        ({"kmsg": [OOPS]}, ("crash", "oops")),
        ({"kmsg": ["int3: 0000 [#1] PREEMPT SMP NOPTI"]}, ("crash", "oops")),
        # The host saw the guest go, and knows of what: pinstorm.lab.console.
        ({"kmsg": [OOPS], "verdict": "lost", "reason": "emulator"}, ("lost", "emulator")),
        ({"kmsg": [OOPS], "verdict": "timeout"}, ("crash", "oops")),
    ],
)
def test_what_the_runner_saw_comes_first(
    changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert short(judge(record(**changes))) == expected


def test_a_timeout_still_tells_what_it_left_behind() -> None:
    late = record(
        verdict="timeout", reason="deadline", outcome=None, outcomes={}, pins=pins(orphaned=16)
    )
    judgement = judge(late)
    assert judgement.verdict == "timeout"
    assert judgement.expected["broken"] == [
        "16 pages still held after the process had ended, expected 0"
    ]


def test_a_skip_has_nothing_broken() -> None:
    skipped = record(verdict="skip", reason="thp", outcome=None, pins=None, owner_errors=["x"])
    assert judge(skipped).expected["broken"] == []


def test_lines_of_others_are_not_judged() -> None:
    others = [{"text": WARNING, "own": False}, "vmstat_refresh: nr_foll_pin_acquired -5"]
    assert judge(record(kmsg=others)).verdict == "pass"
    assert judge(record(kmsg=[{"text": WARNING, "own": True}])).reason == "kernel-log"


def test_on_a_host_taint_needs_a_report_of_the_cases_own() -> None:
    assert judge(record(taint="W"), lab=False).verdict == "pass"
    assert judge(record(taint="W", kmsg=[WARNING]), lab=False).reason == "kernel-log"


def test_slow_emulation_is_not_the_kernels_defect() -> None:
    starved = record(accel="tcg", kmsg=["watchdog: BUG: soft lockup - CPU#1 stuck"], taint="L")
    assert judge(starved).verdict == "pass"
    assert judge({**starved, "accel": "kvm"}).verdict == "fail"


def test_the_kernel_can_be_assumed() -> None:
    old = refused("EFAULT", "ext4-shared", kernel="5.14.0-503.el9_5.x86_64")
    assert short(judge(old)) == ("pass", "undecided: vendor-kernel")
    assert short(judge(old, kernel="6.5.0")) == ("pass", None)
    assert short(judge(old, kernel="6.1.0")) == ("fail", "outcome")


def test_the_build_of_a_kernel_tells_its_patch_level(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def parse(release: str, version: str = "") -> oracle.Kernel:
        seen.append((release, version))
        return oracle.Kernel((6, 1), False)

    monkeypatch.setattr(oracle, "parse_kernel", parse)
    debian = record(kernel="6.1.0-50-amd64", kernel_version="#1 SMP Debian 6.1.176-1")
    judge(debian)
    judge(debian, kernel="6.1.0-50-amd64")
    judge(debian, kernel="6.12.0")
    assert seen == [
        ("6.1.0-50-amd64", "#1 SMP Debian 6.1.176-1"),
        ("6.1.0-50-amd64", "#1 SMP Debian 6.1.176-1"),
        ("6.12.0", ""),
    ]


def test_a_refusal_where_both_are_allowed_holds_nothing() -> None:
    old = refused("EFAULT", "ext4-shared", kernel="5.14.0-503.el9_5.x86_64")
    held = judge({**old, "pins": pins(held=PAGES)})
    assert short(held) == ("fail", "held")


def test_the_limit_of_an_ordinary_user() -> None:
    over = refused("ENOMEM", "anon", uid=1000, memlock_bytes=8 * MIB, pins=pins(
        acquire={"acquired": 0, "released": 0}, release=None, held=0,
    ))  # fmt: skip
    assert short(judge(over)) == ("pass", None)
    assert short(judge({**over, "memlock_bytes": -1})) == ("fail", "outcome")
    assert short(judge({**over, "memlock_bytes": None})) == ("pass", "undecided: memlock-unknown")


def test_rejudging_leaves_the_records_alone() -> None:
    before = record(verdict="fail", reason="held", expected={"broken": ["…"]})
    saved = copy.deepcopy(before)
    (after,) = rejudge([before])
    assert before == saved
    assert (after["verdict"], after["reason"]) == ("pass", None)
    assert {**after, "verdict": 0, "reason": 0, "expected": 0} == {
        **saved, "verdict": 0, "reason": 0, "expected": 0,
    }  # fmt: skip


def test_the_device_names_the_driver() -> None:
    assert verdict.machine_of(record()).driver == "rxe"
    assert verdict.machine_of(record(device="mlx5_0", driver="mlx5_core")).driver == "mlx5_core"
    assert verdict.machine_of(record(device="mlx5_0")).driver is None
    assert verdict.machine_of(record(device=None)).driver is None


def on_node(node: str) -> dict[str, Any]:
    return {**placement(), "nodes": {node: PAGES}}


def charged(**nodes: int) -> dict[str, Any]:
    return pins(per_node={node.removeprefix("n"): [pages, 0] for node, pages in nodes.items()})


def test_pins_are_charged_to_the_node_where_the_pages_lie() -> None:
    right = record(memory="numa-bound", placement=on_node("1"), pins=charged(n0=0, n1=PAGES))
    assert judge(right).verdict == "pass"
    wrong = record(memory="numa-bound", placement=on_node("1"), pins=charged(n0=PAGES, n1=0))
    judgement = judge(wrong)
    assert (judgement.verdict, judgement.reason) == ("fail", "node")
    assert f"{PAGES} pages charged to node 0" in judgement.expected["broken"][0]


def test_pages_that_moved_may_be_charged_to_another_node() -> None:
    moved = record(
        memory="movable",
        placement=on_node("0"),
        pins=charged(n0=PAGES, n1=PAGES) | {"acquire": {"acquired": 2 * PAGES, "released": PAGES}},
        migrate={"success": PAGES, "fail": 0},
    )
    assert judge(moved).verdict == "pass", judge(moved).expected["broken"]


def test_a_pass_that_nobody_witnessed_says_so() -> None:
    assert short(judge(record(no_trace="9 events were lost"))) == ("pass", "not-witnessed")
    assert short(judge(record(no_trace=None))) == ("pass", None)
    assert short(judge(record(no_trace=NOT_ASKED))) == ("pass", None)
    assert short(judge(record())) == ("pass", None)  # of a bundle older than the witness


@pytest.mark.parametrize(("memory", "times"), [("movable", 5), ("anon", 10), ("ext4-private", 5)])
@pytest.mark.parametrize("seen", [True, False])
def test_what_must_move_has_a_ceiling_too(memory: str, times: int, seen: bool) -> None:
    """Also where it is not known where the pages lie, as for an ordinary user."""
    changed = record(
        memory=memory,
        placement=placement(cma_pages=PAGES) if seen else None,
        pins=pins(acquire={"acquired": times * PAGES, "released": (times - 1) * PAGES}),
        migrate={"success": PAGES, "fail": 0},
    )
    assert short(judge(changed)) == ("fail", "acquired")


def test_a_refusal_before_any_page_moves_nothing() -> None:
    unmapped = refused("EFAULT", "unmapped", placement=None)
    unmapped["pins"] |= {"acquire": {"acquired": 5000, "released": 5000}, "held": 0}
    assert short(judge(unmapped)) == ("fail", "acquired")
    moved = refused("EOPNOTSUPP", "dax-shared", migrate={"success": 999, "fail": 0})
    moved["pins"] |= {"acquire": {"acquired": 0, "released": 0}, "held": 0}
    assert short(judge(moved)) == ("fail", "migrate")


@pytest.mark.parametrize(
    ("exit_code", "then", "outcome", "verdict_of"),
    [
        (0, "memlock-limit", "ENOMEM", "fail"),
        (0, "cgroup-rdma-limit", "ENOMEM", "pass"),
        (1, None, "ENOMEM", "pass"),
        (None, None, "ENOMEM", "pass"),
        (0, None, "ok", "pass"),
    ],
)
def test_a_remedy_that_was_applied_and_did_not_help_fails(
    exit_code: int | None, then: str | None, outcome: str, verdict_of: str
) -> None:
    """Another cause behind the first is no failure of its remedy; nor is one that is refused."""
    retry = {
        "cause": "memlock-limit",
        "command": "prlimit --pid 7 --memlock=1:1",
        "applied": {"exit": exit_code, "said": ""},
        "outcome": outcome,
        "then": then,
    }
    judged = judge(refused("EFAULT", "ext4-shared", retries=[retry]))
    assert judged.verdict == verdict_of, judged
    if verdict_of == "fail":
        assert judged.reason == "remedy"
        assert "did not help: memlock-limit came back" in judged.expected["broken"][0]
