"""How a rule is chosen and evaluated: the kernel's release, the properties, precedence, bounds."""

import pytest

from pinstorm import oracle
from pinstorm.oracle import AmbiguousRules, Machine, NoRule, Range, expectation, parse_kernel
from pinstorm.rules.rule import ANY, ZERO, Bound, Check, Rule
from workloads.spec import MIB, Case

BACKPORTS = "7.2.11+deb13-amd64"
OLDSTABLE = "6.1.0-50-amd64"


def case(workload: str, memory: str, size_bytes: int = 16 * MIB, **params: object) -> Case:
    return Case(workload, memory, {"size_bytes": size_bytes, **params})


def rule(name: str, **fields: object) -> Rule:
    defaults: dict[str, object] = {
        "when": {},
        "outcomes": ("ok",),
        "pin_class": "pin",
        "acquired": ANY,
        "source": "nobody",
    }
    return Rule(name=name, **{**defaults, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("release", "version", "number", "vendor"),
    [
        (OLDSTABLE, "", (6, 1), False),
        (OLDSTABLE, "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-01)", (6, 1, 176), False),
        ("6.12.107+deb13-amd64", "", (6, 12, 107), False),
        (BACKPORTS, "", (7, 2, 11), False),
        ("6.18.44", "", (6, 18, 44), False),
        ("6.8.0-45-generic", "", (6, 8), False),
        ("7.3.0-rc1", "", (7, 3), False),
        ("7.2", "", (7, 2), False),
        ("5.14.0-503.11.1.el9_5.x86_64", "", (5, 14), True),
        ("4.18.0-553.el8_10.x86_64", "", (4, 18), True),
        ("5.15.0-209.161.7.2.el8uek.x86_64", "", (5, 15), True),
        ("6.4.0-150600.23.53-default", "", (6, 4), True),
    ],
)
def test_kernel_releases_parse(
    release: str, version: str, number: tuple[int, ...], vendor: bool
) -> None:
    kernel = parse_kernel(release, version)
    assert kernel.release == number
    assert kernel.vendor is vendor


def test_what_is_no_release_is_refused() -> None:
    with pytest.raises(ValueError, match="two numbers"):
        parse_kernel("linux")


@pytest.mark.parametrize(
    ("access", "writes"),
    [
        ("rw", True),
        ("ro", False),
        ("LOCAL_WRITE", True),
        ("REMOTE_READ", False),
        ("LOCAL_WRITE|REMOTE_READ", True),
        ("REMOTE_READ,REMOTE_ATOMIC", True),
        ("IBV_ACCESS_REMOTE_WRITE", True),
        (["REMOTE_READ", "RELAXED_ORDERING"], False),
    ],
)
def test_access_flags_say_whether_the_kernel_asks_for_write_access(
    access: object, writes: bool
) -> None:
    assert oracle.facts(case("rdma-register", "anon", access=access))["writes"] is writes


def test_access_defaults_to_the_workloads_own() -> None:
    assert oracle.facts(case("rdma-register", "anon"))["writes"] is True


@pytest.mark.parametrize(
    ("machine", "workload", "memory", "expected"),
    [
        (Machine(cap_ipc_lock=True, memlock_bytes=0), "rdma-register", "anon", "exempt"),
        (Machine(cap_ipc_lock=False, memlock_bytes=-1), "rdma-register", "anon", "enough"),
        (Machine(cap_ipc_lock=False, memlock_bytes=64 << 10), "rdma-register", "thp", "enough"),
        (Machine(cap_ipc_lock=False, memlock_bytes=64 << 10), "io-uring-register", "thp", "short"),
        (Machine(cap_ipc_lock=False, memlock_bytes=4096), "rdma-register", "anon", "short"),
        (Machine(cap_ipc_lock=False, memlock_bytes=0), "rdma-register", "anon", "zero"),
        (Machine(cap_ipc_lock=False), "io-uring-register", "anon", "unknown"),
        (Machine(cap_ipc_lock=False, memlock_bytes=0), "dio-read", "anon", "exempt"),
    ],
)
def test_memlock_counts_whole_folios_only_for_io_uring(
    machine: Machine, workload: str, memory: str, expected: str
) -> None:
    assert oracle.facts(case(workload, memory, 64 << 10), machine)["memlock"] == expected


def test_the_earliest_check_wins_over_the_most_specific_rule() -> None:
    known = oracle.facts(case("dio-read", "anon"))
    late = rule("late", when={"workload": "dio-read", "memory": "anon", "shared": False})
    early = rule("early", when={"scope": "call"}, check=Check.ARGUMENTS)
    assert oracle.find_rule(known, (7, 2), (late, early)) is early


def test_release_bounds_count_as_conditions() -> None:
    known = oracle.facts(case("dio-read", "anon"))
    general = rule("general", when={"scope": "call"})
    bounded = rule("bounded", when={"scope": "call"}, since=(6, 5))
    assert oracle.find_rule(known, (7, 2), (general, bounded)) is bounded
    assert oracle.find_rule(known, (6, 1), (general, bounded)) is general


def test_since_is_included_and_until_is_not() -> None:
    known = oracle.facts(case("dio-read", "anon"))
    old, new = rule("old", until=(6, 5)), rule("new", since=(6, 5))
    assert oracle.find_rule(known, (6, 4, 16), (old, new)) is old
    assert oracle.find_rule(known, (6, 5), (old, new)) is new
    assert oracle.find_rule(known, (6, 5, 1), (old, new)) is new


def test_a_tie_is_an_error() -> None:
    known = oracle.facts(case("dio-read", "anon"))
    rules = rule("one", when={"scope": "call"}), rule("other", when={"pin_class": "pin"})
    with pytest.raises(AmbiguousRules, match="one and other"):
        oracle.find_rule(known, (7, 2), rules)


def test_no_rule_is_an_error() -> None:
    with pytest.raises(NoRule, match="dio-read on anon"):
        expectation(case("dio-read", "anon"), BACKPORTS, rules=())


def test_a_set_of_values_matches_each_of_them() -> None:
    known = oracle.facts(case("dio-read", "memfd"))
    either = rule("either", when={"backing": frozenset({"shmem", "hugetlb"})})
    assert oracle.find_rule(known, (7, 2), (either,)) is either
    with pytest.raises(NoRule):
        oracle.find_rule(oracle.facts(case("dio-read", "anon")), (7, 2), (either,))


@pytest.mark.parametrize(
    ("memory", "size_bytes", "amounts"),
    [
        ("anon", 16 * MIB, (4096, 8192, 4096, 16 * MIB, 16 * MIB)),
        ("anon", 4097, (2, 4, 2, 8192, 8192)),
        ("thp", 64 << 10, (16, 32, 1, 64 << 10, 2 * MIB)),
        ("hugetlb-2m", 16 * MIB, (4096, 8192, 8, 16 * MIB, 16 * MIB)),
        ("thp", 2 * MIB + 1, (513, 1026, 2, 513 * 4096, 4 * MIB)),
    ],
)
def test_symbols_of_bounds(memory: str, size_bytes: int, amounts: tuple[int, ...]) -> None:
    only = rule(
        "only",
        acquired=Bound("pages", "twice-pages"),
        held=Bound("folios", "folios"),
        vmpin_bytes=Bound("bytes", "folio-bytes"),
    )
    bounds = expectation(case("rdma-register", memory, size_bytes), BACKPORTS, rules=(only,)).bounds
    assert (
        bounds["acquired"].low,
        bounds["acquired"].high,
        bounds["held"].low,
        bounds["vmpin_bytes"].low,
        bounds["vmpin_bytes"].high,
    ) == amounts


def test_a_vendor_kernel_may_have_what_came_later() -> None:
    shared = case("rdma-register", "ext4-shared", access="rw")
    expected = expectation(shared, "5.14.0-503.11.1.el9_5.x86_64")
    assert set(expected.outcomes) == {"ok", "EFAULT"}
    assert expected.undecided == "undecided: vendor-kernel"
    assert expected.bounds["held"] == Range(0, 4096)


def test_a_vendor_kernel_is_decided_where_nothing_changed_since() -> None:
    dax = case("rdma-register", "dax-shared", access="rw")
    expected = expectation(dax, "6.4.0-150600.23.53-default")
    assert expected.outcomes == ("EOPNOTSUPP",)
    assert expected.undecided is None


def test_an_unknown_limit_leaves_both_outcomes() -> None:
    machine = Machine(cap_ipc_lock=False)
    expected = expectation(case("rdma-register", "anon"), BACKPORTS, machine)
    assert expected.outcomes == ("ok", "ENOMEM", "EPERM")
    assert expected.undecided == "undecided: memlock-unknown"


def test_a_kernel_older_than_the_rules_is_undecided() -> None:
    assert expectation(case("vmsplice", "anon"), "5.15.0").undecided == "undecided: old-kernel"


@pytest.mark.parametrize(
    ("bound", "message", "words"),
    [
        (Range(3, 3), 3, "3"),
        (Range(1, None), [1, None], "at least 1"),
        (Range(None, 5), [None, 5], "at most 5"),
        (Range(0, 5), [0, 5], "0 to 5"),
        (Range(None, None), None, "any number"),
    ],
)
def test_ranges_are_told_to_machines_and_people(bound: Range, message: object, words: str) -> None:
    assert bound.to_json() == message
    assert str(bound) == words


def test_the_expectation_of_a_record() -> None:
    message = expectation(case("rdma-register", "anon", access="rw"), BACKPORTS).to_json()
    assert message["rule"] == "longterm"
    assert message["outcomes"] == ["ok"]
    assert (message["acquired"], message["held"], message["leaked"]) == (4096, 4096, 0)
    assert message["vmpin_bytes"] == 16 * MIB
    assert message["migrate_success"] == 0
    assert message["migrate_fail"] is None
    assert "undecided" not in message


def test_zero_is_a_number_not_a_missing_one() -> None:
    only = rule("only", acquired=ZERO)
    expected = expectation(case("vmsplice", "anon"), BACKPORTS, rules=(only,))
    assert expected.to_json()["acquired"] == 0
