"""PaceLLM's settings: what they cost, where they are shared, and which are refused."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from pydantic import ValidationError

import pacellm_rag
from llama_index.llms.pacellm import PaceLLM
from pacellm_rag import EngineLimits, PaceConfig, release_shared_models
from pacellm_rag.errors import (
    ConfigurationError,
    ModelError,
)
from pacellm_rag.models.model import PaceModel

Tiny = Callable[..., PaceModel]
USER = MessageRole.USER


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=USER, content=text)]


@pytest.fixture
def shared() -> Iterator[None]:
    """Leaves no shared weights behind."""
    yield
    release_shared_models()


@pytest.fixture
def folder(tiny: Tiny, folder_of: Callable[[PaceModel], Path], shared: None) -> Path:
    return folder_of(tiny())


def test_making_one_reads_nothing() -> None:
    llm = PaceLLM("/no/such/folder", max_tokens=7)
    assert llm.to_payload() == {
        "class_name": "PaceLLM",
        "num_output": 7,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "model_name": "/no/such/folder",
        "system_role": MessageRole.SYSTEM,
        "temperature": 0.0,
    }
    with pytest.raises(ModelError, match="There is no model at /no/such/folder"):
        llm.chat(user("Hello"))
    with pytest.raises(ModelError, match="There is no model at"):
        assert llm.metadata


def test_metadata_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    llm = PaceLLM(folder)
    assert llm.metadata.context_window == 4096
    assert llm.to_payload()["context_window"] == 4096
    assert PaceLLM(folder, context_window=512).metadata.context_window == 512


def test_equal_settings_share_their_weights(folder: Path) -> None:
    llm = PaceLLM(folder, max_tokens=3)
    other = PaceLLM(folder, temperature=0.5, store_bytes=None, device="auto")
    assert llm.text_model is other.text_model
    assert llm.text_model is pacellm_rag.shared_model(folder)
    assert PaceLLM(folder, window=16).text_model is not llm.text_model


def test_all_settings_survive_being_written_down() -> None:
    llm = PaceLLM(
        "some/model",
        temperature=0.3,
        max_tokens=9,
        top_p=0.9,
        top_k=4,
        seed=11,
        stop="END",
        timeout=3.5,
        device="cpu",
        dtype="float32",
        context_window=1024,
        window=64,
        pace=PaceConfig(layers=(1, 2), slots=7),
        limits=EngineLimits(max_running=2),
        store_bytes=5,
        kv_cache="full",
        adapter="owner/adapter",
        trust_remote_code=True,
        model_arguments={"revision": "main"},
        system_prompt="Be brief.",
    )
    written = json.loads(llm.to_json())
    for again in (PaceLLM.from_dict(written), PaceLLM.from_json(llm.to_json()), copy.deepcopy(llm)):
        assert again.to_dict() == llm.to_dict()
        assert again.pace == PaceConfig(layers=(1, 2), slots=7)
        assert again.limits == EngineLimits(max_running=2)
    assert pickle.loads(pickle.dumps(llm)).to_dict() == llm.to_dict()
    assert PaceLLM.from_dict({**written, "pace": None}).pace is None
    assert PaceLLM.from_dict({**written, "adapter": None}).adapter is None


def test_an_adapter_is_handed_on_when_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(pacellm_rag, "shared_model", lambda _, **given: asked.append(given))
    for adapter in ("auto", None, "owner/lora", tmp_path):
        assert PaceLLM("some/model", adapter=adapter).text_model is None
    assert asked == [
        {},
        {"adapter": None},
        {"adapter": "owner/lora"},
        {"adapter": str(tmp_path)},
    ]
    assert Path(PaceLLM("some/model", adapter=Path("a/b")).adapter or "").is_absolute()


def test_a_loaded_model_stays_at_home_but_is_shared_by_copies(tiny: Tiny) -> None:
    engine = tiny()
    llm = PaceLLM(engine=engine, max_tokens=5)
    assert copy.deepcopy(llm).text_model is engine
    assert llm.model_copy().text_model is engine
    away = pickle.loads(pickle.dumps(llm))
    assert (away.model, away.max_tokens) == (engine.name, 5)
    with pytest.raises(ModelError, match=engine.name):
        away.chat(user("Hello"))
    assert PaceLLM.from_dict(llm.to_dict(), engine=engine).text_model is engine


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"kv_cache": "zip"}, "kv_cache"),
        ({"pace": "off"}, "pace"),
        ({"pace": {"slots": 0}}, "slots is 0"),
        ({"max_new_tokens": 4}, "max_new_tokens"),
    ],
)
def test_settings_that_can_not_work_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        PaceLLM(**settings)


def test_a_loaded_model_takes_no_settings_of_loading(tiny: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="window, pace: this counts when"):
        PaceLLM(engine=tiny(), window=16, pace=None)
