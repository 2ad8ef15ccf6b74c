"""A failure and its evidence as the checks look at them: from one place, whatever was gathered.

What the process showed goes before what the case's specs say of it; a check that rests on the specs
alone is less sure (``sees_mapping``, ``sees_process``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import workloads
from pinstorm import oracle
from pinstorm.evidence import Evidence, Piece, Process
from pinstorm.explain import calls
from pinstorm.explain.calls import Mechanism
from pinstorm.explain.finding import Failure
from pinstorm.rules.rule import Fact, Release
from workloads.spec import PAGE_BYTES, Case, MemorySpec

# x86-64 and arm64 with four levels of page tables: what mmap gives out ends there.
ADDRESS_SPACE_END: Final = 1 << 47

# File systems whose pages nobody writes back: no dirty tracking (vma_needs_dirty_tracking()).
_NEVER_WRITTEN_BACK: Final = frozenset(
    ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs", "secretmem", "dmabuf", "anon_inode", "sockfs")
)


@dataclass(frozen=True, slots=True)
class View:
    """``case``, ``memory`` and ``facts`` are empty for somebody else's program."""

    failure: Failure
    evidence: Evidence
    mechanism: Mechanism | None
    case: Case | None = None
    memory: MemorySpec | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)
    release: Release | None = None

    @property
    def record(self) -> Mapping[str, Any]:
        return self.failure.record or {}

    @property
    def outcome(self) -> str:
        return self.failure.outcome

    @property
    def params(self) -> Mapping[str, Any]:
        return self.case.params if self.case is not None else {}

    # -- what was asked ------------------------------------------------------------------------

    @property
    def address(self) -> int | None:
        region = self.record.get("region")
        return int(region[0]) if region else None

    @property
    def size_bytes(self) -> int | None:
        if self.failure.size_bytes is not None:
            return self.failure.size_bytes
        region = self.record.get("region")
        if region:
            return int(region[1])
        return self.case.size_bytes if self.case is not None else None

    @property
    def page_bytes(self) -> int | None:
        """What is asked, in whole pages."""
        if self.case is not None and self.failure.size_bytes is None:
            return self.case.pages * PAGE_BYTES
        return None if self.size_bytes is None else -(-self.size_bytes // PAGE_BYTES) * PAGE_BYTES

    @property
    def charged_bytes(self) -> int | None:
        """What counts against RLIMIT_MEMLOCK in one process; None where nobody knows."""
        if self.case is None or self.memory is None:
            return self.page_bytes
        work = workloads.workload_spec(self.case.workload)
        symbol = work.charged
        if symbol is None or self.mechanism is None:
            return self.page_bytes
        if self.mechanism.name == "io_uring":
            return oracle.RING_BYTES
        charged = oracle.amounts(self.case, self.memory)[symbol]
        # io_uring of v6.14 to v7.1 charges the ring itself as well.
        return charged + (oracle.RING_BYTES if self.mechanism.name == "io_uring buffer" else 0)

    @property
    def writes(self) -> bool | None:
        """Whether the kernel asks for write access; None when nobody said."""
        said = calls.writes(self.failure.call)
        if said is not None:
            return said
        if "writes" in self.facts:
            return bool(self.facts["writes"])
        return None

    @property
    def longterm(self) -> bool:
        if self.mechanism is None:
            return False
        if self.mechanism.name == "gup_test":
            return self.facts.get("pin_class") == "pin-longterm"
        return self.mechanism.pins == "longterm" and not self.on_demand

    @property
    def on_demand(self) -> bool:
        """Registered with IBV_ACCESS_ON_DEMAND."""
        return self.case is not None and self.case.workload == "rdma-register-odp"

    @property
    def forced(self) -> bool:
        """FOLL_FORCE: a private mapping grants everything."""
        if self.mechanism is None or self.release is None or self.release >= (6, 2):
            return False
        read_only_region = self.mechanism.name == "memory region" and self.writes is False
        return read_only_region or self.mechanism.name == "V4L2 buffer"

    @property
    def walks_pages(self) -> bool:
        """Whether the refusal can come from getting user pages."""
        return self.mechanism is not None and self.mechanism.pins != "none"

    def since(self, *release: int) -> bool | None:
        """Whether the kernel is that release or a later one; None where it is not known."""
        return None if self.release is None else self.release >= release

    # -- what the mapping is -------------------------------------------------------------------

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The range's mappings and gaps; empty where nobody looked."""
        pieces = self.evidence.pieces or ()
        if self.address is None or self.size_bytes is None:
            return pieces
        end = self.address + max(1, self.size_bytes)
        return tuple(p for p in pieces if p.start < end and p.end > self.address)

    @property
    def sees_mapping(self) -> bool:
        """Whether the mapping itself was looked at, so that the specs need not be asked."""
        return bool(self.pieces) or (self.evidence.pieces is not None and not self.range_known)

    @property
    def range_known(self) -> bool:
        """Whether the pieces are those of the range that was refused."""
        return self.address is not None

    @property
    def backing(self) -> str | None:
        return self.memory.backing if self.memory is not None else None

    # -- what the process is -------------------------------------------------------------------

    @property
    def process(self) -> Process | None:
        return self.evidence.process

    @property
    def pid(self) -> int | None:
        if self.process is not None:
            return self.process.pid
        pid = self.record.get("pid")
        return int(pid) if pid is not None else None

    @property
    def memlock_bytes(self) -> int | None:
        """The soft limit; -1 unlimited; None where nobody knows."""
        if self.process is not None and self.process.memlock_soft_bytes is not None:
            return self.process.memlock_soft_bytes
        if "memlock_bytes" in self.params:
            return int(self.params["memlock_bytes"])
        limit = self.record.get("memlock_bytes")
        return int(limit) if limit is not None else None

    @property
    def exempt(self) -> bool | None:
        """Whether CAP_IPC_LOCK counts: effective, and in the initial user namespace."""
        process = self.process
        if process is not None and process.cap_ipc_lock is not None:
            return process.cap_ipc_lock and process.initial_userns is not False
        if self.record.get("cap_ipc_lock") is not None:
            return bool(self.record["cap_ipc_lock"])
        if "uid" in self.params:
            return False
        uid = self.record.get("uid")
        return None if uid is None else (True if uid == 0 else None)

    @property
    def device_name(self) -> str | None:
        if self.evidence.device is not None:
            return self.evidence.device.name
        name = self.record.get("device")
        return str(name) if name else None

    @property
    def kernel_log(self) -> tuple[str, ...]:
        """Lines since the case began, from the evidence and from the record."""
        lines = list(self.evidence.kernel_log or ())
        for entry in self.record.get("kmsg") or ():
            lines.append(str(entry.get("text", "")) if isinstance(entry, Mapping) else str(entry))
        return tuple(lines)


def of(failure: Failure, evidence: Evidence) -> View:
    """What can be known of a failure."""
    record = failure.record or {}
    case, memory, facts = _case_of(record)
    return View(
        failure=failure,
        evidence=evidence,
        mechanism=calls.of_call(failure.call),
        case=case,
        memory=memory,
        facts=facts,
        release=_release(failure.kernel or record.get("kernel"), record.get("kernel_version")),
    )


def _case_of(
    record: Mapping[str, Any],
) -> tuple[Case | None, MemorySpec | None, Mapping[str, Fact]]:
    """Empty when it is no case, or one of a workload that this version does not know."""
    try:
        case = Case(record["workload"], record["memory"], record["params"])
        memory = workloads.memory_spec(case.memory)
        return case, memory, oracle.facts(case)
    except (KeyError, TypeError, ValueError):
        return None, None, {}


def _release(kernel: str | None, version: str | None) -> Release | None:
    try:
        return oracle.parse_kernel(kernel or "", version or "").release
    except ValueError:
        return None


# -- of one piece ------------------------------------------------------------------------------


def is_gap(piece: Piece) -> bool:
    return piece.permissions is None


def is_fsdax(piece: Piece) -> bool:
    device = piece.fs_type == "devtmpfs" or piece.path.startswith("/dev/dax")
    return bool(piece.dax) and not device


def is_secret(piece: Piece) -> bool:
    return piece.fs_type == "secretmem" or piece.path.startswith("/secretmem")


def is_dirty_tracked(piece: Piece) -> bool:
    """A shared mapping of a file that is written back."""
    shared = piece.permissions is not None and piece.permissions.endswith("s")
    return (
        shared
        and piece.fs_type is not None
        and piece.fs_type not in _NEVER_WRITTEN_BACK
        and not piece.dax
    )


def is_io(piece: Piece) -> bool:
    return "io" in piece.flags or "pf" in piece.flags
