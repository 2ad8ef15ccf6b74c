"""The zygote: one process that has imported everything and forks a fresh child for each case.

Forking takes milliseconds where starting Python and loading pyverbs takes a second, and a child
that imports nothing pins nothing by accident. It has one thread, no device open and neither polars
nor pydantic in it. Started by pinstorm.spawn as ``python -m workloads.zygote FD [MODULE…]``,
where the modules bring workloads that are not in the registry.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Any

import psutil

import workloads
from workloads import child, libc
from workloads.channel import Channel
from workloads.memory import evacuation
from workloads.spec import Case, Surroundings

# Code that a child runs inside a window: its text must be in memory before the first fork, because
# a page of it read from a 9p root is pinned, and counted, by 9p itself.
_MEASURED_TEXT = ("ibverbs", "rdmav", "pyverbs", "libc.so", "libnl", "python", "_ctypes", "libffi")


# What is stuck in the kernel by then dies when it comes out.
_END_DEADLINE_S = 10.0


def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    # Not SIGKILL as for a child: what a case has started would live on without us.
    signal.signal(signal.SIGTERM, _end_with_all)
    libc.die_with_parent(signal.SIGTERM)
    libc.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module_name in sys.argv[2:]:
        workloads.include(module_name)
    pyverbs_error = _import_everything()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ConnectionError):  # the runner is gone
        channel.send(ready=os.getpid(), pyverbs_error=pyverbs_error)
        _serve_runner(channel, pyverbs_error)
    _end_with_all()


def _serve_runner(channel: Channel, pyverbs_error: str | None) -> None:
    while True:
        message, descriptor = channel.receive_with_descriptor()
        if message is None:
            return
        if "warm" in message:
            _load_measured_text(pyverbs_error is None)
            channel.send(warm=True)
        elif "capabilities" in message:
            channel.send(capabilities=_in_child(message["capabilities"]))
        else:
            assert descriptor is not None
            _serve(channel, message["spawn"], descriptor)


def _import_everything() -> str | None:
    """Import every workload, memory and circumstance; why pyverbs cannot be used, if it cannot."""
    for spec in workloads.MEMORY:
        importlib.import_module(spec.module)
    try:
        importlib.import_module("workloads.verbs")
        pyverbs_error = None
    except ImportError as error:
        pyverbs_error = str(error)
    for workload in workloads.WORKLOADS:
        if pyverbs_error is None or not workload.name.startswith("rdma-"):
            importlib.import_module(workload.module)
    for circumstance in workloads.CIRCUMSTANCES:
        if circumstance.module is not None:
            importlib.import_module(circumstance.module)
    return pyverbs_error


def _load_measured_text(with_verbs: bool) -> None:
    """Once the devices are there: load their providers, and every page of code that will run."""
    evacuation.zone_layout()
    if with_verbs:
        from workloads import verbs

        verbs.load_providers()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and any(name in fields[5] for name in _MEASURED_TEXT):
                start, end = (int(word, 16) for word in fields[0].split("-"))
                libc.populate_read(start, end - start)


def _serve(channel: Channel, spawn: dict[str, Any], descriptor: int) -> None:
    """Fork the child of one case, say its pid, and how it ended once it has."""
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"the zygote has {len(threads)} threads and must not fork"
    pid = os.fork()
    if pid == 0:
        channel.close()
        _be_child(spawn, descriptor)
    os.close(descriptor)
    channel.send(forked=pid)
    status = None
    while status is None:
        reaped, raw = os.waitpid(-1, 0)
        if reaped == pid:
            status = os.waitstatus_to_exitcode(raw)
    channel.send(exited=pid, status=status)
    _reap_orphans()


def _end_with_all(*_: object) -> None:
    """The runner is gone: kill all that hangs below us, sessions of its own included."""
    me = psutil.Process()
    deadline = time.monotonic() + _END_DEADLINE_S
    while (descendants := me.children(recursive=True)) and time.monotonic() < deadline:
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _reap_orphans()
        time.sleep(0.01)
    os._exit(1)


def _be_child(spawn: dict[str, Any], descriptor: int) -> None:
    code = 70
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.die_with_parent()
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves a verdict, not a file
        around = dict(spawn["around"])
        if around["cma_ranges"] is not None:
            around["cma_ranges"] = tuple(tuple(area) for area in around["cma_ranges"])
        channel = Channel(socket.socket(fileno=descriptor))
        child.run(channel, Case.from_json(spawn["case"]), Surroundings(**around))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _reap_orphans() -> None:
    """Grandchildren that outlived their parent are ours (PR_SET_CHILD_SUBREAPER)."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _in_child(device: str) -> dict[str, Any]:
    """What the device can do, asked in a process of its own: this one never opens a device."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            from workloads import verbs

            os.write(writer, json.dumps(verbs.capabilities(device)).encode())
        except BaseException as error:
            os.write(writer, b'{"error": %s}' % _quoted(error))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(answer or b'{"error": "the probe died"}')
    return found


def _quoted(error: BaseException) -> bytes:
    return json.dumps(str(error)).encode()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the runner hung up: a Ctrl-C, or its end
        main()
