"""memfd_secret: pages that are in no page table but the process's own.

Over RLIMIT_MEMLOCK mmap refuses with EAGAIN (secretmem_mmap() of v6.12) or, where the pages count
against the user, the first touch of the page that is too much ends in SIGBUS, root's too
(secretmem_fault() of v7.2). So the kernel is let touch them for us, which can only fail.
"""

import os
import resource

from workloads import libc
from workloads.memory import Region, map_region
from workloads.memory.proof import require_pages
from workloads.owner import Owner
from workloads.spec import MemorySpec, PrepareFailed, Surroundings


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    fd = libc.memfd_secret()
    owner.release_with("secret memfd", lambda: os.close(fd))
    with libc.refusal_of("ftruncate"):
        os.ftruncate(fd, memory.mapped_bytes(size_bytes))
    region = map_region(memory, size_bytes, owner, libc.MAP_SHARED, fd)
    _fill(region)
    require_pages(region, around, "there")
    link = os.readlink(f"/proc/self/fd/{fd}")
    if not link.startswith("/secretmem"):
        raise PrepareFailed(f"the file behind {memory.name} is {link}, no secret memory")
    return region


def _fill(region: Region) -> None:
    zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
    try:
        done_bytes = os.readv(zeros, [region.buffer])
    except OSError:  # EFAULT: not one page
        done_bytes = 0
    finally:
        os.close(zeros)
    if done_bytes < region.mapped_bytes:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        raise PrepareFailed(
            f"the kernel gives {done_bytes} of {region.mapped_bytes} bytes of secret memory:"
            f" RLIMIT_MEMLOCK is {limit} bytes for all of this user, root too; raise it"
        )
