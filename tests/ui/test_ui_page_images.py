"""Images of pages: the quotation is marked where it stands, and nothing is drawn twice."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageChops
from ui_page_files import pdf, sized_pdf

from pacellm_rag.errors import ConfigurationError
from pacellm_rag_ui import pages as pages_module
from pacellm_rag_ui.page_errors import PageImageError
from pacellm_rag_ui.page_process import PageProcess
from pacellm_rag_ui.pages import PageImage, PageImages, RenderLimits, render_page

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "pdfs" / "sample"
EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"
Box = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def images() -> Iterator[PageImages]:
    with PageImages() as images:
        yield images


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[PageProcess]:
    """Every process that is started while the test runs."""
    processes: list[PageProcess] = []

    def start(limits: RenderLimits) -> PageProcess:
        processes.append(PageProcess(limits))
        return processes[-1]

    monkeypatch.setattr(pages_module, "PageProcess", start)
    return processes


@pytest.fixture
def make(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"  # the library gives no suffix either
        path.write_bytes(data)
        return path

    return write


def picture(image: PageImage) -> Image.Image:
    opened = Image.open(io.BytesIO(image.webp))
    assert opened.format == "WEBP"
    assert opened.size == (image.width, image.height)
    return opened.convert("RGB")


def ink(image: PageImage) -> Box:
    """The smallest box that holds all that is dark."""
    box = picture(image).convert("L").point(lambda level: 255 if level < 128 else 0).getbbox()
    assert box
    return box


def changed(plain: PageImage, marked: PageImage) -> Box:
    difference = ImageChops.difference(picture(plain), picture(marked)).convert("L")
    box = difference.point(lambda level: 255 if level > 24 else 0).getbbox()
    assert box
    return box


def holds(outer: Box, inner: Box, by: int) -> bool:
    """Whether a box holds another and is at most so many pixels larger on each side."""
    gaps = (inner[0] - outer[0], inner[1] - outer[1], outer[2] - inner[2], outer[3] - inner[3])
    return all(-2 <= gap <= by for gap in gaps)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("crop", [None, (40, 300, 500, 600)])
def test_the_mark_lies_on_the_words_however_the_page_is_turned_and_cut(
    images: PageImages, make: Callable[[bytes], Path], rotate: int, crop: Box | None
) -> None:
    path = make(pdf(["The tide is high"], rotate=rotate, crop=crop))
    plain, marked = images.render(path, 1), images.render(path, 1, quote="the tide is HIGH")
    assert (plain.marked, marked.marked, marked.pages) == (False, True, 1)
    assert holds(changed(plain, marked), ink(plain), by=14)


def test_only_the_quotation_is_marked(images: PageImages, make: Callable[[bytes], Path]) -> None:
    path = make(pdf(["First line\nSecond line\nThird line"]))
    plain, marked = images.render(path, 1), images.render(path, 1, quote="Second line")
    left, top, right, bottom = changed(plain, marked)
    middle = picture(marked).crop((left, top, right, bottom))
    lines = ink(plain)
    assert lines[1] < top
    assert bottom < lines[3]
    assert (bottom - top) < 40
    red, green, blue = (
        sorted(band.tobytes())[band.width * band.height // 2] for band in middle.split()
    )
    assert min(red, green) > 210 > 150 > blue  # yellow
    assert min(middle.convert("L").tobytes()) < 60  # and the words are as black as before


def test_a_quotation_over_several_lines_is_marked_line_by_line(
    images: PageImages, make: Callable[[bytes], Path]
) -> None:
    path = make(pdf(["Everything that we com-\npiled in the long\nwinter is here. And more."]))
    plain = images.render(path, 1)
    marked = images.render(path, 1, quote="we compiled in the long winter is here")
    left, top, right, bottom = changed(plain, marked)
    assert marked.marked
    assert (bottom - top) > 60
    assert left < 140
    assert right < ink(plain)[2] + 14
    half = images.render(path, 1, quote="we compiled")
    assert changed(plain, half)[3] < bottom


def test_words_that_are_not_there_leave_the_page_as_it_is(
    images: PageImages, make: Callable[[bytes], Path]
) -> None:
    path = make(pdf(["The tide is high"]))
    plain = images.render(path, 1)
    for quote in ("a moose", "", "  ", "!?", "\x00", "\ud800", "x" * 100_000):
        image = images.render(path, 1, quote=quote)
        assert not image.marked
        assert image.webp == plain.webp


def test_the_image_is_as_wide_as_asked_within_bounds(
    images: PageImages, make: Callable[[bytes], Path]
) -> None:
    path = make(pdf(["x"]))
    for asked, given in ((640, 640), (1000, 1000), (1, 100), (99_999, 2_000), (-5, 100)):
        image = images.render(path, 1, width=asked)
        assert image.width == given
        assert image.height == pytest.approx(given * 792 / 612, abs=1)


@pytest.mark.parametrize("size", [(3, 14_000), (14_000, 3), (14_000, 14_000), (1, 1)])
def test_pages_of_odd_sizes_stay_within_the_pixels_allowed(
    images: PageImages, make: Callable[[bytes], Path], size: tuple[float, float]
) -> None:
    image = images.render(make(sized_pdf(*size)), 1, width=2_000)
    assert image.width * image.height <= 16_100_000
    assert 1 <= image.height <= 16_383


@pytest.mark.parametrize("number", [0, -1, 3, 10**12])
def test_a_page_that_is_not_there_is_said_so(
    images: PageImages, make: Callable[[bytes], Path], number: int
) -> None:
    path = make(pdf(["one", "two"]))
    with pytest.raises(PageImageError, match="the file has 2 pages") as caught:
        images.render(path, number)
    assert (caught.value.trouble, caught.value.status) == ("no_page", 404)


def test_a_file_that_is_gone_is_said_so_without_its_path(
    images: PageImages, tmp_path: Path
) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path("\x00")):
        with pytest.raises(PageImageError) as caught:
            images.render(path, 1)
        assert caught.value.status == 404
        assert str(tmp_path) not in str(caught.value)


def test_an_encrypted_file_needs_its_password(
    images: PageImages, make: Callable[[bytes], Path]
) -> None:
    path = make(pdf(["Secret tide"], password="sesame"))
    for password in ("", "wrong"):
        with pytest.raises(PageImageError, match="needs a password"):
            images.render(path, 1, password=password)
    assert images.render(path, 1, quote="secret tide", password="sesame").marked


def test_an_image_is_drawn_once(make: Callable[[bytes], Path], started: list[PageProcess]) -> None:
    path = make(pdf(["The tide", "turns"]))
    with PageImages() as images:
        first = images.render(path, 1, quote="tide")
        once = len(started)
        assert images.render(path, 1, quote=" tide\n") is first
        assert len(started) == once
        assert images.render(path, 2) is not first


def test_a_changed_file_is_drawn_anew_and_a_forgotten_one_too(
    make: Callable[[bytes], Path],
) -> None:
    path = make(pdf(["The tide"]))
    with PageImages() as images:
        first = images.render(path, 1, quote="moose")
        path.write_bytes(pdf(["A moose", "and more"]))
        second = images.render(path, 1, quote="moose")
        assert (first.marked, second.marked, second.pages) == (False, True, 2)
        images.forget(path)
        third = images.render(path, 1, quote="moose")
        assert third == second
        assert third is not second


def test_a_deleted_file_is_not_shown_from_memory(make: Callable[[bytes], Path]) -> None:
    path = make(pdf(["The tide"]))
    with PageImages() as images:
        images.render(path, 1)
        path.unlink()
        with pytest.raises(PageImageError, match="no longer here"):
            images.render(path, 1)


def test_the_images_kept_stay_within_their_bytes(make: Callable[[bytes], Path]) -> None:
    path = make(pdf([f"Page {number}" for number in range(4)]))
    with PageImages(cache_bytes=12_000) as images:
        first = images.render(path, 1)
        assert images.render(path, 1) is first
        for number in (2, 3, 4):
            images.render(path, number)
        assert images.render(path, 1) is not first


def test_a_failure_is_remembered_for_a_while(
    make: Callable[[bytes], Path], started: list[PageProcess]
) -> None:
    path = make(b"%PDF-1.7 nothing")
    with PageImages() as images:
        for _ in range(3):
            with pytest.raises(PageImageError, match="damaged"):
                images.render(path, 1)
        assert len(started) == 2  # one that failed, one that waits
    started.clear()
    with PageImages(failure_seconds=0) as images:
        for _ in range(2):
            with pytest.raises(PageImageError, match="damaged"):
                images.render(path, 1)
        assert len(started) == 3


def test_one_process_waits_and_none_is_left_at_the_end(make: Callable[[bytes], Path]) -> None:
    path = make(pdf(["The tide", "turns"]))
    before = set(psutil.Process().children(recursive=True))
    with PageImages() as images:
        images.render(path, 1)
        images.render(path, 2)
        assert len(set(psutil.Process().children(recursive=True)) - before) == 1
    render_page(path, 1)
    assert set(psutil.Process().children(recursive=True)) <= before
    with pytest.raises(PageImageError, match="shutting down"):
        images.render(path, 1)
    images.close()


def test_a_spare_process_that_died_is_replaced(
    make: Callable[[bytes], Path], started: list[PageProcess]
) -> None:
    path = make(pdf(["The tide", "turns"]))
    with PageImages() as images:
        images.render(path, 1)
        started[-1].close()
        assert images.render(path, 2, quote="turns").marked


def test_many_threads_get_each_its_own_page(make: Callable[[bytes], Path]) -> None:
    words = ["tide", "moose", "lamp", "river"]
    paths = [make(pdf([f"The {word} of {n}" for n in range(2)])) for word in words]
    results: dict[tuple[int, int], bool] = {}

    def ask(which: int, number: int) -> None:
        quote = f"The {words[which]} of {number - 1}"
        results[which, number] = images.render(paths[which], number, quote=quote).marked

    with PageImages(processes=2) as images:
        threads = [
            threading.Thread(target=ask, args=(which, number))
            for which in range(4)
            for number in (1, 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 8
    assert all(results.values())


def test_no_process_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="processes is 0"):
        PageImages(processes=0)
    with pytest.raises(ConfigurationError, match="memory_bytes is 1;"):
        RenderLimits(memory_bytes=1)
    with pytest.raises(ConfigurationError, match="wall_seconds is 0"):
        RenderLimits(wall_seconds=0)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.pdf")), ids=lambda path: path.name)
def test_the_examples_are_marked(images: PageImages, path: Path) -> None:
    from pacellm_rag.documents import load_document

    page = load_document(path).pages[1]
    quote = " ".join(page.text.split()[20:40])
    image = images.render(path, 2, quote=quote)
    assert image.marked
    assert 10_000 < len(image.webp) < 300_000


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample files are not on this machine")
def test_every_sample_file_gives_an_image_or_a_reason(images: PageImages) -> None:
    troubles: dict[str, str] = {}
    for path in sorted(SAMPLES.glob("*.pdf")):
        try:
            picture(images.render(path, 1, width=400))
        except PageImageError as error:
            troubles[path.name] = error.trouble
    assert troubles.pop("libreoffice-writer-password.pdf") == "password"
    assert set(troubles.values()) <= {"damaged"}
    assert len(troubles) <= 1
