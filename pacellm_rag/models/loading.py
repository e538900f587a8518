"""From a name to a model: the default one, a folder, a GGUF file, or an id of the model hub.

Chooses what the machine computes fastest (number type, attention, place) and reads the context
window off the model. Knows the transformers library; knows nothing of documents.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.models.adapter import adapter_name, find_adapter, merge_adapter
from pacellm_rag.models.attention import IMPLEMENTATION
from pacellm_rag.models.default_model import (
    CALIBRATED_PACE,
    default_adapter,
    default_model_folder,
)
from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.kv_cache import KVCacheKind
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.pace.attach import saved_config
from pacellm_rag.pace.config import PaceConfig

__all__ = ["STORE_BYTES", "best_dtype", "load_model", "load_tokenizer", "wrap_module"]

logger = logging.getLogger(__name__)

STORE_BYTES = 20 * 2**30

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class _Source:
    """Where a model comes from, in the terms of `from_pretrained`."""

    name: str
    path: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def _locate(name: str | Path | None) -> _Source:
    if name is None:
        folder = default_model_folder()
        return _Source(folder.name, str(folder))
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                f"{path} is a file, but not a .gguf file. Give the folder that holds config.json "
                "and the weights, a .gguf file, or an id such as Qwen/Qwen3-4B-Instruct-2507."
            )
        return _Source(path.stem, str(path.parent), path.name)
    if path.is_dir():
        return _Source(path.resolve().name, str(path))
    text = str(name)
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise ModelError(f"There is no model at {path}: no such file or folder.")
    return _Source(text, text)


def _choose_adapter(name: str | Path | None, adapter: str | Path | None) -> tuple[Path | None, str]:
    """The adapter to lay on a model, and what it adds to the model's name."""
    if adapter == "auto":
        return (default_adapter() if name is None else None), ""
    if adapter is None:
        return None, ""
    return find_adapter(adapter), f"+{adapter_name(adapter)}"


def _loading_error(source: _Source, error: Exception) -> ModelError:
    return ModelError(
        f"Could not load {source.name}: {error}\n"
        "Check the name; for a model of the hub this machine needs the network once (or the model "
        "in its cache), for a local one the folder that holds config.json."
    )


def _load_config(source: _Source, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _loading_error(source, error) from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source.name} is an encoder-decoder ({config.model_type}); this package reads with "
            "decoders (Llama, Qwen, Mistral, Gemma, Phi, GPT ...)."
        )
    return config


def _native_window(config: PretrainedConfig) -> int | None:
    text = config.get_text_config(decoder=True)
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _fit_window(source: _Source, config: PretrainedConfig, wanted: int | None) -> int:
    """The context window to use; stretches the position encoding where more is asked for."""
    native = _native_window(config)
    if wanted is None:
        if native is None:
            raise ModelError(
                f"The configuration of {source.name} does not tell its context window. "
                "Pass context_window=."
            )
        return native
    if wanted < 1:
        raise ConfigurationError(f"context_window is {wanted}; it must be 1 or more.")
    if native is not None and wanted > native:
        _stretch_rope(source, config.get_text_config(decoder=True), native, wanted)
    return wanted


def _stretch_rope(source: _Source, config: PretrainedConfig, native: int, wanted: int) -> None:
    """Switches RoPE scaling on: YaRN (Peng et al., 2023, arXiv 2309.00071)."""
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        raise ModelError(
            f"{source.name} takes {native} tokens and its positions can not be stretched (no "
            f"rotary embedding), so context_window={wanted} is not possible with it."
        )
    rope = copy.deepcopy(rope)
    target = rope.get("full_attention", rope)
    if target.get("rope_type", "default") not in ("default", "yarn"):
        raise ModelError(
            f"{source.name} already scales its positions ({target['rope_type']}); a context "
            f"window of {wanted} beyond its {native} can not be laid on top."
        )
    original = target.get("original_max_position_embeddings") or native
    target.update(
        rope_type="yarn",
        factor=wanted / original,
        original_max_position_embeddings=original,
    )
    config.rope_parameters = rope
    config.max_position_embeddings = wanted
    logger.warning(
        "%s was trained for %d tokens; RoPE scaling (YaRN, factor %.2g) stretches it to %d. "
        "Answers from far-away pages may get worse.",
        source.name,
        native,
        wanted / original,
        wanted,
    )


def _load_tokenizer(source: _Source, window: int, trust_remote_code: bool) -> ChatTokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _loading_error(source, error) from error
    return ChatTokenizer(tokenizer, name=source.name, context_window=window)


def load_tokenizer(
    name: str | Path | None = None,
    *,
    context_window: int | None = None,
    trust_remote_code: bool = False,
) -> ChatTokenizer:
    """A model's tokenizer and chat template, without its weights.

    Args:
        name: as for `load_model`.
        context_window: as for `load_model`.
        trust_remote_code: as for `load_model`.

    Raises:
        ModelNotInstalledError: the default model was asked for and is not installed.
        ModelError: the model can not be found or is of the wrong kind.
    """
    source = _locate(name)
    config = _load_config(source, trust_remote_code)
    window = _fit_window(source, config, context_window)
    return _load_tokenizer(source, window, trust_remote_code)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes in it, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = _cpu_computes_bf16()
    else:
        fast = device.type == "mps"
    return torch.bfloat16 if fast else torch.float32


def _cpu_computes_bf16() -> bool:
    # Without these instructions bfloat16 is emulated and slower than float32.
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_arm_bf16_supported")
    if any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return bool(torch.backends.mkldnn.is_available())
    return False


def _choose_device(device: str) -> torch.device:
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ConfigurationError(
                f"device is {device!r}; use auto, cpu, cuda, cuda:1 or mps."
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return best_dtype(device)
    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype is {dtype!r}; use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def wrap_module(
    module: PreTrainedModel,
    tokenizer: ChatTokenizer,
    *,
    attention: str = "auto",
    window: int = 1024,
    pace: PaceConfig | Literal["auto", "on"] | None = "auto",
    limits: EngineLimits | None = None,
    store_bytes: int = 0,
    kv_cache: KVCacheKind = "auto",
) -> PaceModel:
    """Makes a reader's model of weights that are in memory already.

    Args:
        module: a causal language model of transformers.
        tokenizer: its tokenizer, with the context window to keep to.
        attention: "auto" switches to this package's attention function where the model's own is
            plain, and to eager attention where scores are soft-capped; anything else leaves it as
            it is.
        window: tokens per forward pass while reading.
        pace: as for `load_model`.
        limits: as for `load_model`.
        store_bytes: as for `load_model`, but nothing is kept on disk unless it is given.
        kv_cache: as for `load_model`.
    """
    config = module.config.get_text_config(decoder=True)
    softcapped = getattr(config, "attn_logit_softcapping", None) is not None
    if attention == "auto" and module._can_set_attn_implementation():
        if softcapped:  # SDPA has no place for it, and some releases leave it out in silence
            module.set_attn_implementation("eager")
        elif module._supports_sdpa:
            module.set_attn_implementation(IMPLEMENTATION)
    if isinstance(pace, str):
        saved = saved_config(module)
        pace = saved if pace == "auto" else saved or PaceConfig()
    return PaceModel(
        module,
        tokenizer,
        window=window,
        pace=pace,
        limits=limits,
        store_bytes=store_bytes,
        kv_cache=kv_cache,
    )


def load_model(
    name: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
    context_window: int | None = None,
    window: int = 1024,
    pace: PaceConfig | Literal["auto", "on"] | None = "auto",
    limits: EngineLimits | None = None,
    store_bytes: int = STORE_BYTES,
    kv_cache: KVCacheKind = "auto",
    adapter: str | Path | Literal["auto"] | None = "auto",
    trust_remote_code: bool = False,
    model_arguments: Mapping[str, Any] | None = None,
) -> PaceModel:
    """Loads a decoder that reads whole documents.

    Args:
        name: a folder, a .gguf file or an id of the model hub; None for the default model, which
            `pacellm-rag models install` puts on this machine.
        device: "auto" (the GPU or all GPUs, else the CPU), "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto" (bfloat16 where the hardware computes in it, else float32), "bfloat16",
            "float16", "float32" or a torch dtype.
        attention: "auto" takes this package's causal attention where the model allows it;
            otherwise a name that transformers knows ("sdpa", "eager", "flash_attention_2").
        context_window: most tokens, prompt and answer together. None reads it off the model;
            more than the model was trained for switches RoPE scaling (YaRN) on and logs a warning.
        window: tokens per forward pass while reading.
        pace: PaceLLM's activation memory banks: settings to attach them with, "auto" for those
            that the checkpoint carries (none where it carries none), "on" for these or else what
            calibration found for the default model, and the defaults for any other, None for the
            plain model.
        limits: how many requests are worked on and wait at a time, and what memory is kept for
            what has been read; None for the defaults.
        store_bytes: most bytes of what has been read to keep on disk, of all models together, so
            that it need not be read again after a restart; 0 keeps nothing there.
        kv_cache: how keys and values are held: "auto" and "full" as the model computes them; "fp8"
            in half of bfloat16's bytes, less exactly, and slower on a CPU; "offload" in main
            memory while a GPU computes.
        adapter: a LoRA adapter to lay on the model: a folder as peft saves it, or an id of the
            model hub, owner/name. It is merged into the weights, so that it costs nothing later,
            and the model's name tells it. "auto" lays the adapter that comes with this package
            on the default model, and none on any other; None leaves the model as it is.
        trust_remote_code: run Python code that comes with the model.
        model_arguments: further arguments of transformers' `from_pretrained`, for example
            `{"quantization_config": ...}`.

    Raises:
        ModelNotInstalledError: the default model was asked for and is not installed.
        ModelError: the model can not be found, loaded, or is of the wrong kind; or the adapter
            can not be found, or not be merged into it exactly.
        ConfigurationError: an argument has a value that can not work.
    """
    if window < 1:
        raise ConfigurationError(f"window is {window}; it must be 1 token or more.")
    source = _locate(name)
    folder, suffix = _choose_adapter(name, adapter)
    place = _choose_device(device)
    config = _load_config(source, trust_remote_code)
    tokens = _fit_window(source, config, context_window)
    tokenizer = _load_tokenizer(source, tokens, trust_remote_code)
    tokenizer.name += suffix
    arguments: dict[str, Any] = {"dtype": _choose_dtype(dtype, place), **source.arguments}
    if source.gguf_file:
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    if device == "auto" and place.type == "cuda" and torch.cuda.device_count() > 1:
        arguments["device_map"] = "auto"
    if attention != "auto":
        arguments["attn_implementation"] = attention
    arguments.update(model_arguments or {})
    try:
        module = AutoModelForCausalLM.from_pretrained(
            source.path, config=config, trust_remote_code=trust_remote_code, **arguments
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _loading_error(source, error) from error
    if not hasattr(module, "hf_device_map"):
        torch.nn.Module.to(module, place)
    if folder is not None:
        merge_adapter(module, folder)
    if name is None and pace == "on" and saved_config(module) is None:
        pace = PaceConfig.from_dict(CALIBRATED_PACE)
    return wrap_module(
        module,
        tokenizer,
        attention=attention,
        window=window,
        pace=pace,
        limits=limits,
        store_bytes=store_bytes,
        kv_cache=kv_cache,
    )
