"""PDF files for the tests of page images: ordinary ones by reportlab, hostile ones by hand."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence

from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

__all__ = ["blank_bomb", "form_bomb", "pdf", "shading_bomb", "sized_pdf"]


def pdf(
    pages: Sequence[str],
    *,
    password: str | None = None,
    rotate: int = 0,
    crop: tuple[int, int, int, int] | None = None,
) -> bytes:
    """One page for each text, a line at a time, from (72, 550) on: there when turned, too."""
    buffer = io.BytesIO()
    lock = StandardEncryption(password, ownerPassword="owner", strength=128) if password else None
    canvas = Canvas(buffer, encrypt=lock, invariant=1, pagesize=(612, 792))
    for page in pages:
        lines = canvas.beginText(72, 550)
        lines.setFont("Helvetica", 14)
        for line in page.split("\n"):
            lines.textLine(line)
        canvas.drawText(lines)
        if rotate:
            canvas.setPageRotation(rotate)
        if crop:
            canvas.setCropBox(crop)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def sized_pdf(width: float, height: float) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, invariant=1, pagesize=(width, height))
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def form_bomb(levels: int = 24) -> bytes:
    """A few kilobytes that draw 2^levels things: each form draws the next one twice."""
    objects = _skeleton(_stream(b"/X0 Do"))
    for level in range(levels):
        last = level == levels - 1
        content = b"0 0 500 500 re f" if last else b"/X0 Do /X0 Do"
        inner = b"" if last else b"/XObject << /X0 %d 0 R >>" % (6 + level)
        objects.append(
            _stream(
                content,
                b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << %s >>" % inner,
            )
        )
    return _file(objects)


def blank_bomb(megabytes: int = 1_000) -> bytes:
    """A page whose content unpacks to gigabytes."""
    packer = zlib.compressobj(9)
    block = b" " * 1_000_000
    packed = b"".join([*(packer.compress(block) for _ in range(megabytes)), packer.flush()])
    return _file(_skeleton(_stream(packed, b"/Filter /FlateDecode")))


def shading_bomb(steps: int = 50_000) -> bytes:
    """A page coloured by a program of so many steps for each pixel: hours in little memory."""
    program = zlib.compress(b"{ pop " + b"1 add 1 sub " * (steps // 4) + b"}")
    return _file(
        [
            *_skeleton(_stream(b"/S0 sh"), b"/Shading << /S0 5 0 R >>"),
            b"<< /ShadingType 1 /ColorSpace /DeviceGray /Matrix [612 0 0 792 0 0] /Function 6 0 R "
            b">>",
            _stream(
                program, b"/FunctionType 4 /Domain [0 1 0 1] /Range [0 1] /Filter /FlateDecode"
            ),
        ]
    )


def _skeleton(content: bytes, resources: bytes = b"/XObject << /X0 5 0 R >>") -> list[bytes]:
    """A file of one page; what follows is object 5, which its resources name."""
    return [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] /MediaBox [0 0 612 792] /Resources << %s >> >>"
        % resources,
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R >>",
        content,
    ]


def _stream(content: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), extra, content)


def _file(objects: Sequence[bytes]) -> bytes:
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Root 1 0 R /Size %d >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        start,
    )
    return bytes(out)
