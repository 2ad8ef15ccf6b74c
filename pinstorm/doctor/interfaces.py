"""Calls and nodes of the kernel that pin: what ``run`` itself asks before its first case."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.needed_by import needed_by
from pinstorm.doctor.sight import Sight
from pinstorm.needs.interfaces import UDMABUF
from pinstorm.needs.memory import KSM_RUN
from pinstorm.needs.unmet import ASKED
from telemetry import sysctl
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
# Where a command is all that is missing; of the others ``why`` says what it takes.
_COMMANDS: Final = {
    Need.MSG_ZEROCOPY: "ip link set lo up",
    Need.V4L2: "modprobe vivid n_devs=1",
    Need.KSM: f"echo 1 > {KSM_RUN}",
    Need.GUP_TEST: "pinstorm lab run matrix --gup-test",
}


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
        _command(need, figures),
        figures,
    )


def _why(need: Need) -> str:
    if need == Need.ORDINARY_USER:
        return "cases with user and memlock, as those of configs/failures.toml"
    if need == Need.CLEAR_WARN_ONCE:
        return "gup-overflow sees the kernel's warning of a page's last pin again"
    return needed_by(need)


def _command(need: Need, figures: dict[str, object]) -> str | None:
    if need == Need.IO_URING:
        # else seccomp, or a kernel without it
        return "sysctl kernel.io_uring_disabled=0" if figures["io_uring_disabled"] else None
    if need == Need.UDMABUF:
        return f"chmod a+rw {UDMABUF}" if Path(UDMABUF).exists() else "modprobe udmabuf"
    return _COMMANDS.get(need)
