"""The console script, as far as it can be interrupted before there is a command line."""

import os
import signal
from types import FrameType

from pinstorm.errors import ExitCode


def main() -> None:
    """Import the command line and hand over to it."""
    # Nothing has begun: an interrupt ends us at once, and not with the traceback of an import.
    # What is ignored (Ctrl-C by a job in the background) stays so.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    from pinstorm import cli

    for number, handler in before.items():
        signal.signal(number, handler)
    cli.main()


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"pinstorm: interrupted\n")
    finally:  # stderr may be closed, or a pipe that nobody reads
        os._exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
