"""The lab layer: kernels from the cache, and a directory that a guest can see."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab import kernels
from pinstorm.lab.kernels import Kernel


@pytest.fixture(scope="session")
def kernel_named() -> Callable[[str], Kernel]:
    """The kernel of that name, fetched where the cache lacks it; a skip where it cannot be had."""

    def resolve(name: str) -> Kernel:
        try:
            return kernels.resolve(name)
        except UsageError as error:
            pytest.skip(str(error))

    return resolve


@pytest.fixture(scope="session")
def backports(kernel_named: Callable[[str], Kernel]) -> Kernel:
    return kernel_named("backports")


@contextmanager
def new_directory() -> Iterator[Path]:
    parent = cache.cache_dir() / "tests"
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def lab_tmp() -> Iterator[Path]:
    """A new directory in the cache, below the root that host and guest share."""
    with new_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def module_tmp() -> Iterator[Path]:
    """Like lab_tmp, for all tests of a module: those that look at one guest."""
    with new_directory() as directory:
        yield directory
