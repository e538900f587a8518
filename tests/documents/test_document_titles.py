"""Titles: a file's own where it means something, else its name."""

from __future__ import annotations

import pytest

from pacellm_rag.documents.titles import choose_title


@pytest.mark.parametrize(
    "own",
    [
        None,
        "",
        "  ",
        "untitled",
        "Untitled Document 2",
        "Document1",
        "Microsoft Word - report final.doc",
        "report_final_v3.docx",
        "C:\\Users\\me\\report",
        "/home/me/report",
        "file:///tmp/x.html",
        "(anonymous)",
        "PowerPoint Presentation",
        "---",
        "2024",
        "b\ufffd\ufffdrbar",
    ],
)
def test_a_title_without_meaning_gives_way_to_the_file_name(own: str | None) -> None:
    assert choose_title(own, "folder/Annual report.pdf") == "Annual report"


@pytest.mark.parametrize(
    "own", ["Annual report", "Document management", "The Untitled Project", "Ὀδύσσεια", "AI"]
)
def test_a_title_with_meaning_is_kept(own: str) -> None:
    assert choose_title(own, "x.pdf") == own


def test_a_title_is_one_clean_line() -> None:
    assert choose_title("Two\nlines\x00 \u202eand more", "x.pdf") == "Two lines and more"
    assert len(choose_title("long " * 1000, "x.pdf")) <= 200


def test_a_name_of_nothing_still_gives_a_title() -> None:
    assert choose_title(None, "") == "Untitled"
