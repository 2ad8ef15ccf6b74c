"""Several processes that do the same at once, each to memory of its own (``processes``).

The first one is the child that the runner sees: its VmPin, VmLck and placement are recorded. The
others are forked before any memory is made, so that none of it is shared, and go when they are
told.
"""

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from workloads.channel import Channel
from workloads.member import Member, fork
from workloads.prepared import Prepared
from workloads.spec import CallFailed, Case, Operation, PrepareFailed, Surroundings


class Child(Protocol):
    """What serves a case: one process, several that do the same, or a load's."""

    errors: list[str]
    memory_ns: int
    operation: Operation

    @property
    def case(self) -> Case: ...

    def prepare(self) -> None: ...

    def region_bytes(self) -> tuple[int, int]: ...

    def placement(self) -> dict[str, Any] | None: ...

    def members(self) -> list[dict[str, int]]: ...

    def renew_memory(self) -> None: ...

    def disturb(self) -> int: ...

    def load(self, runner: Channel) -> dict[str, Any]: ...

    def close(self) -> None: ...


def of(case: Case, around: Surroundings) -> Child:
    """What serves the case: this process alone, or with others."""
    if case.load is not None:
        # numpy comes with it, which no other case waits for
        from workloads.load.leader import Leader

        return Leader(case, around)
    return Crew(case, around) if case.processes > 1 else Prepared(case, around)


class Crew:
    """The same interface as Prepared; every step is taken by all processes."""

    def __init__(self, case: Case, around: Surroundings):
        self._first = Prepared(case, around)
        self._members: list[Member] = []
        self.errors = self._first.errors
        self.memory_ns = 0

    def prepare(self) -> None:
        case = self._first.case
        for _ in range(case.processes - 1):
            serve = partial(_serve, prepared=self._first)
            self._members.append(fork(serve, "case", self._members))
        self._first.prepare()
        for member in self._members:
            _said(member)
        self.memory_ns = self._first.memory_ns
        self.operation: Operation = _Together(self._first.operation, self._members)

    def renew_memory(self) -> None:
        _tell(self._members, "renew")
        self._first.renew_memory()
        for member in self._members:
            _said(member)

    def disturb(self) -> int:
        """In all of them; the slowest one's time."""
        _tell(self._members, "disturb")
        elapsed_ns = self._first.disturb()
        for member in self._members:
            elapsed_ns = max(elapsed_ns, _said(member)["ns"])
        return elapsed_ns

    def region_bytes(self) -> tuple[int, int]:
        return self._first.region_bytes()

    def members(self) -> list[dict[str, int]]:
        """The others, by pid; processes count from 0, which is this one."""
        return [
            {"job": 0, "process": number, "pid": member.pid}
            for number, member in enumerate(self._members, 1)
        ]

    def load(self, runner: Channel) -> dict[str, Any]:
        raise PrepareFailed("the case is no load")

    def placement(self) -> dict[str, Any] | None:
        return self._first.placement()

    @property
    def case(self) -> Case:
        return self._first.case

    def close(self) -> None:
        """All of them end, and are waited for; what they could not give back is told."""
        for member in self._members:
            with suppress(PrepareFailed):
                _tell([member], "close")
        self._first.close()
        for member in self._members:
            self._first.errors += member.last_words()
            member.channel.close()
            os.waitpid(member.pid, 0)
        self._members = []


class _Together:
    """One operation of all processes. Its time is the slowest one's."""

    def __init__(self, own: Operation, members: list[Member]):
        self.done_bytes: int | None = None
        self._own = own
        self._members = members
        self._size = 1 + len(members)

    def aim_at(self, region: Any) -> None:
        self._own.aim_at(region)

    def acquire(self) -> int:
        """Whoever succeeded gives back when another is refused: a case acquires whole or not."""
        self.done_bytes = None
        elapsed_ns, refusals, done = self._step("acquire")
        if refusals:
            _tell(done, "release")
            for member in done:
                _said(member)
            raise _one_of(refusals, self._size)
        return elapsed_ns

    def release(self) -> int:
        elapsed_ns, refusals, _ = self._step("release")
        if refusals:
            raise _one_of(refusals, self._size)
        return elapsed_ns

    def _step(self, step: str) -> tuple[int, list[CallFailed], list[Member]]:
        """The slowest time, who was refused, and the other processes that were not."""
        _tell(self._members, step)
        elapsed_ns, refusals, done = 0, [], []
        own_done = False
        try:
            elapsed_ns = getattr(self._own, step)()
            own_done = True
            self._note_short(self._own.done_bytes)
        except CallFailed as error:
            refusals.append(error)
        for member in self._members:
            try:
                answer = _said(member)
                elapsed_ns = max(elapsed_ns, answer["ns"])
                done.append(member)
                self._note_short(answer.get("done_bytes"))
            except CallFailed as error:
                refusals.append(error)
        if refusals and own_done and step == "acquire":
            self._own.release()
        return elapsed_ns, refusals, done

    def _note_short(self, done_bytes: int | None) -> None:
        """The shortest transfer of all is the case's."""
        if done_bytes is not None:
            self.done_bytes = min(done_bytes, self.done_bytes or done_bytes)


def _one_of(refusals: list[CallFailed], processes: int) -> CallFailed:
    """The first refusal, which says how many there were, and which others."""
    first = refusals[0]
    if len(refusals) == processes and len({error.errno for error in refusals}) == 1:
        return first
    errnos = ", ".join(str(error.errno) for error in refusals)
    detail = f"{len(refusals)} of {processes} processes were refused: errno {errnos}"
    words = "; ".join(filter(None, (first.detail, detail)))
    return CallFailed(first.call, first.errno, words, first.elapsed_ns)


def _tell(members: list[Member], step: str) -> None:
    for member in members:
        member.tell(go=step)


def _said(member: Member) -> dict[str, Any]:
    """What it says of the last step; a refusal of the kernel is raised here as there."""
    message = member.answer()
    if message is None:
        raise PrepareFailed(member.ended_early)
    if "errno" in message:
        raise CallFailed(
            message["call"], message["errno"], message["detail"], message["elapsed_ns"]
        )
    if "error" in message:
        raise PrepareFailed(message["error"])
    return message


def _serve(channel: Channel, prepared: Prepared) -> None:
    """One of the others, until it is told to close or the first one is gone."""
    params = {name: value for name, value in prepared.case.params.items() if name != "processes"}
    prepared.case = replace(prepared.case, params=params)
    try:
        _answer(channel, prepared.prepare)
        while (message := channel.receive()) is not None and message["go"] != "close":
            step = message["go"]
            if step in ("renew", "disturb"):
                _answer(channel, prepared.renew_memory if step == "renew" else prepared.disturb)
            else:
                _answer(channel, getattr(prepared.operation, step), prepared.operation)
    except ConnectionError:
        pass
    finally:
        prepared.close()
    with suppress(ConnectionError):
        channel.send(errors=prepared.errors)


def _answer(channel: Channel, step: Any, operation: Operation | None = None) -> None:
    try:
        elapsed_ns = step() or 0
        done_bytes = None if operation is None else operation.done_bytes
        channel.send(ns=elapsed_ns, done_bytes=done_bytes)
    except CallFailed as error:
        channel.send(
            call=error.call,
            errno=error.errno,
            detail=error.detail,
            elapsed_ns=error.elapsed_ns,
        )
    except (PrepareFailed, OSError) as error:
        channel.send(error=str(error))
