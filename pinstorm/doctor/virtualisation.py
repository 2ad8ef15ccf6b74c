"""The lab: whether QEMU is there, and whether KVM really boots a guest."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.sight import Sight
from pinstorm.errors import PinstormError, UsageError
from pinstorm.lab import accel, kernels
from pinstorm.lab.accel import Accel

_KVM: Final = Path("/dev/kvm")
_WHY: Final = "pinstorm lab: without KVM guests are emulated, and their times no measure"
_PROBE: Final = "pinstorm doctor --probe-kvm"


def findings(sight: Sight, note: Callable[[str], None]) -> Iterator[Finding]:
    """``note`` is told before a guest is booted."""
    yield _programs()
    yield _kvm(sight.options.probe_kvm, note)


def _programs() -> Finding:
    wanted = {
        accel.QEMU: "apt-get install qemu-system-x86",
        # where lab.boot looks for it; Debian's own pip refuses
        "virtme-run": f"{shlex.quote(sys.executable)} -m pip install virtme-ng",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    absent = [name for name in wanted if shutil.which(name, path=path) is None]
    return Finding(
        "lab-programs",
        Topic.VIRTUALISATION,
        Status.MISSING if absent else Status.OK,
        f"not installed: {', '.join(absent)}" if absent else f"{', '.join(wanted)} are there",
        "pinstorm lab: kernels of your choice, with Soft-RoCE, DAX, CMA and huge pages",
        " && ".join(wanted[name] for name in absent) or None,
        {"absent": absent},
    )


def _kvm(probe: bool, note: Callable[[str], None]) -> Finding:
    if not _KVM.exists():
        seen = f"there is no {_KVM}: no KVM module, or this machine is a guest without nesting"
        return _finding(Status.MISSING, seen, None, None)
    if not os.access(_KVM, os.R_OK | os.W_OK):
        command = f"chmod a+rw {_KVM}"
        return _finding(Status.LIMITED, f"{_KVM} may not be opened by this user", command, None)
    try:
        answer = _booted(note) if probe else accel.remembered()
    except (PinstormError, OSError) as error:
        seen = f"{_KVM} is there, but it was not tried: {error}"
        return _finding(Status.LIMITED, seen, None, None)
    if answer is None:
        seen = f"{_KVM} can be opened; whether it boots a guest was not tried on this boot"
        return _finding(Status.LIMITED, seen, _PROBE, None)
    if answer.reason is not None:
        return _finding(Status.LIMITED, f"KVM does not boot a guest: {answer.reason}", None, False)
    seen = f"KVM boots a guest (QEMU {answer.qemu_version})"
    return _finding(Status.OK, seen, None, True)


def _booted(note: Callable[[str], None]) -> Accel:
    """Boots a kernel of the cache, once; the answer is kept there. UsageError without one."""
    known = [known for known in kernels.cached() if known.cached]
    if not known:
        raise UsageError("the cache has no kernel to boot; fetch one: pinstorm lab run quick")
    return accel.accelerator(kernels.resolve(known[0].name), note)


def _finding(status: Status, seen: str, command: str | None, boots: bool | None) -> Finding:
    return Finding("kvm", Topic.VIRTUALISATION, status, seen, _WHY, command, {"boots": boots})
