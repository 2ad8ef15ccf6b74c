"""The bundle of one real run (Debian's 7.2 kernel in the lab, schema 1): it must stay readable.

Made by ``scripts/quickstart``; paths of the machine it was made on are replaced.
"""

import json
from pathlib import Path

import polars
import pytest

from pinstorm import bundle, verdict
from pinstorm.bundle import Bundle
from pinstorm.report import table
from pinstorm.schema import COLUMNS

REAL = Path(__file__).parent / "data" / "bundle-schema-1"

# What this run had none of.
ABSENT = {
    "cause",
    "remedy",
    "gup_calls",
    "no_trace",
    "vmlck_held",
    "vmlck_after",
    "reason",
    "signal",
    "skip",
    "done_bytes",
    "disturb",
    "killed",
    "settles",
    "retries",
    "evidence",
    "explanation",
    "attribut",
    "pins_recent",
    "jobs",
    "load",
}


@pytest.fixture(scope="module")
def real() -> Bundle:
    return bundle.open_bundle(REAL)


def test_opens_and_holds_what_quickstart_promises(real: Bundle) -> None:
    assert real.manifest["schema"] == 1
    assert real.manifest["selftest"]["passed"]
    assert real.manifest["kernel"]["config"]["CONFIG_CMA"] == "y"
    verdicts = [record["verdict"] for record in real.records]
    assert verdicts.count("pass") >= 60
    assert set(verdicts) <= {"pass", "skip"}
    assert not real.contents.started
    assert real.torn_bytes == 0


def test_the_rules_of_today_judge_it_alike(real: Bundle) -> None:
    for before, after in zip(real.records, verdict.rejudge(real.records), strict=True):
        assert after["verdict"] == before["verdict"], (after["case"], after["expected"]["broken"])


def test_parquet_says_what_the_journal_says(real: Bundle) -> None:
    kept = polars.read_parquet(REAL / bundle.CASES)
    made = bundle.frame(real.records)
    assert made.select(kept.columns).equals(kept)  # later columns are not in it
    empty = {column for column in made.columns if made[column].is_null().all()}
    assert {column.name for column in COLUMNS} == set(made.columns)
    assert not [name for name in empty if not any(word in name for word in ABSENT)]


def test_table_fits(real: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    table.show(real.records, emulated=True)
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert "rdma-register/anon/rw/16MiB" in shown
    assert "emulated" in shown


def test_every_line_is_json() -> None:
    for line in (REAL / bundle.JOURNAL).read_text().splitlines():
        json.loads(line)
