from pathlib import Path

import pytest

from pinstorm import suite
from pinstorm.errors import UsageError

ENTRY = '[[matrix]]\nworkload = "dio-read"\nmemory = "anon"\nsize = "64KiB"\n'
RDMA = ENTRY.replace("dio-read", "rdma-register")


def ids(text: str) -> list[str]:
    return [case.id for case in suite.expand(suite.parse(text, "x.toml")).cases]


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        suite.expand(suite.parse(text, "x.toml"))
    message = str(caught.value)
    assert message.startswith("suite x.toml")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("file", suite.shipped(), ids=lambda file: file.stem)
def test_every_shipped_suite_loads_and_expands(file: Path) -> None:
    loaded = suite.load(file)
    expansion = suite.expand(loaded)
    assert loaded.name == file.stem
    assert len({case.id for case in expansion.cases}) == len(expansion.cases) > 0
    assert suite.load(file.stem).sha256 == loaded.sha256


def test_quick_has_what_the_quickstart_shows() -> None:
    expansion = suite.expand(suite.load("quick"))
    assert 75 <= len(expansion.cases) <= 105
    assert expansion.notes == []
    assert {
        "rdma-register/anon/rw/16MiB",
        "rdma-register-odp/anon/rw/16MiB",
        "rdma-register/dax-shared/rw/16MiB",
        "rdma-register/ext4-shared/rw/16MiB",
        "rdma-register/movable/rw/16MiB",
        "rdma-register/movable-held/rw/16MiB",
        "dio-read/anon/16MiB",
        "vmsplice/anon/16MiB",
    } <= {case.id for case in expansion.cases}


def test_run_table_and_overrides_reach_the_cases() -> None:
    run = '[run]\nname = "n"\nseed = 7\nrepeat = 3\ndeadline_s = 5\nhold = "2m"\nwarmup = 0\n'
    case = suite.expand(suite.parse(run + ENTRY, "x.toml")).cases[0]
    assert (case.repeat, case.warmup, case.deadline_s, case.hold_s) == (3, 0, 5.0, 120.0)
    case = suite.expand(suite.parse(run + ENTRY + "repeat = 9\ndeadline_s = 1.5\n", "x")).cases[0]
    assert (case.repeat, case.warmup, case.deadline_s) == (9, 0, 1.5)


def test_defaults_come_from_the_spec() -> None:
    assert ids(RDMA) == ["rdma-register/anon/rw/64KiB"]


def test_parameters_a_workload_lacks_are_dropped_and_equal_cases_merged() -> None:
    text = ENTRY.replace('"dio-read"', '["dio-read", "rdma-register"]') + 'access = ["rw", "ro"]\n'
    expansion = suite.expand(suite.parse(text, "x.toml"))
    assert sorted(case.id for case in expansion.cases) == [
        "dio-read/anon/64KiB",
        "rdma-register/anon/ro/64KiB",
        "rdma-register/anon/rw/64KiB",
    ]
    assert expansion.notes == [
        "parameter access dropped where the workload has none: dio-read",
        "1 equal case merged",
    ]


def test_cases_equal_but_for_repeat_are_told() -> None:
    notes = suite.expand(suite.parse(ENTRY + ENTRY + "repeat = 3\n", "x.toml")).notes
    assert "those of the first hold" in notes[1]


def test_touch_true_is_what_is_meant_without_it() -> None:
    text = RDMA.replace("rdma-register", "rdma-register-odp") + "touch = [true, false]\n"
    assert sorted(ids(text)) == [
        "rdma-register-odp/anon/rw/64KiB",
        "rdma-register-odp/anon/rw/64KiB/touch=false",
    ]


@pytest.mark.parametrize(
    ("access", "canonical"),
    [
        ("LOCAL_WRITE|REMOTE_WRITE|REMOTE_READ", "rw"),
        ("IBV_ACCESS_REMOTE_READ | IBV_ACCESS_LOCAL_WRITE", "LOCAL_WRITE|REMOTE_READ"),
        ("REMOTE_READ", "ro"),
        ("ro", "ro"),
    ],
)
def test_access_flags_have_one_spelling(access: str, canonical: str) -> None:
    assert ids(RDMA + f'access = "{access}"\n') == [f"rdma-register/anon/{canonical}/64KiB"]


def test_excluded_pairs_give_their_reason() -> None:
    text = ENTRY.replace('"anon"', '["anon", "thp", "memfd"]') + (
        'exclude = [{memory = ["thp", "memfd"], workload = "dio-read", reason = "known"}]\n'
    )
    expansion = suite.expand(suite.parse(text, "x.toml"))
    assert [case.id for case in expansion.cases] == ["dio-read/anon/64KiB"]
    assert expansion.notes == ["2 cases excluded: known"]


def test_order_follows_from_the_seed_and_differs_by_round() -> None:
    text = (suite.SHIPPED / "quick.toml").read_text()
    first, again = suite.parse(text, "x"), suite.parse(text, "y")
    other = suite.parse(text.replace("seed = 1", "seed = 2"), "x")
    in_file = suite.parse(text.replace("[run]", '[run]\norder = "suite"'), "x")
    order = suite.expand(first).cases
    assert order == suite.expand(again).cases
    for changed in (suite.expand(first, 1), suite.expand(other), suite.expand(in_file)):
        assert order != changed.cases
        assert sorted(case.id for case in order) == sorted(case.id for case in changed.cases)
    assert suite.expand(in_file).cases == suite.expand(in_file, 1).cases
    assert suite.expand(in_file).cases[0].id == "rdma-register/anon/rw/64KiB"


def test_order_is_the_same_everywhere() -> None:
    # Frozen: a change of it makes every bundle of an older version impossible to resume.
    text = ENTRY.replace('"64KiB"', "[1, 2, 3, 4, 5, 6]")
    assert [case.size_bytes for case in suite.expand(suite.parse(text, "x")).cases] == [
        3,
        2,
        1,
        5,
        4,
        6,
    ]


def test_plan_counts_over_the_rounds() -> None:
    planned, _ = suite.plan(suite.load("quick"), rounds=2, only_glob="*/anon/*")
    assert [one.seq for one in planned] == list(range(len(planned)))
    assert {one.round for one in planned} == {0, 1}
    halves = [[one.case.id for one in planned if one.round == r] for r in (0, 1)]
    assert sorted(halves[0]) == sorted(halves[1])


def test_only_selects_by_id_and_suggests() -> None:
    cases = suite.expand(suite.load("quick")).cases
    assert all(case.memory == "thp" for case in suite.only(cases, "*/thp/*"))
    with pytest.raises(UsageError, match='nearest is "rdma-register/anon/rw/64KiB"'):
        suite.only(cases, "rdma-register/anon/rw/64Ki")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\nseeed = 1\n" + ENTRY, ['"seeed"', "[run]", '"seed"']),
        (ENTRY + 'acess = "rw"\n', ['"acess"', "[[matrix]] 1", '"access"']),
        (ENTRY.replace("size", "siez"), ['"siez"', '"size"']),
        (ENTRY.replace("[[matrix]]", "[[matrx]]"), ['"matrx"', '"matrix"']),
        ("[run]\nqqq = 1\n" + ENTRY, ['"qqq"', "it takes name, seed"]),
        ('[run]\nseed = "1"\n' + ENTRY, ["[run], seed", '"1"', "integer"]),
        ("[run]\nrounds = true\n" + ENTRY, ["[run], rounds", "true"]),
        ("[run]\nrounds = 0\n" + ENTRY, ["[run], rounds = 0", "greater than or equal to 1"]),
        ("run = 3\n" + ENTRY, ["[run] = 3", "a table"]),
        ('[run]\norder = "random"\n' + ENTRY, ["'shuffle' or 'suite'"]),
        ('[run]\nname = "../x"\n' + ENTRY, ['"../x"']),
        ('[run]\nhold = "1 week"\n' + ENTRY, ["[run], hold", '"week"']),
        (ENTRY.replace("dio-read", "dio-raed"), ['"dio-raed"', '"dio-read"']),
        (ENTRY.replace('"anon"', '["thp", "hugetlb"]'), ['"hugetlb"', '"hugetlb-2m"']),
        (ENTRY.replace('"anon"', '"zzz"'), ['"zzz"', "there are anon, "]),
        (ENTRY.replace('"anon"', "[]"), ["memory", "empty"]),
        (ENTRY.replace('"anon"', "[[1]]"), ["memory", "[1]"]),
        (ENTRY.replace('"64KiB"', "0"), ["size of 0"]),
        (ENTRY.replace("64KiB", "0MiB"), ["size of 0"]),
        (ENTRY.replace("64KiB", "1025GiB"), ['"1025GiB"', "over 1 TiB"]),
        (ENTRY.replace("64KiB", "64KB"), ['"64KB"', "KiB"]),
        (ENTRY.replace('"64KiB"', "1.5"), ["1.5", '"16MiB"']),
        (ENTRY.replace('size = "64KiB"', ""), ["[[matrix]] 1", 'lacks the key "size"']),
        (ENTRY + "repeat = -1\n", ["repeat = -1"]),
        (ENTRY + "deadline_s = 0\n", ["deadline_s = 0"]),
        (ENTRY + 'touch = "no"\n', ["touch", "true nor false"]),
        (RDMA + 'access = "rx"\n', ['"rx"', '"rw"']),
        (RDMA + 'access = "REMOTE_WRITE"\n', ["add LOCAL_WRITE"]),
        (RDMA + 'access = "LOCAL_WRITE|ON_DEMAND"\n', ["rdma-register-odp"]),
        (
            ENTRY + 'exclude = [{memory = "anon", reson = "x"}]\n',
            ["[[matrix]] 1, [[matrix.exclude]] 1;", '"reason"'],
        ),
        (ENTRY + '[[exclude]]\nmemory = "anon"\nreson = "x"\n', ["in [[exclude]] 1;", '"reason"']),
        (ENTRY + "trace = true\n", ['"trace" in [[matrix]] 1; it belongs into [run]']),
        ('[run]\nsize = "1MiB"\n' + ENTRY, ['"size" in [run]; it belongs into [[matrix]]']),
        ("seed = 3\n" + ENTRY, ['"seed" in the file; it belongs into [run]']),
        (ENTRY + "offset = 4096\n", ["offset 4096 must be under 4096 bytes"]),
        (ENTRY + 'memlock = "99999999999TiB"\n', ["memlock", "over 1 TiB"]),
        (ENTRY + 'exclude = [{memory = "anon", reason = "x"}]\n', ["expands to no case"]),
        ("", ["expands to no case", "[[matrix]]"]),
        ("[run]\nseed = \n", ["not TOML", "line 2"]),
        ("[run]\nseed = 1\nseed = 2\n", ["not TOML", "line 3"]),
    ],
)
def test_bad_suite_is_one_sentence(text: str, words: list[str]) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


def test_suite_that_is_not_there_suggests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='did you mean "quick"'):
        suite.load("quik")
    with pytest.raises(UsageError, match="is a directory"):
        suite.load(tmp_path)
    binary = tmp_path / "x.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        suite.load(binary)


def test_trace_is_the_labs_choice_unless_the_suite_says() -> None:
    assert suite.parse(ENTRY, "x.toml").trace is None
    assert suite.parse("[run]\ntrace = true\n" + ENTRY, "x.toml").trace is True
    off = suite.parse("[run]\ntrace = false\n" + ENTRY, "x.toml")
    assert off.to_manifest()["trace"] is False
    assert '"yes"' in refusal('[run]\ntrace = "yes"\n' + ENTRY)


def test_memlock_up_to_the_largest_size() -> None:
    assert suite.parse(ENTRY + 'memlock = "1TiB"\n', "x.toml").entries[0].params


def test_shipped_suite_is_called_by_its_bare_name(tmp_path: Path) -> None:
    quick = suite.load("quick").to_manifest()
    assert suite.name_to_give(quick) == "quick"
    # run by a pinstorm that is installed elsewhere; then by one of another version
    elsewhere = {**quick, "origin": "/opt/pinstorm/configs/quick.toml"}
    assert suite.name_to_give(elsewhere) == "quick"
    assert suite.name_to_give({**quick, "sha256": "0"}) == "quick"
    assert suite.name_to_give({**elsewhere, "sha256": "0"}) == "/opt/pinstorm/configs/quick.toml"
    own = suite.parse(ENTRY, str(tmp_path / "own.toml")).to_manifest()
    assert suite.name_to_give(own) == str(tmp_path / "own.toml")
