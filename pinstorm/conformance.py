"""Does what the kernel was seen to call agree with the pin class the rules claim? Pure functions.

``gup_calls`` of a record is held against three things: every entry point of GUP must be one that a
Conformance of pinstorm.rules allows the workload, with exactly those flags; the functions behind an
entry point, which the kernel gives FOLL_PIN, FOLL_LONGTERM and FOLL_GET, must have those that the
pin class means; and when the outcome is ok, the proof must be there: in acquire the entry point
that got pages, and behind it a function that was given what the pin class means and got pages too.

Calls that the kernel makes in the process for other reasons than the case are left out by their
cause, the kernel function that made them (NOT_THE_CASE). A record without a trace proves nothing
and breaks nothing. On a host a kernel thread's calls may be for anybody: they are not judged there,
and prove nothing but what only the case's own kind of work makes it call (WORKS_FOR_CASES).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pinstorm import oracle
from pinstorm.oracle import Machine
from pinstorm.rules import CONFORMANCE, RULES
from pinstorm.rules.rule import Call, Conformance, Fact, Release
from telemetry.gup_trace import BEHIND
from workloads.spec import Case, PinClass

# Kernel function that called GUP -> why that is not what the case is about.
NOT_THE_CASE: Final[Mapping[str, str]] = {
    "get_futex_key": "kernel/futex: a futex in shared memory is known by its page",
    "get_arg_page": "fs/exec.c: the arguments of a program being started",
    "__access_remote_vm": "mm/memory.c: /proc/PID/cmdline, environ and mem, ptrace",
}

# Kernel function that called GUP in a kernel thread -> for whom. On a host only these are a proof:
# hmm_range_fault() alone may as well be the page fault of a graphics card.
WORKS_FOR_CASES: Final[Mapping[str, str]] = {
    "ib_umem_odp_map_dma_and_lock": "drivers/infiniband/core/umem_odp.c: a page fault of a device",
}

# It is given no flags: it takes pins in its own body (mm/gup.c of v6.12: try_grab_folio() with
# FOLL_PIN), as long-term as FOLL_LONGTERM, and no traced function stands behind it.
_PINS_BY_ITSELF: Final = "memfd_pin_folios"

# What the functions behind the entry points are given for each pin class, and must not be given.
_GIVEN: Final[Mapping[PinClass, tuple[frozenset[str], frozenset[str]]]] = {
    "none": (frozenset(), frozenset({"FOLL_PIN", "FOLL_GET", "FOLL_LONGTERM"})),
    "get": (frozenset({"FOLL_GET"}), frozenset({"FOLL_PIN", "FOLL_LONGTERM"})),
    "pin": (frozenset({"FOLL_PIN"}), frozenset({"FOLL_GET", "FOLL_LONGTERM"})),
    "pin-longterm": (frozenset({"FOLL_PIN", "FOLL_LONGTERM"}), frozenset({"FOLL_GET"})),
}
_REFERENCES: Final = frozenset({"FOLL_PIN", "FOLL_GET"})


class NoConformance(LookupError):
    """No Conformance speaks of the case on that kernel."""


class AmbiguousConformance(ValueError):
    """Several speak of the case with the same right."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the rules say of a case's calls on one kernel release."""

    pin_class: PinClass
    conformance: Conformance


def find(
    known: Mapping[str, Fact], release: Release, entries: Iterable[Conformance] = CONFORMANCE
) -> Conformance:
    """The most specific of those that speak of the case. NoConformance, AmbiguousConformance."""
    fitting = [entry for entry in entries if oracle.fits(entry, known, release)]
    if not fitting:
        raise NoConformance(f"no conformance rule says what {known.get('workload')} may call")
    most = max(oracle.specificity(entry) for entry in fitting)
    best = [entry for entry in fitting if oracle.specificity(entry) == most]
    if len(best) > 1:
        raise AmbiguousConformance(" and ".join(entry.name for entry in best))
    return best[0]


def claims(
    case: Case,
    kernel_release: str,
    machine: Machine | None = None,
    *,
    kernel_version: str = "",
    entries: Sequence[Conformance] = CONFORMANCE,
) -> list[Claim]:
    """What is claimed on that kernel; of a vendor's also what holds for any later release.

    NoConformance; and what oracle.find_rule raises.
    """
    kernel = oracle.parse_kernel(kernel_release, kernel_version)
    known = oracle.facts(case, machine)
    releases = [kernel.release]
    if kernel.vendor:
        spans = [
            *((rule.since, rule.until) for rule in RULES),
            *((entry.since, entry.until) for entry in entries),
        ]
        bounds = {bound for span in spans for bound in span if bound is not None}
        releases += sorted(bound for bound in bounds if bound > kernel.release)
    found = [
        Claim(oracle.find_rule(known, release).pin_class, find(known, release, entries))
        for release in releases
    ]
    return list({(claim.pin_class, claim.conformance.name): claim for claim in found}.values())


def broken(
    calls: Sequence[Mapping[str, Any]], claimed: Sequence[Claim], *, ok: bool, lab: bool = True
) -> list[str]:
    """What does not agree, a sentence each; of several claims one is enough to be agreed with."""
    judged = [
        call
        for call in calls
        if call.get("caller") not in NOT_THE_CASE
        and (lab or call.get("by", "process") == "process")
    ]
    proving = [
        call
        for call in calls
        if call.get("caller") not in NOT_THE_CASE and _may_prove(call, lab=lab)
    ]
    told = [_against(claim, judged, proving, ok=ok) for claim in claimed]
    return min(told, key=len) if told else []


def _against(
    claim: Claim,
    judged: Sequence[Mapping[str, Any]],
    proving: Sequence[Mapping[str, Any]],
    *,
    ok: bool,
) -> list[str]:
    sentences = []
    for call in judged:
        if call.get("via") is None and call["function"] not in BEHIND:
            sentences += _entry_point(claim.conformance, call)
        else:
            sentences += _behind(claim, call)
    if ok:
        sentences += _proof(claim, proving)
    return list(dict.fromkeys(sentences))


def _entry_point(conformance: Conformance, call: Mapping[str, Any]) -> list[str]:
    if any(allows(allowed, call) for allowed in conformance.calls):
        return []
    caller = f" from {call['caller']}" if call.get("caller") else ""
    return [
        f"the kernel called {_spoken(call)}{caller}, where {conformance.name} allows "
        f"{_list(conformance.calls) or 'no function of GUP'} ({conformance.source})"
    ]


def _behind(claim: Claim, call: Mapping[str, Any]) -> list[str]:
    flags = frozenset(call["flags"])
    if not flags & _REFERENCES and call.get("via") is None:
        return []  # mlock and MAP_POPULATE fault pages in this way, and take no reference
    given, refused = _GIVEN[claim.pin_class]
    lacking, beyond = sorted(given - flags), sorted(flags & refused)
    if not lacking and not beyond:
        return []
    wrong = " and ".join(
        [*(f"lacks {flag}" for flag in lacking), *(f"has {flag}" for flag in beyond)]
    )
    where = f"behind {call['via']}" if call.get("via") else "by itself"
    return [
        f"the rules say pin class {claim.pin_class}, but {_spoken(call)}, called {where}, {wrong}"
    ]


def _proof(claim: Claim, calls: Sequence[Mapping[str, Any]]) -> list[str]:
    proofs = claim.conformance.proof
    if not proofs:
        return []
    proof_of = f"the proof of pin class {claim.pin_class} ({claim.conformance.source})"
    entered = [
        call
        for call in calls
        if call.get("via") is None and any(allows(proof, call) for proof in proofs)
    ]
    if not entered:
        return [
            f"the outcome is ok, but the kernel was not seen to call {_list(proofs)}, which is "
            f"{proof_of}"
        ]
    got = [call for call in entered if _got_pages(call)]
    if not got:
        return [
            f"the outcome is ok, but {_spoken(entered[0])} was not seen to return a page in "
            f"acquire, which is {proof_of}"
        ]
    given, _ = _GIVEN[claim.pin_class]
    if not any(_is_given(given, call, calls) for call in got):
        return [
            f"the outcome is ok, but behind {_spoken(got[0])} no function that was given "
            f"{'|'.join(sorted(given))} was seen to return a page in acquire, which is {proof_of}"
        ]
    return []


def _may_prove(call: Mapping[str, Any], *, lab: bool) -> bool:
    """Whether it is known for whom the kernel did that; in the lab there is nobody else."""
    ours = lab or call.get("by", "process") == "process"
    return ours or call.get("caller") in WORKS_FOR_CASES


def _got_pages(call: Mapping[str, Any]) -> bool:
    """hmm_range_fault() too has pages here when, and only when, it returned 0 at least once."""
    return call.get("phase") == "acquire" and call.get("pages_returned", 0) > 0


def _is_given(
    given: frozenset[str], entry: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a function behind that entry point, for the same caller, had those flags."""
    if not given or entry["function"] == _PINS_BY_ITSELF:
        return True
    return any(
        call.get("via") == entry["function"]
        and call["function"] in BEHIND
        and call.get("caller") == entry.get("caller")
        and call.get("by") == entry.get("by")
        and given <= frozenset(call["flags"])
        and _got_pages(call)
        for call in calls
    )


def allows(allowed: Call, call: Mapping[str, Any]) -> bool:
    """Whether it is that function, with all the flags it must have and none that it may not."""
    flags = frozenset(call["flags"])
    return (
        call["function"] == allowed.function
        and allowed.flags <= flags
        and flags <= allowed.flags | allowed.optional
    )


def _spoken(call: Mapping[str, Any]) -> str:
    return _with_flags(call["function"], call["flags"])


def _list(calls: Sequence[Call]) -> str:
    return " or ".join(
        _with_flags(call.function, sorted(call.flags))
        + (f", perhaps {'|'.join(sorted(call.optional))}" if call.optional else "")
        for call in calls
    )


def _with_flags(function: str, flags: Sequence[str]) -> str:
    return f"{function} with {'|'.join(flags) or 'no flags'}"
