"""Everything that changes the machine, in one place, written down before it is done.

Each change is a file under /proc or /sys with the text that gives back what was before. The list is
on disk before the first write, so that the next start gives back what a killed run could not.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import workloads
from pinstorm.errors import UsageError
from telemetry import hugepages, mountinfo
from workloads.memory import HUGE_BYTES
from workloads.spec import Need, Planned

# The directory that holds the packages, and in a checkout everything else.
ROOT = Path(__file__).resolve().parents[1]
UNDO = Path("/run/pinstorm/undo.json")


def module_path() -> str:
    """PYTHONPATH for a Python without site (-S): the checkout, and what this one imports from."""
    return ":".join([str(ROOT), *filter(None, sys.path)])


@contextmanager
def restored() -> Iterator[list[str]]:
    """Give back what a killed run left changed, and at the end what this one changed.

    Yields the sentences on what could not be given back. At the end they are complete; when the
    run does not get so far as to tell them, they are told on stderr.
    """
    failures = undo()
    try:
        yield failures
    except BaseException:
        failures[:] = dict.fromkeys([*failures, *undo()])
        for sentence in failures:
            print(sentence, file=sys.stderr)
        raise
    failures[:] = dict.fromkeys([*failures, *undo()])


def provide(plan: Sequence[Planned]) -> None:
    """--setup: give the cases what they need and this machine can be given: huge pages."""
    wanted = max((_huge_pages(planned) for planned in plan), default=0)
    pool = hugepages.read().get(HUGE_BYTES)
    if not wanted or pool is None or (pool.usable or 0) >= wanted:
        return
    total = (pool.total or 0) + wanted - (pool.usable or 0)
    change(hugepages.pool_size_file(HUGE_BYTES), str(total))


def change(path: Path, text: str, undo: tuple[Path, str] | None = None) -> None:
    """Write a file of /proc, /sys or a control group, after noting what gives it back.

    That is what the file said before, unless ``undo`` names another file, or other words for it.
    """
    try:
        back, before = undo or (path, path.read_text().strip())
        changes = [*_noted(), [str(back), before]]
        UNDO.parent.mkdir(parents=True, exist_ok=True)
        _note(changes)
        path.write_text(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot change {path}: {reason}; run as root") from error


def noted() -> int:
    """How many changes wait to be undone."""
    return len(_noted())


def undo(keep: int = 0) -> list[str]:
    """Write back what is noted, the newest first, and forget it.

    What fails stays noted, and is told: a sentence each. ``keep``: the oldest that many stay as
    they are.
    """
    changes = _noted()
    kept: list[list[str]] = changes[:keep]
    failed: list[list[str]] = []
    told: list[str] = []
    for path, before in reversed(changes[keep:]):
        try:
            Path(path).write_text(before)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV) and _group_is_gone(Path(path)):
                continue
            failed.insert(0, [path, before])
            reason = (error.strerror or str(error)).lower()
            told.append(
                f"cannot give back {path} = {before}: {reason}; write it, "
                "or the next run tries again"
            )
    if kept or failed:
        _note(kept + failed)
        return told
    with contextlib.suppress(OSError):
        UNDO.unlink(missing_ok=True)
        UNDO.parent.rmdir()
    return told


def tool_commit() -> str | None:
    """The git commit of this checkout, with ``+`` when files differ; None outside a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _huge_pages(planned: Planned) -> int:
    memories = workloads.memories(planned.case)
    if not any(Need.HUGETLB_2M in memory.needs for memory in memories):
        return 0
    return workloads.mapped_bytes(planned.case) // HUGE_BYTES


def _group_is_gone(file: Path) -> bool:
    """Whether that was the file of a control group which is not there any more, nor its limits."""
    mount = mountinfo.cgroup2(mountinfo.read())
    below = mount is not None and file.is_relative_to(mount.mount_point)
    return below and not file.parent.exists()


def _noted() -> list[list[str]]:
    try:
        changes: list[list[str]] = json.loads(UNDO.read_text())
        return changes
    except (OSError, ValueError):
        return []


def _note(changes: list[list[str]]) -> None:
    beside = UNDO.with_suffix(f".{os.getpid()}")
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(changes, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, UNDO)


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
