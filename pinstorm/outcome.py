"""What the verdicts of a run make of its exit code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pinstorm.errors import ExitCode


def exit_code(records: Sequence[Mapping[str, Any]]) -> ExitCode:
    """What the verdicts of a run make of its exit code."""
    verdicts = Counter(record["verdict"] for record in records)
    if verdicts["lost"]:
        return ExitCode.LOST
    if verdicts["fail"] or verdicts["crash"] or verdicts["timeout"]:
        return ExitCode.FAILED
    if not verdicts["pass"]:
        return ExitCode.NOTHING_RAN
    return ExitCode.OK
