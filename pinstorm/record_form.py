"""Whether a record has the form of one: a journal may be anybody's, and its tables trust it."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pinstorm.schema import COLUMNS

Check = Callable[[Any], bool]


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_need(value: Any) -> bool:
    return isinstance(value, Mapping) and "code" in value


def _is_span(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(end is None or _is_number(end) for end in value)


# A bound that did not hold was an object once, and a line of the kernel log is one in the journal.
_TEXT_OR_OBJECT: Final[Check] = lambda value: isinstance(value, str | Mapping)  # noqa: E731

_OF_TYPE: Final[Mapping[str, Check]] = {
    "String": _is_text,
    "Int64": _is_number,
    "Float64": _is_number,
    "Boolean": lambda value: isinstance(value, bool),
    "List(Int64)": _is_list_of(_is_number),
    "List(String)": _is_list_of(_TEXT_OR_OBJECT),
}
# Of the columns that are JSON text, but for evidence: its reader says itself what is damaged
# (pinstorm.evidence_parts), and the case is told without it.
_OF_NAME: Final[Mapping[str, Check]] = {
    **dict.fromkeys(("params", "explanation", "disturbed", "load"), _is_object),
    **dict.fromkeys(("placement_zones", "placement_nodes", "folio_orders"), _is_object),
    **dict.fromkeys(("attribution", "pins_per_node", "outcomes"), _is_object),
    "phases": lambda value: _is_object(value) and all(map(_is_span, value.values())),
    **dict.fromkeys(("retries", "gup_calls", "jobs"), _is_list_of(_is_object)),
    "skip": _is_list_of(_is_need),
}


_CHECKS: Final = tuple(
    ((column.path or column.name).split("."), _OF_NAME.get(column.name) or _OF_TYPE[column.type])
    for column in COLUMNS
    if column.name in _OF_NAME or column.type in _OF_TYPE
)


def broken(record: Mapping[str, Any]) -> str | None:
    """The path of the first field that is not of its form; what is not there is none."""
    for path, check in _CHECKS:
        value: Any = record
        for key in path:
            if not isinstance(value, dict):
                return ".".join(path)
            value = value.get(key)
            if value is None:
                break
        else:
            if not check(value):
                return ".".join(path)
    return None
