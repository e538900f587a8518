"""A loaded decoder as the reader sees it: read a prefix, answer from it.

`PaceModel` binds weights, tokenizer and the reading engine together. Knows nothing of documents.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pacellm_rag.errors import ContextOverflowError
from pacellm_rag.models.generation import Generation, PrefixState, prefill
from pacellm_rag.models.head_probe import find_retrieval_heads
from pacellm_rag.models.retrieval_heads import RetrievalHeads
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.pace.attach import PaceHandle, attach
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import CancelSignal, ContextState, GenerationOptions, ProgressCallback

__all__ = ["PaceModel", "weights_fingerprint"]


class PaceModel:
    """A local Hugging Face decoder, ready to read and answer (`protocols.TextModel`).

    Made by `load_model`; `PaceModel(module, tokenizer)` wraps weights that are loaded already.

    Args:
        module: a causal language model of transformers; it is put into evaluation mode.
        tokenizer: its tokenizer.
        window: tokens per forward pass while reading.
        pace: settings of PaceLLM's activation memory banks to attach; None attaches none.

    Attributes:
        pace: the handle on the banks, or None.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: ChatTokenizer,
        *,
        window: int = 1024,
        pace: PaceConfig | None = None,
    ) -> None:
        self.module = module.eval()
        self.pace: PaceHandle | None = None if pace is None else attach(module, pace)
        self.tokenizer = tokenizer
        self.window = window
        eos = getattr(module.generation_config, "eos_token_id", None)
        listed = eos if isinstance(eos, list) else [eos]
        self._stop_ids = tokenizer.stop_ids | {i for i in listed if i is not None}
        self._heads: RetrievalHeads | None = None
        self._heads_known = False
        self._heads_lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name or path."""
        return self.tokenizer.name

    @property
    def context_window(self) -> int:
        """Most tokens, prompt and answer together."""
        return self.tokenizer.context_window

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.module.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.module.dtype
        return dtype

    @property
    def retrieval_heads(self) -> RetrievalHeads | None:
        """The heads whose attention tells where an answer comes from.

        Found by a probe of some seconds the first time they are needed, and kept in the user's
        cache folder under the fingerprint of the weights. None where the model's attention can
        not be observed.
        """
        with self._heads_lock:
            if not self._heads_known:
                self._heads = find_retrieval_heads(
                    self.module, self.tokenizer, weights_fingerprint(self.module), self.window
                )
                self._heads_known = True
        return self._heads

    def prefill(
        self,
        token_ids: Sequence[int],
        *,
        reserve: int = 0,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
    ) -> PrefixState:
        """Reads a token prefix window by window; see `protocols.TextModel.prefill`."""
        if len(token_ids) > self.context_window:
            raise ContextOverflowError(
                f"The text has {len(token_ids)} tokens; {self.name} takes {self.context_window}.",
                needed_tokens=len(token_ids),
                available_tokens=self.context_window,
            )
        reserve = min(reserve, self.context_window - len(token_ids))
        return prefill(
            self.module,
            token_ids,
            window=self.window,
            reserve=reserve,
            progress=progress,
            cancel=cancel,
        )

    def stream(
        self,
        state: ContextState,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        cancel: CancelSignal | None = None,
        attend_to: Sequence[tuple[int, int]] = (),
    ) -> Generation:
        """Answers a prompt on a branch of `state`; see `protocols.TextModel.stream`."""
        if not isinstance(state, PrefixState):
            raise TypeError(f"state is a {type(state).__name__}; it must come from prefill().")
        return Generation(
            self.module,
            self.tokenizer,
            state,
            token_ids,
            options,
            window=self.window,
            stop_ids=self._stop_ids,
            cancel=cancel,
            heads=self.retrieval_heads if attend_to else None,
            attend_to=attend_to,
        )


def weights_fingerprint(module: PreTrainedModel) -> str:
    """A hash that tells two models apart: configuration, tensor names, shapes, sampled values."""
    config = module.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "_attn_implementation", "pacellm"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        if flat.numel():
            places = torch.arange(64) * (flat.numel() - 1) // 63
            digest.update(flat[places.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
