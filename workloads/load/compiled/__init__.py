"""The inner loops of direct IO, compiled: one IO after the other, without Python in between.

A process that waits for a device finds its caches cold each time it is woken, and then Python needs
some 6 µs more for an IO than a program in C does, of the 85 µs that the whole takes on a virtual
disk (measured: one 4 KiB read at a time is 0.93 of fio's rate in Python, and 1.00 compiled, in
alternation). So the loops that everything else waits for are compiled by numba to what such a
program would be. What is done now and then stays in Python: what comes next, what is counted, what
went wrong.

Each loop is a module, which compiles it as it is imported, in one to two seconds: once for a load,
by its leader, and its workers inherit it. Under emulation, where no rate is one and to compile
takes half a minute, nobody imports them, as far as the processor says that it is emulated (x86).

Memory is given as arrays of words, because that is all a compiled loop knows. What the kernel
writes as well is read again after each system call, into which the compiler cannot look.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from telemetry import cpuinfo

# What ``turns`` stopped at, if it is no errno.
OVER, FAILED = 0, -1


def loop(name: str) -> Callable[..., Any] | None:
    """The loop of that name, compiled now; None where Python's is to serve."""
    if cpuinfo.read().emulated:
        return None
    loop: Callable[..., Any] = getattr(import_module(f"{__name__}.{name}"), name)
    return loop
