"""The cache: where it is, and that nothing half-written gets its final name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pinstorm import cache
from pinstorm.errors import UsageError, WriteError


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"PINSTORM_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, Path("/c")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/pinstorm")),
        ({"PINSTORM_CACHE": ""}, Path.home() / ".cache/pinstorm"),
    ],
)
def test_where(environ, path):
    assert cache._cache_path(environ) == path


def test_a_user_without_a_home(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("PINSTORM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(UsageError, match="set PINSTORM_CACHE"):
        cache.cache_path()


def test_cannot_be_made(monkeypatch):
    monkeypatch.setenv("PINSTORM_CACHE", "/proc/nothing/here")
    with pytest.raises(WriteError, match="PINSTORM_CACHE"):
        cache.cache_dir()


def test_made_whole_appears_at_the_end_only(tmp_path):
    target = tmp_path / "target"
    with cache.made_whole(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    with pytest.raises(ZeroDivisionError), cache.made_whole(target):
        _ = 1 // 0
    assert os.listdir(target) == ["a"]
    assert os.listdir(tmp_path) == ["target"]


def test_lock_excludes_another_process(tmp_path):
    try_lock = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    command = [sys.executable, "-c", try_lock, str(tmp_path / "x.lock")]
    with cache.locked(tmp_path / "x"):
        assert subprocess.run(command, capture_output=True).returncode != 0
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_json_that_is_torn_reads_as_empty(tmp_path):
    path = tmp_path / "names.json"
    assert cache.read_json(path) == {}
    path.write_text('{"a": ')
    assert cache.read_json(path) == {}
    cache.write_json(path, {"a": 1})
    assert cache.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["names.json"]
