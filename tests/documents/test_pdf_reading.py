"""PDF files that people have: labels, titles, passwords, scans, damage."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from document_checks import read_or_refuse
from pdf_factory import HELLO, document, pages_pdf, scanned_pdf, stream, unreadable_font

from pacellm_rag.documents import Document, DocumentLimits, load_document_bytes
from pacellm_rag.documents.messages import Opened, PageText
from pacellm_rag.documents.outcome import ParseOutcome
from pacellm_rag.errors import DocumentError, EncryptedDocumentError

SAMPLES = Path(__file__).parents[2] / "../shared/data/pdfs/sample"


def warnings_of(read: Document) -> list[tuple[str, tuple[int, ...]]]:
    return [(warning.kind, warning.pages) for warning in read.warnings]


def test_every_page_comes_with_number_label_and_text() -> None:
    data = pages_pdf(["Preface", "Contents", "Chapter one\nbegins here", "End"], roman=2)
    read = load_document_bytes(data, "book.pdf")
    assert [(page.number, page.label, page.text) for page in read.pages] == [
        (1, "i", "Preface"),
        (2, "ii", "Contents"),
        (3, "1", "Chapter one\nbegins here"),
        (4, "2", "End"),
    ]
    assert read.warnings == ()
    assert read.media_type == "application/pdf"


def test_the_title_is_the_metadata_s_where_it_means_something() -> None:
    assert load_document_bytes(pages_pdf(["x"], title="The Plan"), "a.pdf").title == "The Plan"
    assert (
        load_document_bytes(pages_pdf(["x"], title="Microsoft Word - x.doc"), "a.pdf").title == "a"
    )
    assert load_document_bytes(pages_pdf(["x"]), "a.pdf").title == "a"


def test_an_encrypted_file_opens_with_its_password_only() -> None:
    data = pages_pdf(["Secret"], password="sesame")
    assert load_document_bytes(data, "a.pdf", password="sesame").pages[0].text == "Secret"
    with pytest.raises(EncryptedDocumentError, match="needs a password"):
        load_document_bytes(data, "a.pdf")
    with pytest.raises(EncryptedDocumentError, match="is wrong"):
        load_document_bytes(data, "a.pdf", password="guess")


def test_a_password_for_a_file_without_one_is_ignored() -> None:
    assert load_document_bytes(pages_pdf(["Open"]), "a.pdf", password="x").pages[0].text == "Open"


def test_a_password_is_nowhere_in_the_messages() -> None:
    data = pages_pdf(["Secret"], password="sesame")
    with pytest.raises(EncryptedDocumentError) as caught:
        load_document_bytes(data, "a.pdf", password="my-guess")
    assert "my-guess" not in str(caught.value)


def test_pages_without_text_are_named() -> None:
    read = load_document_bytes(scanned_pdf(3), "scan.pdf")
    assert [page.text for page in read.pages] == ["", "", ""]
    assert warnings_of(read) == [("no_text", (1, 2, 3))]
    assert "Pages 1-3" in read.warnings[0].message
    assert "OCR" in read.warnings[0].message


def test_unreadable_text_is_left_out_and_said() -> None:
    read = load_document_bytes(unreadable_font(2), "strange.pdf")
    assert [page.text for page in read.pages] == ["", ""]
    assert warnings_of(read) == [("garbled_text", (1, 2))]


def test_a_page_that_one_parser_can_not_read_is_read_by_the_other() -> None:
    # pypdf refuses the length of the first page's content; pypdfium2 looks for its end.
    damaged = HELLO.join([b"<< /Length 99999999999 >>\nstream\n", b"\nendstream"])
    read = load_document_bytes(document([damaged, stream(HELLO)]), "a.pdf")
    assert [page.text for page in read.pages] == ["Hello page", "Hello page"]


def test_the_better_text_of_a_page_is_kept_whichever_came_first() -> None:
    def page(text: str = "", *, garbled: bool = False, error: str = "") -> PageText:
        return PageText(1, "", text, garbled, False, error)

    versions = [page(error="broken"), page(), page(garbled=True), page("good"), page("later")]
    for order in (versions, [versions[3], versions[0], versions[2], versions[1]]):
        outcome = ParseOutcome("a.pdf", DocumentLimits())
        outcome.open(Opened(1, ""))
        for version in order:
            outcome.keep(version)
        assert outcome.pages[1].text == "good"


def test_a_damaged_file_is_repaired_or_refused_with_a_typed_error() -> None:
    data = pages_pdf([f"page {n} " * 50 for n in range(10)], compress=False)
    for end in (len(data) - 200, len(data) // 2, 200, 20):
        read = read_or_refuse(data[:end], "cut.pdf")
        if read:
            assert read.pages[0].text


def test_a_file_without_pages_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"no pages|no page could be read"):
        load_document_bytes(document([]), "none.pdf")


def test_limits_on_pages_and_characters_cut_and_say_so() -> None:
    data = pages_pdf(["\n".join(["0123456789"] * 50) for _ in range(6)])
    read = load_document_bytes(data, "a.pdf", limits=DocumentLimits(pages=4))
    assert len(read.pages) == 4
    assert "6 pages; those after page 4" in read.warnings[0].message

    read = load_document_bytes(data, "a.pdf", limits=DocumentLimits(characters_per_page=100))
    assert warnings_of(read) == [("truncated", (1, 2, 3, 4, 5, 6))]
    assert all(0 < len(page.text) <= 100 for page in read.pages)

    read = load_document_bytes(data, "a.pdf", limits=DocumentLimits(characters=1_500))
    assert warnings_of(read) == [("truncated", (4, 5, 6)), ("truncated", (3,))]
    assert sum(len(page.text) for page in read.pages) <= 1_500
    assert len(read.pages) == 6


def test_three_hundred_pages_take_seconds() -> None:
    page = "\n".join(["Twelve words make this line of an ordinary page long enough now."] * 40)
    data = pages_pdf([page] * 300)
    start = time.monotonic()
    read = load_document_bytes(data, "book.pdf")
    assert len(read.pages) == 300
    assert read.warnings == ()
    assert time.monotonic() - start < 20


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample files are not part of the repository")
@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.pdf")), ids=lambda path: path.name)
def test_every_sample_is_read_or_refused_with_a_typed_error(path: Path) -> None:
    read = read_or_refuse(path.read_bytes(), path.name, DocumentLimits(wall_seconds=20))
    if read:
        assert read.pages
        named = {number for warning in read.warnings for number in warning.pages}
        assert set(read.pages_without_text) <= named
