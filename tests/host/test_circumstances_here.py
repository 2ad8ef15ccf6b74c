"""What this machine can make of configs/failures.toml without a device, and unchanged: the cause
that is named is the one that was made, and its remedy helps."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import run_cases

from pinstorm import session, suite
from pinstorm.errors import UsageError
from pinstorm.needs.memory import has_capability
from telemetry import process_status
from workloads import user
from workloads.circumstances import rival
from workloads.owner import Owner
from workloads.spec import MIB, Case, Planned, PrepareFailed, Surroundings

NOBODY = 65534
SIZE = 64 << 10
LOCK_DEADLINE_S = 120.0

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[[bool, str], None]) -> Run:
    """Runs one case in this process; its record. A case that this machine cannot run is skipped."""
    need(os.geteuid() == 0, "only root can become another user")
    monkeypatch.chdir(tmp_path)

    def run(workload: str, memory: str = "anon", **params: Any) -> dict[str, Any]:
        case = Case(workload, memory, {"size_bytes": SIZE, **params}, repeat=0, remedy=True)
        loaded = suite.parse(run_cases.TEXT.format(seed=1), "circumstances.toml")
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            out = tmp_path / f"bundle-{time.monotonic_ns()}"
            options = session.Options(out=out, setup=True)
            try:
                outcome = session.run(loaded, [Planned(0, 0, case)], options, lambda line: None)
            except UsageError as error:
                if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            (record,) = outcome.records
            need(record["verdict"] != "skip", f"{case.id}: {record.get('skip')}")
            return record

    return run


def check_remedy(record: dict[str, Any]) -> None:
    """Raising another user's limit takes CAP_SYS_RESOURCE, which a container's root often lacks."""
    (retry,) = record["retries"]
    if has_capability("CAP_SYS_RESOURCE"):
        assert (retry["applied"]["exit"], retry["outcome"]) == (0, "ok"), retry
    else:
        assert retry["applied"]["exit"] not in (0, None), retry
        assert retry["outcome"] == record["outcome"]


@pytest.mark.parametrize("under", ["rival-io-uring", "rival-af-xdp"])
@pytest.mark.parametrize(
    ("workload", "outcome"),
    [("io-uring-register", "ENOMEM"), ("af-xdp-umem", "ENOBUFS"), ("msg-zerocopy", "ENOBUFS")],
)
def test_a_rival_of_the_same_user(run: Run, workload: str, outcome: str, under: str) -> None:
    record = run(workload, uid=NOBODY, memlock_bytes=MIB, under=under)
    assert (record["verdict"], record["outcome"]) == ("pass", outcome), record["expected"]
    assert record["cause"] == "pin-budget-of-user", record["explanation"]
    check_remedy(record)
    assert record["owner_errors"] == []


@pytest.mark.parametrize(
    ("workload", "outcome"), [("io-uring-register", "ENOMEM"), ("msg-zerocopy", "ENOBUFS")]
)
@pytest.mark.parametrize(
    ("under", "cause"),
    [({}, "memlock-limit"), ({"under": "ipc-lock-unused"}, "capability-missing")],
)
def test_a_small_limit(
    run: Run, workload: str, outcome: str, under: dict[str, str], cause: str
) -> None:
    record = run(workload, uid=NOBODY, memlock_bytes=SIZE // 2, **under)
    assert (record["verdict"], record["outcome"]) == ("pass", outcome), record["expected"]
    assert record["cause"] == cause, record["explanation"]
    check_remedy(record)


@pytest.mark.parametrize(
    ("memory", "cause"), [("beyond", "bad-address"), ("io-mapping", "io-mapping")]
)
def test_addresses_that_are_no_memory(run: Run, memory: str, cause: str) -> None:
    record = run("io-uring-register", memory, size_bytes=8192)
    assert (record["verdict"], record["outcome"]) == ("pass", "EFAULT"), record["expected"]
    assert record["cause"] == cause, record["explanation"]


def test_the_rival_holds_its_part_and_goes(need: Callable[[bool, str], None]) -> None:
    need(os.geteuid() == 0, "only root can become another user")
    params = {"size_bytes": SIZE, "uid": NOBODY, "memlock_bytes": MIB, "under": "rival-io-uring"}
    owner = Owner()
    try:
        rival.prepare(Case("io-uring-register", "anon", params), Surroundings(), owner)
        (process,) = psutil.Process().children()
        status = process_status.read(process.pid)
        assert status is not None
        assert status.uid == NOBODY
        assert status.vmpin_bytes == MIB - rival.ROOM_BYTES
    finally:
        owner.close()
    assert owner.errors == []
    assert not process.is_running()


def test_a_rival_needs_a_limit_to_share() -> None:
    owner = Owner()
    try:
        with pytest.raises(PrepareFailed, match="give user and memlock"):
            rival.prepare(
                Case("msg-zerocopy", "anon", {"size_bytes": SIZE, "under": "rival-io-uring"}),
                Surroundings(),
                owner,
            )
    finally:
        owner.close()


def test_a_capability_that_is_not_effective(need: Callable[[bool, str], None]) -> None:
    """Permitted and inheritable; what the kernel asks for is the effective set."""
    need(os.geteuid() == 0, "only root has capabilities to leave unused")
    params = {"size_bytes": SIZE, "uid": NOBODY, "under": "ipc-lock-unused"}
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            user.become(Case("io-uring-register", "anon", params))
            os.write(writer, Path("/proc/self/status").read_bytes())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        status = process_status.parse(pipe.read().decode())
    os.waitpid(pid, 0)
    ipc_lock = 1 << 14
    assert (status.cap_eff, status.cap_prm, status.cap_inh) == (0, ipc_lock, ipc_lock)
