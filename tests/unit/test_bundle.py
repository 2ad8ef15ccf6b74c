import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars
import pytest

from pinstorm import bundle, schema, suite
from pinstorm.errors import UsageError, WriteError
from pinstorm.journal import Journal

RECORD: dict[str, Any] = {
    "schema": 1,
    "seq": 0,
    "round": 0,
    "case": "rdma-register/ext4-shared/rw/16MiB",
    "workload": "rdma-register",
    "memory": "ext4-shared",
    "params": {"access": "rw", "size_bytes": 16777216},
    "verdict": "pass",
    "outcome": "EFAULT",
    "expected": {"rule": "longterm-write-file", "outcomes": ["EFAULT"], "broken": []},
    "placement": {"zones": {"Normal": 4096}, "cma_pages": 0},
    "pins": {"exact": True, "bound": 0, "acquire": {"acquired": 1, "released": 1}, "held": 0},
    "vmpin_bytes": {"held": 0, "after": 0},
    "timing_ns": {"first": 41250, "acquire": [3000, 1000, 2000, 4000], "release": []},
}
SKIPPED: dict[str, Any] = {
    "seq": 1,
    "case": "dio-read/anon/64KiB",
    "verdict": "skip",
    "reason": "target-dio",
    "skip": [{"code": "target-dio", "detail": "d", "remedy": "r"}],
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = bundle.create(tmp_path / "out")
    manifest = {
        "suite": {"sha256": "ab" * 32, "seed": 1},
        "kernel": {"release": "7.2.12+deb13-amd64"},
        "only": None,
    }
    bundle.write_manifest(path, manifest)
    with Journal.create(path / bundle.JOURNAL) as journal:
        journal.record(RECORD)
        journal.record(SKIPPED)
    return path


def test_bundle_is_read_back(made: Path) -> None:
    opened = bundle.open_bundle(made)
    assert opened.records == [RECORD, SKIPPED]
    assert opened.manifest["schema"] == 1
    assert opened.torn_bytes == 0


def test_cases_parquet_has_the_schema_and_null_for_missing(made: Path) -> None:
    table = polars.read_parquet(bundle.finish(made))
    assert table.columns == [column.name for column in schema.COLUMNS]
    first, second = table.to_dicts()
    assert first["held"] == 0
    assert first["acquired"] == 1
    assert first["acquire_ns"] == [3000, 1000, 2000, 4000]
    assert first["acquire_median_ns"] == 2000
    assert first["release_median_ns"] is None
    assert json.loads(first["placement_zones"]) == {"Normal": 4096}
    assert first["expected_outcomes"] == ["EFAULT"]
    assert second["held"] is None
    assert json.loads(second["skip"])[0]["code"] == "target-dio"


def test_parquet_of_no_case_is_an_empty_table(tmp_path: Path) -> None:
    Journal.create(tmp_path / bundle.JOURNAL).close()
    assert polars.read_parquet(bundle.finish(tmp_path)).height == 0


def test_columns_are_named_once_and_all_are_documented() -> None:
    names = [column.name for column in schema.COLUMNS]
    assert len(set(names)) == len(names)
    assert all(column.meaning for column in schema.COLUMNS)
    assert schema.markdown().count("\n") == len(names) + 2


def test_an_empty_directory_is_fine_and_a_used_one_refused(tmp_path: Path) -> None:
    assert bundle.create(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").write_text("")
    with pytest.raises(UsageError, match="is used; choose another --out"):
        bundle.create(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        bundle.create(tmp_path / "x")


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="not a directory"):
        bundle.create(tmp_path / "file" / "deep" / "out")
    with pytest.raises(WriteError):
        bundle.create("/proc/1/nothing/out")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A directory that may not be written to; root may all, so be somebody else for the test."""
    tmp_path.chmod(0o500)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(before)
    tmp_path.chmod(0o700)


def test_unwritable_directory(unwritable: Path) -> None:
    with pytest.raises(WriteError, match="permission denied"):
        bundle.create(unwritable / "out")


def test_default_path_never_meets_another(tmp_path: Path) -> None:
    first = bundle.default_path("quick", tmp_path)
    assert first.name.endswith("Z-quick")
    for _ in range(3):
        bundle.create(bundle.default_path("quick", tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_manifest_is_written_whole_or_not_at_all(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (made / bundle.MANIFEST).read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="no space left"):
        bundle.write_manifest(made, {"new": True})
    assert (made / bundle.MANIFEST).read_bytes() == before
    assert sorted(path.name for path in made.iterdir()) == ["journal.jsonl", "manifest.json"]


def test_no_bundle_half_a_bundle_newer_schema(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory"):
        bundle.open_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"name one: .*/out"):
        bundle.open_bundle(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is no bundle"):
        bundle.open_bundle(empty)
    bundle.write_json(made / bundle.MANIFEST, {"schema": 2})
    with pytest.raises(UsageError, match="schema 2"):
        bundle.open_bundle(made)
    bundle.write_json(made / bundle.MANIFEST, {})
    with pytest.raises(UsageError, match="no schema version"):
        bundle.open_bundle(made)
    (made / bundle.MANIFEST).write_text('{"schema": 1')
    with pytest.raises(UsageError, match="cannot read"):
        bundle.open_bundle(made)
    (made / bundle.MANIFEST).unlink()
    with pytest.raises(UsageError, match=r"half a bundle, without manifest\.json"):
        bundle.open_bundle(made)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"suite_sha256": "cd" * 32}, "sha256"),
        ({"seed": 2}, "seed 1, not 2"),
        ({"kernel": "6.12.107"}, "kernel 7.2.12"),
        ({"only_glob": "*"}, "--only"),
    ],
)
def test_resume_refuses_another_run(made: Path, changed: dict[str, Any], word: str) -> None:
    opened = bundle.open_bundle(made)
    same = {"suite_sha256": "ab" * 32, "seed": 1, "kernel": "7.2.12+deb13-amd64"}
    bundle.check_resume(opened, **same)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot resume") as caught:
        bundle.check_resume(opened, **{**same, **changed})
    assert word in str(caught.value)


def test_manifest_of_a_suite_is_what_resume_compares(made: Path) -> None:
    quick = suite.load("quick")
    bundle.write_manifest(made, {"suite": quick.to_manifest(), "kernel": {"release": "7"}})
    bundle.check_resume(bundle.open_bundle(made), quick.sha256, quick.seed, "7")


def test_index_of_a_lab_run(tmp_path: Path) -> None:
    entry = {"kernel": "7.2", "path": "7.2", "exit_code": 0, "verdicts": {"pass": 3}}
    bundle.write_index(tmp_path, [entry])
    assert json.loads((tmp_path / "index.json").read_text()) == {"schema": 1, "bundles": [entry]}

    assert bundle.read_index(tmp_path) == [entry]
    assert bundle.read_index(tmp_path / "nowhere") == []
    assert bundle.read_index(tmp_path / "index.json") == []


@pytest.mark.parametrize(
    "text",
    [
        '{"bundles": 3}',
        '{"bundles": [{"kernel": "a"}]}',
        '{"bundles": [{"kernel": "a", "path": 3}]}',
        '{"bundles": [{"path": "a"}]}',
        '{"bundles": ["a"]}',
        "[]",
        "{}",
        "{",
        "\x00",
        "[" * 100_000,
    ],
)
def test_index_that_is_none_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UsageError, match=r"index\.json.*; name one kernel's bundle") as caught:
        bundle.read_index(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_beside_a_file_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: bytes(size))
    beside = tmp_path / ".manifest.json.00000000"
    beside.write_text("another's")
    with pytest.raises(WriteError):
        bundle.write_bytes(tmp_path / "manifest.json", b"x")
    assert [path.name for path in tmp_path.iterdir()] == [beside.name]
    assert beside.read_text() == "another's"


def test_the_guest_imports_no_heavy_package() -> None:
    code = (
        "import sys, pinstorm.journal, pinstorm.bundle, pinstorm.units, pinstorm.schema\n"
        "heavy = {'polars', 'pydantic', 'rich', 'typer', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    root = Path(bundle.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"case": "a/b", "verdict": "pass", "pins": "x"}, "pins.exact"),
        ({"case": "a/b", "verdict": "pass", "timing_ns": {"acquire": ["x"]}}, "timing_ns.acquire"),
        ({"case": "a/b", "verdict": "skip", "skip": [{"detail": "no code"}]}, "skip"),
        ({"case": ["a"], "verdict": "pass"}, "case"),
    ],
)
def test_a_record_of_another_form_is_told(tmp_path: Path, line: Any, words: str) -> None:
    bundle.write_manifest(tmp_path, {})
    (tmp_path / bundle.JOURNAL).write_text(json.dumps({"seq": 0, **line}) + "\n")
    with pytest.raises(UsageError, match=rf"{words} of case .* is not of the form"):
        bundle.open_bundle(tmp_path)


def test_damaged_evidence_does_not_take_its_case_along(tmp_path: Path) -> None:
    line = {"seq": 0, "case": "vmsplice/anon/64KiB", "verdict": "pass", "evidence": 5}
    bundle.write_manifest(tmp_path, {})
    (tmp_path / bundle.JOURNAL).write_text(json.dumps(line) + "\n")
    (record,) = bundle.open_bundle(tmp_path).records
    assert (record["verdict"], record["evidence"]) == ("pass", 5)


def test_a_manifest_that_nests_without_end_is_told(tmp_path: Path) -> None:
    (tmp_path / bundle.JOURNAL).write_text("")
    (tmp_path / bundle.MANIFEST).write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"cannot read .*manifest\.json"):
        bundle.open_bundle(tmp_path)
