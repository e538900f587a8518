"""ChatPaceLLM's settings: what they change, who shares weights, copies, cache keys, traces."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelError, ModelTimeoutError
from pydantic import ValidationError

import pacellm_rag.errors
from langchain_pacellm import ChatPaceLLM
from pacellm_rag import PaceConfig, release_shared_models
from pacellm_rag.models.model import PaceModel
from pacellm_rag.testing import ScriptedModel

Tiny = Callable[..., PaceModel]


def test_a_call_overrides_the_models_settings(tiny: Tiny) -> None:
    chat = ChatPaceLLM(engine=tiny("llama"), max_tokens=30, temperature=2.0, seed=1)
    usage = chat.invoke("Hello", max_tokens=2).usage_metadata
    assert usage is not None
    assert usage["output_tokens"] == 2
    greedy = ChatPaceLLM(engine=chat.engine, max_tokens=30).invoke("Hello").text
    assert chat.invoke("Hello", temperature=0.0).text == greedy
    assert chat.invoke("Hello").text == chat.invoke("Hello", temperature=2.0, seed=None).text
    assert chat.invoke("Hello", seed=2).text != chat.invoke("Hello").text
    assert chat.invoke("Hello", top_k=1).text == greedy
    assert chat.invoke("Hello", top_p=1e-9).text == greedy
    with pytest.raises(ModelTimeoutError):
        chat.invoke("Hello", timeout=1e-6)


def test_a_setting_that_there_is_not_is_refused_and_not_lost() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel())
    with pytest.raises(ModelError, match=r"no setting named max_new_tokens; it takes model, stop"):
        chat.invoke("Hello", max_new_tokens=3)
    with pytest.raises(ModelError, match="temperature is -1"):
        chat.invoke("Hello", temperature=-1)
    with pytest.raises(ValidationError, match="max_new_tokens is 0"):
        ChatPaceLLM(engine=ScriptedModel(), max_tokens=0)
    with pytest.warns(UserWarning, match="no argument named max_token"):
        ChatPaceLLM(engine=ScriptedModel(), max_token=3)


@pytest.fixture
def folder(tiny: Tiny, folder_of: Callable[[PaceModel], Any]) -> Iterator[str]:
    yield str(folder_of(tiny("llama")))
    release_shared_models()


def test_equal_settings_share_one_engine_and_building_loads_no_weights(folder: str) -> None:
    settings: dict[str, Any] = {"model": folder, "store_bytes": 0, "dtype": "float32"}
    one, two = ChatPaceLLM(**settings), ChatPaceLLM(**settings, temperature=1.0)
    assert one.profile is not None
    assert one.profile["max_input_tokens"] == 4096 - 256
    assert one.prompt_tokenizer is two.prompt_tokenizer
    assert one.text_model is two.text_model
    assert ChatPaceLLM(**settings, window=64).text_model is not one.text_model
    pace = {"layers": [0, 2], "slots": 16, "window": 20}
    banked = ChatPaceLLM(**settings, pace=pace).text_model
    assert banked.pace is not None
    config = PaceConfig(layers=(0, 2), slots=16, window=20)
    assert ChatPaceLLM(**settings, pace=config).text_model is banked


def test_a_call_can_ask_another_model(folder: str, tiny: Tiny) -> None:
    chat = ChatPaceLLM(engine=tiny("qwen2"), max_tokens=8, store_bytes=0, dtype="float32")
    other = ChatPaceLLM(model=folder, max_tokens=8, store_bytes=0, dtype="float32")
    answer = chat.invoke("Hello", model=folder)
    assert answer.text == other.invoke("Hello").text != chat.invoke("Hello").text
    assert answer.response_metadata["model_name"] == folder
    assert chat.invoke("Hello", model="tiny-qwen2").text == chat.invoke("Hello").text
    with pytest.raises(pacellm_rag.errors.ModelError, match="no model at"):
        chat.invoke("Hello", model="/there/is/no such model")


def test_a_model_by_name_can_be_pickled_and_a_loaded_one_says_why_not(
    folder: str, tiny: Tiny
) -> None:
    chat = ChatPaceLLM(model=folder, max_tokens=4, store_bytes=0, dtype="float32")
    again = pickle.loads(pickle.dumps(chat))
    assert again.invoke("Hello").text == chat.invoke("Hello").text
    assert again.text_model is chat.text_model
    loaded = ChatPaceLLM(engine=tiny("llama"), stop=["a"])
    with pytest.raises(pacellm_rag.errors.ConfigurationError, match="Name the model"):
        pickle.dumps(loaded)
    for copied in (copy.copy(loaded), copy.deepcopy(loaded)):
        assert copied.engine is loaded.engine
    assert copy.deepcopy(loaded).stop is not loaded.stop


def test_a_loaded_model_is_neither_shown_nor_serialised() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel())
    assert not chat.is_lc_serializable()
    assert "engine" not in repr(chat)
    assert "engine" not in chat.model_dump()


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"max_tokens": 9},
        {"top_p": 0.5},
        {"top_k": 3},
        {"seed": 3},
        {"stop": ["x"]},
        {"pace": None},
        {"pace": "on"},
        {"pace": PaceConfig(slots=7)},
        {"dtype": "bfloat16"},
        {"context_window": 2048},
        {"window": 99},
        {"kv_cache": "fp8"},
        {"adapter": None},
        {"adapter": "owner/adapter"},
        {"model": "another/model"},
        {"model_arguments": {"revision": "abc"}},
        {"engine": ScriptedModel()},
    ],
    ids=str,
)
def test_a_setting_that_changes_answers_changes_the_cache_key(change: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"model": "some/model", "profile": {}}
    key = ChatPaceLLM(**plain)._get_llm_string()
    assert key == ChatPaceLLM(**plain)._get_llm_string()
    assert key != ChatPaceLLM(**{**plain, **change})._get_llm_string()


def test_an_adapter_is_handed_on_when_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(pacellm_rag, "shared_model", lambda _, **given: asked.append(given))
    for adapter in ("auto", None, "owner/lora", tmp_path):
        chat = ChatPaceLLM(model="some/model", profile={}, adapter=adapter)
        assert chat.text_model is None
    assert asked == [{}, {"adapter": None}, {"adapter": "owner/lora"}, {"adapter": tmp_path}]


def test_an_adapter_in_any_form_is_one_cache_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    keys = {
        ChatPaceLLM(model="some/model", profile={}, adapter=form)._get_llm_string()
        for form in ("lora", "./lora", Path("lora"), tmp_path / "lora")
    }
    assert len(keys) == 1


def test_langchains_cache_tells_loaded_models_apart_and_calls_too() -> None:
    one, two = ScriptedModel(["one"]), ScriptedModel(["two"])
    cache = InMemoryCache()
    first = ChatPaceLLM(engine=one, cache=cache)
    assert first.invoke("Hello").text == "one"
    assert ChatPaceLLM(engine=two, cache=cache).invoke("Hello").text == "two"
    assert ChatPaceLLM(engine=one, cache=cache).invoke("Hello").text == "one"
    assert len(one.prompts) == 1
    first.invoke("Hello", stop=["x"])
    first.invoke("Hello", max_tokens=9)
    assert len(one.prompts) == 3


def test_traces_are_told_what_is_used() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel(), stop=["a"], temperature=0.5, max_tokens=9)
    told = chat._get_ls_params(stop=["b"])
    assert told == {
        "ls_provider": "pacellm",
        "ls_model_name": "scripted",
        "ls_model_type": "chat",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["a", "b"],
    }
    assert chat._get_ls_params(model="other")["ls_model_name"] == "other"
    assert chat.metadata is not None
    assert "langchain-pacellm" in chat.metadata["lc_versions"]


def test_the_profile_leaves_room_for_the_answer() -> None:
    chat = ChatPaceLLM(engine=ScriptedModel(context_window=1000), max_tokens=100)
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] == 900
    assert chat.profile["structured_output"] is True
