"""The parser child: limits itself, reads one request, parses, answers page by page.

Knows the table of parsers and the limits that the system enforces. Run by `sandbox` only. It
imports a parser's library after the limits are set, and never torch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pacellm_rag.documents.cleaning import clean_line, clean_text
from pacellm_rag.documents.messages import (
    Done,
    Failed,
    Message,
    Opened,
    PageText,
    Request,
    encode_message,
    read_frame,
    write_frame,
)

__all__ = ["Parser", "RawPage", "describe", "main"]

_PARSERS = {
    "pypdf": "pacellm_rag.documents.pdf_parsers:parse_with_pypdf",
    "pypdfium2": "pacellm_rag.documents.pdf_parsers:parse_with_pypdfium2",
    "docx": "pacellm_rag.documents.docx_parser:parse_docx",
    "html": "pacellm_rag.documents.html_parser:parse_html",
}
_LONGEST_REQUEST = 16 * 1024**2
_LONGEST_FILE = 2**32 - 1


@dataclass(frozen=True)
class RawPage:
    """A page as a parser gives it: not yet cleaned, judged or cut to size.

    Attributes:
        number: physical number, from 1.
        label: the number printed on it, "" where the file names none.
        text: raw text.
        garbled: people can not read it.
        error: why it could not be parsed, or "".
    """

    number: int
    label: str = ""
    text: str = ""
    garbled: bool = False
    error: str = ""


Parser = Callable[[bytes, Request], Iterator[Opened | Failed | RawPage]]


def main() -> None:
    """Serves one request from standard input to standard output."""
    output = _claim_standard_output()
    body = read_frame(sys.stdin.buffer, _LONGEST_REQUEST)
    if body is None:
        return
    request = Request(**json.loads(body))
    _limit_resources(request)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        data = read_frame(sys.stdin.buffer, _LONGEST_FILE)
        if data is not None:
            for message in _parse(data, request):
                write_frame(output, encode_message(message))
    except MemoryError:
        write_frame(output, encode_message(Failed("memory", "the memory ran out")))
    except BrokenPipeError:
        pass
    except Exception as error:
        write_frame(output, encode_message(Failed("damaged", describe(error))))
    os._exit(0)  # tearing a parser down can take long, or crash; nobody waits for it


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    return clean_line(f"{type(error).__name__}: {error}".removesuffix(": "))


def _claim_standard_output() -> BinaryIO:
    """Takes standard output for the messages; whatever else prints, prints to nowhere."""
    output = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return output


def _limit_resources(request: Request) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    for kind, soft, hard in (
        (resource.RLIMIT_AS, request.memory_bytes, request.memory_bytes),
        (resource.RLIMIT_CPU, request.cpu_seconds, request.cpu_seconds + 5),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),  # pipes are not files
    ):
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        with contextlib.suppress(ValueError, OSError):  # macOS knows RLIMIT_AS by name only
            resource.setrlimit(kind, (soft, hard))


def _parse(data: bytes, request: Request) -> Iterator[Message]:
    """Runs the parser; cleans its pages and keeps them within the request's bounds."""
    module, _, name = _PARSERS[request.parser].partition(":")
    parser: Parser = getattr(importlib.import_module(module), name)
    left = request.max_characters
    for item in parser(data, request):
        if isinstance(item, Failed):
            yield item
            return
        if isinstance(item, Opened):
            yield Opened(item.pages, clean_line(item.title))
            continue
        if left <= 0:
            yield Failed("characters", "")
            return
        page = _finish(item, min(request.max_page_characters, left))
        left -= len(page.text)
        yield page
    yield Done()


def _finish(page: RawPage, longest: int) -> PageText:
    raw = "" if page.garbled else page.text
    return PageText(
        number=page.number,
        label=clean_line(page.label, 32),
        text=clean_text(raw[:longest])[:longest],
        garbled=page.garbled,
        truncated=len(raw) > longest,
        error=page.error,
    )
