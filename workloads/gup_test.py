"""The kernel's own GUP test: one ioctl gets every page of the region, and puts it back.

A debugfs node of kernels with CONFIG_GUP_TEST, or of the module that the lab builds. The mode names
the ioctl, and so the function of the kernel that is called; see mm/gup_test.c. Pages are asked for
one by one, which is also what the kernel's own tool does unless it is told otherwise: the size that
comes back counts the pages *asked for*, the last call's whole, so that only with one page a call is
it the number of pages got. A refusal is no error of the ioctl: it stops, and the size is short.
"""

import struct

from workloads.memory import Region
from workloads.node import open_node, timed_ioctl
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, Case, Surroundings

NODE = "/sys/kernel/debug/gup_test"

# mm/gup_test.h: get_delta_usec, put_delta_usec, addr, size; nr_pages_per_call, gup_flags,
# test_flags, which_pages[8]. The same in 6.1 to 7.2.
GUP_TEST = struct.Struct("=4Q11I4x")
SIZE_FIELD = 3
# asm-generic/ioctl.h: _IOWR('g', number, struct gup_test)
NUMBERS = {"GUP_FAST": 1, "PIN_FAST": 2, "PIN_LONGTERM": 3, "GUP_BASIC": 4, "PIN_BASIC": 5}
FOLL_WRITE = 0x1  # include/linux/mm_types.h; mm.h before v6.3: the same value


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "GupTest":
    return GupTest(open_node(NODE, owner), case.params["mode"], region)


class GupTest:
    """One ioctl over all pages that the region touches."""

    def __init__(self, node: int, mode: str, region: Region) -> None:
        self.done_bytes: int | None = None
        self._node = node
        self._request = 3 << 30 | GUP_TEST.size << 16 | ord("g") << 8 | NUMBERS[mode]
        self._argument = bytearray(GUP_TEST.size)
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self._region = region
        self._before = region.address % PAGE_BYTES
        self._asked_bytes = -(-(self._before + region.size_bytes) // PAGE_BYTES) * PAGE_BYTES

    def acquire(self) -> int:
        """The time of the whole ioctl: what gets the pages and what puts them."""
        self.done_bytes = None
        argument = self._argument
        start = self._region.address - self._before
        GUP_TEST.pack_into(argument, 0, 0, 0, start, self._asked_bytes, 1, FOLL_WRITE, 0, *[0] * 8)
        elapsed_ns = timed_ioctl("ioctl", self._node, self._request, argument, NODE)
        got_bytes = GUP_TEST.unpack(argument)[SIZE_FIELD]
        if got_bytes < self._asked_bytes:
            self.done_bytes = max(0, got_bytes - self._before)
        return elapsed_ns

    def release(self) -> int:
        """Nothing to give back: the ioctl did."""
        return 0
