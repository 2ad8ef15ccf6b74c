"""What the engines of direct IO have in common: memory in slots, target, operations, integrity."""

import errno
import math

import numpy as np
from numpy.typing import NDArray

import workloads
from workloads import memory
from workloads.load.engine import Work
from workloads.load.integrity import Blocks, Integrity
from workloads.load.pattern import Operations, write_share
from workloads.load.target import LAID_OUT, laid_out, new_target
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, MemorySpec, PrepareFailed

# The finest that every device can address; what is finer is not laid out in blocks of its own.
_FINEST_BYTES = 512
# How long an engine may be busy or asleep before it looks at the stop byte.
PATIENCE_NS = 50_000_000
KINDS = ("read", "write")


class Direct:
    """One process's share of a job of direct IO.

    ``slots``: operations that can be in flight, each with ``slot_bytes`` of the region.
    ``pages[size, slot]``: pages that the kernel takes for an operation of that size.
    """

    def __init__(self, work: Work, slots: int, owner: Owner):
        job = self.job = work.job
        self.work = work
        self.slots = slots
        self.slot_bytes = job.largest_bytes
        self.sizes = np.array([size for size, _ in job.sizes], np.int64)
        self.write_share = write_share(job)
        spec = workloads.memory_spec(job.memory)
        if job.verify:
            _require_verifiable(spec)
        generator = work.generator()
        blocks = Blocks(_grain_bytes(job.sizes, job.verify), int(generator.integers(1 << 62)))
        self.file_bytes = job.file_bytes // blocks.grain_bytes * blocks.grain_bytes
        self.operations = Operations(job, self.file_bytes, generator)
        self.region = memory.prepare(spec, self.slot_bytes * slots, work.around, owner)
        self.addresses = self.region.address + np.arange(slots) * self.slot_bytes
        ends = (self.addresses % PAGE_BYTES)[np.newaxis] + self.sizes[:, np.newaxis]
        self.pages = -(-ends // PAGE_BYTES)
        if self.write_share and _own_and_writable(spec):
            self._fill(generator)
        self.target = _target(work, self.file_bytes, blocks, owner)
        self.integrity: Integrity | None = None
        if job.verify:
            rows = np.frombuffer(self.region.buffer, np.uint8, self.slot_bytes * slots)
            self.integrity = Integrity(
                blocks, self.file_bytes, rows.reshape(slots, self.slot_bytes)
            )

    def _fill(self, generator: np.random.Generator) -> None:
        """Bytes that no device can make smaller: a write of zeros may be no write."""
        part_bytes = PAGE_BYTES * 256
        size_bytes = self.slot_bytes * self.slots
        for start in range(0, size_bytes, part_bytes):
            length = min(part_bytes, size_bytes - start)
            self.region.buffer[start : start + length] = generator.bytes(length)

    def refuse(self, call: str, result: int, size: int, write: bool, offset: int) -> None:
        """An operation that moved too little (``result``) or failed (a negative errno).

        Counted where the job allows that errno, and else raised. A short one counts as EIO.
        """
        detail = f"{KINDS[write]} of {size} bytes at offset {offset} of the target"
        if result >= 0:
            detail += f" moved {result}"
        number = errno.EIO if result >= 0 else -result
        self.work.recorder.refuse(CallFailed(call, number, detail))

    def note(self, latencies_ns: NDArray[np.int64], writes: NDArray[np.bool_]) -> None:
        """Latencies of operations, of which these were writes."""
        if 0.0 < self.write_share < 1.0:
            self.work.recorder.note("read", latencies_ns[~writes])
            self.work.recorder.note("write", latencies_ns[writes])
        else:
            self.work.recorder.note(KINDS[self.write_share == 1.0], latencies_ns)


def _target(work: Work, file_bytes: int, blocks: Blocks, owner: Owner) -> int:
    scratch = work.around.scratch
    if path := scratch.get(LAID_OUT):
        return laid_out(path, owner)
    return new_target(scratch["target"], file_bytes, blocks, owner, lambda: work.stopped)


def _grain_bytes(sizes: tuple[tuple[int, float], ...], verify: bool) -> int:
    grain = math.gcd(*(size for size, _ in sizes))
    # A size that direct IO refuses is the job's own affair, as long as nothing is to be verified.
    return grain if verify or grain % _FINEST_BYTES == 0 else PAGE_BYTES


def _own_and_writable(spec: MemorySpec) -> bool:
    return spec.prot == "rw" and spec.extent == "whole" and spec.present == "own"


def _require_verifiable(spec: MemorySpec) -> None:
    if spec.prot != "rw" or spec.extent != "whole" or spec.one_page:
        raise PrepareFailed(
            f"memory {spec.name} cannot hold the blocks that verify compares: leave verify out,"
            " or take memory that can be read and written as a whole"
        )
