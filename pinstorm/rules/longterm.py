"""Long-term pins, CASE 2 of pin_user_pages.rst: what holds for every call site, and RDMA's own."""

from typing import Final

from pinstorm.rules.rule import (
    ATTEMPTS,
    BYTES,
    EARLIER_PAGES,
    GOOD_PAGES,
    MIGRATED,
    MOVED,
    NOT_MIGRATED,
    PAGES,
    PAGES_AND_ATTEMPTS,
    UNMOVABLE,
    ZERO,
    Bound,
    Call,
    Check,
    Conformance,
    Rule,
)
from pinstorm.rules.sources import (
    DEVDAX,
    DOCUMENT,
    FSDAX,
    MIGRATE,
    NO_MEMORY,
    PROTECTION,
    SECRET,
    UNSHARE,
    WRITE_FILE,
)

_FORCE = (
    'Linux commit b40656aa7d55 ("RDMA/umem: remove FOLL_FORCE usage"), v6.2: until then a '
    "read-only region was pinned with FOLL_WRITE | FOLL_FORCE, which private memory always grants"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="longterm",
        when={"pin_class": "pin-longterm"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=f"{DOCUMENT}, CASE 2: RDMA; ib_umem_get() adds the pages to mm->pinned_vm",
    ),
    Rule(
        name="longterm-read-file",
        when={"pin_class": "pin-longterm", "backing": "file", "writes": False},
        since=(6, 2),
        outcomes=("ok",),
        pin_class="pin-longterm",
        # A private mapping is copied, and write-back makes a shared one read-only again: GUP-fast
        # then takes a pin for nothing, unless the page cache lies in CMA, where it takes none.
        acquired=Bound("pages", "pages-and-attempts"),
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=UNSHARE,
    ),
    Rule(
        name="longterm-read-copied",
        when={
            "pin_class": "pin-longterm",
            "backing": "anon",
            "present": "copy-on-write",
            "writes": False,
        },
        since=(6, 2),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES_AND_ATTEMPTS,
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=UNSHARE,
    ),
    Rule(
        name="rdma-devdax",
        when={"workload": "rdma-register", "backing": "devdax", "writes": True},
        since=(6, 17),
        outcomes=("ok",),
        pin_class="pin-longterm",
        # the huge page of one call of GUP-fast is taken, found to be no shmem, and given back
        acquired=Bound("pages", "twice-pages"),
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=DEVDAX,
    ),
    Rule(
        name="longterm-movable",
        when={"pin_class": "pin-longterm", "movable": True},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=MOVED,
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=MIGRATED,
        source=MIGRATE,
    ),
    Rule(
        name="longterm-movable-held",
        when={"pin_class": "pin-longterm", "movable": True, "foreign_reference": True},
        check=Check.PAGES,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=UNMOVABLE,
        migrate_success=Bound(0, "twice-pages"),
        migrate_fail=NOT_MIGRATED,
        source=MIGRATE + "; a page that cannot be migrated gives ENOMEM",
    ),
    Rule(
        name="longterm-fsdax",
        when={"pin_class": "pin-longterm", "backing": "fsdax"},
        check=Check.MAPPING,
        outcomes=("EOPNOTSUPP",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=FSDAX,
    ),
    Rule(
        name="longterm-write-file",
        when={"pin_class": "pin-longterm", "dirty_tracked": True, "writes": True},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ATTEMPTS,
        source=WRITE_FILE,
    ),
    Rule(
        name="longterm-unmapped",
        when={"pin_class": "pin-longterm", "extent": "unmapped"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=NO_MEMORY,
    ),
    Rule(
        name="longterm-partly-mapped",
        when={"pin_class": "pin-longterm", "extent": frozenset({"hole", "past-eof"})},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=GOOD_PAGES,
        source=NO_MEMORY,
    ),
    Rule(
        name="longterm-prot-none",
        when={"pin_class": "pin-longterm", "prot": "none"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="longterm-prot-read",
        when={"pin_class": "pin-longterm", "prot": "r", "writes": True},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="longterm-io-mapping",
        when={
            "pin_class": "pin-longterm",
            "backing": "io",
            "shared": False,
            "prot": "r",
            "extent": "whole",
        },
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source="mm/gup.c, check_vma_flags(): EFAULT of VM_IO and VM_PFNMAP, before the protection "
        "is looked at; GUP-fast takes no page whose entry is special; the same in v6.1, v6.12 and "
        "v7.2",
    ),
    Rule(
        name="longterm-secret",
        when={"pin_class": "pin-longterm", "backing": "secretmem"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ATTEMPTS,
        source=SECRET,
    ),
    Rule(
        name="rdma-read-only-forced",
        when={
            "workload": "rdma-register",
            "writes": False,
            "prot": frozenset({"none", "r"}),
        },
        until=(6, 2),
        check=Check.MAPPING,
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=_FORCE,
    ),
    Rule(
        name="rdma-fsdax-copied",
        when={
            "workload": "rdma-register",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
        },
        check=Check.MAPPING,
        outcomes=("ok", "EOPNOTSUPP"),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=FSDAX,
        why="GUP-fast never looks at the VMA: it takes the copies, unless one of them lies in CMA "
        "or is not present, and then the slow path refuses",
    ),
    Rule(
        name="rdma-memlock",
        when={"workload": "rdma-register", "memlock": "short"},
        check=Check.ARGUMENTS,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=EARLIER_PAGES,
        source="drivers/infiniband/core/umem.c, ib_umem_get(): mm->pinned_vm over RLIMIT_MEMLOCK",
    ),
    Rule(
        name="rdma-memlock-zero",
        when={"workload": "rdma-register", "memlock": "zero"},
        check=Check.ARGUMENTS,
        outcomes=("EPERM",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source="drivers/infiniband/core/umem.c, ib_umem_get(): can_do_mlock()",
    ),
)

_LONGTERM: Final = frozenset({"FOLL_LONGTERM"})
_WRITE: Final = frozenset({"FOLL_WRITE"})
_RDMA_WRITES: Final = Call("pin_user_pages_fast", _LONGTERM | _WRITE)
_RDMA_FORCED: Final = Call("pin_user_pages_fast", _LONGTERM | _WRITE | {"FOLL_FORCE"})
_RDMA_READS: Final = Call("pin_user_pages_fast", _LONGTERM)
_UMEM: Final = "drivers/infiniband/core/umem.c, ib_umem_get()"

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="rdma-writable",
        when={"workload": "rdma-register", "writes": True},
        calls=(_RDMA_WRITES,),
        proof=(_RDMA_WRITES,),
        source=f"{_UMEM}: FOLL_LONGTERM, and FOLL_WRITE for a writable region",
    ),
    Conformance(
        name="rdma-read-only-forced",
        when={"workload": "rdma-register", "writes": False},
        until=(6, 2),
        calls=(_RDMA_FORCED,),
        proof=(_RDMA_FORCED,),
        source=f"{_UMEM} of v6.1: a region that is not writable is pinned with FOLL_FORCE, too",
    ),
    Conformance(
        name="rdma-read-only",
        when={"workload": "rdma-register", "writes": False},
        since=(6, 2),
        calls=(_RDMA_READS,),
        proof=(_RDMA_READS,),
        source='Linux commit b40656aa7d55 ("RDMA/umem: remove FOLL_FORCE usage"), v6.2',
    ),
)
