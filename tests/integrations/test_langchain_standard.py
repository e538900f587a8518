"""LangChain's own suites for chat models, on a trained tiny model and on the default model.

All of the suites' switches that a text model can have are on; nothing is overridden or expected to
fail. What would be fetched from the web is a sample of our own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tool_model
import torch
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_pacellm import ChatPaceLLM
from pacellm_rag import release_shared_models
from pacellm_rag.testing import tiny_model

pytestmark = pytest.mark.slow

# What is read is kept in stretches; one that is shorter is read again.
LONG_TEXT = "The quick brown fox jumps over the lazy dog. " * 40
DETAILS = ["cache_read_input", "cache_creation_input"]


@pytest.fixture(scope="module")
def trained_folder(real_cache_folder: str | None) -> Path:
    return tool_model.tool_model_folder(real_cache_folder)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "another-model"
    model = tiny_model("qwen2", seed=3)
    model.module.save_pretrained(folder)
    model.tokenizer.hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _weights_go_at_the_end() -> Iterator[None]:
    yield
    release_shared_models()


class OfChatPaceLLM:
    """What both suites are told."""

    params: dict[str, Any]

    @property
    def chat_model_class(self) -> type[ChatPaceLLM]:
        return ChatPaceLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.params


class TestTrainedModelIntegration(OfChatPaceLLM, ChatModelIntegrationTests):
    other: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _told(cls, trained_folder: Path, other_folder: Path) -> None:
        cls.params = {"model": str(trained_folder), "max_tokens": 200, "store_bytes": 0}
        cls.other = str(other_folder)

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.other

    @property
    def supported_usage_metadata_details(self) -> dict[Any, list[Any]]:
        return {"invoke": DETAILS, "stream": DETAILS}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        text = f"{LONG_TEXT} Stream is {stream}."
        self._answer(text, stream=stream)
        again = self._answer(text, stream=stream)
        assert again.usage_metadata is not None
        assert again.usage_metadata["input_token_details"]["cache_read"] > 0
        return again

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        new = self._answer(f"Something new, stream is {stream}", stream=stream)
        assert new.usage_metadata is not None
        assert new.usage_metadata["input_token_details"]["cache_creation"] > 0
        return new

    def _answer(self, text: str, *, stream: bool) -> AIMessage:
        model = ChatPaceLLM(**self.params)
        if not stream:
            return model.invoke(text)
        first, *rest = model.stream(text)
        return first + rest

    @pytest.fixture(autouse=True)
    def _the_web(self, monkeypatch: pytest.MonkeyPatch, documents: Path) -> None:
        """One PDF."""

        def get(url: str, **_: Any) -> httpx.Response:
            assert url.endswith(".pdf")
            return httpx.Response(200, content=(documents / "supplier-contract.pdf").read_bytes())

        monkeypatch.setattr(httpx, "get", get)


class TestTrainedModelUnit(OfChatPaceLLM, ChatModelUnitTests):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _told(cls, trained_folder: Path) -> None:
        cls.params = {"model": str(trained_folder), "store_bytes": 0}


class TestDefaultModelIntegration(OfChatPaceLLM, ChatModelIntegrationTests):
    """What needs no skill with tools, which the default model has not."""

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False  # enforced whatever the weights: shown above, in a tenth of the time

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _told(cls, real_cache_folder: str | None) -> Iterator[None]:
        cls.params = {"max_tokens": 20, "store_bytes": 0}
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            if real_cache_folder is None:
                patch.delenv("PACELLM_RAG_CACHE")
            else:
                patch.setenv("PACELLM_RAG_CACHE", real_cache_folder)
            torch.set_num_threads(os.cpu_count() or 1)
            yield
            torch.set_num_threads(threads)
