"""What the tests of the whole-document chain ask, and the models and callbacks they ask with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

import pacellm_rag
from langchain_pacellm import PacePDFLoader
from pacellm_rag import errors
from pacellm_rag.testing import ScriptedModel

QUESTION = "Who represents the Supplier?"
SAID = "The Supplier is represented by Gideon Ashby [D3 p4]. He is its contracts manager."
ANSWER = "The Supplier is represented by Gideon Ashby. He is its contracts manager."
NAMES = ("annual-report", "equipment-manual", "supplier-contract")
SMALL = [
    Document(f"{name} has {count} pumps.", metadata={"source": f"{name}.txt", "page": 0})
    for name, count in (("Hallen", 4), ("Norrock", 3))
]


def load_sample_pages(folder: Path) -> list[Document]:
    """The pages of the three samples, in the order of `NAMES`."""
    return PacePDFLoader([folder / f"{name}.pdf" for name in NAMES]).load()


def load_text(page: Document) -> pacellm_rag.Document:
    name = page.metadata["source"].removesuffix(".txt")
    return pacellm_rag.Document(f"x{name}", name, (pacellm_rag.Page(1, "1", page.page_content),))


class BrokenModel(ScriptedModel):
    """Fails at the third word of its answers."""

    error: Exception = errors.DeadlineExceededError("The answer took longer than 5 seconds.")

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        words = super().stream(*args, **kwargs)
        error, given = self.error, type(words).__next__

        class Broken(type(words)):  # type: ignore[misc]
            def __next__(self) -> str:
                if self.completion_tokens == 2:
                    raise error
                return given(self)

        words.__class__ = Broken
        return words


class WaitingModel(ScriptedModel):
    """Waits, after two words, for what never comes."""

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        words = super().stream(*args, **kwargs)

        class Waiting(type(words)):  # type: ignore[misc]
            async def __anext__(self) -> str:
                if self.completion_tokens == 2:
                    await asyncio.sleep(3600)
                return next(self)

        words.__class__ = Waiting
        return words


class Recorder(BaseCallbackHandler):
    """What callbacks were told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.tokens: list[str] = []
        self.started: dict[str, Any] = {}
        self.ended: dict[str, Any] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.events.append(f"chain start {kwargs['name']}")
        self.started["chain"] = (inputs, kwargs)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.events.append("chain end")
        self.ended["chain"] = outputs

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(f"chain error {type(error).__name__}")

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.events.append("model start")
        self.started["model"] = (messages, kwargs)

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.events.append("model end")
        self.ended["model"] = response.generations[0][0].message

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(f"model error {type(error).__name__}")
