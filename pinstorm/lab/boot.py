"""Booting a guest with virtme-ng, and what becomes of it.

virtme-ng boots the kernel on the host's own root file system, read-only, so that the same virtual
environment runs in the guest. The command's exit code and output come back as files in a directory
that host and guest share, never from the console. The console (kernel messages, a panic's text) is
appended to a file as it happens.

Booted plainly, the 7.2 kernel takes 17 s without KVM until its first command; here 6 s, and 10 s
with the set-up that configs/quick.toml needs (two cores). What the larger choices save stands
beside them, for a machine with nothing else to do; on a busy one it is a multiple.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab.accel import DIE_WITH_PARENT, QEMU, Accel, accelerator
from pinstorm.lab.kernels import Kernel
from pinstorm.lab.setup import MODULES_LOADED
from pinstorm.lab.shape import Shape

# What Guest.poll() answers when the machine went away without having reported an exit code.
GONE = -1
_POLL_S = 0.05
# Directories that virtme-ng covers with empty tmpfs in the guest.
_HIDDEN = ("/dev", "/proc", "/sys", "/run", "/var/cache", "/var/log", "/var/tmp", "/var/lib/apt")
_SAFE_PATH = re.compile(r"[a-zA-Z0-9_+/.-]+")

_KERNEL_OPTIONS = (
    # Warnings and worse go to the console; the rest stays in the guest's own log.
    "loglevel=5",
    # No keyboard or mouse to be probed for, no self-tests of ciphers, no audit records.
    "i8042.noaux",
    "i8042.nokbd",
    "cryptomgr.notests",
    "audit=0",
)
# Emulated times are never compared with others, so there the guest need not pay for mitigations;
# and the watchdog would call a time stamp counter unstable whose CPU had to wait for the host.
_TCG_KERNEL_OPTIONS = ("mitigations=off", "tsc=reliable")
# 512 MiB of translated code: the default of a small host is flushed over and over. Page walks of
# four levels instead of five.
_TCG_QEMU_OPTIONS = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off")

# Run by the guest's init in place of the host's programs, through PATH. Coldplug and tmpfiles take
# 4 s, change nothing that a case needs (the kernel makes the device nodes, set-up
# loads the modules by name), and udev's workers would run beside the measurements.
_STAND_INS = ("systemd-tmpfiles", "udevadm")

# 9p with a page cache. virtme-ng's own root has none: every page of every program is a round trip,
# 2 s of them before the first case. What the host changes in these directories while the guest runs
# is not seen.
_CACHED_ROOT = "ro,version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose"
_TAG = "pinstorm"

# Every program started is up to a quarter of a second under emulation: hence the few there are.
_ENTRY = """\
#!/bin/sh
: > {control}/started
mkdir -p /run/pinstorm/root /run/pinstorm/share /run/pinstorm/tmp
if mount -t 9p -o {options} {tag} /run/pinstorm/root; then
    mount --bind /run/pinstorm/root/usr /usr
    {keep_share}
    for directory in {cached}; do
        mkdir -p "$directory"
        mount --bind "/run/pinstorm/root$directory" "$directory"
    done
    {give_share}
fi
echo {control}/command/modprobe > /proc/sys/kernel/modprobe
for status in /proc/[0-9]*/status; do
    read -r _ name < "$status" || continue
    if [ "$name" = systemd-udevd ]; then pid=${{status#/proc/}}; kill "${{pid%/status}}"; fi
done 2> /dev/null
{environment}
{modules}
cd {cwd}
"""

# The guest's /lib/modules need not exist and cannot be made: kmod is told where the modules are,
# through the cached root where that is mounted.
_MODPROBE = """\
#!/bin/sh
base=/run/pinstorm/root{base}
[ -d "$base/lib/modules" ] || base={base}
exec /sbin/modprobe -d "$base" "$@"
"""


@dataclass
class Guest:
    """A running virtual machine and the one command in it. Use as a context manager, or kill()."""

    process: subprocess.Popen[bytes]
    control: Path
    console: Path
    accel: Accel
    booted_s: float = field(default_factory=time.monotonic)

    @property
    def started(self) -> bool:
        """Whether the command was ever started; False at the end is a lost boot."""
        return (self.control / "started").exists()

    def poll(self) -> int | None:
        """The command's exit code; None while it runs; GONE when the machine went away."""
        ended = self.process.poll() is not None
        # in this order: a machine that ended has written its exit code before, or never will
        code = self._exit_code()
        return code if code is not None else GONE if ended else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Like poll(), but waits until there is an answer or ``timeout_s`` is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        """End the machine and everything started for it, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def output(self) -> tuple[str, str]:
        """What the command has written so far: standard output, standard error."""
        return self._text("stdout"), self._text("stderr")

    def machine_messages(self) -> str:
        """What virtme-ng and QEMU themselves said: the reason of a boot that never was."""
        return self._text("virtme")

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.control, ignore_errors=True)

    def _exit_code(self) -> int | None:
        text = self._text("exit").strip()
        return int(text) if text.isdigit() else None

    def _text(self, name: str) -> str:
        try:
            return (self.control / name).read_text(errors="replace")
        except OSError:
            return ""


def boot(
    kernel: Kernel,
    shape: Shape,
    argv: Sequence[str],
    share: Path,
    console: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    accel: Accel | None = None,
) -> Guest:
    """Start a guest that runs ``argv`` as root in ``cwd`` and powers off.

    ``share`` is writable in the guest, at the same path; everything else is the host's root,
    read-only. ``console``: the file the console is appended to. ``env``: variables set for the
    command. UsageError when virtme-ng or QEMU is missing or a path cannot be shown to the guest.
    """
    share, console = share.resolve(), console.absolute()
    accel = accel or accelerator(kernel)
    control = _make_control(kernel, share)
    _write_script(
        control / "entry",
        _entry(shape, share, control, env or {}, cwd or Path.cwd())
        + f"{shlex.join(argv)} < /dev/null > {control}/stdout 2> {control}/stderr\n"
        + f"echo $? > {control}/exit\n",
    )
    command = [*DIE_WITH_PARENT, *_command(kernel, shape, accel)]
    command += ["--qemu-bin", str(control / "host/qemu")]
    command += _share_options(share, control)
    command += ["--script-sh", f"/bin/sh {control}/entry"]
    # virtme-ng gives the console to /dev/null; a second serial port can be no kernel console, since
    # the 8250 driver has one. So its character device is pointed elsewhere.
    command += _qemu_options("-set", f"chardev.console.path={console}")
    command += _qemu_options("-set", "chardev.console.append=on")
    with (control / "virtme").open("wb") as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            env=_host_environment(control),
            # a group of its own: Ctrl-C reaches the runner alone, and kill() reaches all of it
            start_new_session=True,
        )
    return Guest(process, control, console, accel)


def interactive(kernel: Kernel, shape: Shape, prepare: Sequence[str]) -> int:
    """Run ``prepare`` in a guest, then a root shell on this terminal; virtme-ng's exit code."""
    home = cache.cache_dir().resolve() / "shell"
    home.mkdir(parents=True, exist_ok=True)
    accel = accelerator(kernel)
    control = _make_control(kernel, home)
    shell = f"{shlex.join(prepare)}\necho\nexec bash -i\n"
    _write_script(control / "entry", _entry(shape, home, control, {}, Path.cwd()) + shell)
    command = _command(kernel, shape, accel) + _share_options(home, control)
    command += ["--shell", f"{control}/entry"]
    environment = _host_environment(control, os.environ.get("TERM", "dumb"))
    try:
        return subprocess.run(command, env=environment).returncode
    finally:
        shutil.rmtree(control, ignore_errors=True)


def _make_control(kernel: Kernel, share: Path) -> Path:
    """A directory in the share with the programs that the guest runs before the command."""
    for path, remedy in ((share, "--out"), (kernel.modules, "PINSTORM_CACHE")):
        check_visible(path, remedy)
    share.mkdir(parents=True, exist_ok=True)
    control = Path(tempfile.mkdtemp(prefix=".guest-", dir=share))
    control.chmod(0o755)
    for name in _STAND_INS:
        _write_script(control / "bin" / name, "#!/bin/sh\nexit 0\n")
    qemu = shlex.join([*DIE_WITH_PARENT, QEMU])
    _write_script(control / "host/qemu", f'#!/bin/sh\nexec {qemu} "$@"\n')
    _write_script(control / "command/modprobe", _MODPROBE.format(base=kernel.modules_base))
    return control


def check_visible(path: Path, remedy: str) -> None:
    """UsageError unless the guest sees ``path`` where the host does, and virtme-ng takes it."""
    if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
        raise UsageError(
            f"{path} is not visible in the guest, which has its own {' '.join(_HIDDEN)}: "
            f"choose another directory ({remedy})"
        )
    if not _SAFE_PATH.fullmatch(str(path)):
        raise UsageError(
            f"{path} has a character that virtme-ng does not take: choose a directory of letters, "
            f"digits and _+/.- ({remedy})"
        )


def virtme_run() -> str:
    """virtme-ng's program, of this interpreter's environment or on PATH."""
    beside = Path(sys.executable).with_name("virtme-run")
    if beside.exists():
        return str(beside)
    if found := shutil.which("virtme-run"):
        return found
    raise UsageError(
        "virtme-ng is not installed: run scripts/setup, or pip install 'pinstorm[lab]'"
    )


def _command(kernel: Kernel, shape: Shape, accel: Accel) -> list[str]:
    command = [virtme_run(), "--kimg", str(kernel.vmlinuz), "--mods=auto"]
    # virtiofsd is looked for for 3 s a directory before virtme-ng gives it up, and needs the
    # guest's memory to be shared: 9p works alike on every host.
    command += ["--force-9p", "--no-dhcp"]
    command += ["--memory", f"{shape.memory_mib}M", "--cpus", str(shape.cpus)]
    # QEMU's default machine has more RAM below 4 GiB, so that pmem and CMA would not fit above.
    qemu = ["-machine", "q35"]
    # multidevs: the host's root may hold several file systems, whose inode numbers can be equal
    qemu += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
    qemu += ["-device", f"virtio-9p-pci,fsdev=root,mount_tag={_TAG}"]
    options = [*_KERNEL_OPTIONS, *shape.kernel_options]
    if accel.name == "tcg":
        command.append("--disable-kvm")
        qemu += _TCG_QEMU_OPTIONS
        options = [*_TCG_KERNEL_OPTIONS, *options]
    if kernel.vmlinux is not None:
        # the last -kernel counts: entered at its PVH note, it need not decompress itself
        qemu += ["-kernel", str(kernel.vmlinux)]
    for option in options:
        command += ["--kopt", option]
    return command + _qemu_options(*qemu, *shape.qemu_options)


def _share_options(share: Path, control: Path) -> list[str]:
    stand_ins = f"PATH={control}/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return ["--rwdir", str(share), "--kopt", stand_ins]


def _qemu_options(*words: str) -> list[str]:
    return [f"--qemu-opt={word}" for word in words]


def _entry(
    shape: Shape,
    share: Path,
    control: Path,
    env: Mapping[str, str],
    cwd: Path,
) -> str:
    """What the guest's init starts: everything up to the command itself."""
    variables = {
        "HOME": "/root",
        "TMPDIR": "/run/pinstorm/tmp",
        "PATH": f"{control}/command:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **env,
    }
    cached = _cached_directories()
    # a share inside a directory that is covered has to be laid on top again
    covered = any(share.is_relative_to(directory) for directory in cached)
    return _ENTRY.format(
        control=control,
        options=_CACHED_ROOT,
        tag=_TAG,
        cached=shlex.join(str(path) for path in cached),
        keep_share=f"mount --bind {share} /run/pinstorm/share" if covered else ":",
        give_share=f"mount --bind /run/pinstorm/share {share}" if covered else ":",
        environment="\n".join(f"export {k}={shlex.quote(v)}" for k, v in variables.items()),
        modules=_loading(shape.modules),
        cwd=shlex.quote(str(cwd)),
    )


def _loading(batches: Sequence[Sequence[str]]) -> str:
    """Load the modules of each batch one after the other, and the batches at the same time."""
    jobs = [f"modprobe -a -q {shlex.join(batch)} &" for batch in batches]
    return f"({' '.join(jobs)} wait; : > {MODULES_LOADED}) 2> /dev/null &"


def _cached_directories() -> list[Path]:
    """What programs are read from besides /usr: this package, the interpreter's environment."""
    found: list[Path] = []
    for path in sorted({Path(__file__).resolve().parents[2], Path(sys.prefix).resolve()}):
        covered = any(path.is_relative_to(other) for other in (Path("/usr"), *found))
        if not covered and path != Path("/"):
            found.append(path)
    return found


def _write_script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _host_environment(control: Path, terminal: str = "dumb") -> dict[str, str]:
    """The environment of virtme-ng: it reads no user's configuration, and cleans up with us."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return {
        **os.environ,
        "HOME": str(control),
        "TMPDIR": str(control),
        "TERM": terminal,
        # depmod and modprobe are in sbin, which an ordinary user's PATH lacks on Debian
        "PATH": f"{path}:/usr/sbin:/sbin",
    }
