"""Direct IO through io_uring, ``depth`` operations in flight.

A slot is a part of the memory, an entry of the submission queue and, with ``registered``, a
registered buffer.

Where all operations are alike and may begin at any time, the turns between two looks at what else
is to do are compiled: see workloads.load.compiled.turns. All others go in arrays, and so do those
of SQPOLL: free slots are filled and handed to the kernel together, completions are taken as they
come, and every cost of ours is for a batch and not for an operation. How many completions are worth
waking up for is found by trying: see workloads.load.chunk.
"""

from time import monotonic_ns

import numpy as np
from numpy.typing import NDArray

from workloads import libc
from workloads.load import compiled
from workloads.load.chunk import Chunk
from workloads.load.direct import PATIENCE_NS, Direct
from workloads.load.engine import Work
from workloads.load.rings import Results, Rings, Slots
from workloads.owner import Owner
from workloads.spec import CallFailed

_LATENCIES = 2048
# After which a compiled loop looks up.
_LOOK_NS = 20_000_000
_NO_SLOTS: Slots = np.empty(0, np.int64)
_CALL = "io_uring_enter"
_TURNS = compiled.loop("turns")


def prepare(work: Work, owner: Owner) -> "Uring":
    direct = Direct(work, work.job.depth, owner)
    return Uring(direct, Rings(direct.slots, owner, polled=work.job.sqpoll), owner)


class Uring:
    """Operations of one process through one ring."""

    def __init__(self, direct: Direct, rings: Rings, owner: Owner):
        self._direct, self.rings, self._work = direct, rings, direct.work
        job, slots = direct.job, direct.slots
        self._registered = False
        owner.release_with("registered buffers", self.close)
        self._left = job.count
        self._free: Slots = np.arange(slots)
        self._in_flight = 0
        self._done = 0
        self._chosen = np.zeros(slots, np.int64)
        self._writes = np.full(slots, direct.write_share == 1.0)
        self._started_ns = np.zeros(slots, np.int64)
        self._ready_ns = np.zeros(slots, np.int64)
        self._uniform = direct.operations.uniform
        self._paced = not self._work.pace.unlimited or self._left is not None
        # The last so many are for what a compiled loop stopped at.
        self._most_latencies = _LATENCIES + slots
        self._latencies = np.empty(self._most_latencies + slots, np.int64)
        self._noted_writes = np.empty(self._most_latencies + slots, np.bool_)
        self._noted = 0
        self._stop_byte = np.frombuffer(direct.work.stop, np.uint8)
        self._rest_ns = PATIENCE_NS
        self._opcodes = np.array([libc.IORING_OP_READ, libc.IORING_OP_WRITE], np.uint8)
        if job.registered:
            self._opcodes[:] = libc.IORING_OP_READ_FIXED, libc.IORING_OP_WRITE_FIXED
        self._entries = rings.submissions[:slots]
        self._entry_offsets = self._entries["offset"]
        self._fill_entries()
        if job.registered:
            # Pins nothing, and ends with the ring.
            libc.io_uring_register_files(rings.fd, [direct.target])
        self._whole = np.full(slots, direct.sizes[0], np.int32).tobytes()
        self._size = int(direct.sizes[0])
        # A registered buffer's pages were pinned when it was registered.
        self._pages = direct.pages * (0 if job.registered else 1)
        # How many pages each operation pins, where that and its size are the same for all of them.
        same = self._uniform and bool((self._pages[0] == self._pages[0, 0]).all())
        self._same_pages = int(self._pages[0, 0]) if same else None
        # Whether the compiled loop can turn them. An SQPOLL thread reads the tail at any time, and
        # a compiler may write it before what it is about.
        plain = same and not self._paced and direct.integrity is None
        self._alike = _TURNS is not None and plain and not job.sqpoll and rings.in_order
        self._chunk = Chunk(slots)

    @property
    def target(self) -> int:
        """The descriptor of the file."""
        return self._direct.target

    def _fill_entries(self) -> None:
        """What is the same in every operation of a slot."""
        entries, job = self._entries, self._direct.job
        entries["address"] = self._direct.addresses
        entries["opcode"] = self._opcodes[self._writes.astype(np.int64)]
        entries["length"] = self._direct.sizes[0]
        entries["fd"] = 0 if job.registered else self._direct.target
        if job.registered:
            entries["flags"] = libc.IOSQE_FIXED_FILE
            entries["buffer_index"] = np.arange(len(entries))

    def open(self) -> None:
        """Register each slot's memory as a buffer, where the job says so."""
        if not self._direct.job.registered:
            return
        slot_bytes = self._direct.slot_bytes
        buffers = libc.iovecs(
            [(address, slot_bytes) for address in self._direct.addresses.tolist()]
        )
        opcode = libc.IORING_REGISTER_BUFFERS
        result = libc.io_uring_register(self.rings.fd, opcode, buffers, len(buffers))
        libc.check("io_uring_register", result)
        self._registered = True

    def close(self) -> None:
        """Give the registered buffers back."""
        if self._registered:
            self._registered = False
            opcode = libc.IORING_UNREGISTER_BUFFERS
            result = libc.io_uring_register(self.rings.fd, opcode, None, 0)
            libc.check("io_uring_register", result)

    def run(self, until_ns: int) -> bool:
        stop, now_ns = self._work.stop, monotonic_ns()
        self._chunk.begin(now_ns, self._done)
        try:
            while now_ns < until_ns and not stop[0]:
                if self._alike and not len(self._free):
                    self._turn_compiled(min(until_ns, now_ns + _LOOK_NS))
                    self._look_ahead()
                else:
                    self._turn(now_ns)
                    if not self._in_flight and self._left == 0:
                        return False
                    self._look_ahead()
                    self._wait(until_ns - now_ns)
                now_ns = monotonic_ns()
        finally:
            self._note()
        return self._in_flight > 0 or self._left != 0

    def _look_ahead(self) -> None:
        """What takes a while is done when the device has all it can have."""
        operations, slots = self._direct.operations, self._direct.slots
        if self._noted >= _LATENCIES or operations.ahead < slots:
            self.rings.enter(0, 0)
            self._note()
            operations.look_ahead(slots)

    def _wait(self, limit_ns: int) -> None:
        """For completions, or until something may begin; not longer than that."""
        count = 1
        if self._work.pace.unlimited:
            count = min(self._chunk.wait, self._in_flight) or 1
        self.rings.enter(count, min(self._rest_ns, limit_ns))

    def drain(self) -> None:
        while self._in_flight:
            self.rings.enter(self._in_flight, PATIENCE_NS)
            slots, results = self.rings.reap(self.rings.ready)
            self._end(slots, results, monotonic_ns())
        self._note()

    # -- one batch -----------------------------------------------------------------------------

    def _turn_compiled(self, until_ns: int) -> None:
        """Many turns of operations of one kind, until then or until Python has something to do."""
        assert _TURNS is not None
        rings, chunk, slots = self.rings, self._chunk, self._direct.slots
        done, unsubmitted, now_ns, end = _TURNS(
            *rings.memory,
            self._size,
            self._direct.operations.at_hand,
            self._started_ns,
            self._latencies[self._noted : self._most_latencies],
            self._stop_byte,
            until_ns,
            1 if chunk.size < slots else slots,
            chunk.wait,
            *rings.limited_wait,
        )
        rings.turned(done, unsubmitted)
        self._direct.operations.take(done)
        self._noted += done
        self._counted(done, now_ns)
        if end == compiled.FAILED:
            # What is queued then is of that turn alone.
            rings.enter(0, 0)
            self._turn(monotonic_ns())
        elif end != compiled.OVER:
            raise CallFailed(_CALL, end)

    def _submit(self, chunk: int, count: int) -> int | NDArray[np.int64]:
        """All that is queued but the last chunk, which goes with the wait; when the last ``count``
        of it was.

        So many first, then twice as many each time: by then the device has more to do.
        """
        rings = self.rings
        begun_ns = monotonic_ns()
        if rings.unsubmitted <= chunk:
            return begun_ns
        times_ns, counts = [begun_ns], [rings.unsubmitted]
        while counts[-1] > chunk:
            left = counts.pop()
            rings.submit(chunk)
            counts += [left - rings.unsubmitted, rings.unsubmitted]
            times_ns.append(monotonic_ns())
            chunk *= 2
        moments_ns = np.repeat(times_ns, counts)
        return moments_ns[len(moments_ns) - count :]

    def _turn(self, now_ns: int) -> None:
        """Take what completed by now; begin operations of any kind in as many slots as may be."""
        slots, results = self.rings.reap(self.rings.ready)
        if len(slots):
            self._end(slots, results, now_ns)
        slots, self._free = self._due(now_ns)
        if len(slots):
            slots = self._fill(slots)
        self._work.pace.begun(len(slots))
        if self._left is not None:
            self._left -= len(slots)
        self._in_flight += len(slots)
        self.rings.queue(slots)
        self._started_ns[slots] = self._submit(self._chunk.size, len(slots))

    def _fill(self, slots: Slots) -> Slots:
        """Operations of several kinds into these slots; those that could be begun."""
        operations, integrity = self._direct.operations, self._direct.integrity
        draw = operations.take(len(slots))
        if integrity is not None:
            lengths = self._direct.sizes[draw.sizes]
            count = integrity.clear(draw.offsets, lengths, draw.writes)
            operations.give_back(len(slots) - count)
            self._free = np.concatenate((slots[count:], self._free))
            slots, draw = slots[:count], draw.part(0, count)
            integrity.begin(slots, draw.offsets, lengths[:count], draw.writes)
        self._chosen[slots] = draw.sizes
        self._writes[slots] = draw.writes
        self._entry_offsets[slots] = draw.offsets
        self._entries["length"][slots] = self._direct.sizes[draw.sizes]
        self._entries["opcode"][slots] = self._opcodes[draw.writes.astype(np.int64)]
        return slots

    def _due(self, now_ns: int) -> tuple[Slots, Slots]:
        """The free slots in which operations may begin now, and the others."""
        pace, free = self._work.pace, self._free
        self._rest_ns = PATIENCE_NS
        later = _NO_SLOTS
        if pace.think_ns:
            ready = self._ready_ns[free] <= now_ns
            free, later = free[ready], free[~ready]
            if len(later):
                self._rest_until(int(self._ready_ns[later].min()), now_ns)
        count = min(len(free), pace.due(now_ns))
        if self._left is not None:
            count = min(count, self._left)
        if count < len(free) and self._left != 0:
            self._rest_until(pace.next_ns(now_ns), now_ns)
        return free[:count], np.concatenate((free[count:], later))

    def _rest_until(self, moment_ns: int, now_ns: int) -> None:
        """Something may begin then: no wait is to last longer."""
        self._rest_ns = min(self._rest_ns, max(0, moment_ns - now_ns))

    def _end(self, slots: Slots, results: Results, now_ns: int) -> None:
        """These completed by now: count and check them; the slots are free."""
        count = len(slots)
        self._in_flight -= count
        self._free = np.concatenate((self._free, slots)) if len(self._free) else slots
        if self._paced:
            self._ready_ns[slots] = now_ns + self._work.pace.think_ns
        if self._uniform and results.tobytes() == self._whole[: 4 * count]:
            self._count(slots, now_ns)
            if self._direct.integrity is not None:
                self._work.recorder.verified += self._direct.integrity.end(slots)
        else:
            self._end_each(slots, results, now_ns)

    def _end_each(self, slots: Slots, results: Results, now_ns: int) -> None:
        """The same, where not all that completed are alike, or one of them failed."""
        integrity = self._direct.integrity
        whole = results == self._direct.sizes[self._chosen[slots]]
        self._count(slots[whole], now_ns)
        if integrity is not None:
            self._work.recorder.verified += integrity.end(slots[whole])
        if whole.all():
            return
        failed, moved = slots[~whole].tolist(), results[~whole].tolist()
        if integrity is not None:
            for slot in failed:
                integrity.refused(slot)
        for slot, result in zip(failed, moved, strict=True):
            size, write = int(self._entries["length"][slot]), bool(self._writes[slot])
            self._direct.refuse(_CALL, result, size, write, int(self._entry_offsets[slot]))

    def _count(self, slots: Slots, now_ns: int) -> None:
        recorder, count = self._work.recorder, len(slots)
        self._counted(count, now_ns)
        start, end = self._noted, self._noted + count
        np.subtract(now_ns, self._started_ns[slots], out=self._latencies[start:end])
        self._noted = end
        if self._same_pages is not None:
            return
        chosen = self._chosen[slots]
        recorder.bytes += int(self._direct.sizes[chosen].sum())
        recorder.pins += int(self._pages[chosen, slots].sum())
        self._noted_writes[start:end] = self._writes[slots]

    def _counted(self, count: int, now_ns: int) -> None:
        """Operations, and what they moved and pinned where that is the same for all of them."""
        recorder = self._work.recorder
        recorder.operations += count
        self._done += count
        self._chunk.look(now_ns, self._done)
        if self._same_pages is not None:
            recorder.bytes += count * self._size
            recorder.pins += count * self._same_pages

    def _note(self) -> None:
        """Hand the latencies on, many at a time."""
        noted, self._noted = self._noted, 0
        self._direct.note(self._latencies[:noted], self._noted_writes[:noted])
