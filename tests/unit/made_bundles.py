"""Bundles made of a few records, for tests of what is shown of them."""

from pathlib import Path
from typing import Any

from pinstorm.bundle import Bundle
from pinstorm.journal import JournalContents


def record(verdict: str, seq: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "case": f"dio-read/anon/{seq + 1}KiB",
        "workload": "dio-read",
        "verdict": verdict,
        "reason": None,
        "outcome": "ok",
        "kernel": "7.2.11",
        **more,
    }


def made_of(
    *records: dict[str, Any], started: dict[int, Any] | None = None, kernel: str = "7.2.11"
) -> Bundle:
    contents = JournalContents(records=list(records), started=started or {})
    manifest = {"kernel": {"release": kernel}, "accel": "host", "suite": {"name": "few"}}
    return Bundle(Path("runs/few"), manifest, contents)
