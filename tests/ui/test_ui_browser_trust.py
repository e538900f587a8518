"""The page in a real browser: hostile files and models, what does not fit, small screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_page import Visit, browser, needs_chromium, visit
from served_page import ROOT, served
from ui_page_files import pdf

from pacellm_rag_ui.auth import account_line

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket, needs_chromium]

REPORT = ROOT / "examples" / "documents" / "annual-report.pdf"
LIVE = (
    "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    "${window.hacked=1}{{constructor.constructor('window.hacked=1')()}}"
)
NAME = "<img src=x onerror=window.hacked=1>${window.hacked=1}{{this}}\u202efdp.pdf"
HOSTILE = (
    f"{LIVE} ![a](https://evil.example/leak?q=1) [click](https://evil.example) "
    "[js](javascript:window.hacked=1) <https://evil.example/auto> [D1 p1]\n\n"
    "[ref]: https://evil.example/ref\n![b][ref] <iframe src='https://evil.example'></iframe>"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(
        tmp_path_factory.mktemp("data"), "--answer", HOSTILE, "--context", "2000"
    ) as address:
        yield address


@pytest.fixture
def here(chromium: Browser, url: str) -> Iterator[Visit]:
    with visit(chromium, url) as made:
        yield made


def check_nothing_happened(here: Visit) -> None:
    assert here.page.evaluate("window.hacked") is None
    assert here.page.locator("#frame img[src=x], #frame iframe, #frame script").count() == 0
    assert here.page.locator("a[href*='evil'], a[href^='javascript']").count() == 0
    here.check_nothing_left_the_host()


def test_the_page_comes_with_a_policy(here: Visit) -> None:
    reply = here.page.goto(here.url)
    assert reply is not None
    assert "img-src 'self' data: blob:" in reply.headers["content-security-policy"]
    here.page.locator("#history .empty").wait_for()


def test_a_hostile_name_text_and_answer_do_nothing(here: Visit) -> None:
    page = here.page
    here.add({"name": NAME, "mimeType": "application/pdf", "buffer": pdf([LIVE])})
    shown = page.locator("li.document .name").inner_text()
    assert "[U+202E]" in shown
    assert "onerror" in page.locator("li.document .name").get_attribute("title")  # type: ignore[operator]
    here.ask(f"{LIVE} what does it say?")
    here.wait_for_answers(1)
    answer = page.locator("#history .turn.model").inner_text()
    assert "evil.example" in answer, "The address is to be seen, as text."
    assert "<script>" in page.locator(".turn.you .said").inner_text()
    page.locator("a.cite").first.click()
    page.locator("#viewer-sheet img").wait_for()
    page.reload()
    here.wait_for_answers(1)
    page.get_by_role("tab", name="Every document").click()
    page.fill("#every-question textarea", LIVE)
    page.press("#every-question textarea", "Enter")
    page.locator("#every tr.done").wait_for()
    check_nothing_happened(here)


def test_a_hostile_text_file_is_shown_as_it_stands(here: Visit) -> None:
    page = here.page
    here.add({"name": "a.txt", "mimeType": "text/plain", "buffer": LIVE.encode()})
    page.locator("li.document .name").click()
    page.locator("#viewer-sheet .page-text").wait_for()
    assert "<script>" in page.locator("#viewer-sheet").inner_text()
    check_nothing_happened(here)


def test_what_does_not_fit_is_red_before_it_is_sent_and_one_click_makes_it_fit(here: Visit) -> None:
    page = here.page
    here.add(REPORT)
    page.locator(".meter.over").wait_for()
    assert "too many" in page.locator(".meter").inner_text()
    here.ask("How many?")
    page.locator("#status .notice.error").wait_for()
    assert page.locator("#question textarea").input_value() == "How many?"
    assert page.locator(".turn").count() == 0
    page.locator(".meter [data-kind=pages]").click()
    page.locator(".meter:not(.over)").wait_for()
    page.press("#question textarea", "Enter")
    here.wait_for_answers(1)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("notes.pdf", b"\x00\x01\x02 no such thing", "notes.pdf"),
        ("empty.pdf", b"", "empty"),
        ("large.txt", b"x" * 2_000_001, "2 MB"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused_with_the_reason(
    here: Visit, name: str, content: bytes, why: str
) -> None:
    here.page.set_input_files(
        "#file-input", [{"name": name, "mimeType": "application/pdf", "buffer": content}]
    )
    row = here.page.locator(".report.refused")
    row.wait_for()
    assert why in row.inner_text()
    assert here.page.locator("li.document").count() == 0
    row.locator("button").click()
    assert row.count() == 0


def test_on_a_phone_one_part_is_seen_at_a_time_and_nothing_sticks_out(
    chromium: Browser, url: str
) -> None:
    screen = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with visit(chromium, url, **screen) as here:
        page = here.page
        page.get_by_role("button", name="Documents", exact=True).click()
        assert page.locator("#drop-zone").is_visible()
        assert not page.locator("#question").is_visible()
        here.add({"name": f"{'long-' * 30}name.txt", "mimeType": "text/plain", "buffer": b"Short."})
        page.get_by_role("button", name="Chat", exact=True).click()
        here.ask("What does it say?")
        here.wait_for_answers(1)
        page.locator("a.cite").first.click()
        page.locator("#viewer-sheet .page-text").wait_for()
        assert not page.locator("#question").is_visible()
        for name in ("Documents", "Chat", "Page"):
            page.get_by_role("button", name=name, exact=True).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_dark_follows_the_system_and_the_button_changes_it_for_good(
    chromium: Browser, url: str
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with visit(chromium, url, color_scheme="dark") as here:
        dark = here.page.evaluate(ground)
        here.page.get_by_label("Light or dark").click()
        light = here.page.evaluate(ground)
        assert dark != light
        here.page.reload()
        here.page.locator("#history .empty").wait_for()
        here.page.wait_for_function(f"c => {ground} === c", arg=light)


def test_every_field_and_button_has_a_name(here: Visit) -> None:
    here.add({"name": "a.txt", "mimeType": "text/plain", "buffer": b"Short."})
    unnamed = here.page.evaluate(
        """() => [...document.querySelectorAll('#frame :is(button, input, textarea, a)')]
        .filter(e => e.offsetParent !== null)
        .filter(e => !(e.textContent?.trim() || e.ariaLabel || e.title || e.labels?.length))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_people_log_in_on_a_page_of_this_server(chromium: Browser, tmp_path: Path) -> None:
    accounts = tmp_path / "accounts.txt"
    accounts.write_text(f"{account_line('ann', 'correct horse')}\n")
    with served(tmp_path / "data", "--auth", str(accounts)) as url:
        context = chromium.new_context()
        page = context.new_page()
        asked: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.fill("input[name=username]", "ann")
        page.fill("input[name=password]", "wrong")
        page.click("button")
        page.locator(".login-error").wait_for()
        page.fill("input[name=username]", "ann")
        page.fill("input[name=password]", "correct horse")
        page.click("button")
        page.locator("#history .empty").wait_for()
        page.get_by_role("button", name="Log out").click()
        page.locator("input[name=password]").wait_for()
        assert [r for r in asked if not r.startswith(url)] == []
        context.close()
