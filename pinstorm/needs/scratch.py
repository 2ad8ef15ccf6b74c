"""Directories that a case may put files into: of which kind each is."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pinstorm.errors import UsageError
from pinstorm.needs.unmet import Unmet
from telemetry import mountinfo
from workloads.spec import Need

# File systems whose O_DIRECT goes to a block device through bios or iomap. tmpfs, 9p and overlayfs
# accept O_DIRECT too, and pin nothing or pin for reasons of their own.
BLOCK_BACKED = ("ext4", "xfs", "btrfs", "ext3", "ext2", "f2fs")
# File systems that a memory is made of.
KINDS = ("ext4", "xfs", "btrfs", "tmpfs")

_WANTED = (
    (Need.SCRATCH_EXT4, "ext4", "on ext4"),
    (Need.SCRATCH_XFS, "xfs", "on XFS"),
    (Need.SCRATCH_BTRFS, "btrfs", "on btrfs"),
    (Need.SCRATCH_TMPFS, "tmpfs", "on tmpfs"),
    (Need.SCRATCH_DAX, "dax", "on a file system mounted with -o dax"),
    (Need.TARGET_DIO, "target", f"on a block-backed file system ({', '.join(BLOCK_BACKED)})"),
)


def default_scratch() -> tuple[Path, ...]:
    """The current directory, where files may be made in it; nobody asked for it, so no error."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return ()
    return (here,) if os.access(here, os.W_OK) else ()


def directories(scratch: Sequence[Path]) -> dict[str, str]:
    """The first directory of each kind: of a file system, dax, any block-backed one as IO target.

    UsageError for one that is not a writable directory.
    """
    found: dict[str, str] = {}
    for directory in scratch:
        if not os.path.isdir(directory) or not os.access(directory, os.W_OK):
            raise UsageError(
                f"scratch directory {directory} is not a writable directory; "
                "make it, or name another"
            )
        path = str(directory.resolve())
        mount = mountinfo.of_path(path)
        if mount is None:
            continue
        if mountinfo.is_dax(mount):
            found.setdefault("dax", path)
            continue
        if mount.fs_type in KINDS:
            found.setdefault(mount.fs_type, path)
        if mount.fs_type in BLOCK_BACKED:
            found.setdefault("target", path)
    return found


def unmet(found: Mapping[str, str]) -> list[Unmet]:
    """The kinds of directory that are not among the ones found."""
    remedy = "name one that is with --scratch DIR"
    return [
        Unmet(need, f"no scratch directory {what}", remedy)
        for need, kind, what in _WANTED
        if kind not in found
    ]
