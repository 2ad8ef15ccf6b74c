import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pinstorm import journal
from pinstorm.errors import UsageError, WriteError


def record(seq: int, case: str = "vmsplice/anon/64KiB") -> dict[str, Any]:
    return {"seq": seq, "case": case, "verdict": "pass"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_what_is_written_is_read_back(path: Path) -> None:
    with journal.Journal.create(path) as writer:
        writer.start(0, "a", deadline_s=30.0)
        writer.record(record(0, "a"))
        writer.start(1, "b")
        writer.interrupted(1, "b")
        writer.start(2, "c")
    contents = journal.read(path)
    assert contents.records == [record(0, "a")]
    assert contents.done == {0}
    assert list(contents.started) == [2]
    assert contents.started[2]["start"] == "c"
    assert contents.started[2]["t_ns"] > 0
    assert contents.interrupted[1]["interrupted"] == "b"
    assert contents.torn_bytes == 0


def test_interrupted_case_that_ran_again_is_done(path: Path) -> None:
    with journal.Journal.create(path) as writer:
        writer.start(0, "a")
        writer.interrupted(0, "a")
    with journal.Journal.append_to(path) as writer:
        writer.start(0, "a")
        writer.record(record(0, "a"))
    contents = journal.read(path)
    assert (contents.done, contents.started, contents.interrupted) == ({0}, {}, {})


def test_each_line_and_the_new_name_are_fsynced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[bool] = []
    fsync = os.fsync

    def counted(fd: int) -> None:
        kinds.append(os.path.isdir(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    with journal.Journal.create(path) as writer:
        writer.start(0, "a")
        writer.record(record(0))
    assert kinds == [True, False, False]


@pytest.mark.parametrize("torn", [b'{"seq": 3, "ca', b"{", b"\0\0\0\0", b'{"seq":1}\n', b"\xff\n"])
def test_torn_last_line_is_tolerated_told_and_cut(path: Path, torn: bytes) -> None:
    with journal.Journal.create(path) as writer:
        writer.record(record(0))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert journal.read(path).torn_bytes == len(torn)
    assert journal.read(path).records == [record(0)]
    assert journal.truncate_torn(path) == len(torn)
    assert path.read_bytes() == whole
    assert journal.truncate_torn(path) == 0


def test_append_never_glues_a_line_to_a_torn_one(path: Path) -> None:
    with journal.Journal.create(path) as writer:
        writer.record(record(0))
    with open(path, "ab") as file:
        file.write(b'{"start": "b", "se')
    with journal.Journal.append_to(path) as writer:
        writer.record(record(1))
    assert [line["seq"] for line in journal.read(path).records] == [0, 1]


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"[1]",
        b'{"case": "a"}',
        b'{"seq": 1, "case": "a"}',
        b'{"seq": 1, "case": null, "verdict": "pass"}',
        b'{"seq": 1, "case": "a", "verdict": null}',
        b"[" * 100_000,
    ],
)
def test_damage_in_the_middle_names_the_line(path: Path, bad: bytes) -> None:
    good = json.dumps(record(0)).encode()
    path.write_bytes(good + b"\n" + bad + b"\n" + good + b"\n")
    with pytest.raises(UsageError, match="line 2") as caught:
        journal.read(path)
    assert "\n" not in str(caught.value)


def test_tail_gives_whole_lines_once(path: Path) -> None:
    assert journal.tail(path, 0) == ([], 0)
    with journal.Journal.create(path) as writer:
        writer.start(0, "a")
        lines, offset = journal.tail(path, 0)
        assert [line["start"] for line in lines] == ["a"]
        with open(path, "ab") as file:
            file.write(b'{"seq": 0, "case"')
        assert journal.tail(path, offset) == ([], offset)
        with open(path, "ab") as file:
            file.write(b': "a", "verdict": "pass"}\n')
        lines, offset = journal.tail(path, offset)
        assert lines == [record(0, "a")]
        assert offset == path.stat().st_size


def test_no_journal_and_second_journal(path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        journal.read(path)
    journal.Journal.create(path).close()
    with pytest.raises(WriteError, match="--resume"):
        journal.Journal.create(path)


def test_full_disk_is_a_write_error() -> None:
    writer = journal.Journal(Path("/dev/full"), os.open("/dev/full", os.O_WRONLY))
    with writer, pytest.raises(WriteError, match="no space left on device; free space") as caught:
        writer.record(record(0))
    assert caught.value.exit_code == 4


def test_half_a_line_on_a_full_disk_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = journal.Journal.create(path)
    writer.record(record(0))
    write = os.write

    def full(fd: int, data: Any) -> int:
        write(fd, bytes(data)[:7])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WriteError):
        writer.record(record(1))
    monkeypatch.undo()
    contents = journal.read(path)
    assert (contents.records, contents.torn_bytes) == ([record(0)], 0)
    writer.record(record(1))
    writer.close()
    assert journal.read(path).done == {0, 1}
