"""scripts/bench in a guest: pairs of runs that come back from it while it lives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benches import needs
from benches.command import choose

from pinstorm.lab.kernels import Kernel

ROOT = Path(__file__).parents[2]
NAME = "register-rdma-1m"


@pytest.mark.slow
def test_registration_with_rdma_beside_c(backports: Kernel, tmp_path: Path) -> None:
    if lacking := needs.unmet(choose([NAME], host=False)):
        pytest.skip("; ".join(lacking))
    figures = tmp_path / "figures.json"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"}
    words = ["--only", NAME, "--pairs", "2", "--seconds", "0.5", "--json", str(figures)]
    done = subprocess.run(
        [sys.executable, "-m", "benches", *words, "--kernel", backports.release],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"booting {backports.release}" in done.stderr
    assert "pair 2 of 2" in done.stderr
    (entry,) = json.loads(figures.read_text())
    assert (entry["name"], entry["pairs"]) == (NAME, 2)
    # 256 pages cost any machine more than a microsecond
    assert min(entry["ours"], entry["peer"]) > 1
    assert entry["ratio_low"] <= entry["ratio"] <= entry["ratio_high"]
    assert entry["cpu_ratio"] > 0
