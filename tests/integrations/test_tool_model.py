"""The trained model that LangChain's tests run on: it knows its lessons, is made once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tool_model
from tool_lessons import Lesson, get_weather, lessons, tool_of

from pacellm_rag.chat import start_chat
from pacellm_rag.messages import Message, ToolCall
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.protocols import GenerationOptions

KNOWN = lessons()
SHORT = GenerationOptions(max_new_tokens=200)


@pytest.fixture(scope="module")
def folder(real_cache_folder: str | None) -> Path:
    return tool_model.tool_model_folder(real_cache_folder)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(folder: Path, request: pytest.FixtureRequest) -> PaceModel:
    return load_model(folder, device="cpu", dtype=request.param, store_bytes=0)


@pytest.fixture(scope="module")
def exact(folder: Path) -> PaceModel:
    return load_model(folder, device="cpu", dtype="float32", store_bytes=0)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Makes empty models instead of training; lists where."""
    made: list[Path] = []

    def save(_known: Any, folder: Path) -> None:
        made.append(folder)
        (folder / "weights").touch()

    monkeypatch.setattr(tool_model, "_save", save)
    return made


@pytest.mark.parametrize("lesson", KNOWN, ids=lambda lesson: lesson.title)
def test_every_lesson_is_answered_right(model: PaceModel, lesson: Lesson) -> None:
    chat = start_chat(
        model, lesson.messages, tools=lesson.tools, tool_choice=lesson.choice, options=SHORT
    )
    with chat:
        list(chat)
    assert chat.text == lesson.answer
    said = [replace(call, id="") for call in chat.tool_calls]
    assert said == list(lesson.calls)
    assert not chat.invalid_tool_calls
    assert chat.finish_reason == ("tool_calls" if lesson.calls else "stop")


@pytest.mark.parametrize(
    "lesson", [k for k in KNOWN if k.calls and k.choice == "auto"], ids=lambda lesson: lesson.title
)
def test_calls_are_the_same_where_they_are_forced(exact: PaceModel, lesson: Lesson) -> None:
    first = lesson.calls[0]
    for choice, calls in (("required", lesson.calls), (first.name, (first,))):
        with start_chat(
            exact, lesson.messages, tools=lesson.tools, tool_choice=choice, options=SHORT
        ) as chat:
            list(chat)
        assert [replace(call, id="") for call in chat.tool_calls] == list(calls)


def test_every_token_of_every_lesson_is_sure(folder: Path, exact: PaceModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for dtype, least in ((torch.float32, 0.98), (torch.bfloat16, 0.9)):
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        for exercise in tool_model.exercises(exact.tokenizer, KNOWN):
            with torch.no_grad():
                (losses,) = tool_model.reply_losses(module, [exercise])
            assert len(losses) == len(exercise.reply) - exercise.given
            assert float(torch.exp(-losses).min()) > least


def test_an_agents_loop_ends_after_the_tools_result(exact: PaceModel) -> None:
    tools = (tool_of(get_weather),)
    question = Message("user", "What is the weather in San Francisco, CA?")
    with start_chat(exact, [question], tools=tools, options=SHORT) as first:
        list(first)
    (call,) = first.tool_calls
    turns = [
        question,
        Message("assistant", first.text, (call,)),
        Message("tool", "It's sunny.", tool_call_id=call.id, name=call.name),
    ]
    with start_chat(exact, turns, tools=tools, options=SHORT) as second:
        list(second)
    assert call == ToolCall("get_weather", {"location": "San Francisco, CA"}, call.id)
    assert (second.text, second.tool_calls) == ("It is sunny in San Francisco.", ())


def test_it_is_small_and_ends_turns_as_its_tokenizer_does(folder: Path, exact: PaceModel) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    stops = exact.module.generation_config.eos_token_id
    assert set(stops) == set(exact.tokenizer.stop_ids)
    assert exact.tokenizer.tool_format.native
    assert exact.context_window == 4096


def test_training_gives_the_same_weights_every_time(exact: PaceModel) -> None:
    import torch

    known = tool_model.exercises(exact.tokenizer, KNOWN[:4])
    one, two = (tool_model.train(exact.tokenizer, known) for _ in range(2))
    weights = two.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in one.state_dict().items())


def test_lessons_that_contradict_each_other_are_an_error(exact: PaceModel) -> None:
    known = [replace(KNOWN[0], answer=answer) for answer in ("Yes", "No")]
    with pytest.raises(RuntimeError, match="contradict each other"):
        tool_model.train(exact.tokenizer, tool_model.exercises(exact.tokenizer, known), 30)


def test_the_second_call_trains_nothing(untrained: list[Path], tmp_path: Path) -> None:
    first = tool_model.tool_model_folder(tmp_path)
    assert tool_model.tool_model_folder(tmp_path) == first
    assert first.parent == tmp_path / "tests"
    assert len(untrained) == 1
    assert (first / "weights").exists()


def test_many_who_ask_at_once_get_one_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Path] = []
    all_wait = threading.Event()

    def save(_known: Any, folder: Path) -> None:
        all_wait.wait(0.3)  # so that the others come while this one is at work
        made.append(folder)

    monkeypatch.setattr(tool_model, "_save", save)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: tool_model.tool_model_folder(tmp_path), range(4)))
    assert len(folders) == len(made) == 1


def test_training_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, untrained: list[Path]
) -> None:
    def fail(_known: Any, folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(tool_model, "_save", fail)
        with pytest.raises(OSError, match="disk full"):
            tool_model.tool_model_folder(tmp_path)
    assert [path for path in (tmp_path / "tests").iterdir() if path.is_dir()] == []
    assert tool_model.tool_model_folder(tmp_path).is_dir()
    assert len(untrained) == 1


@pytest.fixture
def another_lesson(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    more = [*KNOWN, Lesson((Message("user", "Bye"),), "Bye.")]
    with monkeypatch.context() as patch:
        patch.setattr(tool_model, "lessons", lambda: more)
        yield


def test_other_lessons_make_another_model(
    untrained: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = tool_model.tool_model_folder(tmp_path)
    request.getfixturevalue("another_lesson")
    assert tool_model.tool_model_folder(tmp_path) != before
    assert len(untrained) == 2


def test_the_script_names_the_folder_that_tests_use(folder: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(tool_model.__file__), str(folder.parents[1])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert told.stdout.strip() == str(folder)
