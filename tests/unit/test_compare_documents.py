"""A comparison on the terminal, as Markdown, HTML and JSON; and the options of the command."""

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_runs
import pytest

from pinstorm import compare
from pinstorm.compare import gate
from pinstorm.errors import UsageError
from pinstorm.report import comparison
from pinstorm.report import comparison_documents as documents

DATA = Path(__file__).parent / "data"
OLD, NEW = DATA / "compare-6.1", DATA / "compare-7.2"
SCRIPT = Path(sys.executable).parent / "pinstorm"
# A workload of somebody's own may be called anything.
EVIL = 'evil|<script>alert(1)</script>`*_[x](y)\n& \x1b[2J"/anon/4KiB'


class Parsed(html.parser.HTMLParser):
    """The elements of a page, and the text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def evil(tmp_path: Path) -> compare.Comparison:
    """Cases with every sign that means something somewhere: all lists of the documents have one."""
    about = {**made_runs.case_record("evil", "anon", 4096), "case": EVIL}
    others = made_runs.cases(10)
    before, after = (
        made_runs.timed([about, *others], 10, seed=seed, factors={EVIL: factor})
        for seed, factor in ((1, 1.0), (2, 1.5))
    )
    changed = {**about, "case": f"{EVIL} changed", "outcome": "E|<b>", "verdict": "fail"}
    pinned = [
        {**about, "case": f"{EVIL} pinned", "pins": made_runs.pins(held=held)} for held in (1, 2)
    ]
    skipped = {**about, "case": f"{EVIL} skipped"}
    a = [*before, {**changed, "outcome": "ok", "verdict": "pass"}, pinned[0], skipped]
    b = [*after, changed, pinned[1], {**skipped, "verdict": "skip", "reason": "<i>|"}]
    a.append({**about, "case": f"{EVIL} only"})
    about_machine: list[dict[str, Any]] = [{"hostname": name} for name in ("<u>|a", "<u>|b")]
    return compare.compare(
        made_runs.write(tmp_path / "a", a, manifest=about_machine[0]),
        made_runs.write(tmp_path / "b", b, manifest=about_machine[1]),
        gates=[gate.parse(text) for text in ("verdicts", "acquire.median <= 10%", "pins")],
    )


def test_the_fixture_has_something_in_every_list(evil: compare.Comparison) -> None:
    assert evil.flips
    assert evil.unpredicted
    assert evil.pins
    assert evil.not_run
    assert evil.only["A"]
    assert evil.environment
    assert evil.timings.counts()["slower"] == 1
    assert {judged.state for judged in evil.gates} == {"broken"}


def test_html_is_escaped_and_needs_nothing_else(evil: compare.Comparison) -> None:
    page = Parsed(documents.page(evil))
    assert not {"script", "b", "i", "u", "link", "img", "iframe"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("href", "src")]
    assert "<script>alert(1)</script>" in page.words
    for ending in (" changed", " pinned", " skipped", " only"):
        assert f"{EVIL}{ending}" in page.words


def test_markdown_is_escaped(evil: compare.Comparison) -> None:
    text = documents.markdown(evil)
    assert "<script>" not in text
    assert "[x](y)" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = re.split(r"\n(?!\|)", text)
    for table in tables:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, lines
    assert len(rows) > 10


def test_the_terminal_has_100_columns(
    evil: compare.Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = compare.compare(OLD, NEW, gates=[gate.parse("outcomes")])
    comparison.show(plain)
    comparison.show(plain, wide=True)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "the rules predict: ok -> EFAULT (1) by longterm-write-file" in shown
    assert "times, emulated:" in shown
    comparison.show(evil)
    shown = capsys.readouterr().out
    assert "NO RULE PREDICTS: ok -> E|<b>" in shown
    assert "\x1b" not in shown + documents.markdown(evil)


def test_emulated_times_are_labelled_in_every_document(tmp_path: Path) -> None:
    records = [{**one, "accel": "tcg"} for one in made_runs.timed(made_runs.cases(), 8, seed=1)]
    slower = [{**one, "accel": "tcg"} for one in made_runs.timed(made_runs.cases(), 8, seed=2)]
    result = compare.compare(
        made_runs.write(tmp_path / "a", records), made_runs.write(tmp_path / "b", slower)
    )
    assert result.emulated
    assert "Times, emulated" in documents.page(result)
    assert "times, emulated" in documents.markdown(result)
    assert json.loads(documents.document(result, "json"))["emulated"] is True


def test_json_has_everything(evil: compare.Comparison) -> None:
    told = json.loads(documents.document(evil, "json"))
    assert told["schema"] == 1
    assert [one["case"] for one in told["verdicts"]] == [f"{EVIL} changed"]
    slow = next(one for one in told["timings"] if one["case"] == EVIL)
    assert slow["verdict"] == "slower"
    assert slow["low"] < slow["ratio"] < slow["high"]
    assert told["timing"]["comparisons"] == len(told["timings"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "pdf"}, "format 'pdf' is not known"),
        ({"form": "md", "as_json": True}, "--json is --format json"),
        ({"output": Path("x")}, "--output goes with"),
        ({"form": "html", "wide": True}, "--wide goes with the table"),
        ({"strict": True}, "add --gate"),
        ({"margin": "much"}, "margin 'much' is no share"),
        ({"margin": "0%"}, "margin '0%' is no share"),
        ({"gates": ("nothing",)}, "gate 'nothing'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        documents.emit(OLD, NEW, documents.Asked(**options))


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "compare", *words], capture_output=True, text=True)


def test_gates_decide_the_exit_code(tmp_path: Path) -> None:
    """0 when kept, or not told; 1 with the sentence when broken; 2 when it cannot be parsed."""
    broken = run(OLD, NEW, "--gate", "outcomes", "--format", "md", "--output", tmp_path / "x.md")
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.startswith("pinstorm: gate 'outcomes' is broken by 2 of 10 cases: ")
    assert (tmp_path / "x.md").read_text().startswith("## pinstorm compare")
    refused = run(OLD, NEW, "--gate", "acquire.median")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1


def test_gates_that_cannot_tell(capsys: pytest.CaptureFixture[str]) -> None:
    gates = ("acquire.median <= 5%", "verdicts")
    assert documents.emit(OLD, NEW, documents.Asked(gates, as_json=True)) is None
    told = json.loads(capsys.readouterr().out)
    assert [judged["state"] for judged in told["gates"]] == ["can't tell", "kept"]
    sentence = documents.emit(OLD, NEW, documents.Asked(gates, strict=True))
    assert "'acquire.median <= 5%' cannot tell, and --strict is given: too few" in str(sentence)
