"""The contract of LlamaIndex' LLMs, kept by PaceLLM over random weights, with and without banks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llama_index.core.llms.function_calling import FunctionCallingLLM

from llama_index.llms.pacellm import PaceLLM
from llama_index.llms.pacellm.contract import LLMContract
from pacellm_rag import PaceConfig
from pacellm_rag.models.model import PaceModel
from pacellm_rag.testing import tiny_model


class Passes:
    """Counts the forward passes of a model, and breaks it after some."""

    def __init__(self, model: PaceModel, most: int | None = None) -> None:
        self.count = 0
        self.most = most
        model.module.register_forward_pre_hook(self.note)

    def note(self, *_: object) -> None:
        self.count += 1
        if self.most is not None and self.count > self.most:
            raise RuntimeError("the machine burns")


class PaceContract(LLMContract):
    """PaceLLM's hooks."""

    pace: PaceConfig | None = None
    longest_answer = 128

    @pytest.fixture(autouse=True)
    def _model(self) -> None:
        torch.set_num_threads(1)
        self.engine = tiny_model(pace=self.pace, max_position_embeddings=24576)
        self.passes = Passes(self.engine)

    def make_llm(self, **settings: Any) -> FunctionCallingLLM:
        return PaceLLM(engine=self.engine, **{"max_tokens": 96, **settings})

    def failing_llm(self) -> FunctionCallingLLM:
        engine = tiny_model(pace=self.pace)
        Passes(engine, most=4)
        return PaceLLM(engine=engine)

    def work_done(self, llm: FunctionCallingLLM) -> int:
        return self.passes.count


class TestPlain(PaceContract):
    pass


class TestWithBanks(PaceContract):
    pace = PaceConfig()
    paragraphs = 680  # banks count in windows of 1,024 tokens; the last one is read again
