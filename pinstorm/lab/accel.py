"""How the guest's instructions run: KVM where it really boots a guest, else emulation (TCG).

That /dev/kvm can be opened is not enough: QEMU may abort at once or hang there. So a kernel is
booted once, with a deadline; the answer is kept in the cache for this boot of the host and this
QEMU.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab.kernels import Kernel
from telemetry import clock

QEMU = "qemu-system-x86_64"
PROBE_DEADLINE_S = 10.0
_REMEMBERED = "accel.json"
# A chain from us (over virtme-ng) to QEMU: nothing runs on when we are killed.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True, slots=True)
class Accel:
    """``name``: kvm or tcg, as the record's ``accel``. ``reason``: why it is not KVM."""

    name: Literal["kvm", "tcg"]
    qemu_version: str
    reason: str | None = None


def accelerator(kernel: Kernel, note: Callable[[str], None] = lambda text: None) -> Accel:
    """What guests run under here; boots ``kernel`` once to find out, and remembers.

    ``note`` is told before that, which takes up to ten seconds.
    """
    version = qemu_version()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accel("tcg", version, "/dev/kvm is missing or cannot be opened")
    known = cache.cache_dir() / _REMEMBERED
    key = _key(version)
    with cache.locked(known):
        entry = cache.read_json(known)
        if {name: entry.get(name) for name in key} != key:
            note("trying whether KVM boots a guest here")
            entry = {**key, "reason": why_kvm_fails(kernel)}
            cache.write_json(known, entry)
    reason = entry.get("reason")
    return Accel("tcg" if reason else "kvm", version, reason)


def remembered() -> Accel | None:
    """The answer that an earlier run found on this boot; None: nobody has asked. Boots nothing.

    UsageError where QEMU is not installed.
    """
    version = qemu_version()
    entry = cache.read_json(cache.cache_path() / _REMEMBERED)
    if any(entry.get(name) != value for name, value in _key(version).items()):
        return None
    reason = entry.get("reason")
    return Accel("tcg" if reason else "kvm", version, reason)


def _key(version: str) -> dict[str, str | None]:
    return {"boot_id": clock.boot_id(), "qemu_version": version}


def qemu_version() -> str:
    """The version QEMU prints, such as ``7.2.22``; UsageError where it is not installed."""
    if shutil.which(QEMU) is None:
        raise UsageError(
            f"{QEMU} is not installed: run scripts/setup, or apt-get install qemu-system-x86"
        )
    text = subprocess.run([QEMU, "--version"], capture_output=True, text=True).stdout
    return parse_qemu_version(text)


def parse_qemu_version(text: str) -> str:
    match = re.search(r"version (\S+)", text)
    return match[1] if match else "unknown"


def why_kvm_fails(kernel: Kernel, deadline_s: float = PROBE_DEADLINE_S) -> str | None:
    """Boot the kernel under KVM up to its panic for want of a root; None when it gets there."""
    with tempfile.TemporaryDirectory(prefix="kvm-", dir=cache.cache_dir()) as folder:
        console = Path(folder, "console")
        options = ["-enable-kvm", "-cpu", "host", "-m", "512", "-nodefaults", "-no-reboot"]
        options += ["-display", "none"]
        options += ["-serial", f"file:{console}", "-kernel", str(kernel.vmlinuz)]
        options += ["-append", "console=ttyS0 panic=-1 nokaslr"]
        with subprocess.Popen(
            [*DIE_WITH_PARENT, QEMU, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as qemu:
            try:
                _, errors = qemu.communicate(timeout=deadline_s)
            except subprocess.TimeoutExpired:
                return f"a guest did not boot under KVM within {deadline_s:.0f} s"
            finally:
                qemu.kill()  # Ctrl-C ends the wait, too
        text = console.read_text(errors="replace") if console.exists() else ""
    if "Linux version" in text and "Kernel panic" in text:
        return None
    last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    return f"QEMU ended with {qemu.returncode} under KVM: {last}"
