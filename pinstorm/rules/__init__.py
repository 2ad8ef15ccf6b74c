"""The kernel rules that verdicts rest on, a module for each family of call sites."""

from typing import Final

from pinstorm.rules import (
    af_xdp,
    direct_io,
    gup_test,
    io_uring,
    longterm,
    on_demand,
    overflow,
    page_data,
    references,
    registered_io,
    udmabuf,
    under,
    v4l2,
    vfio,
)
from pinstorm.rules.rule import Conformance, Rule

_FAMILIES = (
    longterm,
    io_uring,
    af_xdp,
    vfio,
    v4l2,
    udmabuf,
    gup_test,
    direct_io,
    registered_io,
    page_data,
    references,
    on_demand,
    overflow,
    under,
)

RULES: Final[tuple[Rule, ...]] = tuple(rule for family in _FAMILIES for rule in family.RULES)

CONFORMANCE: Final[tuple[Conformance, ...]] = tuple(
    entry for family in _FAMILIES for entry in family.CONFORMANCE
)
