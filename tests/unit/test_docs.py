"""What the documents say is what the code has, and what they show can be done."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from pinstorm import intervals, samples, schema, sources, suite
from pinstorm.cli import app
from pinstorm.errors import ExitCode
from pinstorm.needs.unmet import ASKED
from pinstorm.reference import DOCUMENTS, __main__, page
from pinstorm.suite_file import Exclude, File, Matrix, Run
from pinstorm.suite_load import JobTable, LoadTable, SteadyTable
from workloads.spec import Need

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = {"polars", "pydantic", "plotly", "scipy", "jinja2", "numpy"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    return _FENCE.sub("", text)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_generated_document_is_what_the_code_makes(name: str) -> None:
    # scripts/docs writes them anew
    assert (ROOT / "docs" / name).read_text() == DOCUMENTS[name]()


def test_check_names_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    assert __main__.main(["--check"]) == ExitCode.FAILED
    assert not list((tmp_path / "docs").iterdir())
    assert __main__.main([]) == ExitCode.OK
    assert __main__.main(["--check"]) == ExitCode.OK
    capsys.readouterr()
    old = tmp_path / "docs/reference/exit-codes.md"
    old.write_text(old.read_text() + "one line more\n")
    assert __main__.main(["--check"]) == ExitCode.FAILED
    assert capsys.readouterr().out == "docs/reference/exit-codes.md is stale: run scripts/docs\n"
    assert __main__.main(["--chek"]) == ExitCode.USAGE


@pytest.mark.parametrize("model", [File, Run, Matrix, Exclude, LoadTable, JobTable, SteadyTable])
def test_every_key_of_a_suite_has_a_meaning(model: Any) -> None:
    assert not [name for name, field in model.model_fields.items() if not field.description]


def test_every_need_says_what_it_asks_for() -> None:
    assert set(ASKED) == set(Need)


@cache
def anchors(path: Path) -> frozenset[str]:
    """Of the headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for title in re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        base = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found.get(base, 0)
        found[base] = count + 1
        names.add(f"{base}-{count}" if count else base)
    return frozenset(names)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_named_by_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in _LINK.findall(index.read_text())
    }
    assert not [name_of(path) for path in PAGES[1:] if path not in linked | {index}]


def commands_of(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words of each pinstorm command line, and whether it is whole.

    Those of sh, console and indented blocks are; in running text an argument may be left out.
    """
    for language, block in _FENCE.findall(text):
        if language not in ("sh", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            for part in re.split(r"\||&&|;|>", line):
                if found := re.search(r"(?:^|[\s/])pinstorm (.*)", part):
                    yield shlex.split(found[1], comments=True), True
    for line in re.findall(r"^    pinstorm (.*)$", prose(text), re.MULTILINE):
        yield shlex.split(line, comments=True), True
    for code in re.findall(r"`pinstorm ([a-z-][^`]*)`", prose(text)):
        yield shlex.split(code), False


def parse(words: list[str]) -> None:
    """Parse a command line and run nothing. Raises what typer raises of a wrong one."""
    command: Any = typer.main.get_command(app)
    name = "pinstorm"
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return  # the group itself: pinstorm --help
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        name, command, words = words[0], command.commands[words[0]], words[1:]
    if not {"-h", "--help"} & set(words):
        # a number where the text has the name of one
        command.make_context(name, ["1" if word == "PID" else word for word in words])


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_command_lines_can_be_parsed(path: Path) -> None:
    for words, whole in commands_of(path.read_text()):
        if "…" in "".join(words):
            continue
        try:
            parse(words)
        except AssertionError:
            raise
        except Exception as error:
            if not whole and "issing" in type(error).__name__:
                continue
            message = getattr(error, "format_message", error.__str__)()
            pytest.fail(f"pinstorm {shlex.join(words)}: {message}")


def test_command_lines_are_found_and_wrong_ones_refused() -> None:
    shell = "```sh\npinstorm run quick \\\n  --wide   # so\n. x; pinstorm pins | head\n```\n"
    found = list(commands_of(shell + "or `pinstorm list --rules`"))
    assert found == [
        (["run", "quick", "--wide"], True),
        (["pins"], True),
        (["list", "--rules"], False),
    ]
    with pytest.raises(Exception, match="--wid"):
        parse(["run", "quick", "--wid"])
    with pytest.raises(AssertionError, match="reprot"):
        parse(["reprot", "x"])
    assert sum(whole for path in PAGES for _, whole in commands_of(path.read_text())) > 40


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_toml_examples_are_suites(path: Path) -> None:
    for language, block in _FENCE.findall(path.read_text()):
        if language == "toml":
            assert suite.expand(suite.parse(block, "example.toml")).cases


def commands() -> dict[str, Any]:
    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for word, inner in command.commands.items():
            if hasattr(inner, "commands"):
                yield from below(f"{name}{word} ", inner)
            else:
                yield name + word, inner

    return dict(below("", typer.main.get_command(app)))


@pytest.mark.parametrize("name", commands())
def test_help_has_an_example_and_fits_80_columns(name: str) -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pinstorm", *name.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert f"  pinstorm {name}" in done.stdout.partition("Examples:")[2]
    assert max(map(len, done.stdout.splitlines())) <= 80
    # a tenth of a second alone; what else this machine does is not the help's fault
    assert time.monotonic() - begin < 5


def test_help_imports_nothing_slow() -> None:
    code = "import sys, pinstorm.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "typer" in done.stdout.split()
    assert not SLOW & set(done.stdout.split())


def test_readme_shows_a_result_within_a_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("./scripts/quickstart "))
    result = next(n for n, line in enumerate(lines) if "97 cases: 97 pass" in line)
    assert start < 25
    assert result < 45
    assert len(lines) <= 70


def test_tables_of_a_page_have_as_many_cells_as_columns() -> None:
    assert page.table(("a", "b"), [("x|y", "z")])[-1] == "| x\\|y | z |"
    for name, make in DOCUMENTS.items():
        width = None
        for line in make().splitlines():
            if not line.startswith("| "):
                width = None
                continue
            cells = len(re.split(r"(?<!\\)\|", line))
            assert width in (None, cells), (name, line)
            width = cells


def test_data_has_every_column() -> None:
    # Made from schema.markdown(); paste its output below the heading when a column changes.
    assert (ROOT / "docs/data.md").read_text().endswith(schema.markdown())


def test_data_has_every_column_of_the_series() -> None:
    text = (ROOT / "docs/data.md").read_text()
    for columns in (samples.COLUMNS, intervals.COLUMNS):
        assert f"\n{schema.markdown(columns)}\n" in text


def test_data_names_every_source_of_the_sampler() -> None:
    text = (ROOT / "docs/data.md").read_text()
    _, _, table = text.partition("| source | read at most | figures |\n| --- | --- | --- |\n")
    named = re.findall(r"^\| (\w+) \|", table.partition("\n\n")[0], re.MULTILINE)
    classes = [kind for kind in vars(sources).values() if hasattr(kind, "rows")]
    known = {kind.name for kind in classes if isinstance(getattr(kind, "name", None), str)}
    assert set(named) == known | {"process", "own"}
