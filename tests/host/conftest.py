"""The host layer: what its tests make is given back at their end, and that is part of each."""

from collections.abc import Iterator

import pytest

from workloads.owner import Owner


@pytest.fixture
def owner() -> Iterator[Owner]:
    """Closed after the test, which fails when something could not be given back."""
    owner = Owner()
    yield owner
    owner.close()
    assert owner.errors == []
