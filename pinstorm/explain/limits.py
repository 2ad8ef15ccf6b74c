"""Limits on locked memory: RLIMIT_MEMLOCK, the capability that lifts it, and who shares it.

What is compared with what: docs/causes.md, and the charge of each pinstorm.explain.calls.Mechanism.
"""

from typing import Final

from pinstorm.evidence_parts import Holding
from pinstorm.explain.causes import Cause
from pinstorm.explain.check import Hit, Stage, guess, hit, size
from pinstorm.explain.finding import Confidence
from pinstorm.explain.view import View

_CAPABILITY: Final = "CAP_IPC_LOCK"
# What user->locked_vm has in it, by the kinds of pinstorm.held: io_account_mem(),
# xdp_umem_account_pages(), and iommufd's do_update_pinned(). mlock, vfio type1 and RDMA are charged
# to the process.
_OF_USER: Final = ("io-uring", "xdp-umem", "iommufd")
# Those of which a size that is not told still says that something is held.
_SURELY_OF_USER: Final = ("io-uring", "xdp-umem")


def memlock(view: View) -> list[Hit]:
    """The limit alone is too small: the process's, with what it holds already."""
    if view.mechanism is None or view.mechanism.charge is None:
        return _charged_elsewhere(view)
    if view.on_demand and view.failure.phase != "prepare":
        return []  # nothing is pinned, so nothing is charged
    errnos = _errnos(view)
    if view.exempt:
        return []
    limit = view.memlock_bytes
    if limit is None:
        found = guess(view, Cause.MEMLOCK_LIMIT, _stage(view), *errnos)
        return [found] if found else []
    if limit < 0:
        return []
    if not _is_over(view, limit):
        return _unknown_size(view, limit) if view.charged_bytes is None else []
    sure: Confidence = "certain" if _is_surely_over(view, limit) else "likely"
    extra_bytes = _held_by_others(view) if view.mechanism.charge == "user" else 0
    command = _prlimit(view, extra_bytes)
    sentences = [_sentence(view, limit), *_privileges(view), *_ring(view)]
    over = hit(
        Cause.MEMLOCK_LIMIT,
        sure,
        _stage(view),
        errnos,
        *sentences,
        command=command,
    )
    idle = _idle_capability(view)
    if idle is None:
        return [over]
    first = hit(
        Cause.CAPABILITY_MISSING,
        sure,
        _stage(view),
        errnos,
        idle,
        *sentences,
        command=command,
    )
    return [first, over]


def budget(view: View) -> list[Hit]:
    """The limit would do, were it not for other processes of the user."""
    mechanism, limit = view.mechanism, view.memlock_bytes
    if mechanism is None or mechanism.charge != "user" or view.exempt:
        return []
    errnos = _errnos(view)
    if limit is None or view.charged_bytes is None:
        found = (
            None if limit == -1 else guess(view, Cause.PIN_BUDGET_OF_USER, _stage(view), *errnos)
        )
        return [found] if found else []
    needed = _sure_own_bytes(view) + view.charged_bytes
    if limit <= 0 or needed > limit:
        return []
    held = sum(one.size_bytes or 0 for one in _of_user(view.evidence.holdings))
    unsized = _has_unsized(view.evidence.holdings)
    crew = _crew_bytes(view)
    told = [_sentence(view, limit), *_holders(view)]
    enough = "the limit alone is enough"
    if needed + held > limit:
        sure: Confidence = "certain" if view.process is not None else "likely"
        told.append(f"{enough}: others of this user hold the rest")
    elif _is_over(view, limit):
        return []  # by VmPin, which is not all the user's: memlock-limit says so
    elif needed + crew > limit:
        sure = "likely"
        told.append(f"{view.params['processes']} processes of this case do the same at once")
    elif view.outcome in errnos and (held or unsized or view.evidence.holdings is None):
        # A charge that nobody is seen to hold: AF_XDP's of a failed registration, for one. Or
        # somebody holds what cannot be sized: AF_XDP's on a kernel without xsk_diag.
        sure = "likely" if unsized or mechanism.charge_errno == "ENOBUFS" else "possible"
        told.append(f"{enough}: others of this user may hold the rest")
    elif view.outcome in errnos and mechanism.charge_errno == "ENOBUFS":
        sure = "possible"
        told.append(
            "no process of this user is seen to hold anything: an AF_XDP registration that failed "
            "half-way leaves its charge behind"
        )
    else:
        return []
    is_sized = _held_by_others(view) is not None and needed + held + crew > limit
    command = _prlimit(view, extra_bytes=held + crew if is_sized else None)
    return [
        hit(Cause.PIN_BUDGET_OF_USER, sure, _stage(view), errnos, *told, command=command),
    ]


def _charged_elsewhere(view: View) -> list[Hit]:
    """Calls that are charged in some drivers and releases only."""
    name = view.mechanism.name if view.mechanism is not None else ""
    limit = view.memlock_bytes
    if view.exempt or limit == -1:
        return []
    if name == "verbs object" and view.record.get("driver") not in ("rxe", "siw"):
        # The queue's own memory goes through ib_umem_get() in mlx5, irdma, bnxt_re, …
        found = guess(view, Cause.MEMLOCK_LIMIT, Stage.LIMIT, "ENOMEM")
        return [found] if found else []
    # secretmem_mmap() up to v6.15 or so: mlock_future_ok(), EAGAIN, CAP_IPC_LOCK exempt
    secret = view.backing == "secretmem" or view.failure.call == "memfd_secret"
    if name == "mapping" and view.failure.call == "mmap" and view.outcome == "EAGAIN":
        sure: Confidence = "likely" if secret else "possible"
        sentence = f"RLIMIT_MEMLOCK is {size(limit)}; secret and locked memory is charged at mmap"
        command = _prlimit(view) if view.page_bytes is not None else None
        one = hit(Cause.MEMLOCK_LIMIT, sure, Stage.LIMIT, {"EAGAIN"}, sentence, command=command)
        return [one]
    return []


def _stage(view: View) -> Stage:
    assert view.mechanism is not None
    return Stage.ACCOUNT if view.mechanism.charge_late else Stage.LIMIT


def _errnos(view: View) -> frozenset[str]:
    """A limit of 0 is EPERM where can_do_mlock() asks first: RDMA and mlock."""
    mechanism = view.mechanism
    assert mechanism is not None
    assert mechanism.charge_errno is not None
    asks_first = mechanism.name in ("memory region", "mlock")
    if asks_first and view.memlock_bytes == 0:
        return frozenset({"EPERM"})
    both = asks_first and view.memlock_bytes is None
    return frozenset({mechanism.charge_errno, *(["EPERM"] if both else [])})


def _is_over(view: View, limit: int) -> bool:
    charged = view.charged_bytes
    if limit == 0:
        return True
    return charged is not None and _own_bytes(view) + charged > limit


def _is_surely_over(view: View, limit: int) -> bool:
    """Over by what is known to be charged there; a process that nobody saw is never sure."""
    if view.process is None or not _is_over(view, limit):
        return False
    return limit == 0 or _sure_own_bytes(view) + (view.charged_bytes or 0) > limit


def _own_bytes(view: View) -> int:
    """What the process itself holds already, as far as the kernel's figures show it."""
    if _goes_by_vmpin(view):
        assert view.process is not None
        return max(_sure_own_bytes(view), view.process.vmpin_bytes or 0)
    return _sure_own_bytes(view)


def _sure_own_bytes(view: View) -> int:
    """The same without VmPin where the user is charged: RDMA's and others' pins are in it, too."""
    process, mechanism = view.process, view.mechanism
    if process is None or mechanism is None:
        return 0
    if mechanism.charge == "process-locked":
        return process.vmlck_bytes or 0
    if mechanism.charge == "process-pinned":
        return process.vmpin_bytes or 0
    return sum(one.size_bytes or 0 for one in _of_user(view.evidence.own_holdings))


def _goes_by_vmpin(view: View) -> bool:
    """Whether VmPin is all that tells what the process's rings are charged."""
    mechanism, own = view.mechanism, view.evidence.own_holdings
    if view.process is None or mechanism is None or mechanism.name != "io_uring buffer":
        return False
    return own is None or _has_unsized(own)


def _of_user(holdings: tuple[Holding, ...] | None) -> list[Holding]:
    """Those that are charged to user->locked_vm."""
    return [one for one in holdings or () if one.kind in _OF_USER]


def _has_unsized(holdings: tuple[Holding, ...] | None) -> bool:
    return any(one.size_bytes is None and one.kind in _SURELY_OF_USER for one in holdings or ())


def _sentence(view: View, limit: int) -> str:
    assert view.mechanism is not None
    asked = f"{size(view.charged_bytes)} were asked for"
    if view.charged_bytes is not None and view.page_bytes not in (None, view.charged_bytes):
        asked += f" (what {size(view.page_bytes)} are charged as)"
    where = _where_held(view)
    if view.process is None or where is None:
        return f"RLIMIT_MEMLOCK is {size(limit)}, and {asked}"
    held = f"the process already holds {size(_own_bytes(view))} in {where}"
    return f"RLIMIT_MEMLOCK is {size(limit)}, {held}, and {asked}"


def _where_held(view: View) -> str | None:
    """Which figure says what the process holds; None where none does."""
    assert view.mechanism is not None
    if view.mechanism.charge != "user":
        return "VmLck" if view.mechanism.charge == "process-locked" else "VmPin"
    if _goes_by_vmpin(view):
        return "VmPin, which RDMA and others count in, too"
    return None if view.evidence.own_holdings is None else "rings, AF_XDP and iommufd"


def _privileges(view: View) -> list[str]:
    if view.exempt is False:
        return [f"the process has no effective {_CAPABILITY}, which would lift the limit"]
    return []


def _ring(view: View) -> list[str]:
    if view.mechanism is not None and view.mechanism.exempt == "ring":
        return ["whether the limit holds was decided when the ring was made"]
    return []


def _idle_capability(view: View) -> str | None:
    """A sentence when the process has the capability in vain."""
    process = view.process
    if process is None:
        return None
    if process.cap_ipc_lock and process.initial_userns is False:
        return (
            f"{_CAPABILITY} is effective in the process's own user namespace only, and the kernel "
            "asks for it in the initial one"
        )
    if process.cap_ipc_lock:
        return None
    for has, word in (
        (process.cap_ipc_lock_permitted, "permitted"),
        (process.cap_ipc_lock_inheritable, "inheritable"),
    ):
        if has:
            return f"{_CAPABILITY} is {word} to the process, and not effective"
    return None


def _unknown_size(view: View, limit: int) -> list[Hit]:
    """How much was asked for is not known, so how much is left decides nothing."""
    if view.outcome not in _errnos(view):
        return []
    left = limit - _own_bytes(view)
    told = f"{_sentence(view, limit)}: more than {size(max(0, left))} more is refused"
    sure: Confidence = "likely" if left <= 0 else "possible"
    return [hit(Cause.MEMLOCK_LIMIT, sure, _stage(view), _errnos(view), told, *_privileges(view))]


def _held_by_others(view: View) -> int | None:
    """None where nobody could look, or what was seen, of others or its own, has no size."""
    holdings, own = view.evidence.holdings, view.evidence.own_holdings
    if holdings is None or own is None:
        return None
    if any(one.size_bytes is None for one in (*_of_user(holdings), *_of_user(own))):
        return None
    return sum(one.size_bytes or 0 for one in _of_user(holdings))


def _holders(view: View) -> list[str]:
    return [
        f"{who} holds {size(one.size_bytes)}: {one.kind}"
        for one in _of_user(view.evidence.holdings)
        for who in [f"process {one.pid} ({one.name})" if one.pid is not None else one.name]
    ]


def _crew_bytes(view: View) -> int:
    """What the case's other processes ask for beside this one."""
    if view.case is None or view.case.processes < 2 or view.charged_bytes is None:
        return 0
    return (view.case.processes - 1) * view.charged_bytes


def _prlimit(view: View, extra_bytes: int | None = 0) -> str | None:
    """Soft and hard limit that are enough: more than they are, or none where sizes are not known.

    ``extra_bytes``: what others hold; None: nobody knows.

    A living process is helped at once: the limit is compared at each call.
    """
    if view.pid is None:
        return None
    limit, charged = view.memlock_bytes, view.charged_bytes
    soft = _own_bytes(view) + (charged or 0) + (extra_bytes or 0)
    if extra_bytes is None or charged is None or limit is None or not 0 <= limit < soft:
        return f"prlimit --pid {view.pid} --memlock=unlimited:unlimited"
    hard = view.process.memlock_hard_bytes if view.process is not None else None
    if hard is None or hard < 0:  # never lower it
        return f"prlimit --pid {view.pid} --memlock={soft}:unlimited"
    return f"prlimit --pid {view.pid} --memlock={soft}:{max(soft, hard)}"
