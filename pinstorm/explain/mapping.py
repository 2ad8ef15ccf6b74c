"""What is wrong with the mapping or its pages: check_vma_flags() of mm/gup.c and what follows it.

Where the process's own mappings were looked at, they decide. Where they were not, the specs of the
case's memory say what it is, and the finding is less sure.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pinstorm.evidence import Piece
from pinstorm.explain.causes import Cause
from pinstorm.explain.check import Hit, Stage, guess, hit, size
from pinstorm.explain.finding import Confidence
from pinstorm.explain.view import (
    ADDRESS_SPACE_END,
    View,
    is_dirty_tracked,
    is_fsdax,
    is_gap,
    is_io,
    is_secret,
)

_FAULT: Final = "EFAULT"


def bad_address(view: View) -> list[Hit]:
    """A range that wraps, is empty, or lies where no process has memory."""
    address, asked = view.address, view.size_bytes
    if not view.walks_pages or asked is None:
        return []
    stage, errnos = Stage.ARGUMENTS, {"EINVAL", "EOVERFLOW", _FAULT}
    if asked == 0:
        told = f"{view.failure.call} was asked for 0 bytes"
    elif address is not None and address + asked > 1 << 64:
        told = f"{address:#x} plus {size(asked)} wraps"
    elif address is not None and address + asked > ADDRESS_SPACE_END and _nothing_there(view):
        told = f"{address:#x} plus {size(asked)} ends behind the address space"
        stage, errnos = Stage.MAPPING, set(_errnos(view, _FAULT, False))
    elif address is None and view.memory is not None and view.memory.name == "beyond":
        told = f"{view.memory.name} is {view.memory.summary}"
        return [hit(Cause.BAD_ADDRESS, "likely", Stage.MAPPING, _errnos(view, _FAULT, False), told)]
    else:
        return []
    return [hit(Cause.BAD_ADDRESS, "certain", stage, errnos, told)]


def _nothing_there(view: View) -> bool:
    return all(is_gap(piece) for piece in view.pieces)


def longterm_on_dax(view: View) -> list[Hit]:
    if not view.longterm:
        return []
    return _mapping_finding(
        view,
        Cause.LONGTERM_ON_DAX,
        is_fsdax,
        said=view.backing == "fsdax",
        own="EOPNOTSUPP",
        words="lies on a DAX file system, and the pin is long-term",
        guessed=("EOPNOTSUPP",),
        # GUP-fast takes the copied pages of a private mapping: the first bad one comes later
        starts_well=view.mechanism is not None and view.mechanism.short_errno == _FAULT,
    )


def longterm_on_file(view: View) -> list[Hit]:
    """From v6.5 on EFAULT; before it, only io_uring looked: EOPNOTSUPP."""
    if not view.longterm or view.writes is False:
        return []
    late = view.since(6, 5)
    uring = view.mechanism is not None and view.mechanism.name == "io_uring buffer"
    if late is False and not uring:
        return []
    own = "EOPNOTSUPP" if late is False else _FAULT
    words = "is a shared file with dirty tracking, and the pin is long-term and writes"
    if late is False:
        words = "is a file, and io_uring before 6.5 registers none but shmem and hugetlbfs"
    return _mapping_finding(
        view,
        Cause.LONGTERM_ON_FILE,
        is_dirty_tracked,
        said=bool(view.facts.get("dirty_tracked")),
        own=own,
        words=words,
        guessed=(own,),
        # io_pin_pages() up to v6.4 looks at the files when it has pinned all pages
        stage=Stage.PAGES if late is False else Stage.MAPPING,
    )


def secret_memory(view: View) -> list[Hit]:
    if not view.walks_pages or view.on_demand:
        return []
    return _mapping_finding(
        view,
        Cause.SECRET_MEMORY,
        is_secret,
        said=view.backing == "secretmem",
        own=_FAULT,
        words="is secret memory, which is in no page table of the kernel's",
        guessed=(_FAULT,),
    )


def io_mapping(view: View) -> list[Hit]:
    if not view.walks_pages:
        return []
    flagged: Callable[[Piece], bool] = is_io
    vfio = view.mechanism is not None and view.mechanism.name == "vfio mapping"
    if vfio:

        def flagged(piece: Piece) -> bool:  # follow_fault_pfn() maps VM_PFNMAP
            return "io" in piece.flags and "pf" not in piece.flags

    return _mapping_finding(
        view,
        Cause.IO_MAPPING,
        flagged,
        said=view.backing == "io" and not vfio,
        own=_FAULT,
        words="is device memory (VM_IO or VM_PFNMAP)",
        guessed=(_FAULT,),
    )


def protection(view: View) -> list[Hit]:
    """The permission that GUP, or the device's fault, asks for."""
    if not view.walks_pages:
        return []
    wanted = "w" if view.writes else "r"

    def lacks(piece: Piece) -> bool:
        permissions = piece.permissions
        if permissions is None:
            return False
        if view.forced:
            return permissions.endswith("s") and "w" not in permissions
        return wanted not in permissions

    prot = str(view.facts.get("prot", "rw"))
    lacking = {"none": True, "r": bool(view.writes)}.get(prot, False) and not view.forced
    word = "written" if view.writes else "read"
    return _mapping_finding(
        view,
        Cause.PROTECTION,
        lacks,
        said=lacking,
        own=_FAULT,
        words=f"may not be {word}, and {view.failure.call} asks for that",
        guessed=(_FAULT,),
        asked_unknown=view.writes is None,
    )


def not_mapped(view: View) -> list[Hit]:
    """A gap, or what lies behind the end of the file."""
    mechanism = view.mechanism
    udmabuf = mechanism is not None and mechanism.name == "udmabuf"
    if (not view.walks_pages and not udmabuf) or bad_address(view):
        return []
    extent = str(view.facts.get("extent", "whole"))
    said = extent == "past-eof" if udmabuf else extent != "whole"
    words = {
        "past-eof": "lies behind the end of its file",
        "hole": "has a gap",
        "unmapped": "is not mapped",
    }.get(extent, "is not mapped")

    def missing(piece: Piece) -> bool:
        return piece.past_eof_bytes > 0 or (is_gap(piece) and not udmabuf)

    return _mapping_finding(
        view,
        Cause.NOT_MAPPED,
        missing,
        said=said,
        own="EINVAL" if udmabuf else _FAULT,
        words=words,
        guessed=() if udmabuf else (_FAULT, "short"),
        starts_well=not view.sees_mapping and not view.facts.get("starts_bad"),
    )


def _mapping_finding(
    view: View,
    cause: Cause,
    is_bad: Callable[[Piece], bool],
    *,
    said: bool,
    own: str,
    words: str,
    guessed: tuple[str, ...],
    starts_well: bool = False,
    asked_unknown: bool = False,
    stage: Stage = Stage.MAPPING,
) -> list[Hit]:
    """By the pieces, else by what the specs say, else a guess of somebody else's program.

    ``own``: the errno of a bad page that comes first. ``starts_well``: good pages may come before
    it, though the pieces do not show them. ``asked_unknown``: the access asked for is not known.
    """
    if view.sees_mapping:
        bad = [piece for piece in view.pieces if is_bad(piece)]
        if not bad:
            return _of_unknown_range(view, cause, guessed)
        sure: Confidence = "certain" if view.range_known and not asked_unknown else "possible"
        first = bad[0] is view.pieces[0] and _begins_at(bad[0]) == bad[0].start
        told = [_piece_words(piece) for piece in bad[:3]]
        if len(bad) > 3:
            told.append(f"and {len(bad) - 3} more such pieces of the range")
        told.append(f"this {words}")
        one = hit(cause, sure, stage, _errnos(view, own, starts_well or not first), *told)
        return [replace(one, at=_begins_at(bad[0]))]
    if view.memory is not None:
        if not said:
            return []
        told_of = f"{view.memory.name} ({view.memory.summary}): it {words}"
        errnos = _errnos(view, own, starts_well)
        return [hit(cause, "likely", stage, errnos, told_of)]
    found = guess(view, cause, Stage.MAPPING, *guessed, *_short_guess(view, cause))
    return [found] if found else []


def _begins_at(piece: Piece) -> int:
    """The first bad address of it."""
    return piece.end - piece.past_eof_bytes if piece.past_eof_bytes else piece.start


def _of_unknown_range(view: View, cause: Cause, guessed: tuple[str, ...]) -> list[Hit]:
    """Of a whole process only suspicious mappings are shown: no gap, and no file behind its end."""
    if view.range_known or cause not in (Cause.NOT_MAPPED, Cause.PROTECTION):
        return []
    found = guess(view, cause, Stage.MAPPING, *guessed, *_short_guess(view, cause))
    return [found] if found else []


def _short_guess(view: View, cause: Cause) -> tuple[str, ...]:
    """What the caller makes of a range of which only the beginning could be had."""
    short = view.mechanism.short_errno if view.mechanism is not None else None
    return (short,) if short is not None and cause == Cause.NOT_MAPPED else ()


def _errnos(view: View, own: str, starts_well: bool) -> frozenset[str]:
    """The errno of the bad page itself, and what the caller makes of a range that begins well."""
    mechanism = view.mechanism
    assert mechanism is not None
    if mechanism.name == "gup_test":
        return frozenset({"short"})
    errnos = {own}
    if starts_well:
        errnos |= {mechanism.short_errno} if mechanism.short_errno else set()
        errnos |= {"short"} if mechanism.pins in ("short", "reference") else set()
    return frozenset(errnos)


def _piece_words(piece: Piece) -> str:
    where = f"{piece.start:#x}-{piece.end:#x} ({size(piece.end - piece.start)})"
    if piece.permissions is None:
        return f"{where} is not mapped"
    words = [piece.permissions, piece.path or "anonymous"]
    if piece.fs_type:
        words.append(f"on {piece.fs_type}" + (" with dax" if piece.dax else ""))
    if piece.past_eof_bytes:
        words.append(f"of which {size(piece.past_eof_bytes)} lie behind the end of the file")
    flags = [flag for flag in piece.flags if flag in ("io", "pf")]
    if flags:
        words.append(f"VmFlags {' '.join(flags)}")
    return f"{where} is {' '.join(words)}"


def migration(view: View) -> list[Hit]:
    """Pages that lie in CMA or ZONE_MOVABLE, and did not get out."""
    if not view.longterm and not (view.mechanism is not None and view.mechanism.name == "udmabuf"):
        return []
    assert view.mechanism is not None
    errnos = {"short"} if view.mechanism.name == "gup_test" else {"ENOMEM"}
    migrate = view.record.get("migrate") or {}
    failed, noise = migrate.get("fail"), int(migrate.get("noise") or 0)
    movable = _movable_pages(view)
    held = bool(view.facts.get("foreign_reference"))
    told = []
    if movable:
        told.append(f"{movable} pages of the range lay in CMA or ZONE_MOVABLE")
    if failed is not None and failed > noise:
        told.append(f"pgmigrate_fail rose by {failed} in the call")
    if held:
        told.append("somebody else holds a reference on the pages, through a pipe")
    if failed is not None and failed > noise and (movable or held):
        sure: Confidence = "certain"
    elif (failed is not None and failed > noise) or held:
        if movable == 0:
            return []
        sure = "likely"
    elif movable and failed is None:
        sure = "possible"
    elif view.case is None:
        found = guess(view, Cause.MIGRATION_FAILED, Stage.PAGES, *sorted(errnos))
        return [found] if found else []
    else:
        return []
    return [hit(Cause.MIGRATION_FAILED, sure, Stage.PAGES, errnos, *told)]


def _movable_pages(view: View) -> int | None:
    """None where it is not known where the pages lay.

    CMA areas never lie in ZONE_MOVABLE: cma_activate_area() wants one ordinary zone.
    """
    placement = view.record.get("placement")
    if not placement:
        return None
    in_zone = (placement.get("zones") or {}).get("Movable") or 0
    cma_pages = placement.get("cma_pages")
    if cma_pages is None:
        return int(in_zone) or None
    return int(cma_pages) + int(in_zone)
