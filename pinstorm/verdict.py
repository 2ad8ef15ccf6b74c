"""Expectation against outcome: the verdict of a record. Pure functions.

The order in which a case is judged: what the runner already knows (skip, crash, timeout, lost);
a failure in prepare; no rule; the outcome; cycles that disagree; the calls that the trace saw, for
a wrong pin class explains wrong figures; what was leaked; the other bounds;
the kernel log and taint; releases that failed. The first of them that is broken is the reason, and
all are told in ``expected["broken"]``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pinstorm import conformance, explain, oracle, pin_judgement, survival
from pinstorm.findings import Findings
from pinstorm.load_case import judgement as load_judgement
from pinstorm.oracle import Expectation, Figure, Machine, NoRule, Range
from pinstorm.witness import NOT_ASKED
from telemetry import kmsg, taint
from workloads import memory_spec
from workloads.spec import PAGE_BYTES, Case

# What only the runner can see; a later, better rule does not change it.
FINAL_VERDICTS: Final = frozenset({"skip", "crash", "timeout", "lost"})

INEXACT: Final = "inexact"
NOISY: Final = "noisy-window"
NOT_WITNESSED: Final = "not-witnessed"
UNAVAILABLE: Final = "telemetry-unavailable"

_OOPS = re.compile(
    r"\bOops\b|\bKernel panic|\bkernel BUG at|general protection fault|[Uu]nable to handle|"
    + kmsg.DIE_HEADER
)
# Set by a soft lockup (kernel/watchdog.c).
_TAINT_LOCKUP: Final = "L"
# Reports that slow emulation makes by itself, by starving a virtual processor.
_STARVED = re.compile(r"soft lockup|hard LOCKUP|rcu.*stall|blocked for more than")

_DONE: Final = frozenset({"ok", "short"})


@dataclass(frozen=True, slots=True)
class Judgement:
    """``expected`` is what the record stores: the expectation, and what of it is broken."""

    verdict: str
    reason: str | None
    expected: dict[str, Any]


def judge(record: Mapping[str, Any], *, kernel: str | None = None, lab: bool = True) -> Judgement:
    """The verdict of a record.

    ``kernel`` replaces the record's kernel release (``[assume]`` in a suite). ``lab``: the machine
    does nothing else, so all migration and taint in the window belong to the case.
    """
    expected, missing = _expected(record, kernel)
    pins_said = _pins_said(record)
    verdict, reason = _verdict_of_runner(record, expected)
    findings = Findings()
    if verdict != "skip" and expected is not None:
        _compare(record, expected, findings, kernel=kernel, lab=lab, pins_judged=pins_said is None)
    elif verdict is None:
        findings.add("no-rule", missing)
    if verdict is None and findings.reasons:
        verdict, reason = "fail", findings.reasons[0]
    elif verdict is None:
        undecided = expected.undecided if expected else None
        doubt = _end_unread(record) or pins_said or _unread(record, expected)
        doubt = doubt or _inexact(record, expected) or _not_witnessed(record)
        doubt = doubt or load_judgement.doubt(record)
        verdict, reason = "pass", undecided or doubt
    said = expected.to_json() if expected is not None else {"rule": None, "outcomes": []}
    if pins_said is not None and verdict != "skip":
        said["pins"] = pins_said
    said |= survival.sources(record["params"])
    said["broken"] = findings.sentences
    return Judgement(verdict, reason, said)


def rejudge(
    records: Iterable[Mapping[str, Any]], *, kernel: str | None = None, lab: bool = True
) -> list[dict[str, Any]]:
    """Copies of the records, judged again by the rules of today."""
    judged = []
    for record in records:
        judgement = judge(record, kernel=kernel, lab=lab)
        judged.append(
            {
                **record,
                "verdict": judgement.verdict,
                "reason": judgement.reason,
                "expected": judgement.expected,
                **_explained(record),
            }
        )
    return judged


def _explained(record: Mapping[str, Any]) -> dict[str, Any]:
    """The cause, as it is found today, of what was seen then."""
    explained = explain.of_record(record)
    if explained is None:
        return {name: None for name in ("cause", "explanation") if name in record}
    first = explained.first
    return {
        "cause": str(first.cause),
        "remedy": first.remedy,
        "explanation": explained.to_json(),
    }


def machine_of(record: Mapping[str, Any]) -> Machine:
    """What the record says of the machine; ``cap_ipc_lock`` is taken from the uid when left out."""
    capable = record.get("cap_ipc_lock")
    device = record.get("device")
    driver = record.get("driver")
    if driver is None and isinstance(device, str):  # of a bundle older than the field
        driver = "rxe" if device.startswith("rxe") else None
    return Machine(
        cap_ipc_lock=record.get("uid", 0) == 0 if capable is None else bool(capable),
        memlock_bytes=record.get("memlock_bytes"),
        driver=driver,
        target_fs=record.get("target_fs"),
    )


def _case_of(record: Mapping[str, Any]) -> Case:
    return Case(record["workload"], record["memory"], record["params"])


def _expected(record: Mapping[str, Any], kernel: str | None) -> tuple[Expectation | None, str]:
    """The expectation, or why there is none."""
    if load_judgement.is_load(record):
        return load_judgement.EXPECTED, ""
    case = _case_of(record)
    release = kernel or record["kernel"]
    try:
        expected = oracle.expectation(
            case,
            release,
            machine_of(record),
            kernel_version=_version(record, release),
        )
    except NoRule as error:
        return None, f"{error} ({release})"
    except (KeyError, ValueError) as error:
        return None, f"no rule can be looked up for {case.id} on {release}: {error}"
    return expected, ""


def _verdict_of_runner(
    record: Mapping[str, Any], expected: Expectation | None
) -> tuple[str | None, str | None]:
    """The verdicts that need no bounds, with their reason; (None, None) when there is none."""
    known = record.get("verdict")
    if known == "skip" or record.get("skip"):
        unmet = record.get("skip") or []
        return "skip", record.get("reason") or (unmet[0]["code"] if unmet else None)
    if known in ("crash", "lost"):  # who saw the machine go knows whether the kernel was at fault
        return str(known), record.get("reason")
    if record.get("signal") is not None and known != "timeout":
        return "crash", f"signal-{record['signal']}"
    if any(_OOPS.search(report) for report in _unexpected_reports(record, expected)):
        return "crash", "oops"
    if known in FINAL_VERDICTS:
        return str(known), record.get("reason")
    return None, None


def _pins_said(record: Mapping[str, Any]) -> str | None:
    """Why the pin figures of this record are not judged; None when they are."""
    pins = record.get("pins")
    if pins is None or (record.get("telemetry") or {}).get("pins_available") is False:
        return UNAVAILABLE
    if record.get("outcome") in _DONE and pins.get("acquire") is None:
        return UNAVAILABLE
    return NOISY if pins.get("flagged") or pins.get("noise") or pins.get("recent") else None


def _end_unread(record: Mapping[str, Any]) -> str | None:
    """A pass of which nobody saw whether pins outlived the process: that is no 0."""
    pins = record.get("pins")
    return UNAVAILABLE if pins is not None and pins.get("orphaned") is None else None


def _unread(record: Mapping[str, Any], expected: Expectation | None) -> str | None:
    """A pass whose VmPin, VmLck or kernel log was to be seen, and could not be read."""
    if expected is None:
        return None
    if expected.required_messages and record.get("kmsg") is None:
        return UNAVAILABLE
    if record.get("outcome") not in _DONE:
        return None
    for figure in ("vmpin_bytes", "vmlck_bytes"):
        wanted = expected.bounds[figure].low
        if wanted and (record.get(figure) or {}).get("held") is None:
            return UNAVAILABLE
    return None


def _not_witnessed(record: Mapping[str, Any]) -> str | None:
    """A pass whose calls were asked to be traced, and were not seen."""
    if load_judgement.is_load(record):
        return None
    missing = record.get("no_trace")  # of a bundle older than the witness, nothing is said
    if missing in (None, NOT_ASKED) or record.get("failed_phase") == "prepare":
        return None
    if record.get("killed"):  # in mid-call, perhaps
        return None
    return NOT_WITNESSED


def _inexact(record: Mapping[str, Any], expected: Expectation | None) -> str | None:
    """A pass of figures that could not have failed: they may be off by more than they are."""
    pins = record.get("pins")
    if expected is None or not pins or not pins.get("bound"):
        return None
    signal = max(expected.bounds[name].low or 0 for name in ("acquired", "held"))
    return INEXACT if signal and pin_judgement.net_tolerance(pins) >= signal else None


def _compare(
    record: Mapping[str, Any],
    expected: Expectation,
    findings: Findings,
    *,
    kernel: str | None,
    lab: bool,
    pins_judged: bool,
) -> None:
    findings.add_all(load_judgement.broken(record))
    outcome_broken = _compare_outcome(record, expected, findings)
    _compare_calls(record, findings, kernel=kernel, lab=lab)
    if not outcome_broken:
        bounds = _bounds_of_outcome(record, expected)
        if pins_judged:
            pin_judgement.compare(record, bounds, findings)
        elif _pins_said(record) == NOISY:
            pin_judgement.compare_beside_others(record, bounds, findings)
        tolerance_pages = pin_judgement.net_tolerance(record["pins"]) if pins_judged else None
        findings.add_all(survival.of_disturbance(record, tolerance_pages))
        _compare_accounted(record, bounds, findings)
        _compare_migration(record, bounds, findings, lab=lab)
    elif pins_judged:
        # The outcome is wrong already, so its bounds mean nothing; a leak still does.
        pin_judgement.compare_leaks(record["pins"], findings)
    elif _pins_said(record) == NOISY:
        pin_judgement.compare_remaining(record["pins"], findings)
    _compare_kernel_log(record, expected, findings, lab=lab)
    if not outcome_broken:
        _compare_required(record, expected, findings)
    if (unhelpful := _remedy_without_effect(record)) is not None:
        findings.add("remedy", unhelpful)
    for error in record.get("owner_errors") or ():
        findings.add("release", f"a resource could not be given back: {error}")


def _compare_outcome(record: Mapping[str, Any], expected: Expectation, findings: Findings) -> bool:
    """Judge the outcome and say whether it is broken."""
    outcome, phase = record.get("outcome"), record.get("failed_phase")
    call = record.get("failed_call")
    detail = f": {record['detail']}" if record.get("detail") else ""
    what = f"{call} gave {outcome}" if call and outcome not in _DONE else f"outcome {outcome}"
    if phase == "prepare" and (call is None or call not in expected.prepare_calls):
        findings.add("prepare", f"the case could not be prepared{detail or f': {what}'}")
        return True
    if record.get("error"):
        findings.add("error", f"the case broke: {record['error']}")
        return True
    ended = record.get("verdict") in FINAL_VERDICTS or record.get("signal") is not None
    if ended and (outcome is None or phase == "release"):
        return True  # the case did not get that far, and its verdict says so
    if not ended and record["params"].get("kill") is not None:
        findings.add_all(survival.of_kill(record))
        if outcome is None or not record.get("killed"):
            return True
    if phase == "release":
        findings.add("release", f"release failed: {what}{detail}")
        return True
    if outcome not in expected.outcomes:
        findings.add("outcome", f"{what}, expected {' or '.join(expected.outcomes)}{detail}")
        return True
    seen = {name: count for name, count in (record.get("outcomes") or {}).items() if count}
    if len(seen) > 1 and not seen.keys() <= set(expected.outcomes):
        counts = ", ".join(f"{count} {name}" for name, count in sorted(seen.items()))
        findings.add("unstable", f"the cycles did not end alike: {counts}")
        return True
    return False


def _compare_calls(
    record: Mapping[str, Any], findings: Findings, *, kernel: str | None, lab: bool
) -> None:
    """What the kernel was seen to call against the pin class and the call sites of the rules."""
    calls = record.get("gup_calls")
    if calls is None:
        return
    release = kernel or record["kernel"]
    try:
        claimed = conformance.claims(
            _case_of(record), release, machine_of(record), kernel_version=_version(record, release)
        )
    except conformance.NoConformance as error:
        findings.add("pin-class", f"{error} on {release}: what was traced cannot be judged")
        return
    for sentence in conformance.broken(calls, claimed, ok=record.get("outcome") == "ok", lab=lab):
        findings.add("pin-class", sentence)


def _remedy_without_effect(record: Mapping[str, Any]) -> str | None:
    """The last remedy was carried out, and the cause that it is for came back.

    Another cause behind it is none of its making; nor is a command that was not or could not be
    carried out.
    """
    last = next(reversed(record.get("retries") or ()), None)
    if last is None or last["applied"]["exit"] != 0 or last["outcome"] in _DONE:
        return None
    if last.get("then") != last["cause"]:
        return None
    return f"{last['command']} did not help: {last['cause']} came back, with {last['outcome']}"


def _version(record: Mapping[str, Any], release: str) -> str:
    """``uname -v``, unless another kernel's rules are assumed."""
    return (record.get("kernel_version") or "") if release == record["kernel"] else ""


def _bounds_of_outcome(record: Mapping[str, Any], expected: Expectation) -> dict[Figure, Range]:
    """The rule's bounds, narrowed for a refusal that shares its rule with a success, and widened
    where the pages did not lie as this kind of memory has them."""
    bounds = dict(expected.bounds)
    if record.get("outcome") not in _DONE and not _DONE.isdisjoint(expected.outcomes):
        bounds["acquired"] = Range(0, bounds["acquired"].high)
        bounds["held"] = bounds["vmpin_bytes"] = Range(0, 0)
        bounds["migrate_success"] = bounds["migrate_fail"] = Range(None, None)
    if expected.pin_class == "pin-longterm" and _may_migrate(record):
        # Page cache and hugetlb may come from CMA or ZONE_MOVABLE, and a long-term pin moves it.
        amounts = oracle.amounts(_case_of(record), memory_spec(record["memory"]))
        if record.get("outcome") in _DONE:
            retried = Range(bounds["acquired"].low, amounts["retried-pages"])
            bounds["acquired"] = bounds["acquired"].join(retried)
        moved = Range(bounds["migrate_success"].low, amounts["twice-pages"])
        bounds["migrate_success"] = bounds["migrate_success"].join(moved)
    if record["workload"] == "io-uring-register" and _other_folios(record):
        # It keeps one pin per folio and accounts whole ones: with shmem_enabled=always a memfd has
        # folios of any size.
        bounds["held"] = Range(min(1, bounds["held"].low or 0), bounds["acquired"].low)
        bounds["vmpin_bytes"] = Range(bounds["vmpin_bytes"].low, None)
    return bounds


def _may_migrate(record: Mapping[str, Any]) -> bool:
    """Whether pages lay in CMA or ZONE_MOVABLE, or where they lay is not known."""
    placement = record.get("placement")
    if placement is None or placement.get("cma_pages") is None:
        return True
    return bool(placement["cma_pages"] or (placement.get("zones") or {}).get("Movable"))


def _other_folios(record: Mapping[str, Any]) -> bool:
    """Whether pages that the case does not replace lay in folios larger than its memory's own."""
    region = memory_spec(record["memory"])
    orders = ((record.get("placement") or {}).get("folio_orders")) or {}
    largest = max((int(order) for order, pages in orders.items() if pages), default=0)
    return not region.fresh_each_cycle and (PAGE_BYTES << largest) > region.granule_bytes


def _compare_accounted(
    record: Mapping[str, Any], bounds: Mapping[Figure, Range], findings: Findings
) -> None:
    figures: tuple[tuple[Figure, str, str], ...] = (
        ("vmpin_bytes", "vmpin", "VmPin"),
        ("vmlck_bytes", "vmlck", "VmLck"),
    )
    for figure, reason, name in figures:
        grown = record.get(figure) or {}
        held, after = grown.get("held"), grown.get("after")
        if held is not None and not pin_judgement.within(held, bounds[figure], 0):
            findings.add(reason, f"{name} {held} bytes while held, expected {bounds[figure]}")
        if after:
            findings.add(reason, f"{name} {after} bytes after release, expected 0")


def _compare_migration(
    record: Mapping[str, Any], bounds: Mapping[Figure, Range], findings: Findings, *, lab: bool
) -> None:
    """The counters cover the whole machine: too much is the case's only where nothing else runs."""
    migrate = record.get("migrate") or {}
    figures: tuple[tuple[str, Figure, str], ...] = (
        ("success", "migrate_success", "migrated"),
        ("fail", "migrate_fail", "failed to migrate"),
    )
    for key, figure, what in figures:
        value = migrate.get(key)
        bound = bounds[figure] if lab else Range(bounds[figure].low, None)
        if value is not None and not pin_judgement.within(
            value, bound, int(migrate.get("noise") or 0)
        ):
            findings.add("migrate", f"{pin_judgement.pages_text(value)} {what}, expected {bound}")


def _unexpected_reports(record: Mapping[str, Any], expected: Expectation | None) -> list[str]:
    """The kernel's reports that are the case's own and that no rule expects.

    The runner writes into ``kmsg`` what is the case's own, as text, or else says so: ``{"text": …,
    "own": false}``.
    """
    wanted = expected.kernel_messages if expected is not None else ()
    reports = []
    for entry in record.get("kmsg") or ():
        text, own = (entry, True) if isinstance(entry, str) else (entry["text"], entry.get("own"))
        if not own or not kmsg.serious(kmsg.Line(0, 4, 0, text)):
            continue
        if record.get("accel") == "tcg" and _STARVED.search(text):
            continue
        if not any(re.search(pattern, text) for pattern in wanted):
            reports.append(text)
    return reports


def _compare_required(record: Mapping[str, Any], expected: Expectation, findings: Findings) -> None:
    """The reports that the rule says the kernel must make; a log that cannot be read has none."""
    if (entries := record.get("kmsg")) is None:
        return
    texts = [entry if isinstance(entry, str) else entry["text"] for entry in entries]
    for pattern in expected.required_messages:
        if not any(re.search(pattern, text) for text in texts):
            findings.add("kernel-log", f"the kernel did not report {pattern}, which it must")


def _compare_kernel_log(
    record: Mapping[str, Any], expected: Expectation, findings: Findings, *, lab: bool
) -> None:
    """New reports of the kernel, and new taint; on a host taint only with a report of ours."""
    reports = _unexpected_reports(record, expected)
    for report in reports:
        findings.add("kernel-log", f"the kernel reported: {report.splitlines()[0]}")
    ignored = expected.taint + (_TAINT_LOCKUP if record.get("accel") == "tcg" else "")
    mask = record.get("taint") or 0
    letters = taint.letters(mask) if isinstance(mask, int) else mask
    letters = "".join(letter for letter in letters if letter not in ignored)
    if letters and (lab or reports):
        findings.add("taint", f"the kernel was tainted: {letters}")
