"""The kernel: which one, what it says of itself, and what of it can be traced and read."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.sight import Sight
from telemetry import cgroup, gup_trace, sysctl

# There when systemd runs this machine: sd_booted(3).
_SYSTEMD: Final = Path("/run/systemd/system")


def findings(sight: Sight) -> Iterator[Finding]:
    yield _release(sight)
    yield _config(sight)
    yield _trace(sight)
    yield _log(sight)
    yield _leaf()


def _release(sight: Sight) -> Finding:
    about, known = sight.about, sight.kernel
    vendor = known is None or known.vendor
    seen = f"Linux {about.get('release')}, {about.get('machine')}"
    if known is None:
        seen += ", a release of no known form"
    elif known.vendor:
        seen += ", of a vendor that carries later work under an old number"
    if about.get("tainted"):
        seen += f", tainted {about['tainted']}"
    return Finding(
        "kernel",
        Topic.KERNEL,
        Status.LIMITED if vendor else Status.OK,
        seen,
        "rules speak of mainline, stable and Debian; of a vendor's kernel some allow both outcomes",
        None,
        {
            "release": about.get("release"),
            "vendor": known.vendor if known else None,
            "tainted": about.get("tainted"),
            "cmdline": about.get("cmdline"),
        },
    )


def _config(sight: Sight) -> Finding:
    source = sight.about.get("config_source")
    return Finding(
        "kernel-config",
        Topic.KERNEL,
        Status.OK if source else Status.LIMITED,
        f"its configuration is in {source}" if source else "its configuration is not to be found",
        "says whether what is missing can be loaded, and goes into the manifest",
        None,
        {"options": sight.about.get("config")},
    )


def _trace(sight: Sight) -> Finding:
    missing = gup_trace.unavailable()
    hidden = missing is not None and not sight.is_root
    command = None
    if missing is not None and "is not mounted" in missing:
        command = "mount -t tracefs tracefs /sys/kernel/tracing"
    return Finding(
        "trace",
        Topic.KERNEL,
        Status.OK if missing is None else Status.LIMITED if hidden else Status.MISSING,
        missing or "kprobe events can be made: the calls of GUP and their FOLL flags can be seen",
        "[run] trace = true: which pin class the kernel's call site asked for",
        command,
        {"available": missing is None},
        {},
        ("whether GUP can be traced: run as root",) if hidden else (),
    )


def _log(sight: Sight) -> Finding:
    restricted = sysctl.read_int("kernel.dmesg_restrict")
    seen = "the kernel log can be read"
    if not sight.has_log:
        seen = "the kernel log may not be read"
        if restricted:
            seen += f" (kernel.dmesg_restrict is {restricted})"
    return Finding(
        "kernel-log",
        Topic.KERNEL,
        Status.OK if sight.has_log else Status.LIMITED,
        seen,
        "a WARNING, a BUG or an Oops fails the case that made it; and where CMA lies",
        None if sight.has_log or not restricted else "sysctl kernel.dmesg_restrict=0",
        {"readable": sight.has_log, "dmesg_restrict": restricted},
        {},
        () if sight.has_log else ("reports of the kernel: run as root",),
    )


def _leaf() -> Finding:
    own = cgroup.own_v2()
    able = own is not None and os.access(own, os.W_OK)
    seen = f"a group can be made below {own}"
    if own is None:
        seen = "no cgroup v2 is mounted"
    elif not able:
        seen = f"no group can be made below {own}"
    delegable = own is not None and not able and _SYSTEMD.is_dir()
    return Finding(
        "cgroup-leaf",
        Topic.KERNEL,
        Status.OK if able else Status.LIMITED,
        seen,
        "a case's processes are killed together by it, however they are related; without it by "
        "their process group",
        "systemd-run --user --scope -p Delegate=yes pinstorm …" if delegable else None,
        {"possible": able},
        {"group": None if own is None else str(own)},
    )
