"""What is expected of a load, and what is wrong with one. Pure functions of its record.

Everything that a load pinned must come back, as of every case; and no job may be refused, no block
hold what was not written to it, and nothing grow while it runs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import workloads
from pinstorm.oracle import FIGURES, Expectation, Range
from pinstorm.rules.counters import GIVEN_BACK
from workloads.load.spec import Job

EXPECTED: Final = Expectation(
    rule="load",
    outcomes=("ok",),
    pin_class="pin-longterm",
    bounds=dict.fromkeys(FIGURES, Range(None, None)),
    source=(
        "Documentation/core-api/pin_user_pages.rst: what pin_user_pages*() took, "
        f"unpin_user_page*() gives back; {GIVEN_BACK}"
    ),
    why="how much a load pins at a time is the machine's affair; that all of it comes back is not",
)

# What a trend is called in a sentence, by its key.
_NAMES: Final = {
    "outstanding_pages": "pages outstanding",
    "vmpin_bytes": "bytes of VmPin",
    "vma_count": "VMAs",
    "fd_count": "open files",
    "mr_count": "memory regions",
    "own_rss_bytes": "bytes of pinstorm's own memory",
}


def is_load(record: Mapping[str, Any]) -> bool:
    return record.get("workload") == "load"


def of_job(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record as if the job that was refused had been alone; any other record as it is."""
    failure = (record.get("load") or {}).get("failure") or {}
    name = failure.get("job")
    job = next((job["job"] for job in record.get("jobs") or () if job["name"] == name), None)
    if job is None or workloads.is_antagonist(job["workload"]):
        return record
    case = workloads.job_case(Job.from_json(job))
    alone = {"workload": case.workload, "memory": case.memory, "params": dict(case.params)}
    return {**record, **alone}


def broken(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Reason and sentence of what is wrong with it, beside its outcome, pins and kernel log."""
    load = record.get("load") or {}
    failure = load.get("failure") or {}
    if "mismatch" in failure:
        yield "corruption", f"job {failure['job']}: {failure['mismatch']}"
    for key, trend in (load.get("soak") or {}).items():
        if trend.get("verdict") == "leak":
            low, high = trend["low_per_s"], trend["high_per_s"]
            what = _NAMES.get(key, key)
            yield "leak", f"{low:.3g} to {high:.3g} more {what} a second while the load ran"


def doubt(record: Mapping[str, Any]) -> str | None:
    """Why a pass is not all that was asked for."""
    load = record.get("load") or {}
    if load.get("stopped"):
        return "stopped"
    jobs = [job for job in record.get("jobs") or () if not job["antagonist"]]
    if jobs and not any(job["operations"] for job in jobs):
        return "nothing-counted"  # a count that the ramp has used up, a rate too low
    if (load.get("sampler") or {}).get("died"):
        return "sampler-died"
    steady = load.get("steady")
    if steady is None or steady["reached"] or load["duration_s"] < load["steady_window_s"]:
        return None
    return "not-steady"
