"""The oracle's rules, and what they say changes between two kernels."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pinstorm import prediction, suite
from pinstorm.prediction import Change, Step
from pinstorm.report.paragraph import Hanging
from pinstorm.report.sheet import print_json, print_parts
from pinstorm.rules import RULES
from pinstorm.rules.rule import ZERO, Bound, Release, Rule

_FIGURES = ("acquired", "held", "vmpin_bytes", "vmlck_bytes", "migrate_success", "migrate_fail")
SYMBOL_WORDS = (
    ("pages", "the case's size in pages of 4 KiB, as often as it is registered"),
    ("range-pages", "the same, but once"),
    ("earlier-pages", "the pages of all registrations but the last"),
    ("moved-pages", "the pages, and once more those of the first registration"),
    ("good-pages", "the pages before the first that has no memory"),
    ("retried-pages", "four times the pages: what a pin that must move pages may take in all"),
    ("attempts", "one for each call that asks GUP: what GUP-fast takes and gives back"),
    ("folios", "the folios that the size touches"),
    ("bytes", "the size in whole pages, in bytes"),
    ("folio-bytes", "the same in whole folios"),
    ("zerocopy-bytes", "what MSG_ZEROCOPY is charged: two pages more for each send"),
    ("processes", "how many do the same at once"),
    ("overflow-pins", "the pins that a small page can have beside its own references: 2^21 less"),
    ("overflow-pages", "2^21 + 2^16 pages, in whole registrations of what is mapped"),
    ("overflow-folios", "the folios of those registrations"),
    ("overflow-bytes", "their bytes"),
)


def show_rules(as_json: bool) -> None:
    """Every rule of the oracle with what it demands and where that is written."""
    if as_json:
        print_json([_rule_entry(rule) for rule in RULES])
        return
    parts: list[RenderableType] = [
        Text(observed_share(RULES)),
        "",
        Text(
            "Of the rules that fit a case and a kernel, those of the kernel's earliest check win,\n"
            "then the one with the most conditions. Leaked and orphaned must always be 0."
        ),
        "",
        *[Text(f"  {symbol:<15} {words}") for symbol, words in SYMBOL_WORDS],
    ]
    for pin_class in dict.fromkeys(rule.pin_class for rule in RULES):
        group = [rule for rule in RULES if rule.pin_class == pin_class]
        parts += ["", Text(f"pin class {pin_class}: {len(group)} rules", style="bold underline")]
        for rule in group:
            parts += ["", *_rule_lines(rule)]
    print_parts(*parts)


def observed_share(rules: Sequence[Rule]) -> str:
    """How many rules rest on a commit, a document, source that was read, and on a run alone."""
    kinds = Counter(_source_kind(rule) for rule in rules)
    share = 100 * kinds["observed"] / len(rules) if rules else 0.0
    return (
        f"{len(rules)} rules: {kinds['commit']} cite a commit, {kinds['document']} a document, "
        f"{kinds['source']} the source of the\nkernels that were read (v6.1, v6.12, v7.2), "
        f"{kinds['observed']} observed ({share:.1f} %)"
    )


def _source_kind(rule: Rule) -> str:
    if rule.observed:
        return "observed"
    if "Linux commit" in rule.source:
        return "commit"
    return "document" if re.match(r"Documentation/|\w+\(\d\)", rule.source) else "source"


def _rule_lines(rule: Rule) -> list[RenderableType]:
    figures = [("acquired", rule.acquired), ("held", rule.held), ("VmPin", rule.vmpin_bytes)]
    figures += [("VmLck", rule.vmlck_bytes)] if rule.vmlck_bytes != ZERO else []
    figures += [("migrated", rule.migrate_success), ("not migrated", rule.migrate_fail)]
    expected = [f"{name} {bound_words(bound)}" for name, bound in figures if bound_words(bound)]
    lines = [
        ("", rule.name),
        ("  cases    ", ", ".join(f"{k} {value_words(v)}" for k, v in rule.when.items())),
        ("  kernels  ", f"{kernel_words(rule.since, rule.until)}; {CHECK_WORDS[rule.check.name]}"),
        ("  expect   ", "; ".join([" or ".join(rule.outcomes), *expected])),
        ("  because  ", rule.why),
        ("  source   ", rule.source + (" (observed)" if rule.observed else "")),
    ]
    return [
        Text(text, style="bold") if not head else Hanging(head, text, indent=len(head))
        for head, text in lines
        if text
    ]


CHECK_WORDS = {
    "ARGUMENTS": "decided by the arguments",
    "MAPPING": "decided by the mapping",
    "PAGES": "decided by where the pages lie",
    "ACCOUNTING": "decided after pinning, by the accounting",
    "DONE": "nothing refuses",
}


def kernel_words(since: Release | None, until: Release | None) -> str:
    """``6.5 and later``, ``before 6.3``, ``6.3 up to 6.12 (not in it)``, ``every kernel``."""
    first = ".".join(map(str, since or ()))
    last = ".".join(map(str, until or ()))
    if first and last:
        return f"{first} and later, before {last}"
    if first:
        return f"{first} and later"
    return f"before {last}" if last else "every kernel"


def bound_words(bound: Bound) -> str:
    """``pages``, ``0 to pages``, ``at least 2 x pages``; empty when anything goes."""
    low, high = (
        "" if amount is None else str(amount).replace("twice-", "2 x ").replace("-and-", " + ")
        for amount in (bound.low, bound.high)
    )
    if low == high:
        return low
    if not high:
        return f"at least {low}"
    return f"{low} to {high}" if low else f"at most {high}"


def value_words(value: Any) -> str:
    if isinstance(value, frozenset):
        return " or ".join(sorted(str(one).lower() for one in value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rule_entry(rule: Rule) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": rule.name,
        "pin_class": rule.pin_class,
        "check": rule.check.name.lower(),
        "when": {
            name: sorted(map(str, value)) if isinstance(value, frozenset) else value
            for name, value in rule.when.items()
        },
        "since": ".".join(map(str, rule.since)) if rule.since else None,
        "until": ".".join(map(str, rule.until)) if rule.until else None,
        "outcomes": list(rule.outcomes),
    }
    for figure in _FIGURES:
        bound: Bound = getattr(rule, figure)
        entry[figure] = {"low": bound.low, "high": bound.high}
    return {**entry, "source": rule.source, "observed": rule.observed, "why": rule.why or None}


def show_diff(names: tuple[str, str], suite_name: str | None, as_json: bool) -> None:
    """The outcomes that the rules say change between two kernels, over the cases of a suite."""
    releases = [prediction.release_named(name, _lab_releases()) for name in names]
    loaded = suite.load(suite_name or _widest_suite())
    cases = suite.expand(loaded).cases
    changes = prediction.predicted_changes(cases, releases[0], releases[1])
    if as_json:
        print_json([change.to_json() for change in changes])
        return
    by_id = {case.id: case for case in cases}
    groups: dict[tuple[tuple[str, ...], ...], tuple[list[Step], list[Change]]] = {}
    for change in sorted(changes, key=lambda change: change.case):
        found = prediction.steps(by_id[change.case], releases[0], releases[1])
        alike = (tuple(step.rule.name for step in found), change.before, change.after)
        groups.setdefault(alike, (found, []))[1].append(change)
    count = "1 case changes its" if len(changes) == 1 else f"{len(changes)} cases change their"
    parts: list[RenderableType] = [
        Hanging("", f"{loaded.name}, {names[0]} to {names[1]}: {count} outcome, of {len(cases)}")
    ]
    for found, group in sorted(groups.values(), key=lambda alike: -len(alike[1])):
        parts += ["", *_change_lines(names, found, group)]
    # a kernel that both names mean is spoken of once
    for release, name in dict(reversed([*zip(releases, names, strict=True)])).items():
        if skipped := sum(prediction.lacks_capability(case, release) for case in cases):
            are = "1 case is" if skipped == 1 else f"{skipped} cases are"
            words = f"{are} skipped on {name}, which lacks what the device must have"
            parts += ["", Hanging("", words)]
    print_parts(*parts)


def _change_lines(
    names: tuple[str, str], found: Sequence[Step], group: Sequence[Change]
) -> list[RenderableType]:
    """What changes and the rules that say so once, then the cases one below the other."""
    before, after = (" or ".join(words) for words in (group[0].before, group[0].after))
    head = f"{names[0]} {before}  ->  {names[1]} {after}  ({len(group)})"
    lines: list[RenderableType] = [Text(head, style="bold")]
    for rule in {step.rule.name: step.rule for step in found}.values():
        bounds = kernel_words(rule.since, rule.until)
        lines.append(Hanging("  rule    ", f"{rule.name} ({bounds})", indent=10))
        lines.append(Hanging("  source  ", rule.source, indent=10))
    return lines + [Hanging("    ", change.case) for change in group]


def _widest_suite() -> str:
    names = [path.stem for path in suite.shipped()]
    return "matrix" if "matrix" in names else "quick"


def _lab_releases() -> dict[str, str]:
    """The releases that the lab's names stand for, as far as they have been asked for."""
    from pinstorm.lab import kernels

    return {known.name: known.release for known in kernels.cached() if known.release}
