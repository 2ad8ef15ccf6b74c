"""/sys/kernel/mm/hugepages: the pools of huge pages, one per size.

In huge pages of that size; levels; machine-wide. Since Linux 2.6.27. ``free`` includes what is
reserved by mappings that have not touched it yet. See
Documentation/admin-guide/mm/hugetlbpage.rst.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

HUGEPAGES = Path("/sys/kernel/mm/hugepages")


@dataclass(frozen=True, slots=True)
class Pool:
    page_bytes: int
    total: int | None
    free: int | None
    reserved: int | None
    surplus: int | None
    overcommit: int | None

    @property
    def usable(self) -> int | None:
        """Free and promised to nobody."""
        if self.free is None or self.reserved is None:
            return None
        return self.free - self.reserved


def parse(files: dict[str, str], page_bytes: int) -> Pool:
    """From the texts of the files in one pool's folder, by file name."""
    numbers = {name: int(text) for name, text in files.items()}
    return Pool(
        page_bytes=page_bytes,
        total=numbers.get("nr_hugepages"),
        free=numbers.get("free_hugepages"),
        reserved=numbers.get("resv_hugepages"),
        surplus=numbers.get("surplus_hugepages"),
        overcommit=numbers.get("nr_overcommit_hugepages"),
    )


def read() -> dict[int, Pool]:
    """By page size in bytes; empty on a kernel without hugetlbfs."""
    pools = {}
    for path in sorted(HUGEPAGES.glob("hugepages-*kB")):
        page_bytes = int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        pools[page_bytes] = parse(_files(path), page_bytes)
    return pools


def _files(path: Path) -> dict[str, str]:
    files = {}
    for entry in path.iterdir():
        if entry.name.endswith("hugepages"):
            with contextlib.suppress(OSError):
                files[entry.name] = entry.read_text(encoding="ascii")
    return files


def pool_size_file(page_bytes: int) -> Path:
    """The file that sets how many pages the pool has."""
    return HUGEPAGES / f"hugepages-{page_bytes // 1024}kB" / "nr_hugepages"
