"""An io_uring with one request at a time: submit it, wait for it, read its result.

No IOSQE_ASYNC and no SQPOLL, so that the submitting process itself issues the request. Where the
file cannot serve it without blocking, the kernel hands it to a worker thread of the process (io-wq)
all the same; the pins then belong to that thread. See io_uring(7).
"""

import os

from workloads import libc
from workloads.owner import Owner

SUBMISSION_BYTES = libc.size_of(libc.IoUringSqe)


class Ring:
    """Both queues mapped, one entry each in use. ``fd`` is the ring's file descriptor."""

    def __init__(self, owner: Owner) -> None:
        params = libc.IoUringParams()
        self.fd = libc.io_uring_setup(1, params)
        owner.release_with("io_uring", lambda: os.close(self.fd))
        submission, completion = params.sq_off, params.cq_off
        queues = self._map(
            max(
                submission.array_or_flags + 4 * params.sq_entries,
                completion.dropped_or_cqes + libc.size_of(libc.IoUringCqe) * params.cq_entries,
            ),
            libc.IORING_OFF_SQ_RING,
            owner,
        )
        slot = self._map(SUBMISSION_BYTES, libc.IORING_OFF_SQES, owner)
        self._slot = libc.view(slot, SUBMISSION_BYTES)
        self._submitted = libc.word_at(queues + submission.tail)
        self._consumed = libc.word_at(queues + completion.head)
        self._completed = libc.word_at(queues + completion.tail)
        self._last = params.cq_entries - 1
        self._completions = (libc.IoUringCqe * params.cq_entries).from_address(
            queues + completion.dropped_or_cqes
        )

    def _map(self, size_bytes: int, offset: int, owner: Owner) -> int:
        prot = libc.PROT_READ | libc.PROT_WRITE
        address = libc.mmap(0, size_bytes, prot, libc.MAP_SHARED, self.fd, offset)
        owner.release_with("io_uring queue", lambda: libc.munmap(address, size_bytes))
        return address

    @property
    def has_completed(self) -> bool:
        """Whether a completion waits that nobody has read."""
        return bool(self._completed.value != self._consumed.value)

    def run(self, request: bytes) -> int:
        """What the request gave: a count of bytes, or an errno's negative. OSError: no request ran.

        The kernel orders its own accesses to the queues around io_uring_enter.
        """
        self._slot[:] = request
        self._submitted.value += 1
        submit = 1
        while self._completed.value == self._consumed.value:
            entered = libc.io_uring_enter(self.fd, submit, 1, libc.IORING_ENTER_GETEVENTS)
            if entered < 0:
                number = libc.last_errno()
                raise OSError(number, os.strerror(number))
            submit -= entered
        result: int = self._completions[self._consumed.value & self._last].result
        self._consumed.value += 1
        return result


def request(opcode: int, fd: int, offset: int, address: int, length: int, buffer: int = 0) -> bytes:
    """A read or write of ``length`` bytes; ``buffer`` is the index of the registered one."""
    return bytes(
        libc.IoUringSqe(
            opcode=opcode,
            fd=fd,
            offset=offset,
            address=address,
            length=length,
            buffer_index=buffer,
        )
    )
