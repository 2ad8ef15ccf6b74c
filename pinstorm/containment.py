"""Everything a case starts, in one place from which it can be killed.

A cgroup v2 leaf below our own where we may make one: nothing escapes it, not even a grandchild in a
session of its own. Where we may not, the child's process group and whatever the zygote adopted.
See Documentation/admin-guide/cgroup-v2.rst (cgroup.kill, since Linux 5.14).
"""

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import Literal

import psutil

from pinstorm.spawn import MARK
from telemetry import cgroup, gup_trace

# Where the paths of leaves are noted, beside what is to be undone: pinstorm.host.
NOTES = Path("/run/pinstorm")
_EMPTY_DEADLINE_S = 5.0
_ZOMBIE = psutil.STATUS_ZOMBIE


class Containment:
    """Holds one case's processes. ``kind`` is what the record says."""

    def __init__(self, leaf: Path | None, zygote_pid: int, mark: str):
        self._leaf = leaf
        self._zygote_pid = zygote_pid
        self._mark = mark
        self._child_pid: int | None = None
        self.kind: Literal["cgroup", "process-group"] = "cgroup" if leaf else "process-group"

    @property
    def leaf(self) -> Path | None:
        """The case's own control group, where it may have one."""
        return self._leaf if self.kind == "cgroup" else None

    def admit(self, pid: int) -> None:
        """Put the child in before it has done anything; what it forks is born inside."""
        self._child_pid = pid
        if self._leaf is not None:
            try:
                (self._leaf / "cgroup.procs").write_text(str(pid))
            except OSError:
                self.kind = "process-group"

    def kill_child(self) -> None:
        """SIGKILL to the child, in one system call; ``kill`` is for what it has started."""
        assert self._child_pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child_pid, signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL to the whole tree; returns once it is empty, or after five seconds."""
        deadline = time.monotonic() + _EMPTY_DEADLINE_S
        while self._kill_once() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _kill_once(self) -> bool:
        """Whether anything was still there to be killed."""
        if self.kind == "cgroup" and self._leaf is not None:
            return _kill_leaf(self._leaf)
        return self._kill_descendants()

    def _kill_descendants(self) -> bool:
        if self._child_pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child_pid, signal.SIGKILL)
        alive = False
        # The zygote serves one case at a time, so whatever hangs below it belongs to this one; once
        # it is dead, what a case started is found by its environment.
        left = _descendants(self._zygote_pid) or _marked(self._mark, self._zygote_pid)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    process.kill()
                    alive = True
        return alive


class Leaves:
    """The cgroup leaf of this run: one, used by its cases one after the other."""

    def __init__(self) -> None:
        self._leaf: Path | None = None
        own = cgroup.own_v2()
        if own is not None:
            leaf = own / gup_trace.own_name()
            _note(leaf)
            try:
                leaf.mkdir(exist_ok=True)
            except OSError:
                _forget(leaf.name)
                return
            # Present from Linux 5.14; without it the kill below walks cgroup.procs.
            self._leaf = leaf

    def containment(self, zygote_pid: int, mark: str) -> Containment:
        """For one case. ``mark``: what the environment of its zygote's children carries."""
        return Containment(self._leaf, zygote_pid, mark)

    def close(self) -> None:
        if self._leaf is not None:
            _remove_leaf(self._leaf)
            _forget(self._leaf.name)
            self._leaf = None
            # An antagonist that was killed has left its own: workloads.antagonists.reclaim.
            remove_stale_leaves()


def remove_stale_leaves() -> None:
    """Remove the leaves of runs that were killed; never one whose run is alive.

    Wherever they were noted, and else below our own group: an ordinary user's are not noted.
    """
    own = cgroup.own_v2()
    leaves = [] if own is None else list(own.glob("pinstorm_*"))
    for note in NOTES.glob("leaf-pinstorm_*"):
        with contextlib.suppress(OSError, ValueError):
            leaf = Path(note.read_text())
            if note.name == f"leaf-{leaf.name}":
                leaves.append(leaf)
    for leaf in leaves:
        if gup_trace.is_stale(leaf.name):
            _remove_leaf(leaf)
            if not leaf.exists():
                _forget(leaf.name)


def _note(leaf: Path) -> None:
    """On disk before the leaf is made, in a file of its own; only root can."""
    with contextlib.suppress(OSError):
        NOTES.mkdir(parents=True, exist_ok=True)
        (NOTES / f"leaf-{leaf.name}").write_text(str(leaf))


def _forget(name: str) -> None:
    with contextlib.suppress(OSError):
        (NOTES / f"leaf-{name}").unlink(missing_ok=True)
        NOTES.rmdir()


def _remove_leaf(leaf: Path) -> None:
    """Kill what is in it and remove it; what dies slowly is waited for, five seconds."""
    with contextlib.suppress(OSError):
        _kill_leaf(leaf)
    deadline = time.monotonic() + _EMPTY_DEADLINE_S
    while leaf.exists() and time.monotonic() < deadline:
        try:
            leaf.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            time.sleep(0.005)


def _kill_leaf(leaf: Path) -> bool:
    """Whether anything was in it. A leaf that somebody removed has nothing in it."""
    try:
        pids = (leaf / "cgroup.procs").read_text().split()
    except OSError:
        return False
    if not pids:
        return False
    try:
        (leaf / "cgroup.kill").write_text("1")
    except OSError:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)
    return True


def _marked(mark: str, zygote_pid: int) -> list[psutil.Process]:
    """Processes of a dead zygote's case. While the zygote lives, all of them hang below it."""
    if psutil.pid_exists(zygote_pid) and psutil.Process(zygote_pid).status() != _ZOMBIE:
        return []
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    except psutil.NoSuchProcess:
        return []
