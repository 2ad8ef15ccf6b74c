"""The oracle: what the documented kernel rules say must come of a case. Pure functions.

Which rule wins, of all in pinstorm.rules whose properties and kernel releases fit: the one whose
check comes first in the kernel (Check.ARGUMENTS before Check.MAPPING and so on), then the most
specific one, where specificity is the number of properties plus the number of release bounds. Two
that remain are a mistake in the rules (AmbiguousRules); a unit test goes through every cell.

A limit that was not recorded (RLIMIT_MEMLOCK of an ordinary user) and a vendor kernel leave more
than one rule possible: then all their outcomes are allowed, their bounds are joined, and the
expectation says ``undecided: memlock-unknown`` or ``undecided: vendor-kernel``. A vendor kernel
backports, so every rule that holds for its own release or for any later one is possible there.
Kernels before 6.1 are judged by the rules of 6.1 and said to be ``undecided: old-kernel``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pinstorm.rules import RULES
from pinstorm.rules.rule import Bound, Conformance, Fact, Release, Rule, Symbol
from workloads import memory_spec, workload_spec
from workloads.spec import (
    PAGE_BYTES,
    ZEROCOPY_SEND_BYTES,
    Case,
    MemorySpec,
    Need,
    PinClass,
    WorkloadSpec,
    overflow_times,
)

UNDECIDED_VENDOR: Final = "undecided: vendor-kernel"
UNDECIDED_MEMLOCK: Final = "undecided: memlock-unknown"
UNDECIDED_OLD: Final = "undecided: old-kernel"

_WHY: Final = {
    UNDECIDED_VENDOR: "a vendor kernel may carry later changes under an older number",
    UNDECIDED_MEMLOCK: "RLIMIT_MEMLOCK of the process was not recorded",
}

# No older kernel's source was read for the rules; they are taken to hold there as well.
OLDEST_READ: Final[Release] = (6, 1)

# ib_access_writable() in include/rdma/ib_verbs.h: any of these makes ib_umem_get() ask for
# FOLL_WRITE.
_WRITING_ACCESS: Final = frozenset(
    {"rw", "LOCAL_WRITE", "REMOTE_WRITE", "REMOTE_ATOMIC", "MW_BIND"}
)

# What O_DIRECT on a file system does with the pages. "block": always hands them to the device; None
# is the lab's ext4. What is not named here may copy them.
_TARGETS: Final[Mapping[str | None, str]] = {None: "block", "ext4": "block", "xfs": "xfs"}

# Marks of distribution kernels that carry years of later mainline work under an old number.
_VENDOR = re.compile(r"\.(?:el\d+|oe\d+|an\d+|al\d+|amzn\d+)|\bel\d+uek|-default$")


# ib_umem_get() asks for as many pages in one call as a page has room for their pointers.
CALL_PAGES: Final = 512

# include/linux/mm.h: what a pin adds to the reference count of a small folio.
GUP_PIN_COUNTING_BIAS: Final = 1024

# BIO_MAX_VECS: direct IO asks for no more pages in one call.
BIO_PAGES: Final = 256

# io_allocate_scq_urings() of v6.14: one region of whole pages for both queues of a ring with one
# entry, one for its submission entries.
RING_BYTES: Final = 2 * PAGE_BYTES


class NoRule(LookupError):
    """No rule speaks of the case on that kernel."""


class AmbiguousRules(ValueError):
    """Several rules speak of the case with the same right."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel release as rules see it.

    ``release`` is (major, minor), with the stable patch level where it is known: Debian up to 12
    calls every 6.1.y ``6.1.0-N`` and has the patch level only in ``uname -v``.
    """

    release: Release
    vendor: bool


def parse_kernel(release: str, version: str = "") -> Kernel:
    """Read ``uname -r``, with ``uname -v`` where it is known. ValueError when it is no release."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if match is None:
        raise ValueError(f"kernel release {release!r} does not start with two numbers")
    major, minor = int(match[1]), int(match[2])
    exact = re.search(rf"\b{major}\.{minor}\.(\d+)", version)
    patch = int(exact[1]) if exact else int(match[3] or 0)
    vendor = _VENDOR.search(release) is not None
    # Patch level 0 of a distribution kernel (6.1.0-50-amd64, 6.8.0-45-generic) says nothing.
    number: Release = (major, minor, patch) if patch else (major, minor)
    return Kernel(number, vendor)


@dataclass(frozen=True, slots=True)
class Machine:
    """What else a rule may depend on. ``memlock_bytes``: the soft RLIMIT_MEMLOCK; -1 unlimited."""

    cap_ipc_lock: bool = True
    memlock_bytes: int | None = None
    driver: str | None = "rxe"
    target_fs: str | None = None


def facts(case: Case, machine: Machine | None = None) -> dict[str, Fact]:
    """The properties of a case on a machine that rules may speak of."""
    machine = _of_case(case, machine or Machine())
    work = workload_spec(case.workload)
    region = memory_spec(case.memory)
    return {
        "workload": work.name,
        "memory": region.name,
        "pin_class": _pin_class(case, work),
        "scope": work.scope,
        "writes": _writes(case, work),
        "mode": str(case.params.get("mode", "none")),
        "through": str(case.params.get("through", "none")),
        "touch": bool(case.params.get("touch", True)),
        "backing": region.backing,
        "shared": region.shared,
        "present": region.present,
        "prot": region.prot,
        "extent": region.extent,
        "starts_bad": _good_pages(region, case.pages) == 0,
        "movable": region.movable,
        "foreign_reference": region.foreign_reference,
        "overflow": _overflow(case, work, region),
        "dirty_tracked": region.backing == "file" and region.shared,
        "folio": "base" if region.granule_bytes == PAGE_BYTES else "huge",
        "one_folio": case.offset_bytes + case.size_bytes <= region.granule_bytes,
        "file": region.file,
        "cap_ipc_lock": machine.cap_ipc_lock,
        "memlock": _memlock(case, work, region, machine),
        "memlock_with_ring": _memlock(case, work, region, machine, RING_BYTES),
        "driver": machine.driver or "none",
        "target": _target(work, machine),
        "alignment": _alignment(case.size_bytes),
        "offset": _alignment(case.offset_bytes),
        "registered": bool(case.params.get("registered", False)),
        "one_bio": case.pages <= BIO_PAGES,
        "under": str(case.params.get("under", "none")),
    }


def _of_case(case: Case, machine: Machine) -> Machine:
    """The machine as a case sees it that has a user or a limit of its own."""
    if "uid" in case.params:
        machine = replace(machine, cap_ipc_lock=False)
    if "memlock_bytes" in case.params:
        machine = replace(machine, memlock_bytes=int(case.params["memlock_bytes"]))
    return machine


def _pin_class(case: Case, work: WorkloadSpec) -> PinClass:
    """The workload's own; of gup_test what its mode is named after."""
    mode = case.params.get("mode")
    if mode is None:
        return work.pin_class
    if mode == "PIN_LONGTERM":
        return "pin-longterm"
    return "get" if mode.startswith("GUP") else "pin"


def _writes(case: Case, work: WorkloadSpec) -> bool:
    if work.writes != "access":
        return work.writes
    access = case.params.get("access", work.defaults.get("access", "rw"))
    words = re.split(r"[|,+\s]+", access) if isinstance(access, str) else [str(a) for a in access]
    return any(word.removeprefix("IBV_ACCESS_") in _WRITING_ACCESS for word in words)


def _memlock(
    case: Case, work: WorkloadSpec, region: MemorySpec, machine: Machine, first_bytes: int = 0
) -> str:
    """How far the limit reaches. ``first_bytes``: charged in prepare, by each process; a limit that
    leaves no room for these is as good as none."""
    limit = machine.memlock_bytes
    if work.charged is None or machine.cap_ipc_lock:
        return "exempt"
    if limit is None:
        return "unknown"
    if limit == 0 or 0 <= limit < first_bytes * case.processes:
        return "zero"
    needed = first_bytes + amounts(case, region)[work.charged]
    if limit >= 0 and needed > limit:
        return "short"
    together = needed * case.processes if work.charged_to == "user" else needed
    return "enough" if limit < 0 or together <= limit else "crowded"


def _target(work: WorkloadSpec, machine: Machine) -> str:
    if Need.TARGET_DIO not in work.needs:
        return "none"
    return _TARGETS.get(machine.target_fs, "other")


def _alignment(size_bytes: int) -> str:
    if size_bytes % PAGE_BYTES == 0:
        return "page"
    return "sector" if size_bytes % 512 == 0 else "byte"


def amounts(case: Case, region: MemorySpec) -> dict[Symbol, int]:
    """The value of each symbol of a bound. Regions start on a granule."""
    pages, processes, times = case.pages, case.processes, case.times
    attempts = -(-pages // CALL_PAGES)
    folios = -(-(case.offset_bytes + case.size_bytes) // region.granule_bytes)
    # io_buffer_account_pin() counts a huge page once for each ring, a small one each time.
    accounted = folios * (times if region.granule_bytes == PAGE_BYTES else 1)
    return {
        "pages": pages * times * processes,
        "range-pages": pages * processes,
        "earlier-pages": pages * (times - 1) * processes,
        # only the first registration finds them in the wrong place, or to be copied
        "moved-pages": pages * (times + 1) * processes,
        "twice-pages": 2 * pages * times * processes,
        "retried-pages": 4 * pages * times * processes,
        "folios": folios * times * processes,
        "bytes": pages * times * PAGE_BYTES,
        "folio-bytes": accounted * region.granule_bytes,
        "processes": processes,
        "attempts": attempts * processes,
        "pages-and-attempts": (pages * times + attempts) * processes,
        "good-pages": _good_pages(region, pages) * processes,
        "zerocopy-bytes": _zerocopy_pages(case) * PAGE_BYTES,
        **_overflow_amounts(case, region),
    }


def _overflow_amounts(case: Case, region: MemorySpec) -> dict[Symbol, int]:
    """Of gup-overflow, which registers whole granules."""
    mapped_bytes = region.mapped_bytes(case.offset_bytes + case.size_bytes)
    times = overflow_times(mapped_bytes // PAGE_BYTES)
    return {
        "overflow-pins": _most_pins(mapped_bytes // PAGE_BYTES),
        "overflow-pages": times * (mapped_bytes // PAGE_BYTES),
        "overflow-folios": times * (mapped_bytes // region.granule_bytes),
        "overflow-bytes": times * mapped_bytes,
    }


def _most_pins(mappings: int) -> int:
    """The pins that a small page gets that is mapped that often.

    Each adds 1024 to a count that begins with the mappings, the page cache's reference, and perhaps
    one of a CPU's LRU batch. The last one makes it negative.
    """
    references = mappings + 1
    return -(-((1 << 31) - references) // GUP_PIN_COUNTING_BIAS)


def _overflow(case: Case, work: WorkloadSpec, region: MemorySpec) -> str:
    """Where in a registration of gup-overflow the page has all the pins that it can have."""
    if not region.one_page or "through" not in work.params:
        return "none"
    mappings = region.mapped_bytes(case.size_bytes) // PAGE_BYTES
    return "inside" if _most_pins(mappings) % mappings else "at-start"


def _zerocopy_pages(case: Case) -> int:
    """Pages that mm_account_pinned_pages() charges: two more than whole ones in each send."""
    sends = -(-case.size_bytes // ZEROCOPY_SEND_BYTES)
    return case.size_bytes // PAGE_BYTES + 2 * sends


def _good_pages(region: MemorySpec, pages: int) -> int:
    """Pages before the first one that has no memory."""
    return {"whole": pages, "hole": pages // 2, "past-eof": pages // 2, "unmapped": 0}[
        region.extent
    ]


@dataclass(frozen=True, slots=True)
class Range:
    """A bound with its symbols replaced."""

    low: int | None
    high: int | None

    def to_json(self) -> int | list[int | None] | None:
        """The number itself when only one is allowed, null when all are."""
        if self.low is None and self.high is None:
            return None
        return self.low if self.low == self.high else [self.low, self.high]

    def __str__(self) -> str:
        if self.low == self.high:
            return "any number" if self.low is None else str(self.low)
        if self.high is None:
            return f"at least {self.low}"
        if self.low is None:
            return f"at most {self.high}"
        return f"{self.low} to {self.high}"

    def join(self, other: "Range") -> "Range":
        """The smallest range that holds both."""
        low = None if self.low is None or other.low is None else min(self.low, other.low)
        high = None if self.high is None or other.high is None else max(self.high, other.high)
        return Range(low, high)


Figure = Literal[
    "acquired", "held", "vmpin_bytes", "vmlck_bytes", "migrate_success", "migrate_fail"
]
FIGURES: Final[tuple[Figure, ...]] = (
    "acquired",
    "held",
    "vmpin_bytes",
    "vmlck_bytes",
    "migrate_success",
    "migrate_fail",
)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the rules say must come of one case. Leaked and orphaned are always 0."""

    rule: str
    outcomes: tuple[str, ...]
    pin_class: PinClass
    bounds: Mapping[Figure, Range]
    source: str
    observed: bool = False
    why: str = ""
    undecided: str | None = None
    prepare_calls: tuple[str, ...] = ()
    kernel_messages: tuple[str, ...] = ()
    required_messages: tuple[str, ...] = ()
    taint: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record's ``expected``, without what a verdict adds."""
        message: dict[str, Any] = {
            "rule": self.rule,
            "outcomes": list(self.outcomes),
            "pin_class": self.pin_class,
            "source": self.source,
        }
        for figure, bound in self.bounds.items():
            message[figure] = bound.to_json()
        message["leaked"] = 0
        for name, value in (("why", self.why), ("undecided", self.undecided)):
            if value:
                message[name] = value
        if self.observed:
            message["observed"] = True
        return message


def specificity(rule: Rule | Conformance) -> int:
    """How many conditions a rule makes: properties plus release bounds."""
    return len(rule.when) + (rule.since is not None) + (rule.until is not None)


def find_rule(known: Mapping[str, Fact], release: Release, rules: Iterable[Rule] = RULES) -> Rule:
    """The rule for these properties on that kernel release. NoRule, AmbiguousRules."""
    fitting = [rule for rule in rules if fits(rule, known, release)]
    if not fitting:
        raise NoRule(f"no rule speaks of {known.get('workload')} on {known.get('memory')}")
    first = min(rule.check for rule in fitting)
    decided = [rule for rule in fitting if rule.check == first]
    most = max(specificity(rule) for rule in decided)
    best = [rule for rule in decided if specificity(rule) == most]
    if len(best) > 1:
        raise AmbiguousRules(" and ".join(rule.name for rule in best))
    return best[0]


def fits(rule: Rule | Conformance, known: Mapping[str, Fact], release: Release) -> bool:
    """Whether it speaks of a case with these properties on that kernel release."""
    if rule.since is not None and release < rule.since:
        return False
    if rule.until is not None and release >= rule.until:
        return False
    for name, wanted in rule.when.items():
        value = known[name]
        if value not in wanted if isinstance(wanted, frozenset) else value != wanted:
            return False
    return True


def expectation(
    case: Case,
    kernel_release: str,
    machine: Machine | None = None,
    *,
    kernel_version: str = "",
    rules: Iterable[Rule] = RULES,
) -> Expectation:
    """What must come of a case on a kernel. NoRule, AmbiguousRules; KeyError: unknown workload."""
    rules = tuple(rules)
    kernel = parse_kernel(kernel_release, kernel_version)
    known = facts(case, machine)
    expected = _evaluate(find_rule(known, kernel.release, rules), case)
    if known["memlock"] == "unknown":
        for limit in ("short", "zero"):
            limited = {**known, "memlock": limit, "memlock_with_ring": limit}
            other = find_rule(limited, kernel.release, rules)
            expected = _join(expected, _evaluate(other, case), UNDECIDED_MEMLOCK)
    if kernel.vendor:
        for release in _changes_after(kernel.release, rules):
            other = find_rule(known, release, rules)
            expected = _join(expected, _evaluate(other, case), UNDECIDED_VENDOR)
    if kernel.release < OLDEST_READ and expected.undecided is None:
        expected = replace(expected, undecided=UNDECIDED_OLD)
    return expected


def _changes_after(release: Release, rules: Iterable[Rule]) -> list[Release]:
    """The later releases at which some rule begins or ends, in order."""
    bounds = {bound for rule in rules for bound in (rule.since, rule.until) if bound is not None}
    return sorted(bound for bound in bounds if bound > release)


def _evaluate(rule: Rule, case: Case) -> Expectation:
    values = amounts(case, memory_spec(case.memory))
    bounds: dict[Figure, Bound] = {
        "acquired": rule.acquired,
        "held": rule.held,
        "vmpin_bytes": rule.vmpin_bytes,
        "vmlck_bytes": rule.vmlck_bytes,
        "migrate_success": rule.migrate_success,
        "migrate_fail": rule.migrate_fail,
    }

    def value(amount: int | Symbol | None) -> int | None:
        return values[amount] if isinstance(amount, str) else amount

    return Expectation(
        rule=rule.name,
        outcomes=rule.outcomes,
        pin_class=rule.pin_class,
        bounds={name: Range(value(b.low), value(b.high)) for name, b in bounds.items()},
        source=rule.source,
        observed=rule.observed,
        why=rule.why,
        prepare_calls=rule.prepare_calls,
        kernel_messages=rule.kernel_messages + rule.required_messages,
        required_messages=rule.required_messages,
        taint=rule.taint,
    )


def _join(one: Expectation, other: Expectation, undecided: str) -> Expectation:
    """Either of the two; ``one`` itself when they are the same rule."""
    if other.rule in one.rule.split(" or "):
        return one
    return Expectation(
        rule=f"{one.rule} or {other.rule}",
        outcomes=tuple(dict.fromkeys(one.outcomes + other.outcomes)),
        pin_class=one.pin_class,
        bounds={name: one.bounds[name].join(other.bounds[name]) for name in FIGURES},
        source=f"{one.source}; {other.source}",
        observed=one.observed or other.observed,
        why=one.why or other.why or _WHY[undecided],
        undecided=undecided,
        prepare_calls=one.prepare_calls + other.prepare_calls,
        kernel_messages=one.kernel_messages + other.kernel_messages,
        required_messages=tuple(m for m in one.required_messages if m in other.required_messages),
        taint=one.taint + other.taint,
    )
