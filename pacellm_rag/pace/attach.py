"""Putting activation memory banks on a model, and taking them off again.

`attach` puts forward hooks on a decoder: one on the decoder itself, which knows the cache and the
padding of a forward pass, and one on the output projection of each chosen feed-forward network,
which reads exactly the intermediate activation. Nothing of the model is changed; detaching takes
the hooks off and leaves the model as it was, to the bit. Knows transformers' modules and caches;
knows nothing of documents.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from pacellm_rag.errors import ModelError
from pacellm_rag.pace.architectures import FeedForward, find_feed_forwards
from pacellm_rag.pace.cache import Phase, memories_of, memory_of, phase_of, set_memory
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.layer_memory import LayerMemory

__all__ = ["LayerStats", "PaceHandle", "attach"]

logger = logging.getLogger(__name__)

_HANDLE = "_pacellm_handle"
_CONFIG = "pacellm"


@dataclass(frozen=True)
class LayerStats:
    """What one layer's memory did for one sequence.

    Attributes:
        slots_filled: slots in use.
        slots: slots there are.
        tokens: tokens looked up.
        high: share of tokens that memory replaced (above `high`).
        middle: share that were mixed with memory (between `low` and `high`).
        untouched: share that were left alone.
        written: slots written with new tokens, per token.
        merged: slots merged, per token.
    """

    slots_filled: int
    slots: int
    tokens: int
    high: float
    middle: float
    untouched: float
    written: float
    merged: float

    @property
    def acted(self) -> bool:
        """Whether memory changed any token."""
        return self.high + self.middle > 0


@dataclass
class _Call:
    """One forward pass of the decoder."""

    rows: int
    cache: Cache | None
    phase: Phase
    valid: torch.Tensor | None
    memories: dict[int, LayerMemory]  # of a pass without a cache: they live as long as it does


class _Calls(threading.local):
    """The forward pass that each thread is in."""

    current: _Call | None = None

    def __reduce__(self) -> tuple[type[_Calls], tuple[()]]:
        return _Calls, ()  # a copied model has no pass under way


class PaceHandle:
    """Banks on a model: a context manager that takes them off at the end.

    Attributes:
        model: the model.
        config: the settings.
        layers: the layers with a bank.
    """

    def __init__(self, model: PreTrainedModel, config: PaceConfig, layers: Sequence[FeedForward]):
        self.model = model
        self.config = config
        self.layers = tuple(layer.layer for layer in layers)
        self._hooks: list[RemovableHandle] = []
        self._calls = _Calls()
        self._last: dict[int, LayerMemory] = {}
        self._saved = getattr(model.config, _CONFIG, None)  # what a checkpoint brought
        decoder = _decoder_of(model, layers[0])
        self._decoder_config = decoder.config
        self._hooks.append(decoder.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._hooks.append(decoder.register_forward_hook(self._end, always_call=True))
        for layer in layers:
            # no closure: those are shared by copies of the model, and this must not be
            hook = functools.partial(self._before_down, layer.layer)
            self._hooks.append(layer.down.register_forward_pre_hook(hook))

    def __enter__(self) -> PaceHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether the banks are on the model."""
        return bool(self._hooks)

    def detach(self) -> None:
        """Takes the banks off. Safe to repeat."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if getattr(self.model, _HANDLE, None) is self:
            delattr(self.model, _HANDLE)
            if self._saved is None:
                delattr(self.model.config, _CONFIG)
            else:
                setattr(self.model.config, _CONFIG, self._saved)

    def stats(self, cache: Cache | None = None, row: int = 0) -> dict[int, LayerStats]:
        """What each layer's memory did for one sequence.

        Args:
            cache: of the sequence; None for the newest forward pass.
            row: of the batch.

        Returns:
            By layer; empty before any token.
        """
        memories = memories_of(cache) if cache is not None else self._last
        stats = {layer: _stats_of(memory, row) for layer, memory in memories.items()}
        if stats and not any(layer.acted for layer in stats.values()):
            logger.warning(
                "PaceLLM has changed no token of this sequence: of %d tokens in windows of %d, "
                "none met a memory more similar than %.2f. Use a smaller window, or a lower `low`.",
                max(layer.tokens for layer in stats.values()),
                self.config.window,
                self.config.low,
            )
        return stats

    # The hooks stay out of compiled graphs: whose memory it is depends on the cache's state, which
    # a graph would take for constant. They cost a graph break each.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the decoder: whose memory is it, and which tokens are padding?"""
        cache = kwargs.get("past_key_values")
        if cache is None and kwargs.get("use_cache", self._decoder_config.use_cache):
            cache = DynamicCache(config=self._decoder_config)
            kwargs = {**kwargs, "past_key_values": cache}
        if kwargs.get("cache") is not None or not (cache is None or isinstance(cache, Cache)):
            raise ModelError(
                "PaceLLM keeps one memory per sequence, and paged or continuous batching packs "
                "several into one row. Use generate(), or detach PaceLLM."
            )
        ids = kwargs.get("input_ids", args[0] if args else None)
        shape = ids.shape if ids is not None else kwargs["inputs_embeds"].shape
        tokens, seen = int(shape[1]), cache.get_seq_length() if cache is not None else 0
        phase = phase_of(cache, tokens, seen) if cache is not None else "read"
        valid = _real_tokens(kwargs.get("attention_mask"), tokens, phase)
        self._calls.current = _Call(int(shape[0]), cache, phase, valid, {})
        return args, kwargs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _end(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the decoder, also when it failed."""
        self._calls.current = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_down(
        self, layer: int, module: torch.nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        return (self._pass(layer, args[0]), *args[1:])

    def _pass(self, layer: int, activations: torch.Tensor) -> torch.Tensor:
        """What a layer's down projection is to read in place of its activations."""
        call = self._calls.current
        if call is None:
            raise ModelError(
                f"The feed-forward network of layer {layer} ran outside its decoder, so PaceLLM "
                "can not tell which sequence it belongs to. Detach PaceLLM to run layers alone."
            )
        shape = activations.shape
        if activations.dim() == 2:  # OPT flattens batch and tokens
            activations = activations.view(call.rows, -1, shape[-1])
        if call.cache is not None:
            memory = memory_of(call.cache, layer)
        else:
            memory = call.memories.get(layer)
        if memory is None:
            memory = LayerMemory.start(activations, self.config)
        step = memory.decode if call.phase == "decode" else memory.read
        output, memory = step(activations, call.valid)
        if call.cache is not None:
            set_memory(call.cache, layer, memory)
        else:
            call.memories[layer] = memory
        self._last[layer] = memory
        return output.view(shape)


def _decoder_of(model: PreTrainedModel, first: FeedForward) -> PreTrainedModel:
    """The module that runs the layers: the innermost one above them that is a model."""
    parts = first.path.split(".")
    for end in range(len(parts), -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if isinstance(module, PreTrainedModel):
            return module
    raise ModelError(f"{type(model).__name__} has no decoder around {first.path}.")


def _real_tokens(mask: Any, tokens: int, phase: Phase) -> torch.Tensor | None:
    """Which of the new tokens are not padding, shape (batch, tokens); None where all are."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or phase == "decode":
        return None  # decoded tokens are never padding
    valid = mask[:, -tokens:].bool()
    return None if bool(valid.all()) else valid


def _stats_of(memory: LayerMemory, row: int) -> LayerStats:
    counts = {name: int(tensor[row]) for name, tensor in memory.stats.tensors().items()}
    tokens = max(counts["tokens"], 1)
    high, middle = counts["high"] / tokens, counts["middle"] / tokens
    return LayerStats(
        slots_filled=int(memory.bank.filled[row]),
        slots=memory.config.slots,
        tokens=counts["tokens"],
        high=high,
        middle=middle,
        untouched=1 - high - middle,
        written=counts["written"] / tokens,
        merged=counts["merged"] / tokens,
    )


def attach(model: PreTrainedModel, config: PaceConfig | None = None) -> PaceHandle:
    """Puts activation memory banks on a model.

    From then on every sequence that the model reads, in whatever way (forward, generate, beams,
    batches), has its own banks, which live and move with its KV cache. The settings stand in the
    model's config, so that `save_pretrained` keeps them.

    Args:
        model: a decoder of transformers, also inside PEFT or with quantised projections.
        config: the settings; None takes those in the model's config, else the defaults.

    Returns:
        The handle; use it as a context manager, or call `detach`.

    Raises:
        ModelError: the model has banks already, or its feed-forward networks are not found.
        ConfigurationError: the settings name layers that the model does not have.
    """
    if getattr(model, _HANDLE, None) is not None:
        raise ModelError("This model has PaceLLM attached already; detach it first.")
    if config is None:
        config = saved_config(model) or PaceConfig()
    networks = {network.layer: network for network in find_feed_forwards(model)}
    chosen = [networks[layer] for layer in config.layers_of(len(networks))]
    handle = PaceHandle(model, config, chosen)
    setattr(model, _HANDLE, handle)
    setattr(model.config, _CONFIG, config.to_dict())
    return handle


def saved_config(model: PreTrainedModel) -> PaceConfig | None:
    """The settings that a model's config carries, or None."""
    saved = getattr(model.config, _CONFIG, None)
    return None if saved is None else PaceConfig.from_dict(saved)
