"""RDMA verbs through pyverbs: a device, a protection domain, and traffic that comes back to us.

pyverbs is part of the distribution (rdma-core) and imports only under the distribution's own
interpreter. Everything is closed in the order MR, QP, CQ, PD, context. GID and address rules:
rdma-core, libibverbs/man/ibv_query_gid_ex.3 and ibv_modify_qp.3.
"""

import contextlib
import time
from errno import EFAULT, ETIMEDOUT
from typing import Any

from pyverbs import enums as e
from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.cq import CQ, cqe_status_to_str
from pyverbs.device import Context, get_device_list
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import CallFailed, PrepareFailed

# What ``access`` may say beside the verbs' own flag names joined by "|".
ACCESS = {"rw": "LOCAL_WRITE|REMOTE_WRITE|REMOTE_READ", "ro": "REMOTE_READ"}

_PORT = 1
BOUNCE_BYTES = 1 << 20
_WORK_REQUESTS = 16
_COMPLETION_DEADLINE_S = 20.0
_GIDS = 64
_IPV4_MAPPED = "0000:0000:0000:0000:0000:ffff:"


def access_flags(access: str) -> int:
    """The bits of ``rw``, ``ro`` or of flag names such as ``LOCAL_WRITE|REMOTE_READ``."""
    flags = 0
    for name in ACCESS.get(access, access).split("|"):
        flags |= int(getattr(e, f"IBV_ACCESS_{name}"))
    return flags


def load_providers() -> None:
    """Load the providers' libraries, which the first look at the device list does."""
    # A kernel without RDMA raises here; the runner's survey says so before any case runs.
    with contextlib.suppress(PyverbsError):
        get_device_list()


def open_device(device: str | None, owner: Owner) -> tuple[Context, PD]:
    """Open the device and make a protection domain, both given back by the owner."""
    if device is None:
        raise PrepareFailed("no rdma device was chosen")
    try:
        context = Context(name=device)
        owner.release_with("ibv_close_device", context.close)
        domain = PD(context)
        owner.release_with("ibv_dealloc_pd", domain.close)
    except PyverbsRDMAError as error:
        raise CallFailed("ibv_open_device", error.error_code, str(error)) from error
    return context, domain


def register(domain: PD, address: int, size_bytes: int, flags: int) -> tuple[MR, int]:
    """ibv_reg_mr of memory that is ours, and the nanoseconds the call took."""
    start_ns = time.monotonic_ns()
    try:
        region = MR(domain, size_bytes, flags, address=address)
    except PyverbsRDMAError as error:
        elapsed_ns = time.monotonic_ns() - start_ns
        raise CallFailed("ibv_reg_mr", error.error_code, elapsed_ns=elapsed_ns) from error
    return region, time.monotonic_ns() - start_ns


def deregister(region: MR) -> int:
    """ibv_dereg_mr; nanoseconds."""
    start_ns = time.monotonic_ns()
    try:
        region.close()
    except PyverbsRDMAError as error:
        raise CallFailed("ibv_dereg_mr", error.error_code) from error
    return time.monotonic_ns() - start_ns


# ibv_advise_mr(3)
ADVICE = {
    "read": e._IBV_ADVISE_MR_ADVICE_PREFETCH,
    "write": e._IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE,
    "no-fault": e._IBV_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT,
}


def prefetch(domain: PD, region: MR, address: int, size_bytes: int, how: str) -> int:
    """ibv_advise_mr of a range of the region, waiting for it to be done; nanoseconds."""
    # the length in struct ibv_sge has 32 bits
    pieces = libc.pieces(address, size_bytes, 1 << 31)
    elements = [SGE(start, length, region.lkey) for start, length in pieces]
    start_ns = time.monotonic_ns()
    try:
        domain.advise_mr(ADVICE[how], e._IBV_ADVISE_MR_FLAG_FLUSH, elements)
    except PyverbsRDMAError as error:
        elapsed_ns = time.monotonic_ns() - start_ns
        raise CallFailed("ibv_advise_mr", error.error_code, elapsed_ns=elapsed_ns) from error
    return time.monotonic_ns() - start_ns


def capabilities(device: str) -> dict[str, Any]:
    """What the device says it can do: on-demand paging, and its limits."""
    owner = Owner()
    try:
        context, _ = open_device(device, owner)
        attributes = context.query_device_ex()
        odp = attributes.odp_caps
        return {
            "odp": bool(odp.general_caps & e.IBV_ODP_SUPPORT),
            "odp_rc_write": bool(odp.rc_odp_caps & e.IBV_ODP_SUPPORT_WRITE),
            "odp_rc_read": bool(odp.rc_odp_caps & e.IBV_ODP_SUPPORT_READ),
            "max_mr": attributes.orig_attr.max_mr,
            "max_mr_size_bytes": attributes.orig_attr.max_mr_size,
        }
    finally:
        owner.close()


def describe(device: str) -> dict[str, Any]:
    """More of it, for people: what each transport does on demand, and each port's path MTU."""
    owner = Owner()
    try:
        context, _ = open_device(device, owner)
        attributes = context.query_device_ex()
        odp, plain = attributes.odp_caps, attributes.orig_attr
        return {
            "odp_implicit": bool(odp.general_caps & e.IBV_ODP_SUPPORT_IMPLICIT),
            "odp_rc": _odp_operations(odp.rc_odp_caps),
            "odp_ud": _odp_operations(odp.ud_odp_caps),
            "max_qp": plain.max_qp,
            "mtu_bytes": {
                # enum ibv_mtu: 1 is 256 bytes, 5 is 4096
                str(port): 128 << int(context.query_port(port).active_mtu)
                for port in range(1, plain.phys_port_cnt + 1)
            },
        }
    finally:
        owner.close()


def _odp_operations(caps: int) -> list[str]:
    return [
        name
        for name in ("send", "recv", "write", "read", "atomic")
        if caps & getattr(e, f"IBV_ODP_SUPPORT_{name.upper()}")
    ]


class Loopback:
    """A reliable queue pair connected to itself, with a bounce buffer that is an MR of its own.

    The bounce buffer is registered, pinned and filled here, before any window opens.
    ``splits_pages``: packets are smaller than a page, so that some begin inside one.
    """

    splits_pages = False

    def __init__(self, context: Context, domain: PD, bounce: Region, owner: Owner):
        self.bounce = bounce
        self._context = context
        self._completions = CQ(context, 2 * _WORK_REQUESTS)
        owner.release_with("ibv_destroy_cq", self._completions.close)
        capacity = QPCap(max_send_wr=_WORK_REQUESTS, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        self._pair = QP(
            domain,
            QPInitAttr(
                qp_type=e.IBV_QPT_RC, scq=self._completions, rcq=self._completions, cap=capacity
            ),
        )
        owner.release_with("ibv_destroy_qp", self._pair.close)
        self._connect()
        self._bounce_mr, _ = register(
            domain, bounce.address, bounce.size_bytes, int(e.IBV_ACCESS_LOCAL_WRITE)
        )
        owner.release_with("ibv_dereg_mr of the bounce buffer", self._bounce_mr.close)

    def write(self, address: int, size_bytes: int, rkey: int) -> None:
        """RDMA WRITE the bounce buffer over the whole range, again and again."""
        self._sweep(e.IBV_WR_RDMA_WRITE, address, size_bytes, rkey)

    def read(self, address: int, size_bytes: int, rkey: int) -> None:
        """RDMA READ the whole range into the bounce buffer; its last piece stays there."""
        self._sweep(e.IBV_WR_RDMA_READ, address, size_bytes, rkey)

    def _sweep(self, opcode: int, address: int, size_bytes: int, rkey: int) -> None:
        pieces = libc.pieces(address, size_bytes, BOUNCE_BYTES)
        for first in range(0, len(pieces), _WORK_REQUESTS):
            batch = pieces[first : first + _WORK_REQUESTS]
            for remote, length in batch:
                self._post(opcode, remote, length, rkey)
            self._complete(len(batch), opcode)

    def _post(self, opcode: int, remote: int, length: int, rkey: int) -> None:
        piece = SGE(self.bounce.address, length, self._bounce_mr.lkey)
        request = SendWR(opcode=opcode, num_sge=1, sg=[piece], send_flags=e.IBV_SEND_SIGNALED)
        request.set_wr_rdma(rkey, remote)
        self._pair.post_send(request)

    def _complete(self, count: int, opcode: int) -> None:
        deadline = time.monotonic() + _COMPLETION_DEADLINE_S
        while count:
            found, completions = self._completions.poll(count)
            for completion in completions or ():
                if completion.status != e.IBV_WC_SUCCESS:
                    # The device refuses an access, not a call: EFAULT is what advise_mr says of it.
                    raise CallFailed(
                        _opcode_name(opcode), EFAULT, cqe_status_to_str(completion.status)
                    )
            count -= found
            if time.monotonic() > deadline:
                raise CallFailed(
                    _opcode_name(opcode), ETIMEDOUT, f"{count} completions are missing"
                )

    def recover(self) -> None:
        """After a refused access the queue pair answers nothing: set it up anew."""
        self._pair.modify(QPAttr(qp_state=e.IBV_QPS_RESET), e.IBV_QP_STATE)
        while self._completions.poll(_WORK_REQUESTS)[0]:
            pass
        self._connect()

    def _connect(self) -> None:
        context = self._context
        port = context.query_port(_PORT)
        attributes = QPAttr(port_num=_PORT)
        attributes.qp_access_flags = (
            e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
        )
        if port.link_layer == e.IBV_LINK_LAYER_ETHERNET:
            index = _gid_index(context)
            route = GlobalRoute(dgid=context.query_gid(_PORT, index), sgid_index=index)
            attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=_PORT)
        else:
            attributes.ah_attr = AHAttr(dlid=port.lid, port_num=_PORT)
        attributes.path_mtu = port.active_mtu
        self.splits_pages = port.active_mtu < e.IBV_MTU_4096
        attributes.dest_qp_num = self._pair.qp_num
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer, attributes.timeout = 12, 14
        attributes.retry_cnt = attributes.rnr_retry = 7
        self._pair.to_rts(attributes)


def _gid_index(context: Context) -> int:
    """A RoCE GID that carries an address: IPv4-mapped when there is one, else the last."""
    indices = [
        int(entry.gid_index) for entry in context.query_gid_table(_GIDS) if entry.port_num == _PORT
    ]
    if not indices:
        raise PrepareFailed("the rdma port has no GID; give its network interface an address")
    for index in reversed(indices):
        if str(context.query_gid(_PORT, index)).startswith(_IPV4_MAPPED):
            return index
    return indices[-1]


def _opcode_name(opcode: int) -> str:
    return "RDMA WRITE" if opcode == e.IBV_WR_RDMA_WRITE else "RDMA READ"
