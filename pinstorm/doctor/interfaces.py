"""Calls and nodes of the kernel that pin: what ``run`` itself asks before its first case."""

import os
from collections.abc import Iterator
from errno import ENOMEM
from typing import Final

from pinstorm.doctor import pin_budget
from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.needed_by import needed_by
from pinstorm.doctor.sight import Sight
from pinstorm.needs import Unmet
from pinstorm.needs.interfaces import LOOPBACK_DOWN, UDMABUF
from pinstorm.needs.memory import KSM_RUN
from pinstorm.needs.unmet import ASKED
from telemetry import modules, sysctl
from workloads.spec import Need

_ASKED: Final = (
    Need.IO_URING,
    Need.PROCESS_VM,
    Need.AF_XDP,
    Need.MSG_ZEROCOPY,
    Need.UDMABUF,
    Need.V4L2,
    Need.GUP_TEST,
    Need.SECRETMEM,
    Need.KSM,
    Need.COMPACTION,
    Need.DROP_CACHES,
    Need.CLEAR_WARN_ONCE,
    Need.ORDINARY_USER,
)


def findings(sight: Sight) -> Iterator[Finding]:
    """OSError where nothing could be asked."""
    if sight.unsurveyed is not None:
        raise OSError(sight.unsurveyed)
    for need in _ASKED:
        yield _of_need(need, sight)


def _of_need(need: Need, sight: Sight) -> Finding:
    unmet = sight.survey.lacking.get(need)
    figures: dict[str, object] = {"usable": unmet is None}
    if need == Need.IO_URING:
        figures["io_uring_disabled"] = sysctl.read_int("kernel.io_uring_disabled")
    if unmet is None:
        return Finding(
            need.value,
            Topic.INTERFACES,
            Status.OK,
            ASKED[need],
            _why(need),
            None,
            figures,
        )
    return Finding(
        need.value,
        Topic.INTERFACES,
        Status.MISSING,
        unmet.detail,
        f"{_why(need)}. Remedy: {unmet.remedy}",
        _command(need, unmet, sight),
        figures,
    )


def _why(need: Need) -> str:
    if need == Need.ORDINARY_USER:
        return "cases with user and memlock, as those of configs/failures.toml"
    if need == Need.CLEAR_WARN_ONCE:
        return "gup-overflow sees the kernel's warning of a page's last pin again"
    return needed_by(need)


def _command(need: Need, unmet: Unmet, sight: Sight) -> str | None:
    """Where a command is all that is missing; of the others ``why`` says what it takes."""
    if need == Need.IO_URING:
        if sysctl.read_int("kernel.io_uring_disabled"):
            return "sysctl kernel.io_uring_disabled=0"
        # the ring itself is charged; else it is seccomp, or a kernel without it
        full = os.strerror(ENOMEM) in unmet.detail
        return pin_budget.raise_memlock(sight.process) if full else None
    if need == Need.MSG_ZEROCOPY:
        return "ip link set lo up" if unmet.detail == LOOPBACK_DOWN else None
    if need == Need.UDMABUF:
        return f"chmod a+rw {UDMABUF}" if UDMABUF.exists() else _load("udmabuf")
    if need == Need.V4L2:
        return _load("vivid", "n_devs=1")
    if need == Need.KSM:
        return f"echo 1 > {KSM_RUN}" if KSM_RUN.exists() else None
    return "pinstorm lab run matrix --gup-test" if need == Need.GUP_TEST else None


def _load(module: str, *parameters: str) -> str | None:
    able = modules.can_load(module) is not False
    return " ".join(["modprobe", module, *parameters]) if able else None
