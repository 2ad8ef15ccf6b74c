"""What is wrong around a case on purpose (``under``): the child's halves, one module each.

A module has a ``prepare(case, around, owner)``, which is called before anything else of the case is
made, as the user that pinstorm runs as: what it forks shares no memory with the case, and can
become any user. What it returns may put itself around the operation once that is prepared, when
the process is the case's user. What needs root later than that, or changes the machine, is the
runner's half: pinstorm.circumstances.
"""

from workloads.memory import Region
from workloads.spec import Operation


class Made:
    """A circumstance that lasts from here on, and leaves the operation as it is."""

    def around(self, operation: Operation, region: Region) -> Operation:
        """The operation as the case shall do it."""
        return operation


class Surrounded:
    """An operation with something around it; by itself it does what the operation does."""

    def __init__(self, operation: Operation, region: Region):
        self._operation = operation
        self._region = region

    @property
    def done_bytes(self) -> int | None:
        return self._operation.done_bytes

    @done_bytes.setter
    def done_bytes(self, value: int | None) -> None:
        self._operation.done_bytes = value

    def aim_at(self, region: Region) -> None:
        self._region = region
        self._operation.aim_at(region)

    def acquire(self) -> int:
        return self._operation.acquire()

    def release(self) -> int:
        return self._operation.release()
