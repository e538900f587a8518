"""The page in a real browser: what a person does with it, from the first file to the sources."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser_page import Visit, browser, needs_chromium, visit
from served_page import ROOT, served
from ui_page_files import pdf

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_chromium]

REPORT = ROOT / "examples" / "documents" / "annual-report.pdf"
CONTRACT = ROOT / "examples" / "documents" / "supplier-contract.pdf"
ANSWER = "Our fitters installed **5,300 smart meters** [D1 p5]. " + "More words follow. " * 8
PACE = ("--context", "16000", "--window-pause", "0.1", "--word-pause", "0.04")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("data")
    with served(data, "--answer", ANSWER, *PACE) as address:
        yield address


@pytest.fixture
def here(chromium: Browser, url: str) -> Iterator[Visit]:
    with visit(chromium, url) as made:
        yield made


def unread() -> dict[str, Any]:
    """A file that nobody has read yet; what one has read, the model knows for all."""
    words = [f"{uuid.uuid4()} " + "Some words of this page.\n" * 40 for _ in range(12)]
    return {"name": "new.pdf", "mimeType": "application/pdf", "buffer": pdf(words)}


@pytest.fixture
def first(chromium: Browser, tmp_path: Path) -> Iterator[Visit]:
    """The first visit to a server that has read nothing."""
    with served(tmp_path, "--answer", ANSWER, *PACE) as address, visit(chromium, address) as made:
        yield made


def test_from_two_files_to_the_marked_page_and_nothing_leaves_the_host(first: Visit) -> None:
    here, page = first, first.page
    assert "Ask whole documents" in page.locator("#history").inner_text()
    here.add(REPORT, CONTRACT)
    assert "6 pages" in page.locator("li.document").first.inner_text()
    assert "of 16,000 tokens" in page.locator(".meter").inner_text()
    here.ask("How many smart meters were installed?")
    page.wait_for_function("/page \\d+ of \\d+/.test(document.querySelector('#status').innerText)")
    page.locator("#stop").wait_for()
    page.locator(".live .prose").wait_for()
    part = page.locator(".live .prose").inner_text()
    here.wait_for_answers(1)
    whole = page.locator("#history .turn.model .prose").inner_text()
    assert len(part) < len(whole), "The answer did not come bit by bit."
    assert "[D1" not in whole
    chip = page.locator("a.cite", has_text="p. 3").first
    assert "verified" in (chip.get_attribute("class") or "")
    assert "fitters" in (chip.get_attribute("title") or "")
    chip.click()
    page.locator("#viewer-sheet[data-shown$='/5'] img").wait_for()
    assert page.locator("#viewer-note").is_hidden(), page.locator("#viewer-note").inner_text()
    assert page.locator("#viewer-of").inner_text() == "of 6 (printed: 3)"
    page.click("#viewer-next")
    page.locator("#viewer-sheet[data-shown$='/6'] img").wait_for()
    assert page.locator("#viewer-next").is_disabled()
    here.ask("And the year before?")
    here.wait_for_answers(2)
    assert "read" in here.status().lower(), "It does not say that the documents were read already."
    here.check_nothing_left_the_host()


def test_a_reload_keeps_documents_and_conversation(here: Visit) -> None:
    here.add(CONTRACT)
    here.ask("When are invoices payable?")
    here.wait_for_answers(1)
    said = here.page.locator("#history").inner_text()
    here.page.reload()
    here.wait_for_answers(1)
    assert here.page.locator("#history").inner_text() == said
    assert here.page.locator("li.document").count() == 1


def test_a_question_that_is_sent_as_the_answer_ends_is_answered_too(here: Visit) -> None:
    """Between the drawing of an answer's end and the end of its event there is a moment."""
    here.add(CONTRACT)
    here.page.evaluate(_ASK_AS_THE_ANSWER_ENDS)
    here.ask("When are invoices payable?")
    here.page.wait_for_function("window.askedAgain")
    here.wait_for_answers(2)
    asked = here.page.locator("#history .turn.you .said").all_inner_texts()
    assert asked == ["When are invoices payable?", "And by whom?"]
    streams = [request for request in here.requests if "/queue/data" in request]
    assert len(streams) == 1, "A stream that closes between two events may lose the second."


_ASK_AS_THE_ANSWER_ENDS = """() => {
  const live = document.querySelector('#live');
  let began = false;
  new MutationObserver(() => {
    if (document.querySelector('.live')) began = true;
    else if (began && !window.askedAgain) {
      window.askedAgain = true;
      const box = document.querySelector('#question textarea');
      Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value')
        .set.call(box, 'And by whom?');
      box.dispatchEvent(new Event('input', { bubbles: true }));
      for (const kind of ['keydown', 'keypress'])
        box.dispatchEvent(new KeyboardEvent(kind, { key: 'Enter', bubbles: true }));
    }
  }).observe(live, { childList: true, subtree: true });
}"""


def test_enter_during_an_answer_keeps_the_question_and_disturbs_nothing(here: Visit) -> None:
    page = here.page
    here.add(unread())
    here.ask("How many smart meters?")
    page.locator(".live").wait_for()
    here.ask("And the year before?")
    page.get_by_text("still at work on an answer").wait_for()
    assert page.locator("#question textarea").input_value() == "And the year before?"
    assert page.locator("#stop").is_visible()
    assert page.locator(".live").count() == 1
    here.wait_for_answers(1)
    assert page.locator("#question textarea").input_value() == "And the year before?"
    page.press("#question textarea", "Enter")
    here.wait_for_answers(2)


def test_enter_in_the_empty_box_changes_nothing(here: Visit) -> None:
    page = here.page
    here.add(CONTRACT)
    here.ask("When are invoices payable?")
    here.wait_for_answers(1)
    page.press("#question textarea", "Enter")
    here.ask("And by whom?")
    here.wait_for_answers(2)
    for tab, box in (("Every document", "#every-question"), ("Memory", "#compare-question")):
        page.get_by_role("tab", name=tab).click()
        panel = page.locator(box.replace("-question", "")).first
        before = panel.inner_text()
        page.press(f"{box} textarea", "Enter")
        page.wait_for_timeout(300)
        assert panel.inner_text() == before


def test_stop_ends_the_reading_and_the_next_question_is_answered(here: Visit) -> None:
    here.add(unread())
    here.ask("How many smart meters?")
    here.page.wait_for_function("document.querySelector('#status').innerText.includes('%')")
    here.page.click("#stop")
    here.wait_for_answers(1)
    assert "Stopped" in here.page.locator("#history .turn.model").inner_text()
    here.page.locator("#send").wait_for()
    here.ask("How many smart meters?")
    here.wait_for_answers(2)
    assert "5,300" in here.page.locator("#history .turn.model").nth(1).inner_text()


def test_escape_stops_the_answer_where_it_is(here: Visit) -> None:
    here.add(CONTRACT)
    here.ask("How many smart meters?")
    here.page.locator(".live .prose").wait_for()
    here.page.keyboard.press("Escape")
    here.wait_for_answers(1)
    text = here.page.locator("#history .turn.model").inner_text()
    assert "Stopped" in text
    assert text.count("More words follow") < 8


def test_two_people_side_by_side_see_their_own_things(chromium: Browser, url: str) -> None:
    with visit(chromium, url) as one, visit(chromium, url) as two:
        one.add(REPORT)
        two.add(CONTRACT)
        one.ask("A question of the first person")
        two.ask("A question of the second person")
        one.wait_for_answers(1)
        two.wait_for_answers(1)
        assert "first" in one.page.locator("#history").inner_text()
        assert "second" not in one.page.locator("#history").inner_text()
        assert one.page.locator("li.document .name").inner_text() == "annual-report.pdf"
        name = one.page.locator("li.document").get_attribute("data-id")
        reply = two.page.request.get(f"{url}/page/{name}/1.webp")
        assert reply.status == 404
        assert one.page.request.get(f"{url}/page/{name}/1.webp").status == 200


def test_a_question_can_be_edited_and_asked_again_and_a_new_chat_begun(here: Visit) -> None:
    page = here.page
    here.add(CONTRACT)
    here.ask("First words?")
    here.wait_for_answers(1)
    page.locator(".turn.you").hover()
    page.locator(".turn.you [data-kind=edit]").click()
    page.fill("dialog textarea", "Other words?")
    page.locator("dialog button[value=yes]").click()
    page.wait_for_function("document.querySelector('#history').innerText.includes('Other words?')")
    here.wait_for_answers(1)
    assert "First words?" not in page.locator("#history").inner_text()
    page.click("#new-chat")
    page.locator("#history .empty").wait_for()
    page.locator(".conversations .name").first.click()
    here.wait_for_answers(1)
    page.locator(".conversations li").first.hover()
    page.locator(".conversations [data-kind=delete]").click()
    page.locator("dialog button[value=yes]").click()
    page.locator("#history .empty").wait_for()
    assert page.locator(".conversations li").count() == 0


def test_documents_are_ticked_cut_moved_and_removed(here: Visit) -> None:
    page = here.page
    here.add(REPORT, CONTRACT)
    whole = page.locator(".meter .line span").inner_text()
    page.locator("input.tick").nth(1).uncheck()
    page.wait_for_function(
        "t => document.querySelector('.meter .line span').innerText !== t", arg=whole
    )
    assert "off" in (page.locator("li.document").nth(1).get_attribute("class") or "")
    page.locator(".menu summary").first.click()
    page.locator("li.document").first.locator("[data-kind=pages]").click()
    page.locator("dialog input").nth(1).fill("2")
    page.locator("dialog button[value=yes]").click()
    page.get_by_text("pages 1-2 of 6").wait_for()
    page.locator(".menu summary").first.click()
    page.locator("li.document").first.locator("[data-kind=down]").click()
    page.wait_for_function(
        "document.querySelector('li.document .name').innerText.startsWith('supp')"
    )
    page.locator(".menu summary").first.click()
    page.locator("li.document").first.locator("[data-kind=remove]").click()
    page.locator("dialog button[value=yes]").click()
    page.wait_for_function("document.querySelectorAll('li.document').length === 1")


def test_every_document_answers_side_by_side_and_the_table_is_saved(
    here: Visit, tmp_path: Path
) -> None:
    page = here.page
    here.add(REPORT, CONTRACT)
    page.get_by_role("tab", name="Every document").click()
    page.fill("#every-question textarea", "What is it about?")
    page.press("#every-question textarea", "Enter")
    page.get_by_role("button", name="Export as CSV").wait_for()
    assert page.locator("#every tbody tr.done").count() == 2
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export as CSV").click()
    saved.value.save_as(tmp_path / "answers.csv")
    assert (tmp_path / "answers.csv").read_text(encoding="utf-8").count(
        "Our fitters installed **5,300"
    ) == 2


def test_the_keyboard_is_enough(here: Visit) -> None:
    page = here.page
    here.add(CONTRACT)
    page.locator("#talk").click()
    page.keyboard.press("/")
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    box = page.locator("#question textarea")
    assert box.input_value() == "One\nTwo"
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    here.wait_for_answers(1)
    assert page.locator(".turn.you .said").inner_text() == "One\nTwo"
    assert box.input_value() == ""


def test_a_conversation_is_exported_with_its_sources(here: Visit, tmp_path: Path) -> None:
    here.add(REPORT)
    here.ask("How many smart meters?")
    here.wait_for_answers(1)
    with here.page.expect_download() as saved:
        here.page.click("#export")
    saved.value.save_as(tmp_path / "chat.md")
    text = (tmp_path / "chat.md").read_text(encoding="utf-8")
    assert "How many smart meters?" in text
    assert "[^1]" in text


def test_a_page_that_is_left_frees_the_model_for_the_next(chromium: Browser, url: str) -> None:
    with visit(chromium, url) as one:
        one.add(unread())
        one.ask("How many smart meters?")
        one.page.wait_for_function("document.querySelector('#status').innerText.includes('%')")
    begun = time.monotonic()
    with visit(chromium, url) as two:
        two.add(CONTRACT)
        two.ask("How many?")
        two.wait_for_answers(1)
    assert time.monotonic() - begun < 30
