"""What is looked at once, for all findings together; nothing is changed by it.

The process is this one: its limits are those that a run started in its place would inherit.
"""

import importlib.util
import os
import platform
import pwd
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pinstorm import __version__, census, evidence, lock, needs, oracle
from pinstorm.doctor import device_probe, locked_memory
from pinstorm.doctor.device_probe import Answers
from pinstorm.doctor.locked_memory import Charged, NotMeasured
from pinstorm.errors import UsageError
from pinstorm.evidence_parts import Evidence, Holding, Process, readable
from pinstorm.needs import Survey
from pinstorm.oracle import Kernel
from telemetry import cgroup, clock, fingerprint, kmsg, process_status, rdma
from workloads.spec import Need, Surroundings

# What says by which way a process was started. Of the environment only that it is there is kept.
_LAUNCHERS: Final = (
    ("SLURM_JOB_ID", "slurm"),
    ("PBS_JOBID", "pbs"),
    ("LSB_JOBID", "lsf"),
    ("KUBERNETES_SERVICE_HOST", "kubernetes"),
    ("container", "container"),
    ("SSH_CONNECTION", "ssh"),
    ("INVOCATION_ID", "systemd"),
    ("SUDO_USER", "sudo"),
)
_CONTAINER_MARKS: Final = (Path("/run/.containerenv"), Path("/.dockerenv"))


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. ``probe_kvm``: a guest may be booted to find out."""

    device: str | None = None
    scratch: Sequence[Path] = ()
    probe_kvm: bool = False


@dataclass(frozen=True, slots=True)
class Sight:
    """``charged``: what the kernel has charged to the user, None with ``uncharged``, why it was not
    asked. ``run``: the pid of a run that is under way. ``has_log``: the kernel log is readable.
    ``about``: telemetry.fingerprint.kernel(). ``unsurveyed``: why ``survey`` is empty.
    """

    options: Options
    evidence: Evidence
    process: Process
    survey: Survey
    devices: Sequence[rdma.Device]
    answers: Answers
    holdings: Sequence[Holding]
    hidden: Sequence[str]
    charged: Charged | None
    uncharged: str | None
    run: int | None
    has_log: bool
    kernel: Kernel | None
    about: Mapping[str, Any] = field(default_factory=dict)
    unsurveyed: str | None = None

    @property
    def is_root(self) -> bool:
        return os.geteuid() == 0


def look(options: Options) -> Sight:
    """Raises UsageError for a device or a directory that was named and is not there."""
    run = lock.running()
    seen = _evidence()
    process = seen.process or _without_proc()
    charged, uncharged = _charged(process, run)
    devices = rdma.read()
    answers = _ask(devices)
    holdings, hidden = _holdings(process)
    log = kmsg.KernelLog.open()
    unsurveyed = None
    try:
        survey = needs.survey(
            device=options.device,
            scratch=options.scratch or needs.default_scratch(),
            capabilities=answers.of,
            pyverbs_error=answers.pyverbs_error,
            log=log,
        )
    except (OSError, ValueError) as error:  # a host without what every other one has
        survey, unsurveyed = Survey(Surroundings()), str(error)
    finally:
        if log is not None:
            log.close()
    if charged is not None and charged.used_bytes is not None:
        # A ring was made a moment ago. Its own charge comes back some milliseconds after it, and
        # until then a small limit may refuse the next one.
        survey.lacking.pop(Need.IO_URING, None)
    return Sight(
        options=options,
        evidence=seen,
        process=process,
        survey=survey,
        devices=devices,
        answers=answers,
        holdings=holdings,
        hidden=hidden,
        charged=charged,
        uncharged=uncharged,
        run=run,
        has_log=log is not None,
        kernel=_kernel(),
        about=fingerprint.kernel(),
        unsurveyed=unsurveyed,
    )


def where() -> dict[str, Any]:
    """Which host, kernel and user, and what started this process, as far as it shows."""
    uid = os.getuid()
    return {
        "pinstorm": __version__,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "kernel": platform.release(),
        "boot": clock.boot_id(),
        "uid": uid,
        "user": _name(uid),
        "launched_by": _launchers(),
        "parent": _parent(),
        "cgroup": _own_group(),
    }


def _evidence() -> Evidence:
    """Of this process, as of one that was refused locked memory."""
    try:
        return evidence.of_process(_pid_in_proc(), "io_uring_register", "ENOMEM")
    except (UsageError, OSError) as error:
        return Evidence(hidden=(f"this process cannot look at itself: {error}",))


def _without_proc() -> Process:
    """What a process knows of itself without /proc: who it is, and its limits."""
    soft_bytes, hard_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    address_space_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    return Process(
        pid=os.getpid(),
        name="",
        uid=os.geteuid(),
        real_uid=os.getuid(),
        memlock_soft_bytes=soft_bytes,
        memlock_hard_bytes=hard_bytes,
        address_space_bytes=address_space_bytes,
        vmsize_bytes=None,
        vmrss_bytes=None,
        vmpin_bytes=None,
        vmlck_bytes=None,
        cap_ipc_lock=None,
        cap_ipc_lock_permitted=None,
        cap_ipc_lock_inheritable=None,
        cap_effective=(),
        initial_userns=None,
        vma_count=None,
        vma_limit=None,
    )


def _pid_in_proc() -> int:
    """Our number there, which is none of getpid() where /proc is of another PID namespace."""
    return int(os.readlink("/proc/self"))


def _charged(process: Process, run: int | None) -> tuple[Charged | None, str | None]:
    if process.exempt:
        return None, "CAP_IPC_LOCK is effective, and nothing is compared"
    if run is not None:
        return None, f"a pinstorm run (pid {run}) is under way, which a pin of ours would disturb"
    try:
        return locked_memory.measure(), None
    except (NotMeasured, OSError) as error:  # no child may be started, for one
        return None, str(error)


def _holdings(process: Process) -> tuple[Sequence[Holding], Sequence[str]]:
    """What others of the user hold, of whatever kind, and what could not be seen."""
    if process.real_uid is None:
        return (), ("this user's processes could not be listed: /proc is not readable",)
    try:
        holders, hidden = census.holders(process.real_uid)
    except OSError as error:
        return (), (f"this user's processes could not be listed: {error}",)
    return [
        Holding(holder.pid, holder.name, held.kind, held.size_bytes, held.count)
        for holder in holders
        for held in holder.held
    ], hidden


def _ask(devices: Sequence[rdma.Device]) -> Answers:
    if devices:
        return device_probe.ask([device.name for device in devices])
    if importlib.util.find_spec("pyverbs") is None:
        return Answers("No module named 'pyverbs'")
    return Answers()


def _kernel() -> Kernel | None:
    try:
        return oracle.parse_kernel(platform.release(), platform.version())
    except ValueError:
        return None


def user_words(uid: int | None) -> str:
    """The name, or else the number."""
    return "?" if uid is None else _name(uid) or str(uid)


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _launchers() -> list[str]:
    found = [word for name, word in _LAUNCHERS if name in os.environ]
    if "container" not in found and any(mark.exists() for mark in _CONTAINER_MARKS):
        found.append("container")
    return found


def _parent() -> str | None:
    try:
        if _pid_in_proc() != os.getpid():
            return None  # somebody else has the parent's number there
        return readable(process_status.read(os.getppid()).name)
    except OSError:
        return None


def _own_group() -> str | None:
    """As the process sees it: v2's, else that of the v1 hierarchy that limits memory."""
    try:
        groups = cgroup.read()
    except OSError:
        return None
    both = [group for group in groups if not group.controllers or "memory" in group.controllers]
    paths = [group.path for group in both if group.path != "/"]
    return next(iter(paths or [group.path for group in both]), None)
