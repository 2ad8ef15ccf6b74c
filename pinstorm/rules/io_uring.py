"""io_uring registered buffers: what is kept and what is accounted changed several times."""

from typing import Final

from pinstorm.rules.rule import (
    FOLIO_BYTES,
    FOLIOS,
    MIGRATED,
    MOVED,
    PAGES,
    PROCESSES,
    REFUSED_PAGES,
    TWICE_PAGES,
    ZERO,
    Bound,
    Call,
    Check,
    Conformance,
    Rule,
)
from pinstorm.rules.sources import DEVDAX, FSDAX, MIGRATE, SECRET
from pinstorm.rules.sources import WRITE_FILE as DIRTY_FILE

_FILE_CHECK = (
    'Linux commit 34ed8d0dcd69 ("io_uring: rsrc: delegate VMA file-backed check to GUP"), v6.5, '
    "which removed the check: io_pin_pages() pins, then looks at the file"
)
_ACCOUNT = (
    'Linux commit df0a52537c0f ("io_uring/rsrc: add huge page accounting for registered buffers"), '
    "v7.2: a ring made with CAP_IPC_LOCK accounts nothing"
)
_FAST = (
    'Linux commit 1943f96b3816 ("io_uring: unify io_pin_pages()"), v6.10: pin_user_pages_fast() '
    "for the whole buffer at once"
)
_RING_ACCOUNT = (
    'Linux commit 81a4058e0cd0 ("io_uring: use region api for CQ"), v6.14: from then on, up to '
    "7.1, the ring's own memory is accounted as well"
)
_ONE_FOLIO = (
    'Linux commit 57bebf807e2a ("io_uring/rsrc: optimise registered huge pages"), v6.3: '
    "one pin is kept when the buffer lies in one folio"
)
_FOLIOS = (
    'Linux commit a8edbb424b13 ("io_uring/rsrc: enable multi-hugepage buffer coalescing"), v6.12: '
    "one pin is kept per folio"
)
_AFTER_PINNING = (
    "io_uring/rsrc.c, io_sqe_buffer_register(): io_buffer_account_pin() after io_pin_pages()"
)
_COPIED: Final = (
    "GUP-fast never looks at the VMA: it takes the copies, unless one of them lies in CMA or is "
    "not present, and then the slow path refuses"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="io-uring",
        when={"workload": "io-uring-register", "movable": False},
        until=(6, 3),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=FOLIO_BYTES,
        migrate_success=ZERO,
        source="io_uring/rsrc.c of v6.1, io_pin_pages() and io_buffer_account_pin()",
    ),
    Rule(
        name="io-uring-one-folio",
        when={"workload": "io-uring-register", "movable": False, "one_folio": True},
        since=(6, 3),
        until=(6, 12),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=FOLIOS,
        vmpin_bytes=FOLIO_BYTES,
        migrate_success=ZERO,
        source=_ONE_FOLIO,
    ),
    Rule(
        name="io-uring-several-folios",
        when={"workload": "io-uring-register", "movable": False, "one_folio": False},
        since=(6, 3),
        until=(6, 12),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=FOLIO_BYTES,
        migrate_success=ZERO,
        source=_ONE_FOLIO,
    ),
    Rule(
        name="io-uring-folios",
        when={"workload": "io-uring-register", "movable": False},
        since=(6, 12),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=FOLIOS,
        vmpin_bytes=FOLIO_BYTES,
        migrate_success=ZERO,
        source=_FOLIOS,
    ),
    Rule(
        name="io-uring-unaccounted",
        when={"workload": "io-uring-register", "movable": False, "cap_ipc_lock": True},
        since=(7, 2),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=FOLIOS,
        vmpin_bytes=ZERO,
        migrate_success=ZERO,
        source=f"{_FOLIOS}; {_ACCOUNT}",
    ),
    Rule(
        name="io-uring-movable-unaccounted",
        when={"workload": "io-uring-register", "movable": True, "cap_ipc_lock": True},
        since=(7, 2),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=MOVED,
        held=PAGES,
        vmpin_bytes=ZERO,
        migrate_success=MIGRATED,
        source=f"{MIGRATE}; {_ACCOUNT}",
    ),
    Rule(
        name="io-uring-devdax",
        when={"workload": "io-uring-register", "movable": False, "backing": "devdax"},
        since=(6, 17),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=TWICE_PAGES,
        held=FOLIOS,
        vmpin_bytes=FOLIO_BYTES,
        migrate_success=ZERO,
        source=f"{_FOLIOS}; {DEVDAX}",
    ),
    Rule(
        name="io-uring-devdax-unaccounted",
        when={
            "workload": "io-uring-register",
            "movable": False,
            "backing": "devdax",
            "cap_ipc_lock": True,
        },
        since=(7, 2),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=TWICE_PAGES,
        held=FOLIOS,
        vmpin_bytes=ZERO,
        migrate_success=ZERO,
        source=f"{_FOLIOS}; {DEVDAX}; {_ACCOUNT}",
    ),
    Rule(
        name="io-uring-file",
        when={"workload": "io-uring-register", "backing": frozenset({"file", "devdax"})},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EOPNOTSUPP",),
        pin_class="pin-longterm",
        acquired=PAGES,
        source=_FILE_CHECK,
    ),
    Rule(
        name="io-uring-dirty-file",
        when={
            "workload": "io-uring-register",
            "pin_class": "pin-longterm",
            "dirty_tracked": True,
            "writes": True,
        },
        since=(6, 10),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        # none when write-back has just made the first page read-only
        acquired=Bound(0, "processes"),
        source=f"{DIRTY_FILE}; {_FAST}",
    ),
    Rule(
        name="io-uring-secret",
        when={"workload": "io-uring-register", "backing": "secretmem"},
        until=(6, 10),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{SECRET}; {_FAST}",
    ),
    Rule(
        name="io-uring-secret-fast",
        when={"workload": "io-uring-register", "backing": "secretmem"},
        since=(6, 10),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=PROCESSES,
        source=f"{SECRET}; {_FAST}",
    ),
    Rule(
        name="io-uring-fsdax-copied",
        when={
            "workload": "io-uring-register",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
        },
        since=(6, 10),
        check=Check.MAPPING,
        outcomes=("ok", "EOPNOTSUPP"),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=FOLIO_BYTES,
        source=f"{FSDAX}; {_FAST}",
        why=_COPIED,
    ),
    Rule(
        name="io-uring-fsdax-copied-unaccounted",
        when={
            "workload": "io-uring-register",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
            "cap_ipc_lock": True,
        },
        since=(7, 2),
        check=Check.MAPPING,
        outcomes=("ok", "EOPNOTSUPP"),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=ZERO,
        source=f"{FSDAX}; {_FAST}; {_ACCOUNT}",
        why=_COPIED,
    ),
    Rule(
        name="io-uring-memlock",
        when={"workload": "io-uring-register", "memlock": frozenset({"short", "zero", "crowded"})},
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=REFUSED_PAGES,
        source=_AFTER_PINNING,
    ),
    Rule(
        name="io-uring-memlock-movable",
        when={
            "workload": "io-uring-register",
            "memlock": frozenset({"short", "zero", "crowded"}),
            "movable": True,
        },
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=MOVED,
        migrate_success=MIGRATED,
        source=f"{_AFTER_PINNING}; {MIGRATE}",
    ),
    Rule(
        name="io-uring-memlock-ring",
        when={
            "workload": "io-uring-register",
            "memlock_with_ring": frozenset({"short", "crowded"}),
        },
        since=(6, 14),
        until=(7, 2),
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=REFUSED_PAGES,
        source=f"{_RING_ACCOUNT}; {_AFTER_PINNING}",
    ),
    Rule(
        name="io-uring-memlock-ring-movable",
        when={
            "workload": "io-uring-register",
            "memlock_with_ring": frozenset({"short", "crowded"}),
            "movable": True,
        },
        since=(6, 14),
        until=(7, 2),
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=Bound("moved-pages", None),
        migrate_success=Bound("range-pages", None),
        source=f"{_RING_ACCOUNT}; {_AFTER_PINNING}; {MIGRATE}",
    ),
    Rule(
        name="io-uring-memlock-no-ring",
        when={"workload": "io-uring-register", "memlock_with_ring": "zero"},
        since=(6, 14),
        until=(7, 2),
        check=Check.ARGUMENTS,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=ZERO,
        prepare_calls=("io_uring_setup",),
        source=_RING_ACCOUNT,
    ),
)

_SLOW_CALL: Final = Call("pin_user_pages", frozenset({"FOLL_WRITE", "FOLL_LONGTERM"}))
_FAST_CALL: Final = Call("pin_user_pages_fast", frozenset({"FOLL_WRITE", "FOLL_LONGTERM"}))

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="io-uring-register",
        when={"workload": "io-uring-register"},
        until=(6, 10),
        calls=(_SLOW_CALL,),
        proof=(_SLOW_CALL,),
        source="io_uring/rsrc.c of v6.1, io_pin_pages()",
    ),
    Conformance(
        name="io-uring-register-fast",
        when={"workload": "io-uring-register"},
        since=(6, 10),
        calls=(_FAST_CALL,),
        proof=(_FAST_CALL,),
        source=_FAST,
    ),
)
