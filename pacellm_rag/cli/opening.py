"""From file names and settings to documents and a reader that has read them.

`open_tokenizer` and `open_model` are the only places where the shell touches Hugging Face; tests
put a scripted model there.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pacellm_rag.cli.progress import FileProgress, ReadingProgress
from pacellm_rag.cli.terminal import Terminal
from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.planning import Plan, plan_question
from pacellm_rag.documents import Document, load_documents
from pacellm_rag.errors import DocumentError
from pacellm_rag.models.default_model import default_model_folder
from pacellm_rag.protocols import PromptTokenizer, TextModel
from pacellm_rag.reader import DocumentReader
from pacellm_rag.settings import Settings

if TYPE_CHECKING:
    from pacellm_rag.models.kv_cache import KVCacheKind

__all__ = [
    "count",
    "hush_libraries",
    "open_documents",
    "open_model",
    "open_reader",
    "open_tokenizer",
]


def open_tokenizer(settings: Settings) -> PromptTokenizer:
    """Loads a tokenizer, without weights."""
    if settings.model is None:
        default_model_folder()  # refuses before the libraries load, which takes seconds
    hush_libraries()
    from pacellm_rag.models.loading import load_tokenizer

    return load_tokenizer(settings.model, context_window=settings.context_window)


def open_model(settings: Settings) -> TextModel:
    """Loads a model."""
    hush_libraries()
    from pacellm_rag.models.loading import load_model
    from pacellm_rag.pace.config import PaceConfig

    choices: dict[str, PaceConfig | Literal["auto", "on"] | None] = {"on": "on", "off": None}
    return load_model(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        context_window=settings.context_window,
        window=settings.window,
        pace=choices.get(settings.pace, "auto"),
        kv_cache=cast("KVCacheKind", settings.kv_cache),
        adapter=None if settings.adapter == "none" else settings.adapter,
        store_bytes=int(settings.store_gb * 2**30),
    )


def open_documents(
    files: Sequence[str], password: str | None, terminal: Terminal
) -> list[Document]:
    """Parses the files; tells on standard error what is missing from them.

    Raises:
        DocumentError: some can not be read; the message names all of them.
    """
    failed: list[DocumentError] = []
    with FileProgress(terminal) as progress:

        def named() -> Iterator[str]:
            for file in files:
                progress.begin(os.path.basename(file))
                yield file

        documents = load_documents(
            named(), password=password, progress=progress, on_error=failed.append
        )
    for document in documents:
        for warning in document.warnings:
            terminal.warning(f"{document.title}: {warning.message}")
    if len(failed) == 1:
        raise failed[0]
    if failed:
        lines = [f"{len(failed)} of {len(files)} files can not be read:", *map(str, failed)]
        raise DocumentError("\n  ".join(lines), path=failed[0].path)
    return documents


def count(
    documents: Sequence[Document], questions: Sequence[str], settings: Settings, terminal: Terminal
) -> list[Plan]:
    """Counts what each question needs; loads no weights."""
    packed = pack_context(documents)
    with _loading(f"tokenizer of {_model(settings)}", [settings.model], terminal):
        tokenizer = open_tokenizer(settings)
    return [
        plan_question(packed, tokenizer, question, answer_tokens=settings.max_new_tokens)
        for question in questions
    ]


def open_reader(
    documents: Sequence[Document], questions: Sequence[str], settings: Settings, terminal: Terminal
) -> DocumentReader:
    """Loads the model and reads the documents.

    Raises:
        ContextOverflowError: a question does not fit; no weights were loaded.
    """
    for plan in count(documents, questions or [""], settings, terminal):
        plan.check()
    adapter = None if settings.adapter in ("auto", "none") else settings.adapter
    what = _model(settings) if adapter is None else f"{_model(settings)} with {adapter}"
    with _loading(what, [settings.model, adapter], terminal):
        model = open_model(settings)
    if settings.model is None:
        terminal.note(
            f"Answers come from the default model, {model.name}. It is small and often wrong: "
            "check the pages it cites, or name a better one with --model."
        )
    reader = DocumentReader(model, documents, options=settings.generation_options)
    with ReadingProgress(terminal) as progress:
        reader.read(progress=progress)
    return reader


def _model(settings: Settings) -> str:
    return settings.model or "the default model"


def _loading(
    what: str, names: Sequence[str | None], terminal: Terminal
) -> AbstractContextManager[None]:
    """Tells that something is loaded; `names` are those of its parts, None for what is here."""
    if all(name is None or Path(name).expanduser().exists() for name in names):
        return terminal.working(f"Loading {what}")
    # the hub's own bars are shown, and two would not get along
    terminal.note(f"Loading {what} from the hub or its cache")
    return nullcontext()


def hush_libraries() -> None:
    """Switches off what transformers shows on its own, but for downloads from the hub."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; the hub overrules it
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
