"""What the server lets a page do: limits, and how answers are decoded until a page says otherwise.

Knows numbers and callables only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from pacellm_rag.documents import DocumentLimits
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import GenerationOptions, TextModel

__all__ = ["PageSettings"]


@dataclass(frozen=True)
class PageSettings:
    """Settings of all pages of a server.

    Attributes:
        options: how answers are decoded, until a page says otherwise.
        document_limits: what parsing one file may cost.
        files_at_once: most files of one upload.
        question_characters: most characters of a question.
        documents_at_once: how many documents "ask every document" works on at a time.
        idle_seconds: after which a page that has not been heard of is forgotten; what it said and
            its documents stay in the library.
        reading_seconds: after which the documents that such a page has read may be forgotten, when
            others need the memory; where nobody does, they are not read again.
        updates_per_second: most views that a handler yields.
        plain_model: for `Handlers` with a single model: the same without memory banks, to compare
            with; None where there is none.
        forget_readings: has all models forget documents that nobody keeps any more, by their
            content ids, and returns how many files it could not remove yet; None where models keep
            nothing of what they read.

    Raises:
        ConfigurationError: a value can not work.
    """

    options: GenerationOptions = field(default_factory=GenerationOptions)
    document_limits: DocumentLimits = field(default_factory=DocumentLimits)
    files_at_once: int = 20
    question_characters: int = 20_000
    documents_at_once: int = 2
    idle_seconds: float = 3600.0
    reading_seconds: float = 600.0
    updates_per_second: float = 10.0
    plain_model: Callable[[], TextModel] | None = None
    forget_readings: Callable[[Collection[str]], int] | None = None

    def __post_init__(self) -> None:
        for name in (
            "files_at_once",
            "question_characters",
            "documents_at_once",
            "idle_seconds",
            "reading_seconds",
            "updates_per_second",
        ):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be above 0.")
