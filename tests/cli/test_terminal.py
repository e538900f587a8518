from __future__ import annotations

import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacellm_rag.cli.terminal import Terminal, clean


@given(st.text())
def test_clean_text_holds_no_control_but_line_ends_and_tabs(text: str) -> None:
    cleaned = clean(text)
    controls = {c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs")}
    assert controls <= {"\n", "\t"}
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x9b2Jgone", "2Jgone"),
        ("line\r\nover\rwritten\x07\x08", "line\noverwritten"),
        ("gnp\u202efdp.exe", "gnpfdp.exe"),
        ("Größe 日本 😀", "Größe 日本 😀"),
        ("\udcff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_clean_takes_out_what_a_terminal_obeys(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_brackets_and_long_lines_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().warning("[bold]Title[/bold] :smile: " + "x" * 300)
    assert capsys.readouterr().err == "Warning: [bold]Title[/bold] :smile: " + "x" * 300 + "\n"


def test_a_quiet_terminal_shows_warnings_but_no_notes(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.note("note")
    terminal.warning("careful")
    assert capsys.readouterr().err == "Warning: careful\n"


def test_warnings_of_the_package_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal, logger = Terminal(), logging.getLogger("pacellm_rag.models.loading")
    with terminal.showing_log():
        logger.warning("stretched to %d", 9)
        logger.warning("stretched to %d", 9)
    assert capsys.readouterr().err == "Warning: stretched to 9\n"


def test_no_spinner_moves_where_standard_error_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal()
    with terminal.working("Loading"), terminal.steps() as say:
        say("Converting")
    assert capsys.readouterr().err == "Converting\n"
