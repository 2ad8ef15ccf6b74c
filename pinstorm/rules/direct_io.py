"""O_DIRECT, CASE 1 of pin_user_pages.rst: FOLL_PIN while the transfer runs.

``target`` is what the file system does with the pages: "block" hands them to the device, "xfs" may
copy them from 7.0 on, "other" may copy them any time. Registered buffers: registered_io.py.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from pinstorm.rules.rule import (
    GOOD_PAGES,
    PAGES,
    PAGES_AND_ATTEMPTS,
    PROCESSES,
    UP_TO_PAGES,
    ZERO,
    Bound,
    Call,
    Check,
    Conformance,
    Fact,
    Release,
    Rule,
)
from pinstorm.rules.sources import NO_MEMORY, PROTECTION, SECRET, ZERO_PAGE

_DIO_PIN = (
    'Linux commit a7e689dd1c06 ("block: Convert bio_iov_iter_get_pages to use '
    'iov_iter_extract_pages"), v6.5'
)
_MAN_O_DIRECT = (
    "open(2), O_DIRECT: length and offset must suit the logical block size; some file systems "
    "fall back to buffered IO"
)
_DMA_ALIGNED = (
    'Linux commit bf8d08532bc1 ("iomap: add support for dma aligned direct-io"), v6.0: an address '
    "need only suit the device's dma_alignment, 511 unless the driver says otherwise"
)
_LATE_CHECK = (
    'Linux commit 7eac33186957 ("iomap: simplify direct io validity check"), v6.18: the address is '
    "checked only when the bio is split"
)
_CHECK_IN_EXTRACT = (
    "lib/iov_iter.c of v7.2, iov_iter_extract_bvecs(): the address is checked before any page is "
    "pinned"
)
_BOUNCE = (
    'Linux commit 3373503df025 ("xfs: use bounce buffering direct I/O when the device requires '
    'stable pages"), v7.0'
)
_UNSHARE = (
    'Linux commit a7f226604170 ("mm/gup: trigger FAULT_FLAG_UNSHARE when R/O-pinning a possibly '
    'shared anonymous page"), v5.19: GUP-fast takes a pin, finds a page that is not exclusive, and '
    "gives it back before the slow path copies"
)
_WHOLE_CALL = (
    'Linux commit 97308f8b0d86 ("iomap: Support partial direct I/O on user copy failures"), v5.16: '
    "only with IOMAP_DIO_PARTIAL, which ext4 and XFS do not pass, is EFAULT behind the first bytes "
    f"a short transfer; {NO_MEMORY}"
)

_ON_BLOCK_DEVICE: Final[frozenset[Fact]] = frozenset({"block", "xfs"})
_ANY_TARGET: Final[frozenset[Fact]] = frozenset({"block", "xfs", "other"})
_PARTLY: Final[frozenset[Fact]] = frozenset({"hole", "past-eof"})
_NO_BYTES: Final[frozenset[Fact]] = frozenset({"page", "sector"})
_NOT_WHOLE: Final[frozenset[Fact]] = frozenset({"hole", "past-eof", "unmapped"})

_PARTIAL_WHY: Final = (
    "btrfs passes IOMAP_DIO_PARTIAL, and a file system that copies stops where memory ends"
)

_TRANSFERS: Final[tuple[Rule, ...]] = (
    Rule(
        name="dio-get",
        when={"target": _ANY_TARGET, "registered": False},
        until=(6, 5),
        outcomes=("ok",),
        pin_class="get",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{_DIO_PIN}; before it get_user_pages_fast()",
    ),
    Rule(
        name="dio-pin",
        when={"target": "block", "registered": False},
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES,
        migrate_success=ZERO,
        source=_DIO_PIN,
    ),
    Rule(
        name="dio-pin-xfs",
        when={"target": "xfs", "registered": False},
        since=(6, 5),
        until=(7, 0),
        outcomes=("ok",),
        pin_class="pin",
        acquired=Bound("pages", "twice-pages"),
        migrate_success=ZERO,
        source=f"{_DIO_PIN}; {_UNSHARE}",
    ),
    Rule(
        name="dio-bounce",
        when={"target": "xfs", "registered": False},
        since=(7, 0),
        outcomes=("ok",),
        pin_class="pin",
        acquired=Bound(0, "twice-pages"),
        source=_BOUNCE,
        why="where the device needs stable pages, XFS copies and pins nothing",
    ),
    Rule(
        name="dio-zero-page",
        when={
            "target": _ON_BLOCK_DEVICE,
            "registered": False,
            "writes": False,
            "backing": "anon",
            "present": frozenset({"absent", "zero-page"}),
        },
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=ZERO,
        migrate_success=ZERO,
        source=ZERO_PAGE,
    ),
    Rule(
        name="dio-unshare",
        when={
            "target": "block",
            "registered": False,
            "writes": False,
            "backing": "anon",
            "present": "copy-on-write",
            "one_bio": True,
        },
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES_AND_ATTEMPTS,
        migrate_success=ZERO,
        source=_UNSHARE,
    ),
    Rule(
        name="dio-unshare-several-bios",
        when={
            "target": "block",
            "registered": False,
            "writes": False,
            "backing": "anon",
            "present": "copy-on-write",
            "one_bio": False,
        },
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        # one attempt for each call of GUP-fast, and how many pages a bio takes follows from how
        # they happen to lie in memory
        acquired=Bound("pages-and-attempts", "twice-pages"),
        migrate_success=ZERO,
        source=_UNSHARE,
    ),
    Rule(
        name="dio-other-file-system",
        when={"target": "other", "registered": False},
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=Bound(0, "twice-pages"),
        source=_MAN_O_DIRECT,
        why="a file system may copy instead, as tmpfs and a btrfs write with checksums do",
    ),
)

_REFUSALS: Final[tuple[Rule, ...]] = (
    Rule(
        name="dio-get-prot-none",
        when={"target": _ANY_TARGET, "registered": False, "prot": "none"},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="dio-get-prot-read",
        when={"target": _ANY_TARGET, "registered": False, "prot": "r", "writes": True},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="dio-get-no-memory",
        when={"target": _ON_BLOCK_DEVICE, "registered": False, "extent": _NOT_WHOLE},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=_WHOLE_CALL,
    ),
    Rule(
        name="dio-get-no-memory-other",
        when={"target": "other", "registered": False, "extent": _NOT_WHOLE},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT", "short"),
        pin_class="get",
        acquired=ZERO,
        source=f"{_WHOLE_CALL}; {_MAN_O_DIRECT}",
        why=_PARTIAL_WHY,
    ),
    Rule(
        name="dio-get-secret",
        when={"target": _ON_BLOCK_DEVICE, "registered": False, "backing": "secretmem"},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=SECRET,
    ),
    Rule(
        name="dio-get-secret-other",
        when={"target": "other", "registered": False, "backing": "secretmem"},
        until=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT", "ok"),
        pin_class="get",
        acquired=ZERO,
        source=f"{SECRET}; {_MAN_O_DIRECT}",
        why="a file system may copy instead, which the process itself may do",
    ),
    Rule(
        name="dio-prot-none",
        when={"target": _ANY_TARGET, "registered": False, "prot": "none"},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="dio-prot-read",
        when={"target": _ANY_TARGET, "registered": False, "prot": "r", "writes": True},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="dio-unmapped",
        when={"target": _ANY_TARGET, "registered": False, "extent": "unmapped"},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=NO_MEMORY,
    ),
    Rule(
        name="dio-partly-mapped",
        when={"target": "block", "registered": False, "extent": _PARTLY},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=GOOD_PAGES,
        source=f"{_WHOLE_CALL}; {_DIO_PIN}",
    ),
    Rule(
        name="dio-partly-mapped-xfs",
        when={"target": "xfs", "registered": False, "extent": _PARTLY},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=Bound(0, "good-pages"),
        source=f"{_WHOLE_CALL}; {_BOUNCE}",
    ),
    Rule(
        name="dio-partly-mapped-other",
        when={"target": "other", "registered": False, "extent": _PARTLY},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT", "short"),
        pin_class="pin",
        acquired=Bound(0, "twice-pages"),
        source=f"{_WHOLE_CALL}; {_MAN_O_DIRECT}",
        why=_PARTIAL_WHY,
    ),
    Rule(
        name="dio-secret",
        when={"target": "block", "registered": False, "backing": "secretmem"},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=PROCESSES,
        source=f"{SECRET}; {_DIO_PIN}",
    ),
    Rule(
        name="dio-secret-xfs",
        when={"target": "xfs", "registered": False, "backing": "secretmem"},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT", "ok"),
        pin_class="pin",
        acquired=UP_TO_PAGES,
        source=f"{SECRET}; {_BOUNCE}",
        why="where the device needs stable pages, XFS copies, which the process itself may do",
    ),
    Rule(
        name="dio-secret-other",
        when={"target": "other", "registered": False, "backing": "secretmem"},
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT", "ok"),
        pin_class="pin",
        acquired=UP_TO_PAGES,
        source=f"{SECRET}; {_MAN_O_DIRECT}",
        why="a file system may copy instead, which the process itself may do",
    ),
)


def _refused(
    name: str,
    when: Mapping[str, Fact | frozenset[Fact]],
    *,
    source: str,
    until: Release | None = None,
) -> tuple[Rule, Rule]:
    """EINVAL before any page is looked at, whatever the pages: one rule for each class."""
    late = Rule(
        name=name,
        when={**when, "registered": False},
        since=(6, 5),
        until=until,
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="pin",
        acquired=ZERO,
        source=source,
    )
    return replace(late, name=f"{name}-get", since=None, until=(6, 5), pin_class="get"), late


_BEFORE_PAGES: Final[tuple[Rule, ...]] = (
    *_refused(
        "dio-misaligned",
        {"target": _ON_BLOCK_DEVICE, "alignment": "byte"},
        source=_MAN_O_DIRECT,
    ),
    *_refused(
        "dio-misaligned-address",
        {"target": _ON_BLOCK_DEVICE, "alignment": _NO_BYTES, "offset": "byte"},
        until=(6, 18),
        source=_DMA_ALIGNED,
    ),
    Rule(
        name="dio-misaligned-address-early",
        when={
            "target": "block",
            "registered": False,
            "alignment": _NO_BYTES,
            "offset": "byte",
        },
        since=(7, 2),
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="pin",
        acquired=ZERO,
        source=f"{_DMA_ALIGNED}; {_CHECK_IN_EXTRACT}",
    ),
)

_LENGTH_WHY: Final = "the logical block size of the device may be 512 or 4096 bytes"
_LATE_WHY: Final = (
    "a driver that takes bios as they are, such as brd, never splits and never checks"
)
_BOUNCED_WHY: Final = "what XFS copies need not be aligned"
_OTHER_WHY: Final = "some file systems refuse, others go through the page cache"


def _or_einval(
    rules: Iterable[Rule],
    suffix: str,
    when: Mapping[str, Fact | frozenset[Fact]],
    *,
    targets: frozenset[Fact],
    source: str,
    why: str,
    since: Release | None = None,
    until: Release | None = None,
) -> Iterator[Rule]:
    """The same rules for a transfer that may be refused for its alignment as well.

    A refusal for the alignment may come before or after the pages were looked at, so what else is
    wrong with them remains possible. The verdict lets EINVAL beside "ok" acquire less; beside
    another refusal the bound itself has to.
    """
    for rule in rules:
        wanted = rule.when["target"]
        target = targets & (wanted if isinstance(wanted, frozenset) else {wanted})
        begins: Release | None = max((at for at in (rule.since, since) if at), default=None)
        ends: Release | None = min((at for at in (rule.until, until) if at), default=None)
        if not target or (begins is not None and ends is not None and begins >= ends):
            continue
        acquired = rule.acquired
        if rule.check is not Check.DONE:
            acquired = Bound(0, acquired.high)
        yield replace(
            rule,
            name=f"{rule.name}-{suffix}",
            when={**rule.when, **when, "target": target},
            since=begins,
            until=ends,
            outcomes=(*rule.outcomes, "EINVAL"),
            acquired=acquired,
            source=f"{rule.source}; {source}",
            why=f"{rule.why}; {why}" if rule.why else why,
        )


_WELL_ALIGNED: Final = (*_TRANSFERS, *_REFUSALS)
_ODD_ADDRESS: Final[Mapping[str, Fact]] = {"alignment": "page", "offset": "byte"}
_OTHER: Final[frozenset[Fact]] = frozenset({"other"})

_MISALIGNED: Final[tuple[Rule, ...]] = (
    *_or_einval(
        _WELL_ALIGNED,
        "sector",
        {"alignment": "sector"},
        targets=_ON_BLOCK_DEVICE,
        source=_MAN_O_DIRECT,
        why=_LENGTH_WHY,
    ),
    *_or_einval(
        _WELL_ALIGNED,
        "odd-address",
        _ODD_ADDRESS,
        targets=_ON_BLOCK_DEVICE,
        since=(6, 18),
        until=(7, 2),
        source=f"{_LATE_CHECK}; {_CHECK_IN_EXTRACT}",
        why=_LATE_WHY,
    ),
    *_or_einval(
        _WELL_ALIGNED,
        "odd-address-bounced",
        _ODD_ADDRESS,
        targets=frozenset({"xfs"}),
        since=(7, 2),
        source=f"{_CHECK_IN_EXTRACT}; {_BOUNCE}",
        why=_BOUNCED_WHY,
    ),
    *_or_einval(
        _WELL_ALIGNED,
        "misaligned-elsewhere",
        {"alignment": frozenset({"byte", "sector"})},
        targets=_OTHER,
        source=_MAN_O_DIRECT,
        why=_OTHER_WHY,
    ),
    *_or_einval(
        _WELL_ALIGNED,
        "odd-address-elsewhere",
        _ODD_ADDRESS,
        targets=_OTHER,
        source=_MAN_O_DIRECT,
        why=_OTHER_WHY,
    ),
)

RULES: Final[tuple[Rule, ...]] = (*_WELL_ALIGNED, *_BEFORE_PAGES, *_MISALIGNED)

_P2P: Final = frozenset({"FOLL_PCI_P2PDMA"})
_GET_TO_READ: Final = Call("get_user_pages_fast", frozenset({"FOLL_WRITE"}))
_GET_TO_WRITE: Final = Call("get_user_pages_fast", frozenset())
_PIN_TO_READ: Final = Call("pin_user_pages_fast", frozenset({"FOLL_WRITE"}), _P2P)
_PIN_TO_WRITE: Final = Call("pin_user_pages_fast", frozenset(), _P2P)

_EXTRACT = (
    "lib/iov_iter.c, iov_iter_extract_user_pages(): FOLL_WRITE when the memory is the destination, "
    "FOLL_PCI_P2PDMA when the device's queue allows it"
)
_GET_PAGES = "lib/iov_iter.c of v6.1, __iov_iter_get_pages_alloc()"

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="dio-read-gets",
        when={"target": _ANY_TARGET, "registered": False, "writes": True},
        until=(6, 5),
        calls=(_GET_TO_READ,),
        proof=(_GET_TO_READ,),
        source=_GET_PAGES,
    ),
    Conformance(
        name="dio-write-gets",
        when={"target": _ANY_TARGET, "registered": False, "writes": False},
        until=(6, 5),
        calls=(_GET_TO_WRITE,),
        proof=(_GET_TO_WRITE,),
        source=_GET_PAGES,
    ),
    Conformance(
        name="dio-read-pins",
        when={"target": _ON_BLOCK_DEVICE, "registered": False, "writes": True},
        since=(6, 5),
        calls=(_PIN_TO_READ,),
        proof=(_PIN_TO_READ,),
        source=f"{_DIO_PIN}; {_EXTRACT}",
    ),
    Conformance(
        name="dio-write-pins",
        when={"target": "block", "registered": False, "writes": False},
        since=(6, 5),
        calls=(_PIN_TO_WRITE,),
        proof=(_PIN_TO_WRITE,),
        source=f"{_DIO_PIN}; {_EXTRACT}",
    ),
    Conformance(
        name="dio-write-may-copy",
        when={"target": "xfs", "registered": False, "writes": False},
        since=(6, 5),
        calls=(_PIN_TO_WRITE,),
        source=f"{_DIO_PIN}; {_EXTRACT}; {_BOUNCE}",
    ),
    Conformance(
        name="dio-other-pins",
        when={"target": "other", "registered": False},
        since=(6, 5),
        calls=(_PIN_TO_READ, _PIN_TO_WRITE),
        source=f"{_DIO_PIN}; {_EXTRACT}; {_MAN_O_DIRECT}",
    ),
)
