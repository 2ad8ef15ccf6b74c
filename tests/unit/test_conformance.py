"""pinstorm.conformance: calls that were seen against what the rules allow. Constructed records;
what real kernels call is tested in tests/lab."""

from typing import Any

import pytest

from pinstorm import conformance, oracle, verdict
from pinstorm.conformance import Claim
from pinstorm.rules import CONFORMANCE
from pinstorm.rules.rule import Call, Conformance
from workloads import WORKLOADS
from workloads.spec import MIB, THROUGH, Case, WorkloadSpec

KERNELS = ("6.1.0-54-amd64", "6.12.113+deb13-amd64", "7.2.11+deb13-amd64")
LONGTERM = Conformance(
    name="registers",
    when={},
    calls=(Call("pin_user_pages_fast", frozenset({"FOLL_LONGTERM"}), frozenset({"FOLL_WRITE"})),),
    proof=(Call("pin_user_pages_fast", frozenset({"FOLL_LONGTERM"}), frozenset({"FOLL_WRITE"})),),
    source="a test",
)
REGISTERS = Claim("pin-longterm", LONGTERM)


def call(function: str, *flags: str, **changes: Any) -> dict[str, Any]:
    return {
        "function": function,
        "flags": [f"FOLL_{flag}" for flag in flags],
        "calls": 1,
        "pages_asked": 16,
        "pages_returned": 16,
        "caller": "ib_umem_get",
        "via": None,
        "by": "process",
        "phase": "acquire",
        **changes,
    }


PIN = call("pin_user_pages_fast", "WRITE", "LONGTERM")
BEHIND = call("gup_fast_fallback", "WRITE", "LONGTERM", "PIN", via="pin_user_pages_fast")


PINS_FOLIOS = Conformance(
    name="udmabuf",
    when={},
    calls=(Call("memfd_pin_folios", frozenset()),),
    proof=(Call("memfd_pin_folios", frozenset()),),
    source="a test",
)
FAULTS = Conformance(
    name="odp",
    when={},
    calls=(Call("hmm_range_fault", frozenset()),),
    proof=(Call("hmm_range_fault", frozenset()),),
    source="a test",
)
ON_DEMAND = Claim("none", FAULTS)
ODP_CALLER = "ib_umem_odp_map_dma_and_lock"


def broken(*calls: dict[str, Any], claim: Claim = REGISTERS, **about: Any) -> list[str]:
    return conformance.broken(calls, [claim], **{"ok": True, **about})


def test_calls_that_agree() -> None:
    assert broken(PIN, BEHIND) == []


def test_function_that_is_not_allowed() -> None:
    sentence, lacking = broken(call("get_user_pages_fast", "WRITE", caller="raw_cmd"))
    assert sentence == (
        "the kernel called get_user_pages_fast with FOLL_WRITE from raw_cmd, where registers "
        "allows pin_user_pages_fast with FOLL_LONGTERM, perhaps FOLL_WRITE (a test)"
    )
    assert "was not seen to call pin_user_pages_fast" in lacking


@pytest.mark.parametrize("flags", [("WRITE",), ("LONGTERM", "FORCE"), ()])
def test_flags_must_be_the_same(flags: tuple[str, ...]) -> None:
    assert "where registers allows" in broken(call("pin_user_pages_fast", *flags))[0]


def test_unknown_bit_is_not_allowed() -> None:
    strange = {**PIN, "flags": [*PIN["flags"], "0x80000000"]}
    assert "0x80000000" in broken(strange)[0]


@pytest.mark.parametrize(
    ("pin_class", "flags", "wrong"),
    [
        ("pin-longterm", ("PIN",), "lacks FOLL_LONGTERM"),
        ("pin-longterm", ("GET", "LONGTERM"), "lacks FOLL_PIN and has FOLL_GET"),
        ("pin", ("PIN", "LONGTERM"), "has FOLL_LONGTERM"),
        ("pin", ("GET",), "lacks FOLL_PIN"),
        ("get", ("PIN",), "lacks FOLL_GET and has FOLL_PIN"),
        ("none", ("GET",), "has FOLL_GET"),
    ],
)
def test_flags_behind_the_entry_point(pin_class: Any, flags: tuple[str, ...], wrong: str) -> None:
    behind = call("__get_user_pages", *flags, via="pin_user_pages_fast")
    claim = Claim(pin_class, LONGTERM)
    (sentence,) = broken(PIN, behind, claim=claim, ok=False)
    assert sentence.startswith(f"the rules say pin class {pin_class}, but __get_user_pages with ")
    assert wrong in sentence


def test_entry_point_behind_another_is_judged_by_its_pin_class() -> None:
    """6.1's fast functions go on in get_user_pages_unlocked()."""
    nested = call("get_user_pages_unlocked", "LONGTERM", "PIN", via="pin_user_pages_fast")
    assert broken(PIN, BEHIND, nested) == []


def test_proof_is_asked_for_only_when_the_case_went_well() -> None:
    assert len(broken()) == 1
    assert broken(ok=False) == []


REFUSED: dict[str, Any] = {"pages_returned": 0, "errors": {"EFAULT": 1}}


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([PIN], "behind pin_user_pages_fast with FOLL_WRITE|FOLL_LONGTERM no function that was"),
        ([{**PIN, **REFUSED}, {**BEHIND, **REFUSED}], "was not seen to return a page"),
        ([{**PIN, "pages_returned": 0}, BEHIND], "was not seen to return a page"),
        ([PIN, {**BEHIND, **REFUSED}], "given FOLL_LONGTERM|FOLL_PIN was seen to return a page"),
        ([{**PIN, "phase": "release"}, BEHIND], "was not seen to return a page in acquire"),
        ([PIN, {**BEHIND, "phase": "release"}], "no function that was given"),
        ([PIN, {**BEHIND, "via": "pin_user_pages"}], "no function that was given"),
        ([PIN, {**BEHIND, "caller": "io_pin_pages"}], "no function that was given"),
        ([PIN, {**BEHIND, "function": "get_user_pages_unlocked"}], "no function that was given"),
    ],
)
def test_entry_point_alone_is_no_proof(calls: list[dict[str, Any]], said: str) -> None:
    (sentence,) = broken(*calls)
    assert said in sentence
    assert broken(*calls, ok=False) == []


def test_call_that_was_refused_once_and_made_again_is_a_proof() -> None:
    mixed = {"errors": {"EAGAIN": 2}}
    assert broken({**PIN, **mixed}, {**BEHIND, **mixed}) == []


def test_references_are_proved_behind_the_entry_point_too() -> None:
    gets = Conformance(
        name="splices",
        when={},
        calls=(Call("get_user_pages_fast", frozenset()),),
        proof=(Call("get_user_pages_fast", frozenset()),),
        source="a test",
    )
    entry = call("get_user_pages_fast")
    behind = call("internal_get_user_pages_fast", "GET", via="get_user_pages_fast")
    assert broken(entry, behind, claim=Claim("get", gets)) == []
    assert "given FOLL_GET was" in broken(entry, claim=Claim("get", gets))[0]


def test_memfd_pin_folios_pins_in_its_own_body() -> None:
    folios = call("memfd_pin_folios", caller="udmabuf_create", pages_returned=1)
    claim = Claim("pin-longterm", PINS_FOLIOS)
    assert broken(folios, claim=claim) == []
    assert "return a page" in broken({**folios, **REFUSED}, claim=claim)[0]


def test_range_must_have_been_faulted_in() -> None:
    """hmm_range_fault() returns 0, which telemetry.gup_calls counts as the range's pages."""
    faulted = call("hmm_range_fault", caller=ODP_CALLER)
    assert broken(faulted, claim=ON_DEMAND) == []
    (sentence,) = broken({**faulted, **REFUSED}, claim=ON_DEMAND)
    assert "hmm_range_fault with no flags was not seen to return a page in acquire" in sentence


def test_what_the_process_does_besides_is_left_out_by_its_cause() -> None:
    futex = call("get_user_pages_fast", "WRITE", caller="get_futex_key")
    behind = call("gup_fast_fallback", "GET", via="get_user_pages_fast", caller="get_futex_key")
    assert broken(PIN, BEHIND, futex, behind) == []
    assert len(broken(PIN, BEHIND, {**futex, "caller": "iov_iter_get_pages2"})) == 1


def test_faulting_pages_in_takes_no_reference() -> None:
    populate = call("__get_user_pages", "TOUCH", "WRITE", "UNLOCKABLE", caller="populate_vma")
    assert broken(PIN, BEHIND, populate) == []
    assert "called by itself, " in broken(PIN, BEHIND, {**populate, "flags": ["FOLL_GET"]})[0]


def test_kernel_threads_are_judged_in_the_lab_alone() -> None:
    other = call("get_user_pages_remote", "WRITE", by="kernel-thread", caller="async_pf_execute")
    assert len(broken(PIN, BEHIND, other)) == 1
    assert broken(PIN, BEHIND, other, lab=False) == []


def test_kernel_thread_proves_on_a_host_what_only_such_work_calls() -> None:
    device = call("hmm_range_fault", by="kernel-thread", caller=ODP_CALLER)
    graphics = {**device, "caller": "amdgpu_hmm_range_get_pages"}
    assert broken(device, claim=ON_DEMAND, lab=False) == []
    (sentence,) = broken(graphics, claim=ON_DEMAND, lab=False)
    assert "was not seen to call hmm_range_fault" in sentence
    assert broken(graphics, claim=ON_DEMAND) == []
    others = ({**PIN, "by": "kernel-thread"}, {**BEHIND, "by": "kernel-thread"})
    assert "was not seen to call" in broken(*others, lab=False)[0]
    assert "no function that was given" in broken(PIN, others[1], lab=False)[0]


def test_the_most_specific_wins_and_a_tie_is_told() -> None:
    entries = (
        Conformance(name="all", when={}, calls=(), source=""),
        Conformance(name="new", when={}, calls=(), source="", since=(6, 5)),
        Conformance(name="writes", when={"writes": True}, calls=(), source=""),
    )
    case = Case("rdma-register", "anon", {"size_bytes": MIB, "access": "rw"})
    reads = {**oracle.facts(case), "writes": False}
    assert conformance.find(reads, (6, 1), entries).name == "all"
    assert conformance.find(reads, (6, 5), entries).name == "new"
    with pytest.raises(conformance.AmbiguousConformance, match="new and writes"):
        conformance.find(oracle.facts(case), (6, 5), entries)
    with pytest.raises(conformance.NoConformance, match="rdma-register"):
        conformance.find(reads, (6, 1), ())


def test_vendor_kernel_may_call_what_a_later_one_does() -> None:
    case = Case("rdma-register", "anon", {"size_bytes": MIB, "access": "ro"})
    assert [c.conformance.name for c in conformance.claims(case, "6.1.0-54-amd64")] == [
        "rdma-read-only-forced"
    ]
    claimed = conformance.claims(case, "5.14.0-427.el9.x86_64")
    assert {claim.conformance.name for claim in claimed} == {
        "rdma-read-only-forced",
        "rdma-read-only",
    }
    later = call("pin_user_pages_fast", "LONGTERM")
    behind = call("gup_fast_fallback", "LONGTERM", "PIN", via="pin_user_pages_fast")
    assert conformance.broken([later, behind], claimed, ok=True) == []
    assert conformance.broken([call("pin_user_pages", "LONGTERM")], claimed, ok=True)


def cases_of(work: WorkloadSpec) -> list[Case]:
    from pinstorm.suite_values import GUP_TEST_MODES

    choices: dict[str, tuple[Any, ...]] = {
        "access": ("rw", "ro"),
        "touch": (True, False),
        "registered": (False, True),
        "mode": GUP_TEST_MODES,
        "through": tuple(THROUGH),
    }
    params: list[dict[str, Any]] = [{"size_bytes": MIB, **work.defaults}]
    for name in work.params:
        params = [{**p, name: value} for p in params for value in choices.get(name, (None,))]
    return [
        Case(work.name, memory, {k: v for k, v in p.items() if v is not None})
        for p in params
        for memory in ("anon", "memfd", "hugetlb-2m", "ext4-shared", "dax-shared")
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.name)
def test_every_workload_says_what_it_may_call(work: WorkloadSpec, kernel: str) -> None:
    """On each kernel, for every memory and parameter: never nothing, never two, never 'any'."""
    for case in cases_of(work):
        for target in ("ext4", "xfs", "btrfs"):
            machine = oracle.Machine(target_fs=target)
            known = oracle.facts(case, machine)
            release = oracle.parse_kernel(kernel).release
            entry = conformance.find(known, release)
            assert entry.source
            assert all(allowed.function for allowed in entry.calls)
            assert all(proof in entry.calls for proof in entry.proof), entry.name


def test_names_are_unique() -> None:
    names = [entry.name for entry in CONFORMANCE]
    assert len(names) == len(set(names))


def record(**changes: Any) -> dict[str, Any]:
    """An rdma-register that passes, traced."""
    zero = {"acquired": 0, "released": 0}
    return {
        "kernel": "7.2.11+deb13-amd64",
        "accel": "tcg",
        "workload": "rdma-register",
        "memory": "anon",
        "params": {"access": "rw", "size_bytes": 65536},
        "uid": 0,
        "device": "rxe0",
        "driver": "rxe",
        "outcome": "ok",
        "outcomes": {"ok": 1},
        "placement": {"zones": {"Normal": 16}, "cma_pages": 0, "folio_orders": {"0": 16}},
        "pins": {
            "exact": True,
            "bound": 0,
            "noise": 0,
            "acquire": {"acquired": 16, "released": 0},
            "release": {"acquired": 0, "released": 16},
            "held": 16,
            "leaked": 0,
            "orphaned": 0,
            "cycles": zero,
        },
        "vmpin_bytes": {"held": 65536, "after": 0},
        "migrate": {"success": 0, "fail": 0},
        "gup_calls": [PIN, BEHIND],
        **changes,
    }


def test_verdict_of_a_record_whose_calls_agree() -> None:
    judged = verdict.judge(record())
    assert (judged.verdict, judged.expected["broken"]) == ("pass", [])


def test_wrong_pin_class_comes_before_the_figures_it_explains() -> None:
    got = [call("get_user_pages_fast", "WRITE")]
    pins = {**record()["pins"], "acquire": {"acquired": 0, "released": 0}, "held": 0}
    judged = verdict.judge(record(gup_calls=got, pins=pins))
    assert (judged.verdict, judged.reason) == ("fail", "pin-class")
    first, *others = judged.expected["broken"]
    assert first.startswith("the kernel called get_user_pages_fast with FOLL_WRITE from")
    assert any(sentence.startswith("acquired 0 pages") for sentence in others)


def test_record_without_a_trace_is_not_judged_by_it() -> None:
    assert verdict.judge(record(gup_calls=None)).verdict == "pass"


def test_trace_that_saw_nothing_is_no_proof() -> None:
    judged = verdict.judge(record(gup_calls=[]))
    assert (judged.verdict, judged.reason) == ("fail", "pin-class")


def test_rejudge_uses_the_calls_of_the_record() -> None:
    (judged,) = verdict.rejudge([record(gup_calls=[])])
    assert (judged["verdict"], judged["reason"]) == ("fail", "pin-class")


def test_workload_without_conformance_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any, **__: Any) -> None:
        raise conformance.NoConformance("no conformance rule says what rdma-register may call")

    monkeypatch.setattr(conformance, "claims", nothing)
    judged = verdict.judge(record())
    assert (judged.verdict, judged.reason) == ("fail", "pin-class")
    assert "cannot be judged" in judged.expected["broken"][0]
