"""Registered buffers, packet memory, open files and charges, from files saved on real kernels.

The saved process had three slots in a ring (8 MiB, 1 MiB at an offset of 100 bytes, an empty one)
and two AF_XDP sockets, one with 2 MiB of packet memory.
"""

import errno
import struct
from pathlib import Path

import pytest

from telemetry import (
    dmabuf_fdinfo,
    io_uring_fdinfo,
    process_fds,
    process_status,
    rdma_resource,
    xdp_diag,
)
from telemetry.dmabuf_fdinfo import DmaBuf
from telemetry.io_uring_fdinfo import Ring

DATA = Path(__file__).parent / "data" / "telemetry"
KERNELS = ("6.1-guest", "6.12-guest", "6.18-host", "7.2-guest")
MIB = 1 << 20


def saved(kernel: str, name: str) -> str:
    return (DATA / kernel / name).read_text()


@pytest.mark.parametrize("kernel", KERNELS)
def test_buffers_of_a_ring_on_every_kernel(kernel: str) -> None:
    ring = io_uring_fdinfo.parse(saved(kernel, "io_uring_fdinfo"))
    assert ring.buffers is not None
    assert [buffer.size_bytes for buffer in ring.buffers] == [8 * MIB, MIB]
    first, second = ring.buffers
    assert second.address - first.address == 8 * MIB + 100
    assert ring.inode is not None
    assert ring.kernel_buffers == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_ring_that_somebody_is_in_tells_nothing(kernel: str) -> None:
    """6.1 to 6.12 leave out the lines of the slots, 7.2 everything: None either way, not 0."""
    text = saved(kernel, "io_uring_fdinfo")
    head, slots = text.split("UserBufs:\t3\n")
    without_lines = head + "UserBufs:\t3\n" + slots[slots.index("PollList:") :]
    without_all = text[: text.index("SqMask:")]
    for busy in (without_lines, without_all):
        ring = io_uring_fdinfo.parse(busy)
        assert ring.buffers is None
        assert ring.inode is not None


def test_a_ring_without_buffers_holds_none() -> None:
    assert io_uring_fdinfo.parse("ino:\t7\nUserBufs:\t0\nPollList:\n") == Ring(7, ())


def test_a_file_name_cannot_be_taken_for_a_buffer() -> None:
    """6.1 prints the names of registered files as they are, newlines too."""
    text = "ino:\t7\nUserFiles:\t1\n    0: x\nUserBufs:\t1\n    0: 0x1000/4096\n"
    text += "UserBufs:\t0\nPollList:\n"
    assert io_uring_fdinfo.parse(text).buffers == ()


def test_what_a_driver_lent_to_a_ring_is_not_the_users() -> None:
    text = "\nUserBufs:\t2\n    0: 0x0/65536\n    1: 0x1000/4096\nPollList:\n"
    ring = io_uring_fdinfo.parse(text)
    assert ring.kernel_buffers == 1
    assert ring.buffers is not None
    assert [buffer.address for buffer in ring.buffers] == [0x1000]
    assert ring.inode is None


@pytest.mark.parametrize("kernel", ["6.12-guest", "7.2-guest"])
def test_packet_memory_of_sockets(kernel: str) -> None:
    found, done = xdp_diag.parse((DATA / kernel / "xdp_diag.bin").read_bytes())
    assert done
    assert [one.uid for one in found] == [0, 0]
    without, with_memory = found
    assert without.umem is None
    assert with_memory.umem is not None
    assert (with_memory.umem.size_bytes, with_memory.umem.pages) == (2 * MIB, 512)
    assert (with_memory.umem.chunk_bytes, with_memory.umem.refs) == (4096, 1)
    assert with_memory.inode < without.inode
    assert with_memory.interface == 0


def test_an_answer_in_pieces_is_not_the_last() -> None:
    data = (DATA / "7.2-guest" / "xdp_diag.bin").read_bytes()
    first_bytes = struct.unpack_from("=I", data)[0]
    found, done = xdp_diag.parse(data[:first_bytes])
    assert (len(found), done) == (1, False)


def test_a_kernel_without_xsk_diag_says_so() -> None:
    """As 6.18 answers without CONFIG_XDP_SOCKETS_DIAG, and Debian's 6.1."""
    answer = "380000000200000001000000992b0000feffffff2400000014000103010000000000000"
    answer += "02c0000000000000007000000ffffffffffffffff"
    with pytest.raises(xdp_diag.NotOffered) as raised:
        xdp_diag.parse(bytes.fromhex(answer))
    assert raised.value.errno == errno.ENOENT


def test_another_error_of_the_kernel_is_another() -> None:
    answer = struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -errno.EPERM) + bytes(16)
    with pytest.raises(PermissionError):
        xdp_diag.parse(answer)


def test_the_question_is_what_the_kernel_expects() -> None:
    """struct nlmsghdr, then struct xdp_diag_req: 16 and 20 bytes."""
    asked = xdp_diag.request()
    length, kind, flags = struct.unpack_from("=IHH", asked)
    assert (length, kind, flags) == (36, 20, 0x301) == (len(asked), 20, 0x301)
    assert asked[16] == 44


def test_a_region_whose_thread_has_ended_names_no_process() -> None:
    for kernel in ("6.1-guest", "6.12-guest", "7.2-guest"):
        alive, ended = rdma_resource.parse_regions(saved(kernel, "rdma_mr.json"))
        assert alive.size_bytes == 256 * MIB - 4096
        assert alive.pid is not None
        assert (ended.pid, ended.process, ended.size_bytes) == (None, "", MIB)


def test_socket_inodes() -> None:
    assert process_fds.socket_inode("socket:[30398]") == 30398
    assert process_fds.socket_inode("/dev/null") is None
    assert process_fds.socket_inode("anon_inode:[io_uring]") is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_quick_look_at_a_status_agrees_with_the_whole(kernel: str) -> None:
    text = saved(kernel, "status").replace("VmPin:\t       0 kB", "VmPin:\t     128 kB")
    whole, quick = process_status.parse(text), process_status.parse_charge(text.encode())
    assert quick is not None
    assert (quick.name, quick.uid) == (whole.name, whole.real_uid)
    assert (quick.vmpin_bytes, quick.vmlck_bytes) == (128 << 10, whole.vmlck_bytes)


def test_the_quick_look_tells_the_real_user() -> None:
    text = "Name:\ta b\nUid:\t1\t2\t3\t4\nVmSize:\t8 kB\nVmLck:\t 4 kB\nVmPin:\t 16 kB\n"
    charge = process_status.parse_charge(text.encode())
    assert charge == process_status.Charge("a b", 1, 16384, 4096)


def test_a_kernel_thread_is_charged_nothing() -> None:
    assert process_status.parse_charge(b"Name:\tkthreadd\nUid:\t0\t0\t0\t0\nThreads:\t1\n") is None


def test_a_dma_buf_tells_its_size_and_exporter() -> None:
    made = dmabuf_fdinfo.parse(saved("7.2-guest", "dmabuf_fdinfo"))
    assert made is not None
    assert (made.size_bytes, made.exporter) == (MIB, dmabuf_fdinfo.UDMABUF)
    assert made.inode is not None


def test_a_dma_bufs_own_name_cannot_be_taken_for_its_exporter() -> None:
    text = (
        "ino:\t5\nsize:\t4096\ncount:\t1\nexp_name:\ti915\nname:\tx\nexp_name:\tudmabuf\nsize:\t1\n"
    )
    assert dmabuf_fdinfo.parse(text) == DmaBuf(5, 4096, "i915")
    assert dmabuf_fdinfo.parse(saved("7.2-guest", "io_uring_fdinfo")) is None
