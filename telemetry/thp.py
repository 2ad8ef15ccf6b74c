"""/sys/kernel/mm/transparent_hugepage: whether memory gets huge pages without asking hugetlbfs.

Settings; machine-wide. Since Linux 2.6.38; shmem_enabled since 4.8, one folder per size (mTHP)
since 6.8. See Documentation/admin-guide/mm/transhuge.rst.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

THP = Path("/sys/kernel/mm/transparent_hugepage")

_CHOSEN = re.compile(r"\[([^\]]+)\]")


@dataclass(frozen=True, slots=True)
class TransparentHugepage:
    """``enabled``: always, madvise or never; None each where the kernel has no such file.

    ``sizes``: page size in bytes -> its own ``enabled``, which can also be ``inherit``.
    """

    enabled: str | None
    defrag: str | None
    shmem_enabled: str | None
    pmd_bytes: int | None
    use_zero_page: bool | None
    sizes: dict[int, str]

    @property
    def on_request(self) -> bool:
        """Whether madvise(MADV_HUGEPAGE) memory gets PMD-sized pages."""
        own = self.sizes.get(self.pmd_bytes or 0, "inherit")
        return own in ("always", "madvise") or (
            own == "inherit" and self.enabled in ("always", "madvise")
        )


def parse_choice(text: str) -> str | None:
    """``always [madvise] never`` -> ``madvise``."""
    match = _CHOSEN.search(text)
    return match[1] if match else None


def read() -> TransparentHugepage:
    pmd_bytes = _read("hpage_pmd_size")
    use_zero_page = _read("use_zero_page")
    sizes = {}
    for path in sorted(THP.glob("hugepages-*kB")):
        size = int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        if chosen := parse_choice(_read(f"{path.name}/enabled") or ""):
            sizes[size] = chosen
    return TransparentHugepage(
        enabled=parse_choice(_read("enabled") or ""),
        defrag=parse_choice(_read("defrag") or ""),
        shmem_enabled=parse_choice(_read("shmem_enabled") or ""),
        pmd_bytes=int(pmd_bytes) if pmd_bytes else None,
        use_zero_page=use_zero_page.strip() == "1" if use_zero_page else None,
        sizes=sizes,
    )


def _read(name: str) -> str | None:
    with contextlib.suppress(OSError):
        return (THP / name).read_text(encoding="ascii")
    return None
