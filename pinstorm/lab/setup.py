"""What the guest is given before its cases run: an RDMA device, scratch, special memory, devices.

Runs in the guest, as root, and imports nothing slow. Every piece fails by itself and says
why; the cases that need it are skipped with that reason. Pieces do not wait for each other.
"""

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from telemetry import hugepages as huge
from telemetry import meminfo, mountinfo, numa, zoneinfo

RUN = Path("/run/pinstorm")
DEVICE = "rxe0"
_INTERFACE = "dummy0"
_ADDRESS = "192.0.2.1/24"  # TEST-NET-1, RFC 5737: routed nowhere
_MTU_BYTES = 9000
_HUGE_BYTES = 2 << 20
_GIGANTIC_BYTES = 1 << 30
# Made by the guest's entry when the modules of the shape have been tried; see pinstorm.lab.boot.
MODULES_LOADED = RUN / "modules-loaded"
COMMAND_DEADLINE_S = 60.0
# The environment variable that names the module's file, set by pinstorm.lab.run.
GUP_TEST_MODULE = "PINSTORM_GUP_TEST_MODULE"
# Blocks of a page, so that DAX can map them. The inode tables are left to be written when they are
# needed, and nothing is discarded: both take seconds under emulation, neither touches user pages.
# The journal stays: without one, ext4 goes other ways in write-back and in DAX mounts.
_MKFS = {
    "ext4": (
        *("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "4096"),
        *("-E", "nodiscard,lazy_itable_init=1"),
    ),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K", "-d", "agcount=2"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K", "-m", "single", "-d", "single"),
}
_TMPFS_MIB = 256
# Where pinstorm.lab.shape has the kernel make persistent memory for device-DAX.
DEVDAX_AT_MIB = 4736
_PCI = Path("/sys/bus/pci")
# QEMU's teaching device: docs/specs/edu.rst
_EDU = ("0x1234", "0x11e8")
_VIVID_CAPTURE = re.compile(r"vivid-\d+-vid-cap")


class SetupError(Exception):
    """A step of a piece failed; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a piece made: in words, and what cases need to find it.

    ``scratch``: directories by kind; ``nodes``: devices by kind, as in workloads.spec.Surroundings.
    """

    detail: str
    scratch: Mapping[str, Path] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetupResult:
    """Whether a piece is there, what it is or why it is not, and how long it took."""

    ok: bool
    given: Given
    elapsed_s: float = 0.0

    @property
    def detail(self) -> str:
        return self.given.detail


@dataclass(frozen=True, slots=True)
class Lab:
    """What the pieces gave, by piece, and together: scratch directories, devices.

    ``modules_s``: how long the modules took that the guest's entry loads, since Python ran.
    """

    results: Mapping[str, SetupResult]
    modules_s: float = 0.0

    @property
    def scratch(self) -> dict[str, str]:
        done = self._done()
        return {kind: str(path) for given in done for kind, path in given.scratch.items()}

    @property
    def nodes(self) -> dict[str, str]:
        return {kind: node for given in self._done() for kind, node in given.nodes.items()}

    @property
    def device(self) -> str | None:
        result = self.results.get("rxe")
        return DEVICE if result is not None and result.ok else None

    def to_json(self) -> dict[str, object]:
        return {
            "pieces": {
                name: {"ok": r.ok, "detail": r.detail, "elapsed_s": round(r.elapsed_s, 3)}
                for name, r in self.results.items()
            },
            "modules_s": round(self.modules_s, 3),
            "scratch": self.scratch,
            "nodes": self.nodes,
            "device": self.device,
        }

    def _done(self) -> list[Given]:
        return [result.given for result in self.results.values() if result.ok]


def set_up(pieces: Iterable[str]) -> Lab:
    """Set up the named pieces, at the same time; never raises for one that fails."""
    names = list(dict.fromkeys(pieces))
    start = time.monotonic()
    if RUN.is_dir():
        _wait_for(MODULES_LOADED.exists, "", COMMAND_DEADLINE_S, raises=False)
    modules_s = time.monotonic() - start
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        results = dict(zip(names, pool.map(_attempt, names), strict=True))
    return Lab(results, modules_s)


def _attempt(name: str) -> SetupResult:
    start = time.monotonic()
    piece = PIECES.get(name)
    try:
        if piece is None:
            raise SetupError(f"no set-up piece is called {name!r}: give {', '.join(PIECES)}")
        ok, given = True, piece()
    except (SetupError, OSError) as error:
        ok, given = False, Given(str(error))
    return SetupResult(ok, given, time.monotonic() - start)


def rxe() -> Given:
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
    return Given(f"{DEVICE} on {_INTERFACE} ({_ADDRESS})")


def loopback() -> Given:
    """The loopback interface is up: over it MSG_ZEROCOPY sends to itself."""
    flags = Path("/sys/class/net/lo/flags")
    if not int(flags.read_text(), 16) & 1:  # IFF_UP, include/uapi/linux/if.h
        _run("ip", "link", "set", "lo", "up")
    return Given("lo is up")


def pmem_dax() -> Given:
    """ext4 mounted with -o dax on persistent memory that the kernel option memmap= made of RAM."""
    _load("nd_pmem", "nd_e820", "ext4")
    device = Path("/dev/pmem0")
    _wait_for(device.exists, f"{device} did not appear (kernel option memmap=512M!4G?)")
    directory = _make("ext4", device, RUN / "dax", "dax")
    mount = mountinfo.of_path(directory)
    # a kernel that cannot do DAX mounts without it and only says so in the log
    if mount is None or not mountinfo.is_dax(mount):
        raise SetupError(f"{directory} is mounted without dax")
    return Given(f"{device} on {directory}, ext4, dax", {"dax": directory})


def devdax() -> Given:
    """A range of persistent memory as a character device: device-DAX.

    What ``ndctl create-namespace --mode=devdax --map=mem`` does: the region's unused dax device is
    given the namespace, which must have no driver, and is then bound to dax_pmem. See
    Documentation/driver-api/nvdimm/nvdimm.rst.
    """
    _load("nd_e820", "device_dax", "dax_pmem")
    _wait_for(lambda: _namespace() is not None, f"no persistent memory at {DEVDAX_AT_MIB} MiB")
    namespace = _namespace()
    assert namespace is not None
    node = Path("/dev", namespace.name.replace("namespace", "dax"))
    if not node.exists():
        seed = namespace.parent / (namespace.parent / "dax_seed").read_text().strip()
        for name, value in (("mode", "ram"), ("align", _HUGE_BYTES), ("uuid", uuid.uuid4())):
            (seed / name).write_text(str(value))
        _wait_for(lambda: _claim(namespace, seed), f"{namespace.name} keeps another driver")
        Path("/sys/bus/nd/drivers/dax_pmem/bind").write_text(seed.name)
        _wait_for(node.exists, f"{node} did not appear")
    size_mib = int(Path("/sys/bus/dax/devices", node.name, "size").read_text()) >> 20
    return Given(f"{node} ({size_mib} MiB)", nodes={"devdax": str(node)})


def _namespace() -> Path | None:
    """The namespace of persistent memory that is meant for device-DAX, once it is there."""
    for path in Path("/sys/bus/nd/devices").glob("namespace*"):
        try:
            if int((path / "resource").read_text(), 16) == DEVDAX_AT_MIB << 20:
                return path.resolve()
        except OSError:  # it is being made
            continue
    return None


def _claim(namespace: Path, seed: Path) -> bool:
    """Give ``seed`` the namespace; False while a driver, which comes by itself, has it."""
    try:
        if (namespace / "driver").exists():
            (namespace / "driver/unbind").write_text(namespace.name)
        (seed / "namespace").write_text(namespace.name)
    except OSError:
        return False
    return True


def scratch_ext4() -> Given:
    """ext4 on a RAM disk: file-backed memory, and the target of direct IO."""
    return _scratch("ext4", 0, "target")


def scratch_xfs() -> Given:
    """XFS on a RAM disk."""
    return _scratch("xfs", 1)


def scratch_btrfs() -> Given:
    """btrfs on a RAM disk."""
    return _scratch("btrfs", 2)


def _scratch(fs_type: str, number: int, *kinds: str) -> Given:
    _load(fs_type, "brd")  # its size stands on the kernel's command line, see pinstorm.lab.shape
    device = Path(f"/dev/ram{number}")
    _wait_for(device.exists, f"{device} did not appear")
    directory = _make(fs_type, device, RUN / fs_type, "noatime")
    size_mib = int(Path("/sys/block", device.name, "size").read_text()) >> 11
    detail = f"{device} ({size_mib} MiB) on {directory}, {fs_type}"
    return Given(detail, dict.fromkeys((fs_type, *kinds), directory))


def scratch_tmpfs() -> Given:
    """tmpfs of base pages."""
    directory = RUN / "tmpfs"
    directory.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(directory):
        options = f"size={_TMPFS_MIB}m,huge=never,mode=1777"
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory))
    return Given(f"tmpfs ({_TMPFS_MIB} MiB) on {directory}", {"tmpfs": directory})


def hugepages() -> Given:
    """A pool of 2 MiB pages; the kernel option hugepages= made it, else it is asked for here."""
    pool = huge.read().get(_HUGE_BYTES)
    if pool is not None and not pool.total:
        huge.pool_size_file(_HUGE_BYTES).write_text("64")
        pool = huge.read().get(_HUGE_BYTES)
    if pool is None or not pool.free:
        raise SetupError("the kernel gave no 2 MiB pages (nr_hugepages stays 0)")
    return Given(f"{pool.free} free pages of 2 MiB")


def hugepages_1g() -> Given:
    """A page of 1 GiB, which only the kernel option hugepages= can be sure to get."""
    pool = huge.read().get(_GIGANTIC_BYTES)
    if pool is None or not pool.free:
        raise SetupError("the kernel gave no 1 GiB page (hugepagesz=1G hugepages=1)")
    return Given(f"{pool.free} free page of 1 GiB")


def movable() -> Given:
    """Memory that a long-term pin must leave: a CMA area, or a ZONE_MOVABLE that has pages."""
    if cma_bytes := meminfo.read().cma_total_bytes:
        return Given(f"CMA of {cma_bytes >> 20} MiB")
    pages = sum(zone.present_pages or 0 for zone in zoneinfo.read() if zone.name == "Movable")
    if not pages:
        raise SetupError("neither a CMA area nor a ZONE_MOVABLE with pages (cma=, kernelcore=)")
    return Given(f"ZONE_MOVABLE of {pages >> 8} MiB")


def numa_nodes() -> Given:
    """Two nodes with memory, which QEMU made."""
    nodes = [node.node for node in numa.read() if node.total_bytes]
    if len(nodes) < 2:
        raise SetupError("the kernel sees one node with memory")
    return Given(f"nodes {', '.join(map(str, nodes))}")


def ksm() -> Given:
    """ksmd merges soon what asked for it by MADV_MERGEABLE, and looks at nothing else.

    See Documentation/admin-guide/mm/ksm.rst.
    """
    directory = Path("/sys/kernel/mm/ksm")
    for name, value in (("sleep_millisecs", 10), ("pages_to_scan", 10_000), ("run", 1)):
        (directory / name).write_text(str(value))
    return Given("10000 pages every 10 ms")


def vfio() -> Given:
    """QEMU's edu device, behind an IOMMU, in the hands of vfio-pci.

    driver_override: Documentation/ABI/testing/sysfs-bus-pci.
    """
    _load("vfio_iommu_type1", "vfio-pci")
    devices = _PCI / "devices"
    edu = next((path for path in sorted(devices.iterdir()) if _pci_id(path) == _EDU), None)
    if edu is None:
        raise SetupError("the guest has no edu device (QEMU option -device edu)")
    if not (edu / "iommu_group").exists():
        raise SetupError(f"{edu.name} is behind no IOMMU (kernel option intel_iommu=on)")
    (edu / "driver_override").write_text("vfio-pci")
    if not (edu / "driver").exists():
        (_PCI / "drivers_probe").write_text(edu.name)
    group = (edu / "iommu_group").resolve().name
    node = Path("/dev/vfio", group)
    _wait_for(node.exists, f"{node} did not appear")
    return Given(f"{edu.name}, group {group}", nodes={"vfio": edu.name})


def _pci_id(path: Path) -> tuple[str, str]:
    return (path / "vendor").read_text().strip(), (path / "device").read_text().strip()


def v4l2() -> Given:
    """The capture node of vivid, the kernel's virtual video driver.

    Its default allocator is vmalloc, which takes user pointers; see
    Documentation/admin-guide/media/vivid.rst.
    """
    _load("vivid")  # with its parameters, which stand on the kernel's command line
    for path in sorted(Path("/sys/class/video4linux").glob("video*")):
        if _VIVID_CAPTURE.fullmatch((path / "name").read_text().strip()):
            node = Path("/dev", path.name)
            _wait_for(node.exists, f"{node} did not appear")
            return Given(f"{node}, vivid", nodes={"v4l2": str(node)})
    raise SetupError("vivid made no capture node")


def gup_test() -> Given:
    """The node of mm/gup_test.c: built in, or of the module that the lab built for this kernel."""
    node = Path("/sys/kernel/debug/gup_test")
    module = os.environ.get(GUP_TEST_MODULE)
    if module and not node.exists():
        _run("insmod", module)
    _wait_for(node.exists, f"{node} did not appear")
    return Given(f"{node}, {module or 'built in'}")


def tracing() -> Given:
    """tracefs and debugfs where tools look for them, and a kernel log that anyone may read."""
    for kind, directory in (("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing")):
        if not mountinfo.of_type(kind):
            _run("mount", "-t", kind, kind, directory)
    Path("/proc/sys/kernel/dmesg_restrict").write_text("0")
    return Given("tracefs, debugfs")


PIECES: Mapping[str, Callable[[], Given]] = {
    "tracing": tracing,
    "rxe": rxe,
    "loopback": loopback,
    "scratch-ext4": scratch_ext4,
    "scratch-xfs": scratch_xfs,
    "scratch-btrfs": scratch_btrfs,
    "scratch-tmpfs": scratch_tmpfs,
    "pmem-dax": pmem_dax,
    "devdax": devdax,
    "hugepages": hugepages,
    "hugepages-1g": hugepages_1g,
    "movable": movable,
    "numa": numa_nodes,
    "ksm": ksm,
    "vfio": vfio,
    "v4l2": v4l2,
    "gup-test": gup_test,
}


def _make(fs_type: str, device: Path, directory: Path, options: str) -> Path:
    """Make a file system and mount it; on a device of the guest's own RAM, never a disk."""
    directory.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(directory):
        _run(*_MKFS[fs_type], str(device))
        _run("mount", "-t", fs_type, "-o", options, str(device), str(directory))
    directory.chmod(0o1777)
    return directory


def _load(*modules: str) -> None:
    """Load the modules that are not there yet, by one modprobe."""
    missing = [name for name in modules if not Path("/sys/module", name.replace("-", "_")).exists()]
    if missing:
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
