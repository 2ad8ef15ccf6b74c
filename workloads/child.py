"""A case's own process: prepare, one observed cycle between go-signals, then the timed cycles.

The runner takes its snapshots while this process stands still between two phases, so whatever
could pin by itself (opening a device, faulting in code, touching memory) happens in *prepare*, and
nothing is imported here.
"""

import gc
import importlib
from collections import Counter
from errno import EOPNOTSUPP, errorcode
from typing import Any

import workloads
from telemetry import placement
from workloads import memory
from workloads.channel import Channel
from workloads.owner import Owner
from workloads.spec import CallFailed, Case, Operation, PrepareFailed, Surroundings


class RunnerGone(Exception):
    """The runner closed its end: nobody is left to measure for."""


def errno_name(number: int) -> str:
    """The errno's name as the kernel's own documents spell it."""
    # Python's table calls 95 ENOTSUP, which on Linux is the same number.
    return "EOPNOTSUPP" if number == EOPNOTSUPP else errorcode.get(number, f"errno-{number}")


def run(channel: Channel, case: Case, around: Surroundings) -> None:
    """Serve one case's phases until the runner says close or goes away."""
    owner = Owner()
    try:
        _await(channel, "prepare")
        prepared = _prepare_or_report(channel, case, around, owner)
        if prepared is not None:
            operation, where = prepared
            channel.send(step="prepared", placement=where and where.to_json())
            _observed_cycle(channel, operation)
            go = _await(channel, "cycles", "close")
            if go["go"] == "cycles":
                channel.send(**_timed_cycles(case, around, operation, owner))
                _await(channel, "close")
        else:
            _await(channel, "close")
    except RunnerGone:
        pass
    finally:
        owner.close()
    channel.send(step="closed", errors=owner.errors)


def prepare(
    case: Case, around: Surroundings, owner: Owner
) -> tuple[Operation, placement.Placement | None]:
    """The operation, ready to acquire, and where its pages lie now."""
    region = memory.prepare(workloads.memory_spec(case.memory), case.size_bytes, around, owner)
    module = importlib.import_module(workloads.workload_spec(case.workload).module)
    operation: Operation = module.prepare(case, region, around, owner)
    if not around.page_frames_visible:
        return operation, None
    return operation, placement.of(region.address, region.size_bytes, around.cma_ranges)


def _await(channel: Channel, *allowed: str) -> dict[str, Any]:
    message = channel.receive()
    if message is None:
        raise RunnerGone
    assert message["go"] in allowed, message
    return message


def _prepare_or_report(
    channel: Channel, case: Case, around: Surroundings, owner: Owner
) -> tuple[Operation, placement.Placement | None] | None:
    try:
        return prepare(case, around, owner)
    except CallFailed as error:
        channel.send(
            step="unprepared",
            call=error.call,
            outcome=errno_name(error.errno),
            detail=error.detail or str(error),
        )
    except (PrepareFailed, OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        channel.send(
            step="unprepared",
            call=None,
            outcome=errno_name(number) if number else None,
            detail=str(error),
        )
    return None


def _observed_cycle(channel: Channel, operation: Operation) -> None:
    _await(channel, "acquire")
    acquired = _attempt(operation.acquire)
    if acquired["outcome"] == "ok" and operation.done_bytes is not None:
        acquired |= {"outcome": "short", "done_bytes": operation.done_bytes}
    channel.send(step="acquired", **acquired)
    if acquired["outcome"] in ("ok", "short"):
        _await(channel, "release")
        channel.send(step="released", **_attempt(operation.release))


def _attempt(call: Any) -> dict[str, Any]:
    try:
        return {"outcome": "ok", "ns": call()}
    except CallFailed as error:
        return {
            "outcome": errno_name(error.errno),
            "ns": error.elapsed_ns,
            "call": error.call,
            "detail": error.detail,
        }


def _timed_cycles(
    case: Case, around: Surroundings, operation: Operation, owner: Owner
) -> dict[str, Any]:
    """Warm-up and timed cycles back to back; the garbage collector would show in the times."""
    fresh = workloads.memory_spec(case.memory).fresh_each_cycle
    acquire_ns: list[int] = []
    release_ns: list[int] = []
    outcomes: Counter[str] = Counter()
    failed: dict[str, Any] | None = None
    gc.disable()
    for cycle in range(case.warmup + case.repeat):
        if fresh:
            owner.close()
            try:
                operation, _ = prepare(case, around, owner)
            except (CallFailed, PrepareFailed, OSError) as error:
                failed = {"phase": "prepare", "cycle": cycle, "detail": str(error)}
                break
        try:
            took_ns = operation.acquire()
            outcome = "ok" if operation.done_bytes is None else "short"
            gave_back_ns = operation.release()
        except CallFailed as error:
            outcome, took_ns, gave_back_ns = errno_name(error.errno), error.elapsed_ns, -1
        outcomes[outcome] += 1
        if cycle >= case.warmup:
            acquire_ns.append(took_ns)
            if gave_back_ns >= 0:
                release_ns.append(gave_back_ns)
    gc.enable()
    return {
        "step": "cycled",
        "acquire_ns": acquire_ns,
        "release_ns": release_ns,
        "outcomes": dict(outcomes),
        "failed": failed,
    }
