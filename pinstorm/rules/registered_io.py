"""O_DIRECT with a registered io_uring buffer: its pages were pinned when it was registered.

The transfer itself takes no reference (CASE 2 of pin_user_pages.rst, then none), and registering,
which belongs to *prepare*, is what may refuse.
"""

from typing import Final

from pinstorm.rules.rule import ZERO, Check, Conformance, Fact, Rule
from pinstorm.rules.sources import FSDAX, MIGRATE, NO_MEMORY, PROTECTION, SECRET
from pinstorm.rules.sources import WRITE_FILE as DIRTY_FILE

_BVEC = (
    'Linux commit c42bca92be92 ("bio: don\'t copy bvec for direct IO"), v5.12: bio_iov_bvec_set() '
    "hands on the pages of a registered buffer and takes no reference"
)
_REGISTERED_FILE = (
    'Linux commit 34ed8d0dcd69 ("io_uring: rsrc: delegate VMA file-backed check to GUP"), v6.5, '
    "which removed the check that let only anonymous, shmem and hugetlb memory be registered"
)
_FAST_REGISTER = (
    'Linux commit 1943f96b3816 ("io_uring: unify io_pin_pages()"), v6.10: pin_user_pages_fast(), '
    "which does not look at the VMA for pages that GUP-fast can take"
)
_MAN_O_DIRECT = "open(2), O_DIRECT: length and address must suit the device and the file system"
_ALIGNED = (
    'Linux commit bf8d08532bc1 ("iomap: add support for dma aligned direct-io"), v6.0: '
    "bdev_iter_is_aligned() looks at a registered buffer as at any other"
)
_LATE_CHECK = (
    'Linux commit 7eac33186957 ("iomap: simplify direct io validity check"), v6.18: the address is '
    "checked only when the bio is split"
)
_BVEC_CHECK = "block/bio.c of v7.2, bio_iov_iter_get_pages(): bio_iov_bvec_aligned()"
_REGISTER = ("io_uring_register",)
_ON_BLOCK_DEVICE: Final[frozenset[Fact]] = frozenset({"block", "xfs"})
_ODD_LENGTH: Final[frozenset[Fact]] = frozenset({"byte", "sector"})
_NO_BYTES: Final[frozenset[Fact]] = frozenset({"page", "sector"})
_NOT_WHOLE: Final[frozenset[Fact]] = frozenset({"hole", "past-eof", "unmapped"})
_ANY_TARGET: Final[frozenset[Fact]] = frozenset({"block", "xfs", "other"})

_TRANSFERS: Final[tuple[Rule, ...]] = (
    Rule(
        name="dio-registered",
        when={"registered": True},
        outcomes=("ok",),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=_BVEC,
    ),
    # The transfer's own arguments are looked at after registering: behind Check.ARGUMENTS.
    Rule(
        name="dio-registered-misaligned",
        when={"registered": True, "target": _ON_BLOCK_DEVICE, "alignment": "byte"},
        check=Check.MAPPING,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_MAN_O_DIRECT,
    ),
    Rule(
        name="dio-registered-sector",
        when={"registered": True, "target": _ON_BLOCK_DEVICE, "alignment": "sector"},
        outcomes=("ok", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_BVEC}; {_MAN_O_DIRECT}",
        why="the logical block size of the device may be 512 or 4096 bytes",
    ),
    Rule(
        name="dio-registered-odd-address",
        when={
            "registered": True,
            "target": _ON_BLOCK_DEVICE,
            "alignment": _NO_BYTES,
            "offset": "byte",
        },
        until=(6, 18),
        check=Check.MAPPING,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_ALIGNED,
    ),
    Rule(
        name="dio-registered-odd-address-late",
        when={
            "registered": True,
            "target": _ON_BLOCK_DEVICE,
            "alignment": _NO_BYTES,
            "offset": "byte",
        },
        since=(6, 18),
        until=(7, 2),
        outcomes=("ok", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_LATE_CHECK}; {_BVEC_CHECK}",
        why="a driver that takes bios as they are, such as brd, never splits and never checks",
    ),
    Rule(
        name="dio-registered-odd-address-early",
        when={"registered": True, "target": "block", "alignment": _NO_BYTES, "offset": "byte"},
        since=(7, 2),
        check=Check.MAPPING,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_BVEC_CHECK,
    ),
    Rule(
        name="dio-registered-odd-address-bounced",
        when={"registered": True, "target": "xfs", "alignment": _NO_BYTES, "offset": "byte"},
        since=(7, 2),
        outcomes=("ok", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=_BVEC_CHECK,
        why="what XFS copies need not be aligned",
    ),
    Rule(
        name="dio-registered-misaligned-elsewhere",
        when={"registered": True, "target": "other", "alignment": _ODD_LENGTH},
        outcomes=("ok", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_BVEC}; {_MAN_O_DIRECT}",
        why="some file systems refuse, others go through the page cache",
    ),
    Rule(
        name="dio-registered-odd-address-elsewhere",
        when={"registered": True, "target": "other", "alignment": "page", "offset": "byte"},
        outcomes=("ok", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_BVEC}; {_MAN_O_DIRECT}",
        why="some file systems refuse, others go through the page cache",
    ),
)

_UNREGISTRABLE: Final[tuple[Rule, ...]] = (
    Rule(
        name="dio-registered-prot-none",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "prot": "none",
            "scope": "call",
        },
        check=Check.ARGUMENTS,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=PROTECTION,
    ),
    Rule(
        name="dio-registered-prot-read",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "prot": "r",
            "scope": "call",
        },
        check=Check.ARGUMENTS,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=f"{PROTECTION}; a registered buffer is always pinned for writing",
    ),
    Rule(
        name="dio-registered-part",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "extent": _NOT_WHOLE,
            "scope": "call",
        },
        check=Check.ARGUMENTS,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=NO_MEMORY,
    ),
    Rule(
        name="dio-registered-secret",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "backing": "secretmem",
            "scope": "call",
        },
        check=Check.ARGUMENTS,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=SECRET,
    ),
    Rule(
        name="dio-registered-any-file",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "backing": frozenset({"file", "devdax"}),
            "scope": "call",
        },
        until=(6, 5),
        check=Check.ARGUMENTS,
        outcomes=("EOPNOTSUPP",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=_REGISTERED_FILE,
    ),
    Rule(
        name="dio-registered-dirty-file",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "dirty_tracked": True,
            "scope": "call",
        },
        since=(6, 5),
        check=Check.ARGUMENTS,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=DIRTY_FILE,
    ),
    Rule(
        name="dio-registered-fsdax",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "backing": "fsdax",
            "scope": "call",
        },
        check=Check.ARGUMENTS,
        outcomes=("EOPNOTSUPP",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=FSDAX,
    ),
    Rule(
        name="dio-registered-fsdax-copied",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
            "scope": "call",
        },
        since=(6, 10),
        check=Check.ARGUMENTS,
        outcomes=("ok", "EOPNOTSUPP"),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=f"{FSDAX}; {_FAST_REGISTER}",
        why="GUP-fast never looks at the VMA: it takes the copies, unless one of them lies in CMA "
        "or is not present, and then the slow path refuses",
    ),
    Rule(
        name="dio-registered-fsdax-copied-misaligned",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
            "scope": "call",
            "alignment": _ODD_LENGTH,
        },
        since=(6, 10),
        check=Check.ARGUMENTS,
        outcomes=("ok", "EOPNOTSUPP", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=f"{FSDAX}; {_FAST_REGISTER}; {_MAN_O_DIRECT}",
        why="GUP-fast may take the copies, and then the transfer may be refused for its alignment",
    ),
    Rule(
        name="dio-registered-fsdax-copied-odd-address",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
            "scope": "call",
            "alignment": "page",
            "offset": "byte",
        },
        since=(6, 10),
        check=Check.ARGUMENTS,
        outcomes=("ok", "EOPNOTSUPP", "EINVAL"),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=f"{FSDAX}; {_FAST_REGISTER}; {_MAN_O_DIRECT}",
        why="GUP-fast may take the copies, and then the transfer may be refused for its alignment",
    ),
    Rule(
        name="dio-registered-held",
        when={
            "target": _ANY_TARGET,
            "registered": True,
            "pin_class": "pin",
            "movable": True,
            "foreign_reference": True,
            "scope": "call",
        },
        check=Check.ARGUMENTS,
        outcomes=("ENOMEM",),
        pin_class="none",
        acquired=ZERO,
        prepare_calls=_REGISTER,
        source=MIGRATE + "; a page that cannot be migrated gives ENOMEM",
    ),
)

RULES: Final[tuple[Rule, ...]] = (*_TRANSFERS, *_UNREGISTRABLE)

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="dio-registered-none",
        when={"registered": True},
        calls=(),
        source=_BVEC,
    ),
)
