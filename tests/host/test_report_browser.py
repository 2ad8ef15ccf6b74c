"""report.html in a real browser: it opens from disk, alone, and its cells open their cases."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinstorm import frames
from pinstorm.report.html import page

DATA = Path(__file__).parents[1] / "unit/data"
CHROMIUM = "/usr/bin/chromium"

VIEWS = [(width, theme) for width in (1280, 400) for theme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("chromium is not installed: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        # Root's chromium has no sandbox to run in.
        chromium = playwright.chromium
        started = chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three kernels' bundles and a load's, in a directory with a name that has to be quoted."""
    place = tmp_path_factory.mktemp("a report #1 ")
    shutil.copytree(DATA / "matrix-three-kernels", place / "lab")
    tables = frames.scan(place / "lab")
    path = place / "report.html"
    path.write_bytes(page.data(tables, lambda manifest: "pinstorm lab run matrix"))
    return path


class Opened:
    """The page in a window of its own, and everything that went wrong in it."""

    def __init__(self, browser: Any, path: Path, **options: Any):
        self.context = browser.new_context(**options)
        self.wrong: list[str] = []
        # A page that is alone asks for nothing, so there is nothing to be offline for.
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error {error}"))
        self.page.on("request", self._request)
        self.url = path.as_uri()
        self.page.goto(self.url)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.wrong.append(f"request {request.url}")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.context.close()
        assert kind is not None or self.wrong == []

    def sideways(self) -> int:
        """By how many pixels the page itself, not a box in it, could be scrolled."""
        told: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return told

    def walk(self) -> None:
        """To the end, so that every figure is drawn."""
        self.page.evaluate("document.querySelectorAll('.figure').forEach(f => f.scrollIntoView())")
        for figure in self.page.query_selector_all(".figure"):
            figure.scroll_into_view_if_needed()
            figure.wait_for_selector(".main-svg")


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_page_is_quiet_and_fits(
    browser: Any, report: Path, tmp_path: Path, width: int, theme: str
) -> None:
    size = {"width": width, "height": 800}
    with Opened(browser, report, viewport=size, color_scheme=theme) as opened:
        opened.walk()
        assert opened.sideways() == 0
        opened.page.click("#theme")
        changed = opened.page.evaluate("document.documentElement.dataset.theme")
        assert changed == {"light": "dark", "dark": "light"}[theme]
        ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = int(re.findall(r"\d+", ground)[0]) > 127
        assert light == (changed == "light")
        assert opened.page.screenshot(path=tmp_path / "page.png", full_page=True)


@pytest.mark.parametrize("width", [1280, 400])
def test_cell_opens_its_case_by_click(browser: Any, report: Path, width: int) -> None:
    with Opened(browser, report, viewport={"width": width, "height": 800}) as opened:
        opened.page.click('#map a[data-cell="io-uring-register/ext4-shared"]')
        panel = opened.page.locator("#panel")
        assert panel.is_visible()
        told = panel.inner_text()
        assert "io-uring-register/ext4-shared/64KiB" in told
        assert "EOPNOTSUPP" in told
        assert "longterm-on-file" in told
        assert "pinstorm lab run matrix --only io-uring-register/ext4-shared/64KiB" in told
        assert opened.page.url.endswith("#case-io-uring-register/ext4-shared/64KiB")
        assert opened.sideways() == 0
        opened.page.click("#close")
        assert not panel.is_visible()


def test_cell_opens_its_cases_by_keyboard(browser: Any, report: Path) -> None:
    with Opened(browser, report) as opened:
        window = opened.page
        window.focus("#map a[data-cell]")
        cell = "document.activeElement.dataset.cell"
        first = window.evaluate(cell)
        window.keyboard.press("ArrowRight")
        window.keyboard.press("ArrowDown")
        second = window.evaluate(cell)
        assert first.split("/")[0] != second.split("/")[0]
        assert first.split("/")[1] != second.split("/")[1]
        window.keyboard.press("Enter")
        panel = window.locator("#panel")
        assert panel.is_visible()
        assert window.locator("#panel h3").first.inner_text().startswith(second)
        window.keyboard.press("Escape")
        assert not panel.is_visible()
        assert window.evaluate(cell) == second
        # One stop of Tab for the whole matrix.
        window.keyboard.press("Tab")
        assert window.evaluate(cell) is None


def test_case_that_passed_alike_has_figures_rule_and_command(browser: Any, report: Path) -> None:
    with Opened(browser, report) as opened:
        opened.page.click('#map a[data-cell="rdma-register/memfd"]')
        told = opened.page.locator("#panel").inner_text()
        for words in ("6.12", "VmPin KiB", "64", "rule longterm", "pin_user_pages.rst"):
            assert words in told
        assert "pinstorm lab run matrix --only rdma-register/memfd/rw/64KiB" in told


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_entry_of_a_plot_is_chosen_by_keyboard(browser: Any, report: Path, theme: str) -> None:
    with Opened(browser, report, color_scheme=theme) as opened:
        window = opened.page
        plot = window.locator("#acquire-by-memory")
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        assert plot.locator(".updatemenu-container").count() == 0
        assert plot.get_by_role("combobox", name="show Acquire latency by memory").count() == 1
        data = "document.querySelector('#acquire-by-memory .figure').data[0].text"
        first, high = window.evaluate(data), plot.locator(".figure").bounding_box()["height"]
        heights = set()
        # From the link before the plots: whatever the plots have is a stop of Tab.
        select = plot.locator("select")
        select.focus()
        for _ in range(select.locator("option").count() - 1):
            window.keyboard.press("ArrowDown")
            chosen = select.evaluate("one => one.selectedOptions[0].text")
            window.wait_for_function(
                """() => { const one = document.querySelector('#acquire-by-memory .figure');
                  return one.getBoundingClientRect().height === one.layout.height; }"""
            )
            heights.add(plot.locator(".figure").bounding_box()["height"])
        assert chosen
        assert window.evaluate(data) != first
        assert len(heights | {high}) > 1
        ink = "getComputedStyle(document.querySelector('#acquire-by-memory .xtick text')).fill"
        light = int(re.findall(r"\d+", window.evaluate(ink))[0]) > 127
        assert light == (theme == "dark")


def test_deep_link_opens_the_case(browser: Any, report: Path) -> None:
    id = "case-rdma-register/ext4-shared/rw/64KiB"
    with Opened(browser, report) as opened:
        assert opened.page.evaluate(f"document.getElementById('{id}').open") is False
        opened.page.goto(f"{opened.url}#{id}")
        assert opened.page.evaluate(f"document.getElementById('{id}').open") is True


def test_table_is_filtered(browser: Any, report: Path) -> None:
    with Opened(browser, report) as opened:
        every = opened.page.locator("#rows > tbody").count()
        opened.page.fill("#filter", "rdma-register ext4 efault")
        left = opened.page.locator("#rows > tbody:visible")
        assert 0 < left.count() < every
        assert all("EFAULT" in text for text in left.all_inner_texts())
        assert opened.page.inner_text("#filtered") == f"{left.count()} of {every} cases"
        opened.page.fill("#filter", "")
        opened.page.select_option("#filter-verdict", "fail")
        assert opened.page.locator("#rows > tbody:visible").count() == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_without_javascript_all_is_there(browser: Any, report: Path, width: int) -> None:
    size = {"width": width, "height": 800}
    with Opened(browser, report, viewport=size, java_script_enabled=False) as opened:
        window = opened.page
        assert window.locator("#map a[data-cell]").count() > 50
        assert window.locator("#rows > tbody:visible").count() > 100
        assert window.locator(".scripted:visible").count() == 0
        numbers = window.locator(".plot .numbers-of")
        assert numbers.count() == window.locator(".plot").count() > 0
        numbers.first.locator("summary").click()
        assert numbers.first.locator("table").is_visible()
        case = window.locator("details.case").first
        case.locator("summary").click()
        assert case.locator(".body").is_visible()


def test_page_prints(browser: Any, report: Path) -> None:
    with Opened(browser, report, color_scheme="dark") as opened:
        printed = opened.page.pdf(prefer_css_page_size=True)
        assert printed.startswith(b"%PDF-")
        pages = printed.count(b"/Type /Page\n")
        assert 3 <= pages <= 60
        opened.page.emulate_media(media="print")
        assert opened.page.locator(".bar").is_hidden()
        ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"


def test_text_in_every_tone_can_be_read(browser: Any, report: Path) -> None:
    """WCAG 2, AA: 4.5 to 1, of what the browser computes."""
    ratio = """name => {
      const box = document.createElement('span'); box.className = name;
      document.body.append(box);
      const told = getComputedStyle(box), body = getComputedStyle(document.body);
      const ground = told.backgroundColor === 'rgba(0, 0, 0, 0)' ? body.backgroundColor
        : told.backgroundColor;
      const light = colour => colour.match(/\\d+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
      const [a, b] = [light(told.color), light(ground)].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }"""
    tones = ("ok", "refused", "mixed", "fail", "crash", "timeout", "lost", "skip")
    names = [f"t-{tone}" for tone in tones] + ["hint", "good", "bad", "doubt"]
    for theme in ("light", "dark"):
        with Opened(browser, report, color_scheme=theme) as opened:
            low = {name: opened.page.evaluate(ratio, name) for name in names}
            assert {name: value for name, value in low.items() if value < 4.5} == {}
