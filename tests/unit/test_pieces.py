"""Pieces of a range, from made mappings; and evidence that survives the record."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pinstorm import evidence, pieces
from pinstorm.evidence import Device, Evidence, Group, Holding, Machine, Process
from pinstorm.pieces import Files, Piece
from telemetry import maps, smaps
from telemetry.maps import Mapping
from telemetry.mountinfo import Mount

DATA = Path(__file__).parent / "data" / "telemetry"
PAGE = 4096
BASE = 0x7F0000000000
ANON = Mapping(BASE, BASE + 4 * PAGE, "rw-p", 0, "00:00", 0, "")
# Nobody has this process id: what lies behind a mapping is known from its line alone.
NOBODY = 1 << 30


def files(*mounts: Mount) -> Files:
    return Files(NOBODY, lambda: mounts)


def details(mapping: Mapping, *flags: str, page_bytes: int = PAGE) -> smaps.Details:
    return smaps.Details(mapping.start, mapping.end, flags, page_bytes, 0, 0)


def test_one_mapping_is_cut_to_the_pages_of_the_range() -> None:
    found = pieces.of_range(BASE + PAGE + 1, PAGE, [ANON], [details(ANON, "rd", "wr")], files())
    assert found == (
        Piece(BASE + PAGE, BASE + 3 * PAGE, "rw-p", flags=("rd", "wr"), kernel_page_bytes=PAGE),
    )


def test_gaps_are_pieces_and_nothing_is_left_out() -> None:
    second = replace(ANON, start=BASE + 8 * PAGE, end=BASE + 10 * PAGE, permissions="---p")
    found = pieces.of_range(BASE - PAGE, 16 * PAGE, [ANON, second], (), files())
    assert [(piece.start - BASE, piece.end - BASE, piece.permissions) for piece in found] == [
        (-PAGE, 0, None),
        (0, 4 * PAGE, "rw-p"),
        (4 * PAGE, 8 * PAGE, None),
        (8 * PAGE, 10 * PAGE, "---p"),
        (10 * PAGE, 15 * PAGE, None),
    ]


def test_a_range_of_equal_mappings_is_one_piece() -> None:
    """What pins a page through thousands of mappings must not fill the record."""
    many = [replace(ANON, start=BASE + n * PAGE, end=BASE + (n + 1) * PAGE) for n in range(1000)]
    assert pieces.of_range(BASE, 1000 * PAGE, many, (), files()) == (
        Piece(BASE, BASE + 1000 * PAGE, "rw-p"),
    )


def test_a_range_that_wraps_ends_with_the_address_space() -> None:
    (piece,) = pieces.of_range((1 << 64) - PAGE, 1 << 30, (), (), files())
    assert (piece.end, piece.permissions) == (1 << 64, None)


def test_an_empty_range_is_the_page_that_it_points_to() -> None:
    (piece,) = pieces.of_range(BASE + 5, 0, [ANON], (), files())
    assert (piece.start, piece.end) == (BASE, BASE + PAGE)


@pytest.mark.parametrize(
    ("path", "page_bytes", "fs_type"),
    [
        ("/secretmem (deleted)", PAGE, "secretmem"),
        ("/memfd:x (deleted)", PAGE, "tmpfs"),
        ("/memfd:x (deleted)", 2 << 20, "hugetlbfs"),
        ("/dev/zero (deleted)", PAGE, "tmpfs"),
        ("/anon_hugepage (deleted)", 2 << 20, "hugetlbfs"),
        ("anon_inode:[io_uring]", PAGE, "anon_inode"),
    ],
)
def test_files_that_are_mounted_nowhere(path: str, page_bytes: int, fs_type: str) -> None:
    mapping = replace(ANON, inode=7, device="00:01", path=path, permissions="rw-s")
    entry = details(mapping, page_bytes=page_bytes)
    assert pieces.of_mapping(mapping, entry, files()).fs_type == fs_type


def test_a_file_is_of_the_mount_with_its_device() -> None:
    dax = Mount("/mnt/dax", "ext4", "/dev/pmem0", ("rw",), ("rw", "dax=always"), "259:0", "/")
    other = Mount("/", "xfs", "/dev/vda", ("rw",), (), "254:0", "/")
    mapping = replace(ANON, inode=12, device="103:00", path="/mnt/dax/f", permissions="rw-s")
    piece = pieces.of_mapping(mapping, None, files(other, dax))
    assert (piece.fs_type, piece.dax) == ("ext4", True)
    ordinary = pieces.of_mapping(replace(mapping, device="fe:00"), None, files(other, dax))
    assert (ordinary.fs_type, ordinary.dax) == ("xfs", None)


def test_another_file_at_the_same_place_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    fd = pieces._open_inode(str(path), path.stat().st_ino)
    assert fd is not None
    os.close(fd)
    assert pieces._open_inode(str(path), path.stat().st_ino + 1) is None
    assert pieces._open_inode(str(tmp_path / "gone"), 1) is None


def test_a_process_that_was_saved_with_dax_memory() -> None:
    """The lines of a 7.2 guest: the file on DAX is the one that cannot be pinned."""
    text = (DATA / "7.2-guest" / "smaps").read_text()
    lines = "".join(line for line in text.splitlines(True) if line[0] in "0123456789abcdef")
    dax = Mount("/run/pinstorm/dax", "ext4", "/dev/pmem0", ("rw",), ("dax=always",), "259:0", "/")
    look = files(dax)
    found = [
        pieces.of_mapping(mapping, entry, look)
        for mapping, entry in zip(maps.parse(lines), smaps.parse(text), strict=True)
    ]
    ranks = {piece.path: pieces.suspicion(piece) for piece in found}
    assert {path: rank for path, rank in ranks.items() if rank is not None} == {
        "/run/pinstorm/dax/f": 1
    }


SHARED = Piece(0, PAGE, "rw-s", "/f")


@pytest.mark.parametrize(
    ("piece", "rank"),
    [
        (replace(SHARED, fs_type="secretmem"), 0),
        (replace(SHARED, fs_type="xfs", dax=True), 1),
        (replace(SHARED, fs_type="xfs", dax=True, permissions="r--p"), 1),
        (replace(SHARED, fs_type="ext4", dax=False), 2),
        (replace(SHARED, fs_type="ext4", permissions="rw-p"), None),
        (replace(SHARED, fs_type="ext4", permissions="r--s"), None),
        (replace(SHARED, fs_type="tmpfs"), None),
        (replace(SHARED, fs_type="hugetlbfs"), None),
        (replace(SHARED, fs_type="devtmpfs", flags=("rd", "io")), 3),
        (Piece(0, PAGE, "r--p", "[vvar]", ("rd", "io")), None),
        (Piece(0, PAGE, "rw-p", "[heap]", ("rd", "wr")), None),
        (Piece(0, PAGE, None), None),
    ],
)
def test_what_no_long_term_pin_can_take(piece: Piece, rank: int | None) -> None:
    assert pieces.suspicion(piece) == rank


FULL = Evidence(
    process=Process(
        pid=7, name="x", uid=65534, memlock_soft_bytes=65536, memlock_hard_bytes=-1,
        address_space_bytes=-1, vmsize_bytes=1, vmrss_bytes=2, vmpin_bytes=None, vmlck_bytes=0,
        cap_ipc_lock=False, cap_ipc_lock_permitted=True, cap_ipc_lock_inheritable=True,
        cap_effective=("CAP_NET_RAW",), initial_userns=True, vma_count=3, vma_limit=65530,
        real_uid=1000,
    ),
    pieces=(SHARED,),
    holdings=(Holding(8, "y", "io-uring", 4096, 1),),
    groups=(Group("/sys/fs/cgroup/a", "rdma", "hca_object", 12, 12, 1, "rxe0"),),
    device=Device("rxe0", True, "rxe", True, 100, 1 << 64, 99, ("ACTIVE",)),
    machine=Machine(1, None, {"2097152": 0}),
    kernel_log=("a line",),
    hidden=("the maps cannot be read",),
)  # fmt: skip


@pytest.mark.parametrize("whole", [FULL, Evidence()])
def test_evidence_survives_the_record(whole: Evidence) -> None:
    assert Evidence.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_evidence_of_another_version() -> None:
    message = json.loads(json.dumps(FULL.to_json()))
    message["weather"] = "fine"
    message["process"]["weather"] = "fine"
    del message["process"]["vma_limit"], message["process"]["real_uid"], message["groups"]
    del message["device"]["port_states"]
    assert FULL.process is not None
    assert FULL.device is not None
    found = Evidence.from_json(message)
    assert found.process == replace(FULL.process, vma_limit=None, real_uid=None)
    assert found.device == replace(FULL.device, port_states=())
    assert found.groups is None


def test_capabilities_of_a_container_do_not_lift_the_limit() -> None:
    assert FULL.process is not None
    capable = replace(FULL.process, cap_ipc_lock=True)
    assert capable.exempt
    assert not replace(capable, initial_userns=False).exempt
    assert not FULL.process.exempt


def test_the_tightest_group_comes_first() -> None:
    half = Group("/a", "memory", "memory", 100, 50)
    full = Group("/b", "rdma", "hca_object", 12, 12)
    nothing = Group("/c", "rdma", "hca_handle", 0, 0)
    unknown = Group("/d", "memory", "memory", 100, None)
    ranked = sorted([unknown, half, full, nothing], key=evidence._share_left)
    assert ranked[2:] == [half, unknown]
    assert {group.group for group in ranked[:2]} == {"/b", "/c"}
