"""The page in a real browser: summaries, models, passwords, the shown source, focus, contrast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser_page import Visit, browser, needs_chromium, visit
from served_page import ROOT, served
from ui_page_files import pdf

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_chromium]

REPORT = ROOT / "examples" / "documents" / "annual-report.pdf"
CONTRACT = ROOT / "examples" / "documents" / "supplier-contract.pdf"
ANSWER = "Our fitters installed 5,300 smart meters [D1 p5].\nHow many were planned?\nWho paid?"
OTHER = "The other model speaks [D1 p2]."
PASSWORD = "open, sesame 100%"
PACE = ("--context", "16000", "--window-pause", "0.05", "--word-pause", "0.02")
FOCUSED = "document.activeElement.matches('#question textarea')"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    second = ("--second-answer", OTHER, "--load-pause", "1.5")
    with served(tmp_path_factory.mktemp("data"), "--answer", ANSWER, *PACE, *second) as address:
        yield address


@pytest.fixture
def here(chromium: Browser, url: str) -> Iterator[Visit]:
    with visit(chromium, url) as made:
        yield made


def choose_model(here: Visit, name: str) -> None:
    if not here.page.locator("#model").is_visible():
        here.page.locator("#settings button.label-wrap").click()
    here.page.locator("#model input").click()
    here.page.get_by_role("option", name=name).click()


# asked for by one click, and never unasked


def test_a_summary_comes_by_one_click_with_its_sources_and_is_no_part_of_the_chat(
    here: Visit,
) -> None:
    page = here.page
    here.add(REPORT)
    page.wait_for_timeout(500)
    assert page.locator(".card").count() == 0, "Nobody has asked for anything yet."
    page.locator(".menu summary").click()
    page.locator("li.document [data-kind=summary]").click()
    card = page.locator("#aside .card")
    card.locator("a.cite").first.wait_for()
    assert "Summary of annual-report.pdf" in card.inner_text()
    assert "5,300 smart meters" in card.inner_text()
    assert page.locator(".turn").count() == 0
    card.locator("a.cite", has_text="p. 3").first.click()
    page.locator("#viewer-sheet[data-shown$='/5'] img").wait_for()
    card.get_by_label("Close").click()
    card.wait_for(state="detached")


def test_suggested_questions_come_by_one_click_and_a_second_puts_one_into_the_box(
    here: Visit,
) -> None:
    page = here.page
    here.add(REPORT)
    page.get_by_role("button", name="Suggest questions").first.click()
    suggested = page.locator(".suggestion")
    suggested.first.wait_for()
    assert suggested.all_inner_texts() == ["How many were planned?", "Who paid?"]
    suggested.nth(1).click()
    assert page.locator("#question textarea").input_value() == "Who paid?"
    assert page.evaluate(FOCUSED)
    assert page.locator(".turn").count() == 0, "It is for the person to send it."
    page.keyboard.press("Enter")
    here.wait_for_answers(1)


def test_stop_ends_a_summary(here: Visit) -> None:
    page = here.page
    text = [f"{n} " + "Some words of this page.\n" * 40 for n in range(20)]
    here.add({"name": "long.pdf", "mimeType": "application/pdf", "buffer": pdf(text)})
    page.locator(".menu summary").click()
    page.locator("li.document [data-kind=summary]").click()
    page.locator("#stop").wait_for()
    page.keyboard.press("Escape")
    page.locator("#send").wait_for()
    assert "Stopped" in page.locator("#aside").inner_text()


# models


def test_a_model_is_chosen_for_the_next_question_and_answers_say_who_wrote_them(
    chromium: Browser, url: str, here: Visit
) -> None:
    page = here.page
    here.add(CONTRACT)
    here.ask("When?")
    here.wait_for_answers(1)
    assert "of 16,000 tokens" in page.locator(".meter").inner_text()
    choose_model(here, "other")
    page.get_by_text("other is being loaded").wait_for()
    page.locator(".meter .line", has_text="of 8,000 tokens").wait_for()
    assert page.locator("#model-note").inner_text().startswith("In memory: ")
    assert page.locator("#top .model").inner_text() == "other"
    here.ask("And who?")
    here.wait_for_answers(2)
    answers = page.locator("#history .turn.model").all_inner_texts()
    assert "Answered by scripted" in answers[0]
    assert "Answered by other" in answers[1]
    assert "The other model speaks" in answers[1]
    with visit(chromium, url) as another:
        assert another.page.locator("#top .model").inner_text() == "scripted"


def test_a_question_asked_while_its_model_is_loaded_waits_for_it(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = ("--second-answer", OTHER, "--load-pause", "3")
    with (
        served(tmp_path_factory.mktemp("data"), "--answer", ANSWER, *second) as url,
        visit(chromium, url) as here,
    ):
        here.add(CONTRACT)
        choose_model(here, "other")
        here.page.get_by_text("other is being loaded").wait_for()
        here.ask("Who?")
        here.page.get_by_text("Loading the model").wait_for()
        here.wait_for_answers(1)
        assert "The other model speaks" in here.page.locator("#history").inner_text()


def test_where_there_is_one_model_there_is_nothing_to_choose(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        served(tmp_path_factory.mktemp("data"), "--answer", ANSWER) as url,
        visit(chromium, url) as here,
    ):
        here.add(CONTRACT)
        here.page.locator("#settings button.label-wrap").click()
        here.page.get_by_text("Model: scripted").wait_for()
        assert not here.page.locator("#model").is_visible()
        here.ask("Who?")
        here.wait_for_answers(1)
        assert "Answered by" not in here.page.locator("#history").inner_text()


# files behind a password


def test_a_locked_file_is_opened_by_its_password_and_its_pages_ask_again(here: Visit) -> None:
    page = here.page
    files = [
        {
            "name": name,
            "mimeType": "application/pdf",
            "buffer": pdf([f"The {name} vault."], password=PASSWORD),
        }
        for name in ("one.pdf", "two.pdf")
    ]
    page.set_input_files("#file-input", files)  # type: ignore[arg-type]
    rows = page.locator("#sending .locked")
    rows.nth(1).wait_for()
    assert "protected by a password" in rows.first.inner_text()
    rows.filter(has_text="two.pdf").get_by_label("Password").fill("a guess for later")
    first = rows.filter(has_text="one.pdf")
    first.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    rows.filter(has_text="does not open it").wait_for()
    first = rows.filter(has_text="one.pdf")
    first.get_by_label("Password").fill(PASSWORD)
    first.get_by_role("button", name="Open").click()
    page.locator("li.document .name").wait_for()
    assert rows.count() == 1
    kept = rows.get_by_label("Password").input_value()
    assert kept == "a guess for later", "What is being written elsewhere is lost."
    rows.get_by_label("Dismiss").click()
    assert rows.count() == 0
    page.locator("li.document .name").click()
    page.locator("#viewer-sheet .page-text", has_text="The one.pdf vault.").wait_for()
    for word, shown in (("wrong", ".page-text"), (PASSWORD, "img")):
        page.get_by_role("button", name="Show the page").click()
        page.locator("dialog input[type=password]").fill(word)
        page.locator("dialog button[value=yes]").click()
        page.locator("dialog").wait_for(state="detached")
        if shown == ".page-text":
            page.get_by_text("This password does not open the file.").wait_for()
        page.locator(f"#viewer-sheet {shown}").wait_for()
    assert page.locator("#viewer-note").is_hidden()
    assert not [address for address in here.requests if "sesame" in address]
    here.check_nothing_left_the_host()


# the shown source, the focus, the end of the chat


def test_the_source_that_is_shown_stays_marked_when_the_chat_is_drawn_anew(here: Visit) -> None:
    page = here.page
    here.add(REPORT)
    here.ask("How many?")
    here.wait_for_answers(1)
    here.ask("How many again?")
    here.wait_for_answers(2)
    chips = page.locator("#history .turn.model").nth(1).locator("a.cite")
    chips.first.click()
    page.locator("#viewer-sheet img").wait_for()
    here.ask("And once more?")
    here.wait_for_answers(3)
    current = page.locator("a.cite.current")
    assert current.count() == 1
    turn = current.locator("xpath=ancestor::article").get_attribute("data-turn")
    answers = page.locator("#history .turn.model")
    assert turn == answers.nth(1).get_attribute("data-turn")
    page.click("#viewer-close")
    assert current.count() == 0


@pytest.mark.parametrize("how", ["Enter", "click"])
def test_the_focus_stays_in_the_box_after_sending_and_after_stopping(here: Visit, how: str) -> None:
    page = here.page
    text = [f"{how}{n} " + "Some words of this page.\n" * 40 for n in range(20)]
    here.add({"name": "long.pdf", "mimeType": "application/pdf", "buffer": pdf(text)})
    page.fill("#question textarea", "How many?")
    if how == "Enter":
        page.press("#question textarea", "Enter")
    else:
        page.click("#send")
    page.locator("#stop").wait_for()
    assert page.evaluate(FOCUSED)
    page.click("#stop")
    here.wait_for_answers(1)
    page.locator("#send").wait_for()
    assert page.evaluate(FOCUSED)


def test_who_has_scrolled_up_sees_the_question_that_they_ask(here: Visit) -> None:
    page = here.page
    here.add(CONTRACT)
    for number in range(1, 5):
        here.ask(f"Question {number}\n" + "and a line\n" * 9)
        here.wait_for_answers(number)
    page.evaluate("document.querySelector('#talk').scrollTop = 0")
    page.wait_for_timeout(100)
    here.ask("The last one")
    here.wait_for_answers(5)
    place = page.locator(".turn.you").last.bounding_box()
    assert place is not None
    assert 0 < place["y"] < 700


# how it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_told_from_their_ground(chromium: Browser, url: str, scheme: str) -> None:
    """WCAG AA: 4.5 to 1, for every text that is seen."""
    with visit(chromium, url, color_scheme=scheme) as here:
        page = here.page
        here.add(REPORT, CONTRACT)
        here.ask("How many?")
        here.wait_for_answers(1)
        page.locator("input.tick").nth(1).uncheck()
        page.locator("#settings button.label-wrap").click()
        page.get_by_text("In memory: ").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        assert page.evaluate(_PALE) == []


def test_buttons_have_room_around_their_words(here: Visit) -> None:
    for button in here.page.locator(".empty .act, #send, #new-chat").all():
        padding = button.evaluate("e => [getComputedStyle(e).paddingLeft, e.offsetHeight]")
        assert float(padding[0].removesuffix("px")) >= 10
        assert padding[1] >= 30


_PALE = """() => {
  const parse = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return [...numbers.slice(0, 3).map((n) => n * scale), numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      layers.unshift(colour);
      if (colour[3] === 1) break;
    }
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (rgb) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const shown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const pale = [];
  const check = (element, colour, words) => {
    const below = ground(element);
    const [a, b] = [light(over(parse(colour), below)), light(below)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) pale.push(`${words.slice(0, 40)}: ${ratio.toFixed(2)}`);
  };
  const walker = document.createTreeWalker(document.querySelector('#frame'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.data.trim();
    if (words && shown(element) && !element.closest('script, style, .visually-hidden, :disabled'))
      check(element, getComputedStyle(element).color, words);
  }
  for (const box of document.querySelectorAll('#frame :is(textarea, input[type=number])'))
    if (shown(box)) {
      check(box, getComputedStyle(box).color, box.id || 'box');
      const words = box.placeholder;
      if (words) check(box, getComputedStyle(box, '::placeholder').color, words);
    }
  return pale;
}"""
