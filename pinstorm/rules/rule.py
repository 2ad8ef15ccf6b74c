"""What a rule is. The rules themselves stand beside this, a module for each family: data, no code
(direct_io.py derives the misaligned cases from the others).

A rule says which cases it speaks of (properties of workload, memory and machine, see
pinstorm.oracle.facts; never a list of cells), on which kernels, what must come out, and where that
is written. ``since`` is the first mainline release with the behaviour, ``until`` the first one
without it. The figures are pages unless a name says bytes. Rules are judged against mainline,
stable and Debian kernels from 6.1 on; pinstorm.oracle says how a vendor kernel is treated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from workloads.spec import PinClass

Fact = bool | str
Release = tuple[int, int] | tuple[int, int, int]

# What a bound may say of a case; pinstorm.oracle.amounts gives each its value.
Symbol = Literal[
    "pages",
    "range-pages",
    "earlier-pages",
    "moved-pages",
    "twice-pages",
    "retried-pages",
    "good-pages",
    "processes",
    "attempts",
    "pages-and-attempts",
    "folios",
    "bytes",
    "folio-bytes",
    "zerocopy-bytes",
    "overflow-pins",
    "overflow-pages",
    "overflow-folios",
    "overflow-bytes",
]
Amount = int | Symbol


class Check(IntEnum):
    """The step of the kernel at which a rule's outcome is decided, earliest first.

    The kernel stops at the first check that refuses, so of the rules that speak of a case, those
    of the earliest check win, whatever else is true of the pages.
    """

    ARGUMENTS = 0  # lengths, alignment, limits and capabilities, before any page is looked at
    MAPPING = 1  # what the VMA is: check_vma_flags(), the file behind it
    PAGES = 2  # where the pages lie: migration out of CMA and ZONE_MOVABLE
    ACCOUNTING = 3  # limits that are looked at after pinning
    DONE = 4  # nothing refuses


@dataclass(frozen=True, slots=True)
class Bound:
    """From ``low`` to ``high``, both included; None leaves that side open."""

    low: Amount | None
    high: Amount | None


ANY: Final = Bound(None, None)
ZERO: Final = Bound(0, 0)
# Of a range that is registered several times (``times``), each time.
PAGES: Final = Bound("pages", "pages")
TWICE_PAGES: Final = Bound("twice-pages", "twice-pages")
# Those of the registrations before one that is refused.
EARLIER_PAGES: Final = Bound(0, "earlier-pages")
# Of the registrations up to one that is refused after it has pinned.
REFUSED_PAGES: Final = Bound("range-pages", "pages")
# One page for each process of the case.
PROCESSES: Final = Bound("processes", "processes")
UP_TO_PAGES: Final = Bound(0, "pages")
# What lies before the first page that has no memory.
GOOD_PAGES: Final = Bound("good-pages", "good-pages")
# A batch in a wrong place is pinned, given back, moved and pinned again, and once more for pages
# that could not be isolated at first.
MOVED: Final = Bound("moved-pages", "retried-pages")
MIGRATED: Final = Bound("range-pages", "twice-pages")
UNMOVABLE: Final = Bound(1, "retried-pages")
NOT_MIGRATED: Final = Bound(1, "twice-pages")
# One page for each call of GUP-fast, which takes a pin, finds the page wanting and gives it back.
ATTEMPTS: Final = Bound(0, "attempts")
PAGES_AND_ATTEMPTS: Final = Bound("pages-and-attempts", "pages-and-attempts")
FOLIOS: Final = Bound("folios", "folios")
BYTES: Final = Bound("bytes", "bytes")
FOLIO_BYTES: Final = Bound("folio-bytes", "folio-bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One statement about kernels.

    ``when``: property -> the value, or the set of values, that it must have. ``pin_class``: what
    the kernel's call site asks for on these kernels. ``acquired``: pins taken in the window of
    acquire, given back in it or not; ``held``: those that last until release; ``vmpin_bytes``,
    ``vmlck_bytes``: how far VmPin and VmLck of the process grew. ``prepare_calls``: system calls
    that may refuse in prepare already. ``kernel_messages``, ``taint``: regular expressions of the
    kernel's reports, and taint letters, that belong to it; ``required_messages``: those of them
    that must be seen, each. ``why`` explains an outcome that is a set. ``observed``: measured,
    without a document or commit that says it.
    """

    name: str
    when: Mapping[str, Fact | frozenset[Fact]]
    outcomes: tuple[str, ...]
    pin_class: PinClass
    acquired: Bound
    source: str
    held: Bound = ZERO
    vmpin_bytes: Bound = ZERO
    vmlck_bytes: Bound = ZERO
    migrate_success: Bound = ZERO
    migrate_fail: Bound = ANY
    check: Check = Check.DONE
    since: Release | None = None
    until: Release | None = None
    prepare_calls: tuple[str, ...] = ()
    kernel_messages: tuple[str, ...] = ()
    required_messages: tuple[str, ...] = ()
    taint: str = ""
    observed: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the kernel that takes references, with the FOLL_ flags it is given.

    ``flags`` must all be there; of others only those in ``optional`` may.
    """

    function: str
    flags: frozenset[str]
    optional: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance:
    """Which entry points of GUP a workload's call site may use on these kernels, and how.

    ``calls``: every call seen in the observed cycle must be one of them. ``proof``: one of these
    must be seen when the outcome is ok; empty where nothing need be called. The functions behind
    the entry points follow from the rule's pin class. Which applies: as for rules, the most
    specific one.
    """

    name: str
    when: Mapping[str, Fact | frozenset[Fact]]
    calls: tuple[Call, ...]
    source: str
    proof: tuple[Call, ...] = ()
    since: Release | None = None
    until: Release | None = None
