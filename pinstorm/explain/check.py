"""What a check says: that a cause's condition holds, where in the kernel, and with which errno."""

from dataclasses import dataclass, replace
from enum import IntEnum

from pinstorm.explain.causes import KNOWLEDGE, Cause
from pinstorm.explain.finding import Confidence, Finding
from pinstorm.explain.view import View
from pinstorm.units import format_bytes


class Stage(IntEnum):
    """The order in which a call meets its obstacles."""

    LIBRARY = 0  # before the kernel is asked at all
    GROUP = 1  # the rdma cgroup's charge
    ARGUMENTS = 2
    DEVICE = 3  # the driver's own table
    LIMIT = 4  # charged before pinning
    MAPPING = 5
    PAGES = 6  # taken, migrated
    ACCOUNT = 7  # charged after pinning
    TRANSFER = 8  # what the pages were taken for


@dataclass(frozen=True, slots=True)
class Hit:
    """A finding, the ``stage`` at which the kernel meets it, and the ``errnos`` it answers with."""

    finding: Finding
    stage: Stage
    errnos: frozenset[str]
    # Nothing was seen that speaks for it: the errno alone does.
    guessed: bool = False
    # Where in the range: GUP goes from its beginning to its end.
    at: int = 0


def hit(
    cause: Cause,
    confidence: Confidence,
    stage: Stage,
    errnos: frozenset[str] | set[str],
    *evidence: str,
    remedy: str | None = None,
    command: str | None = None,
    instead: str | None = None,
) -> Hit:
    """With the remedy that the cause always has, unless there is a better one."""
    known = KNOWLEDGE[cause]
    sentences = tuple(sentence for sentence in evidence if sentence)
    if confidence == "possible" and not sentences:
        sentences = (f"to tell: {known.tell}",)
    finding = Finding(cause, confidence, sentences, remedy or known.remedy, command, instead)
    return Hit(finding, stage, frozenset(errnos))


def guess(view: View, cause: Cause, stage: Stage, *errnos: str) -> Hit | None:
    """Possible, as far as the errno goes: nothing was seen that speaks for it or against it."""
    if view.outcome not in errnos:
        return None
    return replace(hit(cause, "possible", stage, frozenset(errnos)), guessed=True)


def size(size_bytes: int | None) -> str:
    """For sentences: ``64 KiB``, ``unlimited``, ``an unknown amount``."""
    if size_bytes is None:
        return "an unknown amount"
    return "unlimited" if size_bytes < 0 else format_bytes(size_bytes)
