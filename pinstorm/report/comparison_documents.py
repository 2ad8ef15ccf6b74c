"""``pinstorm compare``: its options, and the comparison as JSON, Markdown or an HTML page."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pinstorm import compare
from pinstorm.compare import Comparison, gate
from pinstorm.compare.timing import Timing
from pinstorm.errors import UsageError
from pinstorm.report import comparison
from pinstorm.report import output as outputs
from pinstorm.report.reason import one_line

TABLE: Final = "table"
FORMATS: Final = (TABLE, "html", "md", "json")
TEMPLATE: Final = "comparison.html.j2"

# A document names so many cases of what is alike; JSON has all of them.
_SHOWN_IN_MARKDOWN: Final = 20
_SHOWN_IN_PAGE: Final = 2000
_MARGIN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%?\s*")
# What stands for itself between backticks in a Markdown table.
_PLAIN = re.compile(r"[\w/=.:+,@%()-]+")
# What means something in Markdown, or in the HTML that it may hold.
_MEANT: Final = "|<>&*_`[]\\~#!"


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of the command."""

    gates: tuple[str, ...] = ()
    strict: bool = False
    margin: str = "5%"
    form: str = TABLE
    output: Path | None = None
    wide: bool = False
    as_json: bool = False


def emit(path_a: Path, path_b: Path, asked: Asked) -> str | None:
    """Compare, and write what was asked for; the sentence of the gates that are broken, if any.

    Raises UsageError, and WriteError when ``output`` cannot be written.
    """
    form = _form(asked)
    gates = [gate.parse(text) for text in asked.gates]
    margin = _margin(asked.margin)
    if asked.output is not None:
        outputs.check(asked.output)
    result = compare.compare(path_a, path_b, margin=margin, gates=gates)
    if form == TABLE:
        comparison.show(result, wide=asked.wide)
    else:
        outputs.write(document(result, form), asked.output)
    return gate.sentence(result.gates, asked.strict)


def document(result: Comparison, form: str) -> str:
    """The comparison in one of FORMATS but the table."""
    if form == "json":
        return json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
    return markdown(result) if form == "md" else page(result)


def _form(asked: Asked) -> str:
    if asked.form not in FORMATS:
        raise UsageError(f"format {asked.form!r} is not known: give {', '.join(FORMATS)}")
    if asked.as_json and asked.form not in (TABLE, "json"):
        raise UsageError(f"--json is --format json, not {asked.form}: give one of them")
    form = "json" if asked.as_json else asked.form
    if asked.output is not None and form == TABLE:
        raise UsageError("--output goes with --format html, md or json: give one of them")
    if asked.wide and form != TABLE:
        raise UsageError(f"--wide goes with the table, not with --format {form}: drop one")
    if asked.strict and not asked.gates:
        raise UsageError("--strict speaks of gates: add --gate")
    return form


def _margin(text: str) -> float:
    match = _MARGIN.fullmatch(text)
    if match is None or not 0 < float(match.group(1)) <= 1000:
        raise UsageError(f"margin {text!r} is no share: write one such as 5%")
    return float(match.group(1)) / 100


# Markdown, for a pull request.


def markdown(result: Comparison) -> str:
    """What changed; lists are cut short, and what did not change is counted."""
    parts = [
        "## pinstorm compare",
        "",
        *[f"- **{side.name}** {_md(comparison.side_words(side))}" for side in (result.a, result.b)],
        *[f"- {side.name}: {_md(note)}" for side in (result.a, result.b) for note in side.notes],
        "",
        f"**{headline(result)}**",
        "",
        _md(comparison.coverage_words(result)),
        *_md_gates(result),
    ]
    rows: list[tuple[str, ...]] = [
        (
            _md(result.labels[one.index]),
            compare.counts(one.before),
            compare.counts(one.after),
            "**flipped**" if one.flipped else "unsteady",
        )
        for one in result.verdicts
    ]
    parts += _md_table("Verdicts", ("case", "A", "B", ""), rows)
    parts += _md_table("Outcomes", ("case", "A to B", "said by"), _md_outcomes(result))
    rows = [
        (_md(comparison.case_name(result, one)), one.verdict, *comparison.time_cells(one))
        for one in called(result)
    ]
    emulated = " (emulated)" if result.emulated else ""
    header = ("case", "verdict", "figure", "A", "B", "B to A", "interval")
    parts += _md_table(f"Times{emulated}", header, rows)
    rows = [(_md(result.labels[one.index]), compare.pin_words(one)) for one in result.pins]
    parts += _md_table("Pins", ("case", "A to B"), rows)
    parts += ["", _md(comparison.time_summary(result))]
    parts += [f"- {_md(note)}" for note in comparison.time_notes(result)]
    rows = [(_md(one.what), _md(one.a), _md(one.b)) for one in result.environment]
    parts += _md_table("Not the same around them", ("", "A", "B"), rows)
    return "\n".join(parts) + "\n"


def headline(result: Comparison) -> str:
    """``nothing changed``, or how many of each kind."""
    counts = result.timings.counts()
    words = [
        (len(result.flips), "verdicts flipped"),
        (len(result.unpredicted), "outcomes changed that no rule predicts"),
        (len(result.unseen), "outcomes did not change that had to"),
        (sum(one.said == "predicted" for one in result.outcomes), "outcomes changed as predicted"),
        (len(result.pins), "pin figures changed"),
        (counts["slower"], "slower"),
        (counts["faster"], "faster"),
    ]
    told = ", ".join(f"{count} {what}" for count, what in words if count)
    return told or comparison.unchanged(result)


def called(result: Comparison) -> list[Timing]:
    """The times that are faster or slower, the slowest first."""
    told = [one for one in result.timings.all if one.verdict in ("faster", "slower")]
    return sorted(told, key=lambda one: -one.ratio)


def _md_gates(result: Comparison) -> list[str]:
    rows = [
        (one.state, _md(one.gate.text), _md("; ".join(comparison.gate_notes(one))))
        for one in result.gates
    ]
    return _md_table("Gates", ("", "gate", ""), rows)


def _md_outcomes(result: Comparison) -> list[tuple[str, ...]]:
    words = {"predicted": "", "either": "left open: ", "unpredicted": "**no rule predicts it** "}
    order = ("unpredicted", "predicted", "either")
    rows: list[tuple[str, ...]] = [
        (
            _md(result.labels[one.index]),
            _md(compare.outcome_words(one)),
            words[one.said] + _md(rules(one)),
        )
        for one in sorted(result.outcomes, key=lambda one: order.index(one.said))
    ]
    lacking: list[tuple[str, ...]] = [
        (_md(result.labels[one.index]), "**did not change**", _md(comparison.foreseen_words(one)))
        for one in result.unseen
    ]
    return lacking + rows


def rules(one: Any) -> str:
    return ", ".join(one.rules)


def _md_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    if not rows:
        return []
    lines = ["", f"### {title}", "", _md_line(header), _md_line(["---"] * len(header))]
    lines += [_md_line(row) for row in rows[:_SHOWN_IN_MARKDOWN]]
    if len(rows) > _SHOWN_IN_MARKDOWN:
        lines += ["", f"and {len(rows) - _SHOWN_IN_MARKDOWN} more"]
    return lines


def _md_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """Text as it is, whatever it has in it: as code where it is plain, else every sign escaped."""
    text = one_line(text)
    if "/" in text and _PLAIN.fullmatch(text):
        return f"`{text}`"
    return "".join(f"&#{ord(c)};" if c in _MEANT else c for c in text)


# HTML.


def page(result: Comparison) -> str:
    """One page that needs nothing else: no script, no network."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    others = [one for one in result.timings.all if one.verdict not in ("faster", "slower")]
    return environment.get_template(TEMPLATE).render(
        r=result,
        headline=headline(result),
        called=called(result),
        others=others[:_SHOWN_IN_PAGE],
        more=max(0, len(others) - _SHOWN_IN_PAGE),
        shown=_SHOWN_IN_PAGE,
        words=comparison,
        compare=compare,
    )
