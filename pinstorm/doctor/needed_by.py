"""Which workloads, memories and antagonists ask for something: why a finding matters."""

from collections.abc import Sequence
from typing import Final

from workloads import MEMORY, WORKLOADS
from workloads.antagonists import ANTAGONISTS
from workloads.spec import Need

_KINDS: Final = (
    ("workload", WORKLOADS),
    ("memory", MEMORY),
    ("antagonist", ANTAGONISTS),
)
_MOST: Final = 6


def needed_by(*needs: Need) -> str:
    """``workloads vfio-map; memories ksm``: what cannot be had without them."""
    words = [
        f"{_plural(kind) if len(names) > 1 else kind} {_list(names)}"
        for kind, specs in _KINDS
        if (names := [spec.name for spec in specs if set(needs) & set(spec.needs)])
    ]
    return "; ".join(words)


def _plural(kind: str) -> str:
    return kind[:-1] + "ies" if kind.endswith("y") else f"{kind}s"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
