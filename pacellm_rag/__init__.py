"""Answers from whole documents, read once by a local language model, with checked citations.

    from pacellm_rag import DocumentReader, load_documents, load_model

    reader = DocumentReader(load_model(), load_documents(["report.pdf", "contract.pdf"]))
    answer = reader.ask("When does the contract end?")

Names are loaded on first use: importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pacellm_rag.answer import Answer as Answer
    from pacellm_rag.context.citations import Citation as Citation
    from pacellm_rag.context.planning import Plan as Plan
    from pacellm_rag.documents import Document as Document
    from pacellm_rag.documents import Page as Page
    from pacellm_rag.documents import load_document as load_document
    from pacellm_rag.documents import load_documents as load_documents
    from pacellm_rag.errors import ContextOverflowError as ContextOverflowError
    from pacellm_rag.errors import PaceLLMError as PaceLLMError
    from pacellm_rag.messages import Message as Message
    from pacellm_rag.models.engine_limits import EngineLimits as EngineLimits
    from pacellm_rag.models.loading import load_model as load_model
    from pacellm_rag.models.loading import load_tokenizer as load_tokenizer
    from pacellm_rag.models.readings import forget_readings as forget_readings
    from pacellm_rag.models.shared import release_shared_models as release_shared_models
    from pacellm_rag.models.shared import shared_model as shared_model
    from pacellm_rag.models.shared import shared_tokenizer as shared_tokenizer
    from pacellm_rag.pace.config import PaceConfig as PaceConfig
    from pacellm_rag.protocols import GenerationOptions as GenerationOptions
    from pacellm_rag.reader import DocumentReader as DocumentReader

__version__ = "0.1.0"

_HOMES = {
    "Answer": "pacellm_rag.answer",
    "Citation": "pacellm_rag.context.citations",
    "ContextOverflowError": "pacellm_rag.errors",
    "Document": "pacellm_rag.documents",
    "DocumentReader": "pacellm_rag.reader",
    "EngineLimits": "pacellm_rag.models.engine_limits",
    "GenerationOptions": "pacellm_rag.protocols",
    "Message": "pacellm_rag.messages",
    "PaceConfig": "pacellm_rag.pace.config",
    "PaceLLMError": "pacellm_rag.errors",
    "Page": "pacellm_rag.documents",
    "Plan": "pacellm_rag.context.planning",
    "forget_readings": "pacellm_rag.models.readings",
    "load_document": "pacellm_rag.documents",
    "load_documents": "pacellm_rag.documents",
    "load_model": "pacellm_rag.models.loading",
    "load_tokenizer": "pacellm_rag.models.loading",
    "release_shared_models": "pacellm_rag.models.shared",
    "shared_model": "pacellm_rag.models.shared",
    "shared_tokenizer": "pacellm_rag.models.shared",
}

__all__ = [
    *_HOMES,
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
