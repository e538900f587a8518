"""Files that both frameworks' loaders are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas


@pytest.fixture(scope="session")
def documents() -> Path:
    """The folder of the sample documents."""
    return Path(__file__).resolve().parents[2] / "examples" / "documents"


@pytest.fixture
def half_scanned(tmp_path: Path) -> Path:
    """A PDF of two pages; the second holds a drawing and no text."""
    path = tmp_path / "half scanned.pdf"
    canvas = Canvas(str(path), invariant=1)
    canvas.drawString(72, 720, "The first page has text.")
    canvas.showPage()
    canvas.rect(72, 72, 400, 400, fill=1)
    canvas.showPage()
    canvas.save()
    return path


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """A PDF of one page whose password is "open sesame"."""
    path = tmp_path / "locked.pdf"
    encryption = StandardEncryption("open sesame", ownerPassword="owner", strength=128)
    canvas = Canvas(str(path), encrypt=encryption, invariant=1)
    canvas.drawString(72, 720, "A secret page.")
    canvas.save()
    return path


@pytest.fixture
def doubtful_text(tmp_path: Path) -> Path:
    """A text of two pages whose encoding must be guessed, which concerns the whole file."""
    path = tmp_path / "doubtful.txt"
    path.write_bytes("Größe: 12 m\fÄnderungen vorbehalten.".encode("latin-1"))
    return path
