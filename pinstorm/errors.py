"""What can go wrong for the person who runs pinstorm, and the exit code that says so.

The library raises these, only the command line prints and exits. The message is one lower-case
sentence: the object, the value, the remedy.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Final


class ExitCode(IntEnum):
    """The exit codes of every command; scripts depend on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    LOST = 3
    WRITE = 4
    NOTHING_RAN = 77
    INTERRUPTED = 130


EXIT_MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.OK: "every case passed or was skipped, and at least one ran",
    ExitCode.FAILED: "a case failed, crashed or timed out; of compare: a gate is broken",
    ExitCode.USAGE: "command line, suite or machine are not as the command needs them",
    ExitCode.LOST: "the machine went away under a case; of report: something could not be read",
    ExitCode.WRITE: "the results could not be written",
    ExitCode.NOTHING_RAN: "every case was skipped",
    ExitCode.INTERRUPTED: "Ctrl-C or SIGTERM; the bundle is valid, and `--resume` goes on",
}


class PinstormError(Exception):
    """Base of every error that is told in one sentence instead of a traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


class UsageError(PinstormError):
    """The command line, the suite or the machine is not what was asked for."""

    exit_code = ExitCode.USAGE


class WriteError(PinstormError):
    """Results could not be written: disk full, directory used or read-only."""

    exit_code = ExitCode.WRITE


class NothingRan(PinstormError):
    """Every case was skipped; the message names the reasons."""

    exit_code = ExitCode.NOTHING_RAN


class Interrupted(PinstormError):
    """The person pressed Ctrl-C; what was finished is in the bundle."""

    exit_code = ExitCode.INTERRUPTED
