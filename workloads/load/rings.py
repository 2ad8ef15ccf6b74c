"""The two queues of an io_uring, mapped and seen through numpy: many requests for one call.

Every request has a slot of its own, and the submission entry of slot i is entry i for as long as
the ring lives: the kernel's index array says which entries are new, so what does not change from
one request of a slot to the next is written once. An entry is used again only after its completion
was reaped, so the kernel has read it by then, SQPOLL or not.

Ordering: io_uring_enter orders what was written before it. An SQPOLL thread reads the tail at any
time; x86 makes stores visible in program order, and only there is it allowed. Completions are
written by this process in the kernel with DEFER_TASKRUN, and may else come from another CPU, in an
order that a compiled loop can rely on only there (``in_order``). See io_uring(7).
"""

import errno
import os
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads import libc
from workloads.owner import Owner
from workloads.spec import CallFailed, PrepareFailed

# struct io_uring_sqe and struct io_uring_cqe as libc has them; user_data and offset are signed, as
# numpy's indexes and ours are.
SUBMISSION = np.dtype(
    {
        "names": [
            "opcode",
            "flags",
            "fd",
            "offset",
            "address",
            "length",
            "user_data",
            "buffer_index",
        ],
        "formats": ["u1", "u1", "i4", "i8", "u8", "u4", "i8", "u2"],
        "offsets": [0, 1, 4, 8, 16, 24, 32, 40],
        "itemsize": libc.size_of(libc.IoUringSqe),
    }
)
COMPLETION = np.dtype(
    {
        "names": ["user_data", "result"],
        "formats": ["i8", "i4"],
        "offsets": [0, 8],
        "itemsize": libc.size_of(libc.IoUringCqe),
    }
)

Slots = NDArray[np.int64]
Results = NDArray[np.int32]

# Task work runs when this process waits, and interrupts nothing; else as late as may be; else as
# it comes. A kernel that does not know a flag answers EINVAL.
_WAYS = (
    libc.IORING_SETUP_SUBMIT_ALL
    | libc.IORING_SETUP_SINGLE_ISSUER
    | libc.IORING_SETUP_DEFER_TASKRUN,
    libc.IORING_SETUP_SUBMIT_ALL | libc.IORING_SETUP_COOP_TASKRUN,
    0,
)
_POLLED_WAYS = (
    libc.IORING_SETUP_SQPOLL | libc.IORING_SETUP_SUBMIT_ALL | libc.IORING_SETUP_SINGLE_ISSUER,
    libc.IORING_SETUP_SQPOLL,
)
_POLL_IDLE_MS = 1000
_STORES_IN_ORDER = ("x86_64", "AMD64", "i686")
_NONE = np.empty(0, np.int64)


class Rings:
    """An io_uring of ``slots`` requests. ``submissions[slot]`` is that slot's entry.

    Made and used by one thread.
    """

    def __init__(self, slots: int, owner: Owner, polled: bool = False) -> None:
        if polled and platform.machine() not in _STORES_IN_ORDER:
            raise PrepareFailed(
                f"sqpoll needs a processor that keeps stores in order, not {platform.machine()}:"
                " leave it out"
            )
        self.fd, params = _set_up(slots, _POLLED_WAYS if polled else _WAYS)
        owner.release_with("io_uring", lambda: os.close(self.fd))
        if not params.features & libc.IORING_FEAT_EXT_ARG:
            raise PrepareFailed("io_uring of this kernel cannot wait for a limited time: v5.11 can")
        submission, completion = params.sq_off, params.cq_off
        queues = self._map(
            max(
                submission.array_or_flags + 4 * params.sq_entries,
                completion.dropped_or_cqes + COMPLETION.itemsize * params.cq_entries,
            ),
            libc.IORING_OFF_SQ_RING,
            owner,
        )
        entries_bytes = SUBMISSION.itemsize * params.sq_entries
        entries = self._map(entries_bytes, libc.IORING_OFF_SQES, owner)
        entries_view = libc.view(entries, entries_bytes)
        self.submissions: NDArray[Any] = np.frombuffer(entries_view, SUBMISSION)
        self.submissions["user_data"] = np.arange(params.sq_entries)
        index_view = libc.view(queues + submission.array_or_flags, 4 * params.sq_entries)
        self._index: NDArray[np.uint32] = np.frombuffer(index_view, np.uint32)
        completed_view = libc.view(
            queues + completion.dropped_or_cqes, COMPLETION.itemsize * params.cq_entries
        )
        completed: NDArray[Any] = np.frombuffer(completed_view, COMPLETION)
        self._users: Slots = completed["user_data"]
        self._results: Results = completed["result"]
        self._tail_word = libc.word_at(queues + submission.tail)
        self._flags_word = libc.word_at(queues + submission.flags_or_overflow)
        self._head_word = libc.word_at(queues + completion.head)
        self._completed_word = libc.word_at(queues + completion.tail)
        self._tail, self._head = self._tail_word.value, self._head_word.value
        self._entries, self._completions = params.sq_entries, params.cq_entries
        self._polled = polled
        deferred = bool(params.flags & libc.IORING_SETUP_DEFER_TASKRUN)
        self.in_order = deferred or platform.machine() in _STORES_IN_ORDER
        self._wait = libc.IoUringWait(self.fd)
        self._limit_ns = -1
        self._unsubmitted = 0
        words = (self._tail_word, self._head_word, self._completed_word)
        self._memory = (
            self.fd,
            *(np.frombuffer(memoryview(word), np.uint32) for word in words),
            self._index,
            np.frombuffer(entries_view, np.int64).reshape(params.sq_entries, -1),
            np.frombuffer(completed_view, np.int64).reshape(params.cq_entries, -1),
        )

    @property
    def memory(self) -> tuple[Any, ...]:
        """The ring as a compiled loop takes it: see workloads.load.compiled.turns, and ``turned``.

        Descriptor; tail of the submissions, head and tail of the completions; the index array;
        entries and completions, a row of words each; how many the kernel has not been told of.
        """
        return (*self._memory, self._unsubmitted)

    @property
    def limited_wait(self) -> tuple[Any, ...]:
        """The same of a wait: the argument's address and bytes, and the words of its limit."""
        address, size_bytes, limit = self._wait.words
        return address, size_bytes, np.frombuffer(limit, np.int64)

    def _map(self, size_bytes: int, offset: int, owner: Owner) -> int:
        prot = libc.PROT_READ | libc.PROT_WRITE
        address = libc.mmap(0, size_bytes, prot, libc.MAP_SHARED, self.fd, offset)
        owner.release_with("io_uring queue", lambda: libc.munmap(address, size_bytes))
        return address

    def queue(self, slots: Slots) -> None:
        """Make the entries of these slots the next requests; ``enter`` submits them."""
        count = len(slots)
        start = self._tail & (self._entries - 1)
        end = start + count
        if end <= self._entries:
            self._index[start:end] = slots
        else:
            first = self._entries - start
            self._index[start:] = slots[:first]
            self._index[: count - first] = slots[first:]
        self._tail = (self._tail + count) & 0xFFFFFFFF
        self._tail_word.value = self._tail
        self._unsubmitted += count

    @property
    def ready(self) -> int:
        """How many completed and were not reaped."""
        return (self._completed_word.value - self._head) & 0xFFFFFFFF

    def turned(self, count: int, unsubmitted: int) -> None:
        """A compiled loop took so many completions of ``memory``, and made as many requests."""
        self._head = (self._head + count) & 0xFFFFFFFF
        self._tail = (self._tail + count) & 0xFFFFFFFF
        self._unsubmitted = unsubmitted
        self._limit_ns = -1

    @property
    def flags(self) -> int:
        """What the kernel says of its side: IORING_SQ_NEED_WAKEUP."""
        return self._flags_word.value

    @property
    def unsubmitted(self) -> int:
        """Queued requests that the kernel has not been told of."""
        return self._unsubmitted

    def submit(self, most: int) -> None:
        """Hand the kernel so many of what is queued, and go on. CallFailed."""
        if self._polled:
            self._unsubmitted = 0
            if self._flags_word.value & libc.IORING_SQ_NEED_WAKEUP:
                self.enter(0, 0)
            return
        entered = libc.io_uring_enter(self.fd, most, 0, 0)
        if entered >= 0:
            self._unsubmitted -= entered
        elif (number := libc.last_errno()) != errno.EINTR:
            raise CallFailed("io_uring_enter", number)

    def enter(self, wait_for: int, limit_ns: int) -> None:
        """Submit all that is queued, and wait for completions, but no longer than that.

        CallFailed. Which requests failed their results tell.
        """
        flags = libc.IORING_ENTER_GETEVENTS
        if self._polled:
            # The thread may have gone to sleep in the very moment in which the tail was moved: the
            # kernel looks once more before it does, and every wait of ours has a limit.
            if self._flags_word.value & libc.IORING_SQ_NEED_WAKEUP:
                flags |= libc.IORING_ENTER_SQ_WAKEUP
            self._unsubmitted = 0
        if limit_ns != self._limit_ns:
            self._limit_ns = limit_ns
            self._wait.limit_to(limit_ns)
        entered = self._wait.enter(self._unsubmitted, wait_for, flags)
        if entered >= 0:
            self._unsubmitted -= entered if not self._polled else 0
        elif (number := libc.last_errno()) not in (errno.ETIME, errno.EINTR):
            raise CallFailed("io_uring_enter", number)

    def reap(self, count: int) -> tuple[Slots, Results]:
        """The slots of so many completions (of those ``ready``), and the result of each; copies."""
        head = self._head
        if not count:
            return _NONE, _NONE  # type: ignore[return-value]
        start = head & (self._completions - 1)
        end = start + count
        if end <= self._completions:
            slots, results = self._users[start:end].copy(), self._results[start:end].copy()
        else:
            rest = end - self._completions
            slots = np.concatenate((self._users[start:], self._users[:rest]))
            results = np.concatenate((self._results[start:], self._results[:rest]))
        self._head = (head + count) & 0xFFFFFFFF
        self._head_word.value = self._head
        return slots, results


def _set_up(slots: int, ways: tuple[int, ...]) -> tuple[int, libc.IoUringParams]:
    """A ring in the first of these ways that the kernel knows."""
    for flags in ways:
        params = libc.IoUringParams(flags=flags, sq_thread_idle=_POLL_IDLE_MS)
        try:
            return libc.io_uring_setup(slots, params), params
        except CallFailed as error:
            if error.errno != errno.EINVAL or flags == ways[-1]:
                raise
    raise AssertionError("no way to set up a ring")
