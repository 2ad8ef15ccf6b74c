"""The page itself: one file with its styles, its script, plotly's, and all that it says.

Whatever came from a bundle is escaped, by jinja2 in the text and here in the data of scripts. A
policy in the head lets only the page's own scripts run and nothing be fetched, so that even what
was overlooked would stay text.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pinstorm.frames import Frames
from pinstorm.manifest_form import sound
from pinstorm.report.html import heat_map, model
from pinstorm.report.html.places import Command

if TYPE_CHECKING:
    import polars as pl

    from pinstorm.report.html.plots import Plot

# 8 MB and what a mail or a wiki still takes.
MOST_BYTES: Final = 7_900_000

# How much of the table of cases and of the cases in full there may be, until the page fits.
_LESS: Final = ((model.LINES, model.DETAILS), (2000, 120), (1000, 80), (400, 40), (100, 10))


def data(frames: "Frames[pl.LazyFrame]", command: Command) -> bytes:
    """The file. Half of a surrogate pair, which no encoding can write, is told as an escape."""
    return text(frames, command).encode(errors="backslashreplace")


def text(frames: "Frames[pl.LazyFrame]", command: Command) -> str:
    """The page of those bundles; ``command``: what runs a bundle's suite again, of its manifest."""
    from pinstorm.report.html.plots import plots

    frames = sound(frames)
    page = model.page(frames, command)
    drawn = plots(frames)
    for lines, details in _LESS:
        found = _rendered(_less(page, lines, details), drawn)
        if len(found.encode(errors="backslashreplace")) <= MOST_BYTES:
            return found
    page.notes.append(
        "the plots are left out, since the page would be too large: read their tables"
    )
    return _rendered(_less(page, *_LESS[-1]), [replace(plot, figure={}) for plot in drawn])


def _less(page: model.Page, lines: int, details: int) -> model.Page:
    """The same page with fewer cases: the worst come first."""
    kept, count = [], 0
    told = page.details[:details]
    full = {one.case for one in told}
    for case in page.cases:
        count += len(case.lines)
        if count > lines:
            break
        kept.append(replace(case, detailed=case.case in full))
    left = page.details_left + len(page.details) - len(told)
    return replace(page, cases=kept, details=told, details_left=left)


def _rendered(page: model.Page, plots: "Sequence[Plot]") -> str:
    library = _plotly() if any(plot.figure for plot in plots) else ""
    scripts = (_own("theme.js"), library, _own("page.js"))
    found: str = _template().render(
        page=page,
        map=page.map,
        plots=plots,
        legend=heat_map.LEGEND,
        here={one.id for one in page.cases} | {one.id for one in page.details},
        style=Markup(_own("page.css")),
        theme=Markup(scripts[0]),
        plotly=Markup(scripts[1]),
        script=Markup(scripts[2]),
        policy=_policy(scripts),
        json=_json,
    )
    return found


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts if script)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> Markup:
    """For a script element of type application/json: nothing in it can end the element."""
    told = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _own(name: str) -> str:
    return files("pinstorm.report.html").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js as the library's package brings it; a string in it must not end the element."""
    source = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("pinstorm.report", "html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.j2")
