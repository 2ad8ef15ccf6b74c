"""What the shell completes, asked as bash and zsh ask."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pinstorm import completion
from pinstorm.report.emitters import FORMATS


def complete(*words: str, cwd: Path | None = None) -> list[str]:
    """What bash would offer for the last of the words behind ``pinstorm``."""
    env = {
        **os.environ,
        "_PINSTORM_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("pinstorm", *words)),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv = ['pinstorm']; from pinstorm.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd
    )
    assert not done.stderr
    return done.stdout.split()


def test_commands_and_suites() -> None:
    assert complete("rep") == ["report"]
    assert complete("lab", "run", "ma") == ["matrix", "max-mr"]
    assert complete("lab", "run", "quick", "--kernel", "b") == ["backports"]


def test_suites_of_ones_own_and_directories(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "mine.txt").write_text("")
    (tmp_path / "more").mkdir()
    assert complete("run", "m", cwd=tmp_path) == ["matrix", "max-mr", "mine.toml", "more/"]
    assert complete("run", "nowhere/x", cwd=tmp_path) == []


def test_cases_of_a_suite_before_and_behind_the_option() -> None:
    wanted = ["dio-read/thp/64KiB"]
    assert complete("run", "quick", "--only", "dio-read/th") == wanted
    # a suite that is not written yet says nothing
    assert complete("run", "--only", "dio-read/th") == []


def test_cases_of_a_bundle_whose_last_line_is_torn(tmp_path: Path) -> None:
    lines = [
        json.dumps({"start": "vmsplice/anon/64KiB", "seq": 0}, separators=(",", ":")),
        json.dumps({"schema": 1, "case": "vmsplice/anon/64KiB"}, separators=(",", ":")),
        json.dumps({"start": "dio-read/anon/64KiB", "seq": 1}, separators=(",", ":")),
        '{"start":"dio-wri',
    ]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines))
    assert complete("explain", str(tmp_path), "v") == ["vmsplice/anon/64KiB"]
    assert complete("explain", str(tmp_path), "d") == ["dio-read/anon/64KiB"]
    assert complete("explain", str(tmp_path / "nowhere"), "d") == []


def test_formats_are_those_of_report() -> None:
    assert {*FORMATS, "html"} == set(completion.formats(""))
    assert complete("report", "x", "--format", "ju") == ["junit"]


def test_devices_of_a_machine_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_DEVICES", tmp_path / "nowhere")
    assert completion.devices("") == []
    for name in ("mlx5_1", "mlx5_0", "rxe0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(completion, "_DEVICES", tmp_path)
    assert completion.devices("mlx") == ["mlx5_0", "mlx5_1"]


def test_completion_imports_no_polars() -> None:
    code = (
        "import sys; from pinstorm import completion as c; c.suites('q'); c.formats('');"
        "c.kernels(''); c.devices(''); print('polars' in sys.modules, 'plotly' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
