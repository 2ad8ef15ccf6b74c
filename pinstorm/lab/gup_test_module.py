"""The kernel's own GUP test (mm/gup_test.c) as a module for a lab kernel that was built without it.

Built from the distribution's linux-source package of exactly that kernel, against its headers, with
the compiler those headers depend on, in a root directory of its own below the cache: the packages
are unpacked there, none of their scripts run, nothing is installed and the host's own compiler is
not asked. About 250 MB are fetched and half a minute of work is done once for each kernel release;
what stays is one module, at CACHE/gup-test/RELEASE/.

CONFIG_GUP_TEST is a bool, so the source is included by a wrapper that makes it a module.
"""

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab import boot, debian
from pinstorm.lab.kernels import Kernel

MODULE: Final = "gup_test_module"
_SOURCES: Final = ("mm/gup_test.c", "mm/gup_test.h")

# The suites that hold a kernel's headers and source, and the compiler they were built with.
_SUITES: Final = (
    ("stable", "stable-security", "stable-backports"),
    ("oldstable", "oldstable-security"),
)
# What `make` and the scripts of kbuild run beside the compiler; a root of unpacked packages has
# no essential ones by itself.
_TOOLS: Final = (
    *("make", "dash", "bash", "coreutils", "findutils", "sed", "grep", "mawk"),
    *("diffutils", "perl-base", "binutils"),
)
# Directories that are links into /usr. Debian 12 has files in both, Debian 13 only below /usr.
_MERGED: Final = ("bin", "sbin", "lib", "lib64")

_WRAPPER: Final = """\
#include <linux/module.h>
#include <linux/mmzone.h>

#ifdef CONFIG_CMA
/*
 * folio_is_longterm_pinnable() asks for the pageblock's type by a function that is not exported. It
 * serves a WARN alone here: where the pages lie is checked from user space, by their frame numbers.
 */
static int pinstorm_migratetype(const struct page *page, unsigned long pfn)
{
	return MIGRATE_UNMOVABLE;
}
#define get_pfnblock_migratetype pinstorm_migratetype
#endif

#include "gup_test.c"

MODULE_DESCRIPTION("mm/gup_test.c as a module");
MODULE_LICENSE("GPL");
"""
_KBUILD: Final = f"obj-m := {MODULE}.o\n{MODULE}-y := wrapper.o\n"

# Run in a mount namespace of its own, which takes the mounts with it when it ends.
_BUILD: Final = """\
set -e
mount --bind /dev/null "$1/dev/null"
mount --rbind /proc "$1/proc"
exec chroot "$1" /usr/bin/make -s -C "$2" M=/build modules
"""


def module_for(kernel: Kernel, note: Callable[[str], None] = lambda text: None) -> Path | None:
    """The module's file, built where the cache lacks it; None where the kernel has it built in.

    ``note`` is told what takes its time. UsageError in one sentence when it cannot be built.
    """
    if kernel.has("GUP_TEST"):
        return None
    directory = cache.cache_dir() / "gup-test" / kernel.release
    module = directory / f"{MODULE}.ko"
    boot.check_visible(module, "PINSTORM_CACHE")
    if module.is_file():
        return module
    with cache.locked(directory):
        # another process may have built it while this one waited for the lock
        if not module.is_file():
            with cache.made_whole(directory) as work:
                _build(kernel.release, work, note)
    return module


def _build(release: str, work: Path, note: Callable[[str], None]) -> None:
    """Leave nothing but the module in ``work``."""
    root = work / "root"
    try:
        note(f"fetching the headers, source and compiler of kernel {release} for --gup-test")
        packages, source = _fetch(release, work)
        note(f"building gup_test for kernel {release}")
        _make_root(root, packages)
        _write_sources(root / "build", source)
        _make(root, release)
        built = root / "build" / f"{MODULE}.ko"
        _verify(built, release)
    except UsageError as error:
        # apt's remedies are for one who needs a kernel: this one is here
        cause = error.cause if isinstance(error, debian.FetchError) else error
        raise UsageError(
            f"gup_test cannot be built for kernel {release} ({cause}): "
            "run without --gup-test, or give a kernel that has CONFIG_GUP_TEST"
        ) from error
    built.rename(work / built.name)
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _fetch(release: str, work: Path) -> tuple[list[Path], Path]:
    """The files of the packages that build modules for a release, and of its source package."""
    headers = f"linux-headers-{release}"
    for number, suites in enumerate(_SUITES):
        apt = debian.Apt(work / f"apt-{number}", suites, wanted="headers and source")
        apt.update()
        version = apt.version(headers)
        if version is None:
            continue
        source = f"linux-source-{'.'.join(release.split('.')[:2])}={version}"
        into = work / "source"
        into.mkdir()
        (source_file,) = apt.download([source], into)
        return apt.download_closure([headers, *_TOOLS]), source_file
    raise UsageError(f"the Debian mirror has no package {headers}")


def _make_root(root: Path, packages: Sequence[Path]) -> None:
    """Unpack the packages into a root directory in which a shell, make and the compiler run."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        _run("dpkg-deb", "--extract", str(package), str(root))
    # what the packages' scripts would have done
    if not (root / "usr/bin/awk").exists():
        (root / "usr/bin/awk").symlink_to("mawk")
    for directory in ("proc", "dev", "tmp", "build"):
        (root / directory).mkdir(exist_ok=True)
    (root / "dev/null").touch()


def _write_sources(directory: Path, package: Path) -> None:
    """The wrapper and the test's source, out of the tar file in the linux-source package."""
    (directory / "wrapper.c").write_text(_WRAPPER)
    (directory / "Kbuild").write_text(_KBUILD)
    found = 0
    # The package is a tar file of one compressed tar file. Both are read as they come: unpacked,
    # the kernel's source is 1.5 GB.
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as outer:
            archives = (m for m in outer if re.search(r"/linux-source-[^/]*\.tar\.xz$", m.name))
            if (archive := next(archives, None)) is not None:
                packed = outer.extractfile(archive)
                assert packed is not None
                found = _extract(packed, directory)
        unpacking.kill()
    if found < len(_SOURCES):
        raise UsageError(f"{package.name} does not hold {' and '.join(_SOURCES)}")


def _extract(packed: IO[bytes], directory: Path) -> int:
    """Write the wanted sources; how many were found. Stops reading after the last one."""
    found = 0
    with tarfile.open(fileobj=packed, mode="r|xz") as inner:
        for member in inner:
            if member.name.split("/", 1)[-1] not in _SOURCES:
                continue
            file = inner.extractfile(member)
            assert file is not None
            (directory / Path(member.name).name).write_bytes(file.read())
            found += 1
            if found == len(_SOURCES):
                break
    return found


def _make(root: Path, release: str) -> None:
    namespace = ["unshare", "--mount"]
    if os.geteuid():
        namespace.append("--map-root-user")
    tree = f"/usr/src/linux-headers-{release}"
    _run(*namespace, "/bin/sh", "-c", _BUILD, "make", str(root), tree, hermetic=True)


def _verify(module: Path, release: str) -> None:
    """The module says for which kernel it was built; see modinfo(8)."""
    magic = _run("modinfo", "-F", "vermagic", str(module)).split()
    if magic[:1] != [release]:
        raise UsageError(f"the module came out for kernel {' '.join(magic[:1]) or 'of no name'}")


def _run(*command: str, hermetic: bool = False) -> str:
    """Standard output; UsageError with the last line of what went wrong."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, "LC_ALL": "C"}
    if not hermetic:
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{path}", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
    except FileNotFoundError as error:
        raise UsageError(f"{command[0]} is not installed") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        errors = [line for line in said if "rror" in line] or said or ["no message"]
        raise UsageError(f"{command[0]} failed: {errors[0]}")
    return done.stdout
