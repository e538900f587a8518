"""PDF files for tests: ordinary ones by reportlab, hostile ones by hand."""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Mapping, Sequence

from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

HELLO = b"BT /F1 12 Tf 72 720 Td (Hello page) Tj ET"


def pages_pdf(
    pages: Sequence[str],
    *,
    title: str | None = None,
    password: str | None = None,
    roman: int = 0,
    compress: bool = True,
) -> bytes:
    """One PDF page for each text, one line of the page for each line of the text.

    Args:
        pages: their texts.
        title: the metadata's title.
        password: the user password.
        roman: so many pages are labelled i, ii, iii ... before 1, 2, 3 ...
        compress: whether the content streams are compressed.
    """
    buffer = io.BytesIO()
    encrypt = (
        StandardEncryption(password, ownerPassword="owner", strength=128) if password else None
    )
    canvas = Canvas(buffer, encrypt=encrypt, pageCompression=int(compress), invariant=1)
    if title is not None:
        canvas.setTitle(title)
    if roman:
        canvas.addPageLabel(0, style="ROMAN_LOWER", start=1)
        canvas.addPageLabel(roman, style="ARABIC", start=1)
    for page in pages:
        lines = canvas.beginText(72, 770)
        lines.setFont("Helvetica", 10)
        for line in page.split("\n"):
            lines.textLine(line)
        canvas.drawText(lines)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def scanned_pdf(pages: int) -> bytes:
    """Pages that hold a picture and no text."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1)
    for _ in range(pages):
        for x in range(0, 500, 50):
            canvas.rect(x, x, 40, 40, fill=1)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def raw_pdf(objects: Mapping[int, bytes]) -> bytes:
    """A PDF file of the given objects; number 1 is the catalog."""
    out = bytearray(b"%PDF-1.7\n")
    places = {}
    for number, body in objects.items():
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(out), max(objects) + 1
    out += b"xref\n0 %d\n" % size
    for number in range(size):
        out += b"%010d %05d %s \n" % (
            (places[number], 0, b"n") if number in places else (0, 65535, b"f")
        )
    out += b"trailer\n<< /Root 1 0 R /Size %d >>\nstartxref\n%d\n%%%%EOF\n" % (size, start)
    return bytes(out)


def stream(content: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), extra, content)


def document(
    contents: Sequence[bytes], *, fonts: bytes = b"", more: Mapping[int, bytes] | None = None
) -> bytes:
    """A PDF whose pages have the given content stream objects (as `stream` makes them).

    Page n is object 10 + 2n and its content the object after it; `more` adds objects 3 to 9 or
    beyond, and `fonts` entries to the resources of all pages.
    """
    kids = b" ".join(b"%d 0 R" % (10 + 2 * n) for n in range(len(contents)))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Count %d /Kids [%s] /MediaBox [0 0 612 792] /Resources << /Font << "
        b"/F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> %s >> /XObject << /X0 3 0 R "
        b">> >> >>" % (len(contents), kids, fonts),
        **(more or {}),
    }
    for n, content in enumerate(contents):
        objects[10 + 2 * n] = b"<< /Type /Page /Parent 2 0 R /Contents %d 0 R >>" % (11 + 2 * n)
        objects[11 + 2 * n] = content
    return raw_pdf(objects)


@functools.cache
def _blanks(megabytes: int) -> bytes:
    """So many megabytes of blanks, compressed."""
    packer = zlib.compressobj(9)
    block = b" " * 1_000_000
    return b"".join([*(packer.compress(block) for _ in range(megabytes)), packer.flush()])


def flate_content() -> bytes:
    """A content stream that unpacks to a gigabyte."""
    return stream(_blanks(1000), b"/Filter /FlateDecode")


def flate_bomb() -> bytes:
    return document([flate_content()])


def double_flate_bomb() -> bytes:
    twice = zlib.compress(_blanks(1000), 9)
    return document([stream(twice, b"/Filter [/FlateDecode /FlateDecode]")])


def long_string_bomb(megabytes: int = 40) -> bytes:
    content = b"BT /F1 12 Tf 72 720 Td (" + b"A" * (megabytes * 1_000_000) + b") Tj ET"
    return document([stream(zlib.compress(content, 9), b"/Filter /FlateDecode")])


def form_bomb(levels: int = 20) -> bytes:
    """Form XObjects each of which draws the next one twice."""
    more = {}
    for level in range(levels):
        last = level == levels - 1
        inner = HELLO if last else b"/X0 Do /X0 Do"
        following = b"" if last else b"/XObject << /X0 %d 0 R >>" % (1000 + level + 1)
        number = 3 if level == 0 else 1000 + level
        more[number] = stream(
            inner,
            b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << %s /Font << /F1 << "
            b"/Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>" % following,
        )
    return document([stream(b"/X0 Do")], more=more)


def same_page_bomb(kids: int = 50_000) -> bytes:
    """A page tree that names one page many times."""
    return raw_pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count %d /Kids [%s] >>" % (kids, b"3 0 R " * kids),
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources "
            b"<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
            4: stream(HELLO),
        }
    )


def tree_loop() -> bytes:
    return raw_pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            3: b"<< /Type /Pages /Count 1 /Parent 2 0 R /Kids [2 0 R] >>",
        }
    )


def deep_tree(depth: int = 3_000) -> bytes:
    objects = {1: b"<< /Type /Catalog /Pages 2 0 R >>"}
    for number in range(2, 2 + depth):
        objects[number] = b"<< /Type /Pages /Count 1 /Kids [%d 0 R] >>" % (number + 1)
    objects[2 + depth] = b"<< /Type /Page /MediaBox [0 0 612 792] >>"
    return raw_pdf(objects)


def nested_arrays(depth: int = 100_000) -> bytes:
    return document([stream(b"[" * depth + b"]" * depth + b" TJ")])


def unreadable_font(pages: int = 1) -> bytes:
    """Text in a font whose glyphs have numbers for names, and no map to characters."""
    names = b" ".join(b"/g%d" % code for code in range(1, 27))
    widths = b"500 " * 26
    font = (
        b"/F2 << /Type /Font /Subtype /Type1 /BaseFont /AAAAAA+Strange /FirstChar 1 /LastChar 26 "
        b"/Widths [%s] /Encoding << /Type /Encoding /Differences [1 %s] >> >>" % (widths, names)
    )
    text = bytes(range(1, 27)).replace(b"\r", b"\\r").replace(b"\n", b"\\n")
    content = b"BT /F2 12 Tf 72 720 Td " + b"(%s) Tj 0 -14 Td " % text * 20 + b"ET"
    return document([stream(content)] * pages, fonts=font)
