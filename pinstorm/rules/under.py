"""Cases under a circumstance (``under``): what the kernel refuses for what is around the pages."""

from typing import Final

from pinstorm.rules.rule import ZERO, Bound, Check, Rule

_BUDGET_HELD: Final = frozenset({"rival-io-uring", "rival-af-xdp"})
_GUARDED: Final = frozenset({"rdma-register", "io-uring-register"})
_REGIONS: Final = (
    "drivers/infiniband/sw/rxe/rxe_pool.c, __rxe_add_to_pool(): EINVAL once the pool has max_elem, "
    "before the driver pins"
)
_LOCKED_VM: Final = "user->locked_vm counts what every process of the user holds"

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="under-rival-io-uring",
        when={"workload": "io-uring-register", "under": _BUDGET_HELD, "memlock": "enough"},
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=Bound("range-pages", "retried-pages"),
        migrate_success=Bound(0, "twice-pages"),
        source="io_uring/rsrc.c, __io_account_mem(): over RLIMIT_MEMLOCK is ENOMEM, after "
        f"pinning; {_LOCKED_VM}; the same in v6.1, v6.12 and v7.2",
    ),
    Rule(
        name="under-rival-af-xdp",
        when={"workload": "af-xdp-umem", "under": _BUDGET_HELD, "memlock": "enough"},
        check=Check.ARGUMENTS,
        outcomes=("ENOBUFS",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source="net/xdp/xdp_umem.c, xdp_umem_account_pages(): over RLIMIT_MEMLOCK is ENOBUFS, "
        f"before pinning; {_LOCKED_VM}; the same in v6.1, v6.12 and v7.2",
    ),
    Rule(
        name="under-rival-msg-zerocopy",
        when={"workload": "msg-zerocopy", "under": _BUDGET_HELD, "memlock": "enough"},
        check=Check.ARGUMENTS,
        outcomes=("ENOBUFS",),
        pin_class="get",
        acquired=ZERO,
        source="net/core/skbuff.c, mm_account_pinned_pages(): over RLIMIT_MEMLOCK is ENOBUFS to "
        f"the caller; {_LOCKED_VM}; the same in v6.1, v6.12 and v7.2",
    ),
    Rule(
        name="under-mappings-used-up",
        when={
            "pin_class": "pin-longterm",
            "workload": _GUARDED,
            "under": "mappings-used-up",
        },
        check=Check.ARGUMENTS,
        outcomes=("EAGAIN",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source="mm/madvise.c, madvise_vma_behavior(): EAGAIN for the ENOMEM of a mapping too many, "
        "which in v6.1 madvise_update_vma() itself says, later split_vma() in mm/vma.c; the same "
        "in v6.1, v6.12 and v7.2",
    ),
    Rule(
        name="under-rdma-objects-limited",
        when={
            "pin_class": "pin-longterm",
            "workload": "rdma-register",
            "under": "rdma-objects-limited",
        },
        check=Check.ARGUMENTS,
        outcomes=("EAGAIN",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source="kernel/cgroup/rdma.c, rdmacg_try_charge(): over hca_object of rdma.max is EAGAIN; "
        "drivers/infiniband/core/rdma_core.c, alloc_begin_idr_uobject() charges the region before "
        "the driver sees it; the same in v6.1, v6.12 and v7.2",
    ),
    Rule(
        name="under-regions-used-up-early",
        when={
            "pin_class": "pin-longterm",
            "workload": "rdma-register",
            "under": "regions-used-up",
            "driver": "rxe",
        },
        until=(6, 12),
        check=Check.ARGUMENTS,
        outcomes=("ENOMEM", "EINVAL"),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{_REGIONS}; rxe_reg_user_mr() of v6.1 makes every failure of the pool ENOMEM",
        why="somewhere between the releases that were read, v6.1 and v6.12, the driver began to "
        "hand on the pool's errno",
    ),
    Rule(
        name="under-regions-used-up",
        when={
            "pin_class": "pin-longterm",
            "workload": "rdma-register",
            "under": "regions-used-up",
            "driver": "rxe",
        },
        since=(6, 12),
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=_REGIONS,
    ),
    Rule(
        name="under-memory-limited",
        when={"workload": "rdma-register", "under": "memory-limited", "present": "absent"},
        check=Check.PAGES,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=Bound(1, "pages"),
        source="mm/memcontrol.c, try_charge_memcg(): nothing to reclaim and nobody to kill is "
        "ENOMEM, which the fault in mm/gup.c, faultin_page() hands on; the same in v6.1, v6.12 and "
        "v7.2",
    ),
    Rule(
        name="under-memory-limited-short",
        when={"workload": "io-uring-register", "under": "memory-limited", "present": "absent"},
        check=Check.PAGES,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=Bound(1, "pages"),
        source="mm/memcontrol.c, try_charge_memcg(): ENOMEM ends GUP with the pages before; "
        "io_uring/memmap.c, io_pin_pages() calls every short pin EFAULT (v6.12, v7.2; in v6.1 it "
        "stands in io_uring/rsrc.c)",
    ),
    Rule(
        name="under-driver-unbound",
        when={
            "pin_class": "pin-longterm",
            "workload": "v4l2-userptr",
            "under": "driver-unbound",
        },
        check=Check.ARGUMENTS,
        outcomes=("ENODEV",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source="drivers/media/v4l2-core/v4l2-dev.c, v4l2_ioctl(): ENODEV once the device is not "
        "registered any more, before the driver is asked",
    ),
)

CONFORMANCE: Final = ()
