"""The names of calls: those that workloads write into records, and those that people type."""

import re
from pathlib import Path

import pytest

from pinstorm.explain import calls
from workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
# Where a workload names the call that the kernel refused.
_NAMES = re.compile(r'(?:CallFailed|refusal_of|check|timed_ioctl)\(\s*"([^"]+)"')


def test_every_call_that_a_workload_names_is_known() -> None:
    named = {
        name
        for path in (ROOT / "workloads").rglob("*.py")
        for name in _NAMES.findall(path.read_text())
    }
    assert len(named) > 20
    # of gup-test, whose record says which ioctl it is
    unknown = {name for name in named if not calls.of_call(name) and not calls.is_plain(name)}
    assert unknown <= {"ioctl"}


def test_every_workload_has_a_call_or_records_it() -> None:
    for spec in WORKLOADS:
        call = calls.of_workload(spec.name)
        # gup-overflow goes through another workload's call, which its record names
        assert spec.name == "gup-overflow" or (call is not None and calls.of_call(call)), spec.name


def test_a_name_belongs_to_one_mechanism() -> None:
    names = [name.lower() for name in calls.known_calls()]
    assert len(names) == len(set(names))
    assert not set(names) & {name.lower() for name in calls.PLAIN}


@pytest.mark.parametrize(
    "spelling",
    ["ibv_reg_mr", "ibv_reg_mr()", "IBV_REG_MR", "ibv_reg_mr(pd, 0x7f, 64)", "__ibv_reg_mr"],
)
def test_spellings_of_one_call(spelling: str) -> None:
    assert calls.of_call(spelling) is calls.of_call("ibv_reg_mr_iova2")


@pytest.mark.parametrize(
    ("call", "writes"),
    [
        ("preadv", True),
        ("pwritev", False),
        ("process_vm_writev", True),
        ("IORING_OP_READ_FIXED", True),
        ("IORING_OP_WRITE", False),
        ("io_uring_register", True),
        ("vmsplice", False),
        ("ibv_reg_mr", None),
    ],
)
def test_what_a_call_does_to_the_memory(call: str, writes: bool | None) -> None:
    assert calls.writes(call) is writes
