"""A case's own process: prepare, one observed cycle between go-signals, then the timed cycles.

The runner takes its snapshots while this process stands still between two phases, so whatever
could pin by itself (opening a device, faulting in code, touching memory) happens in *prepare*
(workloads.prepared), and nothing is imported here.
"""

import gc
import resource
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import workloads
from telemetry import clock
from workloads import crew
from workloads.channel import Channel
from workloads.crew import Child
from workloads.spec import (
    CallFailed,
    Case,
    Operation,
    PrepareFailed,
    Surroundings,
    errno_name,
)

# From the announcement of a step to its beginning: more than a message takes, emulated too.
ENTER_NS = 5_000_000

# What the runner may ask for once the case is prepared.
STEPS = ("acquire", "release", "disturb", "renew", "cycles", "load", "close")


class RunnerGone(Exception):
    """The runner closed its end: nobody is left to measure for."""


def run(channel: Channel, case: Case, around: Surroundings) -> None:
    """Take the steps that the runner asks for, until it says close or goes away."""
    prepared = crew.of(case, around)
    try:
        _await(channel, "prepare")
        _enter(channel, case, "prepare")
        if _prepare_and_report(channel, prepared):
            _steps(channel, prepared)
        else:
            _await(channel, "close")
    except (RunnerGone, ConnectionError):
        pass
    except PrepareFailed as error:  # a process of the case has ended: it is told, and no defect
        with suppress(ConnectionError):
            channel.send(step="broken", detail=str(error))
    except Exception as error:
        with suppress(ConnectionError):
            channel.send(step="broken", detail=_named(error))
        raise
    finally:
        prepared.close()
    with suppress(ConnectionError):
        channel.send(step="closed", errors=prepared.errors)


def _steps(channel: Channel, prepared: Child) -> None:
    """Between prepare and close, in whatever order the runner asks for them."""
    while (step := _await(channel, *STEPS)["go"]) != "close":
        match step:
            case "acquire":
                _enter(channel, prepared.case, step)
                channel.send(step="acquired", **_acquire(prepared.operation))
            case "release":
                _enter(channel, prepared.case, step)
                channel.send(step="released", **_attempt(prepared.operation.release))
            case "disturb":
                channel.send(step="disturbed", **_attempt(prepared.disturb))
            case "renew":
                prepared.renew_memory()
                channel.send(step="renewed")
            case "load":
                channel.send(step="loaded", **prepared.load(channel))
            case "cycles":
                channel.send(**_timed_cycles(prepared))


def _enter(channel: Channel, case: Case, step: str) -> None:
    """Of a step in which SIGKILL is to come: say when it begins, and begin it then.

    A call can be shorter than a message is under way; so both sides wait for one moment.
    """
    if case.params.get("kill") == step:
        begins_ns = time.monotonic_ns() + ENTER_NS
        channel.send(step="entered", begins_ns=begins_ns)
        clock.wait_until(begins_ns)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _await(channel: Channel, *allowed: str) -> dict[str, Any]:
    message = channel.receive()
    if message is None:
        raise RunnerGone
    assert message["go"] in allowed, message
    return message


def _prepare_and_report(channel: Channel, prepared: Child) -> bool:
    began_ns = time.monotonic_ns()
    try:
        prepared.prepare()
        channel.send(
            step="prepared",
            whole_ns=time.monotonic_ns() - began_ns,
            placement=prepared.placement(),
            memory_ns=prepared.memory_ns,
            memlock_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
            region=prepared.region_bytes(),
            members=prepared.members(),
        )
        return True
    except CallFailed as error:
        channel.send(
            step="unprepared",
            call=error.call,
            outcome=errno_name(error.errno),
            detail=error.detail or str(error),
            job=error.job,
            process=error.process,
        )
    except Exception as error:  # whatever a driver's library raises: the record says it
        number = getattr(error, "errno", None) or getattr(error, "error_code", None)
        channel.send(
            step="unprepared",
            call=None,
            outcome=errno_name(number) if number else None,
            detail=str(error) if isinstance(error, PrepareFailed) else _named(error),
        )
    return False


def _acquire(operation: Operation) -> dict[str, Any]:
    acquired = _attempt(operation.acquire)
    if acquired["outcome"] == "ok" and operation.done_bytes is not None:
        acquired |= {"outcome": "short", "done_bytes": operation.done_bytes}
    return acquired


def _attempt(call: Any) -> dict[str, Any]:
    start_ns = time.monotonic_ns()
    try:
        elapsed_ns = call()
        ended_ns = time.monotonic_ns()
        whole_ns = ended_ns - start_ns
        return {
            "outcome": "ok",
            "ns": elapsed_ns,
            "whole_ns": whole_ns,
            "ended_ns": ended_ns,
            "detail": "",
        }
    except CallFailed as error:
        ended_ns = time.monotonic_ns()
        return {
            "whole_ns": ended_ns - start_ns,
            "ended_ns": ended_ns,
            "outcome": errno_name(error.errno),
            "ns": error.elapsed_ns,
            "call": error.call,
            "detail": error.detail,
            "job": error.job,
            "process": error.process,
        }


def _timed_cycles(prepared: Child) -> dict[str, Any]:
    """Warm-up and timed cycles back to back; the garbage collector would show in the times."""
    case, operation = prepared.case, prepared.operation
    fresh = workloads.memory_spec(case.memory).fresh_each_cycle
    releases = workloads.workload_spec(case.workload).scope == "held"
    acquire_ns: list[int] = []
    release_ns: list[int] = []
    outcomes: Counter[str] = Counter()
    failed: dict[str, Any] | None = None
    gc.disable()
    for cycle in range(case.warmup + case.repeat):
        if fresh:
            try:
                prepared.renew_memory()
            except (CallFailed, PrepareFailed, OSError) as error:
                failed = {"phase": "prepare", "cycle": cycle, "detail": str(error)}
                break
        gave_back_ns = None
        try:
            took_ns = operation.acquire()
            outcome = "ok" if operation.done_bytes is None else "short"
        except CallFailed as error:
            outcome, took_ns = errno_name(error.errno), error.elapsed_ns
        else:
            try:
                gave_back_ns = operation.release()
            except CallFailed as error:
                outcome = errno_name(error.errno)
        outcomes[outcome] += 1
        if cycle >= case.warmup:
            acquire_ns.append(took_ns)
            if gave_back_ns is not None and releases:
                release_ns.append(gave_back_ns)
    gc.enable()
    return {
        "step": "cycled",
        "acquire_ns": acquire_ns,
        "release_ns": release_ns,
        "outcomes": dict(outcomes),
        "failed": failed,
    }
