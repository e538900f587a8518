"""Settings of PaceLLM, frozen and validated.

Names and defaults are those of the method (Li et al., "PaceLLM: Brain-Inspired Large Language
Models for Long-Context Understanding", NeurIPS 2025, arXiv 2506.17310). Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from pacellm_rag.errors import ConfigurationError

__all__ = ["PaceConfig", "UpdateRule"]

UpdateRule = Literal["slotwise", "reference"]

# The paper puts banks on the 13th and 27th of 28 layers.
_DEPTHS = (13 / 28, 27 / 28)


@dataclass(frozen=True)
class PaceConfig:
    """How the activation memory bank works, and where it sits.

    Attributes:
        layers: indices of the layers with a bank, from 0; None puts them at 13/28 and 27/28 of
            the depth, as the paper does on 28 layers.
        slots: entries of a bank (M).
        positives: most similar slots that are averaged (k).
        negatives: least similar slots that are averaged (k').
        noise: weight of the negatives' mean (lambda).
        high: similarity above which a token is replaced by memory (theta_high).
        low: similarity up to which a token is left alone, and stored as new (theta_low).
        window: tokens after which the bank is updated (W).
        blend: share of the looked-up activation in what the down projection reads (alpha); the
            paper replaces all of it (1.0), its authors' code takes 0.2. 0 changes nothing.
        momentum: share of the new in a merged slot; the paper's average is 0.5.
        outlier: a token is not stored if its activation is more than this many times as long as
            the median of its window. Decoders park "massive activations" on the first token and a
            few others (Sun et al., "Massive Activations in Large Language Models", COLM 2024),
            hundreds of times the usual length: as the least similar slot of all they would come
            back to every other token as noise that drowns it. The rule "reference" stores them.
        update: "slotwise" merges into a slot the mean of the tokens that chose that slot;
            "reference" does what the authors' code does, for comparison with it.

    Raises:
        ConfigurationError: a value can not work.
    """

    layers: tuple[int, ...] | None = None
    slots: int = 100
    positives: int = 5
    negatives: int = 2
    noise: float = 0.1
    high: float = 0.7
    low: float = 0.3
    window: int = 1024
    blend: float = 0.2
    momentum: float = 0.5
    outlier: float = 8.0
    update: UpdateRule = "slotwise"

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        checks = {
            "slots": (self.slots >= 1, "1 or more"),
            "positives": (1 <= self.positives <= self.slots, f"1 to {self.slots} (slots)"),
            "negatives": (0 <= self.negatives <= self.slots, f"0 to {self.slots} (slots)"),
            "noise": (abs(self.noise) <= 1, "between -1 and 1"),
            "high": (-1 <= self.low <= self.high <= 1, "between low and 1, and low above -1"),
            "window": (self.window >= 1, "1 token or more"),
            "blend": (0 <= self.blend <= 1, "between 0 and 1"),
            "momentum": (0 <= self.momentum <= 1, "between 0 and 1"),
            "outlier": (self.outlier >= 1, "1 or more"),
            "update": (self.update in ("slotwise", "reference"), "'slotwise' or 'reference'"),
            "layers": (all(i >= 0 for i in self.layers or ()), "indices from 0"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; it must be {wanted}.")

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The layers with a bank in a model of `depth` layers.

        Raises:
            ConfigurationError: a layer that the model does not have.
        """
        if self.layers is None:
            return tuple(sorted({max(round(share * depth), 1) - 1 for share in _DEPTHS}))
        beyond = [layer for layer in self.layers if layer >= depth]
        if beyond:
            raise ConfigurationError(
                f"The model has {depth} layers, 0 to {depth - 1}; there is no layer {beyond[0]}."
            )
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PaceConfig:
        """The settings that `to_dict` gave.

        Raises:
            ConfigurationError: an unknown name, or a value that can not work.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigurationError(
                f"Unknown PaceLLM setting {unknown[0]!r}; known are {', '.join(sorted(known))}."
            )
        layers = values.get("layers")
        return replace(cls(), **{**values, "layers": None if layers is None else tuple(layers)})
