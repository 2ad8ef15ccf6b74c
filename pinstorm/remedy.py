"""Carrying out the command that explain gives, so that a test can show that it helps.

In the lab, whatever it is. On a host only a limit of the case's own process, which is gone with it:
anything else would change the machine outside of what pinstorm gives back.
"""

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from pinstorm import explain
from pinstorm.talk import Talk

_DEADLINE_S = 20.0
# Each remedy can lay bare the next cause.
_MOST_RETRIES = 3
_DONE = ("ok", "short")
_LIMIT = re.compile(r"--[a-z]+=(\d+|unlimited):(\d+|unlimited)")


def try_again(
    failure: Mapping[str, Any],
    retries: list[dict[str, Any]],
    talk: Talk,
    apply_it: Callable[[str], dict[str, object]],
    look: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Apply the remedy of the cause that was found, and try again in the same process.

    ``failure``: the record of the refusal, with its evidence. ``retries``: gets an entry for each;
    ``then`` is the cause that was found after it. ``look``: collects evidence of a new refusal.
    """
    explained = explain.of_record(failure)
    while len(retries) < _MOST_RETRIES:
        if explained is None or (command := explained.first.command) is None:
            return
        applied = apply_it(command)
        answer = talk.ask("acquire")
        retry = {
            "cause": explained.first.cause,
            "command": command,
            "applied": applied,
            "outcome": answer["outcome"],
            "then": None,
        }
        retries.append(retry)
        if answer["outcome"] in _DONE:
            talk.ask("release")
            return
        if applied["exit"] != 0:
            return
        failure = {
            **failure,
            "outcome": answer["outcome"],
            "failed_call": answer["call"],
            "detail": answer["detail"],
        }
        failure = {**failure, "evidence": look(failure)}
        explained = explain.of_record(failure)
        retry["then"] = None if explained is None else explained.first.cause


def apply(command: str, pid: int, *, lab: bool) -> dict[str, object]:
    """Run it: ``{"exit": code, "said": text}``. ``exit`` is null when it did not run, or not end.

    ``pid``: the case's own child. ``lab``: the machine is a guest of the lab.
    """
    words = ["/bin/sh", "-c", command] if lab else _own_limit(command, pid)
    if words is None:
        return {"exit": None, "said": f"not applied: {command!r} is applied only in the lab"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return {"exit": None, "said": f"not done after {_DEADLINE_S:.0f} s"}
    except OSError as error:
        return {"exit": None, "said": f"{words[0]} cannot be run: {error.strerror}"}
    return {"exit": done.returncode, "said": (done.stdout + done.stderr).strip()}


def _own_limit(command: str, pid: int) -> list[str] | None:
    """The words of a prlimit of that process alone; None when the command is anything else."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    limits = words[3:]
    if words[:3] != ["prlimit", "--pid", str(pid)] or not limits:
        return None
    return words if all(_LIMIT.fullmatch(limit) for limit in limits) else None
