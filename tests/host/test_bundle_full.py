"""A file system that fills up during the run: a write error, and what is there stays valid."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinstorm import bundle
from pinstorm.errors import WriteError
from pinstorm.journal import Journal


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 KiB, the fixture's own."""
    mountpoint = tmp_path / "tiny"
    mountpoint.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "pinstorm-test", str(mountpoint)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a tmpfs; run as root")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


def fill(journal: Journal) -> None:
    for seq in range(1000):
        journal.record({"seq": seq, "case": "x" * 1000, "verdict": "pass"})


def test_full_file_system_leaves_a_valid_bundle(tiny: Path) -> None:
    path = bundle.create(tiny)
    bundle.write_manifest(path, {"suite": {}})
    with Journal.create(path / bundle.JOURNAL) as journal:
        with pytest.raises(WriteError, match="no space left on device") as caught:
            fill(journal)
        assert caught.value.exit_code == 4
    opened = bundle.open_bundle(path)
    assert [record["seq"] for record in opened.records] == list(range(len(opened.records)))
    assert len(opened.records) > 10
    assert opened.torn_bytes == 0
    with pytest.raises(WriteError):
        bundle.finish(path)
    with pytest.raises(WriteError):
        bundle.write_manifest(path, {"big": "x" * 70_000})
    assert sorted(file.name for file in path.iterdir()) == ["journal.jsonl", "manifest.json"]
    assert bundle.open_bundle(path).manifest == opened.manifest
