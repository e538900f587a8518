"""Equal settings share one model, whatever form they come in, and whoever comes first loads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pacellm_rag.errors import ModelError
from pacellm_rag.models import shared
from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.shared import release_shared_models, shared_model, shared_tokenizer
from pacellm_rag.pace.config import PaceConfig


class Loads:
    """In the place of `load_model`: counts, takes its time, and fails when told to."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.failing = 0
        self.seconds = 0.0

    def __call__(self, name: object = None, **settings: object) -> object:
        self.calls.append((name, settings))
        time.sleep(self.seconds)
        if len(self.calls) <= self.failing:
            raise ModelError("It can not be loaded now.")
        return object()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loads]:
    release_shared_models()
    double = Loads()
    monkeypatch.setattr(shared, "load_model", double)
    yield double
    release_shared_models()


def test_a_place_is_the_same_in_every_form(
    loads: Loads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    forms = ["m", Path("m"), "./m", "m/", tmp_path / "m", str(tmp_path / "m"), "~/m"]
    assert len({id(shared_model(form)) for form in forms}) == 1
    assert len(loads.calls) == 1
    assert len({id(shared_model("m", adapter=form)) for form in forms}) == 1
    assert shared_model("m", adapter="auto") is shared_model("m") is not shared_model()


def test_settings_are_the_same_in_every_form(loads: Loads) -> None:
    pairs: list[tuple[dict[str, object], dict[str, object]]] = [
        ({}, {"context_window": None}),
        ({"pace": PaceConfig()}, {"pace": PaceConfig()}),
        ({"limits": EngineLimits()}, {"limits": EngineLimits()}),
        ({"device": "cpu", "window": 5}, {"window": 5, "device": "cpu"}),
    ]
    for one, other in pairs:
        assert shared_model("x", **one) is shared_model("x", **other)


def test_other_settings_are_other_models(loads: Loads) -> None:
    several = [
        shared_model("x"),
        shared_model("y"),
        shared_model(),
        shared_model("x", pace=None),
        shared_model("x", pace=PaceConfig()),
        shared_model("x", pace=PaceConfig(window=PaceConfig().window * 2)),
        shared_model("x", window=5),
        shared_model("x", limits=EngineLimits(max_queue=3)),
        shared_model("x", adapter=None),
        shared_model("x", adapter="owner/one"),
        shared_model("x", adapter="owner/two"),
    ]
    assert len({id(model) for model in several}) == len(several) == len(loads.calls)


def test_many_who_come_at_once_load_once(loads: Loads) -> None:
    loads.seconds = 0.05
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(shared_model("x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(map(id, got))) == 1
    assert len(loads.calls) == 1


def test_two_models_load_side_by_side(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=10)

    def load(name: object, **settings: object) -> object:
        both.wait()
        return object()

    monkeypatch.setattr(shared, "load_model", load)
    threads = [threading.Thread(target=shared_model, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken


def test_who_comes_after_a_failure_tries_again(loads: Loads) -> None:
    loads.failing, loads.seconds = 1, 0.05
    got: list[object] = []

    def ask() -> None:
        try:
            got.append(shared_model("x"))
        except ModelError as error:
            got.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, ModelError) for one in got) == 1
    assert len(loads.calls) == 2
    assert shared_model("x") in got


def test_what_is_released_is_loaded_anew(loads: Loads) -> None:
    first = shared_model("x")
    release_shared_models()
    assert shared_model("x") is not first
    release_shared_models()
    release_shared_models()


def test_a_real_folder_is_loaded_once_and_its_tokenizer_too(
    tiny: Callable[..., PaceModel], folder_of: Callable[[PaceModel], Path]
) -> None:
    folder = folder_of(tiny())
    try:
        model = shared_model(folder, store_bytes=0)
        assert shared_model(str(folder), store_bytes=0) is model
        assert shared_tokenizer(folder) is shared_tokenizer(str(folder))
        assert shared_tokenizer(folder, context_window=100) is not shared_tokenizer(folder)
        with pytest.raises(ModelError):
            shared_model(folder / "nothing here")
    finally:
        release_shared_models()
