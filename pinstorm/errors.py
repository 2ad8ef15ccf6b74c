"""What can go wrong for the person who runs pinstorm, and the exit code that says so.

The library raises these, only the command line prints and exits. The message is one lower-case
sentence: the object, the value, the remedy.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The exit codes of every command; scripts depend on them."""

    OK = 0  # every case passed or was skipped
    FAILED = 1  # a case failed, crashed or timed out
    USAGE = 2  # command line, suite or machine not as the run needs it
    LOST = 3  # the machine went away under a case
    WRITE = 4  # the results could not be written
    NOTHING_RAN = 77  # every case was skipped
    INTERRUPTED = 130  # Ctrl-C; the bundle is valid


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
