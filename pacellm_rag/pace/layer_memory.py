"""One layer's memory of one batch of sequences: the bank, and the window that is not full yet.

Activations arrive in whatever pieces the caller feeds; windows are counted from the start of a
segment, so the pieces do not matter. A window is looked up as it comes and written to the bank when
it is full, when its segment ends, or when decoding begins; each decoded token is a window of its
own. Padding is neither looked up nor stored: the windows of a padded row count its real tokens.

Immutable: advancing gives a new memory, so a copy of the reference is a snapshot. Knows nothing of
models or caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pacellm_rag.errors import ModelError
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.memory_bank import BankStats, MemoryBank, look_up, update

__all__ = ["LayerMemory"]


@dataclass(frozen=True)
class LayerMemory:
    """Bank, counts and pending window of one layer.

    Attributes:
        config: the settings.
        bank: what the windows that are over have left.
        stats: counts since the sequences began.
        pending: shape (batch, tokens, ffn_width): activations of the window that is not full.
        pending_valid: shape (batch, tokens): which of them are real; None where all are.
    """

    config: PaceConfig
    bank: MemoryBank
    stats: BankStats
    pending: torch.Tensor
    pending_valid: torch.Tensor | None = None

    @classmethod
    def start(cls, activations: torch.Tensor, config: PaceConfig) -> LayerMemory:
        """An empty memory for activations of this shape, type and place."""
        batch, _, width = activations.shape
        return cls(
            config,
            MemoryBank.empty(batch, width, config, activations.device),
            BankStats.empty(batch, activations.device),
            _none_of(activations),
        )

    @classmethod
    def joined(cls, memories: Sequence[LayerMemory]) -> LayerMemory:
        """The memories of several batches, of the same settings, as that of one batch.

        Pending windows must be closed.
        """
        first = memories[0]

        def together(parts: Sequence[MemoryBank | BankStats]) -> list[torch.Tensor]:
            columns = zip(*(part.tensors().values() for part in parts), strict=True)
            return [torch.cat(column) for column in columns]

        return cls(
            first.config,
            MemoryBank(*together([memory.bank for memory in memories])),
            BankStats(*together([memory.stats for memory in memories])),
            torch.cat([memory.pending for memory in memories]),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        held = [*self.bank.tensors().values(), *self.stats.tensors().values(), self.pending]
        return sum(tensor.nbytes for tensor in held)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, for storing; they are not copied."""
        parts = {f"bank.{name}": tensor for name, tensor in self.bank.tensors().items()}
        parts |= {f"stats.{name}": tensor for name, tensor in self.stats.tensors().items()}
        parts["pending"] = self.pending
        if self.pending_valid is not None:
            parts["pending_valid"] = self.pending_valid
        return parts

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], config: PaceConfig) -> LayerMemory:
        """The memory that `tensors` gave.

        Raises:
            ModelError: tensors are missing.
        """

        def inner(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        try:
            bank, stats = MemoryBank(**inner("bank.")), BankStats(**inner("stats."))
            return cls(config, bank, stats, tensors["pending"], tensors.get("pending_valid"))
        except (KeyError, TypeError) as error:
            raise ModelError(f"The snapshot of a memory is incomplete: {error}.") from error

    def read(
        self, activations: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, LayerMemory]:
        """Takes the next tokens of a prompt.

        Args:
            activations: shape (batch, tokens, ffn_width).
            valid: shape (batch, tokens): False for padding; None where there is none.

        Returns:
            What the down projection is to read, in the same shape and type; the memory after it.
        """
        if valid is None and self.pending_valid is None:
            return self._read_aligned(activations)
        return self._read_padded(activations, valid)

    def decode(
        self, activations: torch.Tensor, valid: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, LayerMemory]:
        """Takes one decoded token a row, which is a window of its own: shape (batch, 1, width)."""
        memory = self.close_window()
        found = look_up(memory.bank, activations, self.config, valid)
        everyone = valid if valid is not None else torch.ones_like(found.high)
        stats = memory.stats.looked_up(found, everyone)
        bank, stats = update(memory.bank, activations, found, self.config, stats, valid)
        return found.output, replace(memory, bank=bank, stats=stats)

    def close_window(self) -> LayerMemory:
        """Writes the pending window to the bank: at the end of a segment, or before decoding."""
        if self.pending.shape[1] == 0:
            return self
        bank, stats = self._write(self.bank, self.stats, self.pending, self.pending_valid)
        return replace(
            self, bank=bank, stats=stats, pending=_none_of(self.pending), pending_valid=None
        )

    def _write(
        self,
        bank: MemoryBank,
        stats: BankStats,
        window: torch.Tensor,
        valid: torch.Tensor | None,
    ) -> tuple[MemoryBank, BankStats]:
        found = look_up(bank, window, self.config, valid)
        return update(bank, window, found, self.config, stats, valid)

    def _read_aligned(self, activations: torch.Tensor) -> tuple[torch.Tensor, LayerMemory]:
        window = self.config.window
        bank, stats, pending = self.bank, self.stats, self.pending
        outputs = []
        start = 0
        while start < activations.shape[1]:
            piece = activations[:, start : start + window - pending.shape[1]]
            start += piece.shape[1]
            found = look_up(bank, piece, self.config)
            outputs.append(found.output)
            stats = stats.looked_up(found, torch.ones_like(found.high))
            if piece.shape[1] == window:
                bank, stats = update(bank, piece, found, self.config, stats)
                continue
            pending = torch.cat([pending, piece.detach()], dim=1)
            if pending.shape[1] == window:
                bank, stats = self._write(bank, stats, pending, None)
                pending = _none_of(pending)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return output, replace(self, bank=bank, stats=stats, pending=pending)

    def _read_padded(
        self, activations: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerMemory]:
        """As `_read_aligned`, with each row's real tokens pushed to the left."""
        window, old = self.config.window, self.pending.shape[1]

        def all_of(tensor: torch.Tensor) -> torch.Tensor:
            return torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)

        old_valid = self.pending_valid if self.pending_valid is not None else all_of(self.pending)
        new_valid = valid if valid is not None else all_of(activations)
        tokens = torch.cat([self.pending, activations], dim=1)
        real = torch.cat([old_valid, new_valid], dim=1)
        order = (~real).long().argsort(dim=1, stable=True)
        tokens, real = _take(tokens, order), real.gather(1, order)
        is_new = order >= old
        bank, stats = self.bank, self.stats
        outputs = []
        for start in range(0, tokens.shape[1], window):
            piece = tokens[:, start : start + window]
            there = real[:, start : start + window]
            found = look_up(bank, piece, self.config, there)
            outputs.append(found.output)
            stats = stats.looked_up(found, there & is_new[:, start : start + window])
            if piece.shape[1] == window:  # written in the rows where it is full
                full = there & there[:, -1:]
                bank, stats = update(bank, piece, found, self.config, stats, full)
        back = order.argsort(dim=1)
        output = _take(torch.cat(outputs, dim=1), back)[:, old:]
        rest, rest_valid = _rest_of(tokens.detach(), real, window)
        memory = replace(self, bank=bank, stats=stats, pending=rest, pending_valid=rest_valid)
        return output, memory

    def select(self, rows: torch.Tensor) -> LayerMemory:
        """The memory of the given rows, in that order, repeats allowed."""
        rows = rows.to(self.pending.device)
        valid = self.pending_valid
        return replace(
            self,
            bank=self.bank.select(rows),
            stats=self.stats.select(rows),
            pending=self.pending.index_select(0, rows),
            pending_valid=None if valid is None else valid.index_select(0, rows),
        )

    def without_last(self, tokens: int) -> LayerMemory | None:
        """The memory before the last `tokens`, where they are still pending; else None."""
        if self.pending_valid is not None or tokens > self.pending.shape[1]:
            return None
        return replace(self, pending=self.pending[:, : self.pending.shape[1] - tokens])


def _none_of(tensor: torch.Tensor) -> torch.Tensor:
    """No tokens, and not a view that would keep the others in memory."""
    return tensor.new_empty(tensor.shape[0], 0, tensor.shape[2])


def _take(tensor: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Reorders the tokens of each row: shapes (batch, tokens, width) and (batch, tokens)."""
    return tensor.gather(1, order[..., None].expand(-1, -1, tensor.shape[-1]))


def _rest_of(
    tokens: torch.Tensor, real: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of each row behind its last full window, pushed to the left."""
    count = real.sum(dim=1, keepdim=True)
    width = min(window - 1, tokens.shape[1])
    places = count // window * window + torch.arange(width, device=tokens.device)[None]
    there = places < count
    return _take(tokens, places.clamp_max(tokens.shape[1] - 1)), there
