"""Layers of tests, and what a test that cannot run here is worth.

``tests/unit`` needs nothing, ``tests/host`` this kernel and often root, ``tests/lab`` boots guests.
A test that lacks something is skipped with the reason. ``PINSTORM_REQUIRE=unit,lab`` (or ``all``)
names the layers in which that is a failure instead: a machine that is there to run them must have
what they need. Tests write nothing outside their ``tmp_path`` and pinstorm's cache.
"""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LAYERS = ("unit", "host", "lab")
TESTS = Path(__file__).parent

# What the lab calls, and the package that has it.
LAB_PROGRAMS = {
    "qemu-system-x86_64": "apt-get install qemu-system-x86",
    "virtme-run": "pip install virtme-ng",
}

Need = Callable[[bool, str], None]

_unmet: Counter[tuple[str, str]] = Counter()


def required_layers() -> frozenset[str]:
    """The layers named by PINSTORM_REQUIRE; UsageError for a name that is none."""
    names = {word for word in os.environ.get("PINSTORM_REQUIRE", "").split(",") if word}
    if unknown := names - {*LAYERS, "all"}:
        raise pytest.UsageError(
            f"PINSTORM_REQUIRE names no layer {sorted(unknown)[0]!r}; "
            f"give some of {', '.join(LAYERS)}, or all"
        )
    return frozenset(LAYERS if "all" in names else names)


def layer_of(path: Path) -> str | None:
    """The layer whose directory holds the file."""
    inner = path.parts[len(TESTS.parts) :] if path.is_relative_to(TESTS) else ()
    return inner[0] if inner and inner[0] in LAYERS else None


@pytest.fixture
def need() -> Need:
    """``need(met, reason)``: go on, or skip for that reason (a failure in a required layer)."""

    def check(met: bool, reason: str) -> None:
        if not met:
            pytest.skip(reason)

    return check


def pytest_configure(config: pytest.Config) -> None:
    required_layers()
    for layer in LAYERS:
        config.addinivalue_line("markers", f"{layer}: a test below tests/{layer}")
    config.addinivalue_line("markers", "slow: minutes long, only with PINSTORM_SLOW=1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark by directory, so that ``-m lab`` selects; cheap layers first, slow tests when asked."""
    if os.environ.get("PINSTORM_SLOW") != "1":
        slow = [item for item in items if item.get_closest_marker("slow")]
        # Left out, not skipped: a skip is a need that a required layer must meet.
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)
    for item in items:
        if layer := layer_of(item.path):
            item.add_marker(layer)
    rank = {layer: number for number, layer in enumerate(LAYERS)}
    items.sort(key=lambda item: rank.get(layer_of(item.path) or "", 0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if layer_of(item.path) == "lab" and (missing := missing_lab_programs()):
        pytest.skip("; ".join(missing))


def missing_lab_programs() -> list[str]:
    """What the lab lacks on this machine, with the remedy of each."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return [
        f"{program} is not installed: {remedy}"
        for program, remedy in LAB_PROGRAMS.items()
        if shutil.which(program, path=beside) is None
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    _judge_skip(report, item.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module may skip as a whole, before it has tests."""
    report: Any = yield
    _judge_skip(report, collector.path)
    return report


def _judge_skip(report: Any, path: Path) -> None:
    """Count the unmet need; in a required layer make a failure of it."""
    layer = layer_of(path)
    if not report.skipped or layer is None or hasattr(report, "wasxfail"):
        return
    reason = _reason(report.longrepr)
    _unmet[layer, reason] += 1
    if layer in required_layers():
        report.outcome = "failed"
        report.longrepr = f"unmet need: {reason} (PINSTORM_REQUIRE asks for the {layer} layer)"


def _reason(longrepr: Any) -> str:
    """pytest keeps (file, line, ``Skipped: reason``) for a skip."""
    words = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(words).removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every need that was not met here, once, with the number of tests that it cost."""
    if not _unmet:
        return
    required = required_layers()
    terminalreporter.section("needs not met here")
    for (layer, reason), count in sorted(_unmet.items()):
        verb = "failed" if layer in required else "skipped"
        terminalreporter.line(f"{layer}: {count} {verb}: {reason}")
