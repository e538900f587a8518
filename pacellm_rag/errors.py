"""Every error that this package raises on purpose.

Knows nothing of models or documents. One root, `PaceLLMError`; no error of the engine is a
`ValueError` or `TypeError`, because frameworks around us (LlamaIndex' `compact` synthesizer, for
one) turn those into an empty answer. Only `ConfigurationError`, which is about what the caller
wrote down and never about running work, is a `ValueError` as well.

Each message says what was wrong, the limit that was met, and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "CancelledError",
    "ConfigurationError",
    "ContextOverflowError",
    "DeadlineExceededError",
    "DocumentError",
    "DocumentLimitError",
    "EncryptedDocumentError",
    "InsufficientMemoryError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotInstalledError",
    "NoEffectError",
    "PaceLLMError",
    "QueueFullError",
]


class PaceLLMError(Exception):
    """Root of all errors raised on purpose by this package."""


class ConfigurationError(PaceLLMError, ValueError):
    """A setting has a value that can not work."""


class MissingDependencyError(PaceLLMError, ImportError):
    """An optional library is not installed; the message holds the pip command."""


class CancelledError(PaceLLMError):
    """The caller cancelled the work through its cancel signal."""


class DeadlineExceededError(PaceLLMError):
    """The request did not end within its timeout."""


class QueueFullError(PaceLLMError):
    """Too many requests wait for the model already; try again later."""


class InsufficientMemoryError(PaceLLMError):
    """There is not the memory for what was to be read.

    Attributes:
        needed_bytes: what it takes.
        free_bytes: what there is; None where that can not be told.
    """

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int | None) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ModelError(PaceLLMError):
    """A model could not be found, loaded or used."""


class ModelNotInstalledError(ModelError):
    """The default model is not on this machine yet; the message holds the command to run."""


class NoEffectError(PaceLLMError):
    """What was to be compared with the plain model changed not a bit of what it computes."""


class ContextOverflowError(PaceLLMError):
    """The prompt and the room kept for the answer do not fit the model's context window.

    Attributes:
        needed_tokens: tokens of the whole request: prompt and answer.
        available_tokens: the model's context window in tokens.
        document_tokens: tokens that each document needs, by title, in the order of the prompt.
    """

    def __init__(
        self,
        message: str,
        *,
        needed_tokens: int,
        available_tokens: int,
        document_tokens: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.needed_tokens = needed_tokens
        self.available_tokens = available_tokens
        self.document_tokens = dict(document_tokens or {})


class DocumentError(PaceLLMError):
    """A file could not be read as a document.

    Attributes:
        path: the file, as the caller named it.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class EncryptedDocumentError(DocumentError):
    """The file needs a password, or the password given is wrong."""


class DocumentLimitError(DocumentError):
    """Reading the file went over a limit of memory, time or size before any page was read."""
