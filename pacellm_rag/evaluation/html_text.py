"""Text of models and of data files as HTML that can do nothing. Knows text only."""

from __future__ import annotations

import re
from html import escape
from typing import Any

__all__ = ["html_text"]

# What HTML may not hold, and what turns the direction of the text around it.
_NOT_IN_HTML = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)


def html_text(value: Any) -> str:
    """A value's text, for the inside of an element or of an attribute in quotes.

    Characters that HTML may not hold, or that would turn text around them, become U+FFFD.
    """
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return escape(_NOT_IN_HTML.sub("\ufffd", text), quote=True)
