"""What lies in a range of a process's address space: its mappings, the gaps, the files behind them.

Nothing is opened but by O_PATH, which touches neither a file's data nor a device's driver.
"""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from telemetry import mountinfo, smaps
from telemetry.maps import Mapping
from telemetry.mountinfo import Mount
from workloads import libc
from workloads.spec import PAGE_BYTES, CallFailed

ADDRESS_SPACE_BYTES = 1 << 64

# Mappings of files that are in no mount the process can see, by how the kernel names them:
# mm/shmem.c, fs/hugetlbfs/inode.c, ipc/shm.c, mm/secretmem.c, drivers/dma-buf/dma-buf.c.
_UNMOUNTED = (
    ("/memfd:", "tmpfs"),
    ("/dev/zero", "tmpfs"),
    ("/SYSV", "tmpfs"),
    ("/anon_hugepage", "hugetlbfs"),
    ("/secretmem", "secretmem"),
    ("/dmabuf:", "dmabuf"),
    ("anon_inode:", "anon_inode"),
    ("socket:", "sockfs"),
)
# File systems without dirty tracking: their pages are written back nowhere.
_NEVER_WRITTEN_BACK = frozenset(
    (
        *("tmpfs", "ramfs", "hugetlbfs", "devtmpfs", "secretmem", "dmabuf", "anon_inode", "sockfs"),
        *("proc", "sysfs", "debugfs", "tracefs", "bpf", "squashfs", "iso9660", "erofs"),
    )
)
# Where a mapping of device memory can come from.
_DEVICES = frozenset(("devtmpfs", "sysfs", "proc", "anon_inode", "dmabuf", "sockfs"))

# The kernel's own pages, which every process has and nobody registers.
_NOT_ITS_OWN = "[vsyscall]"
_VDSO = ("[vdso]", "[vvar]", "[vvar_vclock]", _NOT_ITS_OWN)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the range that was to be pinned: one mapping, or a gap (``permissions`` is None).

    ``flags``: VmFlags of smaps, two letters each; empty where they were not read. ``fs_type``,
    ``dax``: of the file behind it. ``past_eof_bytes``: how much of it lies behind the end of its
    file. Equal neighbours are one piece.
    """

    start: int
    end: int
    permissions: str | None
    path: str = ""
    flags: tuple[str, ...] = ()
    fs_type: str | None = None
    dax: bool | None = None
    kernel_page_bytes: int | None = None
    past_eof_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    fs_type: str | None
    dax: bool | None
    size_bytes: int | None


class Files:
    """The files behind mappings of one process, each looked at once, and only when asked for.

    ``mounts``: how to learn what the process has mounted.
    """

    def __init__(self, pid: int, mounts: Callable[[], Sequence[Mount]]):
        self._pid = pid
        self._read_mounts = mounts
        self._mounts: Sequence[Mount] | None = None
        self._seen: dict[tuple[str, int], _File] = {}

    def behind(self, mapping: Mapping) -> _File:
        """All None of anonymous memory."""
        if not mapping.inode:
            return _File(None, None, None)
        key = mapping.device, mapping.inode
        if key not in self._seen:
            self._seen[key] = self._look_at(mapping)
        return self._seen[key]

    def _look_at(self, mapping: Mapping) -> _File:
        mount = self._mount_of(mapping)
        fs_type = _unmounted_type(mapping.path) if mount is None else mount.fs_type
        dax = True if mount is not None and mountinfo.is_dax(mount) else None
        if (fd := self._open(mapping)) is None:
            return _File(fs_type, dax, None)
        try:
            status = os.fstat(fd)
            regular = stat.S_ISREG(status.st_mode)
            with suppress(CallFailed):
                dax = libc.is_dax(fd)
            return _File(fs_type, dax, status.st_size if regular else None)
        finally:
            os.close(fd)

    def _mount_of(self, mapping: Mapping) -> Mount | None:
        if self._mounts is None:
            self._mounts = self._read_mounts()
        major, _, minor = mapping.device.partition(":")
        device = f"{int(major, 16)}:{int(minor, 16)}"
        found = next((mount for mount in self._mounts if mount.device == device), None)
        if found is None and _unmounted_type(mapping.path) is None:
            # overlayfs: up to v6.5 or so maps names the device of the file below
            return mountinfo.of_path(mapping.path, self._mounts)
        return found

    def _open(self, mapping: Mapping) -> int | None:
        """By whichever way this process may go; None when there is none."""
        base = f"/proc/{self._pid}"
        ways = [f"{base}/map_files/{mapping.start:x}-{mapping.end:x}"]  # CAP_CHECKPOINT_RESTORE
        if mapping.path.startswith("/"):
            ways.append(f"{base}/root{mapping.path}")
        for way in ways:
            if (fd := _open_inode(way, mapping.inode)) is not None:
                return fd
        with suppress(OSError):
            for name in os.listdir(f"{base}/fd"):
                way = f"{base}/fd/{name}"
                with suppress(OSError):
                    if os.readlink(way) != mapping.path:
                        continue
                if (fd := _open_inode(way, mapping.inode)) is not None:
                    return fd
        return None


def _open_inode(path: str, inode: int) -> int | None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    if os.fstat(fd).st_ino == inode:
        return fd
    os.close(fd)
    return None


def _unmounted_type(path: str) -> str | None:
    return next((fs_type for start, fs_type in _UNMOUNTED if path.startswith(start)), None)


def of_range(
    address: int,
    size_bytes: int,
    mappings: Iterable[Mapping],
    details: Iterable[smaps.Details],
    files: Files,
) -> tuple[Piece, ...]:
    """The whole pages of the range in the order of their addresses, without a byte left out.

    A range that wraps ends with the address space.
    """
    start = address & -PAGE_BYTES
    end = min(-(-(address + max(size_bytes, 1)) // PAGE_BYTES) * PAGE_BYTES, ADDRESS_SPACE_BYTES)
    by_start = {entry.start: entry for entry in details}
    found: list[Piece] = []
    at = start
    for mapping in mappings:
        if mapping.start >= end or mapping.end <= at or mapping.path == _NOT_ITS_OWN:
            continue
        if mapping.start > at:
            found.append(Piece(at, mapping.start, None))
        piece = of_mapping(mapping, by_start.get(mapping.start), files)
        found.append(_cut(piece, mapping, max(at, mapping.start), min(end, mapping.end), files))
        at = min(end, mapping.end)
    if at < end:
        found.append(Piece(at, end, None))
    return tuple(_joined(found))


def of_mapping(mapping: Mapping, details: smaps.Details | None, files: Files) -> Piece:
    """All of a mapping."""
    file = files.behind(mapping)
    page_bytes = None if details is None else details.kernel_page_bytes
    fs_type = file.fs_type
    if fs_type == "tmpfs" and (page_bytes or 0) > PAGE_BYTES:  # a memfd or SysV segment of them
        fs_type = "hugetlbfs"
    return Piece(
        start=mapping.start,
        end=mapping.end,
        permissions=mapping.permissions,
        path=mapping.path,
        flags=() if details is None else details.flags,
        fs_type=fs_type,
        dax=file.dax,
        kernel_page_bytes=page_bytes,
    )


def _cut(piece: Piece, mapping: Mapping, start: int, end: int, files: Files) -> Piece:
    """The part of it in [start, end), which says how much of that lies behind the file's end."""
    size_bytes = files.behind(mapping).size_bytes
    past_eof_bytes = 0
    if size_bytes is not None and not {smaps.IO, smaps.PFNMAP} & {*piece.flags}:
        page_bytes = piece.kernel_page_bytes or PAGE_BYTES
        whole_bytes = -(-size_bytes // page_bytes) * page_bytes
        eof = mapping.start + max(0, whole_bytes - mapping.offset_bytes)
        past_eof_bytes = max(0, end - max(start, eof))
    return replace(piece, start=start, end=end, past_eof_bytes=past_eof_bytes)


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """A range can have thousands of mappings that differ in nothing that matters."""
    done: list[Piece] = []
    for piece in pieces:
        if done and _nature(done[-1]) == _nature(piece):
            past_eof_bytes = done[-1].past_eof_bytes + piece.past_eof_bytes
            done[-1] = replace(done[-1], end=piece.end, past_eof_bytes=past_eof_bytes)
        else:
            done.append(piece)
    return done


def _nature(piece: Piece) -> Piece:
    return replace(piece, start=0, end=0, past_eof_bytes=0)


def suspicion(piece: Piece) -> int | None:
    """How surely no long-term pin can take it, 0 is surest; None when nothing speaks against it.

    Read in check_vma_flags() and writable_file_mapping_allowed() of mm/gup.c, v7.2.
    """
    if piece.fs_type == "secretmem":
        return 0
    if piece.dax:
        return 1
    writable = piece.permissions is not None and "w" in piece.permissions
    shared = piece.permissions is not None and piece.permissions.endswith("s")
    if piece.fs_type and piece.fs_type not in _NEVER_WRITTEN_BACK and writable and shared:
        return 2
    if {smaps.IO, smaps.PFNMAP} & {*piece.flags} and piece.path not in _VDSO:
        return 3
    return None


def may_be_device_memory(mapping: Mapping, files: Files) -> bool:
    """Whether only its flags can tell: those take a walk through the page tables to be read."""
    return bool(mapping.inode) and files.behind(mapping).fs_type in _DEVICES
