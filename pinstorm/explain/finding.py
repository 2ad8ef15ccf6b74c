"""What is asked of the explain engine, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pinstorm.explain import calls
from pinstorm.explain.causes import Cause

Confidence = Literal["certain", "likely", "possible"]

CONFIDENCES: tuple[Confidence, ...] = ("certain", "likely", "possible")


@dataclass(frozen=True, slots=True)
class Failure:
    """What was asked, and how the kernel answered. Bytes; None where it is not known.

    ``call``: in any spelling, of which it keeps the one of pinstorm.explain.calls.

    ``record``: of one of pinstorm's own cases: workload, memory, params and what was measured.
    """

    call: str
    outcome: str
    phase: str = "acquire"
    detail: str = ""
    kernel: str | None = None
    size_bytes: int | None = None
    record: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", calls.canonical(self.call))


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

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Finding":
        """Of a record's ``explanation``; a cause that this version does not know is unknown."""
        try:
            cause = Cause(message["cause"])
        except ValueError:
            cause = Cause.UNKNOWN
        return cls(
            cause=cause,
            confidence=message["confidence"],
            evidence=tuple(message.get("evidence") or ()),
            remedy=message.get("remedy") or "",
            command=message.get("command"),
            instead=message.get("instead"),
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """``first`` is what the kernel met first; ``others`` would have been met later, or fit less."""

    first: Finding
    others: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (self.first, *self.others)

    def to_json(self) -> dict[str, Any]:
        return {**self.first.to_json(), "others": [finding.to_json() for finding in self.others]}

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Explanation":
        others = tuple(Finding.from_json(other) for other in message.get("others") or ())
        return cls(Finding.from_json(message), others)
