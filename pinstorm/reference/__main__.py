"""``scripts/docs``: write the documents that are made from the code, or say which are stale."""

import sys
from pathlib import Path

from pinstorm.errors import ExitCode
from pinstorm.reference import DOCUMENTS

DOCS = Path(__file__).parents[2] / "docs"
_USAGE = "usage: scripts/docs [--check]"


def stale() -> list[Path]:
    """The documents that are missing or not what the code makes now."""
    found = []
    for name, make in DOCUMENTS.items():
        path = DOCS / name
        if not path.is_file() or path.read_text(encoding="utf-8") != make():
            found.append(path)
    return found


def main(arguments: list[str]) -> int:
    if arguments == ["--help"] or arguments == ["-h"]:
        print(_USAGE)
        return ExitCode.OK
    if arguments not in ([], ["--check"]):
        print(f"docs: {' '.join(arguments)} is not known; {_USAGE}", file=sys.stderr)
        return ExitCode.USAGE
    wrong = stale()
    for path in wrong:
        name = path.relative_to(DOCS.parent)
        if arguments:
            print(f"{name} is stale: run scripts/docs")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(DOCUMENTS[path.relative_to(DOCS).as_posix()](), encoding="utf-8")
            print(f"{name} written")
    return ExitCode.FAILED if arguments and wrong else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
