"""What the compiled loops share: types, the clock, errno."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

Words = NDArray[np.int64]
Words32 = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

# The same as numba has them.
WORD, INT = types.int64, types.int32
LONGS = types.Array(types.int64, 1, "C")
ROWS = types.Array(types.int64, 2, "C")
LONGS32 = types.Array(types.uint32, 1, "C")
FLAGS, BYTES = types.Array(types.boolean, 1, "C"), types.Array(types.uint8, 1, "C")

SECOND_NS = 1_000_000_000
_CLOCK_MONOTONIC = 1


def compiled(*arguments: Any) -> Callable[[Function], Function]:
    """Compile the function now, for arguments of these types; without any, as it is called."""
    signatures = [arguments] if arguments else None
    return cast(Callable[[Function], Function], numba.njit(signatures, nogil=True))


def from_c(name: str, result: Any, *arguments: Any) -> Callable[..., int]:
    """A function of the C library."""
    return cast(Callable[..., int], types.ExternalFunction(name, result(*arguments)))


_clock_gettime = from_c("clock_gettime", INT, INT, WORD)
_errno_location = from_c("__errno_location", types.voidptr)


@compiled()
def now_ns(clock: Words) -> int:
    """CLOCK_MONOTONIC; ``clock``: two words to read it into."""
    _clock_gettime(_CLOCK_MONOTONIC, clock.ctypes.data)
    return int(clock[0]) * SECOND_NS + int(clock[1])


@compiled()
def errno() -> int:
    """Of the call that was made last, which failed."""
    return int(numba.carray(_errno_location(), (1,), np.int32)[0])
