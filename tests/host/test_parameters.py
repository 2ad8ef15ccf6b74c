"""Parameters of every case, on this kernel: offset, processes, an ordinary user and its limit."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import run_cases

from pinstorm import session, suite
from pinstorm.errors import UsageError
from workloads import crew, libc
from workloads.channel import Channel
from workloads.member import Member
from workloads.spec import CallFailed, Case, Planned, PrepareFailed, Surroundings

NOBODY = 65534
SIZE = 64 << 10
PAGES = 16
LOCK_DEADLINE_S = 120.0

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[bool, str], None]) -> Run:
    """Runs one io-uring-register case in this process; its record."""
    need(os.geteuid() == 0, "only root can become another user and see exact counters")
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")
    monkeypatch.chdir(tmp_path)

    def run(**params: Any) -> dict[str, Any]:
        case = Case("io-uring-register", "anon", {"size_bytes": SIZE, **params}, repeat=3)
        loaded = suite.parse(run_cases.TEXT.format(seed=1), "parameters.toml")
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            options = session.Options(out=tmp_path / f"bundle-{time.monotonic_ns()}")
            try:
                outcome = session.run(loaded, [Planned(0, 0, case)], options, lambda line: None)
                return outcome.records[0]
            except UsageError as error:
                if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return run


@pytest.mark.parametrize("offset_bytes", [1, 512, 4095])
def test_an_offset_touches_one_page_more(run: Run, offset_bytes: int) -> None:
    record = run(offset_bytes=offset_bytes)
    assert record["verdict"] == "pass", record["expected"]
    assert record["pins"]["held"] == PAGES + 1
    assert record["params"]["offset_bytes"] == offset_bytes


def test_processes_pin_together_and_give_all_back(run: Run) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    record = run(processes=4)
    assert record["verdict"] == "pass", record["expected"]
    assert record["pins"]["held"] == 4 * PAGES
    assert (record["pins"]["leaked"], record["pins"]["orphaned"]) == (0, 0)
    assert record["vmpin_bytes"]["held"] == SIZE  # of one process
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_a_limit_that_is_too_small_refuses_an_ordinary_user(run: Run) -> None:
    record = run(uid=NOBODY, memlock_bytes=SIZE // 2)
    assert (record["verdict"], record["outcome"]) == ("pass", "ENOMEM"), record["expected"]
    assert record["expected"]["rule"].startswith("io-uring-memlock")
    assert (record["uid"], record["cap_ipc_lock"]) == (NOBODY, False)
    assert record["memlock_bytes"] == SIZE // 2
    assert record["pins"]["leaked"] == 0


def test_a_limit_that_is_enough_does_not(run: Run) -> None:
    record = run(uid=NOBODY, memlock_bytes=1 << 20)
    assert (record["verdict"], record["outcome"]) == ("pass", "ok"), record["expected"]
    assert record["vmpin_bytes"] == {"held": SIZE, "after": 0}
    # where the pages lie was read before the user changed
    assert record["placement"] is not None


def test_a_limit_that_processes_share_is_used_up(run: Run) -> None:
    """user->locked_vm: each of them alone would have room."""
    record = run(uid=NOBODY, memlock_bytes=2 * SIZE + 4096, processes=3)
    assert (record["verdict"], record["outcome"]) == ("pass", "ENOMEM"), record["expected"]
    assert (record["pins"]["leaked"], record["pins"]["orphaned"]) == (0, 0)
    record = run(uid=NOBODY, memlock_bytes=1 << 20, processes=3)
    assert (record["verdict"], record["outcome"]) == ("pass", "ok"), record["expected"]


def test_a_limit_does_not_bind_root(run: Run) -> None:
    record = run(memlock_bytes=4096)
    assert (record["verdict"], record["outcome"]) == ("pass", "ok"), record["expected"]


@pytest.fixture
def pair() -> Iterator[crew.Crew]:
    case = Case("vmsplice", "anon", {"size_bytes": SIZE, "processes": 2})
    serving = crew.Crew(case, Surroundings())
    serving.prepare()
    yield serving
    serving.close()


def test_a_member_that_died_is_told(pair: crew.Crew) -> None:
    (member,) = psutil.Process().children()
    member.kill()
    while member.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    with pytest.raises(PrepareFailed, match="ended early"):
        pair.operation.acquire()


def test_one_refusal_gives_all_back() -> None:
    """A case of several processes acquires as a whole: nobody keeps what another was refused."""
    ours, theirs = Channel.pair()
    with theirs:
        member = Member(0, ours, "case")
        other = Channel(theirs)

        class Refused:
            done_bytes: int | None = None

            def aim_at(self, region: Any) -> None: ...

            def acquire(self) -> int:
                raise CallFailed("io_uring_register", 12)

            def release(self) -> int:
                raise AssertionError("never acquired")

        other.send(ns=5)  # of acquire
        other.send(ns=5)  # of release
        together = crew._Together(Refused(), [member])
        with pytest.raises(CallFailed):
            together.acquire()
        assert [other.receive() for _ in range(2)] == [{"go": "acquire"}, {"go": "release"}]


def test_a_refusal_in_prepare_of_several_processes_is_the_outcome(run: Run) -> None:
    """Answers that nobody read are not taken for the last words of a member."""
    record = run(uid=NOBODY, memlock_bytes=0, processes=3)
    assert (record["verdict"], record["outcome"]) == ("pass", "ENOMEM"), record
    assert record["signal"] is None
    assert record["owner_errors"] == []


def test_the_shortest_transfer_is_the_cases() -> None:
    ours, theirs = Channel.pair()
    with theirs:
        other = Channel(theirs)

        class Whole:
            done_bytes: int | None = None

            def aim_at(self, region: Any) -> None: ...

            def acquire(self) -> int:
                return 1

            def release(self) -> int:
                return 1

        other.send(ns=5, done_bytes=4096)
        together = crew._Together(Whole(), [Member(0, ours, "case")])
        assert together.acquire() == 5
        assert together.done_bytes == 4096


def test_what_differs_between_processes_is_told() -> None:
    refusals = [CallFailed("io_uring_register", 12), CallFailed("io_uring_register", 14)]
    said = crew._one_of(refusals, 3)
    assert (said.errno, "2 of 3 processes were refused: errno 12, 14" in said.detail) == (12, True)
