"""``migrate-pages``: memory is moved to another NUMA node, and on to the next.

Its own, piece by piece, by move_pages(2); or that of the other processes of the load, all that each
has, by migrate_pages(2), of which the kernel does not tell how much it moved: then an act has no
bytes. What is pinned cannot move, and stays. See Documentation/mm/page_migration.rst.
"""

import itertools
import os
from time import monotonic_ns

import psutil

from telemetry import numa
from workloads import libc
from workloads.antagonists.act import (
    Acting,
    Done,
    die_first,
    fill,
    own_memory,
    parameters,
    size_bytes,
)
from workloads.load.engine import Engine, Work
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, PrepareFailed

# What one act moves of its own memory: some milliseconds, emulated too.
_PIECE_BYTES = 4 * MIB


def prepare(work: Work, owner: Owner) -> Engine:
    nodes = work.around.numa_nodes
    if len(nodes) < 2:
        raise PrepareFailed(f"memory moves between two nodes or more, and there is {nodes}")
    die_first()
    if parameters(work)["whose"] == "load":
        return _Others(work, nodes)
    size = size_bytes(work)
    _require_room(nodes, size)
    address = own_memory(size)
    owner.release_with("migrated memory", lambda: libc.munmap(address, size))
    fill(libc.view(address, size), work)
    pieces = [
        libc.Pages(list(range(first, first + length, PAGE_BYTES)))
        for first, length in libc.pieces(address, size, _PIECE_BYTES)
    ]
    # Every piece to the next node, then every piece to the one after that.
    turn = ((piece, node) for node in itertools.cycle((*nodes[1:], nodes[0])) for piece in pieces)

    def act() -> Done:
        piece, node = next(turn)
        start_ns = monotonic_ns()
        moved = piece.move(node)
        return monotonic_ns() - start_ns, moved * PAGE_BYTES

    return Acting(work, act)


def _require_room(nodes: tuple[int, ...], size: int) -> None:
    """Half of what is free on every node: the others of the load allocate there too."""
    for node in numa.read():
        if node.node in nodes and node.free_bytes is not None and 2 * size > node.free_bytes:
            raise PrepareFailed(
                f"node {node.node} has {node.free_bytes} bytes free, and twice the {size} that are"
                " to be moved there are wanted; give a smaller size"
            )


class _Others(Acting):
    """The memory of the load's other processes: an act takes all of them to the next node."""

    def __init__(self, work: Work, nodes: tuple[int, ...]):
        super().__init__(work, self._migrate)
        self._nodes = nodes
        self._turn = itertools.cycle((*nodes[1:], nodes[0]))
        self._pids: list[int] = []

    def open(self) -> None:
        """By now all workers of the load are there."""
        siblings = psutil.Process(os.getppid()).children()
        self._pids = [process.pid for process in siblings if process.pid != os.getpid()]
        if not self._pids:
            raise PrepareFailed(
                'the load has no other process whose memory could move; whose = "own"'
            )

    def _migrate(self) -> Done | None:
        target = next(self._turn)
        sources = [node for node in self._nodes if node != target]
        start_ns = monotonic_ns()
        for pid in self._pids:
            if self._work.stopped:
                return None
            _migrate_process(pid, sources, target)
        return monotonic_ns() - start_ns, 0


def _migrate_process(pid: int, sources: list[int], target: int) -> None:
    try:
        libc.migrate_pages(pid, sources, target)
    except CallFailed:
        # A worker that has done its count is gone, or has no memory any more.
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            raise
