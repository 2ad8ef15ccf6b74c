"""What is done to pinned memory while the pins are held, none of which may touch them (``during``).

A pin is a reference to the page, not to its mapping: Documentation/core-api/pin_user_pages.rst. So
it outlives the mapping (MADV_DONTNEED, munmap), is the parent's alone when the process forks, and
does not belong to the thread that asked for it. Each is proved to have happened: a disturbance that
did not take place would show nothing.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from telemetry import pagemap
from workloads import libc
from workloads.memory import Region, write_every_page
from workloads.spec import Operation, PrepareFailed

# After these the memory has to be made anew before it is registered again.
SPENDING = ("madv-dontneed", "munmap")

_THREAD_DEADLINE_S = 5.0


def disturb(what: str, region: Region, operation: Operation) -> int:
    """The nanoseconds that it took. CallFailed: the kernel refuses; PrepareFailed: no effect."""
    if what == "thread-exit":
        assert isinstance(operation, InThread)
        start_ns = time.monotonic_ns()
        operation.end_thread()
        return time.monotonic_ns() - start_ns
    return {"madv-dontneed": _drop, "munmap": _unmap, "fork": _fork}[what](region)


def _drop(region: Region) -> int:
    start, size_bytes = _mapping(region)
    start_ns = time.monotonic_ns()
    libc.madvise(start, size_bytes, libc.MADV_DONTNEED)
    elapsed_ns = time.monotonic_ns() - start_ns
    present = sum(1 for word in pagemap.words(start, size_bytes) if word & pagemap.PRESENT)
    if present:
        raise PrepareFailed(f"{present} pages are still mapped after MADV_DONTNEED")
    return elapsed_ns


def _unmap(region: Region) -> int:
    """munmap, and the addresses reserved again at once, so that nothing else is mapped there.

    The region's owner, which will unmap the addresses once more, then unmaps what is its own.
    """
    start, size_bytes = _mapping(region)
    start_ns = time.monotonic_ns()
    libc.munmap(start, size_bytes)
    elapsed_ns = time.monotonic_ns() - start_ns
    reserved = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
    libc.mmap(start, size_bytes, libc.PROT_NONE, reserved | libc.MAP_FIXED_NOREPLACE)
    return elapsed_ns


def _fork(region: Region) -> int:
    """A child that has the memory too, writes to all of it where it may, and ends."""
    start_ns = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            if region.spec.prot == "rw":
                write_every_page(region)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    elapsed_ns = time.monotonic_ns() - start_ns
    if status:
        raise PrepareFailed(f"the forked process ended with status {status}")
    return elapsed_ns


def _mapping(region: Region) -> tuple[int, int]:
    return region.address - region.offset_bytes, region.mapped_bytes


class InThread:
    """An operation whose ``acquire`` runs in a thread of its own, which lives until it is ended."""

    # Only what transfers bytes inside its call has some; that holds nothing a thread could leave.
    done_bytes: int | None = None

    def __init__(self, operation: Operation):
        self._operation = operation
        self._thread: threading.Thread | None = None
        self._may_end = threading.Event()

    def aim_at(self, region: Any) -> None:
        self._operation.aim_at(region)

    def acquire(self) -> int:
        """What the thread's call took; the thread then waits."""
        answered = threading.Event()
        answer: list[int | Exception] = []
        self._may_end.clear()

        def work() -> None:
            answer.append(_result_of(self._operation.acquire))
            answered.set()
            self._may_end.wait()

        self._thread = threading.Thread(target=work)
        self._thread.start()
        answered.wait()
        if isinstance(answer[0], Exception):
            self.end_thread()
            raise answer[0]
        return answer[0]

    def release(self) -> int:
        elapsed_ns = self._operation.release()
        self.end_thread()
        return elapsed_ns

    def end_thread(self) -> None:
        """End it, where it lives, and wait until the kernel has no such task any more.

        Python's join returns a moment earlier.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._may_end.set()
        thread.join()
        deadline = time.monotonic() + _THREAD_DEADLINE_S
        while os.path.exists(f"/proc/self/task/{thread.native_id}"):
            if time.monotonic() > deadline:
                raise PrepareFailed(f"thread {thread.native_id} does not end")
            time.sleep(0.0005)


def _result_of(call: Callable[[], int]) -> int | Exception:
    try:
        return call()
    except Exception as error:  # raised again in the thread that waits for it
        return error
