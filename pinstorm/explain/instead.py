"""The case that does without what is refused here, and that the rules of this kernel say is ok."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import workloads
from pinstorm import oracle
from pinstorm.explain.causes import Cause
from pinstorm.explain.view import View
from workloads.spec import PAGE_BYTES, Case

_PLAIN = ("anon", "memfd")
_OF_CAUSE: Mapping[Cause, tuple[str, ...]] = {
    Cause.LONGTERM_ON_DAX: ("devdax", *_PLAIN),
    Cause.LONGTERM_ON_FILE: ("memfd", "anon"),
    Cause.MIGRATION_FAILED: ("movable",),
    Cause.BAD_ADDRESS: _PLAIN,
    Cause.NOT_MAPPED: _PLAIN,
    Cause.PROTECTION: _PLAIN,
    Cause.SECRET_MEMORY: _PLAIN,
    Cause.IO_MAPPING: _PLAIN,
    Cause.KERNEL_UNSUPPORTED: ("memfd", "anon"),
    Cause.MISALIGNED: (),
    Cause.ODP_UNSUPPORTED: (),
}


def case_instead(view: View, cause: Cause) -> str | None:
    """Its id; None for somebody else's program, and where no case does without."""
    if view.case is None or view.release is None or cause not in _OF_CAUSE:
        return None
    for candidate in _candidates(view, view.case, cause):
        if candidate.id != view.case.id and _succeeds(view, candidate):
            return candidate.id
    return None


def _candidates(view: View, case: Case, cause: Cause) -> Iterator[Case]:
    """The nearest first: as little as possible changes."""
    if cause == Cause.MISALIGNED:
        yield _aligned(case)
        for name in _PLAIN:
            yield replace(_aligned(case), memory=name)
        return
    if cause == Cause.ODP_UNSUPPORTED:
        for name in (case.memory, *_PLAIN):
            yield _as(case, "rdma-register", memory=name)
        return
    if cause == Cause.LONGTERM_ON_DAX and _device_faults(view):
        yield _as(case, "rdma-register-odp")
    if cause in (Cause.LONGTERM_ON_DAX, Cause.LONGTERM_ON_FILE):
        if case.params.get("registered"):
            yield _without(case, "registered")
        if case.params.get("mode") == "PIN_LONGTERM":
            yield replace(case, params={**case.params, "mode": "PIN_FAST"})
    reads = case.params.get("access") == "rw" and cause in (
        Cause.LONGTERM_ON_FILE,
        Cause.PROTECTION,
    )
    if reads:
        yield replace(case, params={**case.params, "access": "ro"})
    for name in _OF_CAUSE[cause]:
        # vfio type1 never gives back its pins of device memory: put_pfn() in vfio_iommu_type1.c
        if (case.workload, name) != ("vfio-map", "devdax"):
            yield replace(case, memory=name)


def _device_faults(view: View) -> bool:
    """Whether the device has on-demand paging: it says so, or it is Soft-RoCE from v6.15 on."""
    if view.case is None or view.case.workload != "rdma-register":
        return False
    device = view.evidence.device
    if device is not None and device.odp is not None:
        return device.odp
    return view.record.get("driver") == "rxe" and bool(view.since(6, 15))


def _aligned(case: Case) -> Case:
    params = {name: value for name, value in case.params.items() if name != "offset_bytes"}
    params["size_bytes"] = -(-case.size_bytes // PAGE_BYTES) * PAGE_BYTES
    return replace(case, params=params)


def _without(case: Case, name: str) -> Case:
    return replace(case, params={key: value for key, value in case.params.items() if key != name})


def _as(case: Case, workload: str, memory: str | None = None) -> Case:
    """Another workload, with those of the parameters that it has."""
    spec = workloads.workload_spec(workload)
    allowed = {*spec.params, "size_bytes"}
    params: dict[str, Any] = {k: v for k, v in case.params.items() if k in allowed}
    return replace(case, workload=workload, memory=memory or case.memory, params=params)


def _succeeds(view: View, case: Case) -> bool:
    """As the rules have it, on the kernel and machine of the record."""
    record = view.record
    machine = oracle.Machine(
        cap_ipc_lock=bool(view.exempt),
        memlock_bytes=view.memlock_bytes,
        driver=record.get("driver"),
        target_fs=record.get("target_fs"),
    )
    try:
        expected = oracle.expectation(
            case,
            view.failure.kernel or str(record.get("kernel")),
            machine,
            kernel_version=str(record.get("kernel_version") or ""),
        )
    except (oracle.NoRule, oracle.AmbiguousRules, KeyError, ValueError):
        return False
    return expected.outcomes == ("ok",)
