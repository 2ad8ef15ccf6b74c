"""Kernels for the lab: from a name to an image with its modules, fetched once into the cache.

A name is ``oldstable``, ``stable`` or ``backports`` (the newest kernel of that Debian suite), a
version prefix (``6.12``, the newest that starts with it), or the path of any vmlinuz that has its
modules beside it. ``all`` is the three suites. A name that was resolved once never touches the
network again, until it is refreshed. Nothing is installed.
"""

import contextlib
import difflib
import functools
import lzma
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab import debian

NAMES = tuple(debian.SUITES)
ALL = "all"
# What guests load. Debian packs modules with xz, which a guest without KVM unpacks for a second.
_LOADED = (
    *("9p", "9pnet_virtio", "virtio_console", "virtio_mmio", "virtio_pci", "virtio_blk"),
    *("rdma_rxe", "ib_uverbs", "dummy", "nd_pmem", "nd_e820", "ext4", "xfs", "btrfs", "overlay"),
    *("brd", "null_blk", "loop", "vfio_pci", "vfio_iommu_type1", "iommufd", "vivid"),
    *("device_dax", "dax_pmem", "udmabuf"),
)
_VERSION = re.compile(r"\d+(\.\d+)*([-+~][\w.+~-]*)?")
_REMEMBERED = "kernels/names.json"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel.

    ``vmlinuz``: the packed image. ``vmlinux``: the same unpacked, an ELF file that QEMU enters
    directly (PVH), or None. ``modules``: BASE/lib/modules/RELEASE, with modules.dep.
    ``config_file``: the build configuration, or None where the package did not bring it.
    ``gup_test``: the module of pinstorm.lab.gup_test_module, where it was asked for and is needed.
    """

    name: str
    release: str
    vmlinuz: Path
    modules: Path
    vmlinux: Path | None = None
    config_file: Path | None = None
    gup_test: Path | None = None

    @property
    def modules_base(self) -> Path:
        """What ``modprobe -d`` and ``depmod -b`` take: the directory that holds lib/modules."""
        return self.modules.parents[2]

    def config(self) -> Mapping[str, str]:
        """CONFIG_* options that are set, without the prefix: {"CMA": "y", …}."""
        return _read_config(self.config_file) if self.config_file else {}

    def has(self, option: str) -> bool:
        """Whether the option is built in or a module; False where the configuration is unknown."""
        return self.config().get(option.removeprefix("CONFIG_")) in ("y", "m")


@dataclass(frozen=True, slots=True)
class Known:
    """A line of ``pinstorm lab kernels``: a name, and what it stands for where that is known."""

    name: str
    release: str | None
    cached: bool


def parse_config(text: str) -> dict[str, str]:
    """The set options of a kernel's .config."""
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))


@functools.cache
def _read_config(path: Path) -> Mapping[str, str]:
    return parse_config(path.read_text(errors="replace"))


def expand(names: list[str]) -> list[str]:
    """The names with ``all`` replaced by the three suites, each once, in order."""
    wanted = [n for name in names for n in (NAMES if name == ALL else (name,))]
    return list(dict.fromkeys(wanted))


def resolve(
    name: str, refresh: bool = False, note: Callable[[str], None] = lambda text: None
) -> Kernel:
    """The kernel that ``name`` stands for, fetched when the cache lacks it.

    ``refresh`` asks the mirror again what the name stands for now; ``note`` is told what takes its
    time. UsageError in one sentence for
    a name that no kernel has, a machine without apt, or no network.
    """
    if "/" in name or Path(name).is_file():
        return from_path(Path(name))
    if not refresh and (kernel := _remembered(name)):
        return kernel
    if name not in NAMES and not _VERSION.fullmatch(name):
        raise UsageError(_unknown(name))
    root = cache.cache_dir()
    with cache.locked(root / "kernels"):
        # another process may have fetched it while this one waited for the lock
        if not refresh and (kernel := _remembered(name)):
            return kernel
        note(f"asking the Debian mirror for kernel {name}")
        apt, release = _find(name, root)
        directory = root / "kernels" / release
        if not directory.is_dir():
            note(f"fetching kernel {release} into {directory}")
            _fetch(apt, release, directory)
        remembered = cache.read_json(root / _REMEMBERED)
        remembered[name] = {"release": release, "asked_unix_s": int(time.time())}
        cache.write_json(root / _REMEMBERED, remembered)
    return from_directory(name, directory)


def cached() -> list[Known]:
    """Every name that was resolved before, and every kernel in the cache; never asks the mirror."""
    root = cache.cache_dir()
    remembered = {n: str(e.get("release")) for n, e in cache.read_json(root / _REMEMBERED).items()}
    lines = []
    for name in (*NAMES, *(n for n in remembered if n not in NAMES)):
        release = remembered.get(name)
        lines.append(
            Known(name, release, bool(release) and (root / "kernels" / str(release)).is_dir())
        )
    seen = {line.release for line in lines}
    for directory in _directories(root):
        if directory.name not in seen:
            lines.append(Known(directory.name, directory.name, True))
    return lines


def available() -> list[Known]:
    """The three names as the mirror has them now, and every other release it offers."""
    root = cache.cache_dir()
    have = {d.name for d in _directories(root)}
    lines = []
    for name in NAMES:
        apt = _apt(name, root)
        apt.update()
        release = apt.meta_release()
        lines.append(Known(name, release, release in have))
        lines += [Known(r, r, r in have) for r in apt.releases() if r != release]
    return lines


def _directories(root: Path) -> list[Path]:
    found = [p for p in (root / "kernels").glob("[0-9]*") if p.is_dir()]
    return sorted(found, key=lambda path: debian.release_order(path.name))


def _remembered(name: str) -> Kernel | None:
    root = cache.cache_dir()
    entry = cache.read_json(root / _REMEMBERED).get(name, {})
    # a full release that another name fetched needs no asking either
    directory = root / "kernels" / str(entry.get("release", name))
    if name in ("", ".", "..") or not (directory / "usr/lib/modules").is_dir():
        return None
    kernel = from_directory(name, directory)
    _unpack_newly_listed(kernel)
    return kernel


def _unpack_newly_listed(kernel: Kernel) -> None:
    """A kernel of an older pinstorm's cache has modules packed that guests load by now."""
    if not _packed(kernel.modules):
        return
    with cache.locked(kernel.modules_base):
        if _packed(kernel.modules):
            _unpack_modules(kernel.modules)
            _run("depmod", "--basedir", str(kernel.modules_base), kernel.release)


def _apt(name: str, root: Path) -> debian.Apt:
    return debian.Apt(root / "apt" / name, debian.SUITES[name])


def _find(name: str, root: Path) -> tuple[debian.Apt, str]:
    """Where the newest kernel of that name or version prefix is to be had."""
    if name in NAMES:
        apt = _apt(name, root)
        apt.update()
        return apt, apt.meta_release()
    offers: list[tuple[debian.Apt, str]] = []
    every: list[str] = []
    for suite in NAMES:
        apt = _apt(suite, root)
        apt.update()
        releases = apt.releases()
        every += releases
        if newest := debian.newest_with_prefix(name, releases):
            offers.append((apt, newest))
    if not offers:
        raise UsageError(_unknown(name, every))
    return max(offers, key=lambda offer: debian.release_order(offer[1]))


def _unknown(name: str, releases: list[str] | None = None) -> str:
    near = difflib.get_close_matches(name, [*NAMES, ALL], n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    versions = sorted(
        {".".join(r.split(".")[:2]) for r in releases or []}, key=debian.release_order
    )
    offered = f"; the mirror has {', '.join(versions)}" if versions else ""
    return (
        f"no kernel is called {name!r}{hint}{offered}: give oldstable, stable, backports, all, "
        "a version prefix such as 6.12, or the path of a vmlinuz"
    )


def _fetch(apt: debian.Apt, release: str, directory: Path) -> None:
    """Download, verify and unpack one kernel into ``directory``, which appears when it is whole."""
    packages = apt.packages(release)
    with cache.made_whole(directory) as tree:
        debs = tree / "debs"
        debs.mkdir()
        for deb in apt.download(packages, debs):
            _run("dpkg-deb", "--extract", str(deb), str(tree))
        shutil.rmtree(debs)
        shutil.rmtree(tree / "usr/share", ignore_errors=True)
        _merge_lib(tree)
        _run("depmod", "--basedir", str(tree), release)
        _unpack_modules(tree / "lib/modules" / release)
        _run("depmod", "--basedir", str(tree), release)
        with contextlib.suppress(ValueError, OSError):
            (tree / "vmlinux").write_bytes(unpack_image(_vmlinuz(tree, release).read_bytes()))


def _merge_lib(tree: Path) -> None:
    """lib/modules and usr/lib/modules become one: kmod looks in either, by its version."""
    old = tree / "lib"
    (tree / "usr/lib").mkdir(parents=True, exist_ok=True)
    if old.is_dir():
        if (old / "modules").is_dir():
            (old / "modules").rename(tree / "usr/lib/modules")
        shutil.rmtree(old)
    old.symlink_to("usr/lib")


def _unpack_modules(modules: Path) -> None:
    """Unpack the modules that guests load, and those they depend on; depmod has to run after."""
    for packed in _packed(modules):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()


def _packed(modules: Path) -> list[Path]:
    try:
        listed = (modules / "modules.dep").read_text()
    except FileNotFoundError:  # nothing is built as a module, or depmod never ran
        return []
    paths = module_closure(listed, _LOADED)
    return [modules / p for p in paths if p.endswith(".xz") and (modules / p).is_file()]


def module_closure(modules_dep: str, names: Iterable[str]) -> list[str]:
    """Files, relative as in modules.dep, of the named modules and all they depend on.

    modules.dep lists every dependency, not only the direct ones. See modules.dep(5).
    """
    wanted = {name.replace("-", "_") for name in names}
    found: dict[str, None] = {}
    for line in modules_dep.splitlines():
        path, _, depends = line.partition(":")
        if path.rsplit("/", 1)[-1].split(".")[0].replace("-", "_") in wanted:
            found.update(dict.fromkeys([path, *depends.split()]))
    return list(found)


def _run(*command: str) -> None:
    # depmod is in sbin, which an ordinary user's PATH lacks on Debian
    path = os.environ.get("PATH", "/usr/bin:/bin")
    environment = {**os.environ, "PATH": f"{path}:/usr/sbin:/sbin"}
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not installed: run scripts/setup") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(
            f"{command[0]} failed on the fetched kernel ({last}): try again"
        ) from error


def _vmlinuz(tree: Path, release: str) -> Path:
    for path in (tree / f"usr/lib/modules/{release}/vmlinuz", tree / f"boot/vmlinuz-{release}"):
        if path.is_file():
            return path
    raise UsageError(f"the packages of kernel {release} hold no vmlinuz: report this")


def from_directory(name: str, directory: Path) -> Kernel:
    """The kernel in one of the cache's directories, which is named by its release."""
    release = directory.name
    modules = directory / "lib/modules" / release
    config = (modules / "config", directory / f"boot/config-{release}")
    vmlinux = directory / "vmlinux"
    return Kernel(
        name=name,
        release=release,
        vmlinuz=_vmlinuz(directory, release),
        modules=modules,
        vmlinux=vmlinux if vmlinux.is_file() else None,
        config_file=next((p for p in config if p.is_file()), None),
    )


def from_path(path: Path) -> Kernel:
    """A kernel that somebody built: its modules lie beside it or in lib/modules above it."""
    path = path.expanduser().absolute()
    try:
        with path.open("rb") as file:
            release = image_release(file.read(1 << 20))
    except OSError as error:
        raise UsageError(
            f"kernel {path} cannot be read ({error.strerror}): give the path of a vmlinuz"
        ) from error
    except ValueError as error:
        raise UsageError(f"kernel {path} is no x86 vmlinuz ({error}): give a bzImage") from error
    bases = [base for parent in path.parents for base in (parent, parent / "usr")]
    for base in bases:
        modules = base / "lib/modules" / release
        if (modules / "modules.dep").is_file():
            break
    else:
        raise UsageError(
            f"kernel {path} ({release}) has no modules beside it: put them in "
            f"{path.parent}/lib/modules/{release} (make modules_install INSTALL_MOD_PATH=…)"
        )
    config = (modules / "config", path.with_name(f"config-{release}"), path.with_name(".config"))
    return Kernel(
        name=str(path),
        release=release,
        vmlinuz=path,
        modules=modules,
        config_file=next((p for p in config if p.is_file()), None),
    )


def image_release(head: bytes) -> str:
    """The release in a bzImage's header (field kernel_version, at 0x20e; boot protocol 2.00).

    See Documentation/arch/x86/boot.rst. ValueError when these bytes are no bzImage.
    """
    if len(head) < 0x250 or head[0x202:0x206] != b"HdrS":
        raise ValueError("no HdrS magic at 0x202")
    start = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    return head[start : head.index(0, start)].decode("ascii", "replace").split()[0]


def unpack_image(image: bytes) -> bytes:
    """The ELF vmlinux inside a bzImage (payload_offset 0x248, payload_length 0x24c).

    QEMU enters it directly through its PVH note, which spares the guest to decompress itself:
    under emulation that takes seconds. ValueError for a compression other than xz and zstd.
    """
    image_release(image)
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        unpacked = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        # the last four bytes are the unpacked size, which is not zstd's
        zstd = ["zstd", "--decompress", "--stdout", "--quiet"]
        done = subprocess.run(zstd, input=payload[:-4], capture_output=True)
        unpacked = done.stdout
    else:
        raise ValueError(f"payload starts with {payload[:4].hex()}, neither xz nor zstd")
    if not unpacked.startswith(b"\x7fELF"):
        raise ValueError("the payload is no ELF file")
    return unpacked
