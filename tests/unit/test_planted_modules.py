"""The modules that tests plant in a guest or a child load: there, a wrong import is a lost boot."""

import importlib
from pathlib import Path

import pytest

from pinstorm import oracle

TESTS = Path(__file__).parent.parent
PLANTED = sorted(
    path
    for layer in ("host", "lab")
    for path in (TESTS / layer).glob("*.py")
    if not path.name.startswith(("test_", "conftest"))
)


@pytest.mark.parametrize("path", PLANTED, ids=lambda path: path.name)
def test_it_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    # broken_rules changes what expectation() takes when it is not told
    rules = oracle.expectation.__kwdefaults__["rules"]
    try:
        importlib.import_module(path.stem)
    finally:
        oracle.expectation.__kwdefaults__["rules"] = rules


def test_there_are_some() -> None:
    assert {"broken_rules", "faulty_workloads"} <= {path.stem for path in PLANTED}
