"""Another process of the same user holds nearly all that the user may pin.

io_uring's registered buffers and AF_XDP's umem are charged to the user (user->locked_vm), and so is
MSG_ZEROCOPY: the limit of each process counts what all of them hold. RDMA is charged to the process
(mm->pinned_vm), and takes no notice. See getrlimit(2), include/linux/sched/user.h.
"""

import errno
import os
import socket
import time
from collections.abc import Mapping
from time import monotonic_ns
from typing import Any, Final

from workloads import libc
from workloads.channel import Channel
from workloads.circumstances import Made
from workloads.owner import Owner
from workloads.prepared import Prepared
from workloads.spec import CallFailed, Case, PrepareFailed, Surroundings

# What is left of the limit: less than any case asks for, and room for a ring of its own, which
# Linux v6.14 to v7.1 account as well.
ROOM_BYTES: Final = 32 << 10

# Rings and umems are given back by a kernel worker, some milliseconds after their process has gone.
_GIVEN_BACK_NS: Final = 2_000_000_000

# By which workload the rival holds it.
HOLDS: Final[Mapping[str, str]] = {
    "rival-io-uring": "io-uring-register",
    "rival-af-xdp": "af-xdp-umem",
}


def prepare(case: Case, around: Surroundings, owner: Owner) -> Made:
    """Fork the rival, and wait until it holds its part."""
    part = _part(case)
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_rival(part, around, theirs)
    theirs.close()
    owner.release_with("rival process", lambda: _end(pid, ours))
    answer = ours.receive()
    if answer is None or "failed" in answer:
        why = "it ended early" if answer is None else answer["failed"]
        raise PrepareFailed(f"the other process of the user could not take its part: {why}")
    return Made()


def _end(pid: int, channel: Channel) -> None:
    """It ends with its channel. The remedy may have ended it before."""
    channel.close()
    os.waitpid(pid, 0)


def _be_rival(part: Case, around: Surroundings, theirs: socket.socket) -> None:
    code = 70
    try:
        libc.die_with_parent()
        channel = Channel(theirs)
        prepared = Prepared(part, around)
        try:
            channel.send(**_hold(prepared))
            channel.receive()  # until the case's process closes its end, or is gone
        finally:
            prepared.close()
        code = 0
    finally:
        os._exit(code)


def _hold(prepared: Prepared) -> dict[str, Any]:
    """Take its part, as soon as what an earlier process of the user held has been given back."""
    until_ns = monotonic_ns() + _GIVEN_BACK_NS
    try:
        prepared.prepare()
        while True:
            try:
                prepared.operation.acquire()
                return {"holds_bytes": prepared.case.size_bytes}
            except CallFailed as error:
                if error.errno not in (errno.ENOMEM, errno.ENOBUFS) or monotonic_ns() > until_ns:
                    raise
                time.sleep(0.001)
    except (CallFailed, PrepareFailed, OSError) as error:
        return {"failed": str(error)}


def _part(case: Case) -> Case:
    """What the rival does: as the same user, under the same limit, and all of it but ROOM_BYTES."""
    if not {"uid", "memlock_bytes"} <= case.params.keys():
        raise PrepareFailed("a rival needs a user and a limit to share; give user and memlock")
    limit_bytes = int(case.params["memlock_bytes"])
    params = {
        "size_bytes": limit_bytes - ROOM_BYTES,
        "uid": case.params["uid"],
        "memlock_bytes": limit_bytes,
    }
    return Case(HOLDS[str(case.params["under"])], "anon", params)
