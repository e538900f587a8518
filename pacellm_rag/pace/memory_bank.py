"""The activation memory bank: what one layer of one batch of sequences remembers.

Pure tensor arithmetic on intermediate activations of the feed-forward network; knows nothing of
models, caches or tokens. Every row of the batch has its own bank. All shapes are static and nothing
waits for the device: similarities are one matrix product, bands are masks, reading is one matrix
product with the weights of the chosen slots. Everything is computed in float32, whatever the
model computes in, so that thresholds mean the same in every type.

Equations: Li et al., NeurIPS 2025, eqs. 3 to 7 and algorithm 1; where the paper is silent, the
decisions are written at the functions. Cost per token of a lookup and an update: 4 M d_ff
multiplications beside the layer's own 3 d_ff d_model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from pacellm_rag.pace.config import PaceConfig

__all__ = ["BankStats", "Lookup", "MemoryBank", "look_up", "update"]

_TINY = 1e-12


@dataclass(frozen=True)
class MemoryBank:
    """Keys, values and counters of one layer; replaced, never changed in place.

    Attributes:
        keys: shape (batch, slots, ffn_width), float32.
        values: shape (batch, slots, ffn_width), float32.
        norms: shape (batch, slots): lengths of the keys.
        usage: shape (batch, slots): how often a slot was used.
        filled: shape (batch,): slots in use; they are the first ones.
    """

    keys: torch.Tensor
    values: torch.Tensor
    norms: torch.Tensor
    usage: torch.Tensor
    filled: torch.Tensor

    @classmethod
    def empty(cls, batch: int, width: int, config: PaceConfig, device: torch.device) -> MemoryBank:
        """A bank without any memory."""
        shape = (batch, config.slots, width)
        return cls(
            keys=torch.zeros(shape, device=device),
            values=torch.zeros(shape, device=device),
            norms=torch.ones(shape[:2], device=device),
            usage=torch.zeros(shape[:2], device=device),
            filled=torch.zeros(batch, dtype=torch.long, device=device),
        )

    def select(self, rows: torch.Tensor) -> MemoryBank:
        """The banks of the given rows, in that order, repeats allowed."""
        return MemoryBank(*(tensor.index_select(0, rows) for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, for storing."""
        return {
            "keys": self.keys,
            "values": self.values,
            "norms": self.norms,
            "usage": self.usage,
            "filled": self.filled,
        }

    @property
    def occupied(self) -> torch.Tensor:
        """Shape (batch, slots): which slots are in use."""
        slots = torch.arange(self.keys.shape[1], device=self.keys.device)
        return slots[None] < self.filled[:, None]


@dataclass(frozen=True)
class BankStats:
    """Counts since a sequence began, per row: tensors, so that counting waits for nothing.

    Attributes:
        tokens: shape (batch,): tokens looked up.
        high: of these, tokens above `high`.
        middle: of these, tokens between `low` and `high`.
        written: slots written with a new token.
        merged: slots merged with tokens.
    """

    tokens: torch.Tensor
    high: torch.Tensor
    middle: torch.Tensor
    written: torch.Tensor
    merged: torch.Tensor

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> BankStats:
        """Nothing counted yet."""
        return cls(*(torch.zeros(batch, dtype=torch.long, device=device) for _ in range(5)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""
        return {
            "tokens": self.tokens,
            "high": self.high,
            "middle": self.middle,
            "written": self.written,
            "merged": self.merged,
        }

    def looked_up(self, lookup: Lookup, counted: torch.Tensor) -> BankStats:
        """The counts with a lookup added, of the tokens where `counted` (batch, tokens) is True."""
        return replace(
            self,
            tokens=self.tokens + counted.sum(dim=1),
            high=self.high + (lookup.high & counted).sum(dim=1),
            middle=self.middle + (lookup.middle & counted).sum(dim=1),
        )

    def select(self, rows: torch.Tensor) -> BankStats:
        """The counts of the given rows."""
        return BankStats(*(tensor.index_select(0, rows) for tensor in self.tensors().values()))


@dataclass(frozen=True)
class Lookup:
    """What a window of tokens found in the bank.

    Attributes:
        output: shape (batch, tokens, ffn_width), type of the activations: what the down
            projection is to read.
        best: shape (batch, tokens, positives): the slots that were averaged.
        counted: shape (batch, positives): which of these ranks exist (a bank with fewer slots in
            use than `positives` has fewer).
        mean_similarity: shape (batch, tokens): mean over the averaged slots; -1 with none.
        high: shape (batch, tokens): most similar slot above `high`.
        middle: shape (batch, tokens): most similar slot between `low` and `high`.
    """

    output: torch.Tensor
    best: torch.Tensor
    counted: torch.Tensor
    mean_similarity: torch.Tensor
    high: torch.Tensor
    middle: torch.Tensor


def similarities(bank: MemoryBank, activations: torch.Tensor) -> torch.Tensor:
    """Cosine of every token with every slot (eq. 3): shape (batch, tokens, slots)."""
    products = torch.matmul(activations, bank.keys.transpose(1, 2))
    lengths = activations.norm(dim=-1, keepdim=True) * bank.norms[:, None, :]
    cosines: torch.Tensor = products / lengths.clamp_min(_TINY)
    return cosines


def look_up(
    bank: MemoryBank,
    activations: torch.Tensor,
    config: PaceConfig,
    valid: torch.Tensor | None = None,
) -> Lookup:
    """Reads the bank for a window of tokens (eqs. 4 to 6), changing nothing.

    With fewer slots in use than `positives` (or `negatives`), the mean is over those in use. The
    rule "reference" leaves the token itself out of the middle band, as the authors' code does.

    Gradients reach the activations through the share that they keep, not through memory.

    Args:
        bank: as it stood before this window.
        activations: shape (batch, tokens, ffn_width).
        config: the settings.
        valid: shape (batch, tokens): False for padding, which is passed through. None for none.
    """
    x = activations.float()
    sims = similarities(bank, x.detach())
    occupied = bank.occupied[:, None, :]
    top, best = sims.masked_fill(~occupied, -2.0).topk(config.positives, dim=-1)
    ranks = torch.arange(config.positives, device=x.device)
    counted = ranks[None] < bank.filled[:, None]
    share = counted / bank.filled.clamp(1, config.positives)[:, None]
    maximum = top[..., 0]
    high = maximum > config.high
    middle = (maximum > config.low) & ~high
    if valid is not None:
        high, middle = high & valid, middle & valid
    found = high | middle
    keeps_itself = 0.5 if config.update == "slotwise" else 0.0
    blend = config.blend
    positive = blend * (high.float() + 0.5 * middle.float())
    weights = torch.zeros_like(sims).scatter_(
        -1, best, (positive[..., None] * share[:, None, :]).expand_as(best)
    )
    if config.negatives:
        _, worst = sims.masked_fill(~occupied, 2.0).topk(config.negatives, dim=-1, largest=False)
        places = torch.arange(config.negatives, device=x.device)[None] < bank.filled[:, None]
        least = places * (blend * config.noise / bank.filled.clamp(1, config.negatives)[:, None])
        weights.scatter_add_(
            -1, worst, (found.float()[..., None] * least[:, None, :]).expand_as(worst)
        )
    # 1 to the bit where nothing was found, so that the activation itself comes out
    own = torch.where(found, 1 - blend + blend * keeps_itself * middle, 1.0)
    output = torch.baddbmm(own[..., None] * x, weights, bank.values).to(activations.dtype)
    mean = (top * share[:, None, :]).sum(dim=-1)
    mean = mean.masked_fill(bank.filled[:, None] == 0, -1.0)
    return Lookup(output, best, counted, mean, high, middle)


def update(
    bank: MemoryBank,
    activations: torch.Tensor,
    looked_up: Lookup,
    config: PaceConfig,
    stats: BankStats,
    valid: torch.Tensor | None = None,
) -> tuple[MemoryBank, BankStats]:
    """Writes a window of tokens into the bank (algorithm 1), after it was looked up.

    A token's key is its activation, its value what it was turned into. By the mean similarity s
    of the slots that it averaged:

    * s > high: "slotwise" raises those slots' counters; nothing is written;
    * low < s <= high: those slots are merged with the token ("slotwise": with the mean of the
      tokens that chose that slot; "reference": with the mean of all such tokens of the window),
      and "reference" raises their counters by one;
    * s <= low: the token is new. New tokens take free slots in order, then the least used ones
      (of equals the first), at most `slots` a window: the least similar first ("slotwise"), or by
      position ("reference"). A new slot's counter is 1.

    Under "slotwise" a token far longer than its window's median (`outlier`) is not stored, in
    whatever band it is.

    Merging comes before writing, so that a slot given to a new token holds that token alone.

    Args:
        bank: as it stood before this window.
        activations: shape (batch, tokens, ffn_width).
        looked_up: what `look_up` gave for these tokens.
        config: the settings.
        stats: counts so far.
        valid: shape (batch, tokens): False for padding, which is not stored.

    Returns:
        The new bank and the counts with this update added.
    """
    x, value = activations.detach().float(), looked_up.output.detach().float()
    s = looked_up.mean_similarity
    if valid is None:
        valid = torch.ones_like(s, dtype=torch.bool)
    if config.update == "slotwise" and s.shape[1] > 1:  # one token is its own median
        lengths = x.norm(dim=-1)
        usual = lengths.masked_fill(~valid, math.nan).nanmedian(dim=1, keepdim=True).values
        valid = valid & (lengths <= config.outlier * usual)
    familiar, new = (s > config.high) & valid, (s <= config.low) & valid
    between = valid & ~familiar & ~new
    chosen = torch.zeros(*s.shape, config.slots, device=x.device).scatter_(
        -1, looked_up.best, looked_up.counted[:, None, :].float().expand_as(looked_up.best)
    )
    merged = written = torch.zeros_like(stats.merged)
    if not _surely_none(between):
        step = _merge_one if s.shape[1] == 1 else _merge
        bank, merged = step(bank, x, value, chosen * between[..., None], between, config, looked_up)
    if config.update == "slotwise":
        bank = replace(bank, usage=bank.usage + (chosen * familiar[..., None]).sum(dim=1))
    if not _surely_none(new):
        bank, written = _write(bank, x, value, s, new, config)
    return bank, replace(stats, merged=stats.merged + merged, written=stats.written + written)


def _surely_none(mask: torch.Tensor) -> bool:
    """Whether no token is meant; asked on the CPU only, as another device would be waited for."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and not mask.any()


def _merge_one(
    bank: MemoryBank,
    keys: torch.Tensor,
    values: torch.Tensor,
    chosen: torch.Tensor,
    between: torch.Tensor,
    config: PaceConfig,
    looked_up: Lookup,
) -> tuple[MemoryBank, torch.Tensor]:
    """As `_merge` for a window of one token, which touches only the slots that it averaged."""
    slots = looked_up.best[:, 0]
    meant = between & looked_up.counted
    rows = torch.arange(slots.shape[0], device=slots.device)[:, None]

    def moved(held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        own = held[rows, slots]
        return torch.where(meant[..., None], torch.lerp(own, new, config.momentum), own)

    new_keys = moved(bank.keys, keys)
    usage = bank.usage
    if config.update == "reference":
        usage = usage.index_put((rows, slots), usage[rows, slots] + meant)
    norms = torch.where(meant, new_keys.norm(dim=-1), bank.norms[rows, slots])
    merged = replace(
        bank,
        keys=bank.keys.index_put((rows, slots), new_keys),
        values=bank.values.index_put((rows, slots), moved(bank.values, values)),
        norms=bank.norms.index_put((rows, slots), norms),
        usage=usage,
    )
    return merged, meant.sum(dim=1)


def _merge(
    bank: MemoryBank,
    keys: torch.Tensor,
    values: torch.Tensor,
    chosen: torch.Tensor,
    between: torch.Tensor,
    config: PaceConfig,
    looked_up: Lookup,
) -> tuple[MemoryBank, torch.Tensor]:
    """Moves slots towards the tokens that chose them; `chosen` has shape (batch, tokens, slots)."""
    votes = chosen.sum(dim=1)
    touched = votes > 0
    if config.update == "slotwise":
        weights = (chosen / votes.clamp_min(1)[:, None, :]).transpose(1, 2)
    else:
        everyone = between.float() / between.sum(dim=1, keepdim=True).clamp_min(1)
        weights = everyone[:, None, :] * touched[..., None]
    stays = (1 - config.momentum * touched.float())[..., None]
    new_keys = torch.baddbmm(stays * bank.keys, weights, keys, alpha=config.momentum)
    new_values = torch.baddbmm(stays * bank.values, weights, values, alpha=config.momentum)
    usage = bank.usage + touched if config.update == "reference" else bank.usage
    norms = torch.where(touched, new_keys.norm(dim=-1), bank.norms)
    merged = replace(bank, keys=new_keys, values=new_values, norms=norms, usage=usage)
    return merged, touched.sum(dim=1)


def _write(
    bank: MemoryBank,
    keys: torch.Tensor,
    values: torch.Tensor,
    similarity: torch.Tensor,
    new: torch.Tensor,
    config: PaceConfig,
) -> tuple[MemoryBank, torch.Tensor]:
    """Gives slots to new tokens; `new` has shape (batch, tokens)."""
    tokens = keys.shape[1]
    takers = min(tokens, config.slots)
    if config.update == "slotwise":
        order = similarity.masked_fill(~new, 3.0)  # the most novel first, of equals the earlier
    else:
        order = torch.arange(tokens, device=keys.device).expand_as(new)
        order = order.masked_fill(~new, tokens)
    token = order.argsort(dim=-1, stable=True)[:, :takers]
    taken = new.gather(1, token)
    # free slots come first, in order, then used ones by their counters
    rank = torch.where(bank.occupied, bank.usage, -1.0)
    slot = rank.argsort(dim=-1, stable=True)[:, :takers]
    rows = torch.arange(token.shape[0], device=keys.device)[:, None]
    wide = taken[..., None]
    new_keys = torch.where(wide, keys[rows, token], bank.keys[rows, slot])
    new_values = torch.where(wide, values[rows, token], bank.values[rows, slot])
    new_norms = torch.where(taken, new_keys.norm(dim=-1), bank.norms[rows, slot])
    new_usage = torch.where(taken, 1.0, bank.usage[rows, slot])
    count = taken.sum(dim=1)
    written = MemoryBank(
        keys=bank.keys.index_put((rows, slot), new_keys),
        values=bank.values.index_put((rows, slot), new_values),
        norms=bank.norms.index_put((rows, slot), new_norms),
        usage=bank.usage.index_put((rows, slot), new_usage),
        filled=(bank.filled + count).clamp_max(config.slots),
    )
    return written, count
