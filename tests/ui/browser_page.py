"""Chromium for the tests of the page; skipped, with the reason, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["CHROMIUM", "Visit", "browser", "needs_chromium", "visit"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="There is no Chromium; apt-get install -y --no-install-recommends chromium",
)
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=_QUIET, timeout=60_000
        )
        try:
            yield made
        finally:
            made.close()


@dataclass
class Visit:
    """One person's open page, and all that it asked for."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def check_nothing_left_the_host(self) -> None:
        away = [r for r in self.requests if not r.startswith((self.url, "data:", "blob:"))]
        assert away == []
        assert self.requests, "Nothing was recorded."

    def add(self, *files: Path | dict[str, Any]) -> None:
        before = self.page.locator("li.document").count()
        self.page.set_input_files("#file-input", list(files))  # type: ignore[arg-type]
        self.page.locator("li.document").nth(before + len(files) - 1).wait_for()
        self.page.locator(".meter").wait_for()

    def ask(self, question: str) -> None:
        self.page.fill("#question textarea", question)
        self.page.press("#question textarea", "Enter")

    def wait_for_answers(self, number: int) -> None:
        self.page.wait_for_function(
            "n => document.querySelectorAll('#history .turn.model').length === n"
            " && !document.querySelector('.live')",
            arg=number,
        )

    def status(self) -> str:
        return self.page.locator("#status").inner_text()


@contextmanager
def visit(made: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A new person's visit: cookies of their own."""
    settings = {"viewport": {"width": 1280, "height": 800}, **options}
    context = made.new_context(**settings)
    context.set_default_timeout(30_000)
    page = context.new_page()
    seen = Visit(page, url)
    context.on("request", lambda request: seen.requests.append(request.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    try:
        page.goto(url)
        page.locator("#history :is(.empty, .turn)").first.wait_for()
        page.locator("#drop-zone").wait_for(state="attached")
        yield seen
        assert seen.errors == []
    finally:
        context.close()
