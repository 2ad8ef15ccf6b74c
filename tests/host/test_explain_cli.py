"""``pinstorm explain`` as a person runs it, on a process that lives."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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
