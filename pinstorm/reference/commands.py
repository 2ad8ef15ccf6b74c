"""docs/reference/commands.md."""

from collections.abc import Iterator
from typing import Any

import typer

from pinstorm.cli import app
from pinstorm.reference import page


def text() -> str:
    """Every command with its arguments, options and examples, as its ``--help`` has them."""
    lines = page.head(
        "Commands",
        "pinstorm/cli.py",
        "Every command answers to `--help`. Progress and complaints go to stderr. How a command "
        "ends says its [exit code](exit-codes.md). `pinstorm --install-completion` sets the shell "
        "up to complete commands, options, suites, cases and devices.",
    )
    for name, command in _commands("pinstorm", typer.main.get_command(app)):
        lines += ["", f"## {name}", "", *_one(name, command)]
    return page.whole(lines)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below a group, in the order of its help; a group itself says nothing."""
    for below, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from _commands(f"{name} {below}", inner)
        else:
            yield f"{name} {below}", inner


def _one(name: str, command: Any) -> list[str]:
    arguments = [param for param in command.params if not param.opts[0].startswith("-")]
    options = [param for param in command.params if param.opts[0].startswith("-")]
    usage = " ".join([name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    lines = [*_paragraphs(command.help), "", "```text", usage, "```"]
    rows = [(f"`{_name(param)}`", _meaning(param)) for param in arguments]
    rows += [(f"`{_option(param)}`", _meaning(param)) for param in options]
    if rows:
        lines += page.table(("argument or option", "meaning"), rows)
    if examples := _examples(command.epilog):
        lines += ["", "```sh", *examples, "```"]
    return lines


def _paragraphs(words: str | None) -> list[str]:
    return [page.prose(part) for part in (words or "").strip().split("\n\n")]


def _examples(epilog: str | None) -> list[str]:
    return [line.strip() for line in (epilog or "").splitlines() if "pinstorm" in line]


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _argument(param: Any) -> str:
    name = _name(param).removesuffix("...") + ("..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    names = ", ".join([*param.opts, *param.secondary_opts])
    value = param.metavar or param.opts[0].lstrip("-").replace("-", "_").upper()
    return names if param.is_flag else f"{names} {value}"


def _meaning(param: Any) -> str:
    default = param.default
    shown = getattr(param, "show_default", True)
    if isinstance(shown, str):
        default = shown
    given = not getattr(param, "is_flag", False) and isinstance(default, (str, int, float))
    words = (param.help or "").strip()
    return f"{words} Default: `{default}`." if given and shown else words
