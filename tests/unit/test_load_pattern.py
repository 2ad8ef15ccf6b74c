"""Which blocks a load of direct IO goes to: passes, sequence, zipf, mixes, sizes."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from workloads.load.pattern import Operations, Passes, Permutation, Zipf
from workloads.load.spec import Job
from workloads.spec import PrepareFailed

KIB = 1 << 10
JOB = Job("job", "dio-read")


def random(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def offsets(job: Job, file_bytes: int, count: int, seed: int = 1) -> NDArray[np.int64]:
    return Operations(job, file_bytes, random(seed)).take(count).offsets


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 63, 64, 65, 1000, 4097])
def test_a_permutation_has_each_number_once(size: int) -> None:
    found = Permutation(size, random()).at(np.arange(size))
    assert sorted(found.tolist()) == list(range(size))


def test_a_permutation_is_not_in_order() -> None:
    """Neighbours lie far from each other, and the order of one key is not that of another."""
    one, other = (Permutation(10_000, random(seed)).at(np.arange(10_000)) for seed in (1, 2))
    assert np.count_nonzero(np.abs(np.diff(one)) == 1) < 20
    assert np.count_nonzero(one == other) < 20
    # as far from each other as two random numbers below 10 000 are: a third of it
    assert 3000 < np.abs(np.diff(one)).mean() < 3700


def test_a_permutation_of_a_huge_file_takes_no_memory() -> None:
    blocks = 1 << 40
    found = Permutation(blocks, random()).at(np.arange(blocks - 1000, blocks))
    assert len(set(found.tolist())) == 1000
    assert blocks > found.max() > blocks // 2 > found.min() >= 0


@pytest.mark.parametrize("pieces", [[100] * 3, [1] * 100 + [200], [37, 200, 63]])
def test_each_block_once_in_each_pass(pieces: list[int]) -> None:
    """However many are drawn at a time; and no pass is in the order of another."""
    passes = Passes(100, random())
    drawn = np.concatenate([passes.draw(count) for count in pieces])
    orders = [drawn[start : start + 100].tolist() for start in (0, 100, 200)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_a_pass_over_the_file() -> None:
    """Operations.take over more than one chunk; the tail that no block fits into is left out."""
    file_bytes = 3000 * 4 * KIB + 100
    found = offsets(JOB, file_bytes, 6000)
    for start in (0, 3000):
        assert sorted(found[start : start + 3000] // (4 * KIB)) == list(range(3000))
    assert not (found % (4 * KIB)).any()


def test_the_same_seed_gives_the_same_operations() -> None:
    job = replace(JOB, sizes=((4 * KIB, 3.0), (16 * KIB, 1.0)), read_percent=70)
    first, again, other = (Operations(job, 1 << 22, random(seed)).take(3000) for seed in (1, 1, 2))
    for part in ("offsets", "sizes", "writes"):
        assert (getattr(first, part) == getattr(again, part)).all()
        assert (getattr(first, part) != getattr(other, part)).any()


def test_how_they_are_taken_changes_nothing() -> None:
    job = replace(JOB, read_percent=50)
    whole = Operations(job, 1 << 22, random()).take(4000)
    piecewise = Operations(job, 1 << 22, random())
    done = 0
    for count in [1, 5, 1018, 1024, 100, 900, 952]:
        piecewise.look_ahead(7)
        part = piecewise.take(count + 3)
        piecewise.give_back(3)
        part = part.part(0, count)
        assert (part.offsets == whole.offsets[done : done + count]).all()
        assert (part.writes == whole.writes[done : done + count]).all()
        done += count
    assert done == 4000


def test_in_sequence() -> None:
    job = replace(JOB, pattern="sequential", sizes=((KIB, 1.0),))
    found = offsets(job, 5 * KIB + 1, 12)
    assert (found // KIB).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_several_sizes_in_sequence() -> None:
    """Each begins where the last one ended, or at the start when it does not fit before the end."""
    job = replace(JOB, pattern="sequential", sizes=((1 * KIB, 1.0), (3 * KIB, 1.0)))
    drawn = Operations(job, 10 * KIB, random()).take(3000)
    lengths = np.array([KIB, 3 * KIB])[drawn.sizes]
    ends = drawn.offsets + lengths
    begins_anew = drawn.offsets[1:] == 0
    assert (drawn.offsets[1:] == ends[:-1])[~begins_anew].all()
    assert (ends[:-1] + lengths[1:] > 10 * KIB)[begins_anew].all()
    assert ends.max() <= 10 * KIB
    assert begins_anew.any()


def test_several_sizes_at_random() -> None:
    """By their weights; each size once per pass over the blocks of its own."""
    job = replace(JOB, sizes=((4 * KIB, 3.0), (64 * KIB, 1.0)))
    drawn = Operations(job, 4 << 20, random()).take(8192)
    small = drawn.sizes == 0
    assert 0.72 < small.mean() < 0.78
    assert sorted(drawn.offsets[small][:1024] // (4 * KIB)) == list(range(1024))
    assert sorted(drawn.offsets[~small][:64] // (64 * KIB)) == list(range(64))


@pytest.mark.parametrize(
    ("read_percent", "low", "high"), [(100, 0, 0), (0, 1, 1), (30, 0.67, 0.73)]
)
def test_the_mix(read_percent: int, low: float, high: float) -> None:
    operations = Operations(replace(JOB, read_percent=read_percent), 1 << 22, random())
    assert low <= operations.take(8000).writes.mean() <= high
    assert operations.uniform == (read_percent in (0, 100))


@pytest.mark.parametrize("theta", [0.5, 1.0, 1.2, 2.5])
def test_zipf_is_as_skewed_as_theta_says(theta: float) -> None:
    """Against the distribution itself, worked out over all blocks."""
    count, blocks = 200_000, 1000
    drawn = Zipf(blocks, theta, random()).draw(count)
    frequencies = np.sort(np.bincount(drawn, minlength=blocks))[::-1] / count
    exact = np.arange(1, blocks + 1) ** -theta
    exact /= exact.sum()
    # four standard deviations of so many draws
    allowed = 4 * np.sqrt(exact[:5] * (1 - exact[:5]) / count)
    assert (np.abs(frequencies[:5] - exact[:5]) <= allowed).all()
    assert drawn.min() >= 0
    assert drawn.max() < blocks


def test_the_hot_blocks_of_zipf_are_scattered() -> None:
    drawn = Zipf(100_000, 1.2, random()).draw(50_000)
    hot = np.argsort(np.bincount(drawn, minlength=100_000))[::-1][:20]
    assert np.ptp(hot) > 50_000
    assert len(set((hot // 10_000).tolist())) >= 5


def test_zipf_over_a_file() -> None:
    found = offsets(replace(JOB, pattern="zipf"), 1 << 24, 5000)
    counts = np.bincount(found // (4 * KIB), minlength=4096)
    assert counts.max() > 500
    assert np.count_nonzero(counts) < 2000


def test_what_does_not_fit_is_refused() -> None:
    job = replace(JOB, sizes=((1 << 20, 1.0),))
    with pytest.raises(PrepareFailed, match="1048576 bytes does not fit into a target of 4096"):
        Operations(job, 4096, random())
    with pytest.raises(PrepareFailed, match="theta is 0"):
        Zipf(10, 0, random())
