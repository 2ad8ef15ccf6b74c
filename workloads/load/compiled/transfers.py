"""preadv and pwritev, one at a time."""

import numpy as np

from workloads.load.compiled.words import (
    FLAGS,
    INT,
    LONGS,
    ROWS,
    WORD,
    Flags,
    Words,
    compiled,
    errno,
    from_c,
    now_ns,
)

_preadv = from_c("preadv", WORD, INT, WORD, INT, WORD)
_pwritev = from_c("pwritev", WORD, INT, WORD, INT, WORD)


@compiled(WORD, LONGS, LONGS, FLAGS, ROWS, LONGS, WORD)
def transfers(
    file: int,
    offsets: Words,
    chosen: Words,
    writes: Flags,
    vectors: Words,
    ends_ns: Words,
    limit_ns: int,
) -> tuple[int, bool, int]:
    """preadv or pwritev of each, one at a time, until CLOCK_MONOTONIC passes ``limit_ns``.

    How many were whole, whether the next one failed, and what it gave: bytes, or a negative errno.
    ``vectors``: rows of address and length, of which ``chosen`` names each operation's. The first
    begins at ``ends_ns[0]``, and each ends at the next, where the one after it begins: one look at
    the clock for each.
    """
    clock = np.empty(2, np.int64)
    ends_ns[0] = now_ns(clock)
    for number in range(offsets.size):
        vector = vectors.ctypes.data + chosen[number] * vectors.strides[0]
        if writes[number]:
            moved = _pwritev(file, vector, 1, offsets[number])
        else:
            moved = _preadv(file, vector, 1, offsets[number])
        if moved != vectors[chosen[number], 1]:
            return number, True, -errno() if moved < 0 else moved
        ended_ns = ends_ns[number + 1] = now_ns(clock)
        if ended_ns >= limit_ns:
            return number + 1, False, 0
    return offsets.size, False, 0
