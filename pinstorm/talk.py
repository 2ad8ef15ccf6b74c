"""The conversation with a case's child: the runner says which step is next, the child answers.

Nothing is awaited longer than the case's deadline. Time in which the child was made to stand still
is not its own, and puts the deadline off.
"""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pinstorm.spawn import Child

# The end of a killed process's socket comes with its death; only another that has it open is late.
_LAST_WORD_NS = 100_000_000


class DeadlinePassed(Exception):
    """The case took longer than it may."""


class ChildEnded(Exception):
    """The child is gone in mid-case. ``why``: what it said before, when it said anything."""

    def __init__(self, why: str | None = None):
        super().__init__(why)
        self.why = why


class Deadline:
    """When the case must have ended, on CLOCK_MONOTONIC."""

    def __init__(self, seconds: float):
        self.ns = time.monotonic_ns() + round(seconds * 1e9)

    def put_off(self, by_ns: int) -> None:
        self.ns += by_ns

    def leave(self, at_least_ns: int) -> None:
        """See to it that so much is left from now on."""
        self.ns = max(self.ns, time.monotonic_ns() + at_least_ns)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Something is done while the child stands still."""
        began_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.put_off(time.monotonic_ns() - began_ns)


class Talk:
    """One child, until it has ended. ``step``: what it was last told to do."""

    def __init__(self, child: Child, zygote_fileno: int, deadline: Deadline):
        self._child = child
        self._zygote_fileno = zygote_fileno
        self._deadline = deadline
        self.step = "prepare"

    def ask(self, step: str) -> dict[str, Any]:
        """Tell it to take a step, and wait until it has."""
        self.tell(step)
        return self.answer()

    def tell(self, step: str) -> None:
        self.step = step
        self.say(go=step)

    def say(self, **message: Any) -> None:
        """Send it something to which it need not answer."""
        try:
            self._child.channel.send(**message)
        except ConnectionError as error:
            raise ChildEnded from error

    def wait(self) -> None:
        """Until it has something to say. DeadlinePassed, ChildEnded."""
        if not self._spoke(self._deadline.ns):
            raise DeadlinePassed

    def answer(self) -> dict[str, Any]:
        """DeadlinePassed, ChildEnded."""
        self.wait()
        try:
            answer = self._child.channel.receive(self._deadline.ns)
        except TimeoutError as error:
            raise DeadlinePassed from error
        if answer is None:
            raise ChildEnded
        if answer["step"] == "broken":
            raise ChildEnded(answer["detail"])
        return answer

    def last_word(self) -> dict[str, Any] | None:
        """What a child that was killed had still said; None when nothing."""
        with suppress(TimeoutError):
            return self._child.channel.receive(time.monotonic_ns() + _LAST_WORD_NS)
        return None

    def stand(self, seconds: float) -> None:
        """Let it stand, and notice one that ends meanwhile. That time is not the case's."""
        until_ns = time.monotonic_ns() + round(seconds * 1e9)
        if self._spoke(until_ns):  # it has nothing to say but that it ended
            raise ChildEnded
        self._deadline.put_off(round(seconds * 1e9))

    def _spoke(self, until_ns: int) -> bool:
        """Wait for the child's next message; False once CLOCK_MONOTONIC passes ``until_ns``.

        The zygote, or its end, says that the child is gone; the end of the child's own socket does
        not, as long as something that it forked has it open.
        """
        if self._child.channel.has_message:
            return True
        left_s = max(0, until_ns - time.monotonic_ns()) / 1e9
        fileno = self._child.channel.fileno()
        ready, _, _ = select.select([fileno, self._zygote_fileno], [], [], left_s)
        if ready and fileno not in ready:
            raise ChildEnded
        return bool(ready)
