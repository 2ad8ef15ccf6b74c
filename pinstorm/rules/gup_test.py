"""The kernel's own GUP test: what each of its modes asks for, always for writing, page by page.

The ioctl itself succeeds: what GUP refuses comes back as fewer bytes, so that every refusal is a
``short``. Everything is given back before it returns: nothing is ever held or accounted.
"""

from typing import Final

from pinstorm.rules.rule import (
    GOOD_PAGES,
    NOT_MIGRATED,
    PAGES,
    ZERO,
    Bound,
    Call,
    Check,
    Conformance,
    Rule,
)
from pinstorm.rules.sources import FSDAX, MIGRATE, NO_MEMORY, PROTECTION, SECRET, WRITE_FILE
from workloads.spec import PinClass

_GET: Final = frozenset({"GUP_FAST", "GUP_BASIC"})
_PIN: Final = frozenset({"PIN_FAST", "PIN_BASIC"})
_LONGTERM: Final = "PIN_LONGTERM"
_BARRED: Final = frozenset({"r", "none"})
_WITHOUT_MEMORY: Final = frozenset({"hole", "past-eof", "unmapped"})

_IOCTL = "mm/gup_test.c, __gup_test_ioctl()"
_SHORT = f"{_IOCTL}: the first call that gives no page ends it, with 0 and the size reached"
_ONE = Bound(1, 1)
_TWICE = Bound("twice-pages", "twice-pages")


def _refusals(
    name: str, mode: str | frozenset[str], pin_class: PinClass, good: Bound, attempt: Bound
) -> tuple[Rule, ...]:
    """What check_vma_flags() and the fault handler refuse whatever is asked for.

    ``good``: pins on the pages before the first bad one; ``attempt``: what GUP-fast takes of a page
    that the slow path refuses.
    """
    return (
        Rule(
            name=f"gup-test-no-memory-{name}",
            when={"workload": "gup-test", "mode": mode, "extent": _WITHOUT_MEMORY},
            check=Check.MAPPING,
            outcomes=("short",),
            pin_class=pin_class,
            acquired=good,
            source=f"{_SHORT}; {NO_MEMORY}",
        ),
        Rule(
            name=f"gup-test-protection-{name}",
            when={"workload": "gup-test", "mode": mode, "writes": True, "prot": _BARRED},
            check=Check.MAPPING,
            outcomes=("short",),
            pin_class=pin_class,
            acquired=ZERO,
            source=f"{_SHORT}; {PROTECTION}",
        ),
        Rule(
            name=f"gup-test-secretmem-{name}",
            when={"workload": "gup-test", "mode": mode, "backing": "secretmem"},
            check=Check.MAPPING,
            outcomes=("short",),
            pin_class=pin_class,
            acquired=attempt,
            source=f"{_SHORT}; {SECRET}",
        ),
    )


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="gup-test-get",
        when={"workload": "gup-test", "mode": _GET},
        outcomes=("ok",),
        pin_class="get",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_IOCTL}: get_user_pages(), get_user_pages_fast(), which are FOLL_GET",
    ),
    Rule(
        name="gup-test-pin",
        when={"workload": "gup-test", "mode": _PIN},
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES,
        migrate_success=ZERO,
        source=f"{_IOCTL}: pin_user_pages(), pin_user_pages_fast(), then unpin_user_pages()",
    ),
    Rule(
        name="gup-test-longterm",
        when={"workload": "gup-test", "mode": _LONGTERM},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        migrate_success=ZERO,
        source=f"{_IOCTL}: pin_user_pages() with FOLL_LONGTERM, then unpin_user_pages()",
    ),
    Rule(
        name="gup-test-movable",
        when={"workload": "gup-test", "mode": _LONGTERM, "movable": True},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=_TWICE,
        migrate_success=PAGES,
        source=f"{MIGRATE}; {_IOCTL} asks for one page at a time",
    ),
    Rule(
        name="gup-test-movable-held",
        when={
            "workload": "gup-test",
            "mode": _LONGTERM,
            "movable": True,
            "foreign_reference": True,
        },
        check=Check.PAGES,
        outcomes=("short",),
        pin_class="pin-longterm",
        # the pages before the one that somebody else holds are migrated and pinned
        acquired=Bound(1, "twice-pages"),
        migrate_success=Bound(0, "twice-pages"),
        migrate_fail=NOT_MIGRATED,
        source=f"{_SHORT}; {MIGRATE}; a page that cannot be migrated gives ENOMEM",
    ),
    Rule(
        name="gup-test-fsdax",
        when={"workload": "gup-test", "mode": _LONGTERM, "backing": "fsdax"},
        check=Check.MAPPING,
        outcomes=("short",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{_SHORT}; {FSDAX}; pin_user_pages() never tries GUP-fast",
    ),
    Rule(
        name="gup-test-write-file",
        when={
            "workload": "gup-test",
            "mode": _LONGTERM,
            "writes": True,
            "dirty_tracked": True,
        },
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("short",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{_SHORT}; {WRITE_FILE}; pin_user_pages() never tries GUP-fast",
    ),
    *_refusals("get", _GET, "get", good=ZERO, attempt=ZERO),
    *_refusals("fast", "PIN_FAST", "pin", good=GOOD_PAGES, attempt=_ONE),
    *_refusals("basic", "PIN_BASIC", "pin", good=GOOD_PAGES, attempt=ZERO),
    *_refusals("longterm", _LONGTERM, "pin-longterm", good=GOOD_PAGES, attempt=ZERO),
)


def _conformance(mode: str, function: str, *flags: str) -> Conformance:
    call = Call(function, frozenset({"FOLL_WRITE", *flags}))
    return Conformance(
        name=f"gup-test-{mode.lower().replace('_', '-')}",
        when={"workload": "gup-test", "mode": mode},
        calls=(call,),
        proof=(call,),
        source=_IOCTL,
    )


CONFORMANCE: Final[tuple[Conformance, ...]] = (
    _conformance("GUP_FAST", "get_user_pages_fast"),
    _conformance("GUP_BASIC", "get_user_pages"),
    _conformance("PIN_FAST", "pin_user_pages_fast"),
    _conformance("PIN_BASIC", "pin_user_pages"),
    _conformance("PIN_LONGTERM", "pin_user_pages", "FOLL_LONGTERM"),
)
