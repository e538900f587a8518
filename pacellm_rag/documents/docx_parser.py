"""The Word parser, as it runs in the child: python-docx opens the file, this walks its XML.

Knows WordprocessingML as far as it is text: paragraphs, headings, lists, tables, notes, text boxes
and page borders. Leaves out what readers do not see: deleted and hidden text, field codes. Headers
and footers are left out too, because they repeat on every page.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from docx.oxml.parser import parse_xml

from pacellm_rag.documents.messages import Failed, Opened, Request
from pacellm_rag.documents.text import text_to_pages
from pacellm_rag.documents.worker import RawPage

__all__ = ["parse"]

_MOST_MEMBERS = 20_000
# Marks that XML text can not hold. Word writes where pages ended when it last saved (rendered)
# behind the breaks that the author set; a picture shows that the page between them is not empty.
_PAGE_BREAK, _RENDERED_BREAK, _PICTURE = "\f", "\v", "\x00"
_SAME_BREAK = re.compile(f"{_PAGE_BREAK}[ \n]*{_RENDERED_BREAK}")
_HEADING = re.compile(r"heading ([1-6])", re.IGNORECASE)

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_UNSEEN = {f"{_W}{tag}" for tag in ("del", "moveFrom", "instrText", "delText", "pPr", "rPr")} | {
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
}
_PICTURES = {f"{_W}{tag}" for tag in ("drawing", "pict", "object")}
_CHARACTERS = {
    f"{_W}tab": "\t",
    f"{_W}cr": "\n",
    f"{_W}noBreakHyphen": "-",
    f"{_W}lastRenderedPageBreak": _RENDERED_BREAK,
}
_TEXT = {f"{_W}t", "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"}


def parse(data: bytes, request: Request) -> Iterator[Opened | Failed | RawPage]:
    """Reads a Word file whose unpacked size is within bounds."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > request.max_unpacked_bytes or len(members) > _MOST_MEMBERS:
        yield Failed("size", f"{len(members)} parts of {unpacked:,} bytes")
        return
    document = docx.Document(io.BytesIO(data))
    text = _DocxText(document).text()
    pages = text_to_pages(text)
    yield Opened(len(pages), document.core_properties.title)
    for number, page in enumerate(pages[: request.max_pages], start=1):
        yield RawPage(number, text=page)


class _DocxText:
    """The text of one document, in its order."""

    def __init__(self, document: Any) -> None:
        self._body = document.element.body
        self._heading_levels = {
            style.style_id: int(match.group(1))
            for style in document.styles
            if (match := _HEADING.fullmatch(style.name or ""))
        }
        self._notes = dict(_notes(document.part))
        self._cited: list[str] = []  # notes that the current paragraph refers to

    def text(self) -> str:
        """All text, pages separated by form feeds where the file says where they end."""
        text = "".join(self._blocks(self._body))
        text = _SAME_BREAK.sub(_PAGE_BREAK, text).replace(_PICTURE, "")
        text = text.lstrip(f" \n{_RENDERED_BREAK}")
        return text.replace(_RENDERED_BREAK, _PAGE_BREAK)

    def _blocks(self, parent: Any) -> Iterator[str]:
        for element in parent:
            if element.tag == f"{_W}p":
                yield self._paragraph(element)
            elif element.tag == f"{_W}tbl":
                yield "\n"
                for row in element.iterchildren(f"{_W}tr", f"{_W}sdt", f"{_W}ins"):
                    yield from self._row(row)
                yield "\n"
            elif element.tag not in _UNSEEN:
                yield from self._blocks(element)  # content controls, custom XML, insertions

    def _paragraph(self, paragraph: Any) -> str:
        text = "".join(self._inline(paragraph))
        properties = paragraph.find(f"{_W}pPr")
        before, after = "", "\n\n"
        if properties is not None:
            style = properties.find(f"{_W}pStyle")
            level = self._heading_levels.get(_value(style), 0)
            numbered = properties.find(f"{_W}numPr") is not None
            if text.strip(f"{_RENDERED_BREAK}{_PAGE_BREAK}{_PICTURE} \n"):
                before = "#" * level + " " if level else "- " if numbered else ""
                after = "\n" if numbered and not level else after
            if _is_on(properties.find(f"{_W}pageBreakBefore")) and _RENDERED_BREAK not in text:
                before = _RENDERED_BREAK + before
            section = properties.find(f"{_W}sectPr")
            if section is not None and _value(section.find(f"{_W}type")) != "continuous":
                after += _PAGE_BREAK
        notes = "".join(f"[{number}] {self._notes[number]}\n\n" for number in self._cited)
        self._cited.clear()
        # A break at the start of a paragraph stays in front of its heading or list mark.
        breaks = re.match(f"[{_RENDERED_BREAK}{_PAGE_BREAK}]*", text)
        cut = breaks.end() if breaks else 0
        return f"{text[:cut]}{before}{text[cut:]}{after}{notes}"

    def _inline(self, parent: Any) -> Iterator[str]:
        for element in parent:
            tag = element.tag
            if tag in _UNSEEN or _is_hidden(element):
                continue
            if tag in _TEXT:
                yield element.text or ""
            elif tag in _CHARACTERS:
                yield _CHARACTERS[tag]
            elif tag == f"{_W}br":
                yield _PAGE_BREAK if element.get(f"{_W}type") == "page" else "\n"
            elif tag in (f"{_W}footnoteReference", f"{_W}endnoteReference"):
                yield from self._cite(element)
            elif tag == f"{_W}txbxContent":
                yield "\n"
                yield from self._blocks(element)
            else:
                if tag in _PICTURES:
                    yield _PICTURE
                yield from self._inline(element)

    def _row(self, row: Any) -> Iterator[str]:
        if row.tag != f"{_W}tr":
            for inner in row.iter(f"{_W}tr"):
                yield from self._row(inner)
            return
        cells = ["".join(self._blocks(cell)) for cell in row.iter(f"{_W}tc")]
        if any(_RENDERED_BREAK in cell for cell in cells):
            yield _RENDERED_BREAK
        marks = str.maketrans(dict.fromkeys((_RENDERED_BREAK, _PAGE_BREAK, _PICTURE)))
        yield " | ".join(" ".join(cell.translate(marks).split()) for cell in cells) + "\n"

    def _cite(self, reference: Any) -> Iterator[str]:
        kind = "endnote " if reference.tag.endswith("endnoteReference") else ""
        number = f"{kind}{reference.get(f'{_W}id')}"
        if number in self._notes:
            self._cited.append(number)
            yield f"[{number}]"


def _notes(part: Any) -> Iterator[tuple[str, str]]:
    """Foot- and endnotes by the mark that stands for them in the text."""
    for relation in part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if relation.is_external or kind not in ("footnotes", "endnotes"):
            continue
        for note in parse_xml(relation.target_part.blob):
            text = " ".join("".join(part.text or "" for part in note.iter(f"{_W}t")).split())
            if text:
                yield f"{'endnote ' if kind == 'endnotes' else ''}{note.get(f'{_W}id')}", text


def _value(element: Any) -> str:
    return "" if element is None else element.get(f"{_W}val", "")


def _is_on(element: Any) -> bool:
    """Whether a toggle such as <w:vanish/> is there and not switched off."""
    return element is not None and _value(element) not in ("0", "false", "off")


def _is_hidden(element: Any) -> bool:
    return element.tag == f"{_W}r" and _is_on(element.find(f"{_W}rPr/{_W}vanish"))
