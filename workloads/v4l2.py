"""VIDIOC_PREPARE_BUF of a V4L2_MEMORY_USERPTR capture buffer: a device that films into the memory.

The input and the picture that take the fewest bytes are chosen: what the kernel pins is the whole
region, and the driver asks only that the picture fits. videobuf2 keeps the pages of a buffer until
the buffer is given another address or is freed (VIDIOC_REQBUFS with count 0), which is what release
does. Nothing is filmed: the stream is never switched on.
See Documentation/userspace-api/media/v4l/userp.rst.
"""

import errno
import fcntl
import itertools
import struct
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.node import open_node, timed_ioctl
from workloads.owner import Owner
from workloads.spec import CallFailed, Case, PrepareFailed, Surroundings

# include/uapi/linux/videodev2.h; the numbers hold the sizes of the structures on 64 bits
VIDIOC_S_FMT = 0xC0D05605
VIDIOC_S_INPUT = 0xC0045627
VIDIOC_REQBUFS = 0xC0145608
VIDIOC_PREPARE_BUF = 0xC058565D
V4L2_BUF_TYPE_VIDEO_CAPTURE = 1
V4L2_MEMORY_USERPTR = 2
V4L2_PIX_FMT_GREY = int.from_bytes(b"GREY", "little")  # one byte per pixel

# struct v4l2_format with its v4l2_pix_format: type, width, height, pixelformat, field,
# bytesperline, sizeimage
FORMAT = struct.Struct("=I4x6I176x")
REQUEST_BUFFERS = struct.Struct("=III8x")  # count, type, memory
# struct v4l2_buffer: index, type, memory, userptr, length
BUFFER = struct.Struct("=II52xIQI12x")


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "Buffer":
    path = around.nodes["v4l2"]
    node = open_node(path, owner)
    image_bytes = _film_small(node)
    if image_bytes > region.size_bytes:
        raise PrepareFailed(f"{path} films no fewer than {image_bytes} bytes: give a larger size")
    with libc.refusal_of("VIDIOC_REQBUFS"):
        _request_buffers(node, 1)
    return Buffer(node, region)


class Buffer:
    """The region as the first buffer of the capture queue."""

    done_bytes: int | None = None

    def __init__(self, node: int, region: Region) -> None:
        self._node = node
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self._buffer = BUFFER.pack(
            0, V4L2_BUF_TYPE_VIDEO_CAPTURE, V4L2_MEMORY_USERPTR, region.address, region.size_bytes
        )

    def acquire(self) -> int:
        return timed_ioctl("VIDIOC_PREPARE_BUF", self._node, VIDIOC_PREPARE_BUF, self._buffer)

    def release(self) -> int:
        """Free the buffer, and ask for an empty one for the next cycle, outside the timing."""
        with libc.refusal_of("VIDIOC_REQBUFS"):
            start_ns = monotonic_ns()
            _request_buffers(self._node, 0)
            elapsed_ns = monotonic_ns() - start_ns
            _request_buffers(self._node, 1)
        return elapsed_ns


def _film_small(node: int) -> int:
    """Choose the smallest picture of all inputs; its bytes, as the driver says."""
    sizes: dict[int, int] = {}
    for number in itertools.count():
        try:
            _choose_input(node, number)
        except CallFailed as error:
            if error.errno == errno.EINVAL and sizes:  # there are no more
                break
            raise
        sizes[number] = _choose_small_picture(node)
    _choose_input(node, min(sizes, key=sizes.__getitem__))
    return _choose_small_picture(node)


def _choose_input(node: int, number: int) -> None:
    with libc.refusal_of("VIDIOC_S_INPUT", f"input {number}"):
        fcntl.ioctl(node, VIDIOC_S_INPUT, struct.pack("=i", number))


def _choose_small_picture(node: int) -> int:
    wanted = FORMAT.pack(V4L2_BUF_TYPE_VIDEO_CAPTURE, 1, 1, V4L2_PIX_FMT_GREY, 0, 0, 0)
    with libc.refusal_of("VIDIOC_S_FMT"):
        chosen = fcntl.ioctl(node, VIDIOC_S_FMT, wanted)
    return int(FORMAT.unpack(chosen)[6])


def _request_buffers(node: int, count: int) -> None:
    request = REQUEST_BUFFERS.pack(count, V4L2_BUF_TYPE_VIDEO_CAPTURE, V4L2_MEMORY_USERPTR)
    fcntl.ioctl(node, VIDIOC_REQBUFS, request)
