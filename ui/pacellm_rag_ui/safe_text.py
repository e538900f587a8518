"""Answers, quotations and names, made harmless before a browser sees them.

A file can tell the model what to write, and a picture or link in an answer carries what the model
knows to whoever asked for it. So nothing that a model, a file or a person wrote may become a tag, a
picture, a link or a diagram. The rules that see to this look at neighbouring characters only and
hold wherever they stand, in code or outside: no two Markdown readers need to agree on where code
begins. Knows what Gradio's Chatbot draws (GitHub's Markdown by `marked`, Mermaid, KaTeX); nothing
of Gradio itself.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote as url_quote

from pacellm_rag.context.markers import MarkerFilter

__all__ = ["Cited", "chip", "display_name", "plain_markdown", "safe_markdown"]

_LONGEST_CHIP_TITLE = 36
_LONGEST_HOVER = 600
_LONGEST_LABEL = 12

# Controls that no text needs; overrides and isolates, which can turn a sentence around. The marks
# LRM, RLM and ALM stay: Arabic and Hebrew need them, and they only move neighbouring signs.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")

_IMAGE = re.compile(r"!\[([^\[\]\n]{0,300})\](?:\([^()\n]{0,2000}\)|\[[^\[\]\n]{0,300}\])")
_LINK = re.compile(r"\[([^\[\]\n]{1,300})\]\(([^()\n]{0,2000})\)")
_FENCE = re.compile(r"([ \t]*(?:>[ \t]*|(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
_CODE = re.compile(r"`[^`]+`")

# What makes a tag, link, address, formula or diagram. The character matched is one that it can not
# do without, at a place that it can not be moved from.
_LIVE = re.compile(
    r"(?P<tag><(?=[A-Za-z/!?]))"
    r"|(?P<bracket>\](?=[(:\[]))"
    r"|(?P<scheme>:(?=//))"
    r"|(?P<www>(?<=[wW]{3})\.)"
    r"|(?P<mail>(?<=\S)@(?=[\w\-]))"
    r"|(?P<math>\$(?=\$))"
    r"|(?P<diagram>(?<=``)`(?=\s*(?i:mermaid)))"
)
_SIGNS = re.compile(r"[!-/:-@\[-`{-~]")
_MARKDOWN_SIGNS = re.compile(r"[\\`*_\[\]<|~]|&(?=[#\w])|^[-+=>#]")
_LIST_NUMBER = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
_LONG_BLANK = re.compile(r"\s{64,}")
_SEEN_AS_NOTHING = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))
_JOINERS = "\u200c\u200d"  # Persian and emoji need them
_MOST_ACCENTS = 4  # on one letter


class Cited(Protocol):
    """A citation: `pacellm_rag.Citation`, or what the page keeps of one."""

    @property
    def title(self) -> str:
        """The document's title."""

    @property
    def page(self) -> int:
        """Physical page number, from 1."""

    @property
    def label(self) -> str:
        """The number printed on the page."""

    @property
    def quote(self) -> str:
        """The words of the page."""

    @property
    def verified(self) -> bool:
        """Whether they stand there."""


def safe_markdown(text: str, *, complete: bool = True) -> str:
    """An answer as Markdown in which nothing is alive.

    Lists, tables, headings, emphasis and code stay. Pictures become their description, links their
    text and address, tags are shown as written, page markers (`[D1 p2]`) are taken out. A code
    block that was not closed is closed, so that what follows the answer is not drawn into it.

    Args:
        text: what the model wrote, or has written so far.
        complete: False while more may come: a marker that is half written is held back.
    """
    markers = MarkerFilter()
    # Long blanks cost the filter the square of their length, and it takes the blank before a "!".
    tidy = _IMAGE.sub(r"\1", _LONG_BLANK.sub(_shorter_blank, _clean(text)))
    shown = markers.feed(tidy)
    if complete:
        shown += markers.flush()
    shown = _LINK.sub(_link_text, shown)
    lines, fence, closing = [], "", ""
    for line in shown.split("\n"):
        opening = _FENCE.fullmatch(line)
        if opening:
            before, run, language = opening.groups()
            if run[0] == "`" or not fence:
                language = ""  # one of them draws diagrams, and the page sees the others
            if not fence:
                fence, closing = run, re.sub(r"[^\s>]", " ", before) + run
            elif run[0] == fence[0] and len(run) >= len(fence):
                fence = ""
            lines.append(before + run + _break(language, code=True))
        else:
            lines.append(_break(line, code=bool(fence)))
    if fence:
        lines.append(closing)
    return "\n".join(lines)


def plain_markdown(text: str) -> str:
    """A text as Markdown that shows it as it stands: questions, file names, messages."""
    lines = []
    for line in _clean(text).expandtabs(4).split("\n"):
        bare = line.strip()
        indent = "\u00a0" * (len(line) - len(line.lstrip())) if bare else ""
        shown = _LIVE.sub(_entity, _MARKDOWN_SIGNS.sub(_entity, bare))
        lines.append(indent + _LIST_NUMBER.sub(r"\1\\\2", shown))
    return re.sub(r"(?<=[^\n])\n(?=[^\n])", "  \n", "\n".join(lines)).strip("\n")


def chip(citation: Cited | Mapping[str, Any], document_id: str, number: int) -> str:
    """A citation as a small link, "Report p. 12", that shows its quote when pointed at.

    It is inert HTML both for `gr.HTML` and within a Chatbot's Markdown. The class is "cite
    verified" or "cite unverified"; the link is `#cite/<document id>/<page>/<number>`.

    Args:
        citation: a citation, or a mapping with its fields.
        document_id: the library's id of its document.
        number: which of the answer's citations it is.
    """
    cited = _Fields(citation)
    page = _one_line(cited.label)[:_LONGEST_LABEL] or str(cited.page)
    name = f"{display_name(cited.title, _LONGEST_CHIP_TITLE)} p. {page}"
    words = _one_line(cited.quote)
    if len(words) > _LONGEST_HOVER:
        words = words[:_LONGEST_HOVER].rstrip() + "…"
    hover = [f"“{words}”"] if words else ["No words of this page are quoted."]
    if words and not cited.verified:
        hover.append("These words were not found on the page.")
    if page != str(cited.page):
        hover.append(f"Page {cited.page} of the file.")
    state = "verified" if cited.verified else "unverified"
    link = f"#cite/{url_quote(document_id, safe='')}/{cited.page}/{int(number)}"
    return (
        f'<a class="cite {state}" href="{link}" title="{_entities(" ".join(hover))}">'
        f"{_entities(name)}</a>"
    )


def display_name(name: str, longest: int = 48) -> str:
    """A file's name or title for people, as plain text: HTML still has to escape it.

    Characters that are not seen, or that turn the text around, are shown by their numbers
    (`[U+202E]`); heaps of accents are cut; long names are shortened in the middle, so that the
    ending is seen.
    """
    shown, accents = [], 0
    for character in name:
        category = unicodedata.category(character)
        accents = accents + 1 if category in ("Mn", "Me") else 0
        if category in _SEEN_AS_NOTHING and character not in _JOINERS:
            shown.append(f"[U+{ord(character):04X}]")
        elif accents <= _MOST_ACCENTS:
            shown.append(character)
    whole = " ".join("".join(shown).split())
    if not whole:
        return "(no name)"
    if len(whole) <= longest:
        return whole
    tail = max((longest - 1) // 3, 1)
    ending = whole[-tail:]
    while ending and unicodedata.combining(ending[0]):
        ending = ending[1:]
    return f"{whole[: longest - 1 - tail].rstrip()}…{ending.lstrip()}"


class _Fields:
    """The fields of a citation, whichever way they come, with types that can be relied on."""

    def __init__(self, citation: Cited | Mapping[str, Any]) -> None:
        def field(name: str) -> Any:
            if isinstance(citation, Mapping):
                return citation.get(name)
            return getattr(citation, name)

        self.title = str(field("title") or "")
        self.page = int(field("page") or 0)
        self.label = str(field("label") or "")
        self.quote = str(field("quote") or "")
        self.verified = field("verified") is True


def _clean(text: str) -> str:
    """A text without what no text needs, its lines ended by line feeds."""
    return _SURROGATES.sub("\ufffd", _UNWANTED.sub("", _LINE_ENDS.sub("\n", text)))


def _one_line(text: str) -> str:
    return " ".join(_clean(text).split())


def _shorter_blank(match: re.Match[str]) -> str:
    return "\n\n" if "\n" in match.group() else " " * 8


def _link_text(match: re.Match[str]) -> str:
    label, target = match.groups()
    address = target.split()[0].strip("<>") if target.strip() else ""
    if not re.search("[/:#]", address):
        return match.group()  # an index and a call, more likely: `_break` sees to it
    if address.startswith("#") or address == label:
        return str(label)
    return f"{label} ({address})"


def _break(line: str, *, code: bool) -> str:
    """A line in which no tag, link, address, formula or diagram is left.

    Both ways of breaking one are safe anywhere. In code an entity would be seen, so there a blank
    is put in; elsewhere the entity looks as if nothing had happened.
    """
    if code:
        return _LIVE.sub(_blank, line)
    borders = [border for span in _CODE.finditer(line) for border in span.span()]

    def broken(match: re.Match[str]) -> str:
        inside = bisect_right(borders, match.start()) % 2
        return _blank(match) if inside else _entity(match)

    return _LIVE.sub(broken, line)


def _blank(match: re.Match[str]) -> str:
    """The sign with a blank beside it; before a diagram's, which may have blanks after it."""
    return f" {match.group()}" if match["diagram"] else f"{match.group()} "


def _entity(match: re.Match[str]) -> str:
    return f"&#{ord(match.group())};"


def _entities(text: str) -> str:
    """A text in one line as HTML in which no sign means anything, to HTML or to Markdown."""
    return _SIGNS.sub(_entity, _one_line(text))
