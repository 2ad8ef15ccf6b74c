"""/proc/PID/status: memory a process holds pinned or locked, its threads and its privileges.

``VmPin`` counts pages pinned through mm->pinned_vm (RDMA, io_uring, iommufd, vhost-vdpa); AF_XDP,
O_DIRECT and process_vm pins do not appear. ``VmLck`` counts mlock and vfio type1 (mm->locked_vm).
In bytes here; the kernel prints KiB and calls them kB. Levels, per process (one mm for all its
threads). VmPin since Linux 3.2, Seccomp since 3.8. A zombie and a kernel thread have no Vm lines:
None. psutil offers neither VmPin nor VmLck. See Documentation/filesystems/proc.rst.
"""

import os
from dataclasses import dataclass
from pathlib import Path

# include/uapi/linux/capability.h
# fmt: off
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)
# fmt: on
# Enough for all but a process in thousands of groups, which stand before what is asked for.
_STATUS_BYTES = 1 << 14
_CAPABILITY_BIT = {f"CAP_{name}": bit for bit, name in enumerate(CAPABILITIES)}


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """``uid`` and ``gid`` are the effective ones; ``seccomp``: 0 off, 1 strict, 2 filter.

    ``real_uid``: the user to whom the kernel charges user->locked_vm. ``tgid``: the process of a
    thread whose own id ``pid`` is.
    """

    name: str
    state: str
    pid: int | None
    parent: int | None
    uid: int | None
    gid: int | None
    threads: int | None
    vmpin_bytes: int | None
    vmlck_bytes: int | None
    vmrss_bytes: int | None
    vmhwm_bytes: int | None
    vmsize_bytes: int | None
    vmswap_bytes: int | None
    hugetlb_bytes: int | None
    cap_inh: int | None
    cap_prm: int | None
    cap_eff: int | None
    cap_bnd: int | None
    no_new_privs: bool | None
    seccomp: int | None
    real_uid: int | None
    tgid: int | None


def parse(text: str) -> ProcessStatus:
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key: value.strip() for key, value in lines.items()}
    no_new_privs = _number(fields, "NoNewPrivs")
    return ProcessStatus(
        name=fields.get("Name", ""),
        state=fields.get("State", "")[:1],
        pid=_number(fields, "Pid"),
        parent=_number(fields, "PPid"),
        uid=_number(fields, "Uid", word=1),
        gid=_number(fields, "Gid", word=1),
        threads=_number(fields, "Threads"),
        vmpin_bytes=_kib(fields, "VmPin"),
        vmlck_bytes=_kib(fields, "VmLck"),
        vmrss_bytes=_kib(fields, "VmRSS"),
        vmhwm_bytes=_kib(fields, "VmHWM"),
        vmsize_bytes=_kib(fields, "VmSize"),
        vmswap_bytes=_kib(fields, "VmSwap"),
        hugetlb_bytes=_kib(fields, "HugetlbPages"),
        cap_inh=_number(fields, "CapInh", base=16),
        cap_prm=_number(fields, "CapPrm", base=16),
        cap_eff=_number(fields, "CapEff", base=16),
        cap_bnd=_number(fields, "CapBnd", base=16),
        no_new_privs=None if no_new_privs is None else bool(no_new_privs),
        seccomp=_number(fields, "Seccomp"),
        real_uid=_number(fields, "Uid"),
        tgid=_number(fields, "Tgid"),
    )


@dataclass(frozen=True, slots=True)
class Charge:
    """The few lines that tell what a process is charged for. Bytes; ``uid`` is the real one."""

    name: str
    uid: int | None
    vmpin_bytes: int | None
    vmlck_bytes: int | None


def parse_charge(data: bytes) -> Charge | None:
    """A tenth of parse()'s time, for whoever looks at every process; None without memory of its
    own (kernel threads, zombies)."""
    if data.find(b"\nVmSize:") < 0:
        return None
    name = data[data.find(b"\t") + 1 : data.find(b"\n")].strip()
    vmpin, vmlck = _word(data, b"\nVmPin:"), _word(data, b"\nVmLck:")
    return Charge(
        name=name.decode("utf-8", "surrogateescape"),
        uid=_word(data, b"\nUid:"),
        vmpin_bytes=None if vmpin is None else vmpin * 1024,
        vmlck_bytes=None if vmlck is None else vmlck * 1024,
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process has in memory, pinned and locked. Bytes."""

    vmpin_bytes: int | None
    vmlck_bytes: int | None
    vmrss_bytes: int | None


def parse_memory(data: bytes) -> Memory:
    """For whoever looks often; all None of a process without memory of its own."""
    found = (_word(data, key) for key in (b"\nVmPin:", b"\nVmLck:", b"\nVmRSS:"))
    return Memory(*(None if kib is None else kib * 1024 for kib in found))


def open_file(pid: int) -> int:
    """To be read again and again; it stays that process's, whoever gets its number later."""
    return os.open(_path(pid), os.O_RDONLY | os.O_CLOEXEC)


def read_from(fd: int) -> bytes:
    """ProcessLookupError when the process is gone."""
    return os.pread(fd, _STATUS_BYTES, 0)


def _word(data: bytes, key: bytes) -> int | None:
    start = data.find(key)
    return None if start < 0 else int(data[start + len(key) :].split(None, 1)[0])


def read_charge(pid: int) -> Charge | None:
    """Raises FileNotFoundError or ProcessLookupError when the process is gone."""
    fd = os.open(_path(pid), os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = more = os.read(fd, _STATUS_BYTES)
        while len(more) == _STATUS_BYTES:
            more = os.read(fd, _STATUS_BYTES)
            data += more
        return parse_charge(data)
    finally:
        os.close(fd)


def _path(pid: int | str) -> str:
    return f"/proc/{pid}/status"


def _number(fields: dict[str, str], key: str, word: int = 0, base: int = 10) -> int | None:
    words = fields.get(key, "").split()
    return int(words[word], base) if len(words) > word else None


def _kib(fields: dict[str, str], key: str) -> int | None:
    kib = _number(fields, key)
    return None if kib is None else kib * 1024


def read(pid: int | str = "self") -> ProcessStatus:
    """Raises FileNotFoundError or ProcessLookupError when the process is gone."""
    # A name is any bytes but NUL; the kernel escapes newline and backslash only.
    text = Path(_path(pid)).read_text(encoding="utf-8", errors="surrogateescape")
    return parse(text)


def has_capability(status: ProcessStatus, name: str) -> bool:
    """Whether ``name`` (``CAP_IPC_LOCK`` or ``IPC_LOCK``) is in the effective set.

    Of the process's own user namespace: what the *initial* namespace grants (CAP_IPC_LOCK for RDMA
    and io_uring is asked there) can be less in a container. KeyError for an unknown name.
    """
    return in_set(status.cap_eff, name)


def in_set(mask: int | None, name: str) -> bool:
    """The same of any of the sets: ``cap_prm``, ``cap_inh``, …"""
    bit = _CAPABILITY_BIT[name if name.startswith("CAP_") else f"CAP_{name}"]
    return bool((mask or 0) >> bit & 1)


def capability_names(mask: int) -> list[str]:
    """``CAP_…`` for every bit that is set; bits newer than this table as ``CAP_<number>``."""
    return [
        f"CAP_{CAPABILITIES[bit]}" if bit < len(CAPABILITIES) else f"CAP_{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    ]
