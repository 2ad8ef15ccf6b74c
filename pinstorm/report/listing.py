"""What there is: workloads, memories and suites with what each needs, and the lab's kernels.

Text for people fits 100 columns; ``--json`` prints one JSON document and nothing else.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pinstorm import needs, suite
from pinstorm.needs import Survey
from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import print_json, print_parts, sheet, yes
from workloads import MEMORY, WORKLOADS, load_case, memory_spec
from workloads.antagonists import ANTAGONISTS
from workloads.load.spec import Job, Load
from workloads.spec import AntagonistSpec, Case, MemorySpec, WorkloadSpec

# One workload and one memory that need nothing: beside them a case shows the other's needs alone.
_NEEDLESS_WORKLOAD = "vmsplice"
_NEEDLESS_MEMORY = "anon"


def show_registry(device: str | None, scratch: Sequence[Path], as_json: bool) -> None:
    """Workloads, memories and suites, what each needs and whether this machine has it."""
    survey = _survey(device, scratch)
    registry = _registry(survey)
    if as_json:
        print_json(registry)
        return
    print_parts(
        _about(registry),
        "",
        sheet(
            ("workload", "pin class", "here", "needs", "what it does"),
            [
                (w["name"], w["pin_class"], yes(w["met"]), ", ".join(w["needs"]), w["summary"])
                for w in registry["workloads"]
            ],
        ),
        "",
        sheet(
            ("memory", "backing", "here", "needs", "what it is"),
            [
                (m["name"], m["backing"], yes(m["met"]), ", ".join(m["needs"]), m["summary"])
                for m in registry["memories"]
            ],
        ),
        "",
        sheet(
            ("antagonist", "here", "needs", "what it does beside a load"),
            [
                (a["name"], yes(a["met"]), ", ".join(a["needs"]), a["summary"])
                for a in registry["antagonists"]
            ],
        ),
        "",
        sheet(
            ("suite", "cases", "run here", "what it is"),
            [
                (s["name"], str(s["cases"]), str(s["runnable"]), s["summary"])
                for s in registry["suites"]
            ],
            right=("cases", "run here"),
        ),
        "",
        *_remedies(registry["unmet"]),
    )


def _survey(device: str | None, scratch: Sequence[Path]) -> Survey:
    # Here, not above: show_rules and show_kernels start no process.
    from pinstorm.spawn import Zygote
    from telemetry import kmsg

    log = kmsg.KernelLog.open()
    zygote = Zygote()
    try:
        zygote.warm_up()
        return needs.survey(
            device=device,
            scratch=scratch or needs.default_scratch(),
            capabilities=zygote.capabilities,
            pyverbs_error=zygote.pyverbs_error,
            log=log,
        )
    finally:
        zygote.close()
        if log is not None:
            log.close()


def _registry(survey: Survey) -> dict[str, Any]:
    workloads = [_workload_entry(spec, survey) for spec in WORKLOADS]
    memories = [_memory_entry(spec, survey) for spec in MEMORY]
    suites = [_suite_entry(path, survey) for path in suite.shipped()]
    antagonists = [_antagonist_entry(spec, survey) for spec in ANTAGONISTS]
    found = [*workloads, *memories, *antagonists]
    unmet = {code: entry for spec in found for code, entry in spec["unmet"].items()}
    return {
        "kernel": platform.release(),
        "device": survey.around.device,
        "scratch": dict(survey.around.scratch),
        "workloads": [{**entry, "unmet": list(entry["unmet"])} for entry in workloads],
        "memories": [{**entry, "unmet": list(entry["unmet"])} for entry in memories],
        "antagonists": [{**entry, "unmet": list(entry["unmet"])} for entry in antagonists],
        "suites": suites,
        "unmet": [entry.to_json() for entry in unmet.values()],
    }


def _workload_entry(spec: WorkloadSpec, survey: Survey) -> dict[str, Any]:
    params = {"size_bytes": memory_spec(_NEEDLESS_MEMORY).granule_bytes, **spec.defaults}
    case = Case(spec.name, _NEEDLESS_MEMORY, params)
    unmet = survey.unmet(case)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "pin_class": spec.pin_class,
        "scope": spec.scope,
        "params": list(spec.params),
        "defaults": dict(spec.defaults),
        "loads": spec.engine is not None,
        "needs": [need.value for need in needs.needs_of(case)],
        "met": not unmet,
        "unmet": {entry.code: entry for entry in unmet},
    }


def _memory_entry(spec: MemorySpec, survey: Survey) -> dict[str, Any]:
    unmet = survey.unmet(Case(_NEEDLESS_WORKLOAD, spec.name, {"size_bytes": spec.granule_bytes}))
    return {
        "name": spec.name,
        "summary": spec.summary,
        "backing": spec.backing,
        "shared": spec.shared,
        "granule_bytes": spec.granule_bytes,
        "fresh_each_cycle": spec.fresh_each_cycle,
        "guest_shape": spec.shape,
        "needs": [need.value for need in spec.needs],
        "met": not unmet,
        "unmet": {entry.code: entry for entry in unmet},
    }


def _antagonist_entry(spec: AntagonistSpec, survey: Survey) -> dict[str, Any]:
    case = load_case(Load(spec.name, (Job(spec.name, spec.name),), 1.0), 1.0)
    unmet = survey.unmet(case)
    return {
        "name": spec.name,
        "summary": spec.summary,
        "params": list(spec.params),
        "defaults": dict(spec.defaults),
        "needs": [need.value for need in needs.needs_of(case)],
        "met": not unmet,
        "unmet": {entry.code: entry for entry in unmet},
    }


def _suite_entry(path: Path, survey: Survey) -> dict[str, Any]:
    loaded = suite.load(path)
    cases = suite.expand(loaded).cases
    return {
        "name": path.stem,
        "path": str(path),
        "summary": _first_comment(loaded.text),
        "rounds": loaded.rounds,
        "cases": len(cases),
        "runnable": sum(not survey.unmet(case) for case in cases),
    }


def _first_comment(text: str) -> str:
    """The first line of a suite, when it is a comment: what the suite is for."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _about(registry: Mapping[str, Any]) -> Text:
    scratch = ", ".join(f"{kind} {path}" for kind, path in registry["scratch"].items()) or "none"
    return Text(
        f"kernel   {registry['kernel']}\n"
        f"device   {registry['device'] or 'none'}\n"
        f"scratch  {scratch}"
    )


def _remedies(unmet: Sequence[Mapping[str, str]]) -> list[RenderableType]:
    if not unmet:
        return [Text("every need is met here")]
    lines: list[RenderableType] = [Text("not here", style="bold")]
    return lines + [
        Hanging("  ", f"{entry['code']}: {entry['detail']}; {entry['remedy']}") for entry in unmet
    ]


def show_kernels(refresh: bool, as_json: bool) -> None:
    """The kernels that the lab can boot; ``refresh`` asks the mirror what there is."""
    from pinstorm.lab import kernels

    known = kernels.available() if refresh else kernels.cached()
    if as_json:
        print_json([asdict(kernel) for kernel in known])
        return
    rows = [(k.name, k.release or "not asked yet", yes(k.cached)) for k in known]
    parts: list[RenderableType] = [sheet(("name", "release", "in the cache"), rows)]
    if not refresh and not all(kernel.cached for kernel in known):
        parts += ["", Text("a run fetches what is missing; --refresh asks the mirror what it has")]
    print_parts(*parts)
