"""The console script itself: what it prints, its exit codes, and what it leaves behind.

Every mistake of a person is one sentence on stderr and the documented exit code, nothing on
stdout, and nothing half-written.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from pinstorm import cli, suite
from pinstorm.bundle import open_bundle
from pinstorm.lock import only_run
from telemetry import rdma
from workloads import MEMORY, WORKLOADS

Done = subprocess.CompletedProcess[str]
Need = Callable[[bool, str], None]

SCRIPT = Path(sys.executable).parent / "pinstorm"
NOBODY = 65534
# Others on this machine may run pinstorm as well: then ours waits for its turn.
TURN_DEADLINE_S = 120.0
BUSY = "another pinstorm run"

TINY = """
[run]
name = "tiny"
repeat = 2

[[matrix]]
workload = ["process-vm-write", "vmsplice"]
memory = "anon"
size = "64KiB"
"""


def matrix(**changes: str) -> str:
    """A suite of one entry, with TOML values replaced or added."""
    entry = {"workload": '"vmsplice"', "memory": '"anon"', "size": '"64KiB"', **changes}
    return "[[matrix]]\n" + "".join(f"{key} = {value}\n" for key, value in entry.items())


def pinstorm(
    *words: str | Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    **more: Any,
) -> Done:
    """Run the console script to its end; while another run has the machine, again."""
    deadline_s = time.monotonic() + TURN_DEADLINE_S
    while True:
        done = subprocess.run(
            [SCRIPT, *map(str, words)],
            cwd=cwd,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
            capture_output=True,
            text=True,
            **more,
        )
        if BUSY not in done.stderr or time.monotonic() > deadline_s:
            return done
        time.sleep(0.3)


def refused(done: Done, code: int, *words: str) -> str:
    """The one sentence of a command that was refused."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    progress = ("asking ", "fetching ")  # said before the network is, which can take a while
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith(progress)]
    assert sentence.startswith("pinstorm: ")
    for word in words:
        assert word in sentence
    return sentence


def records_of(done: Done) -> list[dict[str, Any]]:
    """The records that --json printed: one a line, and nothing else."""
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def code_of(records: Sequence[Mapping[str, Any]]) -> int:
    """The exit code that the verdicts ask for: on a busy machine a case may fail of noise."""
    return int(cli.exit_code(records))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a small suite in it."""
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """One run of the small suite, and its bundle: not to be changed."""
    place = tmp_path_factory.mktemp("ran")
    (place / "tiny.toml").write_text(TINY)
    return pinstorm("run", "tiny.toml", "--out", "b", cwd=place), place / "b"


@pytest.fixture
def bundle(ran: tuple[Done, Path], tmp_path: Path) -> Path:
    """A copy of that bundle."""
    return Path(shutil.copytree(ran[1], tmp_path / "bundle"))


@pytest.fixture
def nobody(need: Need) -> Iterator[Path]:
    """A directory of uid 65534 with the small suite in it."""
    need(os.geteuid() == 0, "becoming another user needs root")
    try:
        subprocess.run([SCRIPT, "--help"], capture_output=True, user=NOBODY, cwd="/", check=True)
    except (OSError, subprocess.CalledProcessError) as error:  # a checkout below root's home
        need(False, f"uid {NOBODY} cannot run {SCRIPT}: {error}")
    # pytest's own directories are closed to others.
    place = Path(tempfile.mkdtemp(prefix="pinstorm-test-"))
    try:
        (place / "tiny.toml").write_text(TINY)
        os.chown(place, NOBODY, NOBODY)
        yield place
    finally:
        shutil.rmtree(place)


def as_nobody(place: Path) -> dict[str, Any]:
    return {
        "user": NOBODY,
        "group": NOBODY,
        "extra_groups": [],
        "environment": {"HOME": str(place), "XDG_CACHE_HOME": str(place / "cache")},
    }


# Help


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


@pytest.mark.parametrize("words", [*commands(typer.main.get_command(cli.app))], ids=" ".join)
def test_help_of_every_command(words: tuple[str, ...], tmp_path: Path) -> None:
    done = pinstorm(*words, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("Usage: pinstorm")
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_slow(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['pinstorm', '--help']\n"
        "from pinstorm import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(*sorted({'polars', 'pydantic', 'psutil'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.split() == []


@pytest.mark.parametrize("words", [(), ("lab",)], ids=["pinstorm", "lab"])
def test_no_command_shows_the_help(words: tuple[str, ...], tmp_path: Path) -> None:
    done = pinstorm(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: pinstorm")


# Suites that are wrong

BAD_SUITES = {
    "misspelt key": (matrix(memroy='"anon"'), ("memroy", 'did you mean "memory"')),
    "misspelt run key": ("[run]\nrepeats = 3\n" + matrix(), ("repeats", "repeat")),
    "wrong type": ('[run]\nrepeat = "many"\n' + matrix(), ("repeat",)),
    "wrong type of size": (matrix(size="true"), ("size",)),
    "size 0": (matrix(size='"0"'), ("size", "0")),
    "size 0 bytes": (matrix(size="0"), ("size", "0")),
    "unit": (matrix(size='"16mib"'), ("mib", "MiB")),
    "unknown workload": (matrix(workload='"vmsplise"'), ('did you mean "vmsplice"',)),
    "unknown memory": (matrix(memory='"annon"'), ('did you mean "anon"',)),
    "no entry": ('[run]\nname = "none"\n', ("expands to no case",)),
    "empty": ("", ("expands to no case",)),
    "all excluded": (
        matrix() + '[[matrix.exclude]]\nmemory = "anon"\nreason = "all of it"\n',
        ("expands to no case",),
    ),
    "no TOML": ("[run\n", ("not TOML",)),
    "no text": ("\0\1", ("not TOML",)),
}


@pytest.mark.parametrize("name", BAD_SUITES)
def test_bad_suite(name: str, tmp_path: Path) -> None:
    text, words = BAD_SUITES[name]
    (tmp_path / "bad.toml").write_text(text)
    refused(pinstorm("run", "bad.toml", "--out", "out", cwd=tmp_path), 2, "bad.toml", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


# Command lines that are wrong

BAD_LINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no suite": (("run",), ("SUITE", "pinstorm run --help")),
    "suite that is not there": (("run", "quikc"), ('did you mean "quick"',)),
    "unknown command": (("rum", "quick"), ("no such command 'rum'",)),
    "unknown option": (("run", "tiny.toml", "--outt", "x"), ("--outt",)),
    "no number": (("run", "tiny.toml", "--rounds", "many"), ("--rounds",)),
    "no round": (("run", "tiny.toml", "--rounds", "0"), ("--rounds",)),
    "no duration": (("run", "tiny.toml", "--hold", "long"), ("long",)),
    "no case": (("run", "tiny.toml", "--only", "vmsplise/*"), ("vmsplice/anon/64KiB",)),
    "device": (("run", "tiny.toml", "--device", "mlx5_99"), ("mlx5_99", "not there")),
    "device of list": (("list", "--device", "mlx5_99"), ("mlx5_99", "not there")),
    "scratch": (("run", "tiny.toml", "--scratch", "nowhere"), ("nowhere",)),
    "budget": (("run", "tiny.toml", "--pin-budget", "4KiB"), ("64 KiB", "--pin-budget")),
    "no budget": (("run", "tiny.toml", "--pin-budget", "0"), ("64 KiB", "--pin-budget")),
    "budget that is no size": (("run", "tiny.toml", "--pin-budget", "lots"), ("lots",)),
    "bundle that is not there": (("report", "nowhere"), ("nowhere",)),
    "no bundle": (("report", "."), ("no bundle in .",)),
    "format of report": (("report", "nowhere", "--format", "odd"), ("'odd'", "junit")),
    "format and json": (("report", "nowhere", "--format", "ktap", "--json"), ("--json", "ktap")),
    "suite without diff": (("list", "--rules", "--suite", "quick"), ("--suite", "add --diff")),
    "suite alone": (("list", "--suite", "quick"), ("--suite", "--rules")),
    "diff without rules": (("list", "--diff", "6.1", "7"), ("--diff", "add --rules")),
    "output that is a directory": (
        ("report", "nowhere", "--format", "ktap", "--output", "."),
        ("--output .", "a directory"),
    ),
    "resume of no bundle": (("run", "tiny.toml", "--resume", "nowhere"), ("nowhere",)),
    "kernel name": (("lab", "run", "tiny.toml", "--kernel", "stabel"), ("did you mean stable",)),
    "kernel path": (("lab", "run", "tiny.toml", "--kernel", "./bzImage"), ("bzImage",)),
    "lab suite": (("lab", "run", "quikc"), ('did you mean "quick"',)),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_command_line(name: str, place: Path) -> None:
    line, words = BAD_LINES[name]
    refused(pinstorm(*line, cwd=place), 2, *words)
    assert [path.name for path in place.iterdir()] == ["tiny.toml"]


def test_more_pins_than_the_budget(place: Path) -> None:
    (place / "big.toml").write_text(matrix(size='["64KiB", "2MiB"]'))
    done = pinstorm("run", "big.toml", "--pin-budget", "1MiB", "--out", "out", cwd=place)
    refused(done, 2, "vmsplice/anon/2MiB", "2 MiB", "1 MiB", "--pin-budget")
    assert not (place / "out").exists()


# Output directories


@pytest.mark.parametrize("command", [("run",), ("lab", "run")], ids=" ".join)
def test_used_output_directory(command: tuple[str, ...], place: Path) -> None:
    used = place / "used"
    used.mkdir()
    (used / "mine").write_text("keep")
    options = ("--kernel", a_kernel(place)) if "lab" in command else ()
    done = pinstorm(*command, "tiny.toml", "--out", "used", *options, cwd=place)
    refused(done, 2, "used", "--out")
    assert [(path.name, path.read_text()) for path in used.iterdir()] == [("mine", "keep")]


def a_kernel(place: Path) -> str:
    """A vmlinuz and its modules as far as a command looks that boots nothing."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    head[0x300:0x305] = b"6.99\0"
    (place / "vmlinuz").write_bytes(head)
    (place / "lib/modules/6.99").mkdir(parents=True)
    (place / "lib/modules/6.99/modules.dep").touch()
    return str(place / "vmlinuz")


def test_output_directory_that_is_a_file(place: Path) -> None:
    refused(pinstorm("run", "tiny.toml", "--out", "tiny.toml", cwd=place), 2, "tiny.toml")
    assert (place / "tiny.toml").read_text() == TINY


def test_output_directory_that_cannot_be_made(place: Path) -> None:
    refused(pinstorm("run", "tiny.toml", "--out", "/proc/1/out", cwd=place), 4, "/proc/1/out")


@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["read-only", "closed"])
def test_unwritable_output_directory(nobody: Path, mode: int) -> None:
    roots = nobody / "roots"
    roots.mkdir(mode)
    done = pinstorm("run", "tiny.toml", "--out", roots / "out", cwd=nobody, **as_nobody(nobody))
    refused(done, 4, str(roots / "out"), "permission denied")
    assert list(roots.iterdir()) == []


@pytest.fixture
def tiny_file_system(tmp_path: Path, need: Need) -> Iterator[Path]:
    """A tmpfs of 64 KiB."""
    mountpoint = tmp_path / "tiny"
    mountpoint.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "pinstorm-test", str(mountpoint)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    need(mounted, "cannot mount a tmpfs; run as root")
    yield mountpoint
    subprocess.run(["umount", str(mountpoint)], check=True)


def test_output_directory_fills_up(place: Path, tiny_file_system: Path) -> None:
    out = tiny_file_system / "out"
    line = ("run", "tiny.toml", "--rounds", "40", "--out", out)
    done = pinstorm(*line, cwd=place)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    *told, sentence = done.stderr.splitlines()
    assert sentence.startswith("pinstorm: ")
    assert "no space left on device" in sentence
    assert not [line for line in told if line.startswith("pinstorm: ")]
    opened = open_bundle(out)
    assert 5 < len(opened.records) < 80
    assert sorted(path.name for path in out.iterdir()) == ["journal.jsonl", "manifest.json"]
    again = pinstorm("report", out, cwd=place)
    # The case whose record did not fit has begun and not ended.
    begun = len(opened.contents.started)
    assert f"{len(opened.records) + begun} cases" in again.stdout
    # There is a table, and no room for the page: elsewhere there is.
    assert again.returncode == 4
    assert "--output" in again.stderr
    page = place / "report.html"
    again = pinstorm("report", out, "--output", page, cwd=place)
    assert again.returncode == (3 if begun else code_of(opened.records))
    assert page.read_text().startswith("<!doctype html>")


# Kernels


def test_kernel_that_no_mirror_has(place: Path) -> None:
    done = pinstorm("lab", "run", "tiny.toml", "--kernel", "99", "--out", "out", cwd=place)
    refused(done, 2)
    assert not (place / "out").exists()


def test_no_network(place: Path, need: Need) -> None:
    need(shutil.which("apt-config") is not None, "this machine has no apt")
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    need("Proxy " not in settings, "apt goes through a proxy that the test cannot take away")
    cache = place / "cache"
    proxy = "http://127.0.0.1:9"  # the discard port: nobody answers
    names = ("http_proxy", "https_proxy", "all_proxy")
    environment = {"PINSTORM_CACHE": str(cache), "no_proxy": "", **dict.fromkeys(names, proxy)}
    line = ("lab", "run", "tiny.toml", "--kernel", "stable", "--out", "out")
    refused(pinstorm(*line, cwd=place, environment=environment), 2, "cannot be reached", "--kernel")
    assert not (place / "out").exists()
    assert not list((cache / "kernels").glob("*"))


# Runs


def test_run_prints_the_table_and_writes_the_bundle(ran: tuple[Done, Path]) -> None:
    done, path = ran
    opened = open_bundle(path)
    assert done.returncode == code_of(opened.records), done.stderr
    assert "process-vm-write/anon/64KiB" in done.stdout
    assert done.stdout.endswith(f"bundle: {path}\nreport: {path / 'report.html'}\n")
    assert "\x1b" not in done.stdout + done.stderr
    assert "tiny: 2/2 cases" in done.stderr
    names = ["cases.parquet", "journal.jsonl", "manifest.json", "report.html"]
    assert sorted(file.name for file in path.iterdir()) == names


def test_json_is_one_record_a_line_and_nothing_else(tmp_path: Path) -> None:
    done = pinstorm("run", "quick", "--json", "--out", "out", cwd=tmp_path)
    records = records_of(done)
    assert done.returncode == code_of(records)
    assert records == open_bundle(tmp_path / "out").records
    assert len(records) == len({record["case"] for record in records})
    planned = suite.expand(suite.load("quick")).cases
    assert {record["case"] for record in records} == {case.id for case in planned}
    skipped = [record for record in records if record["verdict"] == "skip"]
    assert all(reason["remedy"] for record in skipped for reason in record["skip"])
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_nothing_that_can_run_is_77(place: Path) -> None:
    (place / "odp.toml").write_text(matrix(workload='"rdma-register"'))
    if rdma.read():
        pytest.skip("this machine has an RDMA device")
    done = pinstorm("run", "odp.toml", "--out", "out", cwd=place)
    assert done.returncode == 77, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pinstorm: every case was skipped")
    assert "1 skip: rdma-device" in done.stdout


def test_ordinary_user_runs_with_a_bound(nobody: Path) -> None:
    line = ("run", "tiny.toml", "--json", "--out", "out")
    done = pinstorm(*line, cwd=nobody, **as_nobody(nobody))
    records = records_of(done)
    assert done.returncode == code_of(records), done.stderr
    assert [record["uid"] for record in records] == [NOBODY, NOBODY]
    for record in records:
        assert record["pins"]["exact"] is False
        assert record["pins"]["bound"] > 0
    assert (nobody / "out").stat().st_uid == NOBODY


def test_ordinary_user_without_a_directory_of_its_own(nobody: Path) -> None:
    """The current directory is scratch when it can be; nobody asked for it."""
    done = pinstorm("run", nobody / "tiny.toml", "--dry-run", cwd=Path("/"), **as_nobody(nobody))
    assert done.returncode == 0, done.stderr
    assert "2 cases: 2 would run" in done.stdout


def test_second_run_at_the_same_time(place: Path) -> None:
    deadline_s = time.monotonic() + TURN_DEADLINE_S
    while True:
        try:
            with only_run():
                done = subprocess.run(
                    [SCRIPT, "run", "tiny.toml", "--out", "out"],
                    cwd=place,
                    capture_output=True,
                    text=True,
                )
            break
        except cli.PinstormError:
            assert time.monotonic() < deadline_s, "another run has the machine"
            time.sleep(0.3)
    refused(done, 2, BUSY, f"pid {os.getpid()}")
    assert not (place / "out").exists()


def test_interrupt_leaves_a_bundle_to_resume(place: Path) -> None:
    line = [SCRIPT, "run", "tiny.toml", "--out", "out", "--hold", "20s"]
    process = start_holding(line, place)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors, errors
    assert errors.splitlines()[-1].startswith("pinstorm: interrupted")
    assert open_bundle(place / "out").records == []
    done = pinstorm("run", "tiny.toml", "--resume", "out", "--json", cwd=place)
    records = records_of(done)
    assert done.returncode == code_of(records), done.stderr
    assert sorted(record["seq"] for record in records) == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_before_there_is_a_command_line(tmp_path: Path, number: signal.Signals) -> None:
    """While it is imported, which is most of the time that a short command takes."""
    (tmp_path / "typer.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {number:d})\ntime.sleep(10)\n"
    )
    done = pinstorm("list", cwd=tmp_path, environment={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pinstorm: interrupted\n")
    unheard = subprocess.run(
        ["sh", "-c", f"exec {SCRIPT} list 2>&-"], env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert unheard.returncode == 130


def start_holding(line: Sequence[str | Path], place: Path) -> subprocess.Popen[str]:
    """Start a run and wait until it is in its first case."""
    deadline_s = time.monotonic() + TURN_DEADLINE_S
    journal = place / "out/journal.jsonl"
    while time.monotonic() < deadline_s:
        process = subprocess.Popen(
            line, cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while process.poll() is None:
            if journal.exists() and '{"start":' in journal.read_text():
                return process
            time.sleep(0.05)
        output, errors = process.communicate()
        assert BUSY in errors, output + errors
    pytest.fail("another run has the machine")


# list, report, --dry-run


def test_list(tmp_path: Path) -> None:
    done = pinstorm("list", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    for spec in (*WORKLOADS, *MEMORY):
        assert f"\n{spec.name} " in done.stdout
    assert "\nquick " in done.stdout


def test_list_json(tmp_path: Path) -> None:
    done = pinstorm("list", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    registry = json.loads(done.stdout)
    assert [entry["name"] for entry in registry["workloads"]] == [w.name for w in WORKLOADS]
    assert [entry["name"] for entry in registry["memories"]] == [m.name for m in MEMORY]
    told = {entry["code"] for entry in registry["unmet"]}
    for entry in registry["workloads"] + registry["memories"]:
        assert entry["met"] == (not entry["unmet"])
        assert set(entry["unmet"]) <= told & set(entry["needs"])
    quick = next(entry for entry in registry["suites"] if entry["name"] == "quick")
    assert 0 < quick["runnable"] <= quick["cases"]


def test_list_rules(tmp_path: Path) -> None:
    done = pinstorm("list", "--rules", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    rules = json.loads(pinstorm("list", "--rules", "--json", cwd=tmp_path).stdout)
    for rule in rules:
        assert rule["source"]
        assert f"\n{rule['name']}\n" in done.stdout


def test_dry_run_writes_nothing(place: Path) -> None:
    done = pinstorm("run", "tiny.toml", "--dry-run", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 cases: " in done.stdout
    assert "expected time: about" in done.stdout
    plan = json.loads(pinstorm("run", "tiny.toml", "--dry-run", "--json", cwd=place).stdout)
    pins = {case["case"]: case["pins_pages"] for case in plan["cases"]}
    assert pins == {"process-vm-write/anon/64KiB": 16, "vmsplice/anon/64KiB": 0}
    assert [path.name for path in place.iterdir()] == ["tiny.toml"]


@pytest.mark.parametrize("option", [(), ("--wide",), ("--rejudge",), ("--json",)], ids=str)
def test_report(option: tuple[str, ...], bundle: Path) -> None:
    before = (bundle / "journal.jsonl").read_bytes()
    done = pinstorm("report", bundle, *option, cwd=bundle.parent)
    records = open_bundle(bundle).records
    assert done.returncode == code_of(records), done.stderr
    assert done.stderr == ""
    if option == ("--json",):
        assert records_of(done) == records
    else:
        assert "vmsplice/anon/64KiB" in done.stdout
        assert "2 cases: " in done.stdout
    assert (bundle / "journal.jsonl").read_bytes() == before


def test_torn_last_line_is_tolerated_and_told(bundle: Path) -> None:
    with open(bundle / "journal.jsonl", "a", encoding="utf-8") as journal:
        journal.write('{"schema":1,"seq":2,"ca')
    done = pinstorm("report", bundle, cwd=bundle.parent)
    assert done.returncode == code_of(open_bundle(bundle).records)
    assert done.stderr == "the journal's last line is torn: 23 bytes\n"
    assert "2 cases: " in done.stdout


def test_damaged_journal_is_one_sentence(bundle: Path) -> None:
    text = (bundle / "journal.jsonl").read_text()
    (bundle / "journal.jsonl").write_text("{\n" + text)
    done = pinstorm("report", bundle, cwd=bundle.parent)
    assert done.returncode == 3
    (sentence,) = done.stderr.splitlines()
    assert "line 1" in sentence
    # cases.parquet has them all the same.
    assert "2 cases: " in done.stdout


def test_reader_that_goes_away(tmp_path: Path) -> None:
    command = f"{SCRIPT} list --rules | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""


def test_a_run_whose_stderr_is_closed(tmp_path: Path) -> None:
    """No file of a case's may get its number: what is printed there would go into that file."""
    (tmp_path / "tiny.toml").write_text(TINY)
    deadline_s = time.monotonic() + TURN_DEADLINE_S
    while True:
        script = f"exec {SCRIPT} run tiny.toml --out out 2>&-"
        done = subprocess.run(["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True)
        # another run has the machine, which it says nowhere
        if done.returncode != 2 or time.monotonic() > deadline_s:
            break
        time.sleep(0.3)
    assert done.returncode == 0
    assert b"2 cases: 2 pass" in done.stdout
