"""Where a report is written. FIFOs and links are made in tmp_path: no device is used."""

import errno
import io
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pinstorm import bundle, cli
from pinstorm.errors import UsageError, WriteError
from pinstorm.report import emitters, output

REAL = Path(__file__).parent / "data" / "bundle-schema-1"
TEXT = "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_new_file_and_one_that_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        output.write(TEXT, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == TEXT.encode()
    assert names(tmp_path) == ["out"]


def test_a_fifo_is_written_through_and_stays(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    long = "x" * 300_000
    output.write(long, fifo)
    reader.join(timeout=30)
    assert read == [long.encode()]
    assert fifo.is_fifo()
    assert names(tmp_path) == ["fifo"]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link, dangling = tmp_path / "deep/target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to("deep/target")
    dangling.symlink_to("deep/new")
    output.write(TEXT, link)
    output.write(TEXT, dangling)
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert target.read_text() == (tmp_path / "deep/new").read_text() == TEXT
    assert names(tmp_path / "deep") == ["new", "target"]


def test_a_link_to_a_fifo_is_written_through(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    output.write(TEXT, tmp_path / "link")
    assert os.read(reader, 100) == TEXT.encode()
    os.close(reader)
    assert (tmp_path / "fifo").is_fifo()


def test_what_is_no_file_is_refused_before_the_bundle_is_opened(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in ((tmp_path, "a directory"), (tmp_path / "socket", "a socket")):
            with pytest.raises(UsageError, match=f"--output .* is {kind}"):
                emitters.emit(tmp_path / "none", "ktap", command=lambda one: "", output=path)
    assert names(tmp_path) == ["socket"]


def test_a_block_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk"
    block = os.stat_result((0o060660, *[0] * 9))
    monkeypatch.setattr(Path, "stat", lambda self, **more: block)
    with pytest.raises(UsageError, match="a block device"):
        output.write(TEXT, path)


def test_errors_speak_of_the_option_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / "none/out", tmp_path / "loop", tmp_path / "file/out"):
        with pytest.raises(WriteError, match="choose another --output") as caught:
            output.write(TEXT, path)
        assert "--out," not in str(caught.value)
    assert names(tmp_path) == ["file", "loop"]


def test_stdout_by_name_goes_on_where_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # capfd has a regular file behind descriptor 1: it must be neither replaced nor overwritten
    os.write(1, b"before\n")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    output.write(TEXT, tmp_path / "stdout")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == f"before\n{TEXT}after\n"


def test_stdout_that_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output.write(TEXT + "\ud800")
    assert raw.getvalue() == TEXT.encode() + b"\\ud800"


class Narrow(io.BytesIO):
    """Takes three bytes at a time, as an unbuffered stdout may; then the disk is full."""

    room = 1000

    def write(self, data: Any) -> int:
        if self.tell() >= self.room:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(bytes(data[:3]))


def test_stdout_that_takes_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Narrow()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    output.write("x" * 900)
    assert raw.getvalue() == b"x" * 900
    with pytest.raises(WriteError, match="cannot write stdout: no space left"):
        output.write("x" * 900)


def test_format_is_looked_at_before_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'odd' is not known"):
        emitters.emit(tmp_path / "none", "odd", command=lambda one: "")
    with pytest.raises(UsageError, match="'odd' is not known"):
        cli.report(tmp_path / "none", form="odd")
    with pytest.raises(UsageError, match="--json goes with the table"):
        cli.report(REAL, form="junit", as_json=True)


def test_options_of_list_that_need_another() -> None:
    with pytest.raises(UsageError, match="add --rules"):
        cli.list_(suite="quick")
    with pytest.raises(UsageError, match="add --rules"):
        cli.list_(diff=("6.1", "7"))
    with pytest.raises(UsageError, match="add --diff"):
        cli.list_(rules=True, suite="quick")


def test_a_run_is_repeated_with_the_suites_own_name() -> None:
    suite = {"origin": "/srv/my suites/own.toml", "sha256": "0"}
    lab = {"kernel": "stable", "gup_test_module": True}
    assert cli._repeat_command({"suite": suite, "lab": lab}) == (
        "pinstorm lab run '/srv/my suites/own.toml' --kernel stable --gup-test"
    )
    quick = {"origin": str(Path(bundle.__file__).parents[1] / "configs/quick.toml")}
    assert cli._repeat_command({"suite": quick, "accel": "host"}) == "pinstorm run quick"


def test_no_stdout_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``>&-``: Python has none then."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(WriteError, match="cannot write stdout: bad file descriptor"):
        output.write(TEXT)
