"""The grammar of --gate, and what keeps, breaks or cannot tell."""

import pytest

from pinstorm.compare import gate
from pinstorm.compare.timing import Timing, Verdict, Why
from pinstorm.errors import UsageError

LABELS = ["dio-read/anon/4KiB", "vmsplice/anon/4KiB"]


@pytest.mark.parametrize(
    ("text", "what", "sign", "limit", "glob"),
    [
        ("verdicts", "verdicts", None, None, None),
        (" outcomes ", "outcomes", None, None, None),
        ("pins in dio-*", "pins", None, None, "dio-*"),
        ("acquire.p99 <= +10%", "acquire.p99", "<=", 1.1, None),
        ("acquire.median<5%", "acquire.median", "<", 1.05, None),
        ("release.median <= 2.5 %", "release.median", "<=", 1.025, None),
        ("rate >= -5% in load/*", "rate", ">=", 0.95, "load/*"),
        ("acquire.median <= -3%", "acquire.median", "<=", 0.97, None),
    ],
)
def test_gates(
    text: str, what: str, sign: str | None, limit: float | None, glob: str | None
) -> None:
    parsed = gate.parse(text)
    assert (parsed.what, parsed.sign, parsed.glob) == (what, sign, glob)
    assert parsed.limit == (limit if limit is None else pytest.approx(limit))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not understood"),
        ("acquire.p99 <= ", "not understood"),
        ("acquire.p99 <= 10% please", "not understood"),
        ("verdict", "'verdict', which is none of verdicts"),
        ("acquire.p98 <= 10%", "none of"),
        ("acquire.median", "says no limit: write 'acquire.median <= +10%'"),
        ("rate", "write 'rate >= -5%'"),
        ("acquire.median = 10%", "the sign '='"),
        ("acquire.median <= 10", "10 is no change in percent"),
        ("acquire.median <= 1e1%", "no change in percent"),
        ("acquire.median <= nan%", "no change in percent"),
        ("rate >= -100%", "nothing gets less by 100%"),
        ("verdicts <= 3%", "either change or not"),
    ],
)
def test_broken_gates_are_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"^gate ") as caught:
        gate.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def timing(
    low: float | None, high: float | None, *, index: int = 0, why: Why | None = None
) -> Timing:
    ratio = (low or 1.0) * 1.01
    verdict: Verdict = "can't tell" if low is None else "slower"
    return Timing(
        index, "acquire.median", 100.0, 100 * ratio, ratio, low, high, verdict, why, (8, 8)
    )


@pytest.mark.parametrize(
    ("text", "low", "high", "state"),
    [
        ("acquire.median <= 10%", 1.11, 1.3, "broken"),
        ("acquire.median <= 10%", 1.0, 1.09, "kept"),
        ("acquire.median <= 10%", 1.05, 1.2, "can't tell"),
        ("acquire.median <= 10%", None, None, "can't tell"),
        ("acquire.median >= -10%", 0.8, 0.85, "broken"),
        ("acquire.median >= -10%", 0.95, 1.5, "kept"),
        ("acquire.median <= 10% in vmsplice/*", 1.11, 1.3, "can't tell"),
    ],
)
def test_figures(text: str, low: float | None, high: float | None, state: str) -> None:
    why: Why | None = "few-rounds" if low is None else None
    judged = gate.judge_figure(gate.parse(text), [timing(low, high, why=why)], LABELS, "none", 8)
    assert judged.state == state
    assert judged.fails(strict=True) == (state != "kept")
    assert judged.fails(strict=False) == (state == "broken")


def test_the_sentence_says_which_gate_which_cases_and_by_how_much() -> None:
    parsed = gate.parse("acquire.median <= 10%")
    timings = [timing(1.2, 1.3), timing(1.0, 1.05, index=1)]
    judged = gate.judge_figure(parsed, timings, LABELS, "none", 8)
    assert gate.sentence([judged], strict=False) == (
        "gate 'acquire.median <= 10%' is broken by 1 of 2 cases: "
        "dio-read/anon/4KiB +21.2 % (+20.0 to +30.0 %)"
    )


def test_what_cannot_be_told_breaks_only_when_strict() -> None:
    few = [timing(None, None, why="few-rounds")]
    judged = gate.judge_figure(gate.parse("acquire.median <= 10%"), few, LABELS, "none", 8)
    assert gate.sentence([judged], strict=False) is None
    assert "too few rounds: 8 on each side are wanted" in str(gate.sentence([judged], strict=True))
    nothing = gate.judge_figure(gate.parse("acquire.p99 <= 10%"), [], LABELS, "not timed", 8)
    assert (nothing.state, nothing.why) == ("can't tell", "not timed")


def test_things() -> None:
    parsed = gate.parse("outcomes in vmsplice/*")
    changes = [(LABELS[0], "ok -> EFAULT")]
    assert gate.judge_thing(parsed, changes, 1).state == "kept"
    broken = gate.judge_thing(gate.parse("outcomes"), changes, 2)
    assert broken.state == "broken"
    assert gate.sentence([broken], strict=False) == (
        "gate 'outcomes' is broken by 1 of 2 cases: dio-read/anon/4KiB ok -> EFAULT"
    )
