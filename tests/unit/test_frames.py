"""Bundles as frames: whole ones, halves, damaged, of other schemas, of runs that still live."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
from benches import many_bundles
from polars import col

import pinstorm
from pinstorm import bundle, frames, parquet_tables, samples, schema, spool, unended
from pinstorm.errors import UsageError
from pinstorm.report import markdown
from pinstorm.spool import Mark, Spool
from telemetry.histogram import Histogram

DATA = Path(__file__).parent / "data"
REAL = DATA / "bundle-schema-1"
LOAD = DATA / "bundle-load"
CASES = 97


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return copy(REAL, tmp_path / "real")


def copy(source: Path, path: Path) -> Path:
    shutil.copytree(source, path)
    return path


def lines_of(path: Path) -> list[bytes]:
    return (path / bundle.JOURNAL).read_bytes().splitlines(keepends=True)


def record_lines(path: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, lines_of(path)) if "verdict" in line]


# -- names, and where bundles are ----------------------------------------------------------------


def lab_run(parent: Path, *kernels: str) -> Path:
    for kernel in kernels:
        copy(REAL, parent / kernel)
    entries = [{"kernel": kernel, "path": kernel} for kernel in kernels]
    bundle.write_index(parent, entries)
    return parent


def test_a_lab_runs_bundles_have_their_kernels_names_in_the_order_of_the_index(
    tmp_path: Path,
) -> None:
    parent = lab_run(tmp_path / "out", "7.2.11", "6.1.0", "6.12.113")
    found = pinstorm.load(parent)
    assert list(found.manifests) == list(found.paths) == ["7.2.11", "6.1.0", "6.12.113"]
    assert found.cases["bundle"].unique(maintain_order=True).to_list() == list(found.paths)
    assert found.cases.columns == ["bundle", *(column.name for column in schema.COLUMNS)]
    assert found.notes == []


def test_names_are_as_long_as_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab_run(tmp_path / "before/out", "6.1.0", "7.2.11")
    lab_run(tmp_path / "after/out", "7.2.11")
    names = {"before/out/7.2.11", "after/out/7.2.11", "6.1.0"}
    assert set(frames.scan(tmp_path).paths) == names
    # In whatever way they are given.
    monkeypatch.chdir(tmp_path / "before")
    assert set(frames.scan([Path("."), "../after/"]).paths) == names
    monkeypatch.chdir(tmp_path / "before/out/6.1.0")
    assert list(frames.scan(".").paths) == ["6.1.0"]


def test_a_name_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    names = ["a[x]*?", "b %20 c", "http:__x", "run=3", "\N{SNOWMAN}", "two\nlines"]
    for name in names:
        copy(REAL, tmp_path / name)
        table = polars.read_parquet(REAL / bundle.CASES)
        # Nor is a column of the file one of ours.
        table = table.with_columns(polars.lit("x").alias("bundle"), polars.lit("y").alias("path"))
        table.write_parquet(tmp_path / name / bundle.CASES)
    found = pinstorm.load(tmp_path)
    assert dict(found.cases["bundle"].value_counts().rows()) == dict.fromkeys(names, CASES)
    assert found.notes == []


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    copy(REAL, tmp_path / "text")
    copy(REAL, tmp_path / os.fsdecode(b"no-\xff"))
    found = pinstorm.load(tmp_path)
    assert list(found.paths) == ["text"]
    (note,) = found.notes
    assert "no-\\xff has a name that is not UTF-8; rename it" in note


def test_a_bundle_is_there_once(real: Path) -> None:
    (real.parent / "link").symlink_to(real)
    found = pinstorm.load([real, real.parent, real.parent / "link"])
    assert list(found.paths) == ["real"]
    assert found.cases.height == CASES


def test_a_directory_of_links_to_bundles_but_no_link_to_elsewhere(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "one").symlink_to(REAL)
    (chosen / "all").symlink_to(DATA)
    assert list(frames.scan(chosen).paths) == ["one"]


def test_paths_without_a_bundle_are_told_beside_one_that_is(real: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    wrong = [tmp_path / "none", empty, real / "manifest.json"]
    found = pinstorm.load([real, *wrong])
    assert found.cases.height == CASES
    none, nothing, file = found.notes
    assert "none is no directory" in none
    assert "no bundle in" in nothing
    assert f"name its directory, {real}" in file
    for path in wrong:
        with pytest.raises(UsageError) as caught:
            pinstorm.load(path)
        assert str(caught.value) in found.notes
    with pytest.raises(UsageError, match="no bundle is named"):
        pinstorm.load([])


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
    parent = lab_run(tmp_path / "out", "7.2.11", "6.1.0")
    shutil.rmtree(parent / "6.1.0")
    found = frames.scan(parent)
    assert list(found.paths) == ["7.2.11"]
    assert found.notes == [f"{parent}/index.json names 6.1.0, which is no bundle; it is left out"]
    (parent / "index.json").write_text("{")
    found = frames.scan(parent)
    assert list(found.paths) == ["7.2.11"]
    assert len(found.notes) == 1
    assert "cannot read" in found.notes[0]


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """From the call on the test may not read all; root may, so it is somebody else."""
    ours = [path for path in tmp_path.parents if path.is_relative_to(tempfile.gettempdir())][:-1]
    modes = {path: path.stat().st_mode for path in (tmp_path, *ours)}

    def become() -> None:
        if os.geteuid() == 0:
            for path, mode in modes.items():
                path.chmod(mode | 0o055)
            os.seteuid(65534)

    yield become
    os.seteuid(os.getuid())
    for path, mode in modes.items():
        path.chmod(mode)


def test_what_may_not_be_read_is_told(tmp_path: Path, as_nobody: Callable[[], None]) -> None:
    closed, half = copy(REAL, tmp_path / "closed"), copy(REAL, tmp_path / "half")
    open_to_all = copy(REAL, tmp_path / "open")
    for name in (bundle.MANIFEST, bundle.JOURNAL, bundle.CASES):
        (half / name).chmod(0)
    closed.chmod(0)
    as_nobody()
    found = pinstorm.load([open_to_all, closed, half])
    with pytest.raises(UsageError, match="cannot search"):
        pinstorm.load(closed)
    os.seteuid(os.getuid())
    closed.chmod(0o700)
    assert set(found.cases["bundle"]) == {"open"}
    told = "\n".join(found.notes)
    assert f"cannot search {closed}: permission denied" in told
    assert f"{half}: manifest.json cannot be read" in told
    assert f"{half}/cases.parquet cannot be read" in told
    assert f"cannot read {half}/journal.jsonl (permission denied)" in told


# -- schemas -------------------------------------------------------------------------------------


def test_of_an_older_schema_columns_that_are_unknown_are_null() -> None:
    kept = polars.read_parquet(REAL / bundle.CASES)
    unknown = {column.name for column in schema.COLUMNS} - set(kept.columns)
    assert {"load", "explanation"} <= unknown
    found = pinstorm.load(REAL)
    assert all(found.cases[name].null_count() == CASES for name in unknown)
    assert found.cases.drop("bundle").select(kept.columns).equals(kept)


def rewritten(path: Path, *changes: Any, drop: tuple[str, ...] = ()) -> Path:
    """The bundle with another cases.parquet, and no journal that would be asked instead."""
    table = polars.read_parquet(path / bundle.CASES).with_columns(*changes).drop(drop)
    table.write_parquet(path / bundle.CASES)
    (path / bundle.JOURNAL).unlink()
    return path


def test_columns_that_are_gone_are_left_out_and_missing_ones_are_null(real: Path) -> None:
    rewritten(real, polars.lit(3).alias("long_gone"), drop=("held", "params", "acquire_ns"))
    found = pinstorm.load([real, LOAD])
    assert found.cases.columns == ["bundle", *(column.name for column in schema.COLUMNS)]
    old = found.cases.filter(bundle="real")
    assert old.height == CASES
    for name in ("held", "params", "acquire_ns"):
        assert old[name].null_count() == CASES
    assert found.notes == []


def test_a_type_that_has_changed_is_cast(real: Path) -> None:
    before = polars.read_parquet(real / bundle.CASES)
    times = col("acquire_ns")
    rewritten(
        real,
        col("held").cast(polars.Float64),
        col("size_bytes").cast(polars.String),
        col("pins_exact").cast(polars.Int8),
        col("case").cast(polars.Categorical),
        times.cast(polars.List(polars.Float64)),
        times.alias("params"),
        polars.lit("a line").alias("kmsg"),
    )
    found = pinstorm.load(real)
    same = ["held", "size_bytes", "pins_exact", "case", "acquire_ns"]
    assert found.cases.select(same).equals(before.select(same))
    # What was a list is JSON, as the column is now; what cannot become a list is told.
    told = found.cases["params"].drop_nulls()
    assert [json.loads(text) for text in told] == before["acquire_ns"].drop_nulls().to_list()
    assert found.cases["kmsg"].null_count() == CASES
    (note,) = found.notes
    assert "column kmsg is String and not List(String); it is left empty" in note


def test_one_of_a_newer_schema_is_left_out(real: Path, tmp_path: Path) -> None:
    newer = copy(REAL, tmp_path / "newer")
    bundle.write_json(newer / bundle.MANIFEST, {"schema": schema.SCHEMA_VERSION + 1})
    found = pinstorm.load([newer, real])
    assert list(found.paths) == ["real"]
    (note,) = found.notes
    assert f"bundle {newer} has schema 2 and this pinstorm reads up to 1" in note
    with pytest.raises(UsageError, match="use the newer pinstorm"):
        pinstorm.load(newer)


# -- runs that have not ended --------------------------------------------------------------------


def test_a_run_that_lives_is_what_its_journal_has(real: Path) -> None:
    (real / bundle.CASES).unlink()
    lines = [line for line in lines_of(real) if b'"verdict"' in line]
    start = {"start": "vmsplice/anon/4KiB", "seq": 500, "t_ns": 1}
    torn = lines[-1][:100]
    (real / bundle.JOURNAL).write_bytes(b"".join(lines) + json.dumps(start).encode() + b"\n" + torn)
    found = pinstorm.load(real)
    assert found.notes == []
    *ended, begun = found.cases.to_dicts()
    assert polars.DataFrame(ended, schema=found.cases.schema).equals(
        pinstorm.load(REAL).cases.with_columns(bundle=polars.lit("real"))
    )
    shown = {name: begun[name] for name in ("case", "workload", "memory", "seq", "verdict")}
    assert shown == {
        "case": "vmsplice/anon/4KiB",
        "workload": "vmsplice",
        "memory": "anon",
        "seq": 500,
        "verdict": "lost",
    }
    assert begun["reason"] == "unfinished"
    # What runs it is in the manifest.
    assert {begun["accel"], ended[0]["accel"]} == {"tcg"}
    assert begun["kernel"] == ended[0]["kernel"]
    assert begun["held"] is None


def test_a_journal_is_read_as_it_was_when_it_was_scanned(real: Path) -> None:
    (real / bundle.CASES).unlink()
    found = frames.scan(real)
    with open(real / bundle.JOURNAL, "ab") as file:
        file.write(json.dumps({"seq": 900, "case": "a/b", "verdict": "fail"}).encode() + b"\n")
    assert frames.collect(found.cases).height == CASES
    assert frames.collect(frames.scan(real).cases).height == CASES + 1


@pytest.mark.parametrize("more", ["record", "start", "fewer"])
def test_a_table_that_the_journal_went_beyond(real: Path, more: str) -> None:
    """As after --resume, whichever file a copy made the newer one."""
    line: dict[str, Any] = {"seq": 500, "case": "a/b/1KiB", "verdict": "fail", "reason": "held"}
    if more == "start":
        line = {"start": "a/b/1KiB", "seq": 500}
    if more == "fewer":
        table = polars.read_parquet(real / bundle.CASES)
        table.head(50).write_parquet(real / bundle.CASES)
    else:
        with open(real / bundle.JOURNAL, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
    os.utime(real / bundle.JOURNAL, (1, 1))
    found = pinstorm.load(real)
    assert found.notes == []
    assert found.cases.height == CASES + (more != "fewer")
    if more != "fewer":
        expected = "lost" if more == "start" else "fail"
        assert found.cases["verdict"].tail(1).to_list() == [expected]


def test_a_case_that_was_broken_off_is_no_unfinished_one(real: Path) -> None:
    with open(real / bundle.JOURNAL, "ab") as file:
        for line in ({"start": "a/b", "seq": 500}, {"interrupted": "a/b", "seq": 500}):
            file.write(json.dumps(line).encode() + b"\n")
    assert unended.last_of(real / bundle.JOURNAL)[1] is False
    assert pinstorm.load(real).cases.height == CASES


def test_the_end_of_a_journal_is_found_in_whatever_size(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    big = {"seq": 7, "case": "a/b", "verdict": "pass", "evidence": "x" * 300_000}
    starts = [{"start": "c/d", "seq": 8}, {"interrupted": "c/d", "seq": 8}] * 1000
    for lines, told in (
        ([], (None, False)),
        ([{"start": "a/b", "seq": 0}], (None, True)),
        ([big], (7, False)),
        ([big, *starts], (7, False)),
        ([big, *starts, {"start": "c/d", "seq": 8}], (7, True)),
    ):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"start": "to')
        assert unended.last_of(path) == told


def test_rows_come_in_parts_and_only_those_asked_for(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (real / bundle.CASES).unlink()
    monkeypatch.setattr(unended, "_PART_RECORDS", 10)
    made: list[int] = []
    frame = bundle.frame

    def counted(records: Any, columns: Any) -> polars.DataFrame:
        made.append(len(records))
        assert {column.name for column in columns} == {"case", "verdict"}
        return frame(records, columns)

    monkeypatch.setattr(bundle, "frame", counted)
    found = frames.scan(real)
    assert made == []
    rows = frames.collect(found.cases.filter(verdict="pass").select("case", "verdict"))
    assert made == [10] * 9 + [7]
    whole = pinstorm.load(REAL).cases
    assert rows.equals(whole.filter(verdict="pass").select("case", "verdict"))
    assert found.cases.select("case", "verdict").head(5).collect().height == 5
    assert made[10:] == [10]


def spooled(path: Path, readings: int) -> None:
    """A sampler's spool in the bundle, with so many readings of two figures."""
    samples.spool_of(path).mkdir()
    writer = Spool(samples.spool_of(path), 1 << 20)
    writer.describe("vmstat", ["outstanding_pages~", "pgmigrate_fail"])
    writer.mark(Mark(0, 0, "hold", "load/everything"))
    for number in range(readings):
        writer.note(number, "vmstat", None, [number, None])
    writer.close()


def test_samples_of_a_run_that_lives(tmp_path: Path) -> None:
    path = copy(LOAD, tmp_path / "load")
    before = pinstorm.load(path).samples
    spooled(path, 5)
    both = pinstorm.load(path).samples
    (path / samples.SAMPLES).unlink()
    found = pinstorm.load(path)
    assert found.notes == []
    assert both.equals(polars.concat([before, found.samples]))
    assert found.samples["value"].to_list() == [0, 1, 2, 3, 4]
    assert set(found.samples["key"]) == {"outstanding_pages"}
    assert set(found.samples["run"]) == set(before["run"])
    assert set(found.samples["exact"]) == {False}


def test_a_damaged_segment_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    path = copy(LOAD, tmp_path / "load")
    spooled(path, 3)
    (path / samples.SAMPLES).unlink()
    (first,) = spool.segments(samples.spool_of(path))
    (first.parent / "000002.txt").write_bytes(first.read_bytes() + b"nonsense\n")
    found = frames.scan(path)
    assert found.notes == []
    assert found.samples.collect().height == 3
    (note,) = found.notes
    assert "000002.txt is damaged in line" in note


@pytest.mark.parametrize("resumed", [False, True])
def test_histograms_of_a_run_that_lives(tmp_path: Path, resumed: bool) -> None:
    path = copy(LOAD, tmp_path / "load")
    if resumed:  # and the table is of the run before
        with open(path / bundle.JOURNAL, "a") as file:
            file.write('{"start": "load/more", "seq": 1}\n')
    else:
        (path / "histograms.parquet").unlink()
    latency = Histogram()
    for time_ns in (1000, 1000, 5000):
        latency.record(time_ns)
    line = {
        "seq": 0,
        "case": "load/everything",
        "job": "regions",
        "process": 0,
        "t_ns": [0, 1000],
        "phase": "hold",
        "operations": 3,
        "latency": {"acquire": latency.to_json()},
    }
    (path / "intervals.jsonl").write_text(json.dumps(line) + "\n")
    found = pinstorm.load(path)
    totals = found.histograms.filter(col("t_end_ns").is_null())
    assert totals["count"].to_list() == [2, 1]
    assert set(found.histograms["bundle"]) == {"load"}
    assert found.cases["verdict"].to_list() == ["pass", *(["lost"] if resumed else [])]
    assert found.notes == []


# -- halves and damage ---------------------------------------------------------------------------


def test_without_a_manifest(real: Path) -> None:
    (real / bundle.MANIFEST).unlink()
    for gone in (None, bundle.CASES, bundle.JOURNAL):
        if gone == bundle.JOURNAL:
            shutil.copy(REAL / bundle.CASES, real)
        if gone:
            (real / gone).unlink()
        found = pinstorm.load(real)
        assert found.cases.height == CASES
        assert found.manifests == {"real": {}}
        (note,) = found.notes
        assert "manifest.json is missing, so what it ran on is not known" in note


def test_a_manifest_of_an_unforeseen_form(real: Path) -> None:
    keys = ("identity", "suite", "lab", "kernel", "device", "accel", "hostname")
    odd = {key: [3] for key in keys}
    bundle.write_manifest(real, odd)
    (real / bundle.CASES).unlink()
    spooled(real, 2)
    with open(real / bundle.JOURNAL, "a") as file:
        file.write('{"start": "a/b", "seq": 500}\n')
    found = pinstorm.load(real)
    assert (found.cases.height, found.samples.height) == (CASES + 1, 2)
    assert "98 cases: 97 pass, 1 lost" in markdown.text(frames.scan(real))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "x"}', "[" * 100_000, "\x00"])
def test_a_damaged_manifest(real: Path, text: str) -> None:
    (real / bundle.MANIFEST).write_text(text)
    found = pinstorm.load(real)
    assert found.cases.height == CASES
    (note,) = found.notes
    assert "manifest.json cannot be read" in note
    assert "\n" not in note


def test_without_a_journal(real: Path) -> None:
    (real / bundle.JOURNAL).unlink()
    found = pinstorm.load(real)
    assert (found.cases.height, found.notes) == (CASES, [])


def test_a_manifest_alone(real: Path) -> None:
    (real / bundle.JOURNAL).unlink()
    (real / bundle.CASES).unlink()
    found = pinstorm.load(real)
    assert found.cases.height == 0
    assert found.manifests["real"]["schema"] == 1
    (note,) = found.notes
    assert "has no cases, neither cases.parquet nor journal.jsonl; run it again" in note
    # And of nothing but a manifest that is none there is nothing to be shown.
    (real / bundle.MANIFEST).write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        pinstorm.load(real)


def broken(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "footer":
        data = data[: len(data) // 2]
    elif how == "pages":
        data[200:6000] = bytes(5800)
    else:
        data = bytearray()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["footer", "pages", "empty"])
def test_a_damaged_table_is_replaced_by_the_journal(real: Path, how: str) -> None:
    broken(real / bundle.CASES, how)
    found = pinstorm.load([real, LOAD])
    assert found.cases.filter(bundle="real").height == CASES
    (note,) = found.notes
    assert f"{real}/cases.parquet cannot be read" in note
    assert "journal.jsonl is read instead" in note


@pytest.mark.parametrize("how", ["footer", "pages", "empty"])
def test_a_damaged_table_without_a_journal_leaves_the_other_bundles(real: Path, how: str) -> None:
    broken(real / bundle.CASES, how)
    (real / bundle.JOURNAL).unlink()
    found = pinstorm.load([real, LOAD])
    assert set(found.cases["bundle"]) == {"bundle-load"}
    assert list(found.manifests) == ["real", "bundle-load"]
    (note,) = found.notes
    assert "cannot be read" in note
    assert "\n" not in note


def test_damage_in_a_scan_is_a_sentence_and_is_found_when_asked(tmp_path: Path) -> None:
    path = copy(LOAD, tmp_path / "load")
    broken(path / "histograms.parquet", "pages")
    with pytest.raises(UsageError, match="a table of these bundles is damaged") as caught:
        frames.collect(frames.scan(path).histograms)
    assert "\n" not in str(caught.value)
    found = frames.scan(path, verify=True)
    assert frames.collect(found.histograms).height == 0
    assert frames.collect(found.samples).height > 0
    (note,) = found.notes
    assert "histograms.parquet cannot be read" in note


def test_a_damaged_journal_loses_its_damaged_lines_alone(real: Path) -> None:
    (real / bundle.CASES).unlink()
    lines = lines_of(real)
    records = [number for number, line in enumerate(lines) if b'"verdict"' in line]
    lines[records[3]] = b'{"case": 3\n'
    lines[records[5]] = b"[" * 100_000 + b"\n"
    (real / bundle.JOURNAL).write_bytes(b"".join(lines))
    found = pinstorm.load(real)
    kept = found.cases.filter(col("verdict") != "lost")
    assert kept.height == CASES - 2
    (note,) = found.notes
    assert f"is damaged in line {records[3] + 1} and in 1 more" in note


def test_a_record_of_an_unforeseen_form_is_still_a_row(real: Path) -> None:
    (real / bundle.CASES).unlink()
    odd: list[dict[str, Any]] = [
        {"timing_ns": "soon"},
        {"kmsg": 3},
        {"timing_ns": {"acquire": ["a", 1]}},
        {"seq": 2**70},
        {"held": [1], "pins": [2], "case": ["a"]},
    ]
    named = [{"case": "a/b", "verdict": "fail", "seq": n, **one} for n, one in enumerate(odd)]
    (real / bundle.JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in named))
    found = pinstorm.load(real)
    assert found.cases["verdict"].to_list() == ["fail"] * len(odd)


# -- what a caller chooses -----------------------------------------------------------------------


def test_columns_of_each_table_that_has_them() -> None:
    found = pinstorm.load(LOAD, columns=["case", "value", "seq"])
    assert found.cases.columns == ["bundle", "case", "seq"]
    assert found.samples.columns == ["bundle", "case", "value", "seq"]
    assert found.histograms.columns == ["bundle", "case", "seq"]
    with pytest.raises(UsageError, match="no table has a column 'valeu'"):
        pinstorm.load(LOAD, columns=["valeu"])


def test_judged_again_by_the_rules_of_today(real: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in lines_of(real)]
    for line in lines:
        if line.get("verdict") == "pass":
            line.update(verdict="fail", reason="once", expected={})
    (real / bundle.JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    without = copy(REAL, tmp_path / "without")
    (without / bundle.JOURNAL).unlink()
    found = frames.scan([real, without], rejudge=True)
    counts = frames.collect(found.cases.group_by("bundle", "verdict").len())
    whole = pinstorm.load(REAL).cases["verdict"].value_counts().rows()
    for name in ("real", "without"):
        assert sorted(counts.filter(bundle=name).drop("bundle").rows()) == sorted(whole)
    (note,) = found.notes
    assert "is not judged again, without journal.jsonl" in note


# -- many ----------------------------------------------------------------------------------------


def test_generated_bundles_are_like_real_ones(tmp_path: Path) -> None:
    many_bundles.multiplied(REAL, tmp_path, bundles=3, rows=200, journals=True)
    found = pinstorm.load(tmp_path)
    assert found.cases.height == 600
    assert found.cases.schema == pinstorm.load(REAL).cases.schema
    assert found.cases["round"].max() == 2
    assert found.cases["run"].n_unique() == 3
    medians = found.cases.filter(case="rdma-register/anon/rw/16MiB")["acquire_median_ns"]
    assert medians.n_unique() == len(medians)
    # Their journals say the same: the rules of today find each case as it was.
    (tmp_path / "run-0001" / bundle.CASES).unlink()
    again = pinstorm.load(tmp_path / "run-0001")
    one = found.cases.filter(bundle="run-0001")
    columns = ["case", "seq", "verdict", "held", "acquire_ns", "params", "first_ns"]
    assert again.cases.select(columns).equals(one.select(columns))


# 1,000 bundles with 1,000,000 cases: less than 1 GiB and 20 s.
SIZES = [(100, 500), pytest.param((1000, 1000), marks=pytest.mark.slow)]
MEASURED = """
import sys, time
import polars
import pinstorm
from pinstorm import frames
found = pinstorm.scan(sys.argv[1])
every = found.cases.group_by("bundle", "workload", "verdict").agg(
    polars.len(), polars.col("acquire_median_ns").median()
)
assert frames.collect(every)["len"].sum() == int(sys.argv[2])
columns = ["case", "verdict", "outcome", "acquired", "held", "acquire_median_ns"]
assert pinstorm.load(sys.argv[1], columns=columns).cases.height == int(sys.argv[2])
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[0]) * 1024, time.process_time())
"""


@pytest.mark.parametrize("size", SIZES)
def test_many_bundles_in_little_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    bundles, rows = size
    many_bundles.multiplied(REAL, tmp_path, bundles, rows)
    peak_bytes, cpu_s = many_bundles.measured(MEASURED, str(tmp_path), str(bundles * rows))
    assert peak_bytes < (1 << 30 if bundles == 1000 else 350 << 20)
    # CPU time, of all threads: a test does not know what else the machine does meanwhile.
    assert cpu_s < 20


def test_a_long_journal_in_little_memory(tmp_path: Path) -> None:
    """75 MB of it, read part by part, never as a whole."""
    many_bundles.multiplied(REAL, tmp_path, 1, CASES, journals=True)
    path = tmp_path / "run-0000"
    (path / bundle.CASES).unlink()
    lines = [json.loads(line) for line in lines_of(path)]
    with open(path / bundle.JOURNAL, "w") as file:
        for number in range(1500):
            line = {**lines[number % CASES], "seq": number, "evidence": {"maps": "x" * 50_000}}
            file.write(json.dumps(line) + "\n")
    assert (path / bundle.JOURNAL).stat().st_size > 75e6
    peak_bytes, _ = many_bundles.measured(MEASURED, str(tmp_path), "1500")
    assert peak_bytes < 300 << 20


def test_polars_schema_has_every_column() -> None:
    types = parquet_tables.polars_schema()
    assert list(types) == [column.name for column in schema.COLUMNS]


def test_a_pipe_in_a_bundle_is_not_waited_for(real: Path) -> None:
    (real / bundle.MANIFEST).unlink()
    os.mkfifo(real / bundle.MANIFEST)
    with pytest.raises(UsageError, match=r"manifest\.json is no file"):
        frames.find(real)
