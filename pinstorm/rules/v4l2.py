"""V4L2 USERPTR buffers: FOLL_PIN | FOLL_LONGTERM through a frame vector.

One call of pin_user_pages_fast() for the whole buffer, so GUP-fast tries once. Nothing is held
against RLIMIT_MEMLOCK, and neither VmPin nor VmLck moves.
"""

from typing import Final

from pinstorm.rules.rule import MIGRATED, MOVED, PAGES, ZERO, Bound, Call, Check, Conformance, Rule
from pinstorm.rules.sources import DEVDAX, FSDAX, MIGRATE, SECRET, WRITE_FILE

_FRAMES = (
    "drivers/media/common/videobuf2/frame_vector.c, get_vaddr_frames(): one pin_user_pages_fast(); "
    "vb2_create_framevec() wants all pages or gives EFAULT"
)
_FORCE = (
    'Linux commit cb78a634f3f7 ("mm/frame-vector: remove FOLL_FORCE usage"), v6.2: until then '
    "FOLL_WRITE | FOLL_FORCE, which private memory always grants"
)
_ONE_ATTEMPT: Final = Bound(1, 1)
# None where the page cache lies in CMA: GUP-fast passes over what must not stay there.
_ATTEMPT: Final = Bound(0, 1)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="v4l2",
        when={"workload": "v4l2-userptr", "pin_class": "pin-longterm"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        migrate_success=ZERO,
        source=_FRAMES,
    ),
    Rule(
        name="v4l2-movable",
        when={"workload": "v4l2-userptr", "pin_class": "pin-longterm", "movable": True},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=MOVED,
        held=PAGES,
        migrate_success=MIGRATED,
        source=f"{MIGRATE}; {_FRAMES}",
    ),
    Rule(
        name="v4l2-device-memory",
        when={"workload": "v4l2-userptr", "pin_class": "pin-longterm", "backing": "devdax"},
        since=(6, 17),
        outcomes=("ok",),
        pin_class="pin-longterm",
        # what GUP-fast tries is one page table's worth of the beginning
        acquired=Bound("pages", "twice-pages"),
        held=PAGES,
        migrate_success=ZERO,
        source=DEVDAX,
    ),
    Rule(
        name="v4l2-forced",
        when={
            "workload": "v4l2-userptr",
            "shared": False,
            "prot": frozenset({"none", "r"}),
        },
        until=(6, 2),
        check=Check.MAPPING,
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        migrate_success=ZERO,
        source=_FORCE,
    ),
    Rule(
        name="v4l2-write-file",
        when={
            "workload": "v4l2-userptr",
            "pin_class": "pin-longterm",
            "dirty_tracked": True,
            "writes": True,
        },
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=_ATTEMPT,
        source=WRITE_FILE,
    ),
    Rule(
        name="v4l2-secret",
        when={"workload": "v4l2-userptr", "pin_class": "pin-longterm", "backing": "secretmem"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=_ONE_ATTEMPT,
        source=SECRET,
    ),
    Rule(
        name="v4l2-fsdax-copied",
        when={
            "workload": "v4l2-userptr",
            "backing": "fsdax",
            "shared": False,
            "present": "own",
        },
        check=Check.MAPPING,
        outcomes=("ok", "EFAULT", "EOPNOTSUPP"),
        pin_class="pin-longterm",
        acquired=Bound(0, "pages"),
        held=Bound(0, "pages"),
        migrate_success=ZERO,
        source=f"{FSDAX}; {_FRAMES}",
        why="GUP-fast never looks at the VMA: it takes the copies, unless one of them lies in CMA "
        "or is not present. Then the slow path refuses: EOPNOTSUPP for the first page, and for a "
        "later one the vector is too short, EFAULT",
    ),
)

_FORCED: Final = Call(
    "pin_user_pages_fast", frozenset({"FOLL_WRITE", "FOLL_FORCE", "FOLL_LONGTERM"})
)
_WRITE: Final = Call("pin_user_pages_fast", frozenset({"FOLL_WRITE", "FOLL_LONGTERM"}))

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="v4l2-forced",
        when={"workload": "v4l2-userptr"},
        until=(6, 2),
        calls=(_FORCED,),
        proof=(_FORCED,),
        source=_FORCE,
    ),
    Conformance(
        name="v4l2",
        when={"workload": "v4l2-userptr"},
        since=(6, 2),
        calls=(_WRITE,),
        proof=(_WRITE,),
        source=_FRAMES,
    ),
)
