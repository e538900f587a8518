"""Typesets the sample documents: `documents/sources/*.md` become `documents/*.pdf`.

    python examples/make_documents.py [--out DIR]

The three documents belong to one invented organisation, Vessary Water, and refer to each other:
an annual report, a supplier contract and an equipment manual. Their words are in the Markdown
sources; this script only knows how they look. The output is the same byte for byte on every run
with the same version of reportlab, because dates and identifiers are fixed and streams are left
uncompressed. Over 400 lines because one house style is used by all three.

The sources use a small part of Markdown: headings, paragraphs, numbered lists, tables, `**bold**`,
`*italic*` and `>` for a warning. Three comments steer the layout (`pagebreak`, `caption: ...`, and
`widths: ...` for the columns of the next table), and three kinds of fenced block hold what Markdown
has no syntax for: `figures` (key figures), `bars` (a bar chart) and `signatures`.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from reportlab.graphics.shapes import Drawing, Rect
from reportlab.lib import pagesizes
from reportlab.lib.colors import Color, HexColor, black, white
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY, TA_LEFT
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import simpleSplit
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import (
    BaseDocTemplate,
    Flowable,
    Frame,
    HRFlowable,
    KeepTogether,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
)

DOCUMENTS = Path(__file__).resolve().parent / "documents"
SOURCES = DOCUMENTS / "sources"
PAGE_SIZES: dict[str, tuple[float, float]] = {
    "A4": pagesizes.A4,
    "A5": pagesizes.A5,
    "B5": pagesizes.B5,
}

GREY = HexColor("#5f6b73")
RULE = HexColor("#c3cbd0")


@dataclass(frozen=True)
class Look:
    """The typography of one document.

    Attributes:
        accent: colour of headings, rules and bars.
        tint: pale background of warnings and totals.
        body: font of the running text; its bold and italic cuts follow from it.
        head: font of headings and tables.
        size: font size of the running text, in points.
        leading: distance of its lines, in points.
        margin: left and right margin, in points.
        centred: whether the title on the first page is centred instead of set on a coloured band.
    """

    accent: Color
    tint: Color
    body: str
    head: str
    size: float
    leading: float
    margin: float
    centred: bool = False


LOOKS = {
    "report": Look(
        HexColor("#0b5a73"), HexColor("#e6f0f3"), "Times-Roman", "Helvetica", 11.2, 16, 20 * mm
    ),
    "contract": Look(
        HexColor("#222222"),
        HexColor("#f1f1f1"),
        "Times-Roman",
        "Times-Roman",
        11.5,
        16,
        28 * mm,
        centred=True,
    ),
    "manual": Look(
        HexColor("#a33b12"), HexColor("#fbece5"), "Helvetica", "Helvetica", 9, 12.8, 15 * mm
    ),
}


def bold(font: str) -> str:
    """Returns the name of the bold cut of a built-in font."""
    return font.replace("-Roman", "") + "-Bold"


def inline(text: str) -> str:
    """Turns the inline Markdown of one paragraph into reportlab's markup."""
    text = escape(text, quote=False)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", text)


def read_source(path: Path) -> tuple[dict[str, str], list[list[str]]]:
    """Reads a source file.

    Returns:
        The fields of its front matter, and its blocks, each as its lines. Blank lines separate
        blocks; each comment is a block of its own.
    """
    _, matter, text = path.read_text(encoding="utf-8").split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in matter.splitlines())
    blocks: list[list[str]] = []
    for chunk in re.split(r"\n\s*\n", text.strip()):
        lines = chunk.splitlines()
        while lines and lines[0].startswith("<!--"):
            blocks.append([lines.pop(0)])
        if lines:
            blocks.append(lines)
    return fields, blocks


def cells(line: str) -> list[str]:
    """Splits a row of a table, or a line of a fenced block, at its bars."""
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


class Cell(Flowable):  # type: ignore[misc]
    """The text of one cell of a table.

    A paragraph of reportlab ends with a line feed, which makes text extraction put each cell on a
    line of its own. This flowable does not, so a row is extracted as one line.

    Args:
        text: the words, in inline Markdown; `**` around them makes them bold.
        font: the font.
        size: the font size, in points.
        color: the colour of the text.
        right: whether to align to the right.
    """

    def __init__(self, text: str, font: str, size: float, color: Color, *, right: bool) -> None:
        super().__init__()
        self.text = text.strip("*")
        self.font = bold(font) if text.startswith("**") else font
        self.size = size
        self.color = color
        self.right = right
        self.lines: list[str] = []

    def wrap(self, width: float, height: float) -> tuple[float, float]:
        """Breaks the text into lines; called by reportlab."""
        self.lines = simpleSplit(self.text, self.font, self.size, width)
        self.width, self.height = width, 1.25 * self.size * max(len(self.lines), 1)
        return self.width, self.height

    def draw(self) -> None:
        """Draws the lines; called by reportlab."""
        out = self.canv.beginText()
        out.setFont(self.font, self.size)
        out.setFillColor(self.color)
        for number, line in enumerate(self.lines):
            free = self.width - stringWidth(line, self.font, self.size)
            y = self.height - self.size * (1 + 1.25 * number)
            out.setTextOrigin(free if self.right else 0, y)
            out.textOut(line)
        if self.lines:
            self.canv.drawText(out)


class Typesetter:
    """Turns the blocks of one document into flowables.

    Args:
        look: the typography.
        width: the width of the text, in points.
    """

    def __init__(self, look: Look, width: float) -> None:
        self.look = look
        self.width = width
        self.text = ParagraphStyle(
            "text",
            fontName=look.body,
            fontSize=look.size,
            leading=look.leading,
            alignment=TA_JUSTIFY if look.body.startswith("Times") else TA_LEFT,
            spaceAfter=0.55 * look.leading,
            bulletFontName=look.body,
            bulletFontSize=look.size,
            allowWidows=0,
            allowOrphans=0,
        )
        large = 1.2 if look.centred else 1.65
        self.headings = {
            "#": self._derive("h1", bold(look.head), large, before=0.8, color=look.accent),
            "##": self._derive("h2", bold(look.head), 1.15, before=0.5, color=look.accent),
        }
        self.caption = self._derive("caption", bold(look.head), 0.84, after=0.25, color=GREY)
        self.caption.keepWithNext = 1
        self.clause = self._derive("clause", look.body, 1)
        self.clause.leftIndent = 30
        self.subclause = self._derive("subclause", look.body, 1, after=0.4)
        self.subclause.leftIndent = 52
        self.subclause.bulletIndent = self.clause.leftIndent
        self.step = self._derive("step", look.body, 1, after=0.25)
        self.step.leftIndent = 17

    def _derive(
        self,
        name: str,
        font: str,
        scale: float,
        *,
        before: float = 0,
        after: float = 0.55,
        color: Color | None = None,
    ) -> Any:
        """Makes a style from the running text's; distances are in lines of it."""
        leading = self.look.leading
        style = ParagraphStyle(
            name,
            parent=self.text,
            fontName=font,
            fontSize=self.look.size * scale,
            leading=leading * max(scale, 0.9),
            spaceBefore=before * leading,
            spaceAfter=after * leading,
        )
        if color is not None:
            style.textColor = color
        if name.startswith("h"):
            style.alignment = TA_LEFT
            style.keepWithNext = 1
        return style

    def story(self, blocks: list[list[str]]) -> Iterator[Any]:
        """Yields the flowables of the blocks, in order."""
        caption: Any = None
        widths: list[float] | None = None
        for lines in blocks:
            first = lines[0]
            if comment := re.fullmatch(r"<!-- (\w+)(?:: (.+))? -->", first):
                kind, value = comment.groups()
                if kind == "pagebreak":
                    yield PageBreak()
                elif kind == "caption":
                    caption = Paragraph(inline(value), self.caption)
                else:
                    widths = [float(part) for part in value.split()]
            elif first.startswith("|"):
                table = self.table(lines, widths)
                yield KeepTogether([caption, table]) if caption else table
                yield Spacer(0, 0.7 * self.look.leading)
                caption = widths = None
            elif first.startswith("```"):
                yield from self.fenced(first[3:], lines[1:-1])
            else:
                yield from self.prose(lines)

    def prose(self, lines: list[str]) -> Iterator[Any]:
        """Yields headings, paragraphs, clauses, steps and warnings."""
        first = lines[0]
        if first.startswith("#"):
            marks, title = first.split(" ", 1)
            heading = Paragraph(inline(title), self.headings[marks])
            heading.outline = (title, len(marks) - 1)
            yield heading
        elif first.startswith("> "):
            warning = Paragraph(inline(first[2:]), self.text)
            yield Table(
                [[warning]],
                colWidths=[self.width],
                style=[
                    ("BACKGROUND", (0, 0), (-1, -1), self.look.tint),
                    ("LINEBEFORE", (0, 0), (0, -1), 3, self.look.accent),
                    ("TOPPADDING", (0, 0), (-1, -1), 5),
                    ("BOTTOMPADDING", (0, 0), (-1, -1), 7),
                    ("LEFTPADDING", (0, 0), (-1, -1), 9),
                ],
                spaceAfter=0.7 * self.look.leading,
            )
        elif re.match(r"\d+\. ", first):
            for line in lines:
                number, text = line.split(" ", 1)
                yield Paragraph(inline(text), self.step, bulletText=number)
            yield Spacer(0, 0.4 * self.look.leading)
        elif clause := re.match(r"(\d+\.\d+) (.+)", first):
            yield Paragraph(inline(clause[2]), self.clause, bulletText=clause[1])
        elif clause := re.match(r"(\([a-z]\)) (.+)", first):
            yield Paragraph(inline(clause[2]), self.subclause, bulletText=clause[1])
        else:
            yield Paragraph(inline(" ".join(lines)), self.text)

    def table(self, lines: list[str], widths: list[float] | None) -> Any:
        """Sets a table; its first row is the head, and a row with bold cells is a total."""
        look = self.look
        head, marks, *rows = [cells(line) for line in lines]
        right = [mark.endswith(":") for mark in marks]
        data = [
            [
                self.cell(f"**{text}", right=r, color=white)
                for text, r in zip(head, right, strict=True)
            ]
        ]
        commands: list[tuple[Any, ...]] = [
            ("BACKGROUND", (0, 0), (-1, 0), look.accent),
            ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
            ("VALIGN", (0, 1), (-1, -1), "TOP"),
            ("LINEBELOW", (0, 1), (-1, -1), 0.4, RULE),
            ("LINEBELOW", (0, -1), (-1, -1), 0.8, look.accent),
            ("LEFTPADDING", (0, 0), (-1, -1), 5),
            ("RIGHTPADDING", (0, 0), (-1, -1), 5),
            ("TOPPADDING", (0, 0), (-1, -1), 2.5),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 4),
        ]
        for number, row in enumerate(rows, 1):
            data.append([self.cell(text, right=r) for text, r in zip(row, right, strict=True)])
            if any(text.startswith("**") for text in row):
                commands.append(("BACKGROUND", (0, number), (-1, number), look.tint))
        share = widths or [1.0] * len(head)
        return Table(
            data,
            colWidths=[self.width * part / sum(share) for part in share],
            style=commands,
            repeatRows=1,
        )

    def cell(self, text: str, *, right: bool, color: Color = black) -> Cell:
        """Makes a cell of a table."""
        return Cell(text, self.look.head, self.look.size * 0.87, color, right=right)

    def fenced(self, kind: str, lines: list[str]) -> Iterator[Any]:
        """Yields the flowables of a fenced block."""
        if kind == "figures":
            yield self.figures([cells(line) for line in lines])
        elif kind == "bars":
            yield Paragraph(inline(lines[0]), self.caption)
            yield self.bars([cells(line) for line in lines[1:]])
        else:
            yield self.signatures([cells(line) for line in lines])
        yield Spacer(0, 0.8 * self.look.leading)

    def figures(self, rows: list[list[str]]) -> Any:
        """Sets key figures in two columns, each number above its label."""
        number = self._derive("number", bold(self.look.head), 2, after=0, color=self.look.accent)
        label = self._derive("label", self.look.head, 0.9, after=0, color=GREY)
        boxes = [[Paragraph(inline(a), number), Paragraph(inline(b), label)] for a, b in rows]
        return Table(
            [boxes[at : at + 2] for at in range(0, len(boxes), 2)],
            colWidths=[self.width / 2] * 2,
            style=[
                ("LINEABOVE", (0, 0), (-1, -1), 0.8, self.look.accent),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("TOPPADDING", (0, 0), (-1, -1), 9),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 15),
            ],
        )

    def bars(self, rows: list[list[str]]) -> Any:
        """Draws a horizontal bar chart, with labels to its left and values to its right."""
        longest = max(int(value) for _, value in rows)
        space = self.width - 100
        data = []
        for label, value in rows:
            length = int(value) / longest * (space - 10)
            bar = Drawing(length, 10)
            bar.add(Rect(0, 0, length, 10, fillColor=self.look.accent, strokeColor=None))
            data.append(
                [
                    self.cell(label, right=False),
                    bar,
                    self.cell(f"{int(value):,}", right=True),
                ]
            )
        return Table(
            data,
            colWidths=[55, space, 45],
            style=[
                ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
                ("LEFTPADDING", (0, 0), (-1, -1), 5),
                ("RIGHTPADDING", (0, 0), (-1, -1), 5),
            ],
        )

    def signatures(self, rows: list[list[str]]) -> Any:
        """Sets the lines on which the parties sign, side by side."""
        text = self._derive("signature", self.look.body, 0.95, after=0)
        text.alignment = TA_LEFT
        share = self.width / len(rows)
        line = HRFlowable(share - 40, 0.6, color=self.look.accent, spaceAfter=3, hAlign="LEFT")
        columns = []
        for side, *signer in rows:
            lines = [Paragraph(inline(part), text) for part in signer]
            columns.append([Paragraph(inline(side), text), Spacer(0, 42), line, *lines])
        return Table(
            [columns], colWidths=[share] * len(rows), style=[("LEFTPADDING", (0, 0), (-1, -1), 0)]
        )


def title_block(fields: dict[str, str], look: Look, width: float) -> Iterator[Any]:
    """Yields the title of the first page."""
    centred = TA_CENTER if look.centred else TA_LEFT
    colour = look.accent if look.centred else white
    scale = {"report": 3.1, "contract": 2, "manual": 2.15}[fields["style"]]

    def style(font: str, factor: float, after: float) -> Any:
        size = look.size * factor
        return ParagraphStyle(
            "title",
            fontName=font,
            fontSize=size,
            leading=size * 1.22,
            alignment=centred,
            textColor=colour,
            spaceAfter=after,
        )

    paragraphs = [
        Paragraph(inline(fields["title"]), style(bold(look.head), scale, 6)),
        Paragraph(inline(fields["subtitle"]), style(look.head, 1.15, 0)),
    ]
    if look.centred:
        yield Spacer(0, 30)
        yield from paragraphs
        yield Spacer(0, 34)
    else:
        pad = 20 if fields["style"] == "manual" else 120
        paragraphs.insert(0, Paragraph(fields["author"], style(bold(look.head), 1.15, pad)))
        yield Table(
            [[paragraphs]],
            colWidths=[width],
            style=[
                ("BACKGROUND", (0, 0), (-1, -1), look.accent),
                ("LEFTPADDING", (0, 0), (-1, -1), 14),
                ("TOPPADDING", (0, 0), (-1, -1), 12),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 16),
            ],
            spaceAfter=look.leading * (1 if fields["style"] == "manual" else 2.4),
        )


def page_label(page: int, front_pages: int) -> str:
    """Returns the number printed on a page: roman on the front pages, then from 1."""
    return ["i", "ii", "iii", "iv"][page - 1] if page <= front_pages else str(page - front_pages)


def decorate(fields: dict[str, str], look: Look, *, cover: bool) -> Callable[[Any, Any], None]:
    """Returns what draws header and footer around the text of a page."""
    front_pages = int(fields["front-pages"])

    def draw(canvas: Any, document: Any) -> None:
        width, height = document.pagesize
        page = canvas.getPageNumber()
        if page == 1 and front_pages:
            canvas.addPageLabel(0, style="ROMAN_LOWER", start=1)
            canvas.addPageLabel(front_pages, style="ARABIC", start=1)
        elif page == 1:
            canvas.addPageLabel(0, style="ARABIC", start=1)
        canvas.saveState()
        canvas.setFont(look.head, 8)
        canvas.setFillColor(GREY)
        canvas.setStrokeColor(RULE)
        canvas.setLineWidth(0.5)
        if not cover:
            left, right = cells(fields["header"])
            top = height - 12 * mm
            canvas.drawString(look.margin, top, left)
            canvas.drawRightString(width - look.margin, top, right)
            canvas.line(look.margin, top - 5, width - look.margin, top - 5)
        canvas.drawCentredString(width / 2, 9 * mm, page_label(page, front_pages))
        canvas.restoreState()

    return draw


def build(source: Path, target: Path) -> None:
    """Typesets one source file as a PDF file."""
    fields, blocks = read_source(source)
    look = LOOKS[fields["style"]]
    width, height = PAGE_SIZES[fields["size"]]
    text_width = width - 2 * look.margin
    top, bottom = 20 * mm, 17 * mm
    document = BaseDocTemplate(
        str(target),
        pagesize=(width, height),
        title=fields["title"],
        author=fields["author"],
        subject=fields["subject"],
        creator=fields["author"],
        lang="en-GB",
        invariant=1,
        pageCompression=0,
    )
    document.addPageTemplates(
        [
            PageTemplate(
                name,
                [
                    Frame(
                        look.margin,
                        bottom,
                        text_width,
                        height - top - bottom,
                        leftPadding=0,
                        rightPadding=0,
                        topPadding=0,
                        bottomPadding=0,
                    )
                ],
                onPage=decorate(fields, look, cover=name == "cover"),
            )
            for name in ("cover", "text")
        ]
    )
    entries: list[str] = []

    def outline(flowable: Any) -> None:
        if hasattr(flowable, "outline"):
            title, level = flowable.outline
            entries.append(title)
            key = f"section-{len(entries)}"
            document.canv.bookmarkPage(key)
            document.canv.addOutlineEntry(title, key, level)

    document.afterFlowable = outline
    document.build(
        [
            NextPageTemplate("text"),
            *title_block(fields, look, text_width),
            *Typesetter(look, text_width).story(blocks),
        ]
    )


def main() -> None:
    """Typesets every source into the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Typesets the sample documents.")
    parser.add_argument("--out", type=Path, default=DOCUMENTS, help="folder for the PDF files")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.md")):
        target = folder / f"{source.stem}.pdf"
        build(source, target)
        print(target)


if __name__ == "__main__":
    main()
