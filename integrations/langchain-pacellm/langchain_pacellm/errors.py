"""PaceLLM's errors as LangChain knows them.

Each is both: LangChain's class, which middleware and fallbacks look for, and PaceLLM's, with its
attributes. Errors without a counterpart in LangChain pass as they are. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions

from pacellm_rag import errors

__all__ = [
    "PaceContextOverflowError",
    "PaceInvalidRequestError",
    "PaceQueueFullError",
    "PaceTimeoutError",
    "langchain_errors",
]


class PaceContextOverflowError(exceptions.ContextOverflowError, errors.ContextOverflowError):
    """Messages and answer exceed the model's context window."""


class PaceTimeoutError(exceptions.ModelTimeoutError, errors.DeadlineExceededError):
    """The answer was not there within `timeout`."""


class PaceQueueFullError(exceptions.ModelRateLimitError, errors.QueueFullError):
    """Too many requests wait for the model already, and did so at every retry."""


class PaceInvalidRequestError(exceptions.ModelInvalidRequestError, errors.ConfigurationError):
    """A message, a tool or a setting is one that can not work."""


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Raises PaceLLM's errors as LangChain's, wherever there is one that says the same."""
    try:
        yield
    except exceptions.ModelError:
        raise
    except errors.ContextOverflowError as error:
        raise PaceContextOverflowError(
            str(error),
            needed_tokens=error.needed_tokens,
            available_tokens=error.available_tokens,
            document_tokens=error.document_tokens,
        ) from error
    except errors.DeadlineExceededError as error:
        raise PaceTimeoutError(str(error)) from error
    except errors.QueueFullError as error:
        raise PaceQueueFullError(str(error)) from error
    except errors.ConfigurationError as error:
        raise PaceInvalidRequestError(str(error)) from error
