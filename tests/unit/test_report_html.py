"""report.html as a reader of its HTML finds it: of real bundles, and of made, hostile ones."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars
import pytest
from made_bundles import record

from pinstorm import bundle, frames
from pinstorm.errors import ExitCode
from pinstorm.report import overview
from pinstorm.report.html import page
from pinstorm.report.html.words import SIGNS

DATA = Path(__file__).parent / "data"
QUICK = DATA / "bundle-schema-1"
THREE = DATA / "matrix-three-kernels"

EVIL = '</script><img src="http://example.invalid/x" onerror="alert(1)">{{7*7}}'
VOID = {"meta", "input", "br", "img", "link"}


@dataclass
class Element:
    tag: str
    given: dict[str, str]
    parent: "Element | None" = None
    inner: "list[Element | str]" = field(default_factory=list)

    def every(self, tag: str, **given: str) -> "Iterator[Element]":
        """Those inside with the tag (any: empty) and these attributes, in their order."""
        for one in self.inner:
            if isinstance(one, Element):
                if tag in ("", one.tag) and given.items() <= one.given.items():
                    yield one
                yield from one.every(tag, **given)

    def one(self, tag: str, **given: str) -> "Element":
        (found,) = self.every(tag, **given)
        return found

    @property
    def text(self) -> str:
        parts = [one if isinstance(one, str) else one.text for one in self.inner]
        return re.sub(r"\s+", " ", "".join(parts))

    @property
    def raw(self) -> str:
        return "".join(one for one in self.inner if isinstance(one, str))


class Reader(html.parser.HTMLParser):
    """The elements of a page; what a browser would not nest so is an error."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.inner.append(made)
        if tag not in VOID:
            self.at = made

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.inner.append(data)


def command(manifest: Mapping[str, Any]) -> str:
    return f"pinstorm run {(manifest.get('suite') or {}).get('name')}"


def read(text: str) -> Element:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.at is reader.root
    return reader.root


def made(path: Path, *records: dict[str, Any], **manifest: Any) -> Path:
    """A bundle on disk of these records."""
    path.mkdir(parents=True)
    kernel = records[0]["kernel"] if records else "7.2.11"
    given = {"kernel": {"release": kernel}, "accel": "host", "suite": {"name": "few"}, **manifest}
    bundle.write_manifest(path, given)
    lines = [{"seq": n, "memory": "anon", "accel": "host"} | r for n, r in enumerate(records)]
    (path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bundle.finish(path)
    return path


def of(*paths: Path) -> Element:
    return read(page.text(frames.scan(list(paths)), command))


@pytest.fixture(scope="module")
def quick() -> Element:
    return of(QUICK)


@pytest.fixture(scope="module")
def three() -> Element:
    return of(THREE)


def cells(root: Element) -> dict[str, Element]:
    return {one.given["data-cell"]: one for one in root.one("table", id="map").every("a")}


def rows(root: Element) -> dict[str, list[list[str]]]:
    """Of the table of cases: the cells of each line, by case."""
    found = {}
    for body in root.one("table", id="rows").every("tbody"):
        lines = [[cell.text.strip() for cell in row.every("td")] for row in body.every("tr")]
        found[body.given["data-case"]] = lines
    return found


@pytest.mark.parametrize("name", ["quick", "three"])
def test_page_is_whole(name: str, request: pytest.FixtureRequest) -> None:
    root: Element = request.getfixturevalue(name)
    assert root.one("html").given["lang"] == "en"
    ids = [one.given["id"] for one in root.every("") if "id" in one.given]
    assert len(ids) == len(set(ids))
    wanted = {one.given["href"] for one in root.every("a")}
    assert {target for target in wanted if not target.startswith("#")} == set()
    assert {target[1:] for target in wanted} <= set(ids)
    levels = [int(one.tag[1]) for one in root.every("") if re.fullmatch(r"h[1-6]", one.tag)]
    headings = levels[:-1]  # the panel's, which is a dialog of its own
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    for one in root.every(""):
        assert one.tag not in ("img", "link", "iframe", "object", "embed")
        assert "src" not in one.given
        assert not [attribute for attribute in one.given if attribute.startswith("on")]


def test_only_the_page_s_own_scripts_may_run(quick: Element) -> None:
    policy = next(one for one in quick.every("meta") if "http-equiv" in one.given)
    scripts = [one.raw for one in quick.every("script") if "type" not in one.given]
    digests = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    said = set(re.findall(r"'sha256-([^']+)'", policy.given["content"]))
    assert said == digests
    assert policy.given["content"].startswith("default-src 'none'; ")
    assert sum("plotly.js v" in script[:200] for script in scripts) == 1


def test_every_cell_of_a_bundle_is_in_the_matrix(quick: Element) -> None:
    cases = polars.read_parquet(QUICK / "cases.parquet")
    pairs = cases.select("workload", "memory").unique().rows()
    assert set(cells(quick)) == {"/".join(pair) for pair in pairs}
    outcomes = cases.filter(workload="rdma-register", memory="dax-shared")["outcome"].unique()
    (outcome,) = outcomes
    assert cells(quick)["rdma-register/dax-shared"].text.strip().startswith(outcome)


def test_table_has_the_figures_of_the_records(quick: Element) -> None:
    cases = polars.read_parquet(QUICK / "cases.parquet")
    found = rows(quick)
    assert set(found) == set(cases["case"])
    one = cases.filter(case="rdma-register/anon/rw/16MiB").row(0, named=True)
    (line,) = found["rdma-register/anon/rw/16MiB"]
    assert line[1:6] == ["ok", "4096", "4096", "0", str(one["vmpin_held_bytes"] // 1024)]
    assert line[8] == f"{one['acquire_median_ns'] / 1000:.0f}"


def test_emulated_times_are_labelled(quick: Element) -> None:
    heads = [one.text for one in quick.one("table", id="rows").every("th", scope="col")]
    assert [head for head in heads if "µs" in head] == [
        "first acquire µs, emulated",
        "acquire median µs, emulated",
    ]


def test_kernels_that_differ_are_marked_and_told(three: Element) -> None:
    cell = cells(three)["rdma-register/ext4-shared"]
    assert "≠" in cell.text
    assert "6.1: 2 pass, ok" in cell.given["aria-label"]
    assert "the kernels differ" in cell.given["aria-label"]
    assert "≠" not in cells(three)["rdma-register/anon"].text
    detail = three.one("details", id="case-rdma-register/ext4-shared/rw/64KiB")
    assert "6.1 ok · 6.12 EFAULT · 7.2 EFAULT" in detail.one("summary").text
    assert "disallow FOLL_LONGTERM GUP-nonfast writing" in detail.text
    assert "longterm-on-file" in detail.text
    assert "pinstorm run matrix --only rdma-register/ext4-shared/rw/64KiB" in detail.text


def test_a_kernel_that_skipped_is_no_difference(three: Element) -> None:
    cell = cells(three)["udmabuf/memfd"]
    assert "≠" not in cell.text
    assert cell.text.split() == ["ok", "6.1", SIGNS["skip"]]


def test_differing_cases_are_those_of_the_records(three: Element) -> None:
    cases = frames.load(THREE).cases.filter(polars.col("verdict") != "skip")
    outcomes = cases.group_by("case").agg(polars.col("outcome").n_unique())
    differ = set(outcomes.filter(polars.col("outcome") > 1)["case"])
    marked = {
        body.given["data-case"]
        for body in three.one("table", id="rows").every("tbody")
        if "≠" in body.text
    }
    assert marked == differ != set()


def test_nothing_from_a_bundle_is_markup(tmp_path: Path) -> None:
    evil = record(
        "fail",
        case=f"dio-read/anon/{EVIL}",
        workload=f"dio{EVIL}",
        memory=f"anon{EVIL}",
        kernel=f"7.2{EVIL}",
        device=EVIL,
        reason=EVIL,
        outcome=EVIL,
        detail=f"{EVIL}\n{EVIL}",
        kmsg=[f"BUG: {EVIL}"],
        cause=EVIL,
        remedy=EVIL,
        expected={"rule": EVIL, "source": EVIL, "outcomes": [EVIL], "broken": [EVIL]},
        explanation={"confidence": EVIL, "evidence": [EVIL], "command": EVIL},
        retries=[{"command": EVIL, "outcome": EVIL}],
    )
    skipped = record("skip", 1, skip=[{"code": EVIL, "detail": EVIL, "remedy": EVIL}])
    path = made(
        tmp_path / f"{EVIL}".replace("/", ""),
        evil,
        skipped,
        device=EVIL,
        only=EVIL,
        suite={"name": EVIL, "text": f"# {EVIL}", "sha256": EVIL, "seed": EVIL},
        hostname=EVIL,
        rdma=[{"name": EVIL, "driver": EVIL}],
    )
    root = of(path)
    assert list(root.every("img")) == []
    policy = next(one for one in root.every("meta") if "http-equiv" in one.given)
    for script in root.every("script"):
        if "type" in script.given:
            json.loads(script.raw)
        else:
            digest = base64.b64encode(hashlib.sha256(script.raw.encode()).digest()).decode()
            assert digest in policy.given["content"]
    assert root.text.count("{{7*7}}") > 15
    assert "49" not in root.one("title").text


def test_what_needs_attention_comes_in_its_order(tmp_path: Path) -> None:
    unknown = {"exact": False, "bound": 9, "noise": 8, "attributed": {"method": {"held": "x"}}}
    unknown["attributed"] = {"method": {"acquired": "unattributable", "held": "unattributable"}}
    path = made(
        tmp_path / "one",
        record("pass"),
        record("pass", 1, reason="noisy-window", pins=unknown),
        record("timeout", 2, reason="deadline", outcome=None),
        record("fail", 3, reason="held", pins={"leaked": 3, "held": 3}),
    )
    told = [one.text.strip() for one in of(path).one("section", id="attention").every("li")]
    heads = [" ".join(one.split()[:5]) for one in told]
    assert heads == [
        f"{SIGNS['fail']} 1 case: fail dio-read/anon/4KiB",
        f"{SIGNS['timeout']} 1 case: timeout dio-read/anon/3KiB",
        f"{SIGNS['fail']} 1 case left pins",
        "~ whose the pins of",
        "~ pin figures of 1",
        "* 1 case: pass, but",
    ]


def test_what_others_moved_is_no_leak(tmp_path: Path) -> None:
    """As far as the counters and others' pins may be off: the judge's own tolerance."""
    near = {"leaked": 3, "orphaned": 2, "exact": False, "bound": 1, "noise": 1, "recent": 0}
    path = made(tmp_path / "near", record("pass", pins=near))
    assert "left pins" not in of(path).one("section", id="attention").text
    path = made(tmp_path / "far", record("fail", reason="held", pins={**near, "leaked": 4}))
    assert "1 case left pins" in of(path).one("section", id="attention").text


def test_errors_of_pin_figures_are_those_of_their_counters(tmp_path: Path) -> None:
    """Held and leaked are two counters' difference: twice the bound of one."""
    figures = {"exact": False, "bound": 4, "noise": 0, "recent": 0, "held": 16, "leaked": 0}
    path = made(tmp_path / "one", record("pass", pins={**figures, "acquire": {"acquired": 16}}))
    (line,) = rows(of(path))["dio-read/anon/1KiB"]
    assert line[2:5] == ["16 ±4", "16 ±8", "0 ±8"]


def test_figures_of_several_machines_are_told(tmp_path: Path) -> None:
    def on(host: str) -> Path:
        return made(tmp_path / host, record("pass"), hostname=host)

    one, other = on("alpha"), on("beta")
    assert "machines" not in of(one).one("main").text
    told = of(one, other).one("main").text
    assert "7.2.11 was run on 2 machines (alpha, beta): its figures are of all of them" in told


def test_all_is_well_is_said(tmp_path: Path) -> None:
    root = of(made(tmp_path / "one", record("pass"), record("pass", 1)))
    assert "Nothing: no case failed" in root.one("section", id="attention").text
    assert list(root.every("section", id="look")) == []


def test_rounds_of_a_case_share_a_line(tmp_path: Path) -> None:
    path = made(
        tmp_path / "one",
        *[
            record(
                "pass",
                case="dio-read/anon/1KiB",
                seq=n,
                round=n,
                pins={"held": held, "exact": True},
            )
            for n, held in enumerate((16, 16, 18))
        ],
        record(
            "fail", case="dio-read/anon/1KiB", seq=3, round=3, outcome="ENOMEM", reason="outcome"
        ),
    )
    (line,) = rows(of(path))["dio-read/anon/1KiB"]
    assert line[:5] == [f"{SIGNS['fail']} 1 fail, 3 pass", "ENOMEM ok", "4", "-", "16\N{EN DASH}18"]


def test_missing_figures_are_never_zero(tmp_path: Path) -> None:
    path = made(tmp_path / "one", record("pass", pins={"held": 0}))
    (line,) = rows(of(path))["dio-read/anon/1KiB"]
    assert line[2:] == ["-", "0", "-", "-", "-", "-", "-", "", ""]


def test_emulated_and_real_times_stand_apart(tmp_path: Path) -> None:
    def timed(accel: str) -> dict[str, Any]:
        return record("pass", accel=accel, timing_ns={"first": 5000, "acquire": [7000]})

    one = made(tmp_path / "one", timed("host"))
    two = made(tmp_path / "two", timed("tcg"), accel="tcg")
    real, emulated = rows(of(one, two))["dio-read/anon/1KiB"]
    assert (real[0], real[8:10]) == ("7.2 host", ["5.00", "7.00"])
    assert (emulated[0], emulated[8:10]) == ("7.2 tcg", ["5.00 emulated", "7.00 emulated"])


def test_the_worst_stay_when_there_are_too_many(tmp_path: Path) -> None:
    many = [
        record("fail" if n % 50 == 0 else "pass", n, reason="r" if n % 50 == 0 else None)
        for n in range(6000)
    ]
    text = page.text(frames.scan(made(tmp_path / "one", *many)), command)
    assert len(text.encode()) < 8_000_000
    root = read(text)
    shown = rows(root)
    assert 1000 <= len(shown) < 6000
    assert sum("fail" in lines[0][0] for lines in shown.values()) == 120
    assert f"The worst {len(shown)} of 6000 cases" in root.one("section", id="cases").text
    assert "120 of 6,000 cases did not pass" in root.one("main").text


def test_report_of_several_with_what_cannot_be_read(tmp_path: Path) -> None:
    good = made(tmp_path / "good", record("pass"))
    newer = made(tmp_path / "newer", record("pass"))
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    found = overview.read([good, newer, tmp_path / "nowhere"])
    assert found.exit_code == ExitCode.LOST
    assert [one.path.name for one in found.shown] == ["good"]
    assert len(found.notes) == 2
    assert "schema 99" in " ".join(found.notes)
    assert "schema 99" in read(page.text(found.frames, command)).one("main").text


def test_bundle_of_a_run_without_cases_yet(tmp_path: Path) -> None:
    root = of(made(tmp_path / "empty"))
    assert "No case has ended." in root.one("main").text
    assert "pinstorm run few" in root.one("section", id="again").text


@pytest.mark.parametrize("broken", [[], "text", 7, {"release": ["no", "text"]}])
def test_record_that_somebody_edited(tmp_path: Path, broken: Any) -> None:
    """With a rule and no outcomes, say: what is there is shown."""
    names = ("retries", "skip", "gup_calls", "explanation", "load", "jobs", "disturbed", "outcomes")
    odd = {"expected": {"rule": "longterm"}, "placement": {"folio_orders": broken}}
    about = {"workload": "load", "pins": {"attributed": {"method": broken}}}
    path = made(
        tmp_path / "one",
        record("fail", reason="held", **odd, **dict.fromkeys(names, broken)),
        record("pass", 1, **about, **dict.fromkeys(names, broken)),
        record("skip", 2, skip=broken),
    )
    assert "1 of 3 cases did not pass" in of(path).one("main").text


@pytest.mark.parametrize("broken", [[], "text", 7, {"release": ["no", "text"]}])
def test_manifest_that_somebody_edited(tmp_path: Path, broken: Any) -> None:
    names = ("kernel", "cpu", "memory", "numa", "limits", "boots", "rdma", "clock", "packages")
    names += ("page_bytes", "accel", "hostname", "device", "trace", "selftest", "lab", "identity")
    path = made(tmp_path / "one", record("pass"), **dict.fromkeys(names, broken), only=broken)
    assert "All that ran passed." in of(path).one("main").text


def pinstorm(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "pinstorm", *map(str, arguments)]
    return subprocess.run(program, cwd=cwd, capture_output=True, text=True, check=False)


def test_command_writes_the_page_where_it_was_asked(tmp_path: Path) -> None:
    shutil.copytree(THREE, tmp_path / "lab")
    done = pinstorm("report", "lab", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Traceback")) == (3, 0), done.stderr
    assert done.stdout.splitlines()[-1] == "report: lab/report.html"
    root = read((tmp_path / "lab/report.html").read_text())
    assert root.one("h1").text == "matrix on 3 kernels"


def test_page_that_cannot_be_written_loses_no_table(tmp_path: Path) -> None:
    shutil.copytree(QUICK, tmp_path / "quick")
    (tmp_path / "quick/report.html").mkdir()
    done = pinstorm("report", "quick", cwd=tmp_path)
    assert done.returncode == ExitCode.WRITE
    assert "97 cases: 97 pass" in done.stdout
    (sentence,) = done.stderr.splitlines()
    assert "quick/report.html" in sentence
    assert "--output" in sentence


def test_other_forms_write_no_page(tmp_path: Path) -> None:
    shutil.copytree(QUICK, tmp_path / "quick")
    for options in (("--json",), ("--format", "ktap"), ("--format", "html")):
        done = pinstorm("report", "quick", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "quick/report.html").exists()
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.rstrip().endswith("</html>")


def test_help_loads_nothing_of_the_page() -> None:
    program = (
        "import sys; from pinstorm.cli import app\n"
        "app(['report', '--help'], standalone_mode=False)\n"
        "print(sorted({'polars', 'jinja2', 'plotly', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
