"""KTAP: read back by a parser that takes nothing but what ktap.rst allows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_bundles import made_of, record

from pinstorm import bundle
from pinstorm.bundle import Bundle
from pinstorm.report import ktap

REAL = Path(__file__).parent / "data" / "bundle-schema-1"
DIRECTIVES = ("SKIP", "TODO", "XFAIL", "TIMEOUT", "ERROR")
RESULT = re.compile(r"(ok|not ok) (\d+)(?: ([^#\n]*?))?(?: # ?(.*))?")


@dataclass
class Result:
    ok: bool
    name: str
    directive: str | None
    data: str
    diagnostics: list[str] = field(default_factory=list)
    subtests: list["Result"] = field(default_factory=list)


def parse(text: str) -> list[Result]:
    """Strict: a version line and a plan at each level, numbers from 1, two spaces a level."""
    assert text.endswith("\n")
    lines = iter(text.splitlines())
    results = parse_level(lines, "")
    assert not list(lines)
    return results


def parse_level(lines: Iterator[str], indent: str, version: str | None = None) -> list[Result]:
    assert (version or next(lines)) == f"{indent}KTAP version 1"
    plan = re.fullmatch(rf"{indent}1\.\.(\d+)", next(lines))
    assert plan is not None
    results: list[Result] = []
    diagnostics: list[str] = []
    subtests: list[Result] = []
    while len(results) < int(plan[1]):
        line = next(lines)
        if line == f"{indent}  KTAP version 1":
            subtests = parse_level(lines, indent + "  ", line)
            continue
        assert line.startswith(indent)
        rest = line.removeprefix(indent)
        if rest.startswith("# "):
            diagnostics.append(rest.removeprefix("# "))
            continue
        match = RESULT.fullmatch(rest)
        assert match is not None, line
        assert int(match[2]) == len(results) + 1
        word, _, data = (match[4] or "").partition(" ")
        directive = word if word in DIRECTIVES else None
        results.append(
            Result(
                match[1] == "ok",
                match[3] or "",
                directive,
                data if directive else match[4] or "",
                diagnostics,
                subtests,
            )
        )
        diagnostics, subtests = [], []
    return results


def read(*bundles: Bundle) -> list[Result]:
    return parse(ktap.text(bundles, lambda one: "pinstorm run few.toml"))


def case_of(*records: dict[str, Any]) -> Result:
    (kernel,) = read(made_of(*records))
    return kernel.subtests[0]


def test_a_real_bundle_comes_back_whole() -> None:
    real = bundle.open_bundle(REAL)
    (kernel,) = read(real)
    assert kernel.ok
    assert kernel.name == real.manifest["kernel"]["release"]
    verdicts = {r["case"]: r["verdict"] for r in real.records}
    shown = {case.name: "skip" if case.directive == "SKIP" else "pass" for case in kernel.subtests}
    assert shown == verdicts
    assert all(case.ok for case in kernel.subtests)


@pytest.mark.parametrize(
    ("verdict", "directive"),
    [("fail", None), ("crash", "ERROR"), ("lost", "ERROR"), ("timeout", "TIMEOUT")],
)
def test_what_went_wrong_fails_the_kernel_too(verdict: str, directive: str | None) -> None:
    bad = record(verdict, reason="why", expected={"broken": ["held # 3\npages"]})
    (kernel,) = read(made_of(bad, record("pass", seq=1)))
    assert not kernel.ok
    case, other = kernel.subtests
    assert other.ok
    assert (case.ok, case.directive) == (False, directive)
    assert case.data.endswith("why: held _ 3 pages")
    assert case.diagnostics[0] == "reason: why"
    assert case.diagnostics[-1] == "repeat: pinstorm run few.toml --only dio-read/anon/1KiB"


def test_a_skip_says_why() -> None:
    unmet = {"code": "rdma-odp", "detail": "no ODP", "remedy": "another kernel"}
    case = case_of(record("skip", reason="rdma-odp", skip=[unmet], outcome=None))
    assert (case.ok, case.directive) == (True, "SKIP")
    assert case.data == "rdma-odp: no ODP; another kernel"


@pytest.mark.parametrize("verdict", ["pass", "fail", "skip", "crash"])
def test_no_word_of_a_reason_is_a_directive(verdict: str) -> None:
    for reason in ("held # SKIP it", "SKIP it", "todo", "# SKIP"):
        text = ktap.text([made_of(record(verdict, reason=reason))], lambda one: "again")
        (line,) = [line for line in text.splitlines() if "dio-read/anon/1KiB" in line[:40]]
        assert line.count("#") == 1
        (kernel,) = parse(text)
        directive = {"skip": "SKIP", "crash": "ERROR"}.get(verdict)
        assert kernel.subtests[0].directive == directive
        assert kernel.subtests[0].ok == (verdict in ("pass", "skip"))


def test_controls_are_left_out() -> None:
    odd = "\x00\x07\x1b[31mred\x7f \x9b\ud800\r\n\tend"
    bad = record("fail", reason=odd, case=f"a/{odd}", kmsg=[{"text": odd}], detail=odd)
    text = ktap.text([made_of(bad, kernel=odd)], lambda one: f"run {odd}")
    assert all(char == "\n" or char.isprintable() for char in text)
    assert "kernel log: [31mred" in text
    (kernel,) = parse(text)
    assert kernel.subtests[0].data == "[31mred end"


def test_a_pass_that_says_less_than_others() -> None:
    case = case_of(record("pass", reason="inexact"))
    assert (case.ok, case.directive, case.data) == (True, None, "inexact")


def test_a_test_for_each_kernel() -> None:
    one, other = made_of(record("pass")), made_of(record("fail", reason="held"))
    assert [kernel.ok for kernel in read(one, other)] == [True, False]
    (kernel,) = read(made_of(record("skip", reason="rdma-odp")))
    assert (kernel.ok, kernel.directive) == (True, "SKIP")
