"""The figures of a load that has not ended, or whose run was killed: up to its last interval."""

from typing import Any

from pinstorm import intervals, suite
from pinstorm.bundle import Bundle
from pinstorm.load_case.tally import LoadTally
from workloads.load.spec import Load


def figures(bundle: Bundle, case_id: str) -> dict[str, Any]:
    """The record's ``jobs`` and ``load`` as far as they go; nothing of a case that is no load."""
    load = _load_of(bundle, case_id)
    path = bundle.path / intervals.INTERVALS
    if load is None or not path.exists():
        return {}
    numbers = {job.name: number for number, job in enumerate(load.jobs)}
    tally = LoadTally(load)
    for interval in intervals.read(path):
        if interval.case == case_id and interval.job in numbers:
            told = {**interval.to_json(), "job": numbers[str(interval.job)]}
            tally.add({**told, "process": interval.process or 0})
    return {
        "jobs": tally.jobs_json(),
        "load": {
            "duration_s": load.duration_s,
            "interval_s": load.interval_s,
            "steady": tally.steadiness.to_json(),
            "steady_window_s": load.steady.window_s,
            "stopped": None,
            "failure": None,
            "sampler": None,
            "soak": {},
        },
    }


def _load_of(bundle: Bundle, case_id: str) -> Load | None:
    """As the run had it: its suite's text stands in the manifest, and so does --hold."""
    said = bundle.manifest.get("suite") or {}
    if "text" not in said:
        return None
    parsed = suite.parse(said["text"], str(said.get("origin")))
    hold_s = said.get("hold_s")
    if hold_s and hold_s != parsed.hold_s:
        parsed = parsed.with_hold(hold_s)
    return next((load for load in parsed.loads if f"load/{load.name}" == case_id), None)
