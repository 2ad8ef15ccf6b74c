"""/proc/modules, /sys/module and /lib/modules: which modules are loaded, how many use each, their
parameters, and which could be loaded.

Levels; machine-wide. /proc/modules has only what was loaded as a module (CONFIG_MODULES; absent
without), /sys/module also what is built in and has parameters or a version. See
Documentation/ABI/stable/sysfs-module and proc_modules(5).
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

MODULES = Path("/proc/modules")
PARAMETERS = Path("/sys/module")
LIBRARY = Path("/lib/modules")
_MODULE_FILE = re.compile(r"([^/]+)\.ko(?:\.\w+)?$")


@dataclass(frozen=True, slots=True)
class Module:
    """``users``: references, of other modules and of who has it open; None where it cannot be
    unloaded. ``used_by``: the modules among them."""

    name: str
    size_bytes: int
    users: int | None
    used_by: tuple[str, ...]


def parse(text: str) -> dict[str, Module]:
    """By name."""
    found = {}
    for line in text.splitlines():
        name, size, users, used_by, *_ = line.split()
        # "-" for none; "[permanent]" stands among the names: print_unload_info()
        names = tuple(word for word in used_by.split(",") if word and word[0] not in "-[")
        found[name] = Module(name, int(size), None if users == "-" else int(users), names)
    return found


def read() -> dict[str, Module] | None:
    """None on a kernel without modules."""
    try:
        return parse(MODULES.read_text(encoding="ascii"))
    except OSError:
        return None


def parse_dep(text: str) -> set[str]:
    """The names in modules.dep, spelt as the kernel spells them."""
    paths = (line.partition(":")[0] for line in text.splitlines())
    return {found[1].replace("-", "_") for path in paths if (found := _MODULE_FILE.search(path))}


def can_load(name: str) -> bool | None:
    """Whether modprobe would find it for this kernel; None where nothing tells (a container).

    False on a kernel without modules, and of what is built in.
    """
    if not MODULES.exists():
        return False
    try:
        text = Path(LIBRARY, os.uname().release, "modules.dep").read_text(errors="replace")
    except OSError:
        return None
    return name in parse_dep(text)


def parameter(module: str, name: str) -> str | None:
    """None where the module is not there, or its parameter may not be read."""
    with contextlib.suppress(OSError):
        return (PARAMETERS / module / "parameters" / name).read_text(encoding="ascii").strip()
    return None


def parameter_file(module: str, name: str) -> Path:
    """The file that sets it, where it may be set."""
    return PARAMETERS / module / "parameters" / name
