"""Why it failed: one cause out of a closed list, with the evidence, how sure it is, and what to do.

``of_record`` for a case, ``of_failure`` for what somebody else's program printed. Pure functions of
what was gathered (pinstorm.evidence): nothing is read here, so an old bundle is explained anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pinstorm.evidence import Evidence
from pinstorm.explain.causes import MEANING, Cause

__all__ = ["MEANING", "Cause", "Explanation", "Failure", "Finding", "of_failure", "of_record"]

Confidence = Literal["certain", "likely", "possible"]


@dataclass(frozen=True, slots=True)
class Failure:
    """What was asked, and how the kernel answered. Bytes; None where it is not known.

    ``case``: workload, memory and params, when it is one of pinstorm's own.
    """

    call: str
    outcome: str
    phase: str = "acquire"
    detail: str = ""
    kernel: str | None = None
    size_bytes: int | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that fits. ``evidence``: sentences with the figures. ``remedy``: a sentence that
    says what to do. ``command``: a shell command that helps the process as it stands, or None.
    ``instead``: the id of the case that does without what is refused here, or None.
    """

    cause: Cause
    confidence: Confidence
    evidence: tuple[str, ...]
    remedy: str
    command: str | None = None
    instead: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "cause": str(self.cause),
            "confidence": self.confidence,
            "evidence": list(self.evidence),
            "remedy": self.remedy,
            "command": self.command,
            "instead": self.instead,
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """``first`` is what the kernel met first; ``others`` would have been met later, or fit less."""

    first: Finding
    others: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self.first.to_json(), "others": [finding.to_json() for finding in self.others]}


def of_failure(failure: Failure, evidence: Evidence) -> Explanation:
    """The causes that fit, ranked; ``unknown`` when none does."""
    return Explanation(Finding(Cause.UNKNOWN, "possible", (), ""))


def of_record(record: Mapping[str, Any]) -> Explanation | None:
    """Of a record, or one as far as it goes; None when nothing was refused."""
    return None
