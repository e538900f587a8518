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

__all__ = ["Parser", "RawPage", "describe", "main", "wanted_pages"]

_PARSERS = {
    "pypdf": "pacellm_rag.documents.pypdf_parser",
    "pypdfium2": "pacellm_rag.documents.pypdfium2_parser",
    "docx": "pacellm_rag.documents.docx_parser",
    "html": "pacellm_rag.documents.html_parser",
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
        parser: Parser = importlib.import_module(_PARSERS[request.parser]).parse
        _forbid_files()
        data = read_frame(sys.stdin.buffer, _LONGEST_FILE)
        if data is not None:
            for message in _messages(parser(data, request), request):
                write_frame(output, encode_message(message))
    except ImportError as error:
        write_frame(output, encode_message(Failed("start", describe(error))))
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


def wanted_pages(request: Request, count: int) -> Iterator[int]:
    """The pages to read, of those that there are."""
    if request.pages is None:
        yield from range(1, min(count, request.max_pages) + 1)
    else:
        yield from (number for number in request.pages if 1 <= number <= count)


def _claim_standard_output() -> BinaryIO:
    """Takes standard output for the messages; whatever else prints, prints to nowhere."""
    output = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return output


def _limit_resources(request: Request) -> None:
    _limit("RLIMIT_AS", request.memory_bytes)
    _limit("RLIMIT_CPU", request.cpu_seconds)
    _limit("RLIMIT_CORE", 0)


def _forbid_files() -> None:
    """After the imports, which may leave compiled modules; pipes are not files."""
    _limit("RLIMIT_FSIZE", 0)


def _limit(name: str, most: int) -> None:
    if sys.platform != "win32":  # there the parent's clock is the only limit
        import resource

        kind = getattr(resource, name)
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            most = min(most, ceiling)
        with contextlib.suppress(ValueError, OSError):  # macOS knows RLIMIT_AS by name only
            resource.setrlimit(kind, (most, ceiling))


def _messages(items: Iterator[Opened | Failed | RawPage], request: Request) -> Iterator[Message]:
    """What to send of what a parser gives: clean pages, within the request's bounds."""
    left = request.max_characters
    for item in items:
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
