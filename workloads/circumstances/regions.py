"""The device has as many memory regions as it can (max_mr), all but none of them the case's.

Half a million of Soft-RoCE's: so each is registered by one write of the same prepared bytes to the
uverbs node (include/uapi/rdma/ib_user_verbs.h), without libibverbs and without an object of Python
for it; closing the node frees them all. Each pins the same page, which as a part of a huge page can
have 2^31 pins; an ordinary one has room for 2^21.
"""

import os
import struct
from pathlib import Path

from telemetry import rdma
from workloads import libc
from workloads.circumstances import Made
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, Case, PrepareFailed, Surroundings

# include/uapi/rdma/ib_user_verbs.h: enum ib_uverbs_write_cmds, struct ib_uverbs_cmd_hdr (the words
# are of 4 bytes, the header's among them) and what follows it
_GET_CONTEXT, _ALLOC_PD, _REG_MR = 0, 3, 9
_HEADER = struct.Struct("=IHH")
_RESPONSE_BYTES = 64


def prepare(case: Case, around: Surroundings, owner: Owner) -> Made:
    most = int(around.device_can.get("max_mr") or 0)
    node = _node(around.device)
    with libc.refusal_of("open", node):
        device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    owner.release_with(f"{node} and its regions", lambda: os.close(device))
    prot, flags = libc.PROT_READ | libc.PROT_WRITE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
    page = libc.mmap(0, PAGE_BYTES, prot, flags)
    owner.release_with("page of the regions", lambda: libc.munmap(page, PAGE_BYTES))
    response = bytearray(_RESPONSE_BYTES)
    place = libc.address_of(response)
    with libc.refusal_of("write", "the first commands of a uverbs node"):
        os.write(device, _command(_GET_CONTEXT, 2, struct.pack("=Q", place)))
        os.write(device, _command(_ALLOC_PD, 1, struct.pack("=Q", place)))
    (domain,) = struct.unpack_from("=I", response)
    arguments = struct.pack("=QQQQII", place, page, PAGE_BYTES, page, domain, 0)
    _register_all(device, _command(_REG_MR, 3, arguments), most)
    return Made()


def _register_all(device: int, command: bytes, most: int) -> None:
    """Until the device refuses; PrepareFailed when it has taken more than it says it can."""
    write, done = os.write, 0
    try:
        for done in range(most + 1):  # noqa: B007
            write(device, command)
    except OSError as error:
        if done < most // 2:
            raise PrepareFailed(f"region {done} of {most} was refused: {error}") from error
        return
    raise PrepareFailed(f"the device says that max_mr is {most}, and has taken {done}")


def _node(device: str | None) -> str:
    for path in sorted(rdma.VERBS.glob("uverbs*")):
        if rdma.device_of_node(path.name) == device:
            return str(Path("/dev/infiniband", path.name))
    raise PrepareFailed(f"{device} has no uverbs node")


def _command(number: int, response_words: int, arguments: bytes) -> bytes:
    words = (_HEADER.size + len(arguments)) // 4
    return _HEADER.pack(number, words, response_words) + arguments
