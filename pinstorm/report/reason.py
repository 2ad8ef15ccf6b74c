"""Why a case ended as it did, in plain sentences for machines to pass on (JUnit XML, KTAP)."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pinstorm.bundle import Bundle, open_bundle, read_index

Record = Mapping[str, Any]

KERNEL_LINES = 40
# What a command is called that was meant for a process that is gone, maybe in a guest: its pid is
# another process's by now, and its control group is another one, so nobody should run it.
HELPED = "would have helped that process then"
# C0, DEL and C1 but for white space, and halves of surrogate pairs, which no encoding can write.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


def bundles(path: Path) -> list[Bundle]:
    """The bundle at ``path``, or those of a lab run's parent directory. Raises UsageError."""
    entries = read_index(path)
    return [open_bundle(path / entry["path"]) for entry in entries] or [open_bundle(path)]


def records(bundle: Bundle) -> list[dict[str, Any]]:
    """The records in the order in which the cases ran; a case that never ended is lost."""
    ended = sorted(bundle.records, key=lambda record: int(record.get("seq") or 0))
    unfinished = [
        {
            "case": str(start.get("start")),
            "workload": str(start.get("start")).partition("/")[0],
            "verdict": "lost",
            "reason": "unfinished",
            "detail": "the case has not ended: it runs still, or its run was ended and --resume "
            "goes on with it",
        }
        for start in bundle.contents.started.values()
    ]
    return ended + unfinished


def names(cases: Sequence[Record]) -> list[str]:
    """A name for each: the case's id, and its round where the suite ran more than once."""
    several = any(record.get("round") for record in cases)
    return [
        f"{record['case']}/round={record.get('round') or 0}" if several else str(record["case"])
        for record in cases
    ]


def kernel_of(bundle: Bundle) -> str:
    """The kernel's release."""
    release = (bundle.manifest.get("kernel") or {}).get("release")
    return str(release or next((r["kernel"] for r in bundle.records), "unknown"))


def summary(record: Record) -> str:
    """One line: why the case was skipped, or what first went wrong; empty for a plain pass."""
    if record["verdict"] == "skip":
        told = [_skip_words(entry) for entry in record.get("skip") or ()]
        return one_line("; ".join(told) or str(record.get("reason") or ""))
    broken = (record.get("expected") or {}).get("broken") or []
    why = [str(record.get("reason") or ""), *(str(sentence) for sentence in broken[:1])]
    words = ": ".join(word for word in why if word)
    named = record.get("cause") and record["verdict"] != "pass"
    return one_line(f"{words}; cause {record['cause']}" if named else words)


def sentences(record: Record, command: str) -> list[str]:
    """All there is to say of a case that did not pass, and the command that repeats it alone."""
    expected = record.get("expected") or {}
    told = [f"reason: {record.get('reason') or 'none given'}"]
    told += [f"broken: {sentence}" for sentence in expected.get("broken") or ()]
    if expected.get("rule"):
        told.append(f"rule: {expected['rule']}, {expected.get('source') or 'no source'}")
    told += cause_words(record)
    told += [f"detail: {record['detail']}"] if record.get("detail") else []
    log = [
        str(line.get("text", line)) if isinstance(line, Mapping) else str(line)
        for line in record.get("kmsg") or ()
    ]
    told += [f"kernel log: {line}" for line in log[-KERNEL_LINES:]]
    told.append(f"repeat: {command} --only {shlex.quote(str(record['case']))}")
    return [line for text in told for line in text.splitlines()]


def cause_words(record: Record) -> list[str]:
    """The cause with its evidence, and what to do; of an old bundle what it has of that."""
    found = record.get("explanation") or {}
    cause, sure = record.get("cause"), found.get("confidence")
    told = [f"cause: {cause}" + (f" ({sure})" if sure else "")] if cause else []
    told += [f"evidence: {sentence}" for sentence in found.get("evidence") or ()]
    told += [f"remedy: {record['remedy']}"] if record.get("remedy") else []
    for word, key in ((HELPED, "command"), ("instead", "instead")):
        told += [f"{word}: {found[key]}"] if found.get(key) else []
    return told


def seconds(record: Record) -> float:
    """From the case's first phase to the end of its last; 0.0 when none was recorded."""
    times = [t for phase in (record.get("phases") or {}).values() if phase for t in phase]
    known = [int(t) for t in times if t is not None]
    return (max(known) - min(known)) / 1e9 if known else 0.0


def one_line(text: str) -> str:
    """Without newlines, and without what a terminal or a parser would obey or choke on."""
    return " ".join(_CONTROLS.sub("", text).split())


def _skip_words(entry: Mapping[str, Any]) -> str:
    told = "; ".join(str(entry[key]) for key in ("detail", "remedy") if entry.get(key))
    return f"{entry['code']}: {told}" if told else str(entry["code"])
