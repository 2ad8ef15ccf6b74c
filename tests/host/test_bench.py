"""scripts/bench from end to end, with runs far too short to mean anything."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from benches import direct_io
from benches.pairs import BenchFailed

from pinstorm.errors import UsageError
from workloads.load.target import LAID_OUT
from workloads.spec import Surroundings

ROOT = Path(__file__).parents[2]
FILE_BYTES = direct_io.LEAST_FILE_BYTES
SHORT = ("--pairs", "2", "--seconds", "0.2", "--file-size", str(FILE_BYTES))
DEADLINE_S = 120.0


def environment(**changed: str) -> dict[str, str]:
    paths = [str(ROOT / "scripts"), str(ROOT)]
    return {**os.environ, "PYTHONPATH": ":".join(paths), "OPENBLAS_NUM_THREADS": "1", **changed}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "benches", *words]


def bench(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """As scripts/bench starts it; again for as long as another run has the machine."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        done = subprocess.run(
            command(*words), env=environment(**changed), capture_output=True, text=True
        )
        if "another pinstorm run" not in done.stderr or time.monotonic() > deadline:
            return done


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory that takes direct IO."""
    path = tmp_path / "scratch"
    path.mkdir()
    probe = path / "probe"
    probe.touch()
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip(f"{path} does not take direct IO: choose another --basetemp")
    probe.unlink()
    return path


@pytest.fixture
def fio() -> None:
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed: apt-get install fio")


def entries(path: Path) -> dict[str, Mapping[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(path.read_text())}


@pytest.mark.usefixtures("fio")
def test_direct_io_beside_fio(scratch: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    name = "dio-randread-4k-psync-qd1"
    done = bench("--only", name, *SHORT, "--scratch", str(scratch), "--json", str(figures))
    assert done.returncode == 0, done.stderr
    (entry,) = entries(figures).values()
    assert (entry["name"], entry["unit"], entry["pairs"]) == (name, "IOPS", 2)
    assert entry["ours"] > 100
    assert entry["peer"] > 100
    assert entry["ratio_low"] <= entry["ratio"] <= entry["ratio_high"]
    assert f"{entry['ratio']:.3f}" in done.stdout
    assert "pair 2 of 2" in done.stderr
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed: apt-get install gcc")
def test_registration_beside_c(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--only", "register-uring-1m", *SHORT, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    (entry,) = entries(figures).values()
    # 256 pages cost any machine more than a microsecond, and not a second
    assert 1 < entry["peer"] < 1e6
    assert 0.05 < entry["ratio"] < 5
    assert entry["cpu_ratio"] > 0


def test_what_the_sampler_costs(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = ("--only", "telemetry-sampler-100hz-*", "--pairs", "1", "--seconds", "0.5")
    done = bench(*words, "--scratch", str(tmp_path), "--json", str(figures))
    assert done.returncode == 0, done.stderr
    found = entries(figures)
    assert found["telemetry-sampler-100hz-loaded"]["ratio"] > 0
    share = found["telemetry-sampler-100hz-cpu"]
    assert 0 < share["ours"] < 100
    assert (share["peer"], share["ratio"]) == (0, None)
    assert [path.name for path in tmp_path.iterdir()] == [figures.name]


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    done = bench("--only", "dio-*", "--scratch", str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "bench: fio is not installed: apt-get install fio\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "register-uring-1k"), r"'register-uring-1k'.* did you mean register-uring-1m"),
        (("--pairs", "0"), r"--pairs 0"),
        (("--seconds", "nan"), r"--seconds nan"),
        (("--file-size", "1KiB"), r"--file-size 1KiB"),
        (("--scratch", "/nowhere"), r"--scratch /nowhere"),
        (("--json", "/nowhere/figures.json"), r"--json /nowhere/figures.json"),
    ],
)
def test_usage(words: tuple[str, ...], said: str) -> None:
    done = bench("--host", *words)
    assert done.returncode == 2
    assert re.search(said, done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_prints_what_is_there(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = ("--only", "telemetry-sampler-100hz-loaded", "--pairs", "10000", "--seconds", "0.25")
    program = subprocess.Popen(
        command(*words, "--scratch", str(tmp_path), "--json", str(figures)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with program:
        assert program.stderr is not None
        told = [program.stderr.readline()]
        while told[-1] and "pair 1 of" not in told[-1]:
            told.append(program.stderr.readline())
        if "another pinstorm run" in told[0]:
            pytest.skip("another run has the machine")
        assert told[-1], "".join(told)
        children = psutil.Process(program.pid).children(recursive=True)
        # As a terminal does it: to the whole group.
        os.killpg(program.pid, signal.SIGINT)
        printed, rest = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 130, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert "telemetry-sampler-100hz-loaded" in printed
    (entry,) = entries(figures).values()
    assert 1 <= entry["pairs"] < 10000
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == [figures.name]


def test_ours_goes_to_the_file_that_fio_gets(scratch: Path) -> None:
    """A write of ours changes the file that was laid out, and not its size."""
    with direct_io.laid_out(scratch, FILE_BYTES, print) as path:
        before = Path(path).read_bytes()
        assert len(before) == FILE_BYTES
        blocks = {before[at : at + 4096] for at in range(0, FILE_BYTES, 4096)}
        assert len(blocks) == FILE_BYTES // 4096
        job = direct_io.job_of("dio-seqwrite-1m-uring-qd8", FILE_BYTES)
        ran = direct_io.run_ours(job, Surroundings(scratch={LAID_OUT: path}), 0.3)
        after = Path(path).read_bytes()
    assert ran.operations * direct_io.MIB == ran.bytes
    assert ran.tree_cpu_ns > 0
    assert len(after) == FILE_BYTES
    written = sum(
        before[at : at + 4096] != after[at : at + 4096] for at in range(0, FILE_BYTES, 4096)
    )
    assert written == min(ran.bytes, FILE_BYTES) // 4096


@pytest.mark.usefixtures("fio")
def test_fio_reads_the_whole_file(scratch: Path) -> None:
    """A pass of fio over the file is the file, so that it has made none of its own."""
    with direct_io.laid_out(scratch, FILE_BYTES, print) as path:
        job_file = direct_io.JOB_FILES / "dio-seqwrite-1m-uring-qd8.fio"
        before = Path(path).read_bytes()
        ran = direct_io.run_fio(job_file, path, 0.3)
        after = Path(path).read_bytes()
        assert list(scratch.iterdir()) == []
    assert ran.operations * direct_io.MIB == ran.bytes
    assert len(after) == FILE_BYTES
    assert after != before


@pytest.mark.usefixtures("fio")
def test_fio_says_itself_what_is_wrong(tmp_path: Path) -> None:
    job_file = tmp_path / "wrong.fio"
    job_file.write_text("[wrong]\nioengine=no-such-engine\nfilename=${BENCH_FILE}\n")
    with pytest.raises(BenchFailed, match=r"fio wrong.fio.*no-such-engine"):
        direct_io.run_fio(job_file, str(tmp_path / "file"), 0.1)


def test_a_file_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="--file-size"),
        direct_io.laid_out(tmp_path, 1 << 60, print),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
