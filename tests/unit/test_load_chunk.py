"""How many requests at a time: the best is found, whatever it is, and little is lost on the way."""

import numpy as np
import pytest

from workloads.load.chunk import Chunk

WINDOW_NS = 20_000_000
# Relative rate of a device with 32 in flight, by the size of the chunks.
DEVICES = {
    "early": {1: 1.0, 2: 0.97, 4: 0.93, 8: 0.88, 16: 0.8, 32: 0.7},
    "middle": {1: 0.8, 2: 0.9, 4: 1.0, 8: 0.95, 16: 0.9, 32: 0.8},
    "late": {1: 0.5, 2: 0.6, 4: 0.7, 8: 0.8, 16: 0.9, 32: 1.0},
}


def run(chunk: Chunk, device: dict[int, float], windows: int, noise: float) -> tuple[float, int]:
    """The mean rate, and the size that was used most in the last half."""
    generator = np.random.default_rng(1)
    now_ns = done = 0
    rates, sizes = [], []
    chunk.begin(now_ns, done)
    for _ in range(windows):
        rates.append(device[chunk.size])
        sizes.append(chunk.size)
        now_ns += WINDOW_NS
        done += int(1600 * device[chunk.size] * np.exp(generator.normal(0, noise)))
        chunk.look(now_ns, done)
    late = sizes[windows // 2 :]
    return float(np.mean(rates)), max(set(late), key=late.count)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_the_best_is_found(device: dict[int, float]) -> None:
    mean, size = run(Chunk(32), device, 1000, 0.02)
    assert device[size] == 1.0
    assert mean > 0.93


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_on_a_noisy_machine_it_is_not_far_off(device: dict[int, float]) -> None:
    """It stays where it began (8 of 32) rather than to follow what is chance."""
    mean, size = run(Chunk(32), device, 2000, 0.1)
    assert device[size] >= device[8]
    assert mean >= 0.99 * device[8]


def test_where_nothing_is_better_nothing_changes() -> None:
    """And a neighbour is tried now and then, in one window of ten at most."""
    chunk = Chunk(32)
    before = chunk.size
    sizes = []
    chunk.begin(0, 0)
    for window in range(1, 501):
        chunk.look(window * WINDOW_NS, window * 1600)
        sizes.append(chunk.size)
    assert 450 <= sizes.count(before) < 490


def test_a_machine_that_changes_is_followed() -> None:
    chunk = Chunk(32)
    assert run(chunk, DEVICES["early"], 1000, 0.02)[1] == 1
    assert run(chunk, DEVICES["late"], 1000, 0.02)[1] == 32


def test_a_try_is_over_with_the_interval() -> None:
    """What was tried when an interval of the load ended is not what the next begins with."""
    chunk = Chunk(32)
    before, now_ns, done = chunk.size, 0, 0
    chunk.begin(now_ns, done)
    while chunk.size == before:
        now_ns, done = now_ns + WINDOW_NS, done + 1600
        chunk.look(now_ns, done)
    chunk.begin(now_ns, done)
    assert chunk.size == before


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8, 32, 1000])
def test_never_more_than_there_are(slots: int) -> None:
    chunk = Chunk(slots)
    sizes = set()
    now_ns = done = 0
    chunk.begin(0, 0)
    for turn in range(400):
        sizes.add(chunk.size)
        assert 1 <= chunk.wait <= min(chunk.size, max(1, slots // 2))
        now_ns += WINDOW_NS
        # larger is better
        done += 100_000 + 10_000 * chunk.size + turn % 2
        chunk.look(now_ns, done)
    assert min(sizes) >= 1
    assert max(sizes) == slots
