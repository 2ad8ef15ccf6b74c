"""What a page says: all of its parts in words and numbers, none of it HTML."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl

from pinstorm import __version__
from pinstorm.frames import Frames
from pinstorm.manifest_form import part
from pinstorm.report.html import (
    aggregates,
    case_details,
    case_table,
    concerns,
    loads,
    places,
    reasons,
)
from pinstorm.report.html.aggregates import NOT_PASSED, Side
from pinstorm.report.html.case_details import Detail
from pinstorm.report.html.case_table import CaseRows
from pinstorm.report.html.concerns import Concern
from pinstorm.report.html.heat_map import HeatMap, heat_map
from pinstorm.report.html.loads import LoadPart
from pinstorm.report.html.places import Again, Command, Manifest, Place
from pinstorm.report.html.reasons import Named
from pinstorm.report.html.words import SIGNS, case_ids, plural

# At most so many lines of the table of cases, and cases in full; fewer where the page is too large.
LINES: Final = 4000
DETAILS: Final = 160


@dataclass(slots=True)
class Page:
    title: str
    verdict: str
    tone: str
    sign: str
    kernels: tuple[Side, ...]
    emulated: bool
    mixed: bool
    places_head: tuple[str, ...]
    places: list[Place]
    places_left: int
    notes: list[str]
    concerns: list[Concern]
    map: HeatMap
    details: list[Detail]
    details_left: int
    loads: list[LoadPart]
    loads_left: int
    columns: tuple[str, ...]
    cases: list[CaseRows]
    cases_total: int
    repeated: bool
    skips: list[tuple[str, str, int]]
    rules: list[Named]
    causes: list[Named]
    manifests: list[Manifest]
    manifests_left: int
    again: list[Again]
    commands: dict[str, str]
    made: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    version: str = __version__


def page(frames: "Frames[pl.LazyFrame]", command: Command) -> Page:
    """``command``: what runs a bundle's suite again, from its manifest."""
    rows = aggregates.marked(frames.cases)
    states = aggregates.states(rows)
    sides = aggregates.sides(states)
    cases = aggregates.by_case(states)
    of_bundles = aggregates.of_bundles(frames.cases)
    # The worst cases, as many as fit.
    shown = cases.filter(pl.col("sides").cum_sum() <= LINES)
    groups = aggregates.groups(rows, shown)
    counts = dict(of_bundles.group_by("bundle").agg(pl.col("runs").sum()).iter_rows())
    runs = aggregates.picked(frames, groups["pick"].to_list(), counts)
    ids = case_ids(shown["case"].to_list())
    of_case: dict[str, list[dict[str, Any]]] = {}
    for group in aggregates.told(groups, states, runs).iter_rows(named=True):
        of_case.setdefault(group["case"], []).append(group)
    to_tell = (pl.col("severity") >= NOT_PASSED) | pl.col("surprising")
    told = shown.filter(to_tell).head(DETAILS)
    details = _details(runs, told, of_case, sides, ids, _commands(frames, command))
    verdicts = _counts(states)
    verdict, tone, sign = concerns.verdict_line(verdicts, cases, sides)
    where = places.places(frames, of_bundles)
    of_loads = states.filter(pl.col("workload") == "load")["runs"].to_list()
    of_load = loads.loads(frames.cases, sides) if of_loads else []
    suites = list(
        dict.fromkeys(
            str(places.suite_of(m).get("name") or "no name") for m in frames.manifests.values()
        )
    )
    return Page(
        title=_title(suites, sides),
        verdict=verdict,
        tone=tone,
        sign=SIGNS[sign],
        kernels=tuple(sides),
        emulated=bool(sides) and all(side.emulated for side in sides),
        mixed=len({side.emulated for side in sides}) > 1,
        places_head=places.HEAD,
        places=where[: places.MOST_BUNDLES],
        places_left=max(0, len(where) - places.MOST_BUNDLES),
        notes=[*frames.notes, *places.pooled(frames)],
        concerns=list(concerns.concerns(cases, states, of_load, ids, verdicts)),
        map=heat_map(states, cases, sides, ids),
        details=details,
        details_left=cases.filter(to_tell).height - len(details),
        loads=of_load,
        loads_left=sum(of_loads) - len(of_load),
        columns=case_table.columns(sides, groups),
        cases=list(
            case_table.case_rows(shown, of_case, sides, ids, {d.case for d in details}, groups)
        ),
        cases_total=cases.height,
        repeated=case_table.several(groups),
        skips=reasons.skips(frames.cases) if verdicts["skip"] else [],
        rules=reasons.rules(runs),
        causes=reasons.causes(runs),
        manifests=places.manifests(frames),
        manifests_left=max(0, len(frames.manifests) - places.MOST_MANIFESTS),
        again=places.again(frames, command),
        commands=_of_sides(frames, sides, command),
    )


def _commands(frames: "Frames[pl.LazyFrame]", command: Command) -> Callable[[str], str]:
    return lambda bundle: command(frames.manifests.get(bundle) or {})


def _of_sides(
    frames: "Frames[pl.LazyFrame]", sides: Sequence[Side], command: Command
) -> dict[str, str]:
    """What repeats the first bundle of each kernel, by the kernel's label."""
    found: dict[str, str] = {}
    for manifest in frames.manifests.values():
        kernel = part(manifest, "kernel").get("release")
        for side in sides:
            if (side.kernel, side.accel) == (kernel, manifest.get("accel")):
                found.setdefault(side.label, command(manifest))
    return found


def _title(suites: Sequence[str], sides: Sequence[Side]) -> str:
    what = suites[0] if len(suites) == 1 else f"{suites[0]} and {plural(len(suites) - 1, 'other')}"
    if len(sides) == 1:
        return f"{what} on {sides[0].kernel}"
    return f"{what} on {plural(len(sides), 'kernel')}"


def _counts(states: pl.DataFrame) -> Counter[str]:
    found = states.group_by("verdict").agg(pl.col("runs").sum())
    return Counter(dict(found.iter_rows()))


def _details(
    runs: pl.DataFrame,
    told: pl.DataFrame,
    of_case: Mapping[str, list[dict[str, Any]]],
    sides: Sequence[Side],
    ids: Mapping[str, str],
    command: Callable[[str], str],
) -> list[Detail]:
    names = told["case"].to_list()
    of_name: dict[str, list[dict[str, Any]]] = {}
    for run in runs.filter(pl.col("case").is_in(names)).iter_rows(named=True):
        of_name.setdefault(run["case"], []).append(run)
    return [
        case_details.detail(name, ids[name], of_case[name], of_name[name], sides, command)
        for name in names
        if name in of_name
    ]
