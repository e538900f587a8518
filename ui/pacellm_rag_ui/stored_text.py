"""What people and files call things, made fit to be kept; and JSON as the library keeps it.

Knows nothing of where it is kept. How names are shown is another matter (`safe_text`).
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from pacellm_rag_ui.records import LibraryError

__all__ = ["json_text", "kept_name", "kept_text", "kept_title"]

_LONGEST_NAME = 255
_LONGEST_TITLE = 300
_KEPT_END = 40  # of a shortened name: its suffix and what often tells names apart
_BREAKING = ("Cc", "Cs", "Zl", "Zp")  # control characters, half characters, line separators
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # lone surrogates: no UTF-8, no database


def kept_text(text: str) -> str:
    """Any text, but for half characters, which stand for nothing."""
    return _HALF_CHARACTER.sub("\ufffd", text)


def kept_name(name: str) -> str:
    """A file's name without folders and control characters, 1 to 255 characters."""
    last = re.split(r"[/\\]", name)[-1]
    line = _one_line(last, _LONGEST_NAME)
    return line if line.strip(". ") else "document"


def kept_title(title: str) -> str:
    """A title in one line, at most 300 characters; "" stays so."""
    return _one_line(title, _LONGEST_TITLE)


def json_text(value: Any, called: str) -> str:
    """JSON of a value.

    Raises:
        LibraryError: it has none.
    """
    try:
        return kept_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise LibraryError(f"The {called} of a turn must be JSON: {error}.") from error


def _one_line(text: str, longest: int) -> str:
    line = text.strip()
    if len(line) > longest:
        line = f"{line[: longest - _KEPT_END - 1]}…{line[-_KEPT_END:]}"
    return "".join("\ufffd" if unicodedata.category(c) in _BREAKING else c for c in line)
