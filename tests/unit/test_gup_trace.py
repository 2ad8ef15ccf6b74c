"""telemetry.gup_calls and gup_trace: traces of three real kernels, and lines made by hand.

``data/gup_trace`` holds trace_pipe of Debian's 6.1, 6.12 and 7.2 kernels, while one process called
process_vm_writev of 128 pages and of an unmapped range, a futex in shared memory, vmsplice of
touched and of untouched memory, mlock, read /proc/self/cmdline, and forked a child that called
process_vm_writev of 2 pages and started a program.
"""

import os
from collections.abc import Mapping
from errno import EINVAL, ENOENT, EPERM
from pathlib import Path

import pytest

from pinstorm import conformance
from telemetry import gup_calls, gup_trace
from telemetry.btf import VMLINUX, Btf
from telemetry.gup_calls import MACROS, Call, Event, Lost, Seen
from telemetry.gup_trace import GupTrace, TraceUnavailable

DATA = Path(__file__).parent / "data" / "gup_trace"
# enum of FOLL_ flags, include/linux/mm_types.h and mm/internal.h of v6.12 and v7.2.
ENUMERATORS: Mapping[str, int] = {
    "FOLL_WRITE": 1 << 0,
    "FOLL_GET": 1 << 1,
    "FOLL_FORCE": 1 << 3,
    "FOLL_ANON": 1 << 7,
    "FOLL_LONGTERM": 1 << 8,
    "FOLL_TOUCH": 1 << 16,
    "FOLL_TRIED": 1 << 17,
    "FOLL_REMOTE": 1 << 18,
    "FOLL_PIN": 1 << 19,
    "FOLL_UNLOCKABLE": 1 << 21,
}
RELEASES = ("6.1", "6.12", "7.2")


def layout(release: str) -> Mapping[str, int]:
    return MACROS if release == "6.1" else ENUMERATORS


def seen(release: str) -> Seen:
    text = (DATA / f"{release}.txt").read_text()
    return gup_calls.add_up(gup_calls.parse(text), layout(release), frozenset())


def only(calls: list[Call], function: str, caller: str, via: str | None = None) -> Call:
    (found,) = [c for c in calls if (c.function, c.caller, c.via) == (function, caller, via)]
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_every_line_of_a_real_trace_is_read(release: str) -> None:
    text = (DATA / f"{release}.txt").read_text()
    events = list(gup_calls.parse(text))
    assert len(events) == len(text.splitlines())
    calls = [event for event in events if isinstance(event, Event) and not event.returned]
    assert len(calls) * 2 == len(events)
    assert len({event.pid for event in calls}) == 2  # the process and its child
    assert {event.comm for event in calls} == {"python"}


@pytest.mark.parametrize("release", RELEASES)
def test_calls_of_a_real_trace(release: str) -> None:
    found = seen(release)
    assert found.lost is None
    remote = only(found.calls, "pin_user_pages_remote", "process_vm_rw_core")
    assert remote.flags == ("FOLL_WRITE",)
    assert (remote.calls, remote.pages_asked, remote.pages_returned) == (3, 132, 130)
    assert remote.errors == {"EFAULT": 1}
    slow = only(found.calls, "__get_user_pages", "process_vm_rw_core", via="pin_user_pages_remote")
    assert {"FOLL_WRITE", "FOLL_PIN", "FOLL_REMOTE", "FOLL_TOUCH"} <= set(slow.flags)
    assert "FOLL_GET" not in slow.flags
    splice = only(found.calls, "get_user_pages_fast", "__iov_iter_get_pages_alloc")
    assert (splice.flags, splice.pages_asked, splice.pages_returned) == ((), 4, 4)
    fast = "internal_get_user_pages_fast" if release == "6.1" else "gup_fast_fallback"
    behind = only(found.calls, fast, "__iov_iter_get_pages_alloc", via="get_user_pages_fast")
    assert behind.flags == ("FOLL_GET",)


@pytest.mark.parametrize("release", RELEASES)
def test_flag_is_seen_behind_every_entry_point_that_got_pages(release: str) -> None:
    """What pinstorm.conformance asks of a proof holds on the slow path too."""
    calls = [call.to_json("acquire") for call in seen(release).calls]
    entries = [c for c in calls if c["via"] is None and c["function"] in gup_trace.ENTRY_POINTS]
    assert {entry["function"] for entry in entries} >= {
        "pin_user_pages_remote",
        "get_user_pages_fast",
        "get_user_pages_remote",
    }
    for entry in entries:
        flag = "FOLL_PIN" if entry["function"].startswith("pin") else "FOLL_GET"
        assert entry["pages_returned"]
        assert conformance._is_given(frozenset({flag}), entry, calls), entry


@pytest.mark.parametrize("release", RELEASES)
def test_callers_tell_what_is_besides_the_case(release: str) -> None:
    found = seen(release).calls
    assert only(found, "get_user_pages_fast", "get_futex_key").pages_returned == 1
    assert only(found, "get_user_pages_remote", "get_arg_page").flags == ("FOLL_WRITE",)
    assert only(found, "get_user_pages_remote", "__access_remote_vm").flags == ("FOLL_ANON",)
    populate = only(found, "__get_user_pages", "populate_vma_page_range")
    assert not {"FOLL_PIN", "FOLL_GET"} & set(populate.flags)


def test_what_stands_behind_is_told_in_the_order_of_the_calls() -> None:
    behind = [
        call.function
        for call in seen("6.1").calls
        if call.via == "get_user_pages_fast" and call.caller == "__iov_iter_get_pages_alloc"
    ]
    assert behind == [
        "internal_get_user_pages_fast",
        "get_user_pages_unlocked",
        "__get_user_pages",
    ]


def line(event: str, where: str, values: str, comm: str = "python", pid: int = 7) -> str:
    return f"  {comm}-{pid}    [001] d..1.   14.534534: {event}: ({where}) {values}\n"


CALL = line("pin_user_pages_fast", "pin_user_pages_fast+0x4/0x60", "flags=0x100 pages=512")
RETURN = line(
    "pin_user_pages_fast__ret", "ib_umem_get+0x2/0x9 [ib_uverbs] <- pin_user_pages_fast", "ret=512"
)


def add_up(text: str, kernel_threads: frozenset[int] = frozenset()) -> Seen:
    return gup_calls.add_up(gup_calls.parse(text), ENUMERATORS, kernel_threads)


def test_caller_in_a_module_and_odd_names() -> None:
    (call,) = add_up(CALL.replace("python", "a - b: (c)") + RETURN).calls
    assert (call.caller, call.flags) == ("ib_umem_get", ("FOLL_LONGTERM",))
    suffixed = RETURN.replace("ib_umem_get", "ib_umem_get.constprop.0")
    assert add_up(CALL + suffixed).calls[0].caller == "ib_umem_get"


def test_alike_calls_are_added_up_and_others_kept_apart() -> None:
    failed = RETURN.replace("ret=512", "ret=-95")
    strange = RETURN.replace("ret=512", "ret=-512")
    other = CALL.replace("0x100", "0x101")
    calls = add_up((CALL + RETURN) * 3 + CALL + failed + CALL + strange + other + RETURN).calls
    first, second = calls
    assert (first.calls, first.pages_asked, first.pages_returned) == (5, 2560, 1536)
    assert first.errors == {"EOPNOTSUPP": 1, "errno-512": 1}
    assert second.flags == ("FOLL_WRITE", "FOLL_LONGTERM")
    assert first.to_json("acquire")["errors"] == {"EOPNOTSUPP": 1, "errno-512": 1}
    assert "unreturned" not in second.to_json("acquire")


def test_kernel_threads_are_told_apart() -> None:
    worker = (CALL + RETURN).replace("python-7 ", "kworker/u8:2-9 ")
    calls = add_up(CALL + RETURN + worker, frozenset({9})).calls
    assert [call.by for call in calls] == ["process", "kernel-thread"]


def test_unknown_bits_are_words_and_never_dropped() -> None:
    assert gup_calls.decode(0x80000101, ENUMERATORS) == (
        "FOLL_WRITE",
        "FOLL_LONGTERM",
        "0x80000000",
    )
    assert gup_calls.decode(0, ENUMERATORS) == ()
    assert gup_calls.decode(0x50007, MACROS) == (
        "FOLL_WRITE",
        "FOLL_TOUCH",
        "FOLL_GET",
        "FOLL_LONGTERM",
        "FOLL_PIN",
    )


def test_pages_asked_of_ranges() -> None:
    faulted = line("hmm_range_fault", "x+0x0/0x1", "start=0x1000 end=0x4000")
    done = line("hmm_range_fault__ret", "odp+0x1/0x2 <- hmm_range_fault", "ret=0")
    pinned = line("memfd_pin_folios", "x+0x0/0x1", "start=0x0 end=0x1fffff")
    folio = line("memfd_pin_folios__ret", "udmabuf_create+0x1/0x2 <- memfd_pin_folios", "ret=1")
    faults, pins = add_up(faulted + done + pinned + folio).calls
    assert (faults.pages_asked, faults.pages_returned) == (3, 3)
    assert (pins.pages_asked, pins.pages_returned) == (512, 1)


def test_what_is_missing_is_told() -> None:
    lost = add_up(CALL + "CPU:1 [LOST 12 EVENTS]\n" + RETURN)
    assert lost.lost == "the kernel's trace buffer was full, 12 events were lost"
    assert not lost.only_unreturned
    killed = add_up(CALL)
    assert (killed.lost, killed.only_unreturned) == ("1 calls were not seen to return", True)
    assert killed.calls[0].to_json("acquire")["unreturned"] == 1
    assert list(gup_calls.parse("CPU:0 [LOST 3 EVENTS]\n")) == [Lost(3)]


def test_events_that_the_kernel_could_not_count_are_lost_too() -> None:
    assert list(gup_calls.parse("CPU:0 [LOST EVENTS]\n")) == [Lost(None)]
    said = "the kernel's trace buffer was full, "
    assert add_up("CPU:0 [LOST EVENTS]\n").lost == said + "uncounted events were lost"
    both = add_up("CPU:0 [LOST EVENTS]\nCPU:1 [LOST 3 EVENTS]\n")
    assert both.lost == said + "at least 3 events were lost"


def test_return_that_was_missed_does_not_hide_the_next_call() -> None:
    inner = line("gup_fast_fallback", "gup_fast_fallback+0x0/0x1", "flags=0x80100 pages=512")
    found = add_up(CALL + inner + RETURN + CALL + RETURN)
    assert [(call.function, call.calls) for call in found.calls] == [
        ("pin_user_pages_fast", 2),
        ("gup_fast_fallback", 1),
    ]
    assert found.lost == "1 calls were not seen to return"


def test_call_that_began_before_the_trace_is_passed_over() -> None:
    assert add_up(RETURN).calls == []
    assert add_up("# tracer: nop\n\nnothing of ours\n") == Seen([], None)


class Kernel(Btf):
    """As much of a kernel's types as the probes ask for."""

    def __init__(self, *functions: str, gup_flags: str = "gup_flags"):
        self._functions_there = functions
        self._gup_flags = gup_flags

    def parameters(self, function: str) -> tuple[str, ...] | None:
        if function not in self._functions_there:
            return None
        return {
            "hmm_range_fault": ("range",),
            "memfd_pin_folios": ("memfd", "start", "end", "folios", "max_folios", "offset"),
        }.get(function, ("mm", "start", "nr_pages", self._gup_flags, "pages"))

    def members(self, structure: str) -> dict[str, int] | None:
        return {"start": 16, "end": 24}


def test_probes_take_their_arguments_from_the_kernels_types() -> None:
    kernel = Kernel(
        "pin_user_pages_remote",
        "__get_user_pages",
        "gup_fast_fallback",
        "hmm_range_fault",
        "memfd_pin_folios",
    )
    lines = gup_trace.probes(kernel, "g")
    assert lines[0] == (
        "p:g/pin_user_pages_remote pin_user_pages_remote flags=$arg4:x32 pages=$arg3:s32"
    )
    assert "r:g/__get_user_pages__ret __get_user_pages ret=$retval:s32" in lines
    assert "p:g/memfd_pin_folios memfd_pin_folios start=$arg2:x64 end=$arg3:x64" in lines
    assert any("start=+16($arg1):x64 end=+24($arg1):x64" in text for text in lines)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (Kernel("pin_user_pages_fast", "__get_user_pages"), "shows FOLL_PIN"),
        (Kernel("pin_user_pages_fast", "gup_fast_fallback"), "shows FOLL_PIN"),
        (Kernel("__get_user_pages", "gup_fast_fallback", gup_flags="bits"), "'gup_flags'"),
    ],
)
def test_kernel_that_would_not_show_pins_is_not_traced(kernel: Kernel, said: str) -> None:
    with pytest.raises(TraceUnavailable, match=said):
        gup_trace.probes(kernel, "g")


def test_probes_of_the_running_kernel() -> None:
    if not VMLINUX.exists():
        pytest.skip(f"{VMLINUX}: this kernel has no BTF")
    lines = gup_trace.probes(Btf.read(), "g")
    assert "p:g/pin_user_pages_fast pin_user_pages_fast flags=$arg3:x32 pages=$arg2:s32" in lines


def test_io_uring_threads_are_known_by_whom_they_work_for() -> None:
    me, parent = os.getpid(), os.getppid()
    assert gup_trace._serves(f"iou-wrk-{me}", me)
    assert gup_trace._serves(f"iou-sqp-{me}", parent)
    assert gup_trace._serves(f"iou-wrk-{parent}", me) is False
    assert gup_trace._serves("iou-wrk-", me) is False
    assert gup_trace._serves(f"iou-wrk-{2**22 + 1}", me) is None


class Instance:
    """A tracefs instance that holds that text."""

    def __init__(self, text: str):
        self._text = text

    def read(self) -> str:
        return self._text


@pytest.mark.parametrize(
    ("owner", "calls", "lost"),
    [
        (os.getpid(), 2, None),
        (os.getppid(), 0, None),
        (
            2**22 + 1,
            0,
            "an io_uring thread had outlived whom it worked for, 4 events were lost",
        ),
    ],
)
def test_io_uring_thread_whose_owner_has_ended_may_be_ours(
    owner: int, calls: int, lost: str | None
) -> None:
    worker = (CALL + RETURN).replace("python-7 ", f"iou-wrk-{owner}-9 ")
    worker += worker.replace("-9 ", "-10 ")  # another one, of the same name
    trace = object.__new__(GupTrace)
    trace.__dict__.update(
        _tree=Instance(""),
        _workers=Instance(worker),
        _followed=os.getpid(),
        _kernel_threads=frozenset({1}),
        layout=ENUMERATORS,
    )
    found = trace.read()
    assert (sum(call.calls for call in found.calls), found.lost) == (calls, lost)


ALL = Kernel("pin_user_pages_fast", "hmm_range_fault", "__get_user_pages", "gup_fast_fallback")


def refusing(
    refused: str, number: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[GupTrace, list[str]]:
    """A trace of a kernel that refuses definitions with that word; and what it took."""
    written: list[str] = []

    def write(path: Path, text: str, *, append: bool = False) -> None:
        if path.name != "kprobe_events":
            return
        if refused in text.split() and not text.startswith("-"):
            raise OSError(number, os.strerror(number))
        written.append(text.split()[0])

    monkeypatch.setattr(gup_trace, "_write", write)
    monkeypatch.setattr(gup_trace._Instance, "make", lambda self: None)
    monkeypatch.setattr(ALL, "enumerators", lambda prefix: ENUMERATORS, raising=False)
    return GupTrace(root, "g", ALL), written


@pytest.mark.parametrize("number", [ENOENT, EINVAL])
def test_function_that_cannot_be_probed_does_not_lose_the_others(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, written = refusing("r:g/hmm_range_fault__ret", number, tmp_path, monkeypatch)
    trace._make()
    assert trace.refused == ("hmm_range_fault",)
    assert trace.functions == ("pin_user_pages_fast", "gup_fast_fallback", "__get_user_pages")
    assert written.index("-:g/hmm_range_fault") == written.index("p:g/hmm_range_fault") + 1


@pytest.mark.parametrize(
    ("refused", "number"),
    [("__get_user_pages", ENOENT), ("gup_fast_fallback", ENOENT), ("hmm_range_fault", EPERM)],
)
def test_function_that_shows_pins_must_be_probed(
    refused: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, _ = refusing(refused, number, tmp_path, monkeypatch)
    with pytest.raises(OSError, match=os.strerror(number)):
        trace._make()


def test_container_is_not_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gup_trace, "_tracefs", lambda: tmp_path)
    monkeypatch.setattr(gup_trace, "_pid_namespace", lambda: 4026532000)
    with pytest.raises(TraceUnavailable, match="PID namespace"):
        GupTrace.open()


def test_only_what_a_dead_process_of_this_namespace_made_is_stale() -> None:
    own = gup_trace.own_name()
    pid, start, namespace = own.removeprefix("pinstorm_").split("_")
    assert int(pid) == os.getpid()
    assert not gup_trace.is_stale(own)
    assert gup_trace.is_stale(f"pinstorm_{pid}_{int(start) - 1}_{namespace}")
    assert gup_trace.is_stale(f"pinstorm_{2**22 + 1}_{start}_{namespace}")
    assert not gup_trace.is_stale(f"pinstorm_{2**22 + 1}_{start}_1")
    for foreign in ("kprobes", "pinstorm", "pinstorm_1", f"x{own}"):
        assert not gup_trace.is_stale(foreign)
