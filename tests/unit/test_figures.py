"""Pure parts of a record: later noise, and whose a kernel report is. Inputs are made by hand."""

from typing import Any

import pytest

from pinstorm import figures
from pinstorm.runner import kernel_lines
from telemetry import taint

MOVES = {"acquired": 16, "released": 4}
WARNING = "WARNING: CPU: 0 PID: 7 at mm/gup.c:1 try_grab_folio"
OTHER = "WARNING: CPU: 1 PID: 9 at drivers/usb/core.c:1 usb_thing"


def pins(acquire: dict[str, int] | None, **more: Any) -> dict[str, Any]:
    return {"noise": 0, "exact": True, "flagged": False, "acquire": acquire, **more}


@pytest.mark.parametrize(
    ("noise", "exact", "flagged"), [(0, True, False), (15, False, False), (16, False, True)]
)
def test_later_noise_flags_only_what_it_reaches(noise: int, exact: bool, flagged: bool) -> None:
    found = pins(MOVES)
    figures.doubt(found, noise)
    assert (found["noise"], found["exact"], found["flagged"]) == (noise, exact, flagged)


def test_later_noise_of_a_case_that_ended_before_its_first_window() -> None:
    found = pins(None)
    figures.doubt(found, 5)
    assert (found["noise"], found["exact"], found["flagged"]) == (5, False, False)


def test_a_report_that_reads_like_an_earlier_one_is_the_cases_own() -> None:
    (own, before) = kernel_lines([WARNING], [WARNING], 7, lab=True)
    assert own == WARNING
    assert before == {"text": WARNING, "own": False}


def test_reports_of_other_subsystems_are_recorded_and_not_judged() -> None:
    lines = kernel_lines([], [OTHER, WARNING], 7, lab=False)
    assert lines == [WARNING, {"text": OTHER, "own": False}]
    assert kernel_lines([], [OTHER], 7, lab=True) == [OTHER]


def test_new_taint_is_what_came_in_between() -> None:
    assert taint.new_bits(0b0101, 0b0111) == 0b0010
    assert taint.new_bits(None, 1) is None
