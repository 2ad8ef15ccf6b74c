"""The lab layer: kernels from the cache, and a directory that a guest can see."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab import kernels
from pinstorm.lab.kernels import Kernel


@pytest.fixture
def kernel_named() -> Callable[[str], Kernel]:
    """The kernel of that name, fetched where the cache lacks it; a skip where it cannot be had."""

    def resolve(name: str) -> Kernel:
        try:
            return kernels.resolve(name)
        except UsageError as error:
            pytest.skip(str(error))

    return resolve


@pytest.fixture
def backports(kernel_named: Callable[[str], Kernel]) -> Kernel:
    return kernel_named("backports")


@pytest.fixture
def lab_tmp() -> Iterator[Path]:
    """A new directory in the cache, below the root that host and guest share."""
    parent = cache.cache_dir() / "tests"
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=parent))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
