"""The runner's side of the zygote: start it, ask it for children, learn how they ended."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pinstorm.errors import PinstormError
from pinstorm.host import module_path
from workloads.channel import Channel
from workloads.spec import Case, Surroundings

# In the environment of the zygote and of all that a case starts: the way to find what outlived it.
MARK = "PINSTORM_ZYGOTE"


class ZygoteDied(Exception):
    """The zygote ended while a case depended on it. It is dead and waited for by now."""


@dataclass(slots=True)
class Child:
    """A forked case, not yet told to do anything."""

    pid: int
    channel: Channel


class Zygote:
    """The zygote process, which imports while its starter does other things; then ``warm_up``.

    ``pyverbs_error`` says why pyverbs cannot be used, if it cannot.
    """

    def __init__(self, include: Sequence[str] = ()) -> None:
        self.include = tuple(include)
        self._channel, theirs = Channel.pair()
        # One hash seed: every child starts from the same image. Our own module path, spelled out:
        # what site would do again is code of others, and in a guest 2 s of it.
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        environment = {
            **os.environ,
            MARK: self.mark,
            "PYTHONHASHSEED": "0",
            # A load's numpy must not start threads: no process with several may be forked.
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": module_path(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "workloads.zygote", str(theirs.fileno()), *include],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # A Ctrl-C on the terminal is the runner's to handle, from the first moment on.
            start_new_session=True,
        )
        theirs.close()
        self.pid = self._process.pid
        self.pyverbs_error: str | None = None

    def warm_up(self) -> None:
        """Wait until everything is imported, then load the providers of the devices there are."""
        ready = self._channel.receive()
        if ready is None:
            raise PinstormError(
                f"the zygote ended with {self._buried()} before it was ready; see stderr"
            )
        self.pyverbs_error = ready["pyverbs_error"]
        self._ask("it loaded the devices' providers", warm=True)

    def alive(self) -> bool:
        return self._process.poll() is None

    def fileno(self) -> int:
        """What becomes readable when a child has ended, or the zygote has."""
        return self._channel.fileno()

    def spawn(self, case: Case, around: Surroundings) -> Child:
        """Fork the child of this case; raises ZygoteDied."""
        ours, theirs = Channel.pair()
        with theirs:
            try:
                self._channel.send_with_descriptor(
                    theirs.fileno(), spawn={"case": case.to_json(), "around": asdict(around)}
                )
                answer = self._channel.receive()
            except OSError:
                answer = None
        if answer is None:
            raise self._died()
        return Child(answer["forked"], ours)

    def exit_status(self, timeout_s: float) -> int | None:
        """The child's exit code, or minus its signal; None while it lives. Raises ZygoteDied."""
        ready, _, _ = select.select([self._channel.fileno()], [], [], timeout_s)
        if not ready:
            return None
        message = self._channel.receive()
        if message is None:
            raise self._died()
        return int(message["status"])

    def capabilities(self, device: str) -> dict[str, Any]:
        """What an RDMA device can do (workloads.verbs.capabilities), or {"error": why}."""
        answer = self._ask(f"it asked {device} what it can do", capabilities=device)
        found: dict[str, Any] = answer["capabilities"]
        return found

    def kill(self) -> None:
        """For a zygote that waits for a child that does not end; ``alive`` is False afterwards."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Hang up and wait; a zygote that serves a child no longer listens, so it is killed."""
        self._channel.close()
        self._buried(patience_s=1)

    def _ask(self, doing: str, **message: Any) -> dict[str, Any]:
        """What no case depends on yet; PinstormError when it ends while ``doing`` it."""
        try:
            self._channel.send(**message)
            answer = self._channel.receive()
        except ConnectionError:
            answer = None
        if answer is None:
            raise PinstormError(f"the zygote ended with {self._buried()} while {doing}; see stderr")
        return answer

    def _died(self) -> ZygoteDied:
        self._buried()
        return ZygoteDied()

    def _buried(self, patience_s: float = 10) -> int:
        """Its exit code, or minus its signal, once it is dead: its socket closes some time before.

        Who only looks whether it is alive would take a dying one for one that can serve a case.
        """
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
