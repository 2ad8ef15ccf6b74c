"""What the documents say is what the code has."""

import re
from pathlib import Path

from pinstorm import intervals, samples, schema, sources
from pinstorm.cli import app, lab_app
from pinstorm.errors import ExitCode

ROOT = Path(__file__).parents[2]


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


def test_readme_names_commands_that_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    known |= {f"lab {command.name}" for command in lab_app.registered_commands}
    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"pinstorm (lab \w+|run|list|report)\b", text))
    assert used <= known | {"run", "list", "report"}
    assert "@@" not in text


def test_readme_names_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    (sentence,) = re.findall(r"Exit codes: (.*?)\.\n", text, re.DOTALL)
    assert {int(number) for number in re.findall(r"\b\d+\b", sentence)} == {
        int(c) for c in ExitCode
    }
