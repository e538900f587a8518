"""The HTML parser, as it runs in the child: beautifulsoup4 builds the tree, this walks it.

Knows which elements are blocks, lists, tables and headings, and which are not text. Fetches nothing
and runs nothing. Text that its own attributes hide from readers is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, Tag
from bs4.element import PreformattedString

from pacellm_rag.documents.messages import Failed, Opened, Request
from pacellm_rag.documents.text import text_to_pages
from pacellm_rag.documents.worker import RawPage

__all__ = ["parse"]

_NOT_TEXT = {"script", "style", "noscript", "template", "nav", "svg", "iframe", "object", "canvas"}
_NOT_TEXT |= {"title", "meta", "link", "button", "select"}
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_PARAGRAPHS = _HEADINGS | {"p", "blockquote", "pre", "table", "ul", "ol", "dl", "figure", "hr"}
_PARAGRAPHS |= {"article", "section", "main", "header", "footer", "aside", "form"}
_LINES = {"div", "tr", "dt", "dd", "li", "address", "caption", "figcaption", "option"}
# A table cell that holds one of these is page layout, not a cell of data.
_LAYOUT = [*_HEADINGS, "table", "ul", "ol", "pre", "article", "section"]
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_WHITE_SPACE = re.compile(r"\s+")
# Between blocks, until it is known what stands side by side; white space to the expression above.
_NEXT_LINE, _NEXT_PARAGRAPH = "\x1e", "\x1f"
_BORDERS = re.compile(f"[ {_NEXT_LINE}{_NEXT_PARAGRAPH}]*[{_NEXT_LINE}{_NEXT_PARAGRAPH}] *")
_CONTROLS_IN_PRE = re.compile(f"[\f{_NEXT_LINE}{_NEXT_PARAGRAPH}]")


def parse(data: bytes, request: Request) -> Iterator[Opened | Failed | RawPage]:
    """Reads an HTML file in the encoding that it declares."""
    soup = BeautifulSoup(data, "html.parser")
    heading = soup.title or soup.h1
    pages = text_to_pages(_BORDERS.sub(_line_ends, "".join(_pieces(soup))))
    yield Opened(len(pages), heading.get_text(" ") if heading else "")
    for number, page in enumerate(pages[: request.max_pages], start=1):
        yield RawPage(number, text=page)


def _pieces(root: Tag) -> Iterator[str]:
    """The visible text, with line ends and marks for its structure.

    The tree is walked without recursion: a hostile one is deeper than Python's stack.
    """
    path = [(root, iter(root.children))]
    cells = [0]  # of the current row, one entry per open row
    inside_cell = inside_pre = 0
    while path:
        tag, children = path[-1]
        child = next(children, None)
        if child is None:
            path.pop()
            if tag.name in ("td", "th"):
                inside_cell -= not _is_layout(tag)
            elif tag.name == "tr":
                cells.pop()
            inside_pre -= tag.name == "pre"
            yield _border(tag.name, inside_cell)
        elif isinstance(child, Tag):
            if child.name in _NOT_TEXT or _is_hidden(child):
                continue
            yield _border(child.name, inside_cell)
            if child.name in ("td", "th"):
                yield " | " if cells[-1] else ""
                cells[-1] += 1
                inside_cell += not _is_layout(child)
            elif child.name == "tr":
                cells.append(0)
            elif not inside_cell and child.name in _HEADINGS:
                yield "#" * int(child.name[1]) + " "
            elif not inside_cell and child.name == "li":
                yield "- "
            inside_pre += child.name == "pre"
            path.append((child, iter(child.children)))
        elif not isinstance(child, PreformattedString):  # comments and declarations
            text = str(child)
            yield _CONTROLS_IN_PRE.sub("", text) if inside_pre else _WHITE_SPACE.sub(" ", text)


def _line_ends(borders: re.Match[str]) -> str:
    return "\n\n" if _NEXT_PARAGRAPH in borders.group() else "\n"


def _border(name: str, inside_cell: int) -> str:
    """What separates an element of this name from what is before and behind it."""
    if name in _PARAGRAPHS:
        return " " if inside_cell else _NEXT_PARAGRAPH
    if name in _LINES:
        return " " if inside_cell else _NEXT_LINE
    if name == "br":
        return " " if inside_cell else "\n"
    return ""


def _is_hidden(tag: Tag) -> bool:
    return tag.has_attr("hidden") or bool(_HIDDEN.search(str(tag.get("style", ""))))


def _is_layout(cell: Tag) -> bool:
    return cell.find(_LAYOUT) is not None
