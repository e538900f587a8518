"""The memory panel in a real browser: the real command and engine, with tiny random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_page import Visit, browser, needs_chromium, visit
from served_page import served

from pacellm_rag.pace.clustering import cluster_neurons
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.expert_map import EXPERTS_FILE
from pacellm_rag.testing import tiny_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_chromium]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
FIRST = ["An apple a day. " * 30, "A pear a week. " * 30, "A fig a month. " * 30]
SECOND = ["Pumps and seals. " * 30, "Valves and <b>bolts</b>. " * 30]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(pace=ACTING, max_position_embeddings=20_000)
    model.module.save_pretrained(folder)
    model.tokenizer.hf.save_pretrained(folder)
    cluster_neurons(model.module, 8).save(folder / EXPERTS_FILE)
    arguments = (
        "--model",
        str(folder),
        "--max-new-tokens",
        "20",
        "--port",
        "0",
        "--dtype",
        "float32",
    )
    data = tmp_path_factory.mktemp("data")
    with served(data, *arguments, program=("-m", "pacellm_rag_ui")) as address:
        yield address


@pytest.fixture
def here(chromium: Browser, url: str, tmp_path: Path) -> Iterator[Visit]:
    with visit(chromium, url) as made:
        for name, pages in (("fruit.txt", FIRST), ("metal.txt", SECOND)):
            (tmp_path / name).write_text("\f".join(pages), encoding="utf-8")
            made.add(tmp_path / name)
        yield made


def test_banks_and_experts_are_shown_page_by_page_once_somebody_asks(here: Visit) -> None:
    page = here.page
    here.ask("What is eaten?")
    here.wait_for_answers(1)
    page.get_by_role("tab", name="Memory").click()
    page.locator("#memory .strip").wait_for()
    panel = page.locator("#memory")
    assert "blend" in panel.inner_text()
    assert panel.locator(".numbers").first.locator("tbody tr").count() == 2
    assert panel.locator(".strip > span").count() == 2  # the ends of the documents
    page.click("#watch-send")
    page.locator("#memory .heat").wait_for()
    page.locator("#watch-send").wait_for()
    assert page.locator("#watch-stop").is_hidden()
    assert panel.locator(".strip:not(.thin) > span").count() == 5
    assert panel.locator(".heat-row[role=listitem]").count() == 12
    row = panel.locator(".strip.thin").first
    assert row.locator("span").count() == 5
    assert "Most active on" in (row.get_attribute("aria-label") or "")
    assert "fruit, p. 1" in (row.locator("span").first.get_attribute("title") or "")
    panel.locator(".figures summary").click()
    assert panel.locator(".figures tbody tr").count() == 5
    page.set_viewport_size({"width": 390, "height": 800})
    wide = page.evaluate(
        "[...document.querySelectorAll('#memory *')].filter("
        "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.table')).length"
    )
    assert wide == 0
    assert here.errors == []
    here.check_nothing_left_the_host()


def test_answers_with_and_without_banks_stand_side_by_side(here: Visit) -> None:
    page = here.page
    page.get_by_role("tab", name="Memory").click()
    page.fill("#compare-question textarea", "What is eaten?")
    page.press("#compare-question textarea", "Enter")
    page.locator("#compare .side").nth(1).wait_for()
    page.locator("#compare-send").wait_for()
    sides = page.locator("#compare .side")
    assert "PaceLLM on" in sides.nth(0).inner_text()
    assert "PaceLLM off" in sides.nth(1).inner_text()
    assert "Failed" not in page.locator("#compare").inner_text()
