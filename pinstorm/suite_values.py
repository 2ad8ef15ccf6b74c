"""Readers of a suite's values: what each accepts, and the sentence for what it does not.

Every reader makes a tuple of a scalar or a list and raises ValueError; pinstorm.suite_file adds the
place to what it says.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from pinstorm.errors import UsageError
from pinstorm.units import parse_size
from workloads.spec import PAGE_BYTES

_Read = TypeVar("_Read")

MAX_SIZE_BYTES = 1 << 40

# enum ibv_access_flags, in the order of <infiniband/verbs.h>. ON_DEMAND is a workload of its own.
ACCESS_FLAGS = (
    "LOCAL_WRITE",
    "REMOTE_WRITE",
    "REMOTE_READ",
    "REMOTE_ATOMIC",
    "MW_BIND",
    "RELAXED_ORDERING",
)
ACCESS_SHORT = {"LOCAL_WRITE|REMOTE_WRITE|REMOTE_READ": "rw", "REMOTE_READ": "ro"}

# The gup_test ioctls that get pages; mm/gup_test.h.
GUP_TEST_MODES = ("GUP_FAST", "GUP_BASIC", "PIN_FAST", "PIN_BASIC", "PIN_LONGTERM")


class Table(BaseModel):
    """A table of the file: no other keys than its own, and no value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like ``name``; None when none is."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def several(value: Any) -> tuple[Any, ...]:
    """One value, or a list of them."""
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values:
        raise ValueError("the list is empty; name at least one, or leave the key out")
    return values


def known(kind: str, names: Sequence[str], value: Any) -> tuple[str, ...]:
    """Names, or shell patterns of names: ``"dio-*"``, ``"*"`` for all."""
    found: dict[str, None] = {}
    for name in several(value):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not a name; write a string or a list of strings")
        matching = [known for known in names if fnmatchcase(known, name)]
        if not matching:
            near = nearest(name, names)
            remedy = f'did you mean "{near}"?' if near else f"there are {listed(names)}"
            raise ValueError(f'there is no {kind} "{name}"; {remedy}')
        found |= dict.fromkeys(matching)
    return tuple(found)


def sizes(value: Any) -> tuple[int, ...]:
    """Sizes: ``"64KiB"``, ``"16MiB"``, or bytes."""
    sizes = []
    for given in several(value):
        size_bytes = checked(parse_size, given)
        if size_bytes == 0:
            raise ValueError("a size of 0 is no case; give at least 1 byte")
        check_largest(size_bytes, given)
        sizes.append(size_bytes)
    return tuple(sizes)


def check_largest(size_bytes: int, given: Any) -> None:
    if size_bytes > MAX_SIZE_BYTES:
        raise ValueError(f"{shown(given)} is over 1 TiB; give a smaller one")


def accesses(value: Any) -> tuple[str, ...]:
    """``rw``, ``ro``, or verbs' flag names joined with ``|``."""
    return tuple(access(given) for given in several(value))


def access(given: Any) -> str:
    """``rw``, ``ro``, or verbs' flag names joined with ``|``; made to stand in verbs' order."""
    if not isinstance(given, str):
        raise ValueError(f'{given!r} is no access; write "rw", "ro" or verbs flags joined with "|"')
    if given in ACCESS_SHORT.values():
        return given
    flags = {word.strip().removeprefix("IBV_ACCESS_") for word in given.split("|")}
    if "ON_DEMAND" in flags:
        raise ValueError(
            f'access "{given}" has ON_DEMAND; leave it out and use the workload rdma-register-odp'
        )
    for flag in sorted(flags - set(ACCESS_FLAGS)):
        near = nearest(flag, (*ACCESS_FLAGS, *ACCESS_SHORT.values()))
        remedy = f'did you mean "{near}"?' if near else f"there are rw, ro, {listed(ACCESS_FLAGS)}"
        raise ValueError(f'there is no access "{flag}"; {remedy}')
    # ib_check_mr_access() in include/rdma/ib_verbs.h: EINVAL before any page is looked at.
    if flags & {"REMOTE_WRITE", "REMOTE_ATOMIC"} and "LOCAL_WRITE" not in flags:
        raise ValueError(
            f'access "{given}" lets the peer write without LOCAL_WRITE, which every kernel '
            "refuses; add LOCAL_WRITE"
        )
    text = "|".join(flag for flag in ACCESS_FLAGS if flag in flags)
    return ACCESS_SHORT.get(text, text)


def flags(value: Any) -> tuple[bool, ...]:
    """True or false."""
    for given in (values := several(value)):
        if not isinstance(given, bool):
            raise ValueError(f"{given!r} is neither true nor false; write one of them")
    return values


def offsets(value: Any) -> tuple[int, ...]:
    """Bytes, less than a page."""
    offsets = tuple(checked(parse_size, given) for given in several(value))
    for offset_bytes in offsets:
        if offset_bytes >= PAGE_BYTES:
            raise ValueError(
                f"offset {offset_bytes} must be under {PAGE_BYTES} bytes; give 0 to "
                f"{PAGE_BYTES - 1}"
            )
    return offsets


def limits(value: Any) -> tuple[int, ...]:
    """Sizes, 0 too: ``"64KiB"``, or bytes."""
    limits = []
    for given in several(value):
        limit_bytes = checked(parse_size, given)
        check_largest(limit_bytes, given)
        limits.append(limit_bytes)
    return tuple(limits)


def counts(low: int, high: int, value: Any) -> tuple[int, ...]:
    """Whole numbers from ``low`` to ``high``."""
    for given in (values := several(value)):
        if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
            raise ValueError(f"{shown(given)} is no number from {low} to {high}; give one")
    return values


def checked(reader: Callable[[Any], _Read], value: Any) -> _Read:
    """Let pydantic add the place to a sentence of pinstorm.units."""
    try:
        return reader(value)
    except UsageError as error:
        raise ValueError(str(error)) from None


def name(value: Any) -> Any:
    """Letters, digits, ``.``, ``_`` and ``-``."""
    # The name becomes part of a directory's.
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(f'"{value}" is no name; use letters, digits, ".", "_" and "-"')
    return value


def shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"
