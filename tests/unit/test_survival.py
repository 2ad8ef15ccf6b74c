"""``times``, ``during``, ``kill``, ``settles``: suite keys, amounts, and verdicts on records.

The records are written by hand; what real kernels do is tested in tests/host and tests/lab.
"""

import signal
from typing import Any

import pytest

from pinstorm import figures, oracle, suite, survival
from pinstorm.errors import UsageError
from pinstorm.report import table
from pinstorm.rules.counters import SURVIVED
from pinstorm.verdict import Judgement, judge
from telemetry.window import Delta
from workloads import WORKLOADS, memory_spec, workload_spec
from workloads.spec import DISTURBANCES, MIB, PHASES, Case

PAGES = 1024
BYTES = 4 * MIB
ENTRY = '[[matrix]]\nworkload = "rdma-register"\nmemory = "anon"\nsize = "4MiB"\n'


def record(**changes: Any) -> dict[str, Any]:
    """rdma-register of 4 MiB in the lab, which passes."""
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
        "outcomes": {"ok": 1},
        "placement": {"zones": {"Normal": PAGES}, "cma_pages": 0, "folio_orders": {"0": PAGES}},
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


def pins(**changes: Any) -> dict[str, Any]:
    return {
        "exact": True,
        "bound": 0,
        "noise": 0,
        "flagged": False,
        "acquire": {"acquired": PAGES, "released": 0},
        "release": {"acquired": 0, "released": PAGES},
        "disturb": None,
        "held": PAGES,
        "leaked": 0,
        "orphaned": 0,
        "cycles": None,
        "settles": None,
        **changes,
    }


def disturbed(during: str = "munmap", **changes: Any) -> dict[str, Any]:
    how = {"outcome": "ok", "call": None, "detail": "", "vmpin_bytes": BYTES}
    figures_of = pins(disturb={"acquired": 0, "released": 0})
    params = {"access": "rw", "size_bytes": BYTES, "during": during}
    return record(**{"params": params, "disturbed": how, "pins": figures_of, **changes})


def killed(phase: str = "acquire", **changes: Any) -> dict[str, Any]:
    """Killed before there was an outcome, or while it held."""
    early = phase in ("prepare", "acquire")
    none = dict.fromkeys(("acquire", "release", "disturb", "held", "leaked", "cycles"))
    fields = {
        "params": {"access": "rw", "size_bytes": BYTES, "kill": phase},
        "killed": {"phase": phase, "after_ns": 700, "inside": True, "signal": signal.SIGKILL},
        "outcome": None if early else "ok",
        "outcomes": {} if early else {"ok": 1},
        "pins": pins(**none) if early else pins(release=None, leaked=None),
        "vmpin_bytes": None if early else {"held": BYTES, "after": None},
        "migrate": None if early else {"success": 0, "fail": 0},
    }
    return record(**{**fields, **changes})


def short(judgement: Judgement) -> tuple[str, str | None]:
    return judgement.verdict, judgement.reason


# -- suite keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('kill = "aquire"', 'there is no phase "aquire"; did you mean "acquire"?'),
        ('kill = ["hold", 3]', "3 is not a name"),
        ('during = "madvise"', 'there is no disturbance "madvise"'),
        ("times = 0", "0 is no number from 1 to 64"),
        ("times = true", "true is no number"),
        ("settles = -1", "settles = -1"),
        ('kill = "hold"\nsettles = 7', "settles = 7 comes after a kill"),
        ('kill = "hold"\nremedy = true', "give remedy and kill in two entries"),
        ('settles = "many"', 'settles = "many"'),
    ],
)
def test_a_wrong_value_is_one_sentence(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        suite.parse(f"{ENTRY}{line}\n", "x.toml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_keys_reach_the_cases() -> None:
    lines = 'times = [1, 2]\nduring = "fork"\nkill = "hold"\n'
    cases = suite.expand(suite.parse(ENTRY + lines, "x.toml")).cases
    assert sorted(case.id for case in cases) == [
        "rdma-register/anon/rw/4MiB/during=fork/kill=hold",
        "rdma-register/anon/rw/4MiB/during=fork/kill=hold/times=2",
    ]
    cases = suite.expand(suite.parse(ENTRY + "settles = 7\n", "x.toml")).cases
    assert {case.settles for case in cases} == {7}


def test_every_workload_can_be_killed_and_what_holds_pins_disturbed() -> None:
    for spec in WORKLOADS:
        if spec.pin_class == "pin-longterm" and spec.scope == "held" and "kill" in spec.params:
            assert "during" in spec.params, spec.name
    unkillable = {spec.name for spec in WORKLOADS if "kill" not in spec.params}
    assert unkillable <= {"gup-overflow"}
    assert "times" not in workload_spec("dio-read").params


def test_counters_has_every_phase_and_every_disturbance() -> None:
    expansion = suite.expand(suite.load("counters"))
    by_kill = {case.params.get("kill") for case in expansion.cases}
    assert by_kill == {None, *PHASES}
    by_during = {case.params.get("during") for case in expansion.cases}
    assert by_during == {None, *DISTURBANCES} == {None, *SURVIVED}
    # so that how long a call takes is known from a plain case before
    plain = set()
    for case in expansion.cases:
        if "kill" in case.params:
            assert (case.workload, case.size_bytes) in plain, case.id
        else:
            plain.add((case.workload, case.size_bytes))


# -- amounts -----------------------------------------------------------------------------------


def test_a_range_that_is_registered_twice() -> None:
    once = Case("rdma-register", "anon", {"size_bytes": BYTES})
    twice = Case("rdma-register", "anon", {"size_bytes": BYTES, "times": 2})
    (one, two) = (oracle.amounts(case, memory_spec("anon")) for case in (once, twice))
    for symbol in ("pages", "twice-pages", "retried-pages", "folios", "bytes", "folio-bytes"):
        assert two[symbol] == 2 * one[symbol]
    for symbol in ("range-pages", "good-pages", "attempts", "processes"):
        assert two[symbol] == one[symbol]
    assert (one["earlier-pages"], two["earlier-pages"]) == (0, PAGES)
    assert (one["moved-pages"], two["moved-pages"]) == (2 * PAGES, 3 * PAGES)


def test_a_huge_page_is_accounted_once_for_each_ring() -> None:
    case = Case("io-uring-register", "thp", {"size_bytes": 64 << 10, "times": 3})
    values = oracle.amounts(case, memory_spec("thp"))
    assert (values["folios"], values["folio-bytes"]) == (3, 2 * MIB)


@pytest.mark.parametrize(("times", "outcomes"), [(1, ("ok",)), (2, ("ENOMEM",))])
def test_a_limit_is_used_up_by_the_second_registration(
    times: int, outcomes: tuple[str, ...]
) -> None:
    params = {"access": "rw", "size_bytes": BYTES, "uid": 1000, "memlock_bytes": BYTES}
    case = Case("rdma-register", "anon", {**params, "times": times})
    expected = oracle.expectation(case, "7.2")
    assert expected.outcomes == outcomes
    if times == 2:
        assert expected.bounds["acquired"].to_json() == [0, PAGES]


# -- during ------------------------------------------------------------------------------------


@pytest.mark.parametrize("during", DISTURBANCES)
def test_pins_that_nothing_touched_pass(during: str) -> None:
    judgement = judge(disturbed(during))
    assert short(judgement) == ("pass", None)
    assert judgement.expected["disturb_source"] == SURVIVED[during]


def test_pins_that_went_or_came_fail() -> None:
    gone = disturbed(pins=pins(disturb={"acquired": 0, "released": 3}))
    assert short(judge(gone)) == ("fail", "disturb")
    assert judge(gone).expected["broken"] == ["3 pages given back by munmap, expected 0"]
    came = disturbed(pins=pins(disturb={"acquired": 1, "released": 0}))
    assert judge(came).expected["broken"] == ["1 page taken by munmap, expected 0"]


def test_vmpin_that_changed_fails_even_where_pins_are_not_judged() -> None:
    how = {"outcome": "ok", "call": None, "detail": "", "vmpin_bytes": 0}
    noisy = pins(disturb={"acquired": 9, "released": 0}, flagged=True, noise=PAGES)
    judgement = judge(disturbed(disturbed=how, pins=noisy))
    assert short(judgement) == ("fail", "disturb")
    assert judgement.expected["broken"] == [f"VmPin 0 bytes after munmap, and {BYTES} before"]


def test_a_disturbance_that_was_refused_shows_nothing() -> None:
    how = {"outcome": "EINVAL", "call": "madvise", "detail": "", "vmpin_bytes": BYTES}
    assert short(judge(disturbed(disturbed=how))) == ("fail", "disturb")


@pytest.mark.parametrize("during", DISTURBANCES)
def test_a_disturbance_that_never_happened_shows_nothing(during: str) -> None:
    judgement = judge(disturbed(during, disturbed=None))
    assert short(judgement) == ("fail", "disturb")
    assert during in judgement.expected["broken"][0]


def test_a_refusal_that_was_expected_leaves_nothing_to_disturb() -> None:
    refused = disturbed(disturbed=None, outcome="ENOMEM")
    assert survival.of_disturbance(refused, 0) == []


# -- kill --------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_case_needs_no_outcome(phase: str) -> None:
    judgement = judge(killed(phase))
    assert short(judgement) == ("pass", None)
    assert "kill_source" in judgement.expected


@pytest.mark.parametrize("phase", PHASES)
def test_what_a_killed_case_leaves_fails_it(phase: str) -> None:
    left = killed(phase)
    left["pins"]["orphaned"] = 2
    assert short(judge(left)) == ("fail", "orphaned")
    reported = killed(phase, kmsg=["WARNING: CPU: 0 PID: 7 at mm/gup.c:1 x+0x1/0x2"])
    assert short(judge(reported)) == ("fail", "kernel-log")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("others", [{"noise": 1}, {"recent": 1}, {"noise": 4095}])
@pytest.mark.parametrize("watched", [{}, {"stayed": 4096}])
def test_what_is_more_than_others_move_outlives_the_kill(
    phase: str, others: dict[str, int], watched: dict[str, int]
) -> None:
    left = killed(phase)
    left["pins"].update(orphaned=4096, exact=False, **others, **watched)
    judgement = judge(left, lab=False)
    assert short(judgement) == ("fail", "orphaned")
    assert "4096 pages stayed after the process had ended" in judgement.expected["broken"][0]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stayed", [-4096, 0, 1, 4096])
def test_what_others_can_hold_after_the_kill_is_nobodys_failure(phase: str, stayed: int) -> None:
    """The last look may have met them at the top of their loop."""
    left = killed(phase)
    left["pins"].update(orphaned=9000, stayed=stayed, exact=False, noise=70, recent=4096)
    assert short(judge(left, lab=False)) == ("pass", "noisy-window")


def test_stale_counters_are_allowed_for_in_what_stays() -> None:
    left = killed()
    left["pins"].update(orphaned=57, stayed=57, exact=False, noise=1, bound=28)
    assert short(judge(left, lab=False)) == ("pass", "noisy-window")
    left["pins"].update(orphaned=58, stayed=58)
    assert short(judge(left, lab=False)) == ("fail", "orphaned")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("noise", [0, 1])
def test_a_kill_after_which_nobody_could_look_is_no_plain_pass(phase: str, noise: int) -> None:
    unseen = killed(phase)
    unseen["pins"].update(orphaned=None, noise=noise)
    assert short(judge(unseen)) == ("pass", "telemetry-unavailable")


@pytest.mark.parametrize("sent", [None, 11])
def test_another_death_than_the_one_that_was_sent_fails(sent: int | None) -> None:
    how = {"phase": "hold", "after_ns": 1, "inside": True, "signal": sent}
    assert short(judge(killed("hold", killed=how))) == ("fail", "kill")


def test_a_case_that_was_not_killed_fails() -> None:
    judgement = judge(killed("release", killed=None))
    assert short(judgement) == ("fail", "kill")
    assert judgement.expected["broken"] == [
        "SIGKILL was to come in release; the case ended before, with ok"
    ]


def test_what_was_seen_before_the_kill_is_judged() -> None:
    less = killed("hold", pins=pins(release=None, leaked=None, held=PAGES - 1))
    assert short(judge(less)) == ("fail", "held")


def test_a_crash_before_the_kill_stays_a_crash() -> None:
    crashed = killed("hold", killed=None, verdict="crash", reason="signal-11", outcome=None)
    assert short(judge(crashed)) == ("crash", "signal-11")


def test_nothing_is_said_of_other_cases() -> None:
    assert survival.of_kill(record()) == survival.of_disturbance(record(), 0) == []
    assert survival.sources({}) == {}


# -- settles -----------------------------------------------------------------------------------


def test_settling_cycles_that_keep_pins_fail() -> None:
    kept = pins(settles={"acquired": 5 * PAGES, "released": 4 * PAGES})
    assert short(judge(record(pins=kept))) == ("fail", "leaked")
    assert short(judge(record(pins=pins(settles={"acquired": 9, "released": 9})))) == ("pass", None)


def test_what_several_windows_moved() -> None:
    windows = [Delta(16, 15, 0, 0), Delta(16, 16, 0, 0)]
    assert figures.moved(windows) == {"acquired": 32, "released": 31}
    assert figures.moved([]) is None


def test_settle_times_are_shown_as_a_distribution_without_p99() -> None:
    times = [1000 * n for n in range(1, 21)]
    records = [record(timing_ns={"settles": times})]
    shown = table._settling(records, emulated=False)
    assert shown == [
        "settle time of rdma-register, 20 releases, us at most: "
        "min 1.00, median 10.0, p90 18.0, max 20.0"
    ]
    assert "20 releases, emulated us at most" in table._settling(records, emulated=True)[0]
    assert table._settling([record()], emulated=False) == []
