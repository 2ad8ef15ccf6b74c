"""report --format csv, json and md: any number of bundles, read back by others' parsers."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import made_bundles
import polars
import pytest
from benches import many_bundles

import pinstorm
from pinstorm import bundle, schema
from pinstorm.bundle import Bundle
from pinstorm.errors import UsageError, WriteError
from pinstorm.report import emitters, markdown, rows

DATA = Path(__file__).parent / "data"
REAL = DATA / "bundle-schema-1"
LOAD = DATA / "bundle-load"
COLUMNS = ["bundle", *(column.name for column in schema.COLUMNS)]


def command(_: Bundle) -> str:
    return "pinstorm run few.toml"


def emitted(tmp_path: Path, form: str, *paths: Path, **more: Any) -> str:
    emitters.emit(paths, form, command=command, output=tmp_path / "out", **more)
    return (tmp_path / "out").read_bytes().decode()


def few(path: Path, *records: dict[str, Any], kernel: str = "7.2.11") -> Path:
    """A bundle of these records, as a run leaves it."""
    made = made_bundles.made_of(*records, kernel=kernel)
    path.mkdir(parents=True)
    bundle.write_manifest(path, made.manifest)
    with open(path / bundle.JOURNAL, "w") as file:
        file.writelines(json.dumps({"seq": n, **r}) + "\n" for n, r in enumerate(records))
    bundle.finish(path)
    return path


# -- csv -----------------------------------------------------------------------------------------


def test_csv_is_the_table(tmp_path: Path) -> None:
    text = emitted(tmp_path, "csv", REAL, LOAD)
    lines = text.split("\r\n")
    assert lines[0].split(",") == COLUMNS
    assert lines[-1] == ""
    found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    cases = pinstorm.load([REAL, LOAD]).cases
    assert len(found) == cases.height
    for told, row in zip(found, cases.iter_rows(named=True), strict=True):
        for name in COLUMNS:
            value = row[name]
            if value is None:
                assert told[name] == ""
            elif isinstance(value, list):
                assert json.loads(told[name]) == value
            elif isinstance(value, bool):
                assert told[name] == str(value).lower()
            else:
                assert told[name] == str(value)


def test_csv_of_what_needs_quotes(tmp_path: Path) -> None:
    odd = 'a,"b"\r\nc; =1+1\N{SNOWMAN}'
    path = few(tmp_path / "odd", made_bundles.record("fail", reason=odd, kmsg=[odd], detail=""))
    (row,) = csv.DictReader(io.StringIO(emitted(tmp_path, "csv", path), newline=""), strict=True)
    assert row["reason"] == odd
    assert json.loads(row["kmsg"]) == [odd]
    # An empty text is not the same as none.
    line = (tmp_path / "out").read_bytes().decode().split("\r\n", 1)[1]
    assert ',"",' in line


# -- json ----------------------------------------------------------------------------------------


def test_json_has_the_columns_where_a_record_has_them(tmp_path: Path) -> None:
    document = json.loads(emitted(tmp_path, "json", REAL, LOAD))
    assert set(document) == {"schema", "bundles", "notes", "cases"}
    assert document["schema"] == schema.SCHEMA_VERSION
    assert document["notes"] == []
    names = [one["bundle"] for one in document["bundles"]]
    assert names == ["bundle-schema-1", "bundle-load"]
    manifest = json.loads((REAL / bundle.MANIFEST).read_text())
    assert document["bundles"][0] == {
        "bundle": "bundle-schema-1",
        "path": str(REAL),
        "manifest": manifest,
    }
    records = [r for path in (REAL, LOAD) for r in bundle.open_bundle(path).records]
    assert len(document["cases"]) == len(records)
    for told, record in zip(document["cases"], records, strict=True):
        assert told["bundle"] in names
        for column in schema.COLUMNS:
            expected = schema.row(record)[column.name]
            path = (column.path or column.name).split(".")
            if column.path in rows.COMPUTED:
                path = [column.name]
            value = told
            for key in path:
                value = None if value is None else value.get(key)
            if column.type == "Json" and expected is not None:
                expected = json.loads(expected)
            assert value == expected, column.name


def test_every_case_has_every_field(tmp_path: Path) -> None:
    def shape(value: Any) -> Any:
        return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else None

    path = few(tmp_path / "few", made_bundles.record("skip"))
    document = json.loads(emitted(tmp_path, "json", path, REAL))
    plain = {"bundle", "verdict", "outcome", "expected", "timing_ns", "pins", "placement"}
    first, *others = [{k: c[k] for k in plain} for c in document["cases"]]
    assert first["timing_ns"] == dict.fromkeys(first["timing_ns"])
    for other in others:
        for name in ("expected", "timing_ns"):
            assert shape(first[name]) == shape(other[name])


def test_json_of_text_that_needs_escapes(tmp_path: Path) -> None:
    odd = 'a "b"\\ \r\n\x00\x1b[1m {"x":1} \N{SNOWMAN}'
    path = few(
        tmp_path / "odd",
        made_bundles.record("fail", reason=odd, kmsg=[odd], params={odd: [odd, None, 1.5]}),
    )
    (case,) = json.loads(emitted(tmp_path, "json", path))["cases"]
    assert case["reason"] == odd
    assert case["kmsg"] == [odd]
    assert case["params"] == {odd: [odd, None, 1.5]}


def test_json_column_that_is_no_json(tmp_path: Path) -> None:
    """Of an older table, or one that somebody wrote: it is still a document."""
    path = few(tmp_path / "few", made_bundles.record("pass"))
    table = polars.read_parquet(path / bundle.CASES)
    for text in ("plain words", '{"torn', "", "3"):
        table.with_columns(polars.lit(text).alias("params")).write_parquet(path / bundle.CASES)
        (case,) = json.loads(emitted(tmp_path, "json", path))["cases"]
        assert case["params"] == text


def test_json_of_no_case(tmp_path: Path) -> None:
    path = few(tmp_path / "few")
    assert json.loads(emitted(tmp_path, "json", path))["cases"] == []
    assert len(emitted(tmp_path, "csv", path).split("\r\n")) == 2
    assert "**pinstorm: 0 cases: nothing ran**" in emitted(tmp_path, "md", path)


# -- md ------------------------------------------------------------------------------------------


def cells_of(text: str) -> list[list[str]]:
    """The cells of each line of a table, as GitHub splits them."""
    tables = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in tables]


def test_the_verdict_then_what_failed_then_the_table(tmp_path: Path) -> None:
    path = few(
        tmp_path / "few",
        made_bundles.record("pass", 0),
        made_bundles.record(
            "fail", 1, reason="held", expected={"broken": ["held 3 pages, expected 0"]}, cause="x"
        ),
        made_bundles.record("crash", 2, reason="oops", remedy="report it"),
        made_bundles.record("skip", 3, reason="rdma-odp"),
        made_bundles.record("skip", 4, reason="rdma-odp"),
    )
    text = emitted(tmp_path, "md", path)
    assert text.startswith("**pinstorm: 5 cases: 1 pass, 2 skip, 1 crash, 1 fail**\n")
    head, _, crash, fail, *_ = cells_of(text)
    assert head == ["case", "verdict", "why"]
    assert crash == ["`dio-read/anon/3KiB`", "crash", "oops; report it"]
    assert fail[2] == "held: held 3 pages, expected 0; cause x"
    assert "Skipped: 2 rdma-odp\n" in text
    order = [text.index(word) for word in ("**pinstorm", "crash", "Skipped", "<details>")]
    assert order == sorted(order)


def test_nothing_in_a_bundle_is_markup(tmp_path: Path) -> None:
    odd = "a|b `c` *d* <img src=x> @team #1 [e](f) & \x1b[1m\r\n\n| g"
    path = few(
        tmp_path / "few",
        made_bundles.record("fail", reason=odd, case=odd, cause=odd, outcome=odd),
        kernel=odd,
    )
    text = emitted(tmp_path, "md", path)
    assert all(len(row) == 3 for row in cells_of(text)[:3])
    outside_code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert not re.search(r"(?<!\\)<img", outside_code)
    assert "@team" not in outside_code
    assert not re.search(r"(?<!\\)[#*\[]", outside_code.split("\n", 2)[2].replace("### ", ""))
    assert "\x1b" not in text


def test_a_table_of_one_bundle(tmp_path: Path) -> None:
    text = emitted(tmp_path, "md", REAL)
    table = cells_of(text)
    assert table[0][-1] == "acquire median us, emulated"
    (row,) = [row for row in table if row[0] == "`rdma-register/anon/rw/16MiB`"]
    case = pinstorm.load(REAL).cases.filter(case="rdma-register/anon/rw/16MiB").row(0, named=True)
    assert row[1:3] == ["pass", "ok"]
    assert row[3:7] == ["4096", "4096", "0", "16384"]
    assert row[7] == f"{case['acquire_median_ns'] / 1000:.1f}"
    sizes = [row[0] for row in table if row[0].startswith("`dio-read/anon/")]
    assert sizes == ["`dio-read/anon/64KiB`", "`dio-read/anon/16MiB`"]


def test_rounds_are_one_line(tmp_path: Path) -> None:
    pins = [{"acquire": {"acquired": n}, "held": 4} for n in (16, 18, 16)]
    records = [
        made_bundles.record(
            "pass", n, case="a/b", round=n, pins=one, timing_ns={"acquire": [1000 * (n + 1)]}
        )
        for n, one in enumerate(pins)
    ]
    text = emitted(tmp_path, "md", few(tmp_path / "few", *records))
    assert cells_of(text)[-1] == ["`a/b`", "pass x3", "ok", "16..18", "4", "-", "-", "2.0"]


def test_several_bundles_stand_side_by_side_and_differences_first(tmp_path: Path) -> None:
    old = few(
        tmp_path / "6.1.0",
        made_bundles.record("pass", 0),
        made_bundles.record("pass", 1, outcome="EFAULT"),
        made_bundles.record("skip", 2, outcome=None),
    )
    new = few(
        tmp_path / "7.2.11",
        made_bundles.record("pass", 0),
        made_bundles.record("pass", 1),
        made_bundles.record("fail", 2, reason="held"),
    )
    text = emitted(tmp_path, "md", old, new)
    assert "- `6.1.0` (few, kernel 7.2.11): 3 cases: 2 pass, 1 skip" in text
    wrong, _, fail, head, _, *table = cells_of(text)
    assert wrong == ["bundle", "case", "verdict", "why"]
    assert fail == ["`7.2.11`", "`dio-read/anon/3KiB`", "fail", "held"]
    assert head == ["case", "", "`6.1.0`", "`7.2.11`"]
    assert table == [
        ["`dio-read/anon/2KiB`", "differ", "pass EFAULT", "pass ok"],
        ["`dio-read/anon/1KiB`", "", "pass ok", "pass ok"],
        ["`dio-read/anon/3KiB`", "", "skip", "fail ok"],
    ]


def test_it_fits_a_comment_however_many_there_are(tmp_path: Path) -> None:
    long = "why " * 500
    records = [made_bundles.record("fail", n, reason=long) for n in range(300)]
    records += [made_bundles.record("pass", 300 + n) for n in range(3000)]
    text = emitted(tmp_path, "md", few(tmp_path / "few", *records))
    assert len(text) < 65_536
    assert "and 200 more" in text
    assert "--format csv has all" in text
    assert text.rstrip().endswith("</details>")
    assert len(text) > markdown.MOST_CHARACTERS * 0.9


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["junit", "ktap", "cases", "md", "json", "csv"])
def test_several_bundles_and_directories_of_them(tmp_path: Path, form: str) -> None:
    for name in ("one", "other"):
        shutil.copytree(REAL, tmp_path / "runs" / name)
    shown = emitters.emit(
        [tmp_path / "runs", LOAD, LOAD], form, command=command, output=tmp_path / "out"
    )
    assert {record["verdict"] for record in shown} == {"pass"}
    text = (tmp_path / "out").read_text()
    once = emitted(tmp_path, form, REAL)
    case = "dio-read/anon/16MiB"
    # Of cases and md a case is one line for all of them.
    times = {"cases": 0, "md": 1}.get(form, 2)
    if times:
        assert text.count(case) == times * once.count(case)
    # And one path alone, as ever.
    assert emitters.emit(REAL, form, command=command, output=tmp_path / "out")


def test_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "real"
    shutil.copytree(REAL, path)
    text = (path / bundle.JOURNAL).read_text()
    (path / bundle.JOURNAL).write_text(text.replace('"verdict":"pass"', '"verdict":"fail"'))
    (path / bundle.CASES).unlink()
    for form in ("json", "csv", "md", "junit"):
        for again, verdict in ((False, "fail"), (True, "pass")):
            shown = emitters.emit(
                path, form, command=command, rejudge=again, output=tmp_path / "out"
            )
            assert {record["verdict"] for record in shown} == {verdict}


@pytest.mark.parametrize("form", ["md", "json", "csv"])
def test_half_a_bundle_is_shown_and_told(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "half"
    shutil.copytree(REAL, path)
    (path / bundle.MANIFEST).unlink()
    text = emitted(tmp_path, form, path, tmp_path / "none")
    assert "rdma-register/anon/rw/16MiB" in text
    told = capsys.readouterr().err if form == "csv" else text.replace("\\", "")
    assert "manifest.json is missing" in told
    assert "none is no directory" in told


@pytest.mark.parametrize("form", ["md", "json", "csv"])
def test_damage_inside_a_table_is_met_before_anything_is_written(tmp_path: Path, form: str) -> None:
    path = tmp_path / "real"
    shutil.copytree(REAL, path)
    (path / bundle.JOURNAL).unlink()
    table = bytearray((path / bundle.CASES).read_bytes())
    table[200:6000] = bytes(5800)
    (path / bundle.CASES).write_bytes(table)
    text = emitted(tmp_path, form, path, LOAD)
    assert "load/everything" in text
    assert "rdma-register/anon" not in text


@pytest.mark.parametrize("form", ["md", "json", "csv", "junit"])
def test_nothing_to_be_read_is_a_sentence_and_no_file(tmp_path: Path, form: str) -> None:
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no bundle in"):
        emitters.emit(empty, form, command=command, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pinstorm.report import output

    (tmp_path / "out").write_text("old")
    written: list[int] = []

    def full(fd: int, data: Any) -> None:
        written.append(len(data))
        if len(written) > 1:
            raise OSError(28, "full")

    monkeypatch.setattr(output, "_write_all", full)
    many_bundles.multiplied(REAL, tmp_path / "runs", 3, 200)
    with pytest.raises(WriteError, match="no space left on device; free space there"):
        emitters.emit(tmp_path / "runs", form, command=command, output=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


EMITTED = """
import sys, time
from pathlib import Path
from pinstorm.report import emitters
for form in sys.argv[2].split(","):
    shown = emitters.emit(Path(sys.argv[1]), form, command=str, output=Path("/dev/null"))
    assert {record["verdict"] for record in shown} >= {"pass"}
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak[0]) * 1024, time.process_time())
"""


@pytest.mark.parametrize(
    ("bundles", "rows_each", "most_bytes"),
    [(60, 500, 350 << 20), pytest.param(1000, 1000, 1 << 30, marks=pytest.mark.slow)],
)
def test_many_cases_are_written_in_little_memory(
    tmp_path: Path, bundles: int, rows_each: int, most_bytes: int
) -> None:
    many_bundles.multiplied(REAL, tmp_path, bundles, rows_each)
    for form in ("csv", "json", "md") if bundles == 1000 else ("csv,json,md",):
        peak_bytes, cpu_s = many_bundles.measured(EMITTED, str(tmp_path), form)
        assert peak_bytes < most_bytes
        # Of two threads and more, which take less than 20 s where nothing else is at work.
        assert cpu_s < 30


@pytest.mark.parametrize("form", ["md", "json", "csv"])
def test_what_could_not_be_read_has_the_exit_code_of_what_is_lost(
    tmp_path: Path, form: str
) -> None:
    good = few(tmp_path / "good", made_bundles.record("pass"))
    given, output = [good, tmp_path / "nowhere"], tmp_path / "document"
    shown = emitters.emit(given, form, command=command, output=output)
    assert {one["verdict"] for one in shown} == {"pass", "lost"}
    shown = emitters.emit([good], form, command=command, output=output)
    assert {one["verdict"] for one in shown} == {"pass"}
