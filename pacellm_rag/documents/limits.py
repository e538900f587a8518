"""How much a document may cost before reading it stops.

Knows numbers only; `sandbox` and the parsers enforce them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pacellm_rag.errors import ConfigurationError

__all__ = ["DocumentLimits"]

_SMALLEST_MEMORY = 128 * 1024**2
"""Python, pypdf and a page of text need about 60 MB of address space on top of the file."""


@dataclass(frozen=True)
class DocumentLimits:
    """Limits on one document.

    Going over `file_bytes` or `unpacked_bytes` refuses the file. Going over any other limit keeps
    what was read until then and says in the document's warnings what is missing.

    Attributes:
        file_bytes: largest file. 200 MB holds a scanned book; the file is kept in memory, here
            and in the child, while it is read.
        pages: most pages read of a PDF. 5,000 is more than any model reads in one context.
        characters_per_page: most characters kept of one page. The densest printed pages hold
            20,000; a 39 KB file can claim 40 million for one page.
        characters: most characters kept of a document: about 5 million tokens, five times the
            longest context windows.
        unpacked_bytes: largest unpacked size of a Word file, which is a zip archive.
        memory_bytes: address space of the parser process. Ordinary files need 100 MB, large ones
            500 MB. Not enforced on Windows.
        cpu_seconds: CPU time of one parser process. Not enforced on Windows.
        wall_seconds: time for the whole document, both PDF parsers together: pypdf reads 30 to 80
            pages a second, pypdfium2 takes over after three quarters of the time.
        page_seconds: longest wait for the next page, so that one bad page does not use up
            `wall_seconds`.

    Raises:
        ConfigurationError: a limit is too small to read anything.
    """

    file_bytes: int = 200_000_000
    pages: int = 5_000
    characters_per_page: int = 200_000
    characters: int = 20_000_000
    unpacked_bytes: int = 300_000_000
    memory_bytes: int = 2 * 1024**3
    cpu_seconds: int = 120
    wall_seconds: float = 120.0
    page_seconds: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name not in ("wall_seconds", "page_seconds")
            kind = "a whole number" if whole else "a number of seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ConfigurationError(f"{field.name} is {value!r}; it must be {kind}.")
            least = {"memory_bytes": _SMALLEST_MEMORY}.get(field.name, 1 if whole else 0.1)
            if not least <= value < float("inf"):
                raise ConfigurationError(
                    f"{field.name} is {value}; it must be {kind}, {least} or more."
                )
