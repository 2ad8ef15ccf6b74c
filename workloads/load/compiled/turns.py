"""An io_uring that is kept full: completions are taken, and their slots begun again."""

from errno import EINTR, ETIME

import numpy as np

from workloads import libc
from workloads.load.compiled import FAILED, OVER
from workloads.load.compiled.words import (
    BYTES,
    LONGS,
    LONGS32,
    ROWS,
    SECOND_NS,
    WORD,
    Bytes,
    Words,
    Words32,
    compiled,
    errno,
    from_c,
    now_ns,
)
from workloads.load.direct import PATIENCE_NS
from workloads.load.rings import SUBMISSION

# syscall(2): io_uring_enter has no function of its own in the C library.
_enter = from_c("syscall", WORD, WORD, WORD, WORD, WORD, WORD, WORD, WORD)
_NR_ENTER = libc.NR_IO_URING_ENTER
_WAITING = libc.IORING_ENTER_GETEVENTS | libc.IORING_ENTER_EXT_ARG
assert SUBMISSION.fields is not None
# Where an entry has the file's offset, in words.
_OFFSET_WORD = SUBMISSION.fields["offset"][1] // 8


@compiled()
def _submit(ring: int, count: int) -> int:
    """Without a wait: of so many the kernel took so many, or a negative errno."""
    entered = _enter(_NR_ENTER, ring, count, 0, 0, 0, 0)
    if entered >= 0:
        return entered
    return 0 if errno() == EINTR else -errno()


# The ring; its operations; when to stop; and how to wait.
_RING = (WORD, LONGS32, LONGS32, LONGS32, LONGS32, ROWS, ROWS, WORD)
_OPERATIONS = (WORD, LONGS, LONGS, LONGS)
_END = (BYTES, WORD)
_WAIT = (WORD, WORD, WORD, WORD, LONGS)


@compiled(*_RING, *_OPERATIONS, *_END, *_WAIT)
def turns(
    ring: int,
    submission_tail: Words32,
    completion_head: Words32,
    completion_tail: Words32,
    index: Words32,
    entries: Words,
    completions: Words,
    unsubmitted: int,
    size: int,
    offsets: Words,
    begun_ns: Words,
    latencies_ns: Words,
    stop: Bytes,
    until_ns: int,
    first: int,
    wait_for: int,
    argument: int,
    argument_bytes: int,
    limit: Words,
) -> tuple[int, int, int, int]:
    """Begin what completes anew, each slot at the next offset, until something else is to do.

    All slots are in flight, with operations of ``size`` bytes and of one kind, and there are as
    many offsets and latencies as slots at least. It returns, with nothing left to submit, when the
    time is over, when ``stop`` is set, and when fewer are left than slots; and at a completion of
    another result than ``size``, which it leaves, the first of the completion queue.

    Of what completed together the first ``first`` go to the device at once, then twice as many each
    time: one that tells of completions when it has run dry stands still until then. What is left
    goes with the wait, which is for ``wait_for`` completions.

    How many were begun anew; how many requests the kernel has not been told of; CLOCK_MONOTONIC of
    the latest completion; and OVER, FAILED, or the errno of io_uring_enter.
    """
    clock = np.empty(2, np.int64)
    head, tail = completion_head[0], submission_tail[0]
    last_completion = np.uint32(completions.shape[0] - 1)
    last_entry = np.uint32(index.size - 1)
    done = 0
    while True:
        seen_ns = now_ns(clock)
        ready = np.int64(np.uint32(completion_tail[0] - head))
        handed_ns, step = seen_ns, first
        for left in range(ready - 1, -1, -1):
            completion = completions[head & last_completion]
            if np.int32(completion[1]) != size:
                return done, unsubmitted, seen_ns, FAILED
            slot = completion[0]
            head = np.uint32(head + np.uint32(1))
            completion_head[0] = head
            latencies_ns[done] = seen_ns - begun_ns[slot]
            begun_ns[slot] = handed_ns
            entries[slot, _OFFSET_WORD] = offsets[done]
            index[tail & last_entry] = slot
            tail = np.uint32(tail + np.uint32(1))
            submission_tail[0] = tail
            done += 1
            unsubmitted += 1
            if left and unsubmitted >= step:
                entered = _submit(ring, unsubmitted)
                if entered < 0:
                    return done, unsubmitted, seen_ns, -entered
                unsubmitted -= entered
                handed_ns, step = now_ns(clock), 2 * step
        room = min(offsets.size, latencies_ns.size) - done
        if seen_ns >= until_ns or stop[0] or room < begun_ns.size:
            # What Python does then takes a while: the device has all of it before.
            entered = _submit(ring, unsubmitted)
            if entered < 0:
                return done, unsubmitted, seen_ns, -entered
            return done, unsubmitted - entered, seen_ns, OVER
        rest_ns = min(until_ns - seen_ns, PATIENCE_NS)
        limit[0], limit[1] = rest_ns // SECOND_NS, rest_ns % SECOND_NS
        entered = _enter(_NR_ENTER, ring, unsubmitted, wait_for, _WAITING, argument, argument_bytes)
        if entered >= 0:
            unsubmitted -= entered
        elif errno() != EINTR and errno() != ETIME:
            return done, unsubmitted, seen_ns, errno()
