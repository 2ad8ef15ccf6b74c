"""Devices that take user memory: what the workloads pass to them, against the installed headers and
this kernel; and what is said where a device is missing. With the devices they run in the lab."""

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from workloads import MEMORY, libc, udmabuf, v4l2, vfio
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, Case, Surroundings

MEMORY_SPECS = {spec.name: spec for spec in MEMORY}
F_GET_SEALS = 1034

# C expression -> what the workloads have for it
CONSTANTS = {
    "VFIO_SET_IOMMU": vfio.VFIO_SET_IOMMU,
    "VFIO_GROUP_GET_STATUS": vfio.VFIO_GROUP_GET_STATUS,
    "VFIO_GROUP_SET_CONTAINER": vfio.VFIO_GROUP_SET_CONTAINER,
    "VFIO_IOMMU_MAP_DMA": vfio.VFIO_IOMMU_MAP_DMA,
    "VFIO_IOMMU_UNMAP_DMA": vfio.VFIO_IOMMU_UNMAP_DMA,
    "VFIO_TYPE1v2_IOMMU": vfio.VFIO_TYPE1V2_IOMMU,
    "VFIO_GROUP_FLAGS_VIABLE": vfio.VFIO_GROUP_FLAGS_VIABLE,
    "VFIO_DMA_MAP_FLAG_READ": vfio.VFIO_DMA_MAP_FLAG_READ,
    "VFIO_DMA_MAP_FLAG_WRITE": vfio.VFIO_DMA_MAP_FLAG_WRITE,
    "sizeof(struct vfio_group_status)": vfio.GROUP_STATUS.size,
    "sizeof(struct vfio_iommu_type1_dma_map)": vfio.DMA_MAP.size,
    "offsetof(struct vfio_iommu_type1_dma_map, vaddr)": 8,
    "offsetof(struct vfio_iommu_type1_dma_map, iova)": 16,
    "offsetof(struct vfio_iommu_type1_dma_map, size)": 24,
    "offsetof(struct vfio_iommu_type1_dma_unmap, iova)": 8,
    "offsetof(struct vfio_iommu_type1_dma_unmap, size)": 16,
    "sizeof(struct vfio_iommu_type1_dma_unmap)": vfio.DMA_UNMAP.size,
    "VIDIOC_S_FMT": v4l2.VIDIOC_S_FMT,
    "VIDIOC_S_INPUT": v4l2.VIDIOC_S_INPUT,
    "VIDIOC_REQBUFS": v4l2.VIDIOC_REQBUFS,
    "VIDIOC_PREPARE_BUF": v4l2.VIDIOC_PREPARE_BUF,
    "V4L2_BUF_TYPE_VIDEO_CAPTURE": v4l2.V4L2_BUF_TYPE_VIDEO_CAPTURE,
    "V4L2_MEMORY_USERPTR": v4l2.V4L2_MEMORY_USERPTR,
    "V4L2_PIX_FMT_GREY": v4l2.V4L2_PIX_FMT_GREY,
    "sizeof(struct v4l2_format)": v4l2.FORMAT.size,
    "offsetof(struct v4l2_format, fmt.pix.width)": 8,
    "offsetof(struct v4l2_format, fmt.pix.sizeimage)": 28,
    "sizeof(struct v4l2_requestbuffers)": v4l2.REQUEST_BUFFERS.size,
    "offsetof(struct v4l2_requestbuffers, memory)": 8,
    "sizeof(struct v4l2_buffer)": v4l2.BUFFER.size,
    "offsetof(struct v4l2_buffer, memory)": 60,
    "offsetof(struct v4l2_buffer, m.userptr)": 64,
    "offsetof(struct v4l2_buffer, length)": 72,
    "UDMABUF_CREATE": udmabuf.UDMABUF_CREATE,
    "UDMABUF_FLAGS_CLOEXEC": udmabuf.UDMABUF_FLAGS_CLOEXEC,
    "sizeof(struct udmabuf_create)": udmabuf.CREATE.size,
    "offsetof(struct udmabuf_create, offset)": 8,
    "offsetof(struct udmabuf_create, size)": 16,
    "F_ADD_SEALS": udmabuf.F_ADD_SEALS,
    "F_SEAL_SHRINK": udmabuf.F_SEAL_SHRINK,
}
HEADERS = ("linux/fcntl.h", "linux/vfio.h", "linux/videodev2.h", "linux/udmabuf.h")


def test_the_numbers_are_those_of_the_headers(
    tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    need(shutil.which("cc") is not None, "no C compiler: apt-get install gcc libc6-dev")
    for header in HEADERS:
        need(Path("/usr/include", header).exists(), f"no {header}: apt-get install linux-libc-dev")
    source = tmp_path / "numbers.c"
    lines = [f"#include <{header}>" for header in (*HEADERS, "stddef.h", "stdio.h")]
    prints = [f'printf("%llu\\n", (unsigned long long)({name}));' for name in CONSTANTS]
    source.write_text("\n".join([*lines, "int main(void) {", *prints, "return 0; }"]))
    program = tmp_path / "numbers"
    subprocess.run(["cc", "-o", program, source], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert dict(zip(CONSTANTS, map(int, printed.split()), strict=True)) == CONSTANTS


def region_of(fd: int | None, owner: Owner) -> Region:
    memory = mmap.mmap(-1, PAGE_BYTES)
    owner.release_with("memory", memory.close)
    address = libc.address_of(memory)
    return Region(MEMORY_SPECS["anon"], address, PAGE_BYTES, PAGE_BYTES, memoryview(b""), fd)


def test_udmabuf_seals_a_memfd(owner: Owner) -> None:
    fd = os.memfd_create("pinstorm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    owner.release_with("memfd", lambda: os.close(fd))
    udmabuf.DmaBuf(-1, region_of(fd, owner), owner)
    assert fcntl.fcntl(fd, F_GET_SEALS) == udmabuf.F_SEAL_SHRINK


@pytest.mark.parametrize("sealable", [True, False, None])
def test_udmabuf_takes_sealed_files_only(
    sealable: bool | None, owner: Owner, need: Callable[[bool, str], None]
) -> None:
    need(os.access(udmabuf.NODE, os.R_OK | os.W_OK), f"no {udmabuf.NODE}")
    fd = None
    if sealable is not None:
        flags = os.MFD_ALLOW_SEALING if sealable else 0
        fd = os.memfd_create("pinstorm", os.MFD_CLOEXEC | flags)
        owner.release_with("memfd", lambda: os.close(fd or -1))
        os.ftruncate(fd, PAGE_BYTES)
    case = Case("udmabuf", "memfd", {"size_bytes": PAGE_BYTES})
    operation = udmabuf.prepare(case, region_of(fd, owner), Surroundings(), owner)
    if sealable:
        for _ in range(3):
            operation.acquire()
            operation.release()
        return
    with pytest.raises(CallFailed) as refused:
        operation.acquire()
    assert (refused.value.call, refused.value.errno) == (
        "UDMABUF_CREATE",
        errno.EBADFD if sealable is None else errno.EINVAL,
    )


def test_what_is_not_a_camera_is_refused_with_its_call(owner: Owner) -> None:
    case = Case("v4l2-userptr", "anon", {"size_bytes": PAGE_BYTES})
    around = Surroundings(nodes={"v4l2": os.devnull})
    with pytest.raises(CallFailed) as refused:
        v4l2.prepare(case, region_of(None, owner), around, owner)
    assert (refused.value.call, refused.value.errno) == ("VIDIOC_S_INPUT", errno.ENOTTY)


def test_a_device_behind_no_iommu_is_named(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfio, "CONTAINER", os.devnull)
    case = Case("vfio-map", "anon", {"size_bytes": PAGE_BYTES})
    around = Surroundings(nodes={"vfio": "ffff:ff:1f.7"})
    with pytest.raises(CallFailed) as refused:
        vfio.prepare(case, region_of(None, owner), around, owner)
    assert (refused.value.call, refused.value.errno) == ("readlink", errno.ENOENT)
    assert "ffff:ff:1f.7" in refused.value.detail
