"""What holds for every pin: what it survives, and when it is given back unasked.

No rules that choose between outcomes: whatever workload took the pins, ``during`` must not touch
them, and SIGKILL (``kill``) must give all of them back. Verdicts cite these.
"""

from collections.abc import Mapping
from typing import Final

# For each of workloads.spec.DISTURBANCES, why pins and VmPin stay as they were.
SURVIVED: Final[Mapping[str, str]] = {
    "madv-dontneed": (
        "mm/memory.c, zap_pte_range(): the mapping's reference to the page is dropped, the pin's "
        "stays until its owner calls unpin_user_page(); pinned_vm is touched by the pinner only; "
        "the same in v6.1, v6.12 and v7.2"
    ),
    "munmap": (
        "mm/mmap.c of v6.1, mm/vma.c of v6.12 and v7.2, unmap_region(): as for MADV_DONTNEED, "
        "zap_pte_range() drops the mapping's reference only"
    ),
    "fork": (
        'Linux commit 70e806e4e645 ("mm: Do early cow for pinned pages during fork() for ptes"), '
        "v5.10: the child gets a copy of an anonymous page that is pinned, and the pin stays the "
        "parent's; kernel/fork.c, mm_init(): the child's pinned_vm begins at 0"
    ),
    "thread-exit": (
        "kernel/exit.c, do_exit(): exit_mm() and exit_files() give up the thread's share of an mm "
        "and of files that live on with the process, and the pins belong to a file; the same in "
        "v6.1, v6.12 and v7.2"
    ),
}

GIVEN_BACK: Final = (
    "kernel/exit.c, do_exit(): exit_files() closes what the process had open, and the last close "
    "gives its pins back (ib_uverbs_close(); io_ring_exit_work() and xdp_umem_release_deferred(), "
    "later, in a worker); what is pinned inside a call is unpinned before the call returns, or by "
    "the end of its IO; the same in v6.1, v6.12 and v7.2"
)
