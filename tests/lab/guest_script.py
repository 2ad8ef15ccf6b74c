"""One script of this directory in one guest, for tests that need more of it than a run gives."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from pinstorm import host
from pinstorm.lab import boot, console
from pinstorm.lab.kernels import Kernel
from pinstorm.lab.shape import PLAIN, shapes_for
from workloads.spec import Need

_CONSOLE_LINES = 60


def printed(
    name: str,
    kernel: Kernel,
    share: Path,
    *arguments: str,
    needs: Sequence[Need] = (),
    group: str = PLAIN,
    deadline_s: float = 300.0,
) -> str:
    """What the script printed; a failed test with what is known when it failed or its kernel did.

    ``group``: of the shapes (pinstorm.lab.shape). As in a run, a boot that is lost is tried once
    more, and so is a guest that the emulator took down; a warning tells of it.
    """
    (shape,) = shapes_for(kernel, {group: needs})
    command = [sys.executable, "-S", str(Path(__file__).with_name(name)), *arguments]
    environment = {"PYTHONPATH": host.module_path()}
    for last in (False, True):
        file = share / f"console-{int(last)}.log"
        with boot.boot(kernel, shape, command, share, file, environment) as guest:
            code = guest.wait(deadline_s)
            output, errors = guest.output()
            if code == 0:
                break
            began, lines = guest.started, console.lines_of(file)
            told = [
                f"{name} on {kernel.release}: ended with {code}, "
                f"{'begun' if began else 'not begun'}; QEMU: {guest.process.poll()}",
                *("", errors, output, "", guest.machine_messages(), ""),
                *lines[-_CONSOLE_LINES:],
            ]
        emulators = console.is_emulators(console.panic(lines), guest.accel)
        lost = not began or (code == boot.GONE and emulators)
        if last or not lost:
            pytest.fail("\n".join(told))
        warnings.warn("\n".join(told), stacklevel=2)
    return output
