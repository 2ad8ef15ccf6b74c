"""The rules themselves: every cell has exactly one, each says where it is written, and the cells
that the project promises come out as the kernel's source says."""

import itertools
import re
from collections.abc import Iterator

import pytest

from pinstorm import oracle
from pinstorm.oracle import Machine, expectation
from pinstorm.rules import RULES, Check, Rule
from workloads import MEMORY, WORKLOADS
from workloads.spec import MIB, Case

KERNELS = {
    "6.1": "6.1.0-50-amd64",
    "6.3": "6.3.13",
    "6.5": "6.5.13",
    "6.12": "6.12.107+deb13-amd64",
    "6.18": "6.18.44-fc-v669",
    "7.0": "7.0.9",
    "7.2": "7.2.11+deb13-amd64",
}
VENDOR = ("5.14.0-503.el9_5.x86_64", "6.4.0-150600.23.53-default")
SIZES = (512, 4097, 64 << 10, 2 * MIB, 3 * MIB, 16 * MIB)
LIMITS = (None, 0, 8 * MIB, -1)

# A kernel document or man page, a commit with subject and release, or a function in a source file.
SOURCE = re.compile(
    r"Documentation/\S+\.rst, \S"
    r'|Linux commit [0-9a-f]{12} \("[^"]+"\), v\d+\.\d+'
    r"|[a-z_/]+\.[ch](?: of v\d+\.\d+)?, \w+\(\)"
    r"|\w+\(\d\), O_DIRECT: \S"
)


def cells() -> Iterator[Case]:
    for workload, memory, size_bytes in itertools.product(WORKLOADS, MEMORY, SIZES):
        for access in ("rw", "ro") if workload.writes == "access" else (None,):
            params: dict[str, object] = {"size_bytes": size_bytes}
            if access is not None:
                params["access"] = access
            yield Case(workload.name, memory.name, params)


def machines() -> Iterator[Machine]:
    for fs in ("ext4", "xfs", "btrfs"):
        yield Machine(cap_ipc_lock=True, target_fs=fs)
        for limit in LIMITS:
            yield Machine(cap_ipc_lock=False, memlock_bytes=limit, target_fs=fs)


def expected(
    kernel: str, workload: str, memory: str, size_bytes: int = 16 * MIB, **params: object
) -> oracle.Expectation:
    machine = Machine(cap_ipc_lock=params.pop("cap_ipc_lock", True) is True)
    if not machine.cap_ipc_lock:
        machine = Machine(cap_ipc_lock=False, memlock_bytes=-1)
    case = Case(workload, memory, {"size_bytes": size_bytes, **params})
    return expectation(case, KERNELS[kernel], machine)


@pytest.mark.parametrize("release", [*KERNELS.values(), *VENDOR])
def test_every_cell_has_exactly_one_rule(release: str) -> None:
    for case, machine in itertools.product(cells(), machines()):
        expectation(case, release, machine)  # NoRule, AmbiguousRules


def test_every_rule_is_used() -> None:
    used = set()
    for release in KERNELS.values():
        number = oracle.parse_kernel(release).release
        for case, machine in itertools.product(cells(), machines()):
            known = oracle.facts(case, machine)
            if known["memlock"] != "unknown":
                used.add(oracle.find_rule(known, number).name)
    assert used == {rule.name for rule in RULES}


def test_names_are_unique() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_rules_speak_of_known_properties_and_values() -> None:
    seen: dict[str, set[bool | str]] = {}
    for case, machine in itertools.product(cells(), machines()):
        for name, value in oracle.facts(case, machine).items():
            seen.setdefault(name, set()).add(value)
    for rule in RULES:
        for name, wanted in rule.when.items():
            assert (wanted if isinstance(wanted, frozenset) else {wanted}) <= seen[name], rule.name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_says_where_it_is_written(rule: Rule) -> None:
    assert SOURCE.match(rule.source)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_set_is_explained(rule: Rule) -> None:
    assert rule.outcomes
    assert len(rule.outcomes) == 1 or rule.why


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_refusal_holds_nothing(rule: Rule) -> None:
    if "ok" not in rule.outcomes:
        assert rule.check != Check.DONE
        assert (rule.held.low, rule.held.high) == (0, 0)
        assert (rule.vmpin_bytes.low, rule.vmpin_bytes.high) == (0, 0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_release_bounds_are_in_order(rule: Rule) -> None:
    if rule.since is not None and rule.until is not None:
        assert rule.since < rule.until


def test_few_rules_rest_on_observation() -> None:
    assert sum(rule.observed for rule in RULES) <= len(RULES) * 0.05


def figures(of: oracle.Expectation) -> tuple[object, object, object]:
    message = of.to_json()
    return message["acquired"], message["held"], message["vmpin_bytes"]


P = 4096  # pages of 16 MiB


@pytest.mark.parametrize(
    ("kernel", "access", "memory", "outcome", "acquired"),
    [
        ("7.2", "rw", "anon", "ok", P),
        ("7.2", "ro", "anon", "ok", P),
        ("7.2", "rw", "anon-untouched", "ok", P),
        ("7.2", "ro", "anon-untouched", "ok", P),
        ("7.2", "rw", "thp", "ok", P),
        ("7.2", "rw", "hugetlb-2m", "ok", P),
        ("7.2", "rw", "memfd", "ok", P),
        ("7.2", "rw", "ext4-shared", "EFAULT", [0, P]),
        ("6.5", "rw", "ext4-shared", "EFAULT", [0, P]),
        ("6.3", "rw", "ext4-shared", "ok", P),
        ("6.1", "rw", "ext4-shared", "ok", P),
        ("7.2", "ro", "ext4-shared", "ok", [P, 2 * P]),
        ("6.1", "ro", "ext4-shared", "ok", P),
        ("7.2", "rw", "ext4-private", "ok", P),
        ("7.2", "ro", "ext4-private", "ok", [P, 2 * P]),
        ("6.1", "ro", "ext4-private", "ok", P),
        ("7.2", "rw", "dax-shared", "EOPNOTSUPP", 0),
        ("7.2", "ro", "dax-shared", "EOPNOTSUPP", 0),
        ("6.1", "ro", "dax-shared", "EOPNOTSUPP", 0),
        ("7.2", "rw", "movable", "ok", [2 * P, None]),
        ("6.1", "ro", "movable", "ok", [2 * P, None]),
        ("7.2", "rw", "movable-held", "ENOMEM", [1, None]),
        ("6.1", "rw", "movable-held", "ENOMEM", [1, None]),
    ],
)
def test_rdma_register(
    kernel: str, access: str, memory: str, outcome: str, acquired: object
) -> None:
    of = expected(kernel, "rdma-register", memory, access=access)
    assert of.outcomes == (outcome,)
    held = P if outcome == "ok" else 0
    assert figures(of) == (acquired, held, held * 4096)
    assert of.pin_class == "pin-longterm"


def test_migration_is_demanded_where_pages_must_move_and_forbidden_where_not() -> None:
    moved = expected("7.2", "rdma-register", "movable", access="rw").to_json()
    held = expected("7.2", "rdma-register", "movable-held", access="rw").to_json()
    plain = expected("7.2", "rdma-register", "anon", access="rw").to_json()
    assert moved["migrate_success"] == [P, None]
    assert held["migrate_fail"] == [1, None]
    assert plain["migrate_success"] == 0


@pytest.mark.parametrize("workload", ["dio-read", "process-vm-write", "vmsplice"])
@pytest.mark.parametrize("memory", ["movable", "movable-held"])
def test_short_pins_leave_movable_pages_where_they_are(workload: str, memory: str) -> None:
    of = expected("7.2", workload, memory)
    assert of.outcomes == ("ok",)
    assert of.to_json()["migrate_success"] == 0


@pytest.mark.parametrize("memory", [spec.name for spec in MEMORY])
@pytest.mark.parametrize("access", ["rw", "ro"])
def test_on_demand_paging_pins_nothing_on_any_memory(memory: str, access: str) -> None:
    of = expected("7.2", "rdma-register-odp", memory, access=access)
    assert of.outcomes == ("ok",)
    assert figures(of) == (0, 0, 0)
    assert of.pin_class == "none"


@pytest.mark.parametrize(("kernel", "outcome"), [("6.1", "EINVAL"), ("6.12", "EOPNOTSUPP")])
def test_on_demand_paging_before_rxe_had_it(kernel: str, outcome: str) -> None:
    assert expected(kernel, "rdma-register-odp", "anon", access="rw").outcomes == (outcome,)


HUGE = 2 * MIB


@pytest.mark.parametrize(
    ("kernel", "cap", "memory", "size_bytes", "held", "vmpin"),
    [
        ("6.1", True, "anon", 16 * MIB, P, 16 * MIB),
        ("6.1", True, "thp", 16 * MIB, P, 16 * MIB),
        ("6.1", True, "thp", 64 << 10, 16, HUGE),
        ("6.3", True, "thp", 64 << 10, 1, HUGE),
        ("6.3", True, "thp", 16 * MIB, P, 16 * MIB),
        ("6.12", True, "thp", 16 * MIB, 8, 16 * MIB),
        ("6.12", True, "thp", 64 << 10, 1, HUGE),
        ("6.12", False, "hugetlb-2m", 3 * MIB, 2, 2 * HUGE),
        ("6.18", True, "anon", 16 * MIB, P, 16 * MIB),
        ("6.18", True, "memfd", 16 * MIB, P, 16 * MIB),
        ("7.0", True, "anon", 16 * MIB, P, 16 * MIB),
        ("7.2", True, "anon", 16 * MIB, P, 0),
        ("7.2", True, "hugetlb-2m", 16 * MIB, 8, 0),
        ("7.2", False, "anon", 16 * MIB, P, 16 * MIB),
        ("7.2", False, "thp", 64 << 10, 1, HUGE),
        ("7.2", True, "ext4-private", 16 * MIB, P, 0),
    ],
)
def test_io_uring_register(
    kernel: str, cap: bool, memory: str, size_bytes: int, held: int, vmpin: int
) -> None:
    of = expected(kernel, "io-uring-register", memory, size_bytes, cap_ipc_lock=cap)
    assert of.outcomes == ("ok",)
    assert figures(of) == (size_bytes // 4096, held, vmpin)


@pytest.mark.parametrize(
    ("kernel", "memory", "outcome", "acquired"),
    [
        ("6.1", "ext4-shared", "EOPNOTSUPP", P),
        ("6.1", "ext4-private", "EOPNOTSUPP", P),
        ("6.3", "ext4-private", "EOPNOTSUPP", P),
        ("6.5", "ext4-shared", "EFAULT", [0, P]),
        ("7.2", "ext4-shared", "EFAULT", [0, P]),
        ("6.1", "dax-shared", "EOPNOTSUPP", 0),
        ("7.2", "dax-shared", "EOPNOTSUPP", 0),
        ("6.1", "movable-held", "ENOMEM", [1, None]),
        ("7.2", "movable-held", "ENOMEM", [1, None]),
    ],
)
def test_io_uring_refusals(kernel: str, memory: str, outcome: str, acquired: object) -> None:
    of = expected(kernel, "io-uring-register", memory)
    assert of.outcomes == (outcome,)
    assert figures(of) == (acquired, 0, 0)


def test_io_uring_movable_is_accounted_like_the_rest() -> None:
    assert figures(expected("6.12", "io-uring-register", "movable"))[1:] == (P, 16 * MIB)
    assert figures(expected("7.2", "io-uring-register", "movable"))[1:] == (P, 0)


@pytest.mark.parametrize("workload", ["dio-read", "dio-write"])
@pytest.mark.parametrize("memory", [spec.name for spec in MEMORY])
@pytest.mark.parametrize("kernel", KERNELS)
def test_direct_io(kernel: str, workload: str, memory: str) -> None:
    of = expected(kernel, workload, memory)
    old = kernel in ("6.1", "6.3")
    zero_page = workload == "dio-write" and memory == "anon-untouched"
    assert of.outcomes == ("ok",)
    assert figures(of) == (0 if old or zero_page else P, 0, 0)
    assert of.pin_class == ("get" if old else "pin")


@pytest.mark.parametrize(
    ("size_bytes", "outcomes"), [(4097, ("EINVAL",)), (512, ("ok", "EINVAL")), (8192, ("ok",))]
)
def test_direct_io_must_be_aligned(size_bytes: int, outcomes: tuple[str, ...]) -> None:
    assert expected("7.2", "dio-read", "anon", size_bytes).outcomes == outcomes


def test_direct_io_elsewhere_may_copy() -> None:
    case = Case("dio-write", "anon", {"size_bytes": 16 * MIB})
    for fs, release, acquired in (
        ("btrfs", "6.18.44", [0, P]),
        ("xfs", "6.18.44", P),
        ("xfs", "7.0.1", [0, P]),
    ):
        assert expectation(case, release, Machine(target_fs=fs)).to_json()["acquired"] == acquired


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("memory", [spec.name for spec in MEMORY])
def test_process_vm_pins_every_page_and_vmsplice_none(kernel: str, memory: str) -> None:
    assert figures(expected(kernel, "process-vm-write", memory)) == (P, 0, 0)
    assert figures(expected(kernel, "vmsplice", memory)) == (0, 0, 0)


def test_limits() -> None:
    short = Machine(cap_ipc_lock=False, memlock_bytes=8 * MIB)
    none = Machine(cap_ipc_lock=False, memlock_bytes=0)
    for workload, memory, machine, outcome, acquired in (
        ("rdma-register", "anon", short, "ENOMEM", 0),
        ("rdma-register", "dax-shared", short, "ENOMEM", 0),
        ("rdma-register", "anon", none, "EPERM", 0),
        ("io-uring-register", "anon", short, "ENOMEM", [1, None]),
        ("io-uring-register", "anon", none, "ENOMEM", [1, None]),
        ("io-uring-register", "dax-shared", short, "EOPNOTSUPP", 0),
        ("process-vm-write", "anon", none, "ok", P),
    ):
        case = Case(workload, memory, {"size_bytes": 16 * MIB})
        of = expectation(case, KERNELS["7.2"], machine)
        assert of.outcomes == (outcome,), (workload, memory)
        assert of.to_json()["acquired"] == acquired
