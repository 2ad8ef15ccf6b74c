"""The kernel rules that verdicts rest on: data, no code.

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
Symbol = Literal["pages", "twice-pages", "folios", "bytes", "folio-bytes"]
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
SOME: Final = Bound(1, None)
PAGES: Final = Bound("pages", "pages")
FOLIOS: Final = Bound("folios", "folios")
BYTES: Final = Bound("bytes", "bytes")
FOLIO_BYTES: Final = Bound("folio-bytes", "folio-bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One statement about kernels.

    ``when``: property -> the value, or the set of values, that it must have. ``pin_class``: what
    the kernel's call site asks for on these kernels. ``acquired``: pins taken in the window of
    acquire, given back in it or not; ``held``: those that last until release; ``vmpin_bytes``: how
    far VmPin of the process grew. ``prepare_calls``: system calls that may refuse in prepare
    already. ``kernel_messages``, ``taint``: regular expressions of the kernel's reports, and taint
    letters, that belong to it. ``why`` explains an outcome that is a set. ``observed``: measured,
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
    migrate_success: Bound = ANY
    migrate_fail: Bound = ANY
    check: Check = Check.DONE
    since: Release | None = None
    until: Release | None = None
    prepare_calls: tuple[str, ...] = ()
    kernel_messages: tuple[str, ...] = ()
    taint: str = ""
    observed: bool = False
    why: str = ""


_DOCUMENT = "Documentation/core-api/pin_user_pages.rst"
_FSDAX = (
    'Linux commit 52650c8b466b ("mm/gup: remove the vma allocation from gup_longterm_locked()"), '
    "v5.11: check_vma_flags() refuses FOLL_LONGTERM on an fsdax VMA; GUP-fast takes no pin there"
)
_MIGRATE = (
    'Linux commit d1e153fea2a8 ("mm/gup: migrate pinned pages out of movable zone"), v5.13: '
    "a batch is pinned, unpinned, migrated and pinned again"
)
_WRITE_FILE = (
    'Linux commit 8ac268436e6d ("mm/gup: disallow FOLL_LONGTERM GUP-nonfast writing to file-backed '
    'mappings"), v6.5; a6e79df92e4a ("mm/gup: disallow FOLL_LONGTERM GUP-fast writing to '
    'file-backed mappings"), v6.5: GUP-fast takes a pin, finds the file, and gives it back'
)
_FILE_CHECK = (
    'Linux commit 34ed8d0dcd69 ("io_uring: rsrc: delegate VMA file-backed check to GUP"), v6.5, '
    "which removed the check: io_pin_pages() pins, then looks at the file"
)
_ACCOUNT = (
    'Linux commit df0a52537c0f ("io_uring/rsrc: add huge page accounting for registered buffers"), '
    "v7.2: a ring made with CAP_IPC_LOCK accounts nothing"
)
_UNSHARE = (
    'Linux commit 84209e87c696 ("mm/gup: reliable R/O long-term pinning in COW mappings"), v6.2: '
    "GUP-fast takes a pin, finds the page to be unshared or not writable, and gives it back"
)
_RXE_ODP = (
    'Linux commit d03fb5c6599e ("RDMA/rxe: Allow registering MRs for On-Demand Paging"), v6.15'
)
_ODP_ERRNO = (
    'Linux commit 53c2d5b14a82 ("RDMA/core: return -EOPNOSUPP for ODP unsupported device"), v6.2'
)
_DIO_PIN = (
    'Linux commit a7e689dd1c06 ("block: Convert bio_iov_iter_get_pages to use '
    'iov_iter_extract_pages"), v6.5'
)
_ZERO_PAGE = 'Linux commit c8070b787519 ("mm: Don\'t pin ZERO_PAGE in pin_user_pages()"), v6.5'
_ONE_FOLIO = (
    'Linux commit 57bebf807e2a ("io_uring/rsrc: optimise registered huge pages"), v6.3: '
    "one pin is kept when the buffer lies in one folio"
)
_FOLIOS = (
    'Linux commit a8edbb424b13 ("io_uring/rsrc: enable multi-hugepage buffer coalescing"), v6.12: '
    "one pin is kept per folio"
)

_MAN_O_DIRECT = (
    "open(2), O_DIRECT: length and offset must suit the logical block size; some file systems "
    "fall back to buffered IO"
)
_BOUNCE = (
    'Linux commit 3373503df025 ("xfs: use bounce buffering direct I/O when the device requires '
    'stable pages"), v7.0'
)

_ON_BLOCK_DEVICE: Final[frozenset[Fact]] = frozenset({"block", "xfs"})

RULES: Final[tuple[Rule, ...]] = (
    # FOLL_PIN|FOLL_LONGTERM: RDMA and io_uring registered buffers.
    Rule(
        name="longterm",
        when={"pin_class": "pin-longterm"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=f"{_DOCUMENT}, CASE 2: RDMA; ib_umem_get() adds the pages to mm->pinned_vm",
    ),
    Rule(
        name="longterm-read-file",
        when={"pin_class": "pin-longterm", "backing": "file", "writes": False},
        since=(6, 2),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=Bound("pages", "twice-pages"),
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=ZERO,
        source=_UNSHARE,
    ),
    Rule(
        name="longterm-movable",
        when={"pin_class": "pin-longterm", "movable": True},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=Bound("twice-pages", None),
        held=PAGES,
        vmpin_bytes=BYTES,
        migrate_success=Bound("pages", None),
        source=_MIGRATE,
    ),
    Rule(
        name="longterm-movable-held",
        when={"pin_class": "pin-longterm", "movable": True, "foreign_reference": True},
        check=Check.PAGES,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=SOME,
        migrate_fail=SOME,
        source=_MIGRATE + "; a page that cannot be migrated gives ENOMEM",
    ),
    Rule(
        name="longterm-fsdax",
        when={"pin_class": "pin-longterm", "backing": "fsdax"},
        check=Check.MAPPING,
        outcomes=("EOPNOTSUPP",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=_FSDAX,
    ),
    Rule(
        name="longterm-write-file",
        when={"pin_class": "pin-longterm", "dirty_tracked": True, "writes": True},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=Bound(0, "pages"),
        source=_WRITE_FILE,
    ),
    # RDMA's limit is looked at before pinning.
    Rule(
        name="rdma-memlock",
        when={"workload": "rdma-register", "memlock": "short"},
        check=Check.ARGUMENTS,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=ZERO,
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
    # io_uring: what it keeps and what it accounts changed several times.
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
        acquired=Bound("twice-pages", None),
        held=PAGES,
        vmpin_bytes=ZERO,
        migrate_success=Bound("pages", None),
        source=f"{_MIGRATE}; {_ACCOUNT}",
    ),
    Rule(
        name="io-uring-file",
        when={"workload": "io-uring-register", "backing": "file"},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EOPNOTSUPP",),
        pin_class="pin-longterm",
        acquired=PAGES,
        source=_FILE_CHECK,
    ),
    Rule(
        name="io-uring-memlock",
        when={"workload": "io-uring-register", "memlock": frozenset({"short", "zero"})},
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=SOME,
        source="io_uring/rsrc.c, io_sqe_buffer_register(): io_buffer_account_pin() after pinning",
    ),
    # O_DIRECT
    Rule(
        name="dio-get",
        when={"target": frozenset({"block", "xfs", "other"})},
        until=(6, 5),
        outcomes=("ok",),
        pin_class="get",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_DIO_PIN}; before it get_user_pages_fast()",
    ),
    Rule(
        name="dio-pin",
        when={"target": "block"},
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES,
        migrate_success=ZERO,
        source=_DIO_PIN,
    ),
    Rule(
        name="dio-pin-xfs",
        when={"target": "xfs"},
        since=(6, 5),
        until=(7, 0),
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES,
        migrate_success=ZERO,
        source=_DIO_PIN,
    ),
    Rule(
        name="dio-bounce",
        when={"target": "xfs"},
        since=(7, 0),
        outcomes=("ok",),
        pin_class="pin",
        acquired=Bound(0, "pages"),
        source=_BOUNCE,
        why="where the device needs stable pages, XFS copies and pins nothing",
    ),
    Rule(
        name="dio-zero-page",
        when={"target": _ON_BLOCK_DEVICE, "writes": False, "touched": False},
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=ZERO,
        migrate_success=ZERO,
        source=_ZERO_PAGE,
    ),
    Rule(
        name="dio-other-file-system",
        when={"target": "other"},
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=Bound(0, "pages"),
        source=_MAN_O_DIRECT,
        why="a file system may copy instead, as tmpfs and a btrfs write with checksums do",
    ),
    Rule(
        name="dio-misaligned",
        when={"target": _ON_BLOCK_DEVICE, "alignment": "byte"},
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="pin",
        acquired=ZERO,
        source=_MAN_O_DIRECT,
    ),
    Rule(
        name="dio-sector",
        when={"target": _ON_BLOCK_DEVICE, "alignment": "sector"},
        check=Check.ARGUMENTS,
        outcomes=("ok", "EINVAL"),
        pin_class="pin",
        acquired=Bound(0, "pages"),
        source=_MAN_O_DIRECT,
        why="the logical block size of the device may be 512 or 4096 bytes",
    ),
    Rule(
        name="dio-other-misaligned",
        when={"target": "other", "alignment": frozenset({"byte", "sector"})},
        check=Check.ARGUMENTS,
        outcomes=("ok", "EINVAL"),
        pin_class="pin",
        acquired=Bound(0, "pages"),
        source=_MAN_O_DIRECT,
        why="some file systems refuse, others go through the page cache",
    ),
    # Writing to page data, references only, and nothing at all.
    Rule(
        name="process-vm",
        when={"workload": "process-vm-write"},
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES,
        migrate_success=ZERO,
        source=f"{_DOCUMENT}, CASE 5; mm/process_vm_access.c, pin_user_pages_remote()",
    ),
    Rule(
        name="references-only",
        when={"pin_class": "get"},
        outcomes=("ok",),
        pin_class="get",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_DOCUMENT}, CASE 4: FOLL_GET moves no pin counter",
    ),
    Rule(
        name="odp",
        when={"pin_class": "none"},
        outcomes=("ok",),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_DOCUMENT}, CASE 3: with MMU notifiers the pages are not pinned",
    ),
    Rule(
        name="odp-unsupported",
        when={"pin_class": "none", "driver": "rxe"},
        since=(6, 2),
        until=(6, 15),
        check=Check.ARGUMENTS,
        outcomes=("EOPNOTSUPP",),
        pin_class="none",
        acquired=ZERO,
        source=f"{_RXE_ODP}; {_ODP_ERRNO}",
    ),
    Rule(
        name="odp-unsupported-errno",
        when={"pin_class": "none", "driver": "rxe"},
        until=(6, 2),
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=f"{_RXE_ODP}; {_ODP_ERRNO}",
    ),
)
