"""JUnit XML: what a library that did not write it reads out of it again."""

from pathlib import Path
from typing import Any

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from made_bundles import made_of, record

from pinstorm import bundle
from pinstorm.bundle import Bundle
from pinstorm.report import junit

REAL = Path(__file__).parent / "data" / "bundle-schema-1"


def read(*bundles: Bundle) -> list[TestSuite]:
    text = junit.text(bundles, lambda one: "pinstorm run few.toml")
    return list(JUnitXml.fromstring(text.encode()))


def cases(*records: dict[str, Any]) -> list[TestCase]:
    (suite,) = read(made_of(*records))
    return list(suite)


def test_a_real_bundle_comes_back_whole() -> None:
    real = bundle.open_bundle(REAL)
    (suite,) = read(real)
    verdicts = {r["case"]: r["verdict"] for r in real.records}
    assert {case.name: "skip" if case.is_skipped else "pass" for case in suite} == verdicts
    assert (suite.tests, suite.failures, suite.errors) == (len(real.records), 0, 0)
    assert all(case.classname == case.name.split("/")[0] for case in suite)
    assert all(0 < case.time < 60 for case in suite if not case.is_skipped)
    properties = {entry.name: entry.value for entry in suite.properties()}
    assert properties["kernel"] == real.manifest["kernel"]["release"]
    assert (properties["accel"], properties["emulated"]) == ("tcg", "true")
    assert properties["device"] == "rxe0"


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [("fail", Failure), ("crash", Error), ("timeout", Error), ("lost", Error)],
)
def test_what_went_wrong_and_how_to_repeat_it(verdict: str, kind: type) -> None:
    expected = {"rule": "dio-pin", "source": "a commit", "broken": ["acquired 3 pages, expected 4"]}
    (case,) = cases(record(verdict, reason="acquired", expected=expected))
    (result,) = case.result
    assert type(result) is kind
    assert (result.type, result.message) == (verdict, "acquired: acquired 3 pages, expected 4")
    assert result.text is not None
    assert "rule: dio-pin, a commit" in result.text
    assert result.text.splitlines()[-1] == "repeat: pinstorm run few.toml --only dio-read/anon/1KiB"


def test_a_skip_says_why() -> None:
    unmet = {"code": "rdma-odp", "detail": "no ODP", "remedy": "another kernel"}
    (case,) = cases(record("skip", reason="rdma-odp", skip=[unmet], outcome=None))
    (result,) = case.result
    assert isinstance(result, Skipped)
    assert (result.type, result.message) == ("rdma-odp", "rdma-odp: no ODP; another kernel")


def test_bytes_that_xml_cannot_write() -> None:
    (case,) = cases(record("crash", kmsg=[{"text": "BUG: <\x00\x1b[31m> & \ud800"}]))
    assert "BUG: <" in str(case.result[0].text)


def test_controls_anywhere() -> None:
    odd = "\x00\x1b[1m\ud800"
    records = [
        record("skip", reason=f"a{odd}", workload=f"b{odd}"),
        record("skip", seq=1, skip=[{"code": f"c{odd}", "detail": odd}], reason=f"c{odd}"),
        record(f"d{odd}", seq=2, reason=odd, expected={"rule": odd, "broken": [odd]}),
        record("pass", seq=3, reason=odd, case=odd),
    ]
    made = made_of(*records, kernel=odd)
    made.manifest.update(suite={"name": odd, "seed": odd}, hostname=odd, device=odd)
    (suite,) = read(made)
    assert suite.tests == len(records)


def test_rounds_have_names_of_their_own() -> None:
    two = [record("pass", seq=0, round=0), record("pass", seq=0, round=1)]
    assert [case.name for case in cases(*two)] == [
        "dio-read/anon/1KiB/round=0",
        "dio-read/anon/1KiB/round=1",
    ]


def test_a_case_that_never_ended_is_an_error() -> None:
    start = {"start": "vmsplice/anon/4KiB", "seq": 1, "t_ns": 1}
    (suite,) = read(made_of(record("pass"), started={1: start}))
    assert (suite.tests, suite.errors) == (2, 1)
    assert [case.classname for case in suite] == ["dio-read", "vmsplice"]


def test_a_suite_for_each_kernel() -> None:
    assert len(read(made_of(record("pass")), made_of(record("pass"), kernel="6.1.0"))) == 2
