"""What holders account for, what stays a range, and how it is told; on made-up processes."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import pytest

from pinstorm import census, held, pin_accounts
from pinstorm.census import Census, Held, Holder
from pinstorm.errors import UsageError
from pinstorm.pin_accounts import NOTHING, Charged, Pages, exactly
from pinstorm.report import pins_listing
from telemetry import (
    dmabuf_fdinfo,
    io_uring_fdinfo,
    network_namespace,
    process_fds,
    process_status,
    rdma,
    rdma_resource,
    smaps,
    xdp_diag,
)
from telemetry.dmabuf_fdinfo import DmaBuf
from telemetry.io_uring_fdinfo import Buffer, Ring
from telemetry.process_status import Charge
from telemetry.rdma_resource import MemoryRegion
from telemetry.xdp_diag import Umem, XdpSocket

PAGE = 4096
MIB = 1 << 20


@pytest.mark.parametrize(
    ("address", "size_bytes", "pages"),
    [(0x1000, 0, 0), (0x1000, 1, 1), (0x1000, PAGE, 1), (0x1001, PAGE, 2), (0x1FFF, 2, 2)],
)
def test_pages_that_a_range_touches(address: int, size_bytes: int, pages: int) -> None:
    assert pin_accounts.pages_of(address, size_bytes) == pages


def figures(pages: Pages) -> tuple[int | None, int | None]:
    return pages.known, pages.most


@pytest.mark.parametrize(
    ("rings", "base_pages", "expected"),
    [
        ([], None, (0, 0)),
        ([[(0, 4 * PAGE)]], True, (4, 4)),
        # one pin per page, or per folio: not known
        ([[(0, 4 * PAGE)]], None, (None, 4)),
        ([[(0, 4 * PAGE)]], False, (None, 4)),
        # a ring that did not tell has no bound
        ([[(0, 4 * PAGE)], None], True, (None, None)),
        # twice in one ring counts twice, in two rings it may be a clone
        ([[(0, 4 * PAGE), (0, 4 * PAGE)]], True, (8, 8)),
        ([[(0, 4 * PAGE)], [(0, 4 * PAGE)]], True, (4, 8)),
        ([[(0, 4 * PAGE)] * 2, [(0, 4 * PAGE)] * 2, [(0, PAGE)]], True, (9, 17)),
    ],
)
def test_pins_of_rings(
    rings: list[list[tuple[int, int]] | None],
    base_pages: bool | None,
    expected: tuple[int | None, int | None],
) -> None:
    assert figures(pin_accounts.of_rings(rings, base_pages)) == expected


RING = exactly(16)
UNKNOWN_RING = Pages(None, 16, "folios")


@pytest.mark.parametrize(
    ("vmpin", "regions", "rings", "mr", "rest"),
    [
        # regions alone: VmPin is their pins, an unaligned one has a page more
        (64, [64 * PAGE], NOTHING, (64, 64), (0, 0)),
        (65, [64 * PAGE], NOTHING, (65, 65), (0, 0)),
        (64, [63 * PAGE + 1], NOTHING, (64, 64), (0, 0)),
        # listed, and not pinned: on demand
        (0, [64 * PAGE], NOTHING, (0, 0), (0, 0)),
        (64, [64 * PAGE, 32 * PAGE], NOTHING, (64, 64), (0, 0)),
        # more than the regions can be: the queues of the device
        (80, [64 * PAGE], NOTHING, (64, 65), (15, 16)),
        # nothing but VmPin
        (7, [], NOTHING, (0, 0), (7, 7)),
        # rings that are charged, and rings that are not (7.2, made with CAP_IPC_LOCK)
        (80, [64 * PAGE], RING, (64, 64), (0, 0)),
        (64, [64 * PAGE], RING, (64, 64), (0, 0)),
        (16, [], RING, (0, 0), (0, 0)),
        (0, [], RING, (0, 0), (0, 0)),
        (20, [], RING, (0, 0), (4, 4)),
        (70, [64 * PAGE], RING, (64, 65), (0, 6)),
        (20, [64 * PAGE], RING, (None, 20), (0, 0)),
        # rings whose charge is not known: VmPin is whole folios
        (512, [], UNKNOWN_RING, (0, 0), (None, 512)),
        (64, [64 * PAGE], UNKNOWN_RING, (64, 64), (None, 0)),
        (576, [64 * PAGE], UNKNOWN_RING, (64, 65), (None, 512)),
        (3, [64 * PAGE], UNKNOWN_RING, (None, 3), (0, 0)),
        # a length that was not told, and one over all addresses
        (9, [None], NOTHING, (9, 9), (0, 0)),
        (0, [(1 << 64) - 1], NOTHING, (0, 0), (0, 0)),
        # no VmPin
        (None, [64 * PAGE], NOTHING, (None, 65), (None, None)),
    ],
)
def test_vmpin_is_divided(
    vmpin: int | None,
    regions: list[int | None],
    rings: Pages,
    mr: tuple[int | None, int | None],
    rest: tuple[int | None, int | None],
) -> None:
    charged: Charged = pin_accounts.divide(vmpin, regions, rings)
    assert (figures(charged.regions), figures(charged.rest)) == (mr, rest)


def test_vfio_is_what_mlock_leaves_of_vmlck() -> None:
    assert figures(pin_accounts.of_vfio(4096, 0)) == (4096, 4096)
    assert figures(pin_accounts.of_vfio(4096, 96)) == (4000, 4000)
    assert figures(pin_accounts.of_vfio(4096, None)) == (None, 4096)
    assert figures(pin_accounts.of_vfio(None, 0)) == (None, None)


class Machine:
    """A machine of made-up processes, in place of the readers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
        self.charges: dict[int, Charge] = {}
        self.fds: dict[int, dict[int, str] | None] = {}
        self.rings: dict[tuple[int, int], Ring] = {}
        self.sockets: list[XdpSocket] | None = []
        self.regions: list[MemoryRegion] | None = []
        monkeypatch.setattr(census.os, "listdir", lambda path: [*map(str, self.charges), "self"])
        monkeypatch.setattr(process_status, "read_charge", self.charges.get)
        monkeypatch.setattr(process_fds, "read", self.read_fds)
        monkeypatch.setattr(io_uring_fdinfo, "read", lambda pid, fd: self.rings[pid, fd])
        monkeypatch.setattr(xdp_diag, "read", self.read_sockets)
        monkeypatch.setattr(rdma, "INFINIBAND", tmp_path)
        monkeypatch.setattr(rdma, "device_of_node", {"/dev/infiniband/uverbs0": "rxe0"}.get)
        monkeypatch.setattr(rdma_resource, "read_regions", lambda: self.regions)

    def add(
        self, pid: int, vmpin: int = 0, uid: int = 0, fds: dict[int, str] | None = None
    ) -> None:
        self.charges[pid] = Charge(f"p{pid}", uid, vmpin * PAGE, 0)
        self.fds[pid] = fds

    def read_fds(self, pid: int) -> dict[int, str]:
        found = self.fds[pid]
        if found is None:
            raise PermissionError(13, "no")
        return found

    def read_sockets(self) -> list[XdpSocket]:
        if self.sockets is None:
            raise xdp_diag.NotOffered(2, "no")
        return self.sockets


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Machine:
    (tmp_path / "rxe0").mkdir()  # type: ignore[operator]
    return Machine(monkeypatch, tmp_path)


def kinds(holder: Holder) -> list[tuple[str, int | None]]:
    return [(held.kind, held.pages) for held in holder.held]


def test_a_process_that_holds_nothing_is_no_holder(machine: Machine) -> None:
    machine.add(5, fds={0: "/dev/null"})
    machine.rings[5, 3] = Ring(1, ())
    machine.fds[5] = {3: process_fds.IO_URING}
    assert census.holders() == ((), ())


def test_regions_go_to_their_process_by_the_thread_that_registered_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing gives the thread's id, and none once that thread has ended."""
    machine.add(5, vmpin=768, fds={3: "/dev/infiniband/uverbs0"})
    machine.regions = [
        MemoryRegion("rxe0", 5, MIB, "x"),
        MemoryRegion("rxe0", 77, MIB, "x"),
        MemoryRegion("rxe0", None, MIB, ""),
        MemoryRegion("rxe0", None, MIB, "[ib_core]"),
    ]
    thread = process_status.parse("Name:\tx\nTgid:\t5\nPid:\t77\n")
    monkeypatch.setattr(process_status, "read", {77: thread}.__getitem__)
    (holder,), hidden = census.holders()
    (held,) = holder.held
    assert (held.kind, held.count, held.size_bytes) == ("rdma-mr", 3, 3 * MIB)
    assert (held.pages, held.most_pages) == (768, 768)
    assert hidden == ()


def test_a_region_without_a_thread_is_nobodys_when_two_have_the_device_open(
    machine: Machine,
) -> None:
    for pid in (5, 6):
        machine.add(pid, fds={3: "/dev/infiniband/uverbs0"})
    machine.regions = [MemoryRegion("rxe0", None, MIB, "")]
    (holder,), _ = census.holders()
    assert (holder.pid, holder.held[0].pages, holder.held[0].most_pages) == (None, None, 257)


def test_a_region_without_a_thread_goes_where_vmpin_has_room_for_it(machine: Machine) -> None:
    for pid, vmpin in ((5, 256), (6, 256), (7, 0)):
        machine.add(pid, vmpin, fds={3: "/dev/infiniband/uverbs0"})
    machine.regions = [
        MemoryRegion("rxe0", None, MIB, ""),
        MemoryRegion("rxe0", 5, MIB, "x"),
    ]
    first, second = census.holders()[0]
    assert (first.pid, kinds(first)) == (5, [("rdma-mr", 256)])
    assert (second.pid, kinds(second)) == (6, [("rdma-mr", 256)])
    (_, (sentence,)) = census.holders(uid=0)
    assert sentence.startswith("1 memory region names no process")


def test_regions_that_cannot_be_listed_are_told(machine: Machine) -> None:
    machine.regions = None
    found, (sentence,) = census.holders()
    assert found == ()
    assert "apt-get install iproute2" in sentence


def test_a_ring_of_two_processes_counts_once(machine: Machine) -> None:
    for pid in (5, 6):
        machine.add(pid, fds={3: process_fds.IO_URING})
        machine.rings[pid, 3] = Ring(11, (Buffer(0x1000, MIB),))
    (first, second), _ = census.holders()
    assert first.held[0].size_bytes == MIB
    assert first.held[0].most_pages == 256
    assert (second.held[0].pages, second.held[0].most_pages) == (0, 0)
    assert "process 5" in second.held[0].detail


def test_vmpin_of_a_ring_is_not_counted_again(machine: Machine) -> None:
    machine.add(5, vmpin=512, fds={3: process_fds.IO_URING})
    machine.rings[5, 3] = Ring(11, (Buffer(0x1000, 65536),))
    (holder,), _ = census.holders()
    assert kinds(holder) == [("io-uring", None)]
    assert holder.held[0].most_pages == 16


def test_a_busy_ring_has_no_size(machine: Machine) -> None:
    machine.add(5, fds={3: process_fds.IO_URING})
    machine.rings[5, 3] = Ring(11, None)
    (holder,), (sentence,) = census.holders()
    assert (holder.held[0].size_bytes, holder.held[0].pages) == (None, None)
    assert "ask again" in sentence


def test_packet_memory_that_sockets_share_counts_once(machine: Machine) -> None:
    umem = Umem(1, MIB, 256, 4096, 2)
    machine.sockets = [XdpSocket(inode, 0, 0, umem) for inode in (7, 8)]
    machine.add(5, fds={3: "socket:[7]", 4: "socket:[8]", 5: f"socket:[{(1 << 32) + 7}]"})
    machine.add(6, fds={3: "socket:[7]"})
    (first, second), _ = census.holders()
    assert kinds(first) == [("xdp-umem", 256)]
    assert (first.held[0].count, first.held[0].size_bytes) == (1, MIB)
    assert kinds(second) == [("xdp-umem", 0)]


def test_packet_memory_without_a_process_is_told_with_its_user(machine: Machine) -> None:
    machine.sockets = [XdpSocket(7, 65534, 0, Umem(1, MIB, 256, 4096, 1))]
    (holder,), _ = census.holders()
    assert (holder.pid, holder.uid) == (None, 65534)
    assert kinds(holder) == [("xdp-umem", 256)]
    assert census.holders(uid=1) == ((), ())


def test_a_socket_that_the_kernel_does_not_size_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.sockets = None
    machine.add(5, fds={3: "socket:[7]", 4: "socket:[8]"})
    monkeypatch.setattr(process_fds, "socket_protocol", lambda pid, fd: {3: "XDP", 4: "TCP"}[fd])
    (holder,), (sentence,) = census.holders()
    (held,) = holder.held
    assert (held.kind, held.count, held.size_bytes, held.pages) == ("xdp-umem", 1, None, None)
    assert "xsk_diag" in sentence


def test_a_socket_of_another_network_is_asked_for_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per network, by whoever is thorough; and it says so where nobody may go there."""
    machine.add(5, fds={3: "socket:[7]", 4: "socket:[8]"})
    machine.add(6, fds={3: "socket:[9]"})
    monkeypatch.setattr(process_fds, "socket_protocol", lambda pid, fd: "XDP")
    monkeypatch.setattr(network_namespace, "name", lambda pid: "net:[2]")
    asked: list[int] = []

    def sockets_there(pid: int) -> list[XdpSocket]:
        asked.append(pid)
        return [XdpSocket(n, 0, 0, Umem(n, MIB, 256, 4096, 1)) for n in (7, 8, 9)]

    monkeypatch.setattr(held, "_sockets_of_network", sockets_there)
    found, hidden = census.holders(thorough=True)
    assert [kinds(holder) for holder in found] == [[("xdp-umem", 512)], [("xdp-umem", 256)]]
    assert (asked, hidden) == ([5], ())
    found, (sentence,) = census.holders()
    assert [kinds(holder) for holder in found] == [[("xdp-umem", None)], [("xdp-umem", None)]]
    assert sentence.endswith("another network namespace could not be sized: run as root")


def test_a_udmabuf_of_two_processes_counts_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in (5, 6):
        machine.add(pid, fds={3: "/dmabuf:", 4: "/dmabuf:of a driver", 5: "/dmabuf:"})
    made = {
        3: DmaBuf(11, MIB, "udmabuf"),
        4: DmaBuf(12, MIB, "i915"),
        5: DmaBuf(11, MIB, "udmabuf"),
    }
    monkeypatch.setattr(dmabuf_fdinfo, "read", lambda pid, fd: made[fd])
    first, second = census.holders()[0]
    (one,) = first.held
    assert (one.kind, one.count, one.size_bytes) == ("udmabuf", 1, MIB)
    assert (one.pages, one.most_pages) == (None, 256)
    assert kinds(second) == [("udmabuf", 0)]


def test_what_cannot_be_looked_into_is_counted(machine: Machine) -> None:
    machine.add(5, uid=1)
    machine.add(6, vmpin=16, uid=1)
    (holder,), (sentence,) = census.holders()
    assert sentence.startswith("2 processes ")
    assert kinds(holder) == [("vmpin", None)]
    assert (holder.held[0].size_bytes, holder.held[0].most_pages) == (16 * PAGE, 16)


def test_a_process_whose_status_is_hidden_is_counted_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc mounted with hidepid=1; the process before it must not be taken for it."""
    machine.add(5, vmpin=16, fds={})
    machine.add(6)

    def hidden_status(pid: int) -> Charge:
        if pid == 6:
            raise PermissionError(1, "hidepid")
        return machine.charges[pid]

    monkeypatch.setattr(process_status, "read_charge", hidden_status)
    (holder,), (sentence,) = census.holders()
    assert holder.pid == 5
    assert sentence.startswith("1 process ")
    assert len(census.holders(uid=0)[0]) == 1


def test_iommufd_behind_a_container_is_not_counted_twice(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add(5, vmpin=16, fds={3: "/dev/vfio/vfio"})
    machine.charges[5] = replace(machine.charges[5], vmlck_bytes=16 * PAGE)
    monkeypatch.setattr(smaps, "read", lambda pid: smaps.parse(""))
    (holder,), _ = census.holders()
    container, charge = holder.held
    assert (container.kind, container.most_pages) == ("vfio", 16)
    assert (charge.kind, charge.pages, charge.most_pages) == ("vmpin", None, 16)


def test_one_user_is_asked_for(machine: Machine) -> None:
    machine.add(5, vmpin=16, uid=1, fds={})
    machine.add(6, vmpin=16, uid=2, fds={})
    assert [holder.pid for holder in census.holders(uid=2)[0]] == [6]
    assert [holder.pid for holder in census.holders()[0]] == [5, 6]


def test_perf_is_charged_and_pins_nothing(machine: Machine) -> None:
    machine.add(5, vmpin=16, fds={3: process_fds.PERF_EVENT})
    (holder,), _ = census.holders()
    assert kinds(holder) == [("vmpin", None)]


def test_iommufd_and_vdpa_have_what_vmpin_leaves(machine: Machine) -> None:
    machine.add(5, vmpin=16, fds={3: "/dev/iommu"})
    machine.add(6, vmpin=8, fds={3: "/dev/vhost-vdpa-0"})
    first, second = census.holders()[0]
    assert kinds(first) == [("iommufd", 16)]
    assert kinds(second) == [("vhost-vdpa", 8)]


def test_a_process_that_vanishes_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add(5, vmpin=16, fds={})
    machine.add(6, vmpin=16, fds={})

    def gone(pid: int) -> Charge:
        if pid == 5:
            raise ProcessLookupError(3, "gone")
        return machine.charges[pid]

    monkeypatch.setattr(process_status, "read_charge", gone)
    assert [holder.pid for holder in census.holders()[0]] == [6]


TAKEN = Census(
    holders=(
        Holder(
            4194304,
            "fifteen-letters",
            4294967294,
            1023 * MIB + 512,
            0,
            (
                Held("rdma-mr", 100000, 1 << 60, 1 << 28, "mlx5_0, mlx5_1", 1 << 28),
                Held("io-uring", 3, None, None, "in a ring; one pin per page or per folio", 4096),
                Held("vmpin", 1, None, 16, "queues", 17),
                Held("xdp-umem", 1, None, None, "not told", None),
            ),
        ),
        Holder(None, "?", None, None, None, (Held("xdp-umem", 1, MIB, 256, "", 256),)),
    ),
    acquired=10_000,
    released=1_000,
    outstanding_pages=9_000,
    bound_pages=60,
    accounted_pages=4_000,
    hidden=("57 processes of other users could not be looked into: run as root",),
    uncertain_pages=100,
    moved_pages=3,
)


def shown(taken: Census, monkeypatch: pytest.MonkeyPatch, as_json: bool = False) -> str:
    monkeypatch.setattr(pins_listing, "census", lambda uid: replace(taken, uid=uid))
    with redirect_stdout(io.StringIO()) as out:
        pins_listing.show_pins(None, as_json)
    return out.getvalue()


def test_the_listing_fits_100_columns_and_names_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = shown(TAKEN, monkeypatch)
    assert max(map(len, text.splitlines())) <= 100
    for word in ("4194304", "fifteen-letters", "mlx5_1", "268435456", "up to 4096", "16 to 17"):
        assert word in text
    assert "unknown" in text
    assert "4840 to 5060 pages" in text
    assert "off by at most 60" in text
    assert "57 processes" in text


def test_what_is_nobodys_is_so_only_as_far_as_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "by no process that was seen" in shown(TAKEN, monkeypatch)
    assert "accounted for by no process" not in shown(TAKEN, monkeypatch)
    text = shown(replace(TAKEN, hidden=()), monkeypatch)
    assert "accounted for by no process" in text
    assert "that was seen" not in text


def test_the_json_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(shown(TAKEN, monkeypatch, as_json=True))
    assert document["outstanding_pages"] == 9000
    assert document["unaccounted_pages"] == 5000
    assert document["unaccounted_range_pages"] == [4840, 5060]
    assert document["holders"][0]["held"][3]["pages"] is None


def test_one_users_share_says_nothing_of_what_is_nobodys() -> None:
    assert replace(TAKEN, uid=0).unaccounted_pages is None
    assert replace(TAKEN, uid=0).unaccounted_range == (None, None)
    assert replace(TAKEN, outstanding_pages=None).unaccounted_range == (None, None)
    assert replace(TAKEN, uncertain_pages=None).unaccounted_range == (None, 5060)


def test_a_kernel_that_does_not_count_pins_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(replace(TAKEN, outstanding_pages=None), monkeypatch)
    assert "does not count pins" in text


def test_users_by_name_and_number() -> None:
    assert pins_listing.user_id("root") == 0
    assert pins_listing.user_id("4711") == 4711
    with pytest.raises(UsageError, match="nobody-here"):
        pins_listing.user_id("nobody-here")
