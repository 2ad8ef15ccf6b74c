"""What a run would do, and run nothing: cases, needs, pins, expected time (``--dry-run``)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pinstorm.needs import Unmet
from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import print_json, print_parts, sheet
from pinstorm.units import format_bytes, format_seconds
from workloads import mapped_bytes, shape, workload_spec
from workloads.spec import Case, Planned

# Rough seconds a case, on two cores. Host: the mean of one run of 32 cases of configs/quick.toml.
# Guests under emulation: configs/matrix.toml took 0.17 s a case on idle cores, others were seen to
# take up to 1.2 s on busy ones, and a boot 10 to 45 s; the figures here lie between.
HOST_CASE_S = 0.16
LAB_CASE_S = 0.3
LAB_BOOT_S = 20.0


def show_plan(
    plan: Sequence[Planned],
    unmet: Mapping[int, Sequence[Unmet]],
    as_json: bool,
    *,
    lab: bool = False,
) -> None:
    """What a run would do, in its order: cases, needs unmet, pins, expected time.

    ``lab``: it would run in guests, whose needs are known only once they have booted.
    """
    if as_json:
        print_json(_plan_entry(plan, unmet, lab))
        return
    rounds = len({planned.round for planned in plan})
    rows: list[tuple[str | Text, ...]] = []
    for planned in plan:
        codes = ", ".join(entry.code for entry in unmet.get(planned.seq, ()))
        rows.append(
            (
                str(planned.seq),
                planned.case.id,
                str(pinned_pages(planned.case)),
                str(planned.case.repeat),
                Text(f"skip: {codes}" if codes else "run", style="dim" if codes else "green"),
            )
        )
    figures = ("pins\npages", "timed\ncycles")
    if lab:
        rows = [row[:-1] for row in rows]
    header = ("seq", "case", *figures) if lab else ("seq", "case", *figures, "here")
    parts: list[RenderableType] = [sheet(header, rows, right=("seq", *figures))]
    parts += ["", Text(_plan_summary(plan, unmet, rounds), style="bold")]
    found = {entry.code: entry for entries in unmet.values() for entry in entries}
    counts = Counter(entry.code for entries in unmet.values() for entry in entries)
    parts += [
        Hanging(f"  {count} skip: {code}", f" ({found[code].detail}; {found[code].remedy})")
        for code, count in counts.most_common()
    ]
    if lab:
        parts.append(Text("what a guest lacks is known once it has booted; it is skipped then"))
    parts.append(Text(f"most pinned at a time: {format_bytes(_peak_bytes(plan, unmet))}"))
    parts += [Hanging("", _time_words(plan, unmet, lab))]
    print_parts(*parts)


def pinned_pages(case: Case) -> int:
    """The pages that the case asks the kernel to pin at a time; 0 where its class takes no pin."""
    takes_pins = workload_spec(case.workload).pin_class in ("pin", "pin-longterm")
    return case.pages * case.processes if takes_pins else 0


def expected_s(cases: Iterable[Case], lab: bool) -> float:
    """A guess at the seconds of cases that run one after the other, without boots."""
    each_s = LAB_CASE_S if lab else HOST_CASE_S
    return sum(each_s + case.hold_s for case in cases)


def _will_run(plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]]) -> list[Case]:
    return [planned.case for planned in plan if not unmet.get(planned.seq)]


def _boots(plan: Sequence[Planned]) -> int:
    return len({shape(planned.case) for planned in plan})


def _peak_bytes(plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]]) -> int:
    """What the budget is held against: the mapped size of the largest case that pins."""
    sizes = [mapped_bytes(case) for case in _will_run(plan, unmet) if pinned_pages(case)]
    return max(sizes, default=0)


def _plan_summary(
    plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]], rounds: int
) -> str:
    running = len(_will_run(plan, unmet))
    words = f"{len(plan)} {'case' if len(plan) == 1 else 'cases'}"
    words += f" in {rounds} rounds" if rounds > 1 else ""
    skipped = len(plan) - running
    return f"{words}: {running} would run" + (f", {skipped} would be skipped" if skipped else "")


def _time_words(plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]], lab: bool) -> str:
    cases = _will_run(plan, unmet)
    at_most_s = sum(case.deadline_s for case in cases)
    where = "in guests under emulation, 0.15 to 1.2 s" if lab else "on a host"
    each_s = LAB_CASE_S if lab else HOST_CASE_S
    total_s = expected_s(cases, lab)
    boots = ""
    if lab:
        total_s += _boots(plan) * LAB_BOOT_S
        shapes = "one guest shape" if _boots(plan) == 1 else f"each of {_boots(plan)} guest shapes"
        boots = f", and a boot of {LAB_BOOT_S:.0f} s for {shapes}"
    return (
        f"expected time: about {format_seconds(total_s)} (roughly: {len(cases)} x "
        f"{each_s} s, as seen on a busy 2-core machine {where}; their holds"
        f"{boots}; large cases take longer); their deadlines allow {format_seconds(at_most_s)}"
    )


def _plan_entry(
    plan: Sequence[Planned], unmet: Mapping[int, Sequence[Unmet]], lab: bool
) -> dict[str, Any]:
    cases = _will_run(plan, unmet)
    boots_s = _boots(plan) * LAB_BOOT_S if lab else 0.0
    return {
        "cases": [
            {
                "seq": planned.seq,
                "round": planned.round,
                "case": planned.case.id,
                "pins_pages": pinned_pages(planned.case),
                "repeat": planned.case.repeat,
                "hold_s": planned.case.hold_s,
                "deadline_s": planned.case.deadline_s,
                "unmet": [entry.to_json() for entry in unmet.get(planned.seq, ())],
            }
            for planned in plan
        ],
        "would_run": len(cases),
        "peak_pinned_bytes": _peak_bytes(plan, unmet),
        "expected_s": round(expected_s(cases, lab) + boots_s, 3),
        "deadlines_s": sum(case.deadline_s for case in cases),
    }
