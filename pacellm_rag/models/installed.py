"""Which models are on this machine: the default one and those in the model hub's cache.

Reads folders and their `config.json`; loads no weights, needs no torch, asks no network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pacellm_rag.errors import ModelError, ModelNotInstalledError
from pacellm_rag.models.default_model import DEFAULT_MODEL, default_model_folder

__all__ = ["InstalledModel", "find_model", "installed_models", "scan_hub"]

_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class InstalledModel:
    """A model that can be loaded without the network.

    Attributes:
        name: what `load_model` and `--model` call it.
        path: its folder.
        origin: the "default" model, one of the "hub" cache, or any other "folder".
        size: bytes of its files.
        config: its `config.json`.
    """

    name: str
    path: Path
    origin: Literal["default", "hub", "folder"]
    size: int
    config: dict[str, Any]

    @property
    def context_window(self) -> int | None:
        """Most tokens, prompt and answer together, as far as the configuration tells."""
        for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            value = self._text_config.get(field)
            if isinstance(value, int):
                return value
        return None

    @property
    def cache_bytes_per_token(self) -> int | None:
        """Bytes of KV cache that a token takes at two bytes a number, if all layers keep it."""
        config = self._text_config
        layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
        width = config.get("head_dim")
        if width is None and heads:
            width = config.get("hidden_size", 0) // heads
        if not layers or not heads or not width:
            return None
        return int(2 * 2 * layers * (config.get("num_key_value_heads") or heads) * width)

    @property
    def architecture(self) -> str:
        """The name of its model class, or "unknown"."""
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def _text_config(self) -> dict[str, Any]:
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def installed_models() -> list[InstalledModel]:
    """The default model, where it is installed, then the decoders in the hub's cache by name."""
    models = sorted(scan_hub(), key=lambda model: model.name.lower())
    try:
        folder = default_model_folder()
    except ModelNotInstalledError:
        return models
    default = _describe(DEFAULT_MODEL, folder, "default")
    return [default, *models] if default is not None else models


def find_model(name: str | None = None) -> InstalledModel:
    """One model on this machine.

    Args:
        name: a folder, or an id of the model hub; None for the default model.

    Raises:
        ModelNotInstalledError: the default model is not installed.
        ModelError: it is not on this machine.
    """
    if name is None or name == DEFAULT_MODEL:
        found = _describe(DEFAULT_MODEL, default_model_folder(), "default")
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        found = _describe(folder.resolve().name, folder, "folder")
    else:
        found = next((model for model in scan_hub() if model.name == name), None)
    if found is None:
        raise ModelError(
            f"There is no complete model {name} on this machine. `pacellm-rag models list` shows "
            "what there is; one of the hub is downloaded when it is first asked."
        )
    return found


def scan_hub(folder: Path | None = None) -> list[InstalledModel]:
    """The complete decoders in the model hub's cache.

    Args:
        folder: the cache; None for the user's.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(folder).repos
    except (CacheNotFound, OSError, ValueError):
        return []
    found = []
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        # the version that its name stands for, else the newest
        versions = sorted(
            repository.revisions, key=lambda r: ("main" not in r.refs, -r.last_modified)
        )
        models = (_describe(repository.repo_id, v.snapshot_path, "hub") for v in versions)
        found += [model for model in models if model is not None][:1]
    return found


def _describe(
    name: str, folder: Path, origin: Literal["default", "hub", "folder"]
) -> InstalledModel | None:
    """A folder's model; None where it holds none, only a part, or no decoder."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architectures = config.get("architectures") or [""]
        if config.get("is_encoder_decoder") or not architectures[0].endswith(_DECODERS):
            return None
        if not _weights_complete(folder):
            return None
        files = [path for path in folder.iterdir() if path.is_file()]
        return InstalledModel(name, folder, origin, sum(p.stat().st_size for p in files), config)
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _weights_complete(folder: Path) -> bool:
    for whole, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / whole).is_file():
            return True
        if (folder / index).is_file():
            shards = json.loads((folder / index).read_bytes())["weight_map"].values()
            return all((folder / shard).is_file() for shard in set(shards))
    return False
