"""pinstorm.witness: what a run says when there is a trace, none, or one that breaks. What a real
kernel's trace says is tested in tests/lab."""

from typing import Any, cast

import pytest

from pinstorm.witness import NOT_ASKED, Known, Witness, witness
from telemetry.gup_calls import Call, Seen
from telemetry.gup_trace import GupTrace

SLOW = Call("__get_user_pages", ("FOLL_PIN",), "pin_user_pages_remote", "vm", "process", 1, 16, 16)


class Trace:
    """Notes what it is told; answers with what it was given."""

    functions = ("pin_user_pages_fast",)
    refused = ("get_user_pages",)
    layout_source = "btf"

    def __init__(self, seen: Seen, broken: str = ""):
        self.told: list[str] = []
        self._seen = seen
        self._broken = broken

    def arm(self, armed: bool) -> None:
        self._tell(f"arm {armed}")

    def on(self) -> None:
        self._tell("on")

    def off(self) -> None:
        self._tell("off")

    def follow(self, pid: int) -> None:
        self._tell(f"follow {pid}")

    def read(self) -> Seen:
        self._tell("read")
        return self._seen

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if what == self._broken:
            raise OSError(16, "Device or resource busy")


def made(seen: Seen = Seen([SLOW], None), **about: Any) -> tuple[Witness, Trace]:  # noqa: B008
    broken = about.pop("broken", "")
    trace = Trace(seen, broken)
    return Witness(cast(GupTrace, trace), None, **about), trace


def test_observed_cycle_is_armed_and_the_timed_cycles_are_not() -> None:
    seen, trace = made()
    seen.follow(7)
    seen.arm()
    with seen.window():
        trace.told.append("the case")
    seen.disarm()
    seen.disarm()
    assert trace.told == ["follow 7", "arm True", "on", "the case", "off", "arm False"]


def test_events_stay_where_patching_costs_more_than_it_spares() -> None:
    seen, trace = made(stays_armed=True)
    for _ in range(2):
        seen.arm()
        seen.disarm()
    assert trace.told == ["arm True"]


def test_window_is_switched_off_when_the_case_breaks() -> None:
    seen, trace = made()
    try:
        with seen.window():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert trace.told == ["on", "off"]


def test_calls_carry_their_phase() -> None:
    calls, _ = made()[0].seen("release")
    assert calls is not None
    assert (calls[0]["phase"], calls[0]["flags"]) == ("release", ["FOLL_PIN"])


def test_trace_that_is_not_whole_is_none() -> None:
    full = Seen([SLOW], "the kernel's trace buffer was full")
    assert made(full)[0].seen("acquire") == (None, "the kernel's trace buffer was full")
    killed = Seen([SLOW], "1 calls were not seen to return", only_unreturned=True)
    assert made(killed)[0].seen("acquire")[0] is None
    calls, _ = made(killed)[0].seen("acquire", ended=False)
    assert calls


def test_trace_that_breaks_is_given_up_and_says_why() -> None:
    seen, trace = made(broken="on")
    with seen.window():
        pass
    assert seen.missing == "the trace broke: Device or resource busy"
    assert seen.seen("acquire") == (None, seen.missing)
    assert seen.report() == {"available": False, "detail": seen.missing}
    assert trace.told == ["on"]


KNOWN = Known("process_vm_writev", ("__get_user_pages",), "FOLL_PIN", 16)


def test_self_test_that_is_seen() -> None:
    seen, _ = made()
    seen.prove([SLOW.to_json("acquire")], KNOWN)
    assert seen.report() == {
        "available": True,
        "functions": ["pin_user_pages_fast"],
        "refused": ["get_user_pages"],
        "flags": "btf",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"function": "gup_fast_fallback"},
        {"flags": ["FOLL_GET"]},
        {"pages_returned": 15},
        {"via": None},
        {"by": "kernel-thread"},
    ],
)
def test_self_test_must_be_seen(changes: dict[str, Any]) -> None:
    seen, _ = made()
    seen.prove([{**SLOW.to_json("acquire"), **changes}], KNOWN)
    assert "pages in the self-test, in which process_vm_writev took 16" in (seen.missing or "")
    assert not seen.report()["available"]


def test_self_test_without_a_trace_proves_nothing() -> None:
    seen, _ = made()
    seen.prove(None, KNOWN)
    assert "FOLL_PIN of 0 pages" in (seen.missing or "")


def test_no_trace_does_nothing() -> None:
    with witness(False) as seen:
        seen.follow(1)
        seen.arm()
        with seen.window():
            pass
        seen.disarm()
        seen.prove(None, KNOWN)
        assert seen.seen("acquire") == (None, NOT_ASKED)
        assert seen.report() == {"available": False, "detail": NOT_ASKED}
