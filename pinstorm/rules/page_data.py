"""Writing or reading page data, CASE 5 of pin_user_pages.rst: FOLL_PIN inside the call."""

from typing import Final

from pinstorm.rules.rule import GOOD_PAGES, PAGES, ZERO, Call, Check, Conformance, Rule
from pinstorm.rules.sources import DOCUMENT, NO_MEMORY, PROTECTION, ZERO_PAGE

_PROCESS_VM: Final = frozenset({"process-vm-write", "process-vm-read"})
# Read faults answer these with the zero page.
_EMPTY: Final = frozenset({"absent", "zero-page"})
_CALL_SITE = (
    "mm/process_vm_access.c, process_vm_rw_single_vec(): pin_user_pages_remote(), with FOLL_WRITE "
    "for process_vm_writev() only, never GUP-fast; the same in v6.1, v6.12 and v7.2"
)
_SHORT = (
    "mm/process_vm_access.c, process_vm_rw_core(): what was copied before a batch that could not "
    "be pinned is the result, EFAULT when nothing was"
)
_ZERO_PAGE_6_1 = (
    f"{ZERO_PAGE}; in 6.1.y from 6.1.130 on (mm/gup.c of 6.1.192, try_grab_page(): "
    '"Don\'t take a pin on the zero page")'
)
_SECRET = "mm/gup.c, check_vma_flags(): memfd_secret is EFAULT, before the slow path takes a page"

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="process-vm",
        when={"workload": _PROCESS_VM},
        outcomes=("ok",),
        pin_class="pin",
        acquired=PAGES,
        migrate_success=ZERO,
        source=f"{DOCUMENT}, CASE 5; {_CALL_SITE}",
    ),
    Rule(
        name="process-vm-zero-page",
        when={"workload": "process-vm-read", "present": _EMPTY},
        since=(6, 5),
        outcomes=("ok",),
        pin_class="pin",
        acquired=ZERO,
        migrate_success=ZERO,
        source=ZERO_PAGE,
    ),
    Rule(
        name="process-vm-zero-page-6.1.y",
        when={"workload": "process-vm-read", "present": _EMPTY},
        since=(6, 1, 130),
        until=(6, 2),
        outcomes=("ok",),
        pin_class="pin",
        acquired=ZERO,
        migrate_success=ZERO,
        source=_ZERO_PAGE_6_1,
    ),
    Rule(
        name="process-vm-short",
        when={
            "workload": _PROCESS_VM,
            "extent": frozenset({"hole", "past-eof"}),
            "starts_bad": False,
        },
        check=Check.MAPPING,
        outcomes=("short",),
        pin_class="pin",
        acquired=GOOD_PAGES,
        source=_SHORT,
    ),
    Rule(
        name="process-vm-nothing-there",
        when={"workload": _PROCESS_VM, "starts_bad": True},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=f"{NO_MEMORY}; {_SHORT}",
    ),
    Rule(
        name="process-vm-prot-none",
        when={"workload": _PROCESS_VM, "prot": "none"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=f"{PROTECTION}, and process_vm_access.c does not ask for FOLL_FORCE",
    ),
    Rule(
        name="process-vm-prot-read",
        when={"workload": _PROCESS_VM, "prot": "r", "writes": True},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=f"{PROTECTION}, and process_vm_access.c does not ask for FOLL_FORCE",
    ),
    Rule(
        name="process-vm-secret",
        when={"workload": _PROCESS_VM, "backing": "secretmem"},
        check=Check.MAPPING,
        outcomes=("EFAULT",),
        pin_class="pin",
        acquired=ZERO,
        source=_SECRET,
    ),
)

_READ = Call("pin_user_pages_remote", frozenset())
_WRITE = Call("pin_user_pages_remote", frozenset({"FOLL_WRITE"}))

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="process-vm-read",
        when={"workload": "process-vm-read"},
        calls=(_READ,),
        proof=(_READ,),
        source=_CALL_SITE,
    ),
    Conformance(
        name="process-vm-write",
        when={"workload": "process-vm-write"},
        calls=(_WRITE,),
        proof=(_WRITE,),
        source=_CALL_SITE,
    ),
)
