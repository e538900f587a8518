"""Word and HTML files to text, through the sandbox.

Knows which optional library each needs. The parsers themselves, `docx_parser` and `html_parser`,
run in the child.
"""

from __future__ import annotations

import importlib.util

from pacellm_rag.documents.limits import DocumentLimits
from pacellm_rag.documents.parsed import PageProgress, ParsedDocument
from pacellm_rag.documents.reading import FileReading
from pacellm_rag.errors import MissingDependencyError

__all__ = ["parse_docx_file", "parse_html_file"]


def parse_docx_file(
    data: bytes, *, name: str, limits: DocumentLimits, progress: PageProgress | None
) -> ParsedDocument:
    """Reads a Word file.

    Raises:
        DocumentError: it is damaged.
        DocumentLimitError: a limit was met before any page was read.
        MissingDependencyError: python-docx is not installed.
    """
    _require("docx", "Word files", "python-docx", "docx")
    return _parse("docx", data, name, limits, progress)


def parse_html_file(
    data: bytes, *, name: str, limits: DocumentLimits, progress: PageProgress | None
) -> ParsedDocument:
    """Reads an HTML file. Nothing that it refers to is fetched.

    Raises:
        DocumentError: it can not be parsed.
        DocumentLimitError: a limit was met before any page was read.
        MissingDependencyError: beautifulsoup4 is not installed.
    """
    _require("bs4", "HTML files", "beautifulsoup4", "html")
    return _parse("html", data, name, limits, progress)


def _require(module: str, what: str, library: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(
            f'Reading {what} needs {library}: pip install "pacellm-rag[{extra}]"', name=module
        )


def _parse(
    parser: str,
    data: bytes,
    name: str,
    limits: DocumentLimits,
    progress: PageProgress | None,
) -> ParsedDocument:
    reading = FileReading(data, name, "", limits, progress)
    reading.run(parser, silence_seconds=limits.wall_seconds)  # their pages come all at the end
    return reading.outcome.document()
