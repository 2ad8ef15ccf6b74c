"""``[[load]]``: what it expands to, and one sentence for each thing that is wrong with it."""

import json
import re
from pathlib import Path

import pytest

from pinstorm import suite
from pinstorm.errors import UsageError
from pinstorm.suite_load import JobTable, LoadTable
from workloads.load.spec import Load
from workloads.spec import Case

MIB = 1 << 20


def load_of(body: str, run: str = "") -> Load:
    parsed = suite.parse(f"[run]\n{run}\n[[load]]\nname = 'x'\n{body}", "made.toml")
    return parsed.loads[0]


def refusal(body: str) -> str:
    with pytest.raises(UsageError) as error:
        load_of(body)
    return str(error.value)


def test_a_load_without_jobs_is_its_one_job():
    load = load_of("workload = 'io-uring-register'\nsize = '1MiB'\nduration = '2m'")
    (job,) = load.jobs
    assert (job.name, job.workload, job.sizes) == ("io-uring-register",) * 2 + (((MIB, 1.0),),)
    assert (load.duration_s, load.ramp_s, load.interval_s) == (120, 0, 1)


def test_the_loads_keys_are_the_defaults_of_its_jobs():
    load = load_of(
        """
        size = "64KiB"
        processes = 3
        file_size = "16MiB"
        [[load.job]]
        workload = "dio-read-uring"
        depth = 8
        [[load.job]]
        workload = "io-uring-register"
        processes = 1
        """
    )
    reads, regions = load.jobs
    assert (reads.processes, reads.file_bytes, reads.depth) == (3, 16 * MIB, 8)
    assert (regions.processes, regions.sizes) == (1, ((65536, 1.0),))


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ('"4KiB"', ((4096, 1.0),)),
        ('["4KiB", "8KiB"]', ((4096, 1.0), (8192, 1.0))),
        ('{ "4KiB" = 9, "1MiB" = 0.5 }', ((4096, 9.0), (MIB, 0.5))),
    ],
)
def test_sizes_are_fixed_a_list_or_weighted(size, sizes):
    assert load_of(f"workload = 'dio-read'\nsize = {size}").jobs[0].sizes == sizes


@pytest.mark.parametrize(("workload", "reads"), [("dio-read", 100), ("dio-write-uring", 0)])
def test_a_workload_reads_or_writes_unless_mixed(workload, reads):
    assert load_of(f"workload = '{workload}'").jobs[0].read_percent == reads
    assert load_of(f"workload = '{workload}'\nreads = '70%'").jobs[0].read_percent == 70


def test_jobs_of_one_name_are_told_apart():
    load = load_of("[[load.job]]\nworkload = 'dio-read'\n[[load.job]]\nworkload = 'dio-read'")
    assert [job.name for job in load.jobs] == ["dio-read", "dio-read-2"]


def test_a_number_gives_no_name_away_that_another_job_has():
    job = "[[load.job]]\nworkload = 'dio-read'\nname = "
    load = load_of(f"{job}'a'\n{job}'a'\n{job}'a-2'\n{job}'a'")
    assert [job.name for job in load.jobs] == ["a", "a-3", "a-2", "a-4"]


def test_a_load_is_a_case_and_travels_as_json():
    parsed = suite.parse(
        "[[load]]\nname = 'x'\nworkload = 'io-uring-register'\nsize = '1MiB'\ndepth = 4\n"
        "processes = 2\nallow = 'ENOMEM'\nramp = '1s'\nduration = '9s'",
        "made.toml",
    )
    ((planned,), _) = suite.plan(parsed)
    case = planned.case
    assert (case.id, case.workload, case.memory) == ("load/x", "load", "jobs")
    assert (case.size_bytes, case.hold_s) == (8 * MIB, 10)
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_hold_is_the_duration():
    assert load_of("workload = 'dio-read'", run="hold = '30s'").duration_s == 30
    parsed = suite.parse(
        "[[load]]\nname = 'x'\nworkload = 'dio-read'\nduration = '9s'", "made.toml"
    )
    ((planned,), _) = suite.plan(parsed.with_hold(60))
    assert planned.case.hold_s == 60


def test_another_hold_has_its_own_interval():
    parsed = suite.parse("[[load]]\nname = 'x'\nworkload = 'dio-read'", "made.toml")
    assert parsed.with_hold(86_400).loads[0].interval_s == 24
    text = "[[load]]\nname = 'x'\nworkload = 'dio-read'\ninterval = 2"
    own = suite.parse(text, "made.toml")
    assert own.with_hold(86_400).loads[0].interval_s == 2
    for none in (0.0, 0.01):
        with pytest.raises(UsageError, match=r"--hold of load x: duration .* is not 0\.1 s"):
            parsed.with_hold(none)


@pytest.mark.parametrize(
    ("seconds", "interval_s"), [(1, 0.1), (10, 1.0), (60, 1.0), (86_400, 24.0)]
)
def test_figures_are_taken_often_enough_and_not_too_often(seconds, interval_s):
    assert load_of(f"workload = 'dio-read'\nduration = {seconds}").interval_s == interval_s


PINS = "[[load.job]]\nworkload = 'dio-read'\n[[load.job]]\n"
WRONG = {
    "no job": ("", "has no job that pins"),
    "workload": ("workload = 'dio-raed'", 'did you mean "dio-read"'),
    "no engine": ("workload = 'vmsplice'", 'no workload of loads "vmsplice"'),
    "two workloads": ("workload = 'dio-*'", "a job has one workload"),
    "missing": ("[[load.job]]\nsize = 4096", '[[load.job]] 1 lacks the key "workload"'),
    "key of others": (
        "[[load.job]]\nworkload = 'io-uring-register'\nsqpoll = true", "sqpoll says nothing to"
    ),
    "block": ("workload = 'dio-read'\nsize = 4097", "no multiple of 512"),
    "file": ("workload = 'dio-read'\nsize = '1MiB'\nfile_size = 4096", "raise file_size"),
    "depth": ("workload = 'dio-read'\ndepth = 4", "dio-read-uring"),
    "memory": ("workload = 'dio-read'\nmemory = 'one-page'", "says nothing about"),
    "rate": ("workload = 'dio-read'\nrate = 'fast'", "is no rate"),
    "share": ("workload = 'dio-read'\nreads = 101", "is no share"),
    "a share of one": ("workload = 'dio-read'\nreads = 0.5", "no whole percent"),
    "endless rate": ("workload = 'dio-read'\nrate = 1e-320", "is no rate"),
    "weights that overflow": ("workload = 'dio-read'\nsize = { 4096 = 1e308 }", "the weight of"),
    "ramp": ("workload = 'dio-read'\nramp = '9999h'", "is over a year"),
    "sample": ("workload = 'dio-read'\nsample = 1e-300", "sample 1e-300 is less than 0.001"),
    "params of what pins": (
        "[[load.job]]\nworkload = 'dio-read'\nparams = { a = 1 }", "params says nothing to dio-read"
    ),
    "default of none": ("workload = 'io-uring-register'\nreads = 50", "reads says nothing to any"),
    "word for a number": (f"{PINS}workload = 'fork-storm'\nparams.alive = 'x'", 'alive is "x"'),
    "too many alive": (f"{PINS}workload = 'fork-storm'\nparams.alive = 100_000", "1 to 1024"),
    "half alive": (f"{PINS}workload = 'fork-storm'\nparams.alive = 1.5", "a whole number"),
    "negative hold": (f"{PINS}workload = 'fill-cma'\nparams.hold_ms = -5", "hold_ms is -5"),
    "weights": ("workload = 'dio-read'\nsize = { '4KiB' = 0 }", "the weight of 4KiB"),
    "duration": ("workload = 'dio-read'\nduration = '1ms'", "duration 0.001 s is not"),
    "interval": ("workload = 'dio-read'\nduration = 1\ninterval = 2", "interval 2.0 s is not"),
    "misspelt": ("workload = 'dio-read'\nthnik = 1", 'did you mean "think"'),
    "errno": ("workload = 'dio-read'\nallow = 'ENOMEN'", 'did you mean "ENOMEM"'),
    "verify on demand": (
        "workload = 'rdma-register-odp'\nverify = true", "add storm = true"
    ),
    "of the run": ("workload = 'dio-read'\nseed = 2", "it belongs into [run]"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_one_sentence_for_what_is_wrong(wrong):
    body, words = WRONG[wrong]
    said = refusal(body)
    assert words in said
    assert said.startswith("suite made.toml: ")
    assert "\n" not in said


def test_a_storm_verifies_and_may_be_refused():
    keys = "storm = true\nverify = true\nallow = 'EOPNOTSUPP'"
    (job,) = load_of(f"workload = 'rdma-register-odp'\n{keys}").jobs
    assert (job.params, job.verify, job.allowed) == ({"storm": True}, True, ("EOPNOTSUPP",))


def test_two_loads_of_one_name_are_refused():
    text = "[[load]]\nname = 'x'\nworkload = 'dio-read'\n" * 2
    with pytest.raises(UsageError, match="two loads of the name x"):
        suite.plan(suite.parse(text, "made.toml"))


def test_a_repeated_run_of_the_seed_draws_the_same():
    assert load_of("workload = 'dio-read'", run="seed = 7").seed == 7


def test_every_key_is_documented():
    text = (Path(__file__).parents[2] / "docs/loads.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    for table in (LoadTable, JobTable):
        assert set(table.model_fields) <= named
