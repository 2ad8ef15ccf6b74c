"""``pinstorm explain`` as a person runs it, on a process that lives."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry import process_status

BUNDLE = Path(__file__).parents[1] / "unit" / "data" / "bundle-schema-1"
CASE = "rdma-register/dax-shared/rw/64KiB"
KIB = 1024


def pinstorm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pinstorm", "explain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def small_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process under a limit of 32 KiB, without root's capabilities where this is root's."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (32 * KIB, 32 * KIB))
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)

    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, preexec_fn=limit) as process:
        yield process
        process.communicate()


def test_a_case_of_a_bundle() -> None:
    done = pinstorm(str(BUNDLE), CASE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "longterm-on-dax (likely)" in done.stdout
    assert "instead: rdma-register-odp/dax-shared/rw/64KiB\n" in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_failure(unbuffered: str) -> None:
    """``pinstorm explain … | head -1``: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pinstorm", "explain", str(BUNDLE), "*"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_cases_of_a_bundle_as_json() -> None:
    done = pinstorm(str(BUNDLE), "rdma-register/dax*", "--json")
    entries = json.loads(done.stdout)
    assert len(entries) > 1
    assert {entry["explanation"]["cause"] for entry in entries} == {"longterm-on-dax"}


def test_a_process_that_lives_is_looked_at(small_process: subprocess.Popen[bytes]) -> None:
    pid = str(small_process.pid)
    asked = ("--call", "ibv_reg_mr", "--errno", "ENOMEM", "--size", "64KiB", "--pid", pid, "--json")
    done = pinstorm(*asked)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["explanation"]
    assert (found["cause"], found["confidence"]) == ("memlock-limit", "certain")
    assert "RLIMIT_MEMLOCK is 32 KiB" in found["evidence"][0]
    assert found["command"].startswith(f"prlimit --pid {pid} --memlock={64 * KIB}:")


def test_the_command_that_is_told_helps_the_process(
    small_process: subprocess.Popen[bytes], need: Callable[[bool, str], None]
) -> None:
    may = process_status.has_capability(process_status.read(), "CAP_SYS_RESOURCE")
    need(may, "raising a hard limit needs CAP_SYS_RESOURCE")
    asked = ("--call", "ibv_reg_mr", "--errno", "12", "--size", "64KiB")
    asked += ("--pid", str(small_process.pid), "--json")
    command = json.loads(pinstorm(*asked).stdout)["explanation"]["command"]
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=60)
    assert resource.prlimit(small_process.pid, resource.RLIMIT_MEMLOCK)[0] == 64 * KIB
    found = json.loads(pinstorm(*asked).stdout)["explanation"]
    assert "memlock-limit" not in [one["cause"] for one in (found, *found["others"])]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give BUNDLE and CASE, or --call and --errno"),
        ((str(BUNDLE),), "give BUNDLE and CASE"),
        (
            (str(BUNDLE), "rdma-register/dax-shared/rw"),
            "the nearest is rdma-register/dax-shared/rw/",
        ),
        (("--call", "ibv_reg_mr"), "add --errno"),
        (("--errno", "ENOMEM"), "add --call"),
        (("--errno", "ENOPE", "--call", "ibv_reg_mr"), "errno ENOPE is none that Linux has"),
        (("--errno", "ENOMEM", "--call", "ibv_reg_mr", "--size", "64KB"), "KB"),
        (("--errno", "ENOMEM", "--call", "ibv_reg_mr", "--size", "0"), "--size 0 asks for no memo"),
        (("--errno", "ENOMEM", "--call", ""), "--call is empty"),
        (("--errno", "ENOMEM", "--call", " "), "--call is empty"),
        (("--errno", "ENOMEM", "--call", "ibv_reg_mr", "--pid", "4194305"), "process 4194305"),
        ((str(BUNDLE), CASE, "--pid", "1"), "--size and --pid speak of another program"),
        (("/nonexistent", CASE), "/nonexistent"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], words: str) -> None:
    done = pinstorm(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_call_cannot_speak_to_the_terminal() -> None:
    done = pinstorm("--call", "ibv_\x1b[31mreg", "--errno", "ENOMEM")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("ibv_?[31mreg gave ENOMEM")


@pytest.mark.parametrize("damaged", [{"process": 5}, {"pieces": "x"}, 5, [1]])
@pytest.mark.parametrize("command", ["explain", "report"])
def test_damaged_evidence_of_a_bundle_ends_nothing(
    damaged: Any, command: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    journal = bundle / "journal.jsonl"
    (bundle / "cases.parquet").unlink()
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    records = [{**record, "evidence": damaged} for record in lines]
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    if command == "explain":
        done = pinstorm(str(bundle), CASE)
        assert done.returncode == 0
        assert "evidence is damaged" in done.stdout
    else:
        words = [sys.executable, "-m", "pinstorm", "report", str(bundle), "--rejudge", "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert "evidence is damaged" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("uid", ["4000000000000", "4294967295"])
def test_a_user_that_cannot_be_is_one_sentence(uid: str) -> None:
    for option in ("--uid", "--user"):
        words = [sys.executable, "-m", "pinstorm", "pins", option, uid]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"pinstorm: user {uid} is no user: ids of users go up to 4294967294\n"
        )
