"""AF_XDP packet memory: FOLL_PIN | FOLL_LONGTERM of the whole umem in one slow GUP call."""

from typing import Final

from pinstorm.rules.rule import (
    GOOD_PAGES,
    MOVED,
    NOT_MIGRATED,
    PAGES,
    UP_TO_PAGES,
    ZERO,
    Bound,
    Call,
    Check,
    Conformance,
    Rule,
)
from pinstorm.rules.sources import MIGRATE, NO_MEMORY, WRITE_FILE

_UNALIGNED: Final = frozenset({"sector", "byte"})
_PARTLY: Final = frozenset({"hole", "past-eof"})
_CALL_SITE = (
    "net/xdp/xdp_umem.c, xdp_umem_pin_pages(): one pin_user_pages() with FOLL_WRITE | "
    "FOLL_LONGTERM, never GUP-fast; the same in v6.1, v6.12 and v7.2"
)
_ARGUMENTS = "net/xdp/xdp_umem.c, xdp_umem_reg(), before any page is looked at"
_ACCOUNT = (
    "net/xdp/xdp_umem.c, xdp_umem_account_pages(): user->locked_vm over RLIMIT_MEMLOCK is ENOBUFS, "
    "before pinning; nothing is accounted to the process"
)
_SHORT = (
    "net/xdp/xdp_umem.c, xdp_umem_pin_pages(): fewer pages than asked are given back, with ENOMEM; "
    "the errno of GUP only where it took none"
)
_SECRET = "mm/gup.c, check_vma_flags(): memfd_secret is EFAULT, before the slow path takes a page"

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="af-xdp",
        when={"workload": "af-xdp-umem", "movable": False},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        migrate_success=ZERO,
        source=f"{_CALL_SITE}; {_ACCOUNT}",
    ),
    Rule(
        name="af-xdp-movable",
        when={"workload": "af-xdp-umem", "pin_class": "pin-longterm", "movable": True},
        outcomes=("ok",),
        pin_class="pin-longterm",
        # a page that cannot be isolated at once makes another turn
        acquired=MOVED,
        held=PAGES,
        migrate_success=PAGES,
        source=f"{MIGRATE}; {_ACCOUNT}",
    ),
    Rule(
        name="af-xdp-movable-held",
        when={
            "workload": "af-xdp-umem",
            "pin_class": "pin-longterm",
            "movable": True,
            "foreign_reference": True,
        },
        check=Check.PAGES,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=PAGES,
        migrate_success=Bound(0, "twice-pages"),
        migrate_fail=NOT_MIGRATED,
        source=f"{MIGRATE}; a page that cannot be migrated gives ENOMEM; {_CALL_SITE}",
    ),
    Rule(
        name="af-xdp-write-file",
        when={
            "workload": "af-xdp-umem",
            "pin_class": "pin-longterm",
            "dirty_tracked": True,
            "writes": True,
        },
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{WRITE_FILE}; {_CALL_SITE}",
    ),
    Rule(
        name="af-xdp-partly-mapped",
        when={
            "workload": "af-xdp-umem",
            "pin_class": "pin-longterm",
            "extent": _PARTLY,
            "starts_bad": False,
        },
        check=Check.MAPPING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=GOOD_PAGES,
        source=_SHORT,
    ),
    Rule(
        name="af-xdp-partly-mapped-charged",
        when={
            "workload": "af-xdp-umem",
            "pin_class": "pin-longterm",
            "extent": _PARTLY,
            "starts_bad": False,
            "cap_ipc_lock": False,
        },
        check=Check.MAPPING,
        outcomes=("ENOMEM", "ENOBUFS"),
        pin_class="pin-longterm",
        acquired=Bound(0, "good-pages"),
        source=f"{_SHORT}; {_ACCOUNT}",
        why="xdp_umem_unaccount_pages() takes back only the pages that were pinned, of all that "
        "were charged: every failure leaves the user less of the limit, until it is used up",
    ),
    Rule(
        name="af-xdp-nothing-there",
        when={"workload": "af-xdp-umem", "pin_class": "pin-longterm", "starts_bad": True},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{NO_MEMORY}; {_SHORT}",
    ),
    Rule(
        name="af-xdp-secret",
        when={"workload": "af-xdp-umem", "pin_class": "pin-longterm", "backing": "secretmem"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=_SECRET,
    ),
    Rule(
        name="af-xdp-offset",
        when={"workload": "af-xdp-umem", "offset": _UNALIGNED},
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{_ARGUMENTS}: the address must be a page's",
    ),
    Rule(
        name="af-xdp-size",
        when={"workload": "af-xdp-umem", "offset": "page", "alignment": _UNALIGNED},
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{_ARGUMENTS}: the size must be whole chunks, which are pages here",
    ),
    Rule(
        name="af-xdp-memlock",
        when={
            "workload": "af-xdp-umem",
            "offset": "page",
            "alignment": "page",
            "memlock": frozenset({"short", "zero"}),
        },
        check=Check.ARGUMENTS,
        outcomes=("ENOBUFS",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=_ACCOUNT,
    ),
    Rule(
        name="af-xdp-memlock-shared",
        when={
            "workload": "af-xdp-umem",
            "offset": "page",
            "alignment": "page",
            "memlock": "crowded",
        },
        check=Check.ARGUMENTS,
        outcomes=("ENOBUFS",),
        pin_class="pin-longterm",
        acquired=UP_TO_PAGES,  # of the processes that come first
        source=_ACCOUNT,
    ),
)

_PIN = Call("pin_user_pages", frozenset({"FOLL_WRITE", "FOLL_LONGTERM"}))

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="af-xdp",
        when={"workload": "af-xdp-umem"},
        calls=(_PIN,),
        proof=(_PIN,),
        source=_CALL_SITE,
    ),
)
