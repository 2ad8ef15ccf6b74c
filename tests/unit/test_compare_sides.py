"""Two sides compared: what is paired, what changed, what the rules said, and what is refused."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import made_runs
import pytest

from pinstorm import compare
from pinstorm.compare import gate
from pinstorm.errors import UsageError
from pinstorm.report import comparison

DATA = Path(__file__).parent / "data"
OLD, NEW = DATA / "compare-6.1", DATA / "compare-7.2"


@pytest.fixture(scope="module")
def kernels() -> compare.Comparison:
    """Ten cases of a lab run on 6.1 and 7.2."""
    return compare.compare(OLD, NEW, gates=[gate.parse(g) for g in ("verdicts", "outcomes")])


def pair(tmp_path: Path, a: Any, b: Any, **more: Any) -> compare.Comparison:
    return compare.compare(
        made_runs.write(tmp_path / "a", a), made_runs.write(tmp_path / "b", b), **more
    )


# What the rules say


def test_outcomes_change_as_the_rules_predict(kernels: compare.Comparison) -> None:
    told = {
        kernels.labels[o.index]: (compare.outcome_words(o), o.said, o.rules)
        for o in kernels.outcomes
    }
    assert told == {
        "rdma-register/ext4-shared/rw/64KiB": (
            "ok -> EFAULT",
            "predicted",
            ("longterm-write-file",),
        ),
        "io-uring-register/devdax/64KiB": ("EOPNOTSUPP -> ok", "predicted", ("io-uring-file",)),
        "rdma-register/dax-private-cowed/rw/64KiB": (
            "ok -> EOPNOTSUPP",
            "either",
            ("rdma-fsdax-copied",),
        ),
    }
    assert all(one.sources for one in kernels.outcomes)


def test_predictions_that_nothing_showed_are_kept_apart(kernels: compare.Comparison) -> None:
    assert {kernels.labels[f.index]: f.why for f in kernels.foreseen} == {
        "io-uring-register/dax-private-cowed/64KiB": "open",
        "gup-test/ext4-shared/64KiB/mode=PIN_LONGTERM": "not-run",
    }
    assert kernels.unseen == []


def test_no_verdict_changes_between_kernels(kernels: compare.Comparison) -> None:
    assert kernels.verdicts == []
    assert [judged.state for judged in kernels.gates] == ["kept", "broken"]
    assert [(kernels.labels[n.index], n.side, n.reason) for n in kernels.not_run] == [
        ("rdma-register-odp/anon/rw/64KiB", "A", "rdma-odp")
    ]


def changed_journal(tmp_path: Path, case: str, **fields: Any) -> Path:
    """The bundle of 7.2 with other fields in one record."""
    path = Path(shutil.copytree(NEW, tmp_path / "changed"))
    lines = [json.loads(line) for line in (path / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.update(fields if line["case"] == case else {})
    (path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_change_that_no_rule_predicts(tmp_path: Path) -> None:
    case = "dio-read/anon/64KiB"
    path = changed_journal(tmp_path, case, outcome="EINVAL", verdict="fail", reason="outcome")
    result = compare.compare(OLD, path, gates=[gate.parse("predictions"), gate.parse("verdicts")])
    assert [result.labels[one.index] for one in result.unpredicted] == [case]
    assert [judged.state for judged in result.gates] == ["broken", "broken"]


def test_a_prediction_that_does_not_come_true(tmp_path: Path) -> None:
    case = "rdma-register/ext4-shared/rw/64KiB"
    path = changed_journal(tmp_path, case, outcome="ok", verdict="fail", reason="outcome")
    result = compare.compare(OLD, path)
    assert [(result.labels[f.index], f.rules) for f in result.unseen] == [
        (case, ("longterm-write-file",))
    ]


def test_a_bundle_with_itself(tmp_path: Path) -> None:
    path = made_runs.write(tmp_path / "a", made_runs.timed(made_runs.cases(), 8, seed=1))
    for one in (path, OLD):
        result = compare.compare(one, one)
        assert not result.changed
        assert (result.environment, result.pins, result.foreseen) == ([], [], [])


# Verdicts and pins


def test_verdicts_that_flip_and_that_are_unsteady(tmp_path: Path) -> None:
    records = made_runs.timed(made_runs.cases(3), 4, seed=1)
    after = [{**one} for one in records]
    bad = {"verdict": "fail", "reason": "held"}
    for one in after:
        if one["case"] == "vmsplice/anon/4KiB" or (one["case"], one["round"]) == (
            "vmsplice/anon/8KiB",
            2,
        ):
            one.update(bad)
        if (one["case"], one["round"]) == ("vmsplice/anon/12KiB", 1):
            one.update(verdict="crash", reason="oops", outcome=None)
    result = pair(
        tmp_path, records, after, gates=[gate.parse("verdicts"), gate.parse("verdicts in */8KiB")]
    )
    told = {
        result.labels[v.index]: (compare.counts(v.after), v.flipped, v.reason)
        for v in result.verdicts
    }
    assert told == {
        "vmsplice/anon/4KiB": ("fail", True, "held"),
        "vmsplice/anon/8KiB": ("1 fail, 3 pass", False, "held"),
        "vmsplice/anon/12KiB": ("1 crash, 3 pass", True, "oops"),
    }
    whole, one_case = result.gates
    assert [broken.case for broken in whole.broken] == ["vmsplice/anon/12KiB", "vmsplice/anon/4KiB"]
    assert (one_case.state, one_case.why) == ("can't tell", "unsteady: vmsplice/anon/8KiB")


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (made_runs.pins(held=16), made_runs.pins(held=1), ["held 16 -> 1 pages"]),
        (made_runs.pins(), made_runs.pins(leaked=3), ["leaked 0 -> 3 pages"]),
        # Four counters, each off by at most one.
        (made_runs.pins(held=16, bound=1), made_runs.pins(held=12, bound=1), []),
        (
            made_runs.pins(held=16, bound=1),
            made_runs.pins(held=11, bound=1),
            ["held 16 -> 11 pages"],
        ),
        (made_runs.pins(held=16), made_runs.pins(held=1, exact=False), []),
        (made_runs.pins(held=16), made_runs.pins(held=1, noise=5), []),
    ],
)
def test_pins(tmp_path: Path, before: Any, after: Any, found: list[str]) -> None:
    about = made_runs.cases(1)[0]
    result = pair(tmp_path, [{**about, "pins": before}], [{**about, "pins": after}])
    assert [compare.pin_words(change) for change in result.pins] == found


# Times


def test_a_slower_case_among_others(tmp_path: Path) -> None:
    about = made_runs.cases()
    slower = {"vmsplice/anon/4KiB": 1.2, "vmsplice/anon/8KiB": 1.01, "vmsplice/anon/12KiB": 0.75}
    gates = ["acquire.median <= +10%", "acquire.p99 <= +10%", "release.median <= 1%"]
    result = pair(
        tmp_path,
        made_runs.timed(about, 12, seed=1),
        made_runs.timed(about, 12, seed=2, factors=slower),
        gates=[gate.parse(text) for text in gates],
    )
    verdicts = {result.labels[t.index]: t.verdict for t in result.timings.all}
    assert verdicts.pop("vmsplice/anon/4KiB") == "slower"
    assert verdicts.pop("vmsplice/anon/12KiB") == "faster"
    assert set(verdicts.values()) <= {"same", "can't tell"}
    median, p99, release = result.gates
    for judged in (median, p99):
        assert [broken.case for broken in judged.broken] == ["vmsplice/anon/4KiB"]
    assert (release.state, release.why) == ("can't tell", "no case has that figure on both sides")


def test_what_cannot_be_told_is_not_called_unchanged(tmp_path: Path) -> None:
    cases = made_runs.timed(made_runs.cases(), 2, seed=1)
    assert comparison.unchanged(pair(tmp_path / "timed", cases, cases)) == (
        "nothing changed, as far as can be told: not of 12 times"
    )
    cases = made_runs.cases()
    assert comparison.unchanged(pair(tmp_path / "not", cases, cases)) == "nothing changed"


def test_too_few_rounds_say_how_many(tmp_path: Path) -> None:
    about = made_runs.cases()
    result = pair(tmp_path, made_runs.timed(about, 3, seed=1), made_runs.timed(about, 3, seed=2))
    assert result.timings.counts() == {"can't tell": 12}
    assert {timing.why for timing in result.timings.all} == {"few-rounds"}
    assert result.timings.rounds_wanted == 6


def test_p99_wants_a_hundred_cycles(tmp_path: Path) -> None:
    about = made_runs.cases()
    few = [made_runs.timed(about, 8, seed=seed, cycles=12) for seed in (1, 2)]
    (judged,) = pair(tmp_path, *few, gates=[gate.parse("acquire.p99 <= 10%")]).gates
    assert (judged.state, judged.why) == ("can't tell", "no case has 100 timed cycles on each side")


def test_several_runs_on_a_side(tmp_path: Path) -> None:
    about = made_runs.cases()
    for name, seeds, factor in (("a", (1, 2, 3), 1.0), ("b", (4, 5, 6), 1.3)):
        for seed in seeds:
            records = made_runs.timed(about, 4, seed=seed, factors={about[0]["case"]: factor})
            made_runs.write(tmp_path / name / str(seed), records)
    result = compare.compare(tmp_path / "a", tmp_path / "b")
    first = next(t for t in result.timings.all if result.labels[t.index] == about[0]["case"])
    assert (first.verdict, first.rounds) == ("slower", (12, 12))
    assert result.timings.common["acquire.median"].low is not None


def test_each_kernel_has_its_own_machine(tmp_path: Path) -> None:
    """Of two kernels on each side the one's runs were on a busy machine: no case is called."""
    about = made_runs.cases()
    for name, seed, busy in (("a", 1, 1.0), ("b", 3, 1.4)):
        for kernel, factor in (("6.1.0", 1.0), ("7.2.0", busy)):
            cases = [{**one, "kernel": kernel} for one in about]
            factors = {one["case"]: factor for one in cases}
            records = made_runs.timed(cases, 10, seed=seed, factors=factors)
            made_runs.write(tmp_path / name / kernel, records)
            seed += 1
    result = compare.compare(tmp_path / "a", tmp_path / "b")
    common = result.timings.common
    assert set(common) == {"acquire.median on 6.1.0", "acquire.median on 7.2.0"}
    assert common["acquire.median on 7.2.0"].ratio == pytest.approx(1.4, rel=0.05)
    assert not any(one.attributed for one in common.values())
    assert not {"faster", "slower"} & set(result.timings.counts())


def test_emulated_times_are_compared_with_nothing_else(tmp_path: Path) -> None:
    records = made_runs.timed(made_runs.cases(), 8, seed=1)
    emulated = [{**one, "accel": "tcg", "outcome": "EFAULT"} for one in records]
    result = pair(tmp_path, records, emulated, gates=[gate.parse("acquire.median <= 10%")])
    assert result.timings.all == []
    assert "emulated" in str(result.timings.refused)
    assert result.gates[0].state == "can't tell"
    assert len(result.outcomes) == 12  # those are compared


def test_loads_are_compared_by_their_jobs(tmp_path: Path) -> None:
    def load(rate: float, number: int) -> dict[str, Any]:
        job = {"name": "io", "ops_s": rate, "latency_ns": {"read": {"p50": 100, "p99": 900}}}
        about = made_runs.case_record("load", "jobs", 4096)
        return {**about, "case": "load/x", "round": number, "jobs": [job], "load": {}}

    result = pair(
        tmp_path, [load(100 + n, n) for n in range(2)], [load(50 + n, n) for n in range(2)]
    )
    told = {(t.job, t.measure): (round(t.ratio, 1), t.verdict) for t in result.timings.all}
    assert told == {
        ("io", "rate"): (0.5, "can't tell"),
        ("io", "read.median"): (1.0, "can't tell"),
        ("io", "read.p99"): (1.0, "can't tell"),
    }


# What is refused, and what stands around


def test_no_common_case(tmp_path: Path) -> None:
    records = made_runs.cases(2)
    with pytest.raises(UsageError, match="no case in common"):
        pair(tmp_path, records[:1], records[1:])


def test_other_parameters_under_the_same_name(tmp_path: Path) -> None:
    (one,) = made_runs.cases(1)
    other = {**one, "params": {"size_bytes": 4096, "times": 2}}
    with pytest.raises(UsageError, match=r"vmsplice/anon/4KiB is not the same case.*times 2 and -"):
        pair(tmp_path, [one], [other])


def test_parameters_in_another_order_are_the_same(tmp_path: Path) -> None:
    (one,) = made_runs.cases(1)
    spellings = [{"size_bytes": 4096, "times": 2}, {"times": 2, "size_bytes": 4096}]
    result = pair(tmp_path, *[[{**one, "params": params}] for params in spellings])
    assert result.ran == 1


def test_a_newer_schema(tmp_path: Path) -> None:
    records = made_runs.cases(1)
    for name in ("a", "b/1", "b/2"):
        made_runs.write(tmp_path / name, records)
    newer = tmp_path / "b/2/manifest.json"
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "schema": 99}))
    with pytest.raises(UsageError, match="newer"):
        compare.compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match="newer"):
        compare.compare(tmp_path / "b/2", tmp_path / "a")


def test_nothing_there(tmp_path: Path) -> None:
    path = made_runs.write(tmp_path / "a", made_runs.cases(1))
    with pytest.raises(UsageError):
        compare.compare(path, tmp_path / "missing")


def test_why_nothing_could_be_read_is_told(tmp_path: Path) -> None:
    good = made_runs.write(tmp_path / "good", made_runs.cases(1))
    broken = made_runs.write(tmp_path / "broken", made_runs.cases(1))
    (broken / "journal.jsonl").unlink()
    (broken / "cases.parquet").write_bytes(b"no table")
    with pytest.raises(UsageError, match=r"broken/cases\.parquet cannot be read"):
        compare.compare(good, broken)


def test_several_kernels_against_one(tmp_path: Path) -> None:
    (one,) = made_runs.cases(1)
    for name, kernel in (("a/1", "6.1.0"), ("a/2", "7.2.0"), ("b", "7.2.0")):
        made_runs.write(tmp_path / name, [{**one, "kernel": kernel}])
    with pytest.raises(UsageError, match=r"has kernels 6\.1\.0, 7\.2\.0"):
        compare.compare(tmp_path / "a", tmp_path / "b")
    result = compare.compare(tmp_path / "a", tmp_path / "a")
    assert result.labels == ["6.1.0: vmsplice/anon/4KiB", "7.2.0: vmsplice/anon/4KiB"]


def test_a_case_that_has_only_begun_is_not_lost(tmp_path: Path) -> None:
    records = made_runs.cases(2)
    a, b = (made_runs.write(tmp_path / name, records) for name in "ab")
    (b / "cases.parquet").unlink()
    first, _ = (b / "journal.jsonl").read_text().splitlines()
    begun = json.dumps({"start": records[1]["case"], "seq": 1, "t_ns": 1, "deadline_s": 30.0})
    (b / "journal.jsonl").write_text(f"{first}\n{begun}\n")
    result = compare.compare(a, b)
    assert result.verdicts == []
    assert result.only["A"] == [records[1]["case"]]


def test_cases_of_one_side(tmp_path: Path) -> None:
    records = made_runs.cases(3)
    result = pair(tmp_path, records[:2], records[1:], gates=[gate.parse("cases")])
    assert result.only == {"A": ["vmsplice/anon/4KiB"], "B": ["vmsplice/anon/12KiB"]}
    assert [broken.case for broken in result.gates[0].broken] == ["vmsplice/anon/4KiB"]


def test_environment(tmp_path: Path) -> None:
    records = made_runs.cases(1)
    manifests: list[dict[str, Any]] = [
        {
            "kernel": {"release": "7.2.11", "version": "#1", "cmdline": f"quiet iommu={iommu}"},
            "sysctl": {"vm.swappiness": "60", "vm.max_map_count": limit},
            "limits": {"rlimits": {"MEMLOCK": [memlock, None]}},
            "rdma": [{"name": "mlx5_0", "firmware": firmware}],
            "packages": {"python": "3.11.2", **more},
            "tool": {"commit": "abc"},
        }
        for iommu, limit, memlock, firmware, more in (
            ("on", "65530", 65536, "1.2", {}),
            ("pt", "262144", None, "1.3", {"numpy": "2"}),
        )
    ]
    a, b = (
        made_runs.write(tmp_path / name, records, manifest=about)
        for name, about in zip("ab", manifests, strict=True)
    )
    found = {one.what: (one.a, one.b) for one in compare.compare(a, b).environment}
    assert found == {
        "command line": ("iommu=on", "iommu=pt"),
        "mlx5_0 firmware": ("1.2", "1.3"),
        "sysctl vm.max_map_count": ("65530", "262144"),
        "limit MEMLOCK": ("65536:unlimited", "unlimited:unlimited"),
        "package numpy": ("-", "2"),
    }


def test_rows_are_reduced_in_polars(tmp_path: Path) -> None:
    """Twenty thousand of them, from tables alone: without journals."""
    import polars

    path = made_runs.write(tmp_path / "a", made_runs.timed(made_runs.cases(1), 1, seed=1))
    row = polars.read_parquet(path / "cases.parquet").drop("case", "round")
    many = row.join(
        polars.DataFrame({"number": range(2_000)})
        .with_columns(polars.format("vmsplice/anon/{}KiB", "number").alias("case"))
        .join(polars.DataFrame({"round": range(10)}), how="cross"),
        how="cross",
    )
    many.write_parquet(path / "cases.parquet")
    (path / "journal.jsonl").unlink()
    begin = time.monotonic()
    result = compare.compare(path, path)
    assert len(result.labels) == 2_000
    assert not result.changed
    assert time.monotonic() - begin < 30


# What must not be said


def test_a_gate_that_speaks_of_no_case_is_not_kept(tmp_path: Path) -> None:
    texts = [f"{what} in no/such/*" for what in (*gate.THINGS, "acquire.median <= 5%", "rate > 1%")]
    cases = made_runs.timed(made_runs.cases(), 2, seed=1)
    gates = [gate.parse(text) for text in texts]
    result = pair(tmp_path, cases, cases, gates=gates)
    assert [judged.state for judged in result.gates] == ["can't tell"] * len(texts)
    assert all("no case in no/such/*" in str(judged.why) for judged in result.gates)


def test_a_gate_of_cases_that_only_one_side_ran_is_not_kept(tmp_path: Path) -> None:
    one, other = made_runs.cases(2)
    skipped = {**other, "verdict": "skip", "outcome": None}
    gates = [gate.parse(f"{what} in {other['case']}") for what in ("verdicts", "cases")]
    result = pair(tmp_path, [one, other], [one, skipped], gates=gates)
    assert [judged.state for judged in result.gates] == ["can't tell", "broken"]


def test_cases_that_a_skipped_and_b_has_not_break_no_gate(tmp_path: Path) -> None:
    one, ran, skipped = made_runs.cases(3)
    skipped = {**skipped, "verdict": "skip", "outcome": None}
    gates = [gate.parse("cases"), gate.parse(f"cases in {skipped['case']}")]
    result = pair(tmp_path, [one, ran, skipped], [one], gates=gates)
    assert result.only["A"] == sorted([ran["case"], skipped["case"]])
    broken, other = result.gates
    assert [found.case for found in broken.broken] == [ran["case"]]
    assert broken.of == 2
    assert other.state == "can't tell"


def test_pins_that_no_counter_vouches_for_are_not_called_the_same(tmp_path: Path) -> None:
    noisy = [{**one, "pins": made_runs.pins(exact=False, noise=9)} for one in made_runs.cases(3)]
    result = pair(tmp_path, noisy, noisy, gates=[gate.parse("pins")])
    assert result.gates[0].state == "can't tell"
    assert "not compared" in comparison.pin_summary(result)
    some = pair(tmp_path / "some", [made_runs.cases(1)[0], *noisy[1:]], made_runs.cases(3))
    assert comparison.pin_summary(some) == "no change, of 1 case with figures on both sides"


def test_the_figures_of_both_sides_have_the_ratio_that_is_told(tmp_path: Path) -> None:
    cases = made_runs.cases()
    a = made_runs.timed(cases, 9, seed=1, spread=0.3)
    b = made_runs.timed(cases, 9, seed=2, spread=0.3, factors={cases[3]["case"]: 1.5})
    timings = pair(tmp_path, a, b).timings.all
    assert len(timings) == len(cases)
    for one in timings:
        assert one.ratio == pytest.approx(one.b / one.a)


@pytest.mark.parametrize("odd", [[], "x", 7, {"release": ["x"]}, [[1]], {"text": {}}])
def test_manifest_that_somebody_edited(tmp_path: Path, odd: Any) -> None:
    names = ("kernel", "rdma", "cpu", "limits", "packages", "suite", "memory", "identity", "lab")
    cases = made_runs.cases(2)
    a = made_runs.write(tmp_path / "a", cases)
    b = made_runs.write(tmp_path / "b", cases, manifest=dict.fromkeys(names, odd))
    for one, other in ((a, b), (b, a)):
        assert compare.compare(one, other).ran == 2


def test_emulated_times_are_not_compared_with_unlabelled_ones(tmp_path: Path) -> None:
    cases = made_runs.timed(made_runs.cases(), 9, seed=1)
    emulated = [{**one, "accel": "tcg"} for one in cases]
    unknown = [{name: value for name, value in one.items() if name != "accel"} for one in cases]
    for number, (a, b) in enumerate([(emulated, unknown), (unknown, emulated)]):
        result = pair(tmp_path / str(number), a, b)
        assert result.timings.refused is not None
        assert result.timings.all == []


def test_rounds_that_no_run_has(tmp_path: Path) -> None:
    cases = made_runs.timed(made_runs.cases(2), 2, seed=1)
    without = [{name: value for name, value in one.items() if name != "round"} for one in cases[:2]]
    assert pair(tmp_path / "none", [{**one, "round": None} for one in without], cases).ran == 2
    with pytest.raises(UsageError, match="has a case of round 1000000000000"):
        pair(tmp_path / "many", [*cases, {**cases[0], "round": 10**12}], cases)


@pytest.mark.parametrize("jobs", [["x"], [{"latency_ns": 3, "ops_s": "x"}], 7, [{"ops_s": -1}]])
def test_jobs_of_another_form_have_no_times(tmp_path: Path, jobs: Any) -> None:
    cases = [{**one, "jobs": jobs} for one in made_runs.cases(2)]
    assert pair(tmp_path, cases, cases).timings.all == []
