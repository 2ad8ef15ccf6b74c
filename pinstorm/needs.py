"""What a case needs of the machine, and whether it is there: probed once, before anything runs.

Used by list, run, the lab and the tests. A need that is not met makes a skip, with a code, what was
found and what to do about it; all unmet needs of a case are told together. After the first case has
begun nothing may become a skip.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workloads
from pinstorm.errors import UsageError
from pinstorm.units import format_bytes, format_pages
from telemetry import cma, hugepages, kmsg, mountinfo, process_status, rdma, thp, zoneinfo
from workloads import libc
from workloads.memory import HUGE_BYTES
from workloads.spec import PAGE_BYTES, CallFailed, Case, MemorySpec, Need, Surroundings

# File systems whose O_DIRECT goes to a block device through bios or iomap. tmpfs, 9p and overlayfs
# accept O_DIRECT too, and pin nothing or pin for reasons of their own.
BLOCK_BACKED = ("ext4", "xfs", "btrfs", "ext3", "ext2", "f2fs")

Capabilities = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Unmet:
    """Why a case is skipped. ``code`` is the need's name."""

    code: str
    detail: str
    remedy: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail, "remedy": self.remedy}


@dataclass(slots=True)
class Survey:
    """What this machine offers, as found before the first case."""

    around: Surroundings
    lacking: dict[Need, Unmet] = field(default_factory=dict)
    free_huge_bytes: int = 0
    movable_bytes: int = 0
    target_fs: str | None = None
    driver: str | None = None

    def unmet(self, case: Case) -> list[Unmet]:
        """Every need of the case that this machine does not meet; empty when it can run."""
        memory = workloads.memory_spec(case.memory)
        wanted = dict.fromkeys(workloads.workload_spec(case.workload).needs + memory.needs)
        found = [self.lacking[need] for need in wanted if need in self.lacking]
        if self._must_evacuate(memory) and Need.IO_URING not in wanted:
            found += [self.lacking[need] for need in (Need.IO_URING,) if need in self.lacking]
        mapped_bytes = memory.mapped_bytes(case.size_bytes)
        if Need.HUGETLB_2M in wanted and Need.HUGETLB_2M not in self.lacking:
            found += self._huge_shortage(mapped_bytes)
        if Need.MOVABLE in wanted and Need.MOVABLE not in self.lacking:
            found += self._movable_shortage(mapped_bytes)
        return found

    def _must_evacuate(self, memory: MemorySpec) -> bool:
        """Plain memory may lie in CMA or ZONE_MOVABLE: io_uring moves it out by a long-term pin."""
        plain = memory.backing in ("anon", "shmem", "hugetlb") and not memory.movable
        return plain and memory.touched and bool(self.movable_bytes)

    def _huge_shortage(self, wanted_bytes: int) -> list[Unmet]:
        if wanted_bytes <= self.free_huge_bytes:
            return []
        pages = wanted_bytes // HUGE_BYTES
        free = format_bytes(self.free_huge_bytes)
        detail = f"{free} free in the pool, {format_pages(pages)} wanted"
        return [Unmet(Need.HUGETLB_2M, detail, _more_huge_pages(pages))]

    def _movable_shortage(self, wanted_bytes: int) -> list[Unmet]:
        # What is free there is used by others too; half of it is what a case can count on.
        if 2 * wanted_bytes <= self.movable_bytes:
            return []
        detail = f"CMA and ZONE_MOVABLE have {format_bytes(self.movable_bytes)}"
        return [Unmet(Need.MOVABLE, detail, _LAB_REMEDY[Need.MOVABLE])]


def survey(
    *,
    device: str | None,
    scratch: Sequence[Path],
    capabilities: Capabilities,
    pyverbs_error: str | None,
    log: kmsg.KernelLog | None,
    setup_failures: Mapping[Need, str] | None = None,
) -> Survey:
    """Look at the machine. A device or scratch directory that is not there is a UsageError.

    ``setup_failures``: what the lab's guest set-up could not provide, told in the skip's place.
    """
    frames_visible = _page_frames_visible()
    areas = cma.find(log.all_text() if log is not None else None)
    chosen = choose_device(device)
    directories = _directories(scratch)
    found = Survey(
        Surroundings(
            device=chosen,
            scratch=directories,
            cma_ranges=areas,
            page_frames_visible=frames_visible,
        )
    )
    lacking = [
        *_rdma(chosen, capabilities, pyverbs_error),
        *_kernel_interfaces(),
        *_scratch(directories),
        *_movable(found, areas, frames_visible),
    ]
    pool = hugepages.read().get(HUGE_BYTES)
    if pool is None:
        lacking.append(_unmet(Need.HUGETLB_2M, "this kernel has no 2 MiB hugetlb pool"))
    else:
        found.free_huge_bytes = (pool.usable or 0) * HUGE_BYTES
    for need, failure in (setup_failures or {}).items():
        lacking.append(Unmet(need, f"the guest's set-up failed: {failure}", _REPORT_REMEDY))
    if (target := directories.get("target")) is not None:
        mount = mountinfo.of_path(target)
        found.target_fs = mount.fs_type if mount is not None else None
    found.driver = next((entry.driver for entry in rdma.read() if entry.name == chosen), None)
    found.lacking = {Need(unmet.code): unmet for unmet in lacking}
    return found


def default_scratch() -> tuple[Path, ...]:
    """The current directory, where files may be made in it; nobody asked for it, so no error."""
    here = Path.cwd()
    return (here,) if os.access(here, os.W_OK) else ()


def choose_device(wanted: str | None) -> str | None:
    """The device named, or else the first whose port is active; UsageError when it is not there."""
    devices = rdma.read()
    present = [entry.name for entry in devices]
    if wanted is not None:
        if wanted not in present:
            there = ", ".join(present) or "none"
            raise UsageError(
                f"rdma device {wanted!r} is not there (found: {there}); "
                "name one that is, or leave --device out"
            )
        return wanted
    active = [entry.name for entry in devices if any(p.state == "ACTIVE" for p in entry.ports)]
    return next(iter(active or present), None)


def _page_frames_visible() -> bool:
    # pagemap shows page frame numbers to CAP_SYS_ADMIN only, since Linux commit 1c90308e7a77
    # ("pagemap: hide physical addresses from non-privileged users") (in v4.2).
    status = process_status.read("self")
    return status is not None and bool(process_status.has_capability(status, "CAP_SYS_ADMIN"))


def _directories(scratch: Sequence[Path]) -> dict[str, str]:
    """The first directory of each kind: ext4, dax, and any block-backed one as the IO target."""
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
        if mount.fs_type == "ext4":
            found.setdefault("ext4", path)
        if mount.fs_type in BLOCK_BACKED:
            found.setdefault("target", path)
    return found


def _rdma(device: str | None, capabilities: Capabilities, pyverbs_error: str | None) -> list[Unmet]:
    if pyverbs_error is not None:
        remedy = (
            "apt install python3-pyverbs, and run under /usr/bin/python3 or a venv made from it"
        )
        detail = f"pyverbs cannot be used: {pyverbs_error}"
        return [Unmet(Need.RDMA_DEVICE, detail, remedy), Unmet(Need.RDMA_ODP, detail, remedy)]
    if device is None:
        detail = "this machine has no rdma device"
        return [_unmet(Need.RDMA_DEVICE, detail), _unmet(Need.RDMA_ODP, detail)]
    can = capabilities(device)
    if "error" in can:
        detail = f"{device} cannot be opened: {can['error']}"
        return [_unmet(Need.RDMA_DEVICE, detail), _unmet(Need.RDMA_ODP, detail)]
    if not (can["odp"] and can["odp_rc_write"] and can["odp_rc_read"]):
        detail = f"{device} has no on-demand paging for reads and writes over RC on this kernel"
        return [_unmet(Need.RDMA_ODP, detail)]
    return []


def _kernel_interfaces() -> list[Unmet]:
    unmet = []
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        unmet.append(_unmet(Need.IO_URING, f"io_uring_setup: {os.strerror(error.errno)}"))
    if (refusal := _process_vm_refusal()) is not None:
        unmet.append(_unmet(Need.PROCESS_VM, f"process_vm_writev: {refusal}"))
    huge = thp.read()
    if not huge.on_request:
        detail = "no transparent huge pages" if huge.enabled is None else "they are off: never"
        unmet.append(_unmet(Need.THP, detail))
    return unmet


def _process_vm_refusal() -> str | None:
    """Why this process may not even write to itself; None when it may."""
    byte = bytearray(1)
    place = libc.iovecs([(libc.address_of(byte), 1)])
    try:
        libc.check("process_vm_writev", libc.process_vm_writev(os.getpid(), place, place))
    except CallFailed as error:
        return os.strerror(error.errno)
    return None


def _scratch(directories: Mapping[str, str]) -> list[Unmet]:
    unmet = []
    for need, kind, what in (
        (Need.SCRATCH_EXT4, "ext4", "on ext4"),
        (Need.SCRATCH_DAX, "dax", "on a file system mounted with -o dax"),
        (Need.TARGET_DIO, "target", f"on a block-backed file system ({', '.join(BLOCK_BACKED)})"),
    ):
        if kind not in directories:
            detail = f"no scratch directory {what}"
            unmet.append(Unmet(need, detail, "name one that is with --scratch DIR"))
    return unmet


def _movable(
    found: Survey, areas: tuple[tuple[int, int], ...] | None, frames_visible: bool
) -> list[Unmet]:
    cma_pages = sum(end - first for first, end in areas or ())
    zone_pages = sum(zone.present_pages or 0 for zone in zoneinfo.read() if zone.name == "Movable")
    found.movable_bytes = (cma_pages + zone_pages) * PAGE_BYTES
    if not found.movable_bytes:
        return [_unmet(Need.MOVABLE, "this kernel has neither a CMA area nor a ZONE_MOVABLE")]
    if not frames_visible:
        return [_unmet(Need.MOVABLE, "page frame numbers are hidden without CAP_SYS_ADMIN")]
    return []


def _more_huge_pages(pages: int) -> str:
    return f"sysctl vm.nr_hugepages={pages} (or run with --setup, which gives it back)"


_REPORT_REMEDY = "see console.log in the bundle"
_LAB_REMEDY = {
    Need.RDMA_DEVICE: "run in the lab: pinstorm lab run SUITE, or add one: rdma link add",
    Need.RDMA_ODP: "a device or kernel with ODP (rxe: Linux 6.15 and later), or the lab",
    Need.IO_URING: "sysctl kernel.io_uring_disabled=0, or a container profile that allows it",
    Need.PROCESS_VM: "a kernel with CONFIG_CROSS_MEMORY_ATTACH and a container that allows ptrace",
    Need.THP: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    Need.HUGETLB_2M: "run in the lab",
    Need.MOVABLE: "boot with cma= or kernelcore= and run as root, or run in the lab",
}


def _unmet(need: Need, detail: str) -> Unmet:
    return Unmet(need, detail, _LAB_REMEDY[need])
