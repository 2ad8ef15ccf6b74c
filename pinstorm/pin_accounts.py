"""What each kind of holder accounts for of the pins that the kernel counts. Pure functions.

The kernel tells lengths (of memory regions, of registered buffers) and charges (VmPin of a
process), seldom pins. VmPin is the sum over everything that is charged to the process: MRs, device
queues, iommufd, vhost-vdpa, and the buffers of rings, by whole folios, where the kernel and the
privileges with which the ring was made have it so. Here the sum is divided, and a part that does
not follow stays a range.
All figures in pages of PAGE_SIZE.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workloads.spec import PAGE_BYTES

# A length that no memory has: an on-demand MR over the whole address space (implicit ODP).
WHOLE_ADDRESS_SPACE = 1 << 56


@dataclass(frozen=True, slots=True)
class Pages:
    """``known``: pins accounted for, None where not even a least number is known but 0.
    ``most``: they can be that many; None: nothing bounds them. ``why``: what makes it a range."""

    known: int | None
    most: int | None
    why: str = ""

    @property
    def least(self) -> int:
        return self.known or 0


NOTHING = Pages(0, 0)


def exactly(count: int, why: str = "") -> Pages:
    return Pages(count, count, why)


def pages_of(address: int, size_bytes: int) -> int:
    """The pages that a range touches."""
    if not size_bytes:
        return 0
    return (address + size_bytes - 1) // PAGE_BYTES - address // PAGE_BYTES + 1


def of_rings(rings: Sequence[Sequence[tuple[int, int]] | None], base_pages: bool | None) -> Pages:
    """Of a process's rings, each a list of its buffers' (address, bytes), or None: not told.

    ``base_pages``: whether all lie in pages of their own, outside any larger folio; None: unknown.
    """
    told = [buffers for buffers in rings if buffers is not None]
    spans = [pages_of(*buffer) for buffers in told for buffer in buffers]
    most = sum(spans)
    if len(told) < len(rings):
        return Pages(None, None, "a ring was busy and did not tell its buffers")
    if not most:
        return NOTHING
    if base_pages is None:
        return Pages(None, most, "one pin per page or per folio: the folios could not be seen")
    if not base_pages:
        return Pages(None, most, "in large folios, of which a ring keeps one pin each, or per page")
    # IORING_REGISTER_CLONE_BUFFERS (since v6.12) shares the pins of another ring's buffers.
    at_once: Counter[tuple[int, int]] = Counter()
    for buffers in told:
        at_once |= Counter(buffers)  # the most that any one ring has of it
    least = sum(pages_of(*buffer) * count for buffer, count in at_once.items())
    if least < most:
        return Pages(least, most, "rings with the same buffers can share their pins")
    return exactly(most)


@dataclass(frozen=True, slots=True)
class Charged:
    """VmPin of a process divided: its MRs, and what is left of it."""

    regions: Pages
    rest: Pages


def divide(vmpin: int | None, regions: Sequence[int | None], rings: Pages) -> Charged:
    """``regions``: bytes of each MR, None where not told. ``rings``: what of_rings() gave.

    An MR pins every page it touches; its address is not told, so it may touch one page more than
    its length has. One on demand, or of device memory, pins none and is listed all the same.
    """
    lengths = [length for length in regions if length and length < WHOLE_ADDRESS_SPACE]
    low = sum(-(-length // PAGE_BYTES) for length in lengths)
    high = low + len(lengths)
    if vmpin is None:
        why = "VmPin is not told"
        return Charged(Pages(None, high, why) if regions else NOTHING, Pages(None, None, why))
    if len(lengths) < len(regions):
        high = max(high, vmpin)
    if rings.known == rings.most:
        return _divide_exactly(vmpin, low, high, len(regions), rings.least)
    if not regions:
        # The rings may be charged for more than they pin, or not at all.
        return Charged(NOTHING, Pages(None, vmpin, "part of it can be the rings'"))
    if vmpin < low:
        return Charged(Pages(None, vmpin, _LESS), NOTHING)
    most = min(high, vmpin)
    return Charged(
        Pages(low, most, "" if most == low else "VmPin has the rings' buffers in it, too"),
        Pages(None, vmpin - low, "part of it can be the rings'"),
    )


_LESS = "VmPin is less than their length: some are on demand, or of device memory"


def _divide_exactly(vmpin: int, low: int, high: int, count: int, rings: int) -> Charged:
    """Where it is known how much the rings are charged for, if they are charged at all."""
    if not count:
        # Uncharged rings leave all of VmPin to somebody else; charged ones are in it.
        left = vmpin - rings if vmpin >= rings else vmpin
        return Charged(NOTHING, exactly(left))
    for charge in dict.fromkeys((vmpin - rings, vmpin)):
        if low <= charge <= high:
            return Charged(exactly(charge), NOTHING)
    if not rings:
        if vmpin < low:
            return Charged(exactly(vmpin, _LESS), NOTHING)
        return Charged(Pages(low, high, _MORE), Pages(vmpin - high, vmpin - low, _MORE))
    if vmpin < low:
        return Charged(Pages(None, vmpin, _LESS), NOTHING)
    left = vmpin - low
    return Charged(Pages(low, high, _MORE), Pages(max(0, left - rings), left, _MORE))


_MORE = "VmPin is more than their length: each may touch a page more, and queues are in it, too"


def of_vfio(vmlck: int | None, mlocked: int | None) -> Pages:
    """Type1 containers: what is charged to mm->locked_vm beside the mappings that mlock locked."""
    if vmlck is None:
        return Pages(None, None, "VmLck is not told")
    if mlocked is None:
        return Pages(None, vmlck, "the process's own mlock could not be told from it")
    return exactly(max(0, vmlck - mlocked))
