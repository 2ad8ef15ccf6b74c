"""The figures of a load that has not ended, or whose run was killed: up to its last interval."""

from typing import Any

from pinstorm import intervals, suite
from pinstorm.bundle import Bundle
from pinstorm.intervals import Interval
from pinstorm.load_case.tally import Tally, said_of, said_of_load
from workloads.load.spec import Job, Load


def figures(bundle: Bundle, case_id: str) -> dict[str, Any]:
    """The record's ``jobs`` and ``load`` as far as they go; nothing of a case that is no load."""
    load = _load_of(bundle, case_id)
    path = bundle.path / intervals.INTERVALS
    if load is None or not path.exists():
        return {}
    totals = intervals.totals(i for i in intervals.read(path) if i.case == case_id)
    held = {job: total for ((_, job), phase), total in totals.items() if phase == "hold"}
    return {
        "jobs": [_figures_of(job, held.get(job.name)) for job in load.jobs],
        # Whether it is steady stays unknown: a long load's lines were merged.
        "load": said_of_load(load),
    }


def _figures_of(job: Job, total: Interval | None) -> dict[str, Any]:
    tally = Tally()
    if total is not None:
        tally.add(total.to_json())
    return {**said_of(job), "part": "hold", **tally.to_json()}


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
