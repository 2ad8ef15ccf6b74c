"""The checks in a row, and how what they found is ranked."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from pinstorm.evidence import Evidence
from pinstorm.evidence_parts import readable
from pinstorm.explain import arguments, calls, limits, mapping, resources, view
from pinstorm.explain.causes import COMMON, KNOWLEDGE, Cause
from pinstorm.explain.check import Hit
from pinstorm.explain.finding import CONFIDENCES, Explanation, Failure, Finding
from pinstorm.explain.instead import case_instead
from pinstorm.explain.view import View
from pinstorm.load_case.judgement import of_job

_CHECKS: Final[tuple[Callable[[View], list[Hit]], ...]] = (
    resources.cgroup_rdma,
    arguments.device_gone,
    arguments.misaligned,
    arguments.odp_unsupported,
    arguments.kernel_unsupported,
    arguments.capability,
    mapping.bad_address,
    limits.memlock,
    limits.budget,
    # in the order of check_vma_flags()
    mapping.io_mapping,
    mapping.longterm_on_dax,
    mapping.secret_memory,
    mapping.longterm_on_file,
    mapping.protection,
    mapping.not_mapped,
    mapping.migration,
    resources.vma_limit,
    resources.device_limit,
    resources.no_memory,
    resources.pin_count,
)
_DONE: Final = frozenset({None, "ok"})


def of_failure(failure: Failure, evidence: Evidence) -> Explanation:
    """The causes that fit, ranked; ``unknown`` when none does."""
    seen = view.of(failure, evidence)
    # sorted() keeps the order of the checks among those of one stage
    hits = sorted((one for check in _CHECKS for one in check(seen)), key=_rank)
    fitting = [one for one in hits if failure.outcome in one.errnos]
    if not fitting:
        return Explanation(_unknown(seen), tuple(_later(seen, hits, None)))
    first = fitting[0]
    if first.finding.confidence != "possible":
        fitting = [one for one in fitting if not one.guessed]
    found = _distinct([_with_case(seen, one) for one in fitting])
    is_guess = first.guessed or (first.finding.confidence == "possible" and len(found) > 1)
    if failure.record is not None and is_guess:
        # In a record the cause is stored and counted: a guess is told, and none is named.
        return Explanation(_unknown(seen), tuple(found))
    later = [one for one in _later(seen, hits, first) if one.cause not in {f.cause for f in found}]
    return Explanation(found[0], (*found[1:], *later))


def of_record(record: Mapping[str, Any]) -> Explanation | None:
    """Of a record, or one as far as it goes; None when nothing was refused."""
    if record.get("verdict") == "skip" or record.get("skip"):
        return None
    record = of_job(record)
    evidence, damage = _evidence_of(record)
    explanation = _of_refusal(record, evidence)
    if explanation is None or damage is None or damage in explanation.first.evidence:
        return explanation
    first = explanation.first
    return replace(explanation, first=replace(first, evidence=(*first.evidence, damage)))


def _of_refusal(record: Mapping[str, Any], evidence: Evidence) -> Explanation | None:
    outcome = record.get("outcome")
    if record.get("failed_phase") == "release" or record.get("error"):
        return None
    if outcome is None:
        return _of_the_killed(record, evidence)
    call = record.get("failed_call")
    if call is None and record.get("failed_phase") == "prepare":
        call = "prepare"
    call = call or calls.of_workload(str(record.get("workload")))
    if outcome in _DONE or call is None:
        return None
    failure = Failure(
        call=_named(str(call), record),
        outcome=str(outcome),
        phase=str(record.get("failed_phase") or "acquire"),
        detail=str(record.get("detail") or ""),
        kernel=record.get("kernel"),
        record=record,
    )
    return of_failure(failure, evidence)


def _named(call: str, record: Mapping[str, Any]) -> str:
    """The call as it is known here: setsockopt and ioctl are many things, its detail says which."""
    detail = str(record.get("detail") or "")
    if call == "setsockopt" and detail.startswith("XDP_UMEM_REG"):
        return "XDP_UMEM_REG"
    if call == "ioctl" and record.get("workload") == "gup-test":
        return "gup_test"
    return call


def _of_the_killed(record: Mapping[str, Any], evidence: Evidence) -> Explanation | None:
    """A process that ended without an answer has a cause only when the kernel says which."""
    failure = Failure("the process", "killed", record=record, kernel=record.get("kernel"))
    hits = resources.killed(view.of(failure, evidence))
    return Explanation(hits[0].finding) if hits else None


def _evidence_of(record: Mapping[str, Any]) -> tuple[Evidence, str | None]:
    """What was gathered, nothing of an old bundle; and a sentence where it cannot be used."""
    told = record.get("evidence")
    if told is None:
        return Evidence(), None
    try:
        return Evidence.from_json(told), None
    except ValueError as error:
        damage = f"the record's evidence is damaged and was not used: {readable(str(error))}"
        return Evidence(hidden=(damage,)), damage


def _rank(one: Hit) -> tuple[int, int, int]:
    """The surer first; of those alike, what the kernel meets first; then what people meet most."""
    finding = one.finding
    confidence = CONFIDENCES.index(finding.confidence)
    if finding.confidence == "possible":
        return confidence, int(one.guessed), COMMON.index(finding.cause)
    return confidence, int(one.stage), one.at


def _distinct(findings: list[Finding]) -> list[Finding]:
    """One finding of each cause: the best."""
    best: dict[Cause, Finding] = {}
    for one in findings:
        best.setdefault(one.cause, one)
    return list(best.values())


def _later(seen: View, hits: list[Hit], first: Hit | None) -> list[Finding]:
    """What is wrong as well and would be met next: it answers with another errno."""
    found = []
    for one in hits:
        if seen.outcome in one.errnos or one.finding.confidence == "possible":
            continue
        if first is not None and one.stage <= first.stage:
            continue
        errnos = " or ".join(sorted(one.errnos))
        sentence = f"this would be met next, with {errnos}"
        finding = _with_case(seen, one)
        found.append(replace(finding, evidence=(*finding.evidence, sentence)))
    return found


def _with_case(seen: View, one: Hit) -> Finding:
    return replace(one.finding, instead=case_instead(seen, one.finding.cause))


def _unknown(seen: View) -> Finding:
    """What was looked at, or that the call is not one of those known."""
    failure = seen.failure
    if seen.mechanism is None and not calls.is_plain(failure.call):
        known = ", ".join(calls.known_calls())
        return Finding(
            Cause.UNKNOWN,
            "possible",
            (f"{failure.call} is none of the calls that can be explained: {known}",),
            "name the call that the kernel refused, as strace shows it",
        )
    told = [f"{failure.call} gave {failure.outcome}, and nothing that was seen explains it"]
    if failure.detail:
        told.append(failure.detail)
    told += seen.evidence.hidden
    return Finding(Cause.UNKNOWN, "possible", tuple(told), KNOWLEDGE[Cause.UNKNOWN].remedy)
