import io
from typing import Any

import pytest

from pinstorm import suite
from pinstorm.report import table

COMMAND = "pinstorm lab run configs/quick.toml --kernel backports"


def a_record(case: str = "rdma-register/anon/rw/16MiB", **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "case": case,
        "params": {"size_bytes": 16 << 20},
        "verdict": "pass",
        "reason": None,
        "outcome": "ok",
        "expected": {"rule": "longterm-pin", "outcomes": ["ok"], "source": "s", "broken": []},
        "placement": {"zones": {"Normal": 4096}, "cma_pages": 0},
        "pins": {
            "exact": True,
            "bound": 0,
            "noise": 0,
            "flagged": False,
            "acquire": {"acquired": 4096, "released": 0},
            "release": {"acquired": 0, "released": 4096},
            "held": 4096,
            "leaked": 0,
        },
        "vmpin_bytes": {"held": 16 << 20, "after": 0},
        "migrate": {"success": 0, "fail": 0},
        "timing_ns": {"first": 41250, "acquire": [2310, 9_000_000, 41250], "release": [900]},
    }
    return {**record, **changes}


def a_skip(case: str, *codes: str) -> dict[str, Any]:
    reasons = [{"code": code, "detail": f"no {code}", "remedy": f"get {code}"} for code in codes]
    return {"case": case, "params": {}, "verdict": "skip", "reason": codes[0], "skip": reasons}


def shown(records: list[dict[str, Any]], **options: Any) -> str:
    stream = io.StringIO()
    table.show(records, file=stream, command=COMMAND, **{"emulated": False, **options})
    return stream.getvalue()


def row(text: str, case: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(case))


def test_row_has_the_figures_in_the_units_of_the_header() -> None:
    text = shown([a_record()])
    assert row(text, "rdma-register/anon/rw/16MiB")[1:] == [
        "pass",
        "ok",
        "4096",
        "4096",
        "0",
        "16384",
        "41.2",
    ]
    assert "median us" in text
    assert "emulated" not in text


def test_emulated_times_say_so() -> None:
    text = shown([a_record()], emulated=True)
    assert text.count("emulated") == 2


def test_missing_is_a_dash_never_zero() -> None:
    text = shown([a_record(pins=None, vmpin_bytes={"held": None}, timing_ns={"acquire": []})])
    assert row(text, "rdma-register")[1:] == ["pass", "ok", "-", "-", "-", "-", "-"]
    assert "pin figures missing: 1 of 1" in text


def test_inexact_figures_carry_their_bound() -> None:
    pins = {"exact": False, "bound": 128, "noise": 0, "held": 4000, "leaked": 0}
    assert "4000±128" in shown([a_record(pins=pins)])


def test_every_quick_case_fits_100_columns_whole() -> None:
    records = [
        a_record(one.case.id, outcome="EOPNOTSUPP") for one in suite.plan(suite.load("quick"))[0]
    ]
    lines = shown(records, emulated=True).splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    names = {line.split()[0] for line in lines if line.strip()}
    assert {record["case"] for record in records} <= names


def test_plain_text_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = shown([a_record(), a_record("vmsplice/anon/64KiB", verdict="fail")])
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines() if "repeat" in line)


def test_failures_come_first_with_reason_bounds_and_command() -> None:
    bad = a_record(
        "rdma-register/thp/LOCAL_WRITE|REMOTE_READ/64KiB",
        verdict="fail",
        reason="outcome",
        outcome="EFAULT",
        failed_call="ibv_reg_mr",
        failed_phase="acquire",
        kmsg=["WARNING: at mm/gup.c"],
    )
    bad["expected"]["broken"] = ["leaked 16 pages, expected 0"]
    lines = shown([a_record("dio-read/anon/64KiB"), bad]).splitlines()
    names = [line.split()[0] for line in lines if "/" in line]
    assert names[0].startswith("rdma-register/thp")
    text = "\n".join(lines)
    assert "reason: outcome (outcome EFAULT, expected ok; ibv_reg_mr failed in acquire)" in text
    assert "broken: leaked 16 pages, expected 0" in text
    assert "kernel log: WARNING: at mm/gup.c" in text
    assert f"{COMMAND} --only 'rdma-register/thp/LOCAL_WRITE|REMOTE_READ/64KiB'" in text
    assert "2 cases: 1 pass, 1 fail" in text


def test_long_commands_are_one_line_to_copy() -> None:
    text = shown([a_record("x" * 120, verdict="fail")])
    assert f"  repeat: {COMMAND} --only {'x' * 120}\n" in text


def test_skips_are_grouped_by_reason_unless_wide() -> None:
    records = [
        a_record(),
        a_skip("a/b/64KiB", "rdma-device"),
        a_skip("a/c/64KiB", "rdma-device", "movable"),
    ]
    text = shown(records)
    assert "3 cases: 1 pass, 2 skip" in text
    assert "  2 skip: rdma-device (no rdma-device; get rdma-device)\n" in text
    assert "  1 skip: movable (" in text
    assert "counts once for each" in text
    assert "a/b/64KiB" not in text
    assert row(shown(records, wide=True), "a/b/64KiB")[1] == "skip"


def test_all_skipped_has_no_empty_table() -> None:
    text = shown([a_skip("a/b/64KiB", "rdma-device")])
    assert text.startswith("1 case: 1 skip\n")


def test_wide_has_the_rest_uncut() -> None:
    text = shown([a_record()], wide=True)
    for header in ("acquired", "released", "noise", "migrated", "first", "settle", "placement"):
        assert header in text
    assert "max 9000" in text
    assert "Normal 4096" in text
    assert "…" not in text


@pytest.mark.parametrize(("count", "word"), [(99, "max 99.0"), (100, "p99")])
def test_no_percentile_of_few_timings(count: int, word: str) -> None:
    times = [n * 1000 for n in range(1, count + 1)]
    text = shown([a_record(timing_ns={"acquire": times})], wide=True)
    assert word in text


def test_rounds_that_agree_share_a_line() -> None:
    records = [a_record(), a_record(), a_record(verdict="fail", reason="leak")]
    text = shown(records)
    assert "pass x2" in text
    assert "3 cases: 2 pass, 1 fail" in text


def test_flagged_windows_are_told() -> None:
    record = a_record()
    record["pins"] = {**record["pins"], "noise": 9000, "flagged": True}
    text = shown([record])
    assert "noise of other processes reaches the pin figures of 1 case" in text
    assert "exact, noise 0: 0 of 1" in text


def test_figures_that_others_may_be_in_have_a_tilde_and_whose_they_are_is_told() -> None:
    record = a_record(reason="noisy-window")
    method = {"acquired": "trace", "held": "unattributable", "leaked": "unattributable"}
    attributed = {"acquired": 4096, "held": None, "leaked": None, "method": method}
    record["pins"] = {**record["pins"], "exact": False, "recent": 7, "attributed": attributed}
    text = shown([record], wide=True)
    assert f"~{record['pins']['held']}" in text
    assert "4096 trace / unattributable" in text
    assert "whose the pins of 1 case are cannot all be known" in text.replace("\n", " ")


def test_pass_that_says_less_is_told() -> None:
    text = shown([a_record(reason="telemetry-unavailable"), a_record("a/b/64KiB")])
    assert "1 pass, but telemetry-unavailable" in text


def test_nothing_in_a_record_speaks_to_the_terminal() -> None:
    evil = "\x1b]0;owned\x1b\\\x1b[2J\x9b31m\u202e"
    record = a_record(
        f"dio-read/anon/{evil}4KiB",
        verdict="fail",
        reason=f"held{evil}",
        cause=f"ram{evil}",
        detail=evil,
        kmsg=[f"BUG: {evil}"],
    )
    file = io.StringIO()
    table.show([record, a_skip("dio-read/anon/8KiB", f"root{evil}")], emulated=False, file=file)
    told = file.getvalue()
    assert "]0;owned" in told
    assert not [letter for letter in told if letter != "\n" and not letter.isprintable()]
