"""docs/reference/rules.md."""

from pinstorm.reference import page
from pinstorm.report import rule_listing
from pinstorm.rules import CONFORMANCE, RULES
from pinstorm.rules.rule import ZERO, Call, Conformance, Rule

_FIGURES = {
    "acquired": "acquired",
    "held": "held",
    "vmpin_bytes": "VmPin",
    "vmlck_bytes": "VmLck",
    "migrate_success": "migrated",
    "migrate_fail": "not migrated",
}


def text() -> str:
    """Every rule of the oracle, and every call site that the trace is held against."""
    lines = page.head(
        "Rules",
        "pinstorm/rules/",
        "What the kernel must do, as mainline, stable and Debian kernels from 6.1 on do it. A rule "
        "speaks of properties of workload, memory and machine, never of single cases. "
        "Of the rules that fit a case and a kernel, those of the kernel's earliest check win, then "
        "the one with the most conditions. Leaked and orphaned must always be 0. "
        "`pinstorm list --rules` prints the same, `pinstorm list --rules --diff 6.1 7` what "
        "changes between two kernels.",
        f"{' '.join(rule_listing.observed_share(RULES).split())}. *Observed* are those that were "
        "measured, and that no document, commit or source was found for.",
        "## Amounts",
    )
    lines += page.table(("word", "amount"), [(f"`{s}`", w) for s, w in rule_listing.SYMBOL_WORDS])
    for pin_class in dict.fromkeys(rule.pin_class for rule in RULES):
        group = [rule for rule in RULES if rule.pin_class == pin_class]
        lines += ["", f"## Pin class {pin_class}"]
        for rule in group:
            lines += ["", f"### {rule.name}", "", *_rule(rule)]
    lines += [
        "",
        "## Call sites",
        "",
        page.prose(
            "Which functions of GUP a workload's call site may call, with which flags, and which "
            "of them must be seen when the outcome is ok. `FOLL_` is left out."
        ),
    ]
    lines += page.table(("name", "cases", "kernels", "calls", "proof", "source"), _call_sites())
    return page.whole(lines)


def _rule(rule: Rule) -> list[str]:
    bounds = {name: getattr(rule, figure) for figure, name in _FIGURES.items()}
    shown = [
        f"{name} {words}"
        for name, bound in bounds.items()
        if (words := rule_listing.bound_words(bound)) and not (name == "VmLck" and bound == ZERO)
    ]
    observed = " (observed)" if rule.observed else ""
    said = {
        "cases": _when(rule),
        "kernels": rule_listing.kernel_words(rule.since, rule.until),
        "decided": rule_listing.CHECK_WORDS[rule.check.name],
        "expect": "; ".join([" or ".join(rule.outcomes), *shown]),
        "because": rule.why,
        "source": rule.source + observed,
    }
    return [page.prose(f"- **{head}**: {words}") for head, words in said.items() if words]


def _call_sites() -> list[tuple[str, ...]]:
    return [
        (
            entry.name,
            _when(entry),
            rule_listing.kernel_words(entry.since, entry.until),
            "<br>".join(map(_call, entry.calls)) or "nothing",
            "<br>".join(map(_call, entry.proof)) or "-",
            entry.source,
        )
        for entry in CONFORMANCE
    ]


def _when(entry: Rule | Conformance) -> str:
    return ", ".join(
        f"{name} {rule_listing.value_words(value)}" for name, value in entry.when.items()
    )


def _call(call: Call) -> str:
    given = [*sorted(call.flags), *(f"({flag})" for flag in sorted(call.optional))]
    return " ".join([f"`{call.function}`", *given]).replace("FOLL_", "")
