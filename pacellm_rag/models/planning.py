"""What reading takes of the machine: bytes per token, free memory, and time at the measured rate.

Knows configurations and clocks; knows nothing of requests or documents.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from pacellm_rag.files import write_atomically
from pacellm_rag.pace.config import PaceConfig

__all__ = ["MemoryNeeds", "ReadingRate", "free_memory", "gib", "total_memory"]

_LEAST_WINDOW = 64  # tokens; shorter passes tell nothing of the rate
_FADE = 0.9  # weight of what was measured before, at each new measurement
_CGROUP = Path("/sys/fs/cgroup")


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


@dataclass(frozen=True)
class MemoryNeeds:
    """What a sequence takes.

    Attributes:
        bytes_per_token: keys and values over all layers that keep those of all tokens.
        bank_bytes: PaceLLM's memory banks of one sequence.
    """

    bytes_per_token: int
    bank_bytes: int

    @classmethod
    def of(
        cls, config: PretrainedConfig, dtype: torch.dtype, pace: PaceConfig | None
    ) -> MemoryNeeds:
        """Reads them off a model's configuration."""
        text = config.get_text_config(decoder=True)
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        full = sum(1 for layer in DynamicCache(config=text).layers if type(layer) is DynamicLayer)
        layers = full or text.num_hidden_layers
        banks = 0
        if pace is not None:
            ffn = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None)
            per_layer = 2 * pace.slots * (ffn or 4 * text.hidden_size) * 4  # keys, values, float32
            banks = per_layer * len(pace.layers_of(text.num_hidden_layers))
        return cls(layers * 2 * heads * width * dtype.itemsize, banks)

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of some tokens."""
        return tokens * self.bytes_per_token


def _cgroup_free() -> int | None:
    """What a container may still take; None outside of one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = (_CGROUP / "memory.stat").read_text().split()
        cached = int(stat[stat.index("inactive_file") + 1])  # given back when it is needed
    except (OSError, ValueError, IndexError):
        return None
    return None if limit == "max" else max(int(limit) - used + cached, 0)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where a model computes; None where it can not be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    contained = _cgroup_free()
    return free if contained is None else min(free, contained)


def total_memory(device: torch.device) -> int:
    """Bytes that there are where a model computes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


class ReadingRate:
    """Seconds per token of reading, as a line over the position, from windows that were read.

    Args:
        path: where it is kept from one process to the next; None keeps it nowhere.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        # sums of weight, position, seconds per token, position squared, position times seconds
        self._sums = [0.0] * 5
        self._saved = False
        if path is not None:
            try:
                sums = [float(x) for x in json.loads(path.read_text())["sums"]]
                self._sums = sums if len(sums) == 5 else self._sums
            except (OSError, ValueError, KeyError, TypeError):
                pass  # never measured, or not by this version

    def record(self, start: int, tokens: int, seconds: float) -> None:
        """Takes in that `tokens` tokens behind `start` others took `seconds`."""
        if tokens < _LEAST_WINDOW:
            return
        x, y = start + tokens / 2, seconds / tokens
        with self._lock:
            new = (1.0, x, y, x * x, x * y)
            self._sums = [_FADE * old + each for old, each in zip(self._sums, new, strict=True)]

    def seconds(self, start: int, end: int) -> float | None:
        """Estimate for the tokens [start, end); None before anything was measured."""
        with self._lock:
            n, x, y, xx, xy = self._sums
        if not n or end <= start:
            return 0.0 if end <= start else None
        spread = n * xx - x * x
        slope = max((n * xy - x * y) / spread, 0.0) if spread > n * n * 1e4 else 0.0
        base = max((y - slope * x) / n, 0.0)
        return (end - start) * base + slope * (end**2 - start**2) / 2

    def save(self) -> None:
        """Keeps it for the next process."""
        if self._path is not None and self._sums[0]:
            try:
                write_atomically(self._path, json.dumps({"sums": self._sums}).encode())
            except OSError:
                return  # an estimate is not worth an error
