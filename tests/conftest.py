"""Shared by all tests: no network, caches in a temporary folder, tiny models built once."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# The same examples every time, so that a run says the same twice; `make fuzz` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("fuzz", max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Where `make test` installed the default model; the tests themselves write elsewhere.
_REAL_CACHE = os.environ.get("PACELLM_RAG_CACHE")

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACELLM_RAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = tmp_path_factory.mktemp("config") / "empty.toml"
        settings.touch()
        patch.setenv("PACELLM_RAG_CONFIG", str(settings))
        for name in [n for n in os.environ if n.startswith("PACELLM_RAG_")]:
            if name not in ("PACELLM_RAG_CACHE", "PACELLM_RAG_CONFIG"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def real_cache_folder() -> str | None:
    """The user's own setting of the cache, where the default model is installed."""
    return _REAL_CACHE


@pytest.fixture(scope="session")
def _built_models() -> dict[tuple[str, str], PaceModel]:
    return {}


@pytest.fixture
def tiny(_built_models: dict[tuple[str, str], PaceModel]) -> Callable[..., PaceModel]:
    """`tiny_model`, built once a session and copied for each test."""
    import torch

    from pacellm_rag.testing import tiny_model

    torch.set_num_threads(1)  # tensors this small are slower on two

    def build(family: str = "llama", **options: object) -> PaceModel:
        key = (family, repr(sorted(options.items())))
        if key not in _built_models:
            _built_models[key] = tiny_model(family, **options)  # type: ignore[arg-type]
        model = _built_models[key]
        fresh = copy.copy(model)
        fresh.module = copy.deepcopy(model.module)
        fresh._engine = None
        fresh.pace = getattr(fresh.module, "_pacellm_handle", None)
        return fresh

    return build


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[PaceModel], Path]:
    """Saves a model the way the hub would, and returns its folder."""

    def save(model: PaceModel) -> Path:
        folder = tmp_path / model.name
        model.module.save_pretrained(folder)
        model.tokenizer.hf.save_pretrained(folder)
        return folder

    return save
