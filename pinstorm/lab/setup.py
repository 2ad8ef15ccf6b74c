"""What the guest is given before its cases run: an RDMA device, DAX, scratch, huge pages, CMA.

Runs in the guest, as root, and imports nothing slow. Every piece fails by itself and says
why; the cases that need it are skipped with that reason. Pieces do not wait for each other.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from telemetry import hugepages as huge
from telemetry import meminfo, mountinfo, zoneinfo

RUN = Path("/run/pinstorm")
DEVICE = "rxe0"
_INTERFACE = "dummy0"
_ADDRESS = "192.0.2.1/24"  # TEST-NET-1, RFC 5737: routed nowhere
_MTU_BYTES = 9000
_HUGE_BYTES = 2 << 20
# Made by the guest's entry when the modules of the shape have been tried; see pinstorm.lab.boot.
MODULES_LOADED = RUN / "modules-loaded"
COMMAND_DEADLINE_S = 60.0
# Blocks of a page, so that DAX can map them. The inode tables are left to be written when they are
# needed, and nothing is discarded: both take seconds under emulation, neither touches user pages.
# The journal stays: without one, ext4 goes other ways in write-back and in DAX mounts.
_MKFS = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=1", "-N", "4096")


class SetupError(Exception):
    """A step of a piece failed; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class SetupResult:
    """Whether a piece is there, what it is or why it is not, and how long it took."""

    ok: bool
    detail: str
    elapsed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Lab:
    """What the pieces gave: each one's result, directories by kind of scratch, the RDMA device."""

    results: Mapping[str, SetupResult]
    scratch: Mapping[str, str]
    device: str | None

    def to_json(self) -> dict[str, object]:
        return {
            "pieces": {
                name: {"ok": r.ok, "detail": r.detail, "elapsed_s": round(r.elapsed_s, 3)}
                for name, r in self.results.items()
            },
            "scratch": dict(self.scratch),
            "device": self.device,
        }


def set_up(pieces: Iterable[str]) -> Lab:
    """Set up the named pieces, at the same time; never raises for one that fails."""
    names = list(dict.fromkeys(pieces))
    if RUN.is_dir():
        _wait_for(MODULES_LOADED.exists, "", COMMAND_DEADLINE_S, raises=False)
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        results = dict(zip(names, pool.map(_attempt, names), strict=True))
    done = {name for name, result in results.items() if result.ok}
    scratch = {}
    if "scratch-ext4" in done:
        scratch["ext4"] = scratch["target"] = str(RUN / "ext4")
    if "pmem-dax" in done:
        scratch["dax"] = str(RUN / "dax")
    return Lab(results, scratch, DEVICE if "rxe" in done else None)


def _attempt(name: str) -> SetupResult:
    start = time.monotonic()
    piece = PIECES.get(name)
    try:
        if piece is None:
            raise SetupError(f"no set-up piece is called {name!r}: give {', '.join(PIECES)}")
        ok, detail = True, piece()
    except (SetupError, OSError) as error:
        ok, detail = False, str(error)
    return SetupResult(ok, detail, time.monotonic() - start)


def rxe() -> str:
    """A Soft-RoCE device on a dummy interface: loopback RDMA without hardware."""
    _load("rdma_rxe", "ib_uverbs", "dummy")
    if not Path("/sys/class/net", _INTERFACE).exists():
        _run("ip", "link", "add", _INTERFACE, "type", "dummy")
    _run("ip", "address", "replace", _ADDRESS, "dev", _INTERFACE)
    # A path MTU of 4096, so that no packet starts inside a page: rxe's __rxe_odp_mr_copy() ignores
    # the offset within the page (seen in the source of v7.2, and its corruption measured there).
    _run("ip", "link", "set", _INTERFACE, "mtu", str(_MTU_BYTES), "up")
    if not Path("/sys/class/infiniband", DEVICE).exists():
        _run("rdma", "link", "add", DEVICE, "type", "rxe", "netdev", _INTERFACE)
    node = Path("/dev/infiniband/uverbs0")
    _wait_for(node.exists, f"{node} did not appear")
    return f"{DEVICE} on {_INTERFACE} ({_ADDRESS})"


def pmem_dax() -> str:
    """ext4 mounted with -o dax on persistent memory that the kernel option memmap= made of RAM."""
    _load("nd_pmem", "nd_e820", "ext4")
    device = Path("/dev/pmem0")
    _wait_for(device.exists, f"{device} did not appear (kernel option memmap=512M!4G?)")
    directory = _make_ext4(device, RUN / "dax", "dax")
    mount = mountinfo.of_path(directory)
    # a kernel that cannot do DAX mounts without it and only says so in the log
    if mount is None or not mountinfo.is_dax(mount):
        raise SetupError(f"{directory} is mounted without dax")
    return f"{device} on {directory}, ext4, dax"


def scratch_ext4() -> str:
    """ext4 on a RAM disk: file-backed memory, and the target of direct IO."""
    _load("ext4", "brd")  # its size stands on the kernel's command line, see pinstorm.lab.shape
    device = Path("/dev/ram0")
    _wait_for(device.exists, f"{device} did not appear")
    directory = _make_ext4(device, RUN / "ext4", "noatime")
    size_mib = int(Path("/sys/block/ram0/size").read_text()) >> 11
    return f"{device} ({size_mib} MiB) on {directory}, ext4"


def hugepages() -> str:
    """A pool of 2 MiB pages; the kernel option hugepages= made it, else it is asked for here."""
    pool = huge.read().get(_HUGE_BYTES)
    if pool is not None and not pool.total:
        huge.pool_size_file(_HUGE_BYTES).write_text("64")
        pool = huge.read().get(_HUGE_BYTES)
    if pool is None or not pool.free:
        raise SetupError("the kernel gave no 2 MiB pages (nr_hugepages stays 0)")
    return f"{pool.free} free pages of 2 MiB"


def movable() -> str:
    """Memory that a long-term pin must leave: a CMA area, or a ZONE_MOVABLE that has pages."""
    if cma_bytes := meminfo.read().cma_total_bytes:
        return f"CMA of {cma_bytes >> 20} MiB"
    pages = sum(zone.present_pages or 0 for zone in zoneinfo.read() if zone.name == "Movable")
    if not pages:
        raise SetupError("neither a CMA area nor a ZONE_MOVABLE with pages (cma=, kernelcore=)")
    return f"ZONE_MOVABLE of {pages >> 8} MiB"


def tracing() -> str:
    """tracefs and debugfs where tools look for them, and a kernel log that anyone may read."""
    for kind, directory in (("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing")):
        if not mountinfo.of_type(kind):
            _run("mount", "-t", kind, kind, directory)
    Path("/proc/sys/kernel/dmesg_restrict").write_text("0")
    return "tracefs, debugfs"


PIECES: Mapping[str, Callable[[], str]] = {
    "tracing": tracing,
    "hugepages": hugepages,
    "rxe": rxe,
    "pmem-dax": pmem_dax,
    "scratch-ext4": scratch_ext4,
    "movable": movable,
}


def _make_ext4(device: Path, directory: Path, options: str) -> Path:
    """Make an ext4 on ``device`` and mount it; a device of the guest's own RAM, never a disk."""
    directory.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(directory):
        _run(*_MKFS, str(device))
        _run("mount", "-t", "ext4", "-o", options, str(device), str(directory))
    directory.chmod(0o1777)
    return directory


def _load(*modules: str) -> None:
    """Load the modules that are not there yet, by one modprobe."""
    if missing := [name for name in modules if not Path("/sys/module", name).exists()]:
        _run("modprobe", "-a", *missing)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
        )
    except FileNotFoundError as error:
        raise SetupError(f"{command[0]} is not installed: run scripts/setup") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"`{' '.join(command)}` took over {COMMAND_DEADLINE_S:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SetupError(f"`{' '.join(command)}` failed: {last}")


def _wait_for(
    condition: Callable[[], bool], otherwise: str, deadline_s: float = 10.0, raises: bool = True
) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            if not raises:
                return
            raise SetupError(f"{otherwise} within {deadline_s:.0f} s")
        time.sleep(0.02)


if __name__ == "__main__":
    import json

    json.dump(set_up(sys.argv[1:] or PIECES).to_json(), sys.stdout, indent=1)
