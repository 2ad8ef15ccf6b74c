"""References only, CASE 4 of pin_user_pages.rst: FOLL_GET moves no pin counter."""

from typing import Final

from pinstorm.rules.rule import ZERO, Call, Check, Conformance, Rule
from pinstorm.rules.sources import DOCUMENT, NO_MEMORY, PROTECTION, SECRET

_SENT: Final = frozenset({"vmsplice", "msg-zerocopy"})
_PARTLY: Final = frozenset({"hole", "past-eof"})
_CALL_SITE = (
    "lib/iov_iter.c, iov_iter_get_pages2(): get_user_pages_fast() without flags for a source; for "
    "fs/splice.c, iter_to_pipe(), and net/core/skbuff.c, skb_zerocopy_iter_stream(); the same in "
    "v6.1, v6.12 and v7.2"
)
_SPLICED = (
    "fs/splice.c, iter_to_pipe(): what is in the pipe before a page that cannot be had is the "
    "result, EFAULT when nothing is"
)
_SEGMENT = (
    "net/core/skbuff.c, skb_zerocopy_iter_stream(): EFAULT takes back all that this call added to "
    "the segment; net/ipv4/tcp.c, tcp_sendmsg_locked(): the segments before it are the result"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="references-only",
        when={"pin_class": "get"},
        outcomes=("ok",),
        pin_class="get",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{DOCUMENT}, CASE 4: FOLL_GET moves no pin counter",
    ),
    Rule(
        name="vmsplice-short",
        when={"workload": "vmsplice", "extent": _PARTLY, "starts_bad": False},
        check=Check.MAPPING,
        outcomes=("short",),
        pin_class="get",
        acquired=ZERO,
        source=_SPLICED,
    ),
    Rule(
        name="msg-zerocopy-short",
        when={"workload": "msg-zerocopy", "extent": _PARTLY, "starts_bad": False},
        check=Check.MAPPING,
        outcomes=("short", "EFAULT"),
        pin_class="get",
        acquired=ZERO,
        source=_SEGMENT,
        why="EFAULT when the bad page lies in the first segment, whose size is up to half of the "
        "largest window that the receiver offered (tcp_bound_to_half_wnd())",
    ),
    Rule(
        name="references-nothing-there",
        when={"workload": _SENT, "starts_bad": True},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=NO_MEMORY,
    ),
    Rule(
        name="references-prot-none",
        when={"workload": _SENT, "prot": "none"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=PROTECTION,
    ),
    Rule(
        name="references-secret",
        when={"workload": _SENT, "backing": "secretmem"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="get",
        acquired=ZERO,
        source=SECRET,
    ),
    Rule(
        name="msg-zerocopy-memlock",
        when={"workload": "msg-zerocopy", "memlock": frozenset({"short", "zero"})},
        check=Check.ARGUMENTS,
        outcomes=("ENOBUFS",),
        pin_class="get",
        acquired=ZERO,
        source="net/core/skbuff.c, mm_account_pinned_pages(): two pages more than whole ones in "
        "the send, into user->locked_vm; net/ipv4/tcp.c: ENOBUFS when they are over RLIMIT_MEMLOCK",
    ),
)

_GET = Call("get_user_pages_fast", frozenset())

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="references",
        when={"workload": _SENT},
        calls=(_GET,),
        proof=(_GET,),
        source=_CALL_SITE,
    ),
)
