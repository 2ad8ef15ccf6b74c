"""An oracle with a wrong rule: a writable long-term pin of a shared file is expected to succeed.

Planted through lab.run_kernel(include=…), where the guest judges its cases.
"""

from dataclasses import replace

from pinstorm import oracle
from pinstorm.rules import RULES
from pinstorm.rules.rule import PAGES, UP_TO_PAGES

WORKLOADS = ()

_BROKEN = tuple(
    replace(rule, outcomes=("ok",), acquired=PAGES, held=UP_TO_PAGES)
    if rule.name == "longterm-write-file"
    else rule
    for rule in RULES
)
oracle.expectation.__kwdefaults__["rules"] = _BROKEN
