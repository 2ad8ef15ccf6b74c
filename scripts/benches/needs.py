"""What the chosen benchmarks need of this machine: looked at before any of them runs."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from benches.pairs import Benchmark
from pinstorm.errors import UsageError
from pinstorm.lab import boot
from pinstorm.lab.accel import QEMU
from workloads import libc
from workloads.spec import CallFailed

_VERBS_HEADER = Path("/usr/include/infiniband/verbs.h")


def unmet(benchmarks: Iterable[Benchmark]) -> list[str]:
    """One sentence with the remedy for each need that is not met, in the order of first use."""
    wanted = dict.fromkeys(need for benchmark in benchmarks for need in benchmark.needs)
    return [lack for need in wanted if (lack := _PROBES[need]()) is not None]


def _fio() -> str | None:
    return None if shutil.which("fio") else "fio is not installed: apt-get install fio"


def _compiler() -> str | None:
    missing = [name for name in ("make", "cc") if shutil.which(name) is None]
    if not missing:
        return None
    return (
        f"{' and '.join(missing)} are not installed, and scripts/peers is C: "
        "apt-get install gcc libc6-dev make"
    )


def _verbs() -> str | None:
    if _VERBS_HEADER.exists():
        return None
    return f"{_VERBS_HEADER} is missing, and a peer wants it: apt-get install libibverbs-dev"


def _io_uring() -> str | None:
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        return (
            f"io_uring is refused here ({os.strerror(error.errno).lower()}): "
            "sysctl kernel.io_uring_disabled=0, or leave this container"
        )
    return None


def _root() -> str | None:
    if os.geteuid() == 0:
        return None
    return "only root may fold the counters (/proc/sys/vm/stat_refresh): run scripts/bench as root"


def _lab() -> str | None:
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed: run scripts/setup"
    try:
        boot.virtme_run()
    except UsageError as error:
        return str(error)
    return None


_PROBES: dict[str, Callable[[], str | None]] = {
    "fio": _fio,
    "compiler": _compiler,
    "verbs": _verbs,
    "io_uring": _io_uring,
    "root": _root,
    "lab": _lab,
}
