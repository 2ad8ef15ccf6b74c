"""Who holds pins on this machine now: what ``pinstorm pins`` prints, and explain's evidence of what
else a user holds.

Levels, at one moment; each figure is from the kernel interface that its telemetry module names.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["rdma-mr", "io-uring", "xdp-umem", "vfio", "mlock"]


@dataclass(frozen=True, slots=True)
class Held:
    """One kind of thing that a process holds. ``size_bytes``: None where the kernel does not say.

    ``pages``: pins that it accounts for, by the rules of that kind; None where that is not known.
    """

    kind: Kind
    count: int
    size_bytes: int | None
    pages: int | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something. Bytes."""

    pid: int
    name: str
    uid: int | None
    vmpin_bytes: int | None
    vmlck_bytes: int | None
    held: tuple[Held, ...] = ()


@dataclass(frozen=True, slots=True)
class Census:
    """``outstanding_pages``: acquired minus released since boot, with its error ``bound_pages``;
    None without counters. ``accounted_pages``: what the holders explain of it. ``hidden``: what
    could not be seen, one sentence each, with the remedy."""

    holders: tuple[Holder, ...]
    acquired: int | None
    released: int | None
    outstanding_pages: int | None
    bound_pages: int
    accounted_pages: int
    hidden: tuple[str, ...] = ()

    @property
    def unaccounted_pages(self) -> int | None:
        if self.outstanding_pages is None:
            return None
        return self.outstanding_pages - self.accounted_pages


def holders(uid: int | None = None) -> tuple[tuple[Holder, ...], tuple[str, ...]]:
    """Every process that holds something, or those of one user; and what could not be seen."""
    return (), ()


def census() -> Census:
    """All of it."""
    found, hidden = holders()
    return Census(found, None, None, None, 0, 0, hidden)
