"""A mapping without pages: VM_IO and VM_PFNMAP, as device memory is mapped.

Every process has one, on every machine: [vvar], which holds the time for the vDSO. The kernel puts
page frame numbers into its page tables (vmf_insert_pfn()) and lets no one have a reference. It is
three or four pages, readable only. See vdso(7).
"""

from telemetry import maps
from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import MemorySpec, PrepareFailed, Surroundings

_NAME = "[vvar]"


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    mapping = next((one for one in maps.read() if one.path == _NAME), None)
    if mapping is None:
        raise PrepareFailed(f"the process has no {_NAME}")
    mapped_bytes = memory.mapped_bytes(size_bytes)
    if mapped_bytes > mapping.end - mapping.start:
        raise PrepareFailed(
            f"{_NAME} has {mapping.end - mapping.start} bytes, not {mapped_bytes}; give a smaller "
            "size"
        )
    view = libc.view(mapping.start, mapped_bytes)
    return Region(memory, mapping.start, size_bytes, mapped_bytes, view)
