"""tests/conftest.py itself: an unmet need is a skip, and a failure in a layer that is required."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

def test_met(need):
    need(True, "nothing")

def test_unmet(need):
    need(False, "no such device")

def test_plain():
    pytest.skip("no such kernel")

@pytest.mark.xfail
def test_expected():
    assert False
"""


def run_pytest(tmp_path: Path, require: str) -> subprocess.CompletedProcess[str]:
    tests = tmp_path / "tests" / "unit"
    tests.mkdir(parents=True)
    shutil.copy(CONFTEST, tests.parent)
    (tests / "test_needs.py").write_text(TESTS)
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "PINSTORM_REQUIRE": require}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("require", ["", "host,lab"])
def test_unmet_needs_are_skips_and_told(tmp_path: Path, require: str) -> None:
    done = run_pytest(tmp_path, require)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout
    assert "unit: 1 skipped: no such device" in done.stdout
    assert "unit: 1 skipped: no such kernel" in done.stdout


@pytest.mark.parametrize("require", ["unit", "all"])
def test_unmet_needs_fail_where_the_layer_is_required(tmp_path: Path, require: str) -> None:
    done = run_pytest(tmp_path, require)
    assert done.returncode == 1, done.stdout
    assert "2 failed, 1 passed, 1 xfailed" in done.stdout
    assert "unmet need: no such device (PINSTORM_REQUIRE asks for the unit layer)" in done.stdout


def test_unknown_layer_is_an_error(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "units")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "names no layer 'units'" in done.stderr


def test_names_of_test_files_are_unique_over_the_layers() -> None:
    """pytest imports them by their bare names."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
