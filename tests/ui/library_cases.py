"""Documents, folders and processes for the tests of the library."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pacellm_rag_ui
from pacellm_rag.documents import Document, DocumentWarning, Page
from pacellm_rag_ui.library import Library, StoredDocument

UI_ROOT = Path(pacellm_rag_ui.__file__).parents[1]
OWN_NAME = re.compile(r"[A-Za-z0-9_-]{22}(\.json)?")


def document_of(data: bytes, *, pages: int = 3, title: str = "Report") -> Document:
    texts = [f"Page {n} of {title}: größer, 数, \0." for n in range(1, pages + 1)]
    return Document(
        id=f"sha256:{hashlib.sha256(data).hexdigest()}",
        title=title,
        pages=tuple(Page(n, f"p{n}", text) for n, text in enumerate(texts, start=1)),
        source="/somewhere/upload.pdf",
        media_type="application/pdf",
        warnings=(DocumentWarning("no_text", "Page 2 has no text.", (2,)),),
    )


def add(
    library: Library, owner: str, data: bytes = b"%PDF-1.7 content", *, name: str = "report.pdf",
    title: str = "Report", pages: int = 3,
) -> StoredDocument:  # fmt: skip
    return library.add_document(owner, name, data, document_of(data, title=title, pages=pages), 120)


def kept_files(folder: Path) -> set[str]:
    """Names of all files in the owners' folders and among the arrivals, locks left out."""
    found = set()
    for part in ("owners", "arrivals"):
        for path in (folder / part).rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                found.add(path.name)
    return found


def files_of(*documents: StoredDocument) -> set[str]:
    return {name for each in documents for name in (each.id, f"{each.id}.json")}


def bytes_in(folder: Path) -> bytes:
    """Everything that lies on the disk below a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def start_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(UI_ROOT), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return code, output and errors of a process that ends by itself."""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors
