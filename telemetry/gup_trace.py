"""tracefs: which functions of GUP the kernel calls, with which FOLL_ flags, seen by kprobe events.

An event stands at each entry point of mm/gup.c and at the functions behind them that are given
FOLL_PIN (the wrappers add it inside), and one at their returns, which also names the caller: the
call site. Where a function's flags and page counts are is asked of the running kernel's BTF, by the
parameters' names; so are the values of the flags, except before Linux 6.3, where they were macros.

Scope: the process tree below one process with its io_uring threads, and the kernel's own threads (a
workqueue may fault pages in for a process); only while ``on()``. Tracefs instances and events carry
the name of their maker, so that those of one that was killed can be told from a live one's. Needs
root, in the first PID namespace: the kernel takes the numbers of processes for those of that one.
See Documentation/trace/kprobetrace.rst and Documentation/trace/ftrace.rst.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from errno import EADDRNOTAVAIL, EBUSY, EINVAL, ENOENT
from pathlib import Path
from typing import Final

from telemetry import kernel_config, mountinfo, process_stat
from telemetry.btf import Btf, NotBtf
from telemetry.gup_calls import MACROS, RETURN, Event, Lost, Seen, add_up, parse

ENTRY_POINTS: Final = (
    "pin_user_pages_fast",
    "pin_user_pages_fast_only",
    "pin_user_pages",
    "pin_user_pages_remote",
    "pin_user_pages_unlocked",
    "get_user_pages_fast",
    "get_user_pages_fast_only",
    "get_user_pages",
    "get_user_pages_remote",
    "get_user_pages_unlocked",
    "memfd_pin_folios",
    "hmm_range_fault",
)
# What the wrappers call once they have added FOLL_PIN or FOLL_GET: the fast ones the first, as v6.1
# calls it, or the second, as v6.12 does; all slow ones come together in the third.
BEHIND: Final = ("internal_get_user_pages_fast", "gup_fast_fallback", "__get_user_pages")

_NO_KPROBES: Final = "the kernel has no kprobe events (CONFIG_KPROBE_EVENTS)"
_CONTAINER: Final = (
    "this is a container's PID namespace, and the kernel traces processes by their numbers outside "
    "of it"
)
# PF_KTHREAD, include/linux/sched.h; the ninth field of /proc/PID/stat is task->flags.
_PF_KTHREAD: Final = 0x200000
_KTHREADD: Final = 2
# The buffer of each CPU: 16 MiB faulted in page by page are some 400 KiB of events; and of all.
_BUFFER_KIB: Final = 1024
_BUFFERS_KIB: Final = 65536
_READ_BYTES: Final = 1 << 16
_REMOVE_DEADLINE_S: Final = 5.0

# io_uring's threads are made by create_io_thread(), which sched_process_fork, and so event-fork,
# does not see: a second instance, of this ending, records them by the name that they give
# themselves, "iou-wrk-" or "iou-sqp-" and the thread they work for (io_uring/io-wq.c, sqpoll.c).
_WORKERS: Final = "_iou"
_WORKER_COMM: Final = "iou-"

# Inode of the first PID namespace: PROC_PID_INIT_INO of include/linux/proc_ns.h, in v7.2 also
# PID_NS_INIT_INO of include/uapi/linux/nsfs.h. NSpid of /proc/PID/status does not tell: it begins
# with the namespace of who mounted that /proc, which in a container is the container's.
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC

# How kprobe_events refuses a function: no such symbol, one that must not be probed, and (since
# v6.6) one of several of that name.
_NO_PROBE_HERE: Final = frozenset({ENOENT, EINVAL, EADDRNOTAVAIL})

_NAME = re.compile(r"pinstorm_(\d+)_(\d+)_(\d+)")


class TraceUnavailable(Exception):
    """This machine cannot trace GUP; the text says why."""


def probes(btf: Btf, group: str) -> list[str]:
    """The definitions of the events, for kprobe_events; of functions that this kernel has.

    TraceUnavailable where nothing would show FOLL_PIN.
    """
    try:
        arguments = {name: _arguments(btf, name) for name in (*ENTRY_POINTS, *BEHIND)}
    except KeyError as error:
        raise TraceUnavailable(f"a function of GUP has no parameter {error}") from error
    known = {name: words for name, words in arguments.items() if words is not None}
    fast, renamed, slow = BEHIND
    if slow not in known or (fast not in known and renamed not in known):
        raise TraceUnavailable(
            "no function behind the entry points of GUP shows FOLL_PIN: this kernel has neither "
            f"{fast} nor {renamed}, or no {slow}"
        )
    return [
        line
        for name, words in known.items()
        for line in (
            f"p:{group}/{name} {name} {words}",
            f"r:{group}/{name}{RETURN} {name} ret=$retval:s32",
        )
    ]


def _arguments(btf: Btf, function: str) -> str | None:
    """What to fetch when the function is entered; None where the kernel has no such function."""
    names = btf.parameters(function)
    if names is None:
        return None
    places = {name: f"$arg{number}" for number, name in enumerate(names, start=1)}
    if function == "hmm_range_fault":
        members = btf.members("hmm_range") or {}
        at = places["range"]
        return " ".join(f"{name}=+{members[name]}({at}):x64" for name in ("start", "end"))
    if function == "memfd_pin_folios":
        return " ".join(f"{name}={places[name]}:x64" for name in ("start", "end"))
    # Neither is as wide as its register: gup_flags is unsigned int, nr_pages of the fast ones int.
    return f"flags={places['gup_flags']}:x32 pages={places['nr_pages']}:s32"


class GupTrace:
    """The events and tracefs instances of one run. Use ``open``, and ``close`` whatever happens.

    ``functions`` are those that are traced, ``refused`` those that this kernel has and does not let
    be probed; ``layout`` names the bits of the flags, and ``layout_source`` says where the names
    are from.
    """

    def __init__(self, root: Path, name: str, btf: Btf):
        self.name = name
        self._root = root
        self._tree = _Instance(root, name)
        self._workers = _Instance(root, name + _WORKERS)
        self._followed = 0
        self._kernel_threads: frozenset[int] = frozenset()
        enumerators = btf.enumerators("FOLL_")
        self.layout: Mapping[str, int] = enumerators or MACROS
        self.layout_source = "btf" if enumerators else "macros of v5.6 to v6.2"
        self._definitions = probes(btf, name)
        self.functions: tuple[str, ...] = ()
        self.refused: tuple[str, ...] = ()

    @classmethod
    def open(cls) -> "GupTrace":
        """Remove what killed predecessors left, and make events and instance, switched off.

        TraceUnavailable.
        """
        root = _tracefs()
        remove_stale(root)
        if _pid_namespace() != _FIRST_PID_NAMESPACE:
            raise TraceUnavailable(_CONTAINER)
        try:
            btf = Btf.read()
        except (OSError, NotBtf) as error:
            raise TraceUnavailable(f"the kernel's types cannot be read: {error}") from error
        trace = cls(root, own_name(), btf)
        try:
            trace._make()
        except OSError as error:
            trace.close()
            what = error.strerror or str(error)
            raise TraceUnavailable(f"kprobe events cannot be made: {what.lower()}") from error
        except BaseException:
            trace.close()
            raise
        return trace

    def follow(self, pid: int) -> None:
        """Trace that process's tree from now on, children to come included, and kernel threads."""
        self._followed = pid
        self._kernel_threads = frozenset(_kernel_threads())
        pids = (pid, _KTHREADD, *self._kernel_threads)
        self._tree.write("set_event_pid", " ".join(map(str, pids)))

    def arm(self, armed: bool) -> None:
        """Patch the events into the kernel's code, or out of it: 0.1 s under emulation."""
        for instance in (self._tree, self._workers):
            instance.write(f"events/{self.name}/enable", str(int(armed)))

    def on(self) -> None:
        """Begin to record. 0.1 ms under emulation, as to end it."""
        for instance in (self._workers, self._tree):
            instance.switch(b"1")

    def off(self) -> None:
        for instance in (self._tree, self._workers):
            instance.switch(b"0")

    def read(self) -> Seen:
        """What was seen since the last read, which this empties. Not in a window."""
        events = list(parse(self._tree.read()))
        workers = list(parse(self._workers.read()))
        # All that work for one process have one name.
        names = {event.comm for event in workers if isinstance(event, Event)}
        serves = {name: _serves(name, self._followed) for name in names}
        ours = set()
        for event in workers:
            if isinstance(event, Lost):
                events.append(event)
            elif serves[event.comm]:
                events.append(event)
                ours.add(event.pid)
            elif serves[event.comm] is None:
                events.append(Lost(1, "an io_uring thread had outlived whom it worked for"))
        unknown = {event.pid: event.comm for event in events if isinstance(event, Event)}
        known = self._kernel_threads | ours
        kernel_threads = self._kernel_threads.union(
            pid
            for pid, comm in unknown.items()
            if pid not in known and _is_kernel_thread(pid, comm)
        )
        return add_up(events, self.layout, kernel_threads)

    def close(self) -> None:
        """Remove instances and events, whatever of them there is."""
        self._tree.close()
        self._workers.close()
        _remove(self._root, self.name)

    def _make(self) -> None:
        # One write each: the kernel takes no more than a page at once, and says which it refuses.
        functions = dict.fromkeys(line.split()[1] for line in self._definitions)
        for name in functions:
            lines = [line for line in self._definitions if line.split()[1] == name]
            if not self._define(name, lines):
                self.refused += (name,)
        self.functions = tuple(name for name in functions if name not in self.refused)
        self._tree.make()
        self._tree.write("options/event-fork", "1")
        self._workers.make()
        self._workers.write(f"events/{self.name}/filter", f'comm ~ "{_WORKER_COMM}*"')

    def _define(self, function: str, lines: list[str]) -> bool:
        """Make that function's events, all or none of them; False when the kernel has no place.

        OSError, also of a function without which FOLL_PIN would not be seen.
        """
        events = self._root / "kprobe_events"
        try:
            for line in lines:
                _write(events, line + "\n", append=True)
        except OSError as error:
            if error.errno not in _NO_PROBE_HERE or function in BEHIND:
                raise
            with suppress(OSError):  # the call's, when it is the return's that was refused
                _write(events, f"-:{self.name}/{function}\n", append=True)
            return False
        return True


class _Instance:
    """A tracefs instance: ring buffers of its own, with what is filtered into them."""

    def __init__(self, root: Path, name: str):
        self._directory = root / "instances" / name
        self._pipe = -1
        self._on = -1

    def make(self) -> None:
        """Switched off and empty. OSError."""
        self._directory.mkdir()
        size_kib = max(128, min(_BUFFER_KIB, _BUFFERS_KIB // (os.cpu_count() or 1)))
        self.write("tracing_on", "0")
        self.write("buffer_size_kb", str(size_kib))
        self.write("trace_clock", "mono")
        self._on = os.open(self._directory / "tracing_on", os.O_WRONLY | os.O_CLOEXEC)
        pipe = self._directory / "trace_pipe"
        self._pipe = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, name: str, text: str) -> None:
        _write(self._directory / name, text)

    def switch(self, digit: bytes) -> None:
        os.pwrite(self._on, digit, 0)

    def read(self) -> str:
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self._pipe, _READ_BYTES):
                parts.append(part)
        return b"".join(parts).decode(errors="replace")

    def close(self) -> None:
        for descriptor in (self._on, self._pipe):
            if descriptor >= 0:
                os.close(descriptor)
        self._on = self._pipe = -1


def unavailable() -> str | None:
    """Why GUP cannot be traced here, as far as looking tells; nothing is made or removed."""
    try:
        _tracefs()
    except TraceUnavailable as error:
        return str(error)
    if _pid_namespace() != _FIRST_PID_NAMESPACE:
        return _CONTAINER
    try:
        Btf.read()
    except (OSError, NotBtf) as error:
        return f"the kernel's types cannot be read: {error}"
    return None


def remove_stale(root: Path | None = None) -> list[str]:
    """Remove events and instances whose maker is dead; their names. TraceUnavailable.

    Those of makers in another PID namespace stay: whether they live cannot be seen from here.
    """
    root = root or _tracefs()
    groups = {line.partition(":")[2].partition("/")[0] for line in _definitions(root)}
    with suppress(OSError):
        instances = os.listdir(root / "instances")
        groups.update(name.removesuffix(_WORKERS) for name in instances)
    stale = sorted(name for name in groups if is_stale(name))
    for name in stale:
        _remove(root, name)
    return stale


def is_stale(name: str) -> bool:
    """Whether that is one of ours, made in this PID namespace by a process that has ended."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[3]) != _pid_namespace():
        return False
    return _start_time(int(match[1])) != int(match[2])


def own_name() -> str:
    """What this process calls the things that it makes beside others'; see ``is_stale``."""
    pid = os.getpid()
    return f"pinstorm_{pid}_{_start_time(pid)}_{_pid_namespace()}"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot until the process began; None when there is none of that pid."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str] | None:
    """None when it is gone."""
    try:
        return process_stat.read_fields(pid)
    except OSError:
        return None


def _is_kernel_thread(pid: int, comm: str) -> bool:
    fields = _stat(pid)
    # A worker that has ended since: only its name is left.
    return bool(int(fields[6]) & _PF_KTHREAD) if fields else comm.startswith("kworker/")


def _serves(comm: str, root: int) -> bool | None:
    """Whether an io_uring thread of that name works for a process below ``root``.

    None when that one, or one between the two, has ended.
    """
    owner = comm.rpartition("-")[2]
    pid = int(owner) if owner.isdigit() else 0
    while pid > 1 and pid != root:
        fields = _stat(pid)
        if fields is None:
            return None
        pid = int(fields[1])
    return pid == root


def _kernel_threads() -> Iterator[int]:
    """The children of kthreadd; those to come are added by event-fork."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and int(fields[1]) == _KTHREADD:
            yield int(name)


def _tracefs() -> Path:
    """Where tracefs is mounted. TraceUnavailable."""
    places = [mount.mount_point for mount in mountinfo.of_type("tracefs")]
    if not places:
        found = kernel_config.read()
        if found is not None and "CONFIG_KPROBE_EVENTS" not in found[1]:
            raise TraceUnavailable(_NO_KPROBES)
        raise TraceUnavailable(
            "tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing"
        )
    root = Path(places[0])
    events = root / "kprobe_events"
    if not os.access(root, os.X_OK):
        raise TraceUnavailable(f"{root} may not be searched; run as root")
    if not events.exists():
        raise TraceUnavailable(_NO_KPROBES)
    if not os.access(events, os.W_OK):
        raise TraceUnavailable(f"{events} may not be written; run as root")
    return root


def _definitions(root: Path) -> list[str]:
    """Every kprobe event of the machine, as it was defined."""
    try:
        return (root / "kprobe_events").read_text().splitlines()
    except OSError:
        return []


def _remove(root: Path, name: str) -> None:
    """Remove the instances, which switches their events off, and then the events of that name."""
    deadline = time.monotonic() + _REMOVE_DEADLINE_S
    for instance in (root / "instances" / name, root / "instances" / (name + _WORKERS)):
        while instance.exists():
            try:
                instance.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                # Somebody is reading in it still, such as a process that is just being killed.
                if error.errno != EBUSY or time.monotonic() > deadline:
                    break
                time.sleep(0.01)
    for line in _definitions(root):
        event = line.split()[0].partition(":")[2]
        if event.partition("/")[0] == name:
            with suppress(OSError):
                _write(root / "kprobe_events", f"-:{event}\n", append=True)


def _write(path: Path, text: str, *, append: bool = False) -> None:
    """One write(2): tracefs takes each as a command. OSError."""
    # Opening kprobe_events to be truncated would remove everybody's events.
    descriptor = os.open(path, os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC))
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
