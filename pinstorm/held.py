"""What one process holds, kind by kind, each from the kernel interface that tells it.

pinstorm.census walks over the processes. A new kind is a function here that gives its ``Held``.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pinstorm import pin_accounts
from pinstorm.evidence_parts import readable
from pinstorm.pin_accounts import NOTHING, Pages
from telemetry import (
    dmabuf_fdinfo,
    io_uring_fdinfo,
    kpageflags,
    network_namespace,
    pagemap,
    process_fds,
    smaps,
    xdp_diag,
)
from telemetry.io_uring_fdinfo import Ring
from telemetry.process_status import Charge
from telemetry.rdma_resource import MemoryRegion
from telemetry.xdp_diag import Umem, XdpSocket
from workloads import libc
from workloads.spec import PAGE_BYTES, CallFailed

Kind = Literal[
    "rdma-mr",
    "io-uring",
    "xdp-umem",
    "vfio",
    "iommufd",
    "vhost-vdpa",
    "udmabuf",
    "vmpin",
    "mlock",
]

# Above 2 GiB it is not looked in what folios registered buffers lie: it takes 0.2 s a GiB.
_FOLIO_PAGES = 1 << 19

_VFIO_CONTAINER = "/dev/vfio/vfio"
_IOMMUFD = "/dev/iommu"
_VHOST_VDPA = "/dev/vhost-vdpa-"


@dataclass(frozen=True, slots=True)
class Held:
    """One kind of thing that a process holds. ``size_bytes``: None where the kernel does not say.

    ``pages``: pins that it accounts for, by the rules of that kind; None where that is not known.
    ``most_pages``: they can be that many (equal to ``pages`` when these are exact); None: no bound
    is known. ``detail``: which, and what makes a figure uncertain.
    """

    kind: Kind
    count: int
    size_bytes: int | None
    pages: int | None
    detail: str = ""
    most_pages: int | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something. Bytes. ``uid``: the real one, to which the kernel charges.

    ``pid`` is None of what lives on without a process that could be named: its process is hidden,
    or the descriptor is in flight.
    """

    pid: int | None
    name: str
    uid: int | None
    vmpin_bytes: int | None
    vmlck_bytes: int | None
    held: tuple[Held, ...] = ()


@dataclass(slots=True)
class Process:
    """``fds`` is None where this user may not look."""

    pid: int
    charge: Charge
    fds: Mapping[int, str] | None
    regions: list[MemoryRegion] = field(default_factory=list)

    def with_target(self, prefix: str) -> list[int]:
        return [fd for fd, target in (self.fds or {}).items() if target.startswith(prefix)]


@dataclass(slots=True)
class Seen:
    """What is found once for the machine, and whose it was when it was met first.

    ``sockets``: of the network namespaces looked into so far, by inode; None where the kernel has
    no xsk_diag. ``thorough``: as for pinstorm.census.holders().
    """

    sockets: dict[int, XdpSocket] | None
    thorough: bool
    ring_owner: dict[int, int] = field(default_factory=dict)
    umem_owner: dict[int, int] = field(default_factory=dict)
    dmabuf_owner: dict[int, int] = field(default_factory=dict)
    networks: set[str] = field(default_factory=set)
    busy_rings: int = 0
    unsized_sockets: int = 0


def holder_of(process: Process, seen: Seen) -> Holder | None:
    """None of a process that holds nothing."""
    charge = process.charge
    rings = _Rings.of(process, seen)
    vmpin = _pages(charge.vmpin_bytes)
    charged = pin_accounts.divide(vmpin, [r.size_bytes for r in process.regions], rings.pages)
    held = [
        *_regions(process.regions, charged.regions),
        *rings.held(),
        *_umems(process, seen),
        *_dma_bufs(process, seen),
        *_locked(process),
        *_rest(process, charged.rest),
    ]
    if not held:
        return None
    return Holder(
        process.pid,
        readable(charge.name),
        charge.uid,
        charge.vmpin_bytes,
        charge.vmlck_bytes,
        tuple(held),
    )


def _held(kind: Kind, count: int, size_bytes: int | None, pages: Pages, detail: str = "") -> Held:
    words = "; ".join(word for word in (detail, pages.why) if word)
    return Held(kind, count, size_bytes, pages.known, words, pages.most)


def _regions(regions: Sequence[MemoryRegion], pages: Pages) -> Iterator[Held]:
    if not regions:
        return
    sizes = [region.size_bytes for region in regions]
    whole = sum(size is not None and size >= pin_accounts.WHOLE_ADDRESS_SPACE for size in sizes)
    told = [size for size in sizes if size and size < pin_accounts.WHOLE_ADDRESS_SPACE]
    devices = ", ".join(sorted({region.device for region in regions}))
    implicit = f"; {whole} over the whole address space, on demand" if whole else ""
    size = None if None in sizes else sum(told)
    yield _held("rdma-mr", len(regions), size, pages, devices + implicit)


@dataclass(frozen=True, slots=True)
class _Rings:
    """The rings of a process. ``shared``: those that another process was met with first."""

    own: Sequence[Ring]
    shared: Mapping[int, int]
    pages: Pages

    @classmethod
    def of(cls, process: Process, seen: Seen) -> "_Rings":
        found: dict[int, Ring] = {}
        for fd in process.with_target(process_fds.IO_URING):
            try:
                ring = io_uring_fdinfo.read(process.pid, fd)
            except OSError:
                continue
            # Without an inode number (before 5.19) two descriptors of a ring count as two.
            found[ring.inode if ring.inode is not None else -fd - 1] = ring
        shared = {}
        for inode in list(found):
            first = seen.ring_owner.setdefault(inode, process.pid) if inode >= 0 else process.pid
            if first != process.pid:
                shared[inode] = first
                del found[inode]
        own = [ring for ring in found.values() if ring.buffers != ()]
        seen.busy_rings += sum(ring.buffers is None for ring in own)
        ranges = [
            None
            if ring.buffers is None
            else [(buffer.address, buffer.size_bytes) for buffer in ring.buffers]
            for ring in own
        ]
        flat = [pair for ring_ranges in ranges for pair in ring_ranges or ()]
        base = _in_base_pages(process.pid, flat) if seen.thorough and flat else None
        return cls(own, shared, pin_accounts.of_rings(ranges, base))

    def held(self) -> Iterator[Held]:
        if self.own:
            buffers = [ring.buffers for ring in self.own]
            told = [buffer for one in buffers for buffer in one or ()]
            size = None if None in buffers else sum(buffer.size_bytes for buffer in told)
            count = "a ring" if len(self.own) == 1 else f"{len(self.own)} rings"
            yield _held("io-uring", len(told) or len(self.own), size, self.pages, f"in {count}")
        for first in sorted(set(self.shared.values())):
            rings = sum(pid == first for pid in self.shared.values())
            yield _held("io-uring", rings, None, NOTHING, f"shared with process {first}: see there")


def _in_base_pages(pid: int, ranges: Iterable[tuple[int, int]]) -> bool | None:
    """Whether all the memory lies outside large folios, as it is mapped now; None: not known.

    What was unmapped or replaced after the registration is not what is pinned: absent pages make
    it unknown, replaced ones cannot be noticed.
    """
    pages = 0
    frames: list[int] = []
    try:
        for address, size_bytes in ranges:
            pages += pin_accounts.pages_of(address, size_bytes)
            if pages > _FOLIO_PAGES:
                return None
            found = pagemap.frames(address, size_bytes, pid)
            if None in found:
                return None
            frames += [pfn for pfn in found if pfn is not None]
    except OSError:
        return None
    orders = kpageflags.folio_orders(sorted(frames))
    if orders is None or orders.without_page:
        return None
    return set(orders.pages) <= {0}


def _umems(process: Process, seen: Seen) -> Iterator[Held]:
    own: dict[int, Umem] = {}
    shared: set[int] = set()
    unsized = 0
    for fd, target in (process.fds or {}).items():
        inode = process_fds.socket_inode(target)
        if inode is None:
            continue
        known = (seen.sockets or {}).get(inode & 0xFFFFFFFF)
        if known is None and process_fds.socket_protocol(process.pid, fd) == process_fds.XDP:
            known = _socket_elsewhere(process.pid, inode, seen)
            unsized += known is None
        if known is None:
            continue
        if known.umem is not None:
            first = seen.umem_owner.setdefault(known.umem.id, process.pid)
            if first == process.pid:
                own[known.umem.id] = known.umem
            else:
                shared.add(first)
    if own:
        size = sum(umem.size_bytes for umem in own.values())
        pages = sum(umem.pages for umem in own.values())
        yield _held("xdp-umem", len(own), size, pin_accounts.exactly(pages))
    for first in sorted(shared):
        yield _held("xdp-umem", 1, None, NOTHING, f"shared with process {first}: see there")
    if unsized:
        seen.unsized_sockets += unsized
        why = "AF_XDP sockets whose packet memory is not told"
        yield _held("xdp-umem", unsized, None, Pages(None, None, why))


def _socket_elsewhere(pid: int, inode: int, seen: Seen) -> XdpSocket | None:
    """A socket of another network namespace than ours, where we may go there and ask."""
    if seen.sockets is None or not seen.thorough:
        return None
    with contextlib.suppress(OSError):
        network = network_namespace.name(pid)
        if network not in seen.networks:
            seen.networks.add(network)
            seen.sockets.update({found.inode: found for found in _sockets_of_network(pid)})
    return seen.sockets.get(inode & 0xFFFFFFFF)


def _sockets_of_network(pid: int) -> list[XdpSocket]:
    """Asked by a thread that goes there and ends: the namespace is a thread's own."""
    found: list[XdpSocket] = []

    def ask() -> None:
        with contextlib.suppress(OSError, CallFailed):
            fd = network_namespace.open_of(pid)
            try:
                libc.enter_network_namespace(fd)
            finally:
                os.close(fd)
            found.extend(xdp_diag.read())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found


def _dma_bufs(process: Process, seen: Seen) -> Iterator[Held]:
    own: dict[int, int] = {}
    shared: set[int] = set()
    for fd in process.with_target(dmabuf_fdinfo.LINK):
        try:
            found = dmabuf_fdinfo.read(process.pid, fd)
        except OSError:
            continue
        if found is None or found.exporter != dmabuf_fdinfo.UDMABUF:
            continue
        inode = -fd - 1 if found.inode is None else found.inode
        first = seen.dmabuf_owner.setdefault(inode, process.pid) if inode >= 0 else process.pid
        if first == process.pid:
            own[inode] = found.size_bytes
        else:
            shared.add(first)
    if own:
        size = sum(own.values())
        why = "one pin per folio; before Linux 6.11 references, and no pin"
        yield _held("udmabuf", len(own), size, Pages(None, size // PAGE_BYTES, why))
    for first in sorted(shared):
        yield _held("udmabuf", 1, None, NOTHING, f"shared with process {first}: see there")


def _locked(process: Process) -> Iterator[Held]:
    """VmLck: mlock, which pins nothing, and vfio type1, which does."""
    vmlck = process.charge.vmlck_bytes
    containers = len(process.with_target(_VFIO_CONTAINER))
    mlocked = vmlck
    if containers:
        mlocked = _mlocked_bytes(process.pid) if vmlck else 0
        pages = pin_accounts.of_vfio(_pages(vmlck), _pages(mlocked))
        size = None if pages.known is None else pages.known * PAGE_BYTES
        yield _held("vfio", containers, size, pages, "type1 containers")
    if mlocked:
        yield Held("mlock", 1, mlocked, 0, "locked, not pinned", 0)


def _mlocked_bytes(pid: int) -> int | None:
    """What mm->locked_vm has of mappings that mlock locked: all their addresses."""
    try:
        return sum(vma.end - vma.start for vma in smaps.read(pid) if smaps.LOCKED in vma.flags)
    except OSError:
        return None


def _rest(process: Process, rest: Pages) -> Iterator[Held]:
    """What VmPin has beside MRs and rings: whose it is follows from what the process has open."""
    iommufds = len(process.with_target(_IOMMUFD))
    vdpas = len(process.with_target(_VHOST_VDPA))
    if iommufds or vdpas:
        both = "iommufd and vhost-vdpa together" if iommufds and vdpas else ""
        kind: Kind = "iommufd" if iommufds else "vhost-vdpa"
        size = rest.known * PAGE_BYTES if rest.known == rest.most and rest.known else None
        yield _held(kind, iommufds or vdpas, size, rest, both)
        return
    if not rest.known:
        return
    size = rest.known * PAGE_BYTES if rest.known == rest.most else None
    if perf := len(process.with_target(process_fds.PERF_EVENT)):
        # perf_mmap() charges buffers over its own limit to mm->pinned_vm, and pins nothing.
        why = f"{perf} perf events, whose buffers VmPin has in it without a pin"
        yield _held("vmpin", 1, size, Pages(None, rest.most, why))
    elif process.with_target(_VFIO_CONTAINER):
        # do_update_pinned() of iommufd, which can stand behind the container's node
        why = "of a container on iommufd, which charges VmLck and VmPin for the same pages"
        yield _held("vmpin", 1, size, Pages(None, rest.most, why))
    elif process.regions:
        yield _held("vmpin", 1, size, rest, "queues of the device")
    elif process.fds is None:
        # A ring is charged for whole folios, and keeps one pin of each.
        why = "charged to the process, which could not be looked into"
        yield _held("vmpin", 1, size, Pages(None, rest.most, why))
    else:
        yield _held("vmpin", 1, size, rest, "charged to the process; nothing it has open tells why")


def regions_of_nobody(uid: int | None, regions: list[MemoryRegion]) -> Holder:
    pages = pin_accounts.divide(None, [region.size_bytes for region in regions], NOTHING).regions
    why = "the thread that registered them has ended, or is in another pid namespace"
    unknown = Pages(None, pages.most, why)
    return Holder(None, "?", uid, None, None, tuple(_regions(regions, unknown)))


def umems_of_nobody(seen: Seen, uid: int | None) -> Iterator[Holder]:
    """Packet memory of sockets that no process was seen to have open."""
    for found in (seen.sockets or {}).values():
        umem = found.umem
        if umem is None or umem.id in seen.umem_owner or uid not in (None, found.uid):
            continue
        seen.umem_owner[umem.id] = 0
        pages = pin_accounts.exactly(umem.pages)
        held = _held("xdp-umem", 1, umem.size_bytes, pages, "its process could not be seen")
        yield Holder(None, "?", found.uid, None, None, (held,))


def _pages(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else size_bytes // PAGE_BYTES
