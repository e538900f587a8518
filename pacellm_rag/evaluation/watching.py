"""What a model does and takes while it answers: logits, what its banks change, the memory in use.

All of it only watches, and is gone when its block ends. Knows torch and modules; knows nothing of
arms or suites.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from pacellm_rag.pace.architectures import find_feed_forwards
from pacellm_rag.pace.attach import PaceHandle

__all__ = [
    "BankEffect",
    "LogitsDigest",
    "MemoryUse",
    "watch_banks",
    "watch_logits",
    "watch_memory",
]

_EVERY = 0.05  # seconds between looks at the memory of the process


class LogitsDigest:
    """A hash of all logits that a module computes, bit for bit, in their order.

    Attributes:
        seen: how many times logits were computed.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._hash = hashlib.sha256()

    def take(self, logits: torch.Tensor) -> None:
        """Adds the logits of one forward pass."""
        self.seen += 1
        self._hash.update(f"{tuple(logits.shape)} {logits.dtype}".encode())
        held = logits.detach().contiguous().cpu().view(torch.uint8)
        self._hash.update(held.numpy().data)

    @property
    def value(self) -> str | None:
        """The hash in hexadecimal digits; None where no logits were seen."""
        return self._hash.hexdigest() if self.seen else None


@contextmanager
def watch_logits(module: nn.Module) -> Iterator[LogitsDigest]:
    """Hashes what the output embeddings compute in the block; nothing where there are none."""
    digest = LogitsDigest()
    head = getattr(module, "get_output_embeddings", lambda: None)()
    if head is None:
        yield digest
        return

    def see(_: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        digest.take(output)

    handle = head.register_forward_hook(see)
    try:
        yield digest
    finally:
        handle.remove()


class BankEffect:
    """Whether memory banks changed a single bit of what down projections read.

    Logits can not tell: texts with banks are cut into other forward passes than texts without, and
    that alone rounds otherwise.

    Attributes:
        acted: whether they did; nothing is compared any more once that is known.
    """

    def __init__(self) -> None:
        self.acted = False
        self._before: torch.Tensor | None = None

    def begin(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keeps what comes out of the activation."""
        self._before = None if self.acted else inputs[0]

    def end(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Compares it with what the down projection is to read."""
        before, self._before = self._before, None
        if before is not None and not torch.equal(before, inputs[0]):
            self.acted = True


@contextmanager
def watch_banks(handle: PaceHandle | None) -> Iterator[BankEffect]:
    """Compares what goes into the banks of a model with what comes out; nothing without banks."""
    effect, hooks = BankEffect(), []
    if handle is not None:
        for network in find_feed_forwards(handle.model):
            if network.layer in handle.layers:
                # the one before the hook of the banks, the other behind it
                hooks.append(network.down.register_forward_pre_hook(effect.begin, prepend=True))
                hooks.append(network.down.register_forward_pre_hook(effect.end))
    try:
        yield effect
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class MemoryUse:
    """Memory in use during a block: allocated on all GPUs, else resident of the process.

    Attributes:
        begin: bytes when it began.
        peak: most bytes since then, so far as was seen.
    """

    begin: int
    peak: int

    @property
    def added(self) -> int:
        """Bytes beyond what was in use when it began."""
        return max(self.peak - self.begin, 0)


@contextmanager
def watch_memory(device: torch.device) -> Iterator[MemoryUse]:
    """Follows the memory in use; `peak` is complete when the block has ended.

    Args:
        device: where the model computes; on any but CUDA the process is looked at every 50 ms.
    """
    if device.type == "cuda":
        places = range(torch.cuda.device_count())
        for place in places:
            torch.cuda.reset_peak_memory_stats(place)
        begin = sum(torch.cuda.memory_allocated(place) for place in places)
        use = MemoryUse(begin, begin)
        try:
            yield use
        finally:
            use.peak = sum(torch.cuda.max_memory_allocated(place) for place in places)
        return
    process, over = psutil.Process(), threading.Event()
    begin = int(process.memory_info().rss)
    use = MemoryUse(begin, begin)

    def look() -> None:
        use.peak = max(use.peak, int(process.memory_info().rss))

    def follow() -> None:
        while not over.wait(_EVERY):
            look()

    follower = threading.Thread(target=follow, name="memory-watch", daemon=True)
    follower.start()
    try:
        yield use
    finally:
        over.set()
        follower.join()
        look()
