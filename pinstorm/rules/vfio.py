"""vfio type1: FOLL_PIN | FOLL_LONGTERM through pin_user_pages_remote()."""

from typing import Final

from pinstorm.rules.rule import (
    BYTES,
    MIGRATED,
    MOVED,
    PAGES,
    ZERO,
    Bound,
    Call,
    Check,
    Conformance,
    Rule,
)
from pinstorm.rules.sources import MIGRATE, SECRET, WRITE_FILE

_ACCOUNT = (
    "drivers/vfio/vfio_iommu_type1.c, vfio_pin_pages_remote(): pins batches of 512 pages and adds "
    "what is not reserved to mm->locked_vm"
)
_ALIGNMENT = (
    "drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_map(): EINVAL when address, iova or size is not "
    "whole pages of the IOMMU"
)
_SLOW_ONLY = "pin_user_pages_remote() has no GUP-fast: nothing is taken before the VMA is looked at"
_RESERVED = (
    "mm/mm_init.c, __init_zone_device_page(): every page of a device is PageReserved(); "
    "vfio_iommu_type1.c, put_pfn(): a reserved page is neither accounted nor unpinned"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="vfio",
        when={"workload": "vfio-map", "pin_class": "pin-longterm"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmlck_bytes=BYTES,
        migrate_success=ZERO,
        source=_ACCOUNT,
    ),
    Rule(
        name="vfio-movable",
        when={"workload": "vfio-map", "pin_class": "pin-longterm", "movable": True},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=MOVED,
        held=PAGES,
        vmlck_bytes=BYTES,
        migrate_success=MIGRATED,
        source=f"{MIGRATE}; {_ACCOUNT}",
    ),
    Rule(
        name="vfio-device-memory",
        when={"workload": "vfio-map", "pin_class": "pin-longterm", "backing": "devdax"},
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=PAGES,
        held=PAGES,
        vmlck_bytes=ZERO,
        migrate_success=ZERO,
        source=_RESERVED,
    ),
    Rule(
        name="vfio-size",
        when={"workload": "vfio-map", "alignment": frozenset({"sector", "byte"})},
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_ALIGNMENT,
    ),
    Rule(
        name="vfio-offset",
        when={
            "workload": "vfio-map",
            "alignment": "page",
            "offset": frozenset({"sector", "byte"}),
        },
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_ALIGNMENT,
    ),
    Rule(
        name="vfio-write-file",
        when={
            "workload": "vfio-map",
            "pin_class": "pin-longterm",
            "dirty_tracked": True,
            "writes": True,
        },
        since=(6, 5),
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{WRITE_FILE}; {_SLOW_ONLY}",
    ),
    Rule(
        name="vfio-secret",
        when={"workload": "vfio-map", "pin_class": "pin-longterm", "backing": "secretmem"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin-longterm",
        acquired=ZERO,
        source=f"{SECRET}; {_SLOW_ONLY}",
    ),
    Rule(
        name="vfio-memlock",
        when={"workload": "vfio-map", "memlock": frozenset({"short", "zero"})},
        check=Check.ACCOUNTING,
        outcomes=("ENOMEM",),
        pin_class="pin-longterm",
        acquired=Bound(1, "pages"),
        source=f"{_ACCOUNT}, after pinning; CAP_IPC_LOCK is exempt",
    ),
)

_PIN: Final = Call("pin_user_pages_remote", frozenset({"FOLL_WRITE", "FOLL_LONGTERM"}))

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="vfio",
        when={"workload": "vfio-map"},
        calls=(_PIN,),
        proof=(_PIN,),
        source="drivers/vfio/vfio_iommu_type1.c, vaddr_get_pfns()",
    ),
)
