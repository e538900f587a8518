"""Word and HTML files: order, structure, pages, what is left out, and bombs."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import docx
import pytest
from document_checks import TIGHT_LIMITS, read_or_refuse
from docx.enum.text import WD_BREAK
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml.parser import parse_xml

from pacellm_rag.documents import Document, load_document_bytes
from pacellm_rag.errors import DocumentLimitError, MissingDependencyError

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def word_file(fill: Callable[[Any], None], title: str = "") -> bytes:
    document = docx.Document()
    document.core_properties.title = title
    fill(document)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def read_html(html: str) -> Document:
    return load_document_bytes(html.encode(), "page.html")


def test_a_word_file_is_read_in_its_order_with_its_structure() -> None:
    def fill(document: Any) -> None:
        document.add_heading("Results", level=2)
        document.add_paragraph("Before the table.")
        table = document.add_table(rows=2, cols=3)
        for row, values in zip(table.rows, ["abc", "def"], strict=True):
            for cell, value in zip(row.cells, values, strict=True):
                cell.text = value
        document.add_paragraph("After the table.")
        document.add_paragraph("first\tpoint", style="List Bullet")

    read = load_document_bytes(word_file(fill, title="The report"), "a.docx")
    assert read.title == "The report"
    assert read.pages[0].text == (
        "## Results\n\nBefore the table.\n\na | b | c\nd | e | f\n\nAfter the table.\n\nfirst point"
    )
    assert read.warnings == ()


def test_page_breaks_of_a_word_file_are_page_borders() -> None:
    def fill(document: Any) -> None:
        document.add_paragraph("one").add_run().add_break(WD_BREAK.PAGE)
        # Word repeats the author's break as a rendered one: still one border.
        run = document.add_paragraph().add_run("two")
        run._r.insert(0, parse_xml(f"<w:lastRenderedPageBreak {W}/>"))
        document.add_paragraph("three").paragraph_format.page_break_before = True
        run = document.add_paragraph().add_run("four")
        run._r.insert(0, parse_xml(f"<w:lastRenderedPageBreak {W}/>"))

    read = load_document_bytes(word_file(fill), "a.docx")
    assert [page.text for page in read.pages] == ["one", "two", "three", "four"]


def test_a_word_file_without_page_borders_is_split() -> None:
    data = word_file(lambda d: [d.add_paragraph("A sentence of words. " * 30) for _ in range(40)])
    read = load_document_bytes(data, "a.docx")
    assert len(read.pages) > 5
    assert max(len(page.text) for page in read.pages) < 4_000


def test_what_readers_of_a_word_file_do_not_see_is_left_out_and_what_they_see_is_not() -> None:
    def fill(document: Any) -> None:
        body = document.element.body
        body.insert(
            0,
            parse_xml(
                f"<w:p {W}><w:r><w:t>kept</w:t></w:r>"
                "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
                "<w:ins><w:r><w:t xml:space='preserve'> inserted</w:t></w:r></w:ins>"
                "<w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r>"
                "<w:r><w:instrText>PAGE</w:instrText></w:r></w:p>"
            ),
        )
        body.insert(
            1,
            parse_xml(
                f"<w:sdt {W}><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p>"
                "</w:sdtContent></w:sdt>"
            ),
        )

    read = load_document_bytes(word_file(fill), "a.docx")
    assert read.pages[0].text == "kept inserted\n\nin a control"


def test_notes_of_a_word_file_follow_the_paragraph_that_cites_them() -> None:
    notes = (
        f"<w:footnotes {W}><w:footnote w:id='2'><w:p><w:r><w:t>The note.</w:t></w:r></w:p>"
        "</w:footnote></w:footnotes>"
    )

    def fill(document: Any) -> None:
        paragraph = document.add_paragraph("A claim")
        paragraph._p.append(parse_xml(f"<w:r {W}><w:footnoteReference w:id='2'/></w:r>"))
        paragraph.add_run(" and more.")
        document.add_paragraph("Next.")
        name = PackURI("/word/footnotes.xml")
        part = Part(name, "application/xml", notes.encode(), document.part.package)
        document.part.relate_to(part, RELATIONSHIP_TYPE.FOOTNOTES)

    read = load_document_bytes(word_file(fill), "a.docx")
    assert read.pages[0].text == "A claim[2] and more.\n\n[2] The note.\n\nNext."


def test_a_word_bomb_is_refused() -> None:
    buffer = io.BytesIO(word_file(lambda document: None))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/blank.xml", b" " * 30_000_000)
    with pytest.raises(DocumentLimitError, match="unpacks to more"):
        load_document_bytes(buffer.getvalue(), "bomb.docx", limits=TIGHT_LIMITS)


def test_a_word_file_with_entities_of_entities_does_not_grow() -> None:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    laughs = (
        f'<!DOCTYPE d [<!ENTITY e0 "ha">{entities}]><w:document {W}><w:body><w:p><w:r>'
        "<w:t>&e9;</w:t></w:r></w:p></w:body></w:document>"
    )
    source = zipfile.ZipFile(io.BytesIO(word_file(lambda document: None)))
    buffer = io.BytesIO()
    with source, zipfile.ZipFile(buffer, "w") as archive:
        for name in source.namelist():
            body = laughs.encode() if name == "word/document.xml" else source.read(name)
            archive.writestr(name, body)
    read = read_or_refuse(buffer.getvalue(), "laughs.docx")
    if read:
        assert sum(len(page.text) for page in read.pages) < 1_000


def test_html_is_read_with_its_structure() -> None:
    read = read_html(
        "<html><head><title>A page</title><style>p {}</style></head><body><nav>menu</nav>"
        "<h1>Head</h1><p>One   <b>bold</b>\nword.<p>Two.<ul><li>first<li>second</ul>"
        "<table><tr><th>a</th><th>b</th></tr><tr><td><p>1</p></td><td>2</td></tr></table>"
        "<script>alert(1)</script><pre>x\n  y</pre><!-- comment --></body></html>"
    )
    assert read.title == "A page"
    assert read.pages[0].text == (
        "# Head\n\nOne bold word.\n\nTwo.\n\n- first\n- second\n\na | b\n1 | 2\n\nx\ny"
    )


def test_html_without_end_tags_loses_nothing() -> None:
    assert read_html("<html><head><title>t<body><p>x").title
    assert read_html("<html><head><meta charset=utf-8><body>all here").pages[0].text == "all here"


def test_a_table_that_lays_out_a_page_is_not_one_line() -> None:
    read = read_html("<html><table><tr><td><h1>Head</h1><p>One</p><p>Two</p></td></tr></table>")
    assert read.pages[0].text == "# Head\n\nOne\n\nTwo"


def test_html_that_is_hidden_is_left_out() -> None:
    read = read_html(
        "<html><p>seen<p hidden>unseen</p><p style='color:red; DISPLAY : none'>unseen</p>"
        "<template>unseen</template><p>seen too"
    )
    assert read.pages[0].text == "seen\n\nseen too"


def test_html_declares_its_own_encoding() -> None:
    data = "<html><meta charset='iso-8859-1'><p>Füße".encode("latin-1")
    assert load_document_bytes(data, "a.html").pages[0].text == "Füße"


def test_html_of_endless_depth_is_read_or_refused() -> None:
    data = b"<html>" + b"<div>" * 5_000 + b"deep" + b"<table><tr><td>" * 1_000
    read = read_or_refuse(data, "deep.html")
    if read:
        assert read.pages[0].text == "deep"


@pytest.mark.parametrize(
    ("module", "extra", "name"), [("docx", "docx", "a.docx"), ("bs4", "html", "a.html")]
)
def test_a_missing_library_is_named_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, name: str
) -> None:
    find_spec = importlib.util.find_spec

    def without(wanted: str, package: str | None = None) -> ModuleSpec | None:
        return None if wanted == module else find_spec(wanted, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    data = word_file(lambda document: None) if extra == "docx" else b"<html><p>x"
    with pytest.raises(MissingDependencyError, match=rf'pip install "pacellm-rag\[{extra}\]"'):
        load_document_bytes(data, name)
