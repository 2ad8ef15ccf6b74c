"""The rules themselves: every cell has exactly one, each says where it is written, and the cells
that the project promises come out as the kernel's source says."""

import itertools
import re
from collections.abc import Iterator

import pytest

from pinstorm import oracle, suite
from pinstorm.oracle import Machine, expectation
from pinstorm.rules import RULES
from pinstorm.rules.rule import Check, Rule
from workloads import MEMORY, WORKLOADS, go_together
from workloads.spec import MIB, THROUGH, Case, Need, WorkloadSpec

KERNELS = {
    "6.1": "6.1.0-50-amd64",
    "6.3": "6.3.13",
    "6.5": "6.5.13",
    "6.12": "6.12.107+deb13-amd64",
    "6.18": "6.18.44",
    "7.0": "7.0.9",
    "7.2": "7.2.11+deb13-amd64",
}
LATE_6_1 = "6.1.192"
VENDOR = ("5.14.0-503.el9_5.x86_64", "6.4.0-150600.23.53-default")
SIZES = (512, 4097, 64 << 10, 3 * MIB)
LIMITS = (None, 0, 8 << 10, -1)
FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
# Values of each parameter that a rule may tell apart.
PARAMS: dict[str, tuple[object, ...]] = {
    "access": ("rw", "ro"),
    "touch": (True, False),
    "registered": (False, True),
    "offset_bytes": (0, 1, 512),
    "mode": ("GUP_FAST", "GUP_BASIC", "PIN_FAST", "PIN_BASIC", "PIN_LONGTERM"),
    "through": tuple(THROUGH),
}

# A kernel document or man page, a commit with subject and release, or a function in a source file.
SOURCE = re.compile(
    r"Documentation/\S+\.rst, \S"
    r'|Linux commit [0-9a-f]{12} \(".+?"\), v\d+\.\d+'
    r"|[\w/-]+\.[ch](?: of v\d+\.\d+)?, \w+\(\)"
    r"|\w+\(\d\), O_DIRECT: \S"
)


def cells() -> Iterator[tuple[Case, Machine]]:
    """Every workload on every memory, with what changes its outcome, on the machines that do."""
    for workload, memory in itertools.product(WORKLOADS, MEMORY):
        if not go_together(workload.name, memory.name):
            continue
        names = [name for name in PARAMS if name in workload.params]
        for values in itertools.product(*(PARAMS[name] for name in names)):
            given = dict(zip(names, values, strict=True))
            for size_bytes in sizes(workload, given):
                case = Case(workload.name, memory.name, {"size_bytes": size_bytes, **given})
                for machine in machines(workload):
                    yield case, machine


def sizes(workload: WorkloadSpec, given: dict[str, object]) -> tuple[int, ...]:
    """Direct IO minds the length and the address, and how many bios it takes."""
    if Need.TARGET_DIO in workload.needs and given["offset_bytes"] != 512:
        return SIZES if given["offset_bytes"] else (*SIZES, SIZES[3] + 512)
    return SIZES if not given.get("offset_bytes") else SIZES[2:3]


def crowds() -> Iterator[tuple[Case, Machine]]:
    """Processes of one user that each have room under its limit, and not all of them together."""
    for workload in WORKLOADS:
        if {"processes", "memlock_bytes"} <= set(workload.params):
            for memory in MEMORY:
                if not go_together(workload.name, memory.name):
                    continue
                params = {"size_bytes": SIZES[2], "processes": 3, "uid": 65534, "access": "rw"}
                limit = 2 * memory.mapped_bytes(SIZES[2])
                yield Case(workload.name, memory.name, params | {"memlock_bytes": limit}), Machine()


def machines(workload: WorkloadSpec) -> Iterator[Machine]:
    for fs in FILE_SYSTEMS if Need.TARGET_DIO in workload.needs else FILE_SYSTEMS[:1]:
        yield Machine(cap_ipc_lock=True, target_fs=fs)
        if workload.charged is not None:
            for limit in LIMITS:
                yield Machine(cap_ipc_lock=False, memlock_bytes=limit, target_fs=fs)


def failures() -> Iterator[tuple[Case, Machine]]:
    """What is wrong around the pages (``under``), with the cases that do without."""
    for name in ("failures", "max-mr"):
        for case in suite.expand(suite.load(name)).cases:
            yield case, Machine()


CELLS = (*cells(), *crowds(), *failures())
ON_EVERYTHING = [spec.name for spec in MEMORY if go_together("rdma-register-odp", spec.name)]


def expected(
    kernel: str, workload: str, memory: str, size_bytes: int = 16 * MIB, **params: object
) -> oracle.Expectation:
    machine = Machine(cap_ipc_lock=params.pop("cap_ipc_lock", True) is True)
    if not machine.cap_ipc_lock:
        machine = Machine(cap_ipc_lock=False, memlock_bytes=-1)
    case = Case(workload, memory, {"size_bytes": size_bytes, **params})
    return expectation(case, KERNELS[kernel], machine)


@pytest.mark.parametrize("release", [*KERNELS.values(), LATE_6_1, *VENDOR])
def test_every_cell_has_exactly_one_rule(release: str) -> None:
    for case, machine in CELLS:
        expectation(case, release, machine)  # NoRule, AmbiguousRules


def test_every_rule_is_used() -> None:
    used = set()
    for release in (*KERNELS.values(), LATE_6_1):
        number = oracle.parse_kernel(release).release
        for case, machine in CELLS:
            known = oracle.facts(case, machine)
            if known["memlock"] != "unknown":
                used.add(oracle.find_rule(known, number).name)
    assert used == {rule.name for rule in RULES}


def test_names_are_unique() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_rules_speak_of_known_properties_and_values() -> None:
    seen: dict[str, set[bool | str]] = {}
    for case, machine in CELLS:
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
        # a pin taken and given back by each call of GUP-fast, of 512 pages
        ("7.2", "rw", "ext4-shared", "EFAULT", [0, 8]),
        ("6.5", "rw", "ext4-shared", "EFAULT", [0, 8]),
        ("6.3", "rw", "ext4-shared", "ok", P),
        ("6.1", "rw", "ext4-shared", "ok", P),
        ("7.2", "ro", "ext4-shared", "ok", [P, P + 8]),
        ("6.1", "ro", "ext4-shared", "ok", P),
        ("7.2", "rw", "ext4-private", "ok", P),
        ("7.2", "ro", "ext4-private", "ok", [P, P + 8]),
        ("7.2", "ro", "forked", "ok", P + 8),
        ("7.2", "rw", "forked", "ok", P),
        ("7.2", "ro", "zero-page", "ok", P),
        ("7.2", "rw", "prot-read", "EFAULT", 0),
        ("7.2", "ro", "prot-read", "ok", P),
        ("6.1", "ro", "prot-none", "ok", P),
        ("7.2", "ro", "prot-none", "EFAULT", 0),
        ("7.2", "rw", "hole", "EFAULT", P // 2),
        ("6.1", "rw", "past-eof", "EFAULT", P // 2),
        ("6.1", "rw", "unmapped", "EFAULT", 0),
        ("7.2", "rw", "secretmem", "EFAULT", [0, 8]),
        ("6.1", "ro", "ext4-private", "ok", P),
        ("7.2", "rw", "dax-shared", "EOPNOTSUPP", 0),
        ("7.2", "ro", "dax-shared", "EOPNOTSUPP", 0),
        ("6.1", "ro", "dax-shared", "EOPNOTSUPP", 0),
        ("7.2", "rw", "movable", "ok", [2 * P, 4 * P]),
        ("6.1", "ro", "movable", "ok", [2 * P, 4 * P]),
        ("7.2", "rw", "movable-held", "ENOMEM", [1, 4 * P]),
        ("6.1", "rw", "movable-held", "ENOMEM", [1, 4 * P]),
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
    assert moved["migrate_success"] == [P, 2 * P]
    assert held["migrate_fail"] == [1, 2 * P]
    assert plain["migrate_success"] == 0


@pytest.mark.parametrize("workload", ["dio-read", "process-vm-write", "vmsplice"])
@pytest.mark.parametrize("memory", ["movable", "movable-held"])
def test_short_pins_leave_movable_pages_where_they_are(workload: str, memory: str) -> None:
    of = expected("7.2", workload, memory)
    assert of.outcomes == ("ok",)
    assert of.to_json()["migrate_success"] == 0


@pytest.mark.parametrize("memory", ON_EVERYTHING)
@pytest.mark.parametrize("access", ["rw", "ro"])
def test_on_demand_paging_pins_nothing_on_any_memory(memory: str, access: str) -> None:
    of = expected("7.2", "rdma-register-odp", memory, access=access)
    bad = {
        "hole",
        "unmapped",
        "beyond",
        "past-eof",
        "prot-none",
        *(("prot-read",) if access == "rw" else ()),
    }
    assert of.outcomes == ("EFAULT" if memory in bad else "ok",)
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
        ("6.5", "ext4-shared", "EFAULT", [0, 8]),
        ("7.2", "ext4-shared", "EFAULT", [0, 1]),
        ("6.1", "devdax", "EOPNOTSUPP", P),
        ("6.1", "secretmem", "EFAULT", 0),
        ("7.2", "secretmem", "EFAULT", 1),
        ("6.1", "hole", "EFAULT", P // 2),
        ("7.2", "hole", "EFAULT", P // 2),
        ("6.1", "dax-shared", "EOPNOTSUPP", 0),
        ("7.2", "dax-shared", "EOPNOTSUPP", 0),
        ("6.1", "movable-held", "ENOMEM", [1, 4 * P]),
        ("7.2", "movable-held", "ENOMEM", [1, 4 * P]),
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
@pytest.mark.parametrize("memory", ON_EVERYTHING)
@pytest.mark.parametrize("kernel", KERNELS)
def test_direct_io(kernel: str, workload: str, memory: str) -> None:
    of = expected(kernel, workload, memory, 64 << 10)
    refused = {"prot-none": 0, "unmapped": 0, "beyond": 0, "secretmem": 1, "hole": 8, "past-eof": 8}
    if workload == "dio-read":
        refused["prot-read"] = 0
        pinned = {}
    else:
        # The zero page is not counted; what is shared copy-on-write is tried once in vain.
        pinned = {"anon-untouched": 0, "zero-page": 0, "forked": 17, "ksm": 17}
    old = kernel in ("6.1", "6.3")
    acquired = (pinned | refused).get(memory, 16)
    assert of.outcomes == (("EFAULT",) if memory in refused else ("ok",))
    assert figures(of) == (0 if old else acquired, 0, 0)
    assert of.pin_class == ("get" if old else "pin")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("memory", ON_EVERYTHING)
def test_registered_direct_io_pins_nothing(kernel: str, memory: str) -> None:
    of = expected(kernel, "dio-write-uring", memory, registered=True)
    registering = expected(kernel, "io-uring-register", memory)
    assert figures(of) == (0, 0, 0)
    assert of.outcomes == registering.outcomes
    assert bool(of.prepare_calls) == (registering.outcomes != ("ok",))


@pytest.mark.parametrize(
    ("kernel", "outcomes", "acquired"),
    [
        ("6.1", ("EINVAL",), 0),
        ("6.12", ("EINVAL",), 0),
        ("6.18", ("ok", "EINVAL"), 17),  # and up to that when it is EINVAL: see the verdict
        ("7.0", ("ok", "EINVAL"), 17),
        ("7.2", ("EINVAL",), 0),
    ],
)
def test_direct_io_at_an_odd_address(
    kernel: str, outcomes: tuple[str, ...], acquired: object
) -> None:
    of = expected(kernel, "dio-read", "anon", 64 << 10, offset_bytes=1)
    assert (of.outcomes, of.to_json()["acquired"]) == (outcomes, acquired)
    if kernel not in ("6.1", "6.3"):
        sector = expected(kernel, "dio-read", "anon", 64 << 10, offset_bytes=512)
        assert (sector.outcomes, sector.to_json()["acquired"]) == (("ok",), 17)


@pytest.mark.parametrize(
    ("size_bytes", "outcomes"), [(4097, ("EINVAL",)), (512, ("ok", "EINVAL")), (8192, ("ok",))]
)
def test_direct_io_must_be_aligned(size_bytes: int, outcomes: tuple[str, ...]) -> None:
    assert expected("7.2", "dio-read", "anon", size_bytes).outcomes == outcomes


SECTORS = (64 << 10) + 512


@pytest.mark.parametrize("kernel", ["6.1", "6.3", "6.5"])
@pytest.mark.parametrize("workload", ["dio-read", "dio-write-uring"])
@pytest.mark.parametrize("fs", FILE_SYSTEMS)
def test_the_class_of_misaligned_direct_io_is_that_of_the_release(
    kernel: str, workload: str, fs: str
) -> None:
    old = kernel in ("6.1", "6.3")
    for size_bytes, offset_bytes in ((SECTORS, 0), (SECTORS, 1), (4097, 0), (4097, 1), (65536, 1)):
        for memory in (spec.name for spec in MEMORY):
            params = {"size_bytes": size_bytes, "offset_bytes": offset_bytes}
            case = Case(workload, memory, params)
            of = expectation(case, KERNELS[kernel], Machine(target_fs=fs))
            assert of.pin_class == ("get" if old else "pin")
            assert "EINVAL" in of.outcomes
            if old:
                assert of.to_json()["acquired"] == 0


@pytest.mark.parametrize(
    ("workload", "memory", "outcomes", "acquired"),
    [
        ("dio-read", "anon", ("ok", "EINVAL"), 17),
        ("dio-write", "forked", ("ok", "EINVAL"), 18),
        ("dio-write", "zero-page", ("ok", "EINVAL"), 0),
        ("dio-read", "prot-none", ("EFAULT", "EINVAL"), 0),
        ("dio-read", "prot-read", ("EFAULT", "EINVAL"), 0),
        ("dio-write", "prot-read", ("ok", "EINVAL"), 17),
        ("dio-read", "unmapped", ("EFAULT", "EINVAL"), 0),
        ("dio-read", "hole", ("EFAULT", "EINVAL"), [0, 8]),
        ("dio-write", "past-eof", ("EFAULT", "EINVAL"), [0, 8]),
        ("dio-write", "secretmem", ("EFAULT", "EINVAL"), [0, 1]),
    ],
)
@pytest.mark.parametrize("kernel", ["6.18", "7.0"])
@pytest.mark.parametrize(("size_bytes", "offset_bytes"), [(SECTORS, 0), (SECTORS, 1), (65536, 1)])
def test_direct_io_that_the_device_may_refuse_never_takes_bad_memory(
    kernel: str,
    workload: str,
    memory: str,
    outcomes: tuple[str, ...],
    acquired: object,
    size_bytes: int,
    offset_bytes: int,
) -> None:
    of = expected(kernel, workload, memory, size_bytes, offset_bytes=offset_bytes)
    assert (of.outcomes, of.to_json()["acquired"]) == (outcomes, acquired)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("size_bytes", "offset_bytes"), [(SECTORS, 0), (4097, 0), (65536, 1)])
def test_misaligned_registered_direct_io_is_no_pin(
    kernel: str, size_bytes: int, offset_bytes: int
) -> None:
    params = {"registered": True, "offset_bytes": offset_bytes}
    of = expected(kernel, "dio-read-uring", "anon", size_bytes, **params)
    assert (of.pin_class, figures(of)) == ("none", (0, 0, 0))
    late = offset_bytes == 1 and kernel in ("6.18", "7.0")
    assert of.outcomes == (("ok", "EINVAL") if size_bytes == SECTORS or late else ("EINVAL",))
    refused = expected(kernel, "dio-read-uring", "unmapped", size_bytes, **params)
    assert (refused.outcomes, refused.prepare_calls) == (("EFAULT",), ("io_uring_register",))


@pytest.mark.parametrize(
    ("limit_bytes", "processes", "outcomes"),
    [
        # of 6.12, 6.18 and 7.2; the ring of 6.18 takes two pages, "setup" is where it is refused
        (1, 1, ("ENOMEM", "setup", "ENOMEM")),
        (8191, 1, ("ENOMEM", "setup", "ENOMEM")),
        (8192, 1, ("ENOMEM", "ENOMEM", "ENOMEM")),
        (64 << 10, 1, ("ok", "ENOMEM", "ok")),
        ((72 << 10) - 1, 1, ("ok", "ENOMEM", "ok")),
        (72 << 10, 1, ("ok", "ok", "ok")),
        (8192, 2, ("ENOMEM", "setup", "ENOMEM")),
        (128 << 10, 2, ("ok", "ENOMEM", "ok")),
        (144 << 10, 2, ("ok", "ok", "ok")),
    ],
)
def test_a_ring_is_charged_from_6_14_up_to_7_2(
    limit_bytes: int, processes: int, outcomes: tuple[str, ...]
) -> None:
    params = {"size_bytes": 64 << 10, "uid": 65534, "memlock_bytes": limit_bytes}
    case = Case("io-uring-register", "anon", params | {"processes": processes})
    for kernel, outcome in zip(("6.12", "6.18", "7.2"), outcomes, strict=True):
        of = expectation(case, KERNELS[kernel])
        assert bool(of.prepare_calls) == (outcome == "setup")
        assert of.outcomes == ("ENOMEM" if outcome == "setup" else outcome,)


def test_direct_io_elsewhere_may_copy() -> None:
    case = Case("dio-write", "anon", {"size_bytes": 16 * MIB})
    for fs, release, acquired in (
        ("btrfs", "6.18.44", [0, 2 * P]),
        ("xfs", "6.18.44", [P, 2 * P]),
        ("xfs", "7.0.1", [0, 2 * P]),
    ):
        assert expectation(case, release, Machine(target_fs=fs)).to_json()["acquired"] == acquired


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("memory", ON_EVERYTHING)
def test_process_vm_pins_what_is_there_and_references_are_no_pins(kernel: str, memory: str) -> None:
    there = {"hole": P // 2, "past-eof": P // 2}
    there |= dict.fromkeys(("unmapped", "beyond", "secretmem", "prot-none"), 0)
    written = there | {"prot-read": 0}
    assert figures(expected(kernel, "process-vm-write", memory)) == (written.get(memory, P), 0, 0)
    empty = memory in ("anon-untouched", "zero-page") and kernel not in ("6.1", "6.3")
    read = 0 if empty else there.get(memory, P)
    assert figures(expected(kernel, "process-vm-read", memory)) == (read, 0, 0)
    assert figures(expected(kernel, "vmsplice", memory)) == (0, 0, 0)
    assert figures(expected(kernel, "msg-zerocopy", memory)) == (0, 0, 0)


def test_the_zero_page_of_a_late_6_1() -> None:
    case = Case("process-vm-read", "zero-page", {"size_bytes": 16 * MIB})
    for version, acquired in (("Debian 6.1.129-1", P), ("Debian 6.1.192-1", 0)):
        of = expectation(case, KERNELS["6.1"], kernel_version=version)
        assert of.to_json()["acquired"] == acquired


@pytest.mark.parametrize("workload", ["process-vm-read", "process-vm-write", "vmsplice"])
def test_a_bad_first_page_is_a_refusal_and_a_later_one_a_short_copy(workload: str) -> None:
    for size_bytes, outcome in ((4 << 10, "EFAULT"), (8 << 10, "short")):
        case = Case(workload, "hole", {"size_bytes": size_bytes})
        assert expectation(case, KERNELS["7.2"]).outcomes == (outcome,)


def test_umem_is_charged_to_the_user_and_never_to_the_process() -> None:
    for memory, params, outcome, acquired, held in (
        ("anon", {}, "ok", 16, 16),
        ("hole", {}, "ENOMEM", 8, 0),
        ("hole", {"offset_bytes": 512}, "EINVAL", 0, 0),
        ("hole", {"size_bytes": 512}, "EINVAL", 0, 0),
        ("unmapped", {}, "EFAULT", 0, 0),
        ("secretmem", {}, "EFAULT", 0, 0),
        ("ext4-shared", {}, "EFAULT", 0, 0),
        ("dax-shared", {}, "EOPNOTSUPP", 0, 0),
        ("dax-shared", {"uid": 65534, "memlock_bytes": 0}, "ENOBUFS", 0, 0),
        ("anon", {"uid": 65534, "memlock_bytes": 64 << 10}, "ok", 16, 16),
        ("anon", {"uid": 65534, "memlock_bytes": 60 << 10}, "ENOBUFS", 0, 0),
        ("movable-held", {}, "ENOMEM", 16, 0),
    ):
        case = Case("af-xdp-umem", memory, {"size_bytes": 64 << 10, **params})
        of = expectation(case, KERNELS["7.2"])
        assert of.outcomes == (outcome,), (memory, params)
        assert figures(of) == (acquired, held, 0), (memory, params)


def test_zerocopy_is_charged_two_pages_more_for_each_send() -> None:
    for size_bytes, limit_bytes, outcome in (
        (64 << 10, 72 << 10, "ok"),
        (64 << 10, 68 << 10, "ENOBUFS"),
        (2 * MIB, 2 * MIB + (16 << 10), "ok"),
        (2 * MIB, 2 * MIB + (12 << 10), "ENOBUFS"),
    ):
        params = {"size_bytes": size_bytes, "uid": 65534, "memlock_bytes": limit_bytes}
        of = expectation(Case("msg-zerocopy", "anon", params), KERNELS["7.2"])
        assert of.outcomes == (outcome,), (size_bytes, limit_bytes)


def test_limits() -> None:
    short = Machine(cap_ipc_lock=False, memlock_bytes=8 * MIB)
    none = Machine(cap_ipc_lock=False, memlock_bytes=0)
    for workload, memory, machine, outcome, acquired in (
        ("rdma-register", "anon", short, "ENOMEM", 0),
        ("rdma-register", "dax-shared", short, "ENOMEM", 0),
        ("rdma-register", "anon", none, "EPERM", 0),
        ("io-uring-register", "anon", short, "ENOMEM", P),
        ("io-uring-register", "anon", none, "ENOMEM", P),
        ("io-uring-register", "dax-shared", short, "EOPNOTSUPP", 0),
        ("process-vm-write", "anon", none, "ok", P),
    ):
        case = Case(workload, memory, {"size_bytes": 16 * MIB})
        of = expectation(case, KERNELS["7.2"], machine)
        assert of.outcomes == (outcome,), (workload, memory)
        assert of.to_json()["acquired"] == acquired
