"""More pins than a small page can have (gup-overflow), and as many on a large folio.

What each interface makes of the refusal follows from where in its call GUP stops: a call that got
some pages returns their number, one that got none the errno.
"""

from typing import Final

from pinstorm.rules.rule import ZERO, Bound, Call, Check, Conformance, Fact, Release, Rule

_LIMIT = (
    "mm/gup.c, try_grab_folio(): a small folio's reference count goes up by 1024 for each pin, and "
    "once it is not positive GUP warns and gives ENOMEM (v6.12, v7.2; in v6.1 the slow path's is "
    "try_grab_page(); GUP-fast's try_get_folio() warns too, and leaves it to the slow path)"
)
_COUNTED = (
    "mm/gup.c, try_grab_folio(): a large folio's pins are counted one by one in a field of their "
    "own, compound_pincount in v6.1, _pincount in v6.12 and v7.2"
)
_UMEM = "drivers/infiniband/core/umem.c, ib_umem_get()"
_XDP = "net/xdp/xdp_umem.c, xdp_umem_pin_pages()"
_SLOW = "io_uring/rsrc.c of v6.1, io_pin_pages()"
_FAST = "io_uring/memmap.c of v6.12, io_pin_pages()"
_SHORT = "fewer pages than asked are given back, with EFAULT"
# Where the warning stands moved within the file; the function is named behind it.
_WARNING: Final = r"WARNING: (?:.* at )?mm/gup\.c:\d+"
_REFUSED: Final = Bound("overflow-pins", "overflow-pins")
_PAGES: Final = Bound("overflow-pages", "overflow-pages")
_FOLIOS: Final = Bound("overflow-folios", "overflow-folios")
_BYTES: Final = Bound("overflow-bytes", "overflow-bytes")


def _refusal(name: str, through: str, outcome: str, source: str, **conditions: str) -> Rule:
    return Rule(
        name=f"overflow-{name}",
        when={
            "workload": "gup-overflow",
            "through": through,
            "overflow": frozenset({"inside", "at-start"}),
            **conditions,
        },
        check=Check.PAGES,
        outcomes=(outcome,),
        pin_class="pin-longterm",
        acquired=_REFUSED,
        required_messages=(_WARNING,),
        taint="W",
        source=f"{_LIMIT}; {source}",
    )


def _io_uring(
    name: str,
    held: Bound,
    vmpin_bytes: Bound = _BYTES,
    since: Release | None = None,
    until: Release | None = None,
    **conditions: Fact,
) -> Rule:
    """What a ring keeps of a buffer, and accounts: as the rules of io-uring-register say."""
    return Rule(
        name=f"overflow-large-io-uring-{name}",
        when={"workload": "gup-overflow", "through": "io-uring", "overflow": "none", **conditions},
        since=since,
        until=until,
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=_PAGES,
        held=held,
        vmpin_bytes=vmpin_bytes,
        source=_COUNTED,
    )


RULES: Final[tuple[Rule, ...]] = (
    _refusal(
        "rdma",
        "rdma",
        "ENOMEM",
        f"{_UMEM}: what is missing after a call is asked for again, and that call gets no page",
    ),
    _refusal(
        "af-xdp",
        "af-xdp",
        "ENOMEM",
        f"{_XDP}: ENOMEM, whether it got some pages or none",
    ),
    _refusal(
        "io-uring", "io-uring", "EFAULT", f"{_FAST}, and {_SLOW}: {_SHORT}", overflow="inside"
    ),
    _refusal(
        "io-uring-at-start",
        "io-uring",
        "ENOMEM",
        f"{_FAST}, and {_SLOW}: the errno of GUP only where it took no page",
        overflow="at-start",
    ),
    Rule(
        name="overflow-large-rdma",
        when={"workload": "gup-overflow", "through": "rdma", "overflow": "none"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=_PAGES,
        held=_PAGES,
        vmpin_bytes=_BYTES,
        source=_COUNTED,
    ),
    Rule(
        name="overflow-large-af-xdp",
        when={"workload": "gup-overflow", "through": "af-xdp", "overflow": "none"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=_PAGES,
        held=_PAGES,
        source=_COUNTED,
    ),
    _io_uring("pages", until=(6, 3), held=_PAGES),
    _io_uring("one-folio", since=(6, 3), until=(6, 12), held=_FOLIOS, one_folio=True),
    _io_uring("several-folios", since=(6, 3), until=(6, 12), held=_PAGES, one_folio=False),
    _io_uring("folios", since=(6, 12), until=(7, 2), held=_FOLIOS),
    _io_uring("unaccounted", since=(7, 2), held=_FOLIOS, vmpin_bytes=ZERO),
)

_WRITES: Final = frozenset({"FOLL_WRITE", "FOLL_LONGTERM"})
_FAST_CALL: Final = Call("pin_user_pages_fast", _WRITES)
_SLOW_CALL: Final = Call("pin_user_pages", _WRITES)


def _conformance(
    name: str,
    through: str,
    call: Call,
    source: str,
    since: Release | None = None,
    until: Release | None = None,
) -> Conformance:
    return Conformance(
        name=f"overflow-{name}",
        when={"workload": "gup-overflow", "through": through},
        since=since,
        until=until,
        calls=(call,),
        proof=(call,),
        source=source,
    )


CONFORMANCE: Final[tuple[Conformance, ...]] = (
    _conformance("rdma", "rdma", _FAST_CALL, _UMEM),
    _conformance("af-xdp", "af-xdp", _SLOW_CALL, _XDP),
    _conformance("io-uring", "io-uring", _SLOW_CALL, _SLOW, until=(6, 10)),
    _conformance("io-uring-fast", "io-uring", _FAST_CALL, _FAST, since=(6, 10)),
)
