"""rdma-register-odp: on-demand paging, CASE 3 of pin_user_pages.rst: no pin at all.

Registering looks at no page, so it proves nothing by itself: acquire includes the device touching
every page, through RDMA traffic that comes back to this process and whose bytes are checked. The
device's page faults go through hmm_range_fault() and an MMU notifier.
"""

import time
from errno import EIO

import workloads
from workloads import memory, verbs
from workloads.memory import Region
from workloads.owner import Owner
from workloads.rdma_register import Register
from workloads.spec import CallFailed, Case, PrepareFailed, Surroundings

_PATTERN = bytes(range(1, 252))


class RegisterOnDemand(Register):
    """Register on demand, let the device fault every page in, check the bytes, deregister."""

    _loopback: verbs.Loopback | None = None

    @property
    def reachable(self) -> bool:
        """Whether RDMA traffic may touch the region at all."""
        return bool(self._flags & verbs.access_flags("REMOTE_READ|REMOTE_WRITE"))

    def touch_through(self, loopback: verbs.Loopback) -> None:
        """Make the device touch every page with this traffic in each acquire."""
        self._loopback = loopback

    def acquire(self) -> int:
        """Nanoseconds of ibv_reg_mr plus the device's faults."""
        flags = self._flags | verbs.access_flags("ON_DEMAND")
        registered, registered_ns = verbs.register(
            self._domain, self._region.address, self._region.size_bytes, flags
        )
        self._registered = [registered]
        if self._loopback is None:
            return registered_ns
        try:
            return registered_ns + self._touch(self._loopback, registered.rkey)
        except CallFailed:
            self.release()
            self._loopback.recover()
            raise

    def _touch(self, loopback: verbs.Loopback, rkey: int) -> int:
        address, size_bytes = self._region.address, self._region.size_bytes
        writes = bool(self._flags & verbs.access_flags("REMOTE_WRITE"))
        start_ns = time.monotonic_ns()
        if writes:
            loopback.write(address, size_bytes, rkey)
        else:
            loopback.read(address, size_bytes, rkey)
        elapsed_ns = time.monotonic_ns() - start_ns
        self._check_bytes(loopback, elapsed_ns, everything=writes)
        return elapsed_ns

    def _check_bytes(self, loopback: verbs.Loopback, elapsed_ns: int, everything: bool) -> None:
        """Each piece written must hold the bounce buffer's bytes; of a read, the last piece."""
        piece = loopback.bounce.size_bytes
        size_bytes = self._region.size_bytes
        last = (size_bytes - 1) // piece * piece
        for offset in range(0 if everything else last, size_bytes, piece):
            length = min(piece, size_bytes - offset)
            if self._region.buffer[offset : offset + length] != loopback.bounce.buffer[:length]:
                detail = f"other bytes than sent within {length} bytes of offset {offset}"
                if loopback.splits_pages:
                    # Seen on 6.16.12 and 7.2.11: __rxe_odp_mr_copy() adds no offset to the page.
                    detail += "; Soft-RoCE does that to packets under a page: try an MTU of 9000"
                raise CallFailed("RDMA traffic", EIO, detail, elapsed_ns)


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> RegisterOnDemand:
    context, domain = verbs.open_device(around.device, owner)
    operation = RegisterOnDemand(domain, region, verbs.access_flags(case.params["access"]))
    if case.params.get("touch", True):
        if not operation.reachable:
            raise PrepareFailed(
                f"the device cannot touch memory with access {case.params['access']}; "
                "give REMOTE_READ or REMOTE_WRITE, or touch = false"
            )
        bounce = bounce_buffer(around, owner)
        operation.touch_through(verbs.Loopback(context, domain, bounce, owner))
    owner.release_with("ibv_dereg_mr", operation.release)
    return operation


def bounce_buffer(around: Surroundings, owner: Owner) -> Region:
    """Memory for a Loopback to send from, without a zero, and no two neighbouring pages alike."""
    bounce = memory.prepare(workloads.memory_spec("anon"), verbs.BOUNCE_BYTES, around, owner)
    whole = _PATTERN * (len(bounce.buffer) // len(_PATTERN) + 1)
    bounce.buffer[:] = whole[: len(bounce.buffer)]
    return bounce
