"""The run's page in headless Chromium; screenshots are kept in build/page."""

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from compress.report.render import COLUMNS, run_rows
from compress.run.lookup import read_run_report

pytestmark = pytest.mark.slow

SCREENSHOTS = Path(__file__).parents[2] / "build" / "page"
SECTIONS = [
    *("stages", "tradeoff", "training", "widths", "classes", "flips", "calibration", "maps"),
    *("robustness", "details"),
]


@dataclass(frozen=True)
class Opened:
    """A page, and what it did while it opened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def opened(finished_run: Path) -> Iterator[Opened]:
    chromium = shutil.which("chromium")
    assert chromium, "this test needs Chromium; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = Opened(browser.new_page(viewport={"width": 1200, "height": 900}))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto((finished_run / "report.html").as_uri())
        yield opened
        browser.close()


def test_it_opens_in_silence_and_asks_for_nothing(opened: Opened, finished_run: Path) -> None:
    assert opened.complaints == []
    sent = [url for url in opened.requests if not url.startswith("data:")]
    assert sent == [(finished_run / "report.html").as_uri()]
    assert (finished_run / "report.html").stat().st_size < 3e6


def test_every_section_is_there_and_linked(opened: Opened) -> None:
    page = opened.page
    found = page.eval_on_selector_all("main > section", "all => all.map(one => one.id)")
    assert found == SECTIONS
    links = page.eval_on_selector_all("nav a", "all => all.map(one => one.hash)")
    assert links == [f"#{name}" for name in SECTIONS]
    for name in SECTIONS:
        assert page.locator(f"#{name} > h2").is_visible()


def test_its_numbers_are_those_of_the_report(opened: Opened, finished_run: Path) -> None:
    page, report = opened.page, read_run_report(finished_run / "report.json")
    rows = page.eval_on_selector_all(
        "#stages details tr",
        "all => all.map(row => [...row.cells].map(cell => cell.textContent))",
    )
    assert rows == [list(COLUMNS), *map(list, run_rows(report))]
    last = report.stages[-1]
    tiles = page.locator(".tile .big").all_text_contents()
    assert tiles[1:] == [f"{last.latency_ms_p50:.3f} ms", f"{last.top1:.2f} %"]
    for name in ("report.json", "insights.json"):
        link = page.locator(f"a[download='{name}']").get_attribute("href")
        assert link
        saved = json.loads(base64.b64decode(link.partition("base64,")[2]))
        assert saved == json.loads((finished_run / name).read_text(encoding="utf-8"))


def test_screen_readers_find_tables_headings_and_images(opened: Opened) -> None:
    page = opened.page
    assert page.locator("h1").count() == 1
    for name in ("Green improves", "Output channels", "Images of each class", "Top-1 on"):
        assert page.get_by_role("table", name=name).is_visible()
    unscoped = "all => all.filter(one => !one.caption || one.querySelector('th:not([scope])'))"
    assert page.eval_on_selector_all("table", f"({unscoped})") == []
    silent = "all => all.filter(one => !one.alt)"
    assert page.eval_on_selector_all("img", silent) == []
    for chart in page.get_by_role("img").all():
        assert chart.get_attribute("aria-label") or chart.get_attribute("alt")


def test_the_keyboard_reaches_links_tables_and_folded_parts(opened: Opened) -> None:
    page = opened.page
    wanted = page.eval_on_selector_all(
        "a, .scroll, summary", "all => all.filter(one => one.checkVisibility()).length"
    )
    page.locator("body").click(position={"x": 1, "y": 1})
    for _ in range(wanted):
        page.keyboard.press("Tab")
        page.evaluate("document.activeElement.dataset.reached = 1")
    assert page.locator("[data-reached]").count() == wanted
    assert page.evaluate("document.activeElement.matches('a[download]')")
    page.locator("#stages summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#stages details table").is_visible()
    page.keyboard.press("Enter")


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("desktop", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "light")],
)
def test_it_fits_the_screen(opened: Opened, name: str, width: int, scheme: str) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def test_it_prints_light_with_everything_unfolded(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("#stages details table").bounding_box()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.pdf(path=SCREENSHOTS / "print.pdf", format="A4", print_background=True)
    page.screenshot(path=SCREENSHOTS / "print.png", full_page=True)
    page.emulate_media(media="screen", color_scheme="light")
