"""A shared mapping of a device-DAX node: persistent memory without a file system.

Its pages belong to the device and lie in no zone that anything could migrate them to. Whoever
names the node gives away its content: a workload that writes to memory writes there.
"""

import os
import stat

from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.proof import require_device_pages
from workloads.node import open_node
from workloads.owner import Owner
from workloads.spec import MemorySpec, PrepareFailed, Surroundings


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    node = around.nodes["devdax"]
    fd = open_node(node, owner)
    if not stat.S_ISCHR(os.fstat(fd).st_mode):
        raise PrepareFailed(f"{node} is no device-DAX node: it is no character device")
    region = map_region(memory, size_bytes, owner, libc.MAP_SHARED, fd)
    write_every_page(region)
    require_device_pages(region, around)
    return region
