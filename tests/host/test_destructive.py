"""Cases that could crash the machine: on a host they are skipped, with the remedy. None is run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(sys.executable).parent / "pinstorm"
# Others on this machine may run pinstorm as well: then ours waits for its turn.
TURN_DEADLINE_S = 120.0
BUSY = "another pinstorm run"


def pinstorm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script to its end; while another run has the machine, again."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    deadline_s = time.monotonic() + TURN_DEADLINE_S
    while True:
        done = subprocess.run(
            [SCRIPT, *words], cwd=cwd, env=environment, capture_output=True, text=True
        )
        if BUSY not in done.stderr or time.monotonic() > deadline_s:
            return done
        time.sleep(0.3)


def planned(*options: str, cwd: Path) -> list[dict[str, object]]:
    """What each case of the suite lacks here. --dry-run: nothing is run."""
    done = pinstorm("run", "overflow", "--dry-run", "--json", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    plan: list[dict[str, object]] = json.loads(done.stdout)["cases"]
    return plan


def codes(case: dict[str, object]) -> set[str]:
    skip = case["unmet"]
    assert isinstance(skip, list)
    return {entry["code"] for entry in skip}


def test_without_the_option_every_case_lacks_it(tmp_path: Path) -> None:
    plan = planned(cwd=tmp_path)
    assert plan
    assert all("destructive" in codes(case) for case in plan)


def test_with_the_option_none_does(tmp_path: Path) -> None:
    plan = planned("--destructive", cwd=tmp_path)
    assert plan
    assert not any("destructive" in codes(case) for case in plan)


def test_a_run_skips_them_with_the_remedy(tmp_path: Path) -> None:
    done = pinstorm("run", "overflow", "--json", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 77, done.stderr  # all were skipped
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(record["verdict"], record["reason"]) for record in records} == {
        ("skip", "destructive")
    }
    for record in records:
        (told,) = (entry for entry in record["skip"] if entry["code"] == "destructive")
        assert "pinstorm lab run" in told["remedy"]
        assert "--destructive" in told["remedy"]


def test_list_says_what_is_in_the_way(tmp_path: Path) -> None:
    registry = json.loads(pinstorm("list", "--json", cwd=tmp_path).stdout)
    (entry,) = (one for one in registry["workloads"] if one["name"] == "gup-overflow")
    assert "destructive" in entry["unmet"]
    assert not entry["met"]
    told = {one["code"]: one["remedy"] for one in registry["unmet"]}
    assert "--destructive" in told["destructive"]
