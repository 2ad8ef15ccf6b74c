"""Reports for other programs and for documents: the formats of ``pinstorm report --format``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from pinstorm import verdict
from pinstorm.bundle import Bundle
from pinstorm.errors import UsageError
from pinstorm.report import output as outputs
from pinstorm.report import reason
from pinstorm.report.reason import Record

TABLE: Final = "table"
FORMATS: Final = (TABLE, "junit", "ktap", "cases")


def check_format(form: str) -> None:
    """UsageError when there is no such format."""
    if form not in FORMATS:
        raise UsageError(f"format {form!r} is not known: give {', '.join(FORMATS)}")


def emit(
    path: Path,
    form: str,
    *,
    command: Callable[[Bundle], str],
    rejudge: bool = False,
    output: Path | None = None,
) -> list[Record]:
    """Write the bundle, or the bundles of a lab run's parent, on stdout or to ``output``.

    ``command``: what repeats a bundle's run. The records that were shown. Raises UsageError, and
    WriteError when ``output`` cannot be written.
    """
    check_format(form)
    if output is not None:
        outputs.check(output)
    bundles = [_rejudged(one) if rejudge else one for one in reason.bundles(path)]
    if form == "junit":
        from pinstorm.report import junit

        text = junit.text(bundles, command)
    elif form == "ktap":
        from pinstorm.report import ktap

        text = ktap.text(bundles, command)
    else:
        from pinstorm.report import cases

        text = cases.text(bundles)
    outputs.write(text, output)
    return [record for one in bundles for record in reason.records(one)]


def _rejudged(bundle: Bundle) -> Bundle:
    lab = bundle.manifest.get("accel") != "host"
    judged = verdict.rejudge(bundle.records, lab=lab)
    return replace(bundle, contents=replace(bundle.contents, records=judged))
