"""What the shell completes: suites, cases, kernels, devices, formats.

Called at each press of TAB, so nothing here may be slow, and what cannot be had is no completion:
a traceback would be printed into the middle of the command line.
"""

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_DEVICES = Path("/sys/class/infiniband")
_KERNELS = ("oldstable", "stable", "backports", "all")
# Behind this the cases of a journal are not looked for: a press of TAB must answer at once.
_JOURNAL_BYTES = 64 << 20


def suites(incomplete: str) -> list[str]:
    """The suites that ship, and the TOML files and directories that begin so."""
    import configs

    shipped = (path.stem for path in Path(configs.__file__).parent.glob("*.toml"))
    return _beginning(incomplete, [*sorted(shipped), *_files(incomplete, ".toml")])


def kernels(incomplete: str) -> list[str]:
    """The names of kernels; a path is left to the shell."""
    return _beginning(incomplete, _KERNELS)


def devices(incomplete: str) -> list[str]:
    """The RDMA devices of this machine."""
    try:
        return _beginning(incomplete, sorted(os.listdir(_DEVICES)))
    except OSError:
        return []


def formats(incomplete: str) -> list[str]:
    """What ``report --format`` makes."""
    from pinstorm.report.emitters import FORMATS

    return _beginning(incomplete, dict.fromkeys((*FORMATS, "html")))


def cases_of_suite(incomplete: str) -> list[str]:
    """The cases of the suite that stands on the command line already, by id."""
    from pinstorm import suite
    from pinstorm.errors import UsageError

    shipped = {path.stem for path in suite.shipped()}
    # The option that waits for this value stops the parser before it has seen the suite.
    for word in _words():
        if word not in shipped and not os.path.isfile(word):
            continue
        try:
            cases = suite.expand(suite.load(word)).cases
        except UsageError:
            continue
        return _beginning(incomplete, sorted(case.id for case in cases))
    return []


def cases_of_bundle(ctx: Any, incomplete: str) -> list[str]:
    """The cases of the bundle that stands on the command line already."""
    try:
        journal = Path(ctx.params["bundle"]) / "journal.jsonl"
        with journal.open("rb") as lines:
            names = [_started(line) for line in lines.readlines(_JOURNAL_BYTES)]
    except (OSError, KeyError, TypeError):
        return []
    return _beginning(incomplete, dict.fromkeys(name for name in names if name))


def _words() -> list[str]:
    """The command line behind the program's name, as bash or the other shells hand it over."""
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    try:
        return shlex.split(line)[1:]
    except ValueError:  # a quote that is still open
        return line.split()[1:]


def _started(line: bytes) -> str | None:
    """The case that a line of the journal begins; None for every other line, and a torn one."""
    if not line.startswith(b'{"start"'):
        return None
    try:
        return str(json.loads(line)["start"])
    except (ValueError, KeyError, TypeError):
        return None


def _files(incomplete: str, suffix: str) -> list[str]:
    directory, _, beginning = incomplete.rpartition("/")
    base = directory + "/" if "/" in incomplete else ""
    try:
        entries = sorted(os.scandir(base or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        if not entry.name.startswith(beginning) or entry.name.startswith("."):
            continue
        if entry.is_dir():
            found.append(f"{base}{entry.name}/")
        elif entry.name.endswith(suffix):
            found.append(base + entry.name)
    return found


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
