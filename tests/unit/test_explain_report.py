"""The cause in tables and documents, and what ``pinstorm explain`` prints."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from made_bundles import made_of
from made_failures import KIB, a_record, an_ordinary_process, explained

from pinstorm import suite
from pinstorm.bundle import Bundle
from pinstorm.errors import UsageError
from pinstorm.evidence import Evidence
from pinstorm.explain import Cause
from pinstorm.report import explanation, junit, ktap, reason, table

REFUSED = a_record(
    "rdma-register",
    "anon",
    "ENOMEM",
    "ibv_reg_mr",
    params={"uid": 65534, "memlock_bytes": 32 * KIB},
    evidence=json.loads(json.dumps(Evidence(an_ordinary_process(32 * KIB)).to_json())),
)


def told(record: dict[str, Any]) -> dict[str, Any]:
    """As the runner writes it."""
    found = explained(record)
    first = found.first
    return {
        **record,
        "cause": str(first.cause),
        "remedy": first.remedy,
        "explanation": found.to_json(),
    }


def shown(records: list[dict[str, Any]], wide: bool = False) -> str:
    stream = io.StringIO()
    table.show(records, emulated=True, wide=wide, file=stream)
    return stream.getvalue()


@pytest.fixture
def one_bundle(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a refused case, one that was not, and one that was skipped."""
    records = [
        {**REFUSED, "seq": 0},
        a_record("rdma-register", "memfd", "ok", None, seq=1),
        a_record("vfio-map", "anon", None, None, seq=2, verdict="skip", skip=[{"code": "vfio"}]),
    ]

    def bundles(path: Path) -> list[Bundle]:
        return [made_of(*records)]

    monkeypatch.setattr(reason, "bundles", bundles)
    return Path("runs/one")


@pytest.mark.parametrize("cause", list(Cause))
def test_the_longest_ids_fit_100_columns_with_any_cause(cause: Cause) -> None:
    cases = suite.expand(suite.load("matrix")).cases
    records = [
        a_record(case.workload, case.memory, "EOPNOTSUPP", "ibv_reg_mr", params=dict(case.params))
        | {"cause": str(cause)}
        for case in sorted(cases, key=lambda case: -len(case.id))[:40]
    ]
    text = shown(records)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\u2026" not in text
    assert "cause" in lines[1] + lines[2]
    assert text.count(str(cause)) == len(records)
    # a name goes on behind a slash, and no word of it is cut
    words = {word for record in records for word in record["case"].split("/")}
    assert all(word in text for word in words)


def test_the_cause_stands_in_both_tables() -> None:
    for wide in (False, True):
        text = shown([told(REFUSED)], wide)
        assert "cause" in text
        assert "memlock-limit" in text


def test_a_run_without_refusals_has_no_column_for_causes() -> None:
    assert "cause" not in shown([a_record("rdma-register", "anon", "ok", None)])


def test_a_failed_case_tells_all_of_it() -> None:
    failed = told(REFUSED) | {"verdict": "fail", "reason": "outcome", "expected": {"broken": []}}
    for text in ("\n".join(reason.sentences(failed, "pinstorm run x")), shown([failed])):
        assert "cause: memlock-limit (certain)" in text
        assert "RLIMIT_MEMLOCK is 32 KiB" in text
        assert "then: prlimit --pid 4242 --memlock=65536:65536" in text
        # it is for a process that is gone
        assert "command:" not in text
    one = made_of(failed)
    for document in (junit.text([one], lambda _: "x"), ktap.text([one], lambda _: "x")):
        assert "cause memlock-limit" in document
        assert "then: prlimit --pid 4242" in document
        assert "command: prlimit" not in document


def test_a_case_is_explained(one_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explanation.show_cases(one_bundle, REFUSED["case"], False)
    out = capsys.readouterr().out
    assert out.startswith(f"{REFUSED['case']} on ")
    assert "memlock-limit (certain)" in out
    assert "would have helped that process then: prlimit --pid 4242 --memlock=65536:65536\n" in out
    assert "command:" not in out


def test_a_process_that_lives_is_told_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Evidence(an_ordinary_process(32 * KIB))
    monkeypatch.setattr(explanation.evidence, "of_process", lambda *_: seen)
    explanation.show_failure("ibv_reg_mr", "ENOMEM", 64 * KIB, 4242, False)
    out = capsys.readouterr().out
    assert "command: prlimit --pid 4242 --memlock=65536:65536\n" in out
    assert reason.HELPED not in out


def test_a_glob_explains_every_case_that_was_refused(
    one_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explanation.show_cases(one_bundle, "rdma-*", False)
    out = capsys.readouterr().out
    assert out.count("memlock-limit (certain)") == 1
    assert "1 of 2 were not refused" in out
    explanation.show_cases(one_bundle, "rdma-*", True)
    entries = json.loads(capsys.readouterr().out)
    assert [entry["outcome"] for entry in entries] == ["ENOMEM", "ok"]
    assert entries[0]["explanation"]["cause"] == "memlock-limit"
    assert entries[1]["explanation"] is None


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("rdma-register/memfd/rw/64KiB", "nothing was refused: outcome ok"),
        ("vfio-map/anon/64KiB", "it was skipped: vfio"),
    ],
)
def test_what_was_not_refused_says_so(
    one_bundle: Path, capsys: pytest.CaptureFixture[str], case: str, words: str
) -> None:
    explanation.show_cases(one_bundle, case, False)
    assert words in capsys.readouterr().out


def test_no_such_case_tells_the_nearest(one_bundle: Path) -> None:
    for wanted in ("rdma-register/memf", "rdma-register/memfd/rw/64Kib", "rdma-register/memfd/x*"):
        with pytest.raises(UsageError, match="the nearest is rdma-register/memfd/rw/64KiB"):
            explanation.show_cases(one_bundle, wanted, False)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("ENOMEM", "ENOMEM"),
        ("enomem", "ENOMEM"),
        ("12", "ENOMEM"),
        ("-14", "EFAULT"),
        ("95", "EOPNOTSUPP"),
        ("ENOTSUP", "EOPNOTSUPP"),
        ("EWOULDBLOCK", "EAGAIN"),
    ],
)
def test_an_errno_has_many_spellings(word: str, name: str) -> None:
    assert explanation.errno_named(word) == name


@pytest.mark.parametrize("word", ["ENOPE", "", "99999", "12.0"])
def test_no_errno(word: str) -> None:
    with pytest.raises(UsageError, match="is none that Linux has"):
        explanation.errno_named(word)


def test_another_program_is_explained_in_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    explanation.show_failure("ibv_reg_mr", "ENOMEM", 64 * KIB, None, False)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "ibv_reg_mr gave ENOMEM for 64 KiB"
    assert "  1. memlock-limit (possible): " in out
    assert max(map(len, out.splitlines())) <= 100
    explanation.show_failure("ibv_reg_mr", "12", None, None, True)
    message = json.loads(capsys.readouterr().out)
    assert message["outcome"] == "ENOMEM"
    assert message["explanation"]["others"]
