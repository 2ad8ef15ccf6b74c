"""docs/reference/exit-codes.md."""

from pinstorm.errors import EXIT_MEANINGS, ExitCode
from pinstorm.reference import page


def text() -> str:
    """Every exit code, and what it means to a script."""
    lines = page.head(
        "Exit codes",
        "pinstorm/errors.py",
        "Every command ends with one of these. Of several kernels (`pinstorm lab run --kernel "
        "all`) it is the worst: 4, then 3, 1, 0, 77.",
    )
    rows = [(f"{code.value}", code.name, EXIT_MEANINGS[code]) for code in ExitCode]
    lines += page.table(("code", "name", "meaning"), rows)
    lines += [
        "",
        page.prose(
            "A message for a person goes to stderr, one sentence: the object, the value, the "
            "remedy. With `--json` there is nothing on stdout but JSON."
        ),
    ]
    return page.whole(lines)
