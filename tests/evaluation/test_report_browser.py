"""The report's page in a real browser: it loads nothing, fits a phone, and filters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from invented_runs import needles, run_of

from pacellm_rag.evaluation.report import write_report

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="There is no Chromium; apt-get install -y --no-install-recommends chromium",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright_api.Browser]:
    with playwright_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(*run_of(needles(0.2, lengths=3)), folder)
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_offline_without_a_complaint_and_fits(
    browser: playwright_api.Browser, report: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 19, 18)") == (scheme == "dark")
    page.close()


def test_samples_can_be_filtered_and_the_count_follows(
    browser: playwright_api.Browser, report: Path
) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    rows = page.locator("table.samples tbody tr:visible")
    count = page.locator("output")
    assert rows.count() == 66
    page.get_by_label("Show").select_option("worse-1")
    worse = rows.count()
    assert 0 < worse < 66
    assert worse == page.locator("td[data-arm=pace] .score.worse").count()
    assert count.text_content() == f"{worse} of 66 shown"
    page.get_by_label("Show").select_option("")
    page.get_by_label("Find").fill("2048-50  AMBER")
    assert rows.count() == 2
    page.get_by_label("Find").fill("2048-50 <b>")
    assert rows.count() == 0
    assert count.text_content() == "0 of 66 shown"
    page.close()


def test_without_scripts_all_samples_are_there_and_no_filter_is(
    browser: playwright_api.Browser, report: Path
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("table.samples tbody tr:visible").count() == 66
    assert not page.locator("#filters").is_visible()
    context.close()
