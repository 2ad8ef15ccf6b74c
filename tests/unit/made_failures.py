"""Records and evidence of refusals, for tests of what is made of them."""

from collections.abc import Mapping
from typing import Any

from pinstorm import explain
from pinstorm.evidence import Evidence, Piece, Process
from pinstorm.explain import Explanation, Failure
from workloads.spec import Case

START = 0x7F0000001000
KIB = 1024
V6_1 = "6.1.0-54-amd64"
V6_12 = "6.12.113+deb13-amd64"
V7_2 = "7.2.11+deb13-amd64"


def a_process(**changes: Any) -> Process:
    """Root's, to whom nothing is limited."""
    known: dict[str, Any] = {
        "pid": 4242,
        "name": "ib_write_bw",
        "uid": 0,
        "memlock_soft_bytes": -1,
        "memlock_hard_bytes": -1,
        "address_space_bytes": -1,
        "vmsize_bytes": 100 << 20,
        "vmrss_bytes": 10 << 20,
        "vmpin_bytes": 0,
        "vmlck_bytes": 0,
        "cap_ipc_lock": True,
        "cap_ipc_lock_permitted": True,
        "cap_ipc_lock_inheritable": False,
        "cap_effective": ("CAP_IPC_LOCK", "CAP_NET_RAW", "CAP_SYS_PTRACE"),
        "initial_userns": True,
        "vma_count": 120,
        "vma_limit": 65530,
    }
    return Process(**{**known, **changes})


def an_ordinary_process(memlock_bytes: int, **changes: Any) -> Process:
    """Without a capability, under that limit."""
    return a_process(
        **{
            "uid": 65534,
            "memlock_soft_bytes": memlock_bytes,
            "memlock_hard_bytes": memlock_bytes,
            "cap_ipc_lock": False,
            "cap_ipc_lock_permitted": False,
            "cap_effective": (),
            **changes,
        }
    )


def a_piece(size_bytes: int = 64 * KIB, at: int = 0, **changes: Any) -> Piece:
    """Private anonymous memory, readable and writable."""
    start = START + at
    return Piece(**{"start": start, "end": start + size_bytes, "permissions": "rw-p", **changes})


def a_record(
    workload: str, memory: str, outcome: str | None, call: str | None, **changes: Any
) -> dict[str, Any]:
    """Of one case of 64 KiB; ``params`` are added to its size (and access, for RDMA)."""
    params: dict[str, Any] = {"size_bytes": 64 * KIB}
    if workload.startswith("rdma-"):
        params["access"] = "rw"
    params |= changes.pop("params", {})
    return {
        "case": Case(workload, memory, params).id,
        "workload": workload,
        "memory": memory,
        "params": params,
        "outcome": outcome,
        "failed_call": call,
        "failed_phase": "acquire",
        "verdict": "pass",
        "detail": "",
        "kernel": V7_2,
        "device": "rxe0",
        "driver": "rxe",
        "target_fs": "ext4",
        "uid": params.get("uid", 0),
        "pid": 4242,
        "cap_ipc_lock": "uid" not in params,
        "memlock_bytes": params.get("memlock_bytes", -1),
        "region": [START + params.get("offset_bytes", 0), params["size_bytes"]],
        "evidence": None,
        **changes,
    }


def explained(record: Mapping[str, Any], evidence: Evidence | None = None) -> Explanation:
    """With evidence as it is stored: through JSON's lists."""
    if evidence is not None:
        record = {**record, "evidence": _as_json(evidence.to_json())}
    found = explain.of_record(record)
    assert found is not None
    return found


def of_call(call: str, outcome: str, evidence: Evidence | None = None, **asked: Any) -> Explanation:
    """Of somebody else's program."""
    return explain.of_failure(Failure(call, outcome, **asked), evidence or Evidence())


def causes(explanation: Explanation) -> list[str]:
    return [str(finding.cause) for finding in explanation.findings]


def _as_json(message: Any) -> Any:
    import json

    return json.loads(json.dumps(message))
