"""The user and the limit that a case asks for: an ordinary user under a small RLIMIT_MEMLOCK.

Whether CAP_IPC_LOCK lifts the limit is decided at each registration (RDMA, AF_XDP) or when a ring
is made (io_uring), so this comes before the workload opens anything. See capabilities(7) and
setrlimit(2).
"""

import os
import resource

import workloads
from workloads import libc
from workloads.spec import Case, PrepareFailed

_CAPABILITIES = {"CAP_NET_RAW": libc.CAP_NET_RAW}
# What the process may have under that circumstance, and does not use: as a program whose file gives
# it capabilities that it never makes effective, or that inherited them; see capabilities(7).
_UNUSED = {"ipc-lock-unused": (libc.CAP_IPC_LOCK,)}


def become(case: Case) -> None:
    """Set ``memlock_bytes`` and take on ``uid``, without root's capabilities but the spec's."""
    if "memlock_bytes" in case.params:
        limit_bytes = int(case.params["memlock_bytes"])
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_bytes, limit_bytes))
        except (ValueError, OSError) as error:  # Python's own errors, not the kernel's errno
            raise PrepareFailed(f"RLIMIT_MEMLOCK cannot be {limit_bytes} bytes: {error}") from error
    if "uid" not in case.params:
        return
    uid = int(case.params["uid"])
    kept = workloads.workload_spec(case.workload).keeps
    libc.keep_capabilities_over_setuid()
    with libc.refusal_of("setresuid", f"uid {uid}"):
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    unused = _UNUSED.get(str(case.params.get("under")), ())
    libc.set_capabilities((_CAPABILITIES[name] for name in kept), unused)
    # The kernel forgets both when a process changes its user.
    libc.die_with_parent()
    libc.stay_readable()
