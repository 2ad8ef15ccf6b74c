"""``fork-storm``: children that write to memory they share with their parent, and end.

Each fork copies the page tables and makes the parent's memory copy-on-write; what a child writes to
is copied. So many live at a time as ``alive`` says, and together they copy no more than the parent
has. A child ends with its parent, however that ends.
"""

import os
import signal
from contextlib import suppress
from time import monotonic_ns

from workloads import libc
from workloads.antagonists.act import (
    Acting,
    Done,
    die_first,
    fill,
    own_memory,
    parameters,
    size_bytes,
    touch,
)
from workloads.load.engine import Engine, Work
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, PrepareFailed


def prepare(work: Work, owner: Owner) -> Engine:
    alive = int(parameters(work)["alive"])
    if alive < 1:
        raise PrepareFailed(f"alive is {alive}: give 1 or more")
    die_first()
    size = size_bytes(work)
    address = own_memory(size)
    owner.release_with("memory that is forked", lambda: libc.munmap(address, size))
    memory = libc.view(address, size)
    fill(memory, work)
    storm = _Storm(work, memory, alive)
    owner.release_with("forked children", storm.end)
    return storm


class _Storm(Acting):
    """An act is one child, from its fork until it is reaped."""

    def __init__(self, work: Work, memory: memoryview, alive: int):
        super().__init__(work, self._fork_and_reap)
        self._alive = alive
        share = max(1, len(memory) // PAGE_BYTES // alive) * PAGE_BYTES
        self._shared = memory[:share]
        # pid -> when it was forked, oldest first
        self._children: dict[int, int] = {}

    def drain(self) -> None:
        """The last children are not counted: the acts of the load are over."""
        self.end()

    def end(self) -> None:
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
            del self._children[pid]

    def _fork_and_reap(self) -> Done | None:
        """Fork another; once as many live as may, wait for the oldest."""
        parent, forked_ns = os.getpid(), monotonic_ns()
        with libc.refusal_of("fork"):
            pid = os.fork()
        if pid == 0:
            self._be_child(parent)
        self._children[pid] = forked_ns
        if len(self._children) < self._alive:
            return None
        oldest, forked_ns = next(iter(self._children.items()))
        _, status = os.waitpid(oldest, 0)
        elapsed_ns = monotonic_ns() - forked_ns
        del self._children[oldest]
        if status and not self._work.stopped:
            raise PrepareFailed(f"a forked child ended with status {status}")
        return elapsed_ns, len(self._shared)

    def _be_child(self, parent: int) -> None:
        code = 70
        try:
            libc.die_with_parent()
            if os.getppid() == parent:  # it may have ended before it could be followed
                touch(self._shared, self._work)
            code = 0
        finally:
            os._exit(code)
