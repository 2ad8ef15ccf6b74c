"""Why a case, or somebody else's program, was refused: ``pinstorm explain``."""

import errno
import fnmatch
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pinstorm import evidence, explain
from pinstorm.errors import UsageError
from pinstorm.evidence import Evidence
from pinstorm.explain import KNOWLEDGE, Cause, Explanation, Failure, Finding
from pinstorm.report import reason
from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import print_json, print_parts
from pinstorm.units import format_bytes

Record = Mapping[str, Any]

_GLOB = re.compile(r"[*?\[]")
# The kernel's documents say EOPNOTSUPP; Python calls the number ENOTSUP.
_SAME = {"ENOTSUP": "EOPNOTSUPP", "EWOULDBLOCK": "EAGAIN", "EDEADLOCK": "EDEADLK"}


def show_cases(bundle: Path, wanted: str, as_json: bool) -> None:
    """Of each case that ``wanted`` names, by id or glob. UsageError when none does."""
    found = _records(bundle, wanted)
    explained = [(record, explain.of_record(record)) for record in found]
    if as_json:
        print_json([_case_entry(record, one) for record, one in explained])
        return
    refused = [(record, one) for record, one in explained if one is not None]
    parts: list[RenderableType] = []
    for record, one in refused:
        parts += [_head(record), *_lines(one, living=False), ""]
    if len(explained) == 1 and not refused:
        parts += [_head(found[0]), Hanging("  ", _not_refused(found[0]))]
    elif len(refused) < len(explained):
        rest = len(explained) - len(refused)
        parts.append(Text(f"{rest} of {len(explained)} were not refused"))
    print_parts(*parts)


def show_failure(
    call: str, outcome: str, size_bytes: int | None, pid: int | None, as_json: bool
) -> None:
    """Of a call that somebody else's program made. UsageError: no such process, no such errno."""
    name = errno_named(outcome)
    seen = Evidence() if pid is None else evidence.of_process(pid, call, name)
    # without a process nobody knows on which kernel it was
    kernel = None if pid is None else os.uname().release
    one = explain.of_failure(Failure(call, name, kernel=kernel, size_bytes=size_bytes), seen)
    if as_json:
        asked = {"call": call, "outcome": name, "size_bytes": size_bytes, "pid": pid}
        print_json({**asked, "explanation": one.to_json(), "hidden": list(seen.hidden)})
        return
    words = f"{call} gave {name}"
    if size_bytes is not None:
        words += f" for {format_bytes(size_bytes)}"
    if pid is not None:
        who = seen.process.name if seen.process is not None else "unknown"
        words += f", process {pid} ({who})"
    parts: list[RenderableType] = [Text(words, style="bold"), *_lines(one, living=True)]
    if one.first.cause != Cause.UNKNOWN:  # which tells it itself
        parts += [Hanging("  not seen: ", sentence) for sentence in seen.hidden]
    print_parts(*parts)


def errno_named(word: str) -> str:
    """``ENOMEM`` of ENOMEM, enomem, 12 and -12. UsageError when it is none."""
    text = word.strip().upper()
    if re.fullmatch(r"-?\d+", text):
        text = errno.errorcode.get(abs(int(text)), "")
    known = {*errno.errorcode.values(), *_SAME, "EOPNOTSUPP"}
    if text not in known:
        raise UsageError(f"errno {word} is none that Linux has; write its name or number: ENOMEM")
    return _SAME.get(text, text)


def _records(bundle: Path, wanted: str) -> list[dict[str, Any]]:
    """In the order in which they ran, of every kernel that the bundle has."""
    every = [record for one in reason.bundles(bundle) for record in reason.records(one)]
    ids = sorted({str(record["case"]) for record in every})
    exact = [record for record in every if record["case"] == wanted]
    if exact:
        return exact
    if _GLOB.search(wanted):
        found = [r for r in every if fnmatch.fnmatchcase(str(r["case"]), wanted)]
        if found:
            return found
    begins = [one for one in ids if one.startswith(wanted)]
    near = begins or get_close_matches(wanted, ids, n=1, cutoff=0.0)
    hint = f"the nearest is {near[0]}" if near else "it has no case at all"
    raise UsageError(f"no case {wanted} in {bundle}: {hint}")


def _case_entry(record: Record, one: Explanation | None) -> dict[str, Any]:
    return {
        "case": record["case"],
        "kernel": record.get("kernel"),
        "round": record.get("round"),
        "verdict": record["verdict"],
        "outcome": record.get("outcome"),
        "failed_call": record.get("failed_call"),
        "failed_phase": record.get("failed_phase"),
        "explanation": None if one is None else one.to_json(),
    }


def _head(record: Record) -> Text:
    words = f"{record['case']}"
    if record.get("kernel"):
        words += f" on {record['kernel']}"
    if record.get("failed_call"):
        words += f": {record['failed_call']} gave {record['outcome']}"
    elif record.get("outcome"):
        words += f": {record['outcome']}"
    return Text(words, style="bold", no_wrap=True, overflow="ignore")


def _not_refused(record: Record) -> str:
    if record["verdict"] == "skip":
        return f"it was skipped: {reason.summary(record)}"
    if record.get("outcome") is None:
        return (
            f"it has no outcome: {record['verdict']}, {record.get('reason') or 'no reason given'}"
        )
    return f"nothing was refused: outcome {record['outcome']}, verdict {record['verdict']}"


def _lines(one: Explanation, *, living: bool) -> list[RenderableType]:
    """The first finding in full, then the others; numbered where there are several.

    ``living``: of a process that can still be helped, not of one that a bundle tells of.
    """
    every = one.findings
    parts: list[RenderableType] = []
    for number, finding in enumerate(every, 1):
        word = f"{number}. " if len(every) > 1 else ""
        parts += ["", *_finding(finding, word, "command" if living else reason.HELPED)]
    return parts[1:]


def _finding(finding: Finding, number: str, helps: str) -> list[RenderableType]:
    meaning = KNOWLEDGE[finding.cause].meaning
    head = f"  {number}{finding.cause} ({finding.confidence}): "
    parts: list[RenderableType] = [Hanging(head, meaning, indent=5)]
    parts += [Hanging("     ", sentence, indent=7) for sentence in finding.evidence]
    parts.append(Hanging("     remedy: ", finding.remedy, indent=7))
    for word, value in ((helps, finding.command), ("instead", finding.instead)):
        if value is not None:
            # One line however long: it is there to be copied.
            parts.append(Text(f"     {word}: {value}", no_wrap=True, overflow="ignore"))
    return parts
