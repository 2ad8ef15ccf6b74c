"""What a block holds, and which damage to it is found."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from workloads.load.engine import Mismatch
from workloads.load.integrity import Blocks, Integrity
from workloads.spec import PrepareFailed

GRAIN = 4096
BLOCKS = 64
SLOTS = 4
READ, WRITE = False, True


class Target:
    """A file in memory, and operations between it and the slots: a device that always works."""

    def __init__(self, grain_bytes: int = GRAIN, slot_bytes: int = 4 * GRAIN):
        self.blocks = Blocks(grain_bytes, seed=7)
        numbers = np.arange(BLOCKS * GRAIN // grain_bytes)
        made = self.blocks.made(numbers, np.ones_like(numbers))
        self.file = made.view(np.uint8).reshape(-1).copy()
        self.memory = np.zeros((SLOTS, slot_bytes), np.uint8)
        self.integrity = Integrity(self.blocks, len(self.file), self.memory)

    def begin(self, slot: int, offset: int, length: int, write: bool) -> None:
        arguments = [np.array([value]) for value in (slot, offset, length)]
        self.integrity.begin(*arguments, np.array([write]))

    def move(self, slot: int, offset: int, length: int, write: bool) -> None:
        file, memory = self.file[offset : offset + length], self.memory[slot, :length]
        if write:
            file[:] = memory
        else:
            memory[:] = file

    def end(self, *slots: int) -> int:
        return self.integrity.end(np.array(slots))

    def run(self, offset: int, length: int, write: bool, slot: int = 0) -> int:
        self.begin(slot, offset, length, write)
        self.move(slot, offset, length, write)
        return self.end(slot)

    def block(self, number: int) -> NDArray[np.uint8]:
        return self.file[number * GRAIN : (number + 1) * GRAIN]


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.mark.parametrize("grain_bytes", [512, 4096, 12288])
def test_what_was_laid_out_is_right(grain_bytes: int) -> None:
    target = Target(grain_bytes, 2 * grain_bytes)
    assert target.run(0, grain_bytes, READ) == grain_bytes
    assert target.run(grain_bytes, 2 * grain_bytes, READ) == 2 * grain_bytes


def test_what_was_written_is_right(target: Target) -> None:
    for _ in range(3):
        assert target.run(8 * GRAIN, 2 * GRAIN, WRITE) == 0
    assert target.run(6 * GRAIN, 4 * GRAIN, READ) == 4 * GRAIN


def test_several_operations_of_all_kinds_end_together(target: Target) -> None:
    lengths = [GRAIN, 4 * GRAIN, GRAIN, 2 * GRAIN]
    offsets = [0, 4 * GRAIN, 9 * GRAIN, 20 * GRAIN]
    writes = [READ, WRITE, WRITE, READ]
    columns = [np.array(column) for column in ([0, 1, 2, 3], offsets, lengths, writes)]
    target.integrity.begin(*columns)
    for slot, (offset, length, write) in enumerate(zip(offsets, lengths, writes, strict=True)):
        target.move(slot, offset, length, write)
    assert target.end(0, 1, 2, 3) == 3 * GRAIN
    assert target.run(4 * GRAIN, 4 * GRAIN, READ) == 4 * GRAIN


@pytest.mark.parametrize("byte", [0, 8, 16, 23, 24, 511, 512, 2048, GRAIN - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_found(target: Target, byte: int, bit: int) -> None:
    """In the header, the checksum itself and the payload; the message has the block's offset."""
    target.block(5)[byte] ^= 1 << bit
    with pytest.raises(Mismatch, match=f"offset {5 * GRAIN} of the target: expected generation 1"):
        target.run(4 * GRAIN, 4 * GRAIN, READ)


def test_the_block_of_another_offset(target: Target) -> None:
    target.block(5)[:] = target.block(9)
    with pytest.raises(Mismatch, match=f"{5 * GRAIN} .* it is the block of offset {9 * GRAIN}"):
        target.run(5 * GRAIN, GRAIN, READ)


def test_a_lost_write(target: Target) -> None:
    """The device said that it was written, and has the old block."""
    target.begin(0, 5 * GRAIN, GRAIN, WRITE)
    target.end(0)
    told = f"{5 * GRAIN} .*expected generation 2, found 1: an older write"
    with pytest.raises(Mismatch, match=told):
        target.run(5 * GRAIN, GRAIN, READ)


def test_a_write_that_comes_late(target: Target) -> None:
    target.run(5 * GRAIN, GRAIN, WRITE)
    old = target.block(5).copy()
    target.run(5 * GRAIN, GRAIN, WRITE)
    target.run(5 * GRAIN, GRAIN, READ)
    target.block(5)[:] = old
    with pytest.raises(Mismatch, match="expected generation 3, found 2: an older write"):
        target.run(5 * GRAIN, GRAIN, READ)


def test_half_a_write(target: Target) -> None:
    """The first sector, header and all, is the new one; or the last one is."""
    for first, last in ((0, 512), (GRAIN - 512, GRAIN)):
        target.begin(0, 5 * GRAIN, GRAIN, WRITE)
        target.block(5)[first:last] = target.memory[0, first:last]
        target.end(0)
        with pytest.raises(Mismatch, match="its bytes do not fit its checksum"):
            target.run(5 * GRAIN, GRAIN, READ)
        target.run(5 * GRAIN, GRAIN, WRITE)
        target.run(5 * GRAIN, GRAIN, READ)


def test_two_words_in_each_others_place(target: Target) -> None:
    words = target.block(5).view(np.uint64)
    words[[100, 200]] = words[[200, 100]]
    with pytest.raises(Mismatch, match="its bytes do not fit"):
        target.run(5 * GRAIN, GRAIN, READ)


def test_zeros_are_no_block(target: Target) -> None:
    target.block(0)[:] = 0
    with pytest.raises(Mismatch, match="offset 0 of the target: expected generation 1, found 0"):
        target.run(0, GRAIN, READ)


def test_a_read_that_does_not_arrive(target: Target) -> None:
    """The memory still holds the right block, of the read before: it is not taken for the new."""
    target.run(5 * GRAIN, GRAIN, READ)
    target.begin(0, 5 * GRAIN, GRAIN, READ)
    with pytest.raises(Mismatch, match=f"{5 * GRAIN} .*found none: the read wrote nothing"):
        target.end(0)


def test_of_several_bad_ones_the_first_is_told(target: Target) -> None:
    for number in (6, 7):
        target.block(number)[100] ^= 1
    with pytest.raises(Mismatch, match=f"offset {6 * GRAIN} "):
        target.run(4 * GRAIN, 4 * GRAIN, READ)


def test_a_refused_write_may_have_written_or_not(target: Target) -> None:
    """Then nothing is known of the blocks, and of the next write all is."""
    for arrived in (0, 100, GRAIN):
        target.begin(0, 5 * GRAIN, GRAIN, WRITE)
        target.block(5)[:arrived] = target.memory[0, :arrived]
        target.integrity.refused(0)
        assert target.run(4 * GRAIN, 2 * GRAIN, READ) == GRAIN
    target.run(5 * GRAIN, GRAIN, WRITE)
    assert target.run(5 * GRAIN, GRAIN, READ) == GRAIN
    target.block(5)[0] ^= 1
    with pytest.raises(Mismatch):
        target.run(5 * GRAIN, GRAIN, READ)


def test_a_refused_read_changes_nothing(target: Target) -> None:
    target.begin(0, 0, GRAIN, READ)
    target.integrity.refused(0)
    assert target.run(0, GRAIN, READ) == GRAIN


def test_a_cancelled_write_was_not_written(target: Target) -> None:
    target.begin(0, 0, GRAIN, WRITE)
    target.integrity.cancel(np.array([0]))
    assert target.run(0, GRAIN, READ) == GRAIN


def clear(target: Target, *wanted: tuple[int, int, bool]) -> int:
    offsets, lengths, writes = (np.array(column) for column in zip(*wanted, strict=True))
    return target.integrity.clear(offsets * GRAIN, lengths * GRAIN, writes)


def test_what_overlaps_a_write_waits(target: Target) -> None:
    target.begin(0, 4 * GRAIN, 2 * GRAIN, WRITE)
    target.begin(1, 10 * GRAIN, 2 * GRAIN, READ)
    assert clear(target, (3, 1, READ), (6, 1, WRITE), (10, 1, READ), (5, 1, READ)) == 3
    assert clear(target, (5, 1, WRITE)) == 0
    assert clear(target, (3, 2, READ)) == 0
    assert clear(target, (11, 1, WRITE)) == 0
    target.move(0, 4 * GRAIN, 2 * GRAIN, WRITE)
    target.end(0)
    assert clear(target, (5, 1, WRITE)) == 1
    assert clear(target, (11, 1, WRITE)) == 0


def test_what_overlaps_among_themselves_waits(target: Target) -> None:
    assert clear(target, (0, 1, READ), (0, 1, READ), (1, 1, WRITE), (0, 2, READ)) == 3
    assert clear(target, (0, 1, WRITE), (0, 1, WRITE)) == 1
    assert clear(target, (0, 4, READ), (3, 1, WRITE), (9, 1, READ)) == 1


def test_no_two_blocks_are_alike() -> None:
    """Not of two offsets, not of two generations, not of two seeds: not even one word of them."""
    numbers, generations = np.array([3, 4, 3]), np.array([1, 1, 2])
    made = Blocks(GRAIN, 7).made(numbers, generations)
    other = Blocks(GRAIN, 8).made(numbers, generations)
    payload = np.concatenate((made, other))[:, 3:]
    for row in range(len(payload)):
        for later in range(row + 1, len(payload)):
            assert not (payload[row] == payload[later]).any()


def test_a_grain_that_direct_io_cannot_address() -> None:
    with pytest.raises(PrepareFailed, match=re.escape("no common part but 100 bytes")):
        Blocks(100, 1)
