"""The circumstances under which a case fails (``under``): the runner's half of making them.

What a process can do to itself is made in the child (workloads.circumstances). What takes root or
changes the machine is made here, around the child: control groups, sysctls, the device itself. All
of it goes through pinstorm.host's undo file or the case's own cgroup leaf, and is given back when
the case has ended, however it ended.
"""

from typing import Self

from pinstorm.containment import Containment
from workloads.spec import Case, Surroundings


class Circumstance:
    """What surrounds one case. Entered before the child is forked; left when it is gone."""

    def __init__(self, case: Case, around: Surroundings, containment: Containment):
        self._case = case
        self._around = around
        self._containment = containment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tighten(self, pid: int) -> None:
        """The child is prepared and stands before acquire: take from it what the case is about."""
