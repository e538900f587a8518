"""The settings of a `PaceLLM`, and the model behind them: loaded late, shared, and left at home.

Objects of LlamaIndex are made freely, copied, pickled and written down as dictionaries. What is
heavy stays in this process, once for equal settings. Knows nothing of prompts or answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, field_validator
from llama_index.core.llms.function_calling import FunctionCallingLLM

import pacellm_rag
from llama_index.llms.pacellm.messages import DocumentShelf
from pacellm_rag import EngineLimits, PaceConfig
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import PromptTokenizer, TextModel

__all__ = ["DEFAULT", "SharedModelLLM"]

DEFAULT = "default"
_LOADING: Final = (
    "device",
    "dtype",
    "attention",
    "context_window",
    "window",
    "pace",
    "limits",
    "store_bytes",
    "kv_cache",
    "adapter",
    "trust_remote_code",
    "model_arguments",
)
_DECODING: Final = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "timeout")


class SharedModelLLM(FunctionCallingLLM):
    """Settings, and the model that they name.

    Args:
        model: what to load; see the field.
        engine: a model that is loaded already, for example by `pacellm_rag.load_model`. Copies in
            this process share it; pickles and dictionaries go without it.
        settings: the other fields.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = Field(
        default=DEFAULT,
        description='A folder, a .gguf file, an id of the model hub, or "default".',
    )
    temperature: float = Field(default=0.0, ge=0, description="0 takes the likeliest tokens.")
    max_tokens: int = Field(default=256, ge=1, description="Most tokens of an answer.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Probability to sample among.")
    top_k: int = Field(default=0, ge=0, description="Tokens to sample among; 0 for all.")
    seed: int | None = Field(default=None, description="Of the sampler; None draws a new one.")
    stop: list[str] = Field(default_factory=list, description="Strings that end an answer.")
    timeout: float | None = Field(default=None, gt=0, description="Most seconds of an answer.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = Field(default="auto", description="auto, bfloat16, float16 or float32.")
    attention: str = Field(default="auto", description="As for load_model.")
    context_window: int | None = Field(
        default=None, ge=1, description="Most tokens of prompt and answer; None: the model's own."
    )
    window: int | None = Field(default=None, ge=1, description="Tokens per step of reading.")
    pace: PaceConfig | Literal["auto", "on"] | None = Field(
        default="auto", description="PaceLLM's memory banks; as for load_model."
    )
    limits: EngineLimits | None = Field(default=None, description="What the engine may take.")
    store_bytes: int | None = Field(
        default=None, ge=0, description="Most bytes of readings on disk; None: load_model's own."
    )
    kv_cache: Literal["auto", "full", "fp8", "offload"] = Field(
        default="auto", description="How keys and values are held; as for load_model."
    )
    adapter: str | None = Field(
        default="auto",
        description="LoRA adapter to lay on the model: a folder or an id of the model hub; "
        '"auto": the default model\'s own; None: none.',
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model."
    )
    model_arguments: dict[str, Any] | None = Field(
        default=None, description="Further arguments of transformers' from_pretrained."
    )

    _engine: TextModel | None = PrivateAttr(default=None)
    _tokenizer: PromptTokenizer | None = PrivateAttr(default=None)
    _shelf: DocumentShelf = PrivateAttr(default_factory=DocumentShelf)

    def __init__(
        self,
        model: str | Path = DEFAULT,
        *,
        engine: TextModel | None = None,
        **settings: Any,
    ) -> None:
        if engine is not None and model == DEFAULT:
            model = engine.name
        super().__init__(model=str(model), **settings)
        changed = ", ".join(self._loading_settings())
        if engine is not None and changed:
            raise ConfigurationError(
                f"{changed}: this counts when the model is loaded, and engine= is loaded already. "
                "Leave it out, or pass model= instead of engine=."
            )
        self._engine = engine

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, stop: Any) -> Any:
        """One string is a list of one, and None is none."""
        return [stop] if isinstance(stop, str) else stop or []

    @field_validator("adapter", mode="before")
    @classmethod
    def _path_as_text(cls, adapter: Any) -> Any:
        """As it can be written down, and is no id of the hub."""
        return str(adapter.expanduser().absolute()) if isinstance(adapter, Path) else adapter

    def _loading_settings(self) -> dict[str, Any]:
        """What to load with; only what was changed, so that equal models are shared."""
        fields = type(self).model_fields
        found = {name: getattr(self, name) for name in _LOADING}
        return {name: value for name, value in found.items() if value != fields[name].default}

    def _decoding_settings(self) -> Mapping[str, Any]:
        """What a call may change."""
        return {name: getattr(self, name) for name in _DECODING}

    @property
    def _name(self) -> str | None:
        return None if self.model == DEFAULT else self.model

    @property
    def text_model(self) -> TextModel:
        """The model; loaded now where nobody in this process has loaded it before.

        Raises:
            PaceLLMError: as for `load_model`.
        """
        if self._engine is None:
            self._engine = pacellm_rag.shared_model(self._name, **self._loading_settings())
        return self._engine

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """What counts prompts; needs no weights.

        Raises:
            PaceLLMError: as for `load_tokenizer`.
        """
        if self._engine is not None:
            return self._engine.tokenizer
        if self._tokenizer is None:
            self._tokenizer = pacellm_rag.shared_tokenizer(
                self._name,
                context_window=self.context_window,
                trust_remote_code=self.trust_remote_code,
            )
        return self._tokenizer

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans by; reads the tokenizer's files, but no weights."""
        return self._metadata(self.prompt_tokenizer.context_window)

    def _metadata(self, context_window: int) -> LLMMetadata:
        return LLMMetadata(
            context_window=context_window,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events tell of this model.

        Opens no files, for it is asked in the event loop: the window is left out until known.
        """
        known = self._engine is not None or self._tokenizer is not None
        told = self._metadata(self.prompt_tokenizer.context_window if known else 1).model_dump()
        if not known:
            del told["context_window"]
        return {"class_name": self.class_name(), **told, "temperature": self.temperature}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> SharedModelLLM:
        """A copy with settings of its own, and the same model."""
        memo = {} if memo is None else memo
        for shared in (self._engine, self._tokenizer, self._shelf):
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone."""
        bare = self.model_copy()
        bare.__pydantic_private__ = None
        return super(SharedModelLLM, bare).__getstate__()
