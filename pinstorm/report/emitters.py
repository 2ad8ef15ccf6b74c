"""Reports for other programs and for documents: the formats of ``pinstorm report --format``.

``junit``, ``ktap`` and ``cases`` take whole bundles; ``md``, ``json`` and ``csv`` the frames of any
number of them, half ones too, and are written while they are read.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pinstorm import verdict
from pinstorm.bundle import Bundle, from_lab, open_bundle
from pinstorm.errors import UsageError
from pinstorm.report import output as outputs
from pinstorm.report import reason
from pinstorm.report.output import Stream
from pinstorm.report.reason import Record, one_line

if TYPE_CHECKING:
    import polars

    from pinstorm.frames import Frames

TABLE: Final = "table"
# Of these two the command itself takes care: overview.
HTML: Final = "html"
_WHOLE: Final = ("junit", "ktap", "cases")
_STREAMED: Final = ("md", "json", "csv")
FORMATS: Final = (TABLE, HTML, *_WHOLE, *_STREAMED)


def check_format(form: str) -> None:
    """UsageError when there is no such format."""
    if form not in FORMATS:
        raise UsageError(f"format {form!r} is not known: give {', '.join(FORMATS)}")


def emit(
    paths: Path | Sequence[Path],
    form: str,
    *,
    command: Callable[[Bundle], str],
    rejudge: bool = False,
    output: Path | None = None,
) -> list[Record]:
    """Write bundles, or those of lab runs' parents and other directories, on stdout or to a file.

    ``command``: what repeats a bundle's run. What was shown, for the exit code: its records, or
    of the streamed formats one ``{"verdict": …}`` for each verdict there is, and a lost one where
    something could not be read. Raises UsageError,
    and WriteError when ``output`` cannot be written. What the streamed formats could not read is
    told in them, of ``csv`` on stderr.
    """
    check_format(form)
    if output is not None:
        outputs.check(output)
    given = [paths] if isinstance(paths, Path) else list(paths)
    if form in _STREAMED:
        return _emit_streamed(given, form, rejudge, output)
    bundles = [_rejudged(one) if rejudge else one for one in _bundles(given)]
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


def _bundles(paths: Sequence[Path]) -> list[Bundle]:
    """Each once, in the order given. UsageError for one that is not whole."""
    from pinstorm import bundle_search, manifest_form

    found = bundle_search.search(paths)
    if found.notes:
        raise UsageError(found.notes[0])
    opened = [open_bundle(path) for path in found.paths.values()]
    return [replace(one, manifest=manifest_form.kept(one.manifest)) for one in opened]


def _rejudged(bundle: Bundle) -> Bundle:
    lab = from_lab(bundle.manifest)
    judged = verdict.rejudge(bundle.records, lab=lab)
    return replace(bundle, contents=replace(bundle.contents, records=judged))


def _emit_streamed(
    paths: Sequence[Path], form: str, rejudge: bool, output: Path | None
) -> list[Record]:
    from pinstorm import frames, parquet_tables

    found = frames.scan(paths, rejudge=rejudge)
    try:
        verdicts = _verdicts(found)
    except parquet_tables.errors():
        found = frames.scan(paths, verify=True, rejudge=rejudge)
        verdicts = _verdicts(found)
    if form == "md":
        from pinstorm.report import markdown

        outputs.write(markdown.text(found), output)
        return verdicts + _unread(found)
    with outputs.streamed(output) as stream:
        try:
            _write(found, form, stream)
        except parquet_tables.errors() as error:
            if stream.error is not None:
                raise
            raise UsageError(f"a bundle changed while it was read ({error}); try again") from None
    # JSON has them itself.
    for note in found.notes if form == "csv" else ():
        print(f"pinstorm: {one_line(note)}", file=sys.stderr)
    return verdicts + _unread(found)


def _unread(found: "Frames[polars.LazyFrame]") -> list[Record]:
    return [{"verdict": "lost"}] if found.notes else []


def _verdicts(found: "Frames[polars.LazyFrame]") -> list[Record]:
    """Each that there is. Reads all of every case, so that damage is met before anything is
    written; then raises what polars raises."""
    import polars

    every = polars.all().is_not_null().sum()
    frame = found.cases.group_by("verdict").agg(every).collect(engine="streaming")
    return [{"verdict": value} for value in frame.get_column("verdict")]


def _write(found: "Frames[polars.LazyFrame]", form: str, stream: Stream) -> None:
    from pinstorm.report import rows

    if form == "csv":
        rows.write_csv(found.cases, stream)
    else:
        rows.write_json(found, stream)
