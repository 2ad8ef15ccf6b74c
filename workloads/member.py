"""A process that a case's child has forked: it serves one end of a channel until it is told to end.

Forked before any memory is made, so that none of it is shared. It goes with its parent, however
that ends.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workloads import libc
from workloads.channel import Channel
from workloads.spec import PrepareFailed


@dataclass(frozen=True, slots=True)
class Member:
    """As its parent sees it. ``whole``: what it is a process of, in a sentence."""

    pid: int
    channel: Channel
    whole: str

    @property
    def ended_early(self) -> str:
        return f"process {self.pid} of the {self.whole} ended early"

    def tell(self, **message: Any) -> None:
        """PrepareFailed when it is gone: the child would take that for the runner's end."""
        try:
            self.channel.send(**message)
        except ConnectionError as error:
            raise PrepareFailed(self.ended_early) from error

    def answer(self) -> dict[str, Any] | None:
        """What it says next; None when it is gone."""
        try:
            return self.channel.receive()
        except ConnectionError:
            return None

    def last_words(self) -> list[str]:
        """What it could not give back; earlier answers that nobody read are passed over."""
        while (message := self.answer()) is not None:
            if "errors" in message:
                errors: list[str] = message["errors"]
                return errors
        return [self.ended_early]


def fork(serve: Callable[[Channel], None], whole: str, others: Sequence[Member]) -> Member:
    """One more, which serves and ends. ``others``: whose channels it is not to hold. OSError."""
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        return Member(pid, ours, whole)
    code = 70
    try:
        ours.close()
        for other in others:
            other.channel.close()
        libc.die_with_parent()
        serve(Channel(socket.socket(fileno=theirs.detach())))
        code = 0
    finally:
        os._exit(code)
