"""What a verdict finds wrong with a record."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Findings:
    """What is wrong, in the order in which it was found."""

    reasons: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def add(self, reason: str, sentence: str) -> None:
        self.reasons.append(reason)
        self.sentences.append(sentence)

    def add_all(self, broken: Iterable[tuple[str, str]]) -> None:
        for reason, sentence in broken:
            self.add(reason, sentence)
