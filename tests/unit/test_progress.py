import io

import pytest

from pinstorm import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few_and_end_with_the_total() -> None:
    stream = io.StringIO()
    with progress.progress(25, "7.2.12", stream) as bar:
        for number in range(25):
            bar.start(f"case/{number}")
            bar.done({"case": f"case/{number}", "verdict": "pass"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("7.2.12: 10/25 cases, 10 pass, 0 s, about ")
    assert lines[-1] == "7.2.12: 25/25 cases, 25 pass, 0 s"
    assert "\x1b" not in stream.getvalue()


def test_plain_line_after_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress.progress(3, "x", stream) as bar:
        for _ in range(3):
            now[0] += 4
            bar.done({"case": "a", "verdict": "pass"})
    assert stream.getvalue().splitlines() == [
        "x: 2/3 cases, 2 pass, 8 s, about 4 s left",
        "x: 3/3 cases, 3 pass, 12 s",
    ]


def test_what_went_wrong_is_told_at_once() -> None:
    stream = io.StringIO()
    bar = progress.progress(9, "x", stream)
    bar.done({"case": "a/b", "verdict": "fail", "reason": "leak", "outcome": "ok"})
    assert stream.getvalue() == "fail: a/b: leak (outcome ok)\n"
    bar.note("boot lost, trying again")
    assert stream.getvalue().endswith("boot lost, trying again\n")


def test_interrupted_run_ends_with_what_it_reached() -> None:
    stream = io.StringIO()
    bar = progress.progress(9, "x", stream)
    bar.done({"case": "a", "verdict": "pass"})
    bar.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stream.getvalue().startswith("x: 1/9 cases, 1 pass")


@pytest.mark.parametrize("no_color", [True, False])
def test_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with progress.progress(2, "host", stream) as bar:
        bar.start("vmsplice/anon/64KiB")
        bar.done({"case": "a/b", "verdict": "crash", "reason": "child-signal"})
    text = stream.getvalue()
    assert "vmsplice/anon/64KiB" in text
    assert "crash: a/b: child-signal" in text
    assert ("\x1b[31m" in text) is not no_color


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress.progress(1, "x", Terminal()), progress.PlainBar)


def test_estimate_follows_the_latest_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    tally = progress.Tally(200)
    assert tally.eta_s is None
    for number in range(100):
        now[0] += 10 if number == 0 else 0.5
        tally.count({"verdict": "pass"})
    assert tally.eta_s == pytest.approx(50)
