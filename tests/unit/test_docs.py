"""What the documents say is what the code has."""

import re
from pathlib import Path

from pinstorm import schema
from pinstorm.cli import app, lab_app
from pinstorm.errors import ExitCode

ROOT = Path(__file__).parents[2]


def test_data_has_every_column() -> None:
    # Made from schema.markdown(); paste its output below the heading when a column changes.
    assert (ROOT / "docs/data.md").read_text().endswith(schema.markdown())


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
