"""Draws a page of a PDF and marks a quotation on it, as it runs in the page process.

Knows pypdfium2 and Pillow. It has no limits of its own and can abort the process.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator

import pypdfium2
from PIL import Image, ImageChops, ImageDraw, ImageFilter, WebPImagePlugin

from pacellm_rag_ui.page_messages import Drawn, PageRequest, RenderLimits, Undrawn
from pacellm_rag_ui.quote_places import find_places

__all__ = ["draw_page"]

_MARKER = (255, 232, 120)  # what white turns to; black stays black
_EDGE = (217, 119, 6)  # seen on dark pages too, where the marker is not
_MOST_BOXES = 1_000
_HIGHEST = 16_383  # WebP's own limit
_QUALITY = 80
_METHOD = 2  # half the time of Pillow's default for 3 % more bytes

Box = tuple[int, int, int, int]

# Pillow would load its forty formats at the first image, while somebody waits: only this is needed.
if not WebPImagePlugin.SUPPORTED:
    raise ImportError("This Pillow was built without WebP.")
Image.preinit()


def draw_page(
    data: bytes, request: PageRequest, limits: RenderLimits
) -> tuple[Drawn | Undrawn, bytes]:
    """Draws a page.

    Returns:
        What was drawn, and its WebP image; b"" where nothing was.
    """
    try:
        document = pypdfium2.PdfDocument(data, password=request.password or None)
    except pypdfium2.PdfiumError as error:
        encrypted = error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD
        return Undrawn("password" if encrypted else "damaged"), b""
    pages = len(document)
    if not 1 <= request.number <= pages:
        return Undrawn("no_page", pages), b""
    with contextlib.suppress(pypdfium2.PdfiumError):
        document.init_forms()  # what people filled in is drawn as well
    try:
        page = document[request.number - 1]
        width, height = page.get_size()
        scale = _scale(width, height, request.width, limits.pixels)
        bitmap = page.render(scale=scale)
        image = bitmap.to_pil().convert("RGB")
    except (pypdfium2.PdfiumError, ValueError):
        return Undrawn("damaged", pages), b""
    boxes: list[Box] = []
    if request.quote:
        with contextlib.suppress(pypdfium2.PdfiumError):
            boxes = list(_boxes(page, bitmap, request.quote, limits.characters))
    _mark(image, boxes)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=_METHOD)
    return Drawn(image.width, image.height, bool(boxes), pages), buffer.getvalue()


def _scale(width: float, height: float, wanted: int, pixels: int) -> float:
    """Pixels per point: of the width wanted, as far as the limits allow.

    Raises:
        ValueError: the page has no size.
    """
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"a page of {width} x {height}")
    # pdfium's wrapper rounds up: a hair less, so that 1,000 stays 1,000
    return min(
        (wanted - 1e-4) / width,
        (_HIGHEST - 1) / height,
        math.sqrt(pixels / (width * height)),
    )


def _boxes(
    page: pypdfium2.PdfPage, bitmap: pypdfium2.PdfBitmap, quote: str, most: int
) -> Iterator[Box]:
    """The pixels of the quotation's lines."""
    text_page = page.get_textpage()
    count = min(text_page.count_chars(), most)
    text = "".join(_character(text_page, index) for index in range(count))
    converter = bitmap.get_posconv(page)
    left = _MOST_BOXES
    for start, end in find_places(quote, text):
        for index in range(min(text_page.count_rects(start, end - start), left)):
            left -= 1
            x0, y0, x1, y1 = text_page.get_rect(index)
            ax, ay = converter.to_bitmap(x0, y0)
            bx, by = converter.to_bitmap(x1, y1)
            box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
            if box[0] < bitmap.width and box[1] < bitmap.height and box[2] >= 0 and box[3] >= 0:
                yield box


def _character(text_page: pypdfium2.PdfTextPage, index: int) -> str:
    """One for each of pdfium's, so that places in the text are places on the page."""
    code = pypdfium2.raw.FPDFText_GetUnicode(text_page, index)
    return chr(code) if 0 < code < 0x110000 else " "


def _mark(image: Image.Image, boxes: list[Box]) -> None:
    """Colours the boxes as a marker pen does, with an edge around each group."""
    if not boxes:
        return
    room = max(2, image.width // 400)
    area = (
        max(min(box[0] for box in boxes) - 2 * room, 0),
        max(min(box[1] for box in boxes) - 2 * room, 0),
        min(max(box[2] for box in boxes) + 2 * room, image.width),
        min(max(box[3] for box in boxes) + 2 * room, image.height),
    )
    part = image.crop(area)
    mask = Image.new("L", part.size, 0)
    draw = ImageDraw.Draw(mask)
    for x0, y0, x1, y1 in boxes:
        spread = (
            x0 - area[0] - room,
            y0 - area[1] - room,
            x1 - area[0] + room,
            y1 - area[1] + room,
        )
        draw.rounded_rectangle(spread, radius=room, fill=255)
    part.paste(ImageChops.multiply(part, Image.new("RGB", part.size, _MARKER)), mask=mask)
    edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
    part.paste(_EDGE, mask=edge)
    image.paste(part, area)
