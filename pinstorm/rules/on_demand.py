"""On-demand paging, CASE 3 of pin_user_pages.rst: MMU notifiers, no pin at all."""

from typing import Final

from pinstorm.rules.rule import ZERO, Call, Check, Conformance, Rule
from pinstorm.rules.sources import DOCUMENT

_RXE_ODP = (
    'Linux commit d03fb5c6599e ("RDMA/rxe: Allow registering MRs for On-Demand Paging"), v6.15'
)
_ODP_ERRNO = (
    'Linux commit 53c2d5b14a82 ("RDMA/core: return -EOPNOSUPP for ODP unsupported device"), v6.2'
)

_FAULT = (
    "mm/hmm.c, hmm_range_fault(): EFAULT where there is no memory or no permission; registering "
    "looks at no page, so the device's access fails (IBV_WC_REM_ACCESS_ERR)"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="odp",
        when={"pin_class": "none"},
        outcomes=("ok",),
        pin_class="none",
        acquired=ZERO,
        migrate_success=ZERO,
        source=f"{DOCUMENT}, CASE 3: with MMU notifiers the pages are not pinned",
    ),
    Rule(
        name="odp-no-memory",
        when={
            "pin_class": "none",
            "touch": True,
            "extent": frozenset({"unmapped", "hole", "past-eof"}),
        },
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        source=_FAULT,
    ),
    Rule(
        name="odp-prot-none",
        when={"pin_class": "none", "touch": True, "prot": "none"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        source=_FAULT,
    ),
    Rule(
        name="odp-prot-read",
        when={"pin_class": "none", "touch": True, "prot": "r", "writes": True},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="none",
        acquired=ZERO,
        source=_FAULT,
    ),
    Rule(
        name="odp-unsupported",
        when={"pin_class": "none", "driver": "rxe"},
        since=(6, 2),
        until=(6, 15),
        check=Check.ARGUMENTS,
        outcomes=("EOPNOTSUPP",),
        pin_class="none",
        acquired=ZERO,
        source=f"{_RXE_ODP}; {_ODP_ERRNO}",
    ),
    Rule(
        name="odp-unsupported-errno",
        when={"pin_class": "none", "driver": "rxe"},
        until=(6, 2),
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=f"{_RXE_ODP}; {_ODP_ERRNO}",
    ),
)

_FAULTS: Final = Call("hmm_range_fault", frozenset())

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="odp-touched",
        when={"workload": "rdma-register-odp", "touch": True},
        calls=(_FAULTS,),
        proof=(_FAULTS,),
        source="drivers/infiniband/core/umem_odp.c, ib_umem_odp_map_dma_and_lock()",
    ),
    Conformance(
        name="odp-untouched",
        when={"workload": "rdma-register-odp", "touch": False},
        calls=(),
        source="drivers/infiniband/core/umem_odp.c, ib_umem_odp_get(): registering maps nothing",
    ),
)
