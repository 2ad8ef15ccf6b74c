"""Versions of the software that a result depends on, without importing any of it.

The user space below RDMA matters as much as the kernel: what the provider library does not pass on
never reaches the driver. A version is read from where the package leaves it (its metadata, or the
library's file name); dpkg-query is asked last, because it is slow in an emulated guest.
"""

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path

LIBRARY_FOLDERS = ("/usr/lib/*-linux-gnu*", "/usr/lib64", "/usr/lib")
DISTRIBUTIONS = (
    "psutil",
    "pydantic",
    "typer",
    "rich",
    "polars",
    "numpy",
    "numba",
    "llvmlite",
    "virtme-ng",
)

_LIBIBVERBS = re.compile(r"^libibverbs\.so\.(\d+(?:\.\d+)+)$")
DPKG_DEADLINE_S = 10.0


def parse_libibverbs(names: list[str]) -> str | None:
    """rdma-core's version from its library's file name: ``libibverbs.so.1.14.44.0`` -> ``44.0``.

    CMakeLists.txt of rdma-core: VERSION 1.ABI.PACKAGE_VERSION.
    """
    for name in names:
        if match := _LIBIBVERBS.match(name):
            words = match[1].split(".")
            if len(words) >= 4:
                return ".".join(words[2:])
    return None


def libibverbs() -> str | None:
    names = [
        path.name
        for folder in LIBRARY_FOLDERS
        for path in Path("/").glob(f"{folder.lstrip('/')}/libibverbs.so.*")
    ]
    return parse_libibverbs(sorted(names)) or dpkg("libibverbs1")


def pyverbs() -> str | None:
    """Its metadata where there is any; Debian's package has none, and is built with rdma-core."""
    if importlib.util.find_spec("pyverbs") is None:
        return None
    return distribution("pyverbs") or dpkg("python3-pyverbs") or "unknown"


def distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def dpkg(package: str) -> str | None:
    """None where the package is not installed, or this is no Debian."""
    if shutil.which("dpkg-query") is None:
        return None
    try:
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", package],
            capture_output=True,
            text=True,
            timeout=DPKG_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """By name, those that are there."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "libibverbs": libibverbs(),
        "pyverbs": pyverbs(),
    }
    found |= {name: distribution(name) for name in DISTRIBUTIONS}
    return {name: version for name, version in found.items() if version is not None}
