"""udmabuf: the folios of a memfd, pinned without going through page tables.

Nothing is held against RLIMIT_MEMLOCK. What is refused is refused before a page is looked at.
"""

from typing import Final

from pinstorm.rules.rule import FOLIOS, ZERO, Call, Check, Conformance, Rule

_PINS = (
    'Linux commit c6a3194c05e7 ("udmabuf: pin the pages using memfd_pin_folios() API"), v6.11: '
    "one pin for each folio"
)
_REFERENCES = (
    "drivers/dma-buf/udmabuf.c of v6.1, udmabuf_create(): shmem_read_mapping_page() and get_page()"
)
_ALIGNMENT = "drivers/dma-buf/udmabuf.c, udmabuf_create(): EINVAL for less than whole pages"
_NO_MEMFD = (
    "drivers/dma-buf/udmabuf.c, udmabuf_create(): EBADFD for what is no file, or a file of neither "
    "shmem nor hugetlbfs"
)
_SEAL = "drivers/dma-buf/udmabuf.c, udmabuf_create(): EINVAL without F_SEAL_SHRINK"
_PAST_EOF = (
    "mm/gup.c, memfd_pin_folios(): EINVAL when the range ends behind the file; before v6.11 "
    "mm/shmem.c, shmem_get_folio_gfp(), with the same errno"
)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="udmabuf",
        when={"workload": "udmabuf", "pin_class": "pin-longterm"},
        since=(6, 11),
        outcomes=("ok",),
        pin_class="pin-longterm",
        acquired=FOLIOS,
        held=FOLIOS,
        migrate_success=ZERO,
        source=_PINS,
    ),
    Rule(
        name="udmabuf-references",
        when={"workload": "udmabuf", "pin_class": "pin-longterm"},
        until=(6, 11),
        outcomes=("ok",),
        pin_class="get",
        acquired=ZERO,
        migrate_success=ZERO,
        source=_REFERENCES,
    ),
    Rule(
        name="udmabuf-size",
        when={"workload": "udmabuf", "alignment": frozenset({"sector", "byte"})},
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_ALIGNMENT,
    ),
    Rule(
        name="udmabuf-offset",
        when={
            "workload": "udmabuf",
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
        name="udmabuf-no-memfd",
        when={
            "workload": "udmabuf",
            "alignment": "page",
            "offset": "page",
            "file": frozenset({"none", "other"}),
        },
        check=Check.ARGUMENTS,
        outcomes=("EBADFD",),
        pin_class="none",
        acquired=ZERO,
        source=_NO_MEMFD,
    ),
    Rule(
        name="udmabuf-unsealed",
        when={"workload": "udmabuf", "alignment": "page", "offset": "page", "file": "tmpfs"},
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_SEAL,
    ),
    Rule(
        name="udmabuf-past-eof",
        when={
            "workload": "udmabuf",
            "alignment": "page",
            "offset": "page",
            "file": "memfd",
            "extent": "past-eof",
        },
        check=Check.ARGUMENTS,
        outcomes=("EINVAL",),
        pin_class="none",
        acquired=ZERO,
        source=_PAST_EOF,
    ),
)

_PIN: Final = Call("memfd_pin_folios", frozenset())

CONFORMANCE: Final[tuple[Conformance, ...]] = (
    Conformance(
        name="udmabuf-references",
        when={"workload": "udmabuf"},
        until=(6, 11),
        calls=(),
        source=_REFERENCES,
    ),
    Conformance(
        name="udmabuf",
        when={"workload": "udmabuf"},
        since=(6, 11),
        calls=(_PIN,),
        proof=(_PIN,),
        source=_PINS,
    ),
)
