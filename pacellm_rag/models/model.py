"""A loaded decoder as the reader sees it: read a prefix, answer from it.

`PaceModel` binds weights, tokenizer and the reading engine together. Knows nothing of documents.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pacellm_rag.errors import ConfigurationError, ContextOverflowError
from pacellm_rag.files import cache_folder, readings_folder
from pacellm_rag.models.constrained import ConstraintCompiler
from pacellm_rag.models.decoder import Decoder
from pacellm_rag.models.engine import Engine
from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.expert_watch import ExpertWatch, experts_file
from pacellm_rag.models.generation import Generation, PrefixState, pull_all
from pacellm_rag.models.head_probe import find_retrieval_heads
from pacellm_rag.models.inspecting import walk
from pacellm_rag.models.inspection import Inspection
from pacellm_rag.models.kv_cache import KVCacheKind, KVStorage
from pacellm_rag.models.planning import MemoryNeeds, ReadingRate, total_memory
from pacellm_rag.models.prefix_cache import PrefixCache
from pacellm_rag.models.reading_archive import ReadingArchive
from pacellm_rag.models.request import Answering, Request, token_keys
from pacellm_rag.models.retrieval_heads import RetrievalHeads
from pacellm_rag.models.runner import RequestRunner
from pacellm_rag.models.sampling import Sampler
from pacellm_rag.models.state_store import StateStore
from pacellm_rag.models.text_stream import TextStream
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.pace.attach import PaceHandle, attach
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.expert_map import ExpertMap
from pacellm_rag.protocols import (
    ONE_MESSAGE,
    CancelSignal,
    ContextState,
    GenerationOptions,
    ProgressCallback,
    PromptLayout,
    ReadingCost,
)

__all__ = ["PaceModel", "weights_fingerprint"]

_SPACING = 4096  # tokens between points to go on from within long messages
_STEP = 256  # tokens: where such a message may be left near its end
_STORE_VERSION = 2  # of what is stored of a reading


class PaceModel:
    """A local Hugging Face decoder, ready to read and answer (`protocols.TextModel`).

    Made by `load_model`; `PaceModel(module, tokenizer)` wraps weights that are loaded already. Safe
    to use from several threads and from asyncio: one engine serves all callers.

    Args:
        module: a causal language model of transformers; it is put into evaluation mode.
        tokenizer: its tokenizer.
        window: tokens per forward pass while reading.
        pace: settings of PaceLLM's activation memory banks to attach; None attaches none.
        limits: what the engine may take; None for the defaults.
        store_bytes: most bytes of readings on disk, of all models together; 0 keeps none there.
        kv_cache: how keys and values are held; see `KVStorage.of`.

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
        limits: EngineLimits | None = None,
        store_bytes: int = 0,
        kv_cache: KVCacheKind = "auto",
    ) -> None:
        self.module = module.eval()
        self.pace: PaceHandle | None = None if pace is None else attach(module, pace)
        self.tokenizer = tokenizer
        self.window = window
        self._limits = limits or EngineLimits()
        self._store_bytes = store_bytes
        self._storage = KVStorage.of(kv_cache)
        eos = getattr(module.generation_config, "eos_token_id", None)
        listed = eos if isinstance(eos, list) else [eos]
        self._stop_ids = tokenizer.stop_ids | {i for i in listed if i is not None}
        self._forms = ConstraintCompiler(tokenizer, self._stop_ids)
        self._heads: RetrievalHeads | None = None
        self._heads_known = False
        self._lock = threading.Lock()
        self._engine: Engine | None = None

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
    def engine(self) -> Engine:
        """What runs the requests; made when it is first needed."""
        with self._lock:
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine

    def _make_engine(self) -> Engine:
        pace = None if self.pace is None else self.pace.config
        decoder = Decoder(self.module, stateful=pace is not None)
        limit = self._limits.cache_bytes
        if limit is None:
            limit = total_memory(self.device) // 4
        step, every = _STEP, _SPACING
        if pace is not None:  # whole windows, so that none is pending in a snapshot
            step, every = (pace.window * math.ceil(least / pace.window) for least in (step, every))
        archive, rate = None, ReadingRate()
        if self._store_bytes:
            fingerprint = weights_fingerprint(self.module)
            rate = ReadingRate(cache_folder() / "rates" / f"{fingerprint[:32]}.json")
            store = StateStore(
                readings_folder(),
                self._store_key(fingerprint),
                limit_bytes=self._store_bytes,
            )
            archive = ReadingArchive(
                store,
                model=self.name,
                config=self.module.config,
                pace=pace,
                device=self.device,
                storage=self._storage,
            )
        runner = RequestRunner(
            decoder,
            every=every,
            step=step,
            cache=PrefixCache(stateful=decoder.stateful, limit_bytes=limit),
            archive=archive,
            storage=self._storage,
            needs=MemoryNeeds.of(self.module.config, self._storage.dtype or self.dtype, pace),
            rate=rate,
        )
        return Engine(runner, window=self.window, limits=self._limits)

    def _store_key(self, fingerprint: str) -> str:
        """What readings on disk depend on, beside their tokens."""
        pace = None if self.pace is None else self.pace.config.to_dict()
        parts = {
            "version": _STORE_VERSION,
            "weights": fingerprint,
            "pace": pace,
            "dtype": str(self.dtype),
            "held": str(self._storage.dtype),
            "rope": getattr(self.module.config.get_text_config(), "rope_parameters", None),
        }
        return json.dumps(parts, sort_keys=True, default=str)

    @property
    def retrieval_heads(self) -> RetrievalHeads | None:
        """The heads whose attention tells where an answer comes from.

        Found by a probe of some seconds the first time they are needed, and kept in the user's
        cache folder under the fingerprint of the weights. None where the model's attention can
        not be observed.
        """
        engine = self.engine
        with self._lock:
            if not self._heads_known:
                self._heads = engine.call(
                    lambda: find_retrieval_heads(
                        self.module, self.tokenizer, weights_fingerprint(self.module), self.window
                    )
                )
                self._heads_known = True
        return self._heads

    def prefill(
        self,
        token_ids: Sequence[int],
        *,
        layout: PromptLayout = ONE_MESSAGE,
        note: str = "",
        timeout: float | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
    ) -> PrefixState:
        """Reads a token prefix window by window; see `protocols.TextModel.prefill`."""
        if not token_ids:
            raise ConfigurationError("There is nothing to read; give at least one token.")
        if len(token_ids) > self.context_window:
            raise ContextOverflowError(
                f"The text has {len(token_ids)} tokens; {self.name} takes {self.context_window}.",
                needed_tokens=len(token_ids),
                available_tokens=self.context_window,
            )
        engine = self.engine
        request = Request(
            token_ids=tuple(token_ids),
            keys=token_keys(token_ids, layout, by_message=self.pace is not None),
            layout=layout,
            answering=None,
            cancel=cancel,
            deadline=None if timeout is None else time.monotonic() + timeout,
            note=note,
            tells_progress=progress is not None,
        )
        pull_all(engine, request, progress)
        assert request.result is not None
        engine.runner.rate.save()
        return PrefixState(token_ids, request.reused or 0, request.result, layout)

    def stream(
        self,
        token_ids: Sequence[int],
        options: GenerationOptions,
        *,
        layout: PromptLayout = ONE_MESSAGE,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
        attend_to: Sequence[tuple[int, int]] = (),
    ) -> Generation:
        """Answers a prompt; see `protocols.TextModel.stream`."""
        if not token_ids:
            raise ConfigurationError("The prompt is empty; give at least one token.")
        needed = len(token_ids) + options.max_new_tokens
        if needed > self.context_window:
            raise ContextOverflowError(
                f"The prompt has {len(token_ids)} tokens and the answer may take "
                f"{options.max_new_tokens}, together {needed}; {self.name} takes "
                f"{self.context_window}. Leave out documents, or lower max_new_tokens.",
                needed_tokens=needed,
                available_tokens=self.context_window,
            )
        form = options.constraint
        answering = Answering(
            options=options,
            stop_ids=self._stop_ids,
            stream=TextStream(self.tokenizer.decode, options.stop),
            sampler=Sampler(options, self.device),
            heads=self.retrieval_heads if attend_to else None,
            spans=tuple(attend_to),
            constraint=self._forms.compile(form, options.max_new_tokens) if form else None,
        )
        request = Request(
            token_ids=tuple(token_ids),
            keys=token_keys(token_ids, layout, by_message=self.pace is not None),
            layout=layout,
            answering=answering,
            cancel=cancel,
            deadline=None if options.timeout is None else time.monotonic() + options.timeout,
            tells_progress=progress is not None,
        )
        return Generation(self.engine, request, progress)

    def cost(
        self,
        token_ids: Sequence[int],
        new_tokens: int,
        *,
        layout: PromptLayout = ONE_MESSAGE,
    ) -> ReadingCost:
        """What reading a prompt and answering it would take; see `protocols.TextModel.cost`."""
        keys = token_keys(token_ids, layout, by_message=self.pace is not None)
        return self.engine.runner.cost(keys, new_tokens)

    @property
    def has_experts(self) -> bool:
        """Whether the folder that the model came from holds a map of its experts."""
        return experts_file(self.module) is not None

    def inspect(
        self,
        state: ContextState,
        ranges: Sequence[tuple[int, int]],
        *,
        top: int = 12,
        progress: ProgressCallback | None = None,
        cancel: CancelSignal | None = None,
    ) -> Inspection:
        """Watches banks and experts, range by range; see `inspection.Inspectable.inspect`."""
        engine = self.engine
        if not isinstance(state, PrefixState) or state.root is not engine.runner.cache.root:
            raise ConfigurationError(
                "What was read was not read by this model; give what its prefill returned."
            )
        ids, path = state.token_ids, experts_file(self.module)
        watch = None
        if path is not None:
            watch = ExpertWatch(self.module, ExpertMap.load(path), ids, ranges)
        banks = walk(
            engine,
            state.node,
            ids,
            ranges,
            starts=state.layout.message_starts,
            watch=watch,
            progress=progress,
            cancel=cancel,
        )
        if watch is None:
            return Inspection(banks, ())
        return Inspection(banks, watch.liveliest(top, lambda token: self.tokenizer.decode([token])))

    def flush(self) -> None:
        """Waits until what has been read is on disk, where it is kept there."""
        if self._engine is not None and self._engine.runner.archive is not None:
            self._engine.runner.archive.flush()


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
