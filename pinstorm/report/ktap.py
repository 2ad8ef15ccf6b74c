"""KTAP version 1 of a bundle, as Documentation/dev-tools/ktap.rst has it.

One test for each kernel, its cases nested below it. What there is to say of a case that did not
pass stands in diagnostic lines before its result.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from pinstorm.bundle import Bundle
from pinstorm.report import reason
from pinstorm.report.reason import Record

_VERSION: Final = "KTAP version 1"
_INDENT: Final = "  "
# A pass and a failure have no directive; a crash and a lost machine are errors of the execution.
_DIRECTIVES: Final = {
    "skip": "SKIP",
    "timeout": "TIMEOUT",
    "crash": "ERROR",
    "lost": "ERROR",
}
# What ktap.rst gives a meaning behind the hash sign of a result.
_READ_AS_DIRECTIVE: Final = re.compile(r"(SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b", re.IGNORECASE)


def text(bundles: Sequence[Bundle], command: Callable[[Bundle], str]) -> str:
    """The document. ``command``: what repeats a bundle's run; ``--only CASE`` is added to it."""
    lines = [_VERSION, f"1..{len(bundles)}"]
    for number, bundle in enumerate(bundles, 1):
        lines += _kernel(number, bundle, command(bundle))
    return "\n".join(lines) + "\n"


def _kernel(number: int, bundle: Bundle, command: str) -> list[str]:
    cases = reason.records(bundle)
    lines = [_VERSION, f"1..{len(cases)}"]
    for place, (record, name) in enumerate(zip(cases, reason.names(cases), strict=True), 1):
        lines += _case(place, record, name, command)
    verdicts = {str(record["verdict"]) for record in cases}
    good = "ok" if verdicts <= {"pass", "skip"} else "not ok"
    skipped = " # SKIP every case was skipped" if verdicts <= {"skip"} else ""
    parent = f"{good} {number} {_description(reason.kernel_of(bundle))}{skipped}"
    return [f"{_INDENT}{line}" for line in lines] + [parent]


def _case(number: int, record: Record, name: str, command: str) -> list[str]:
    verdict = str(record["verdict"])
    result = "ok" if verdict in ("pass", "skip") else "not ok"
    lines = []
    if result == "not ok":
        lines = [f"# {reason.one_line(line)}" for line in reason.sentences(record, command)]
    words = [_DIRECTIVES.get(verdict, ""), "crash" if verdict == "crash" else ""]
    # ktap.rst allows diagnostic data without a directive; tools show it with the result
    words.append(_description(reason.summary(record)))
    after = " ".join(word for word in words if word)
    if not words[0] and _READ_AS_DIRECTIVE.match(after):
        after = f"reason {after}"
    line = f"{result} {number} {_description(name)}"
    return [*lines, f"{line} # {after}" if after else line]


def _description(name: str) -> str:
    """Any characters but a hash sign and a newline."""
    return reason.one_line(name.replace("#", "_"))
