"""The bank's rules once more, as plain loops over tokens and slots: slow, and meant to be read.

Written from the equations and the rules in `pacellm_rag.pace.memory_bank`'s docstrings, sharing no
code with it; one sequence, no batches, no padding.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from pacellm_rag.pace.config import PaceConfig

Vector = list[float]


def cosine(a: Vector, b: Vector) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / max(lengths, 1e-12)


def mean(vectors: list[Vector]) -> Vector:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def mix(a: Vector, b: Vector, share: float) -> Vector:
    return [(1 - share) * x + share * y for x, y in zip(a, b, strict=True)]


@dataclass
class Slot:
    key: Vector
    value: Vector
    usage: float = 1.0


@dataclass
class PlainBank:
    config: PaceConfig
    slots: list[Slot] = field(default_factory=list)

    def ranked(self, x: Vector) -> list[tuple[float, int]]:
        """Similarities and slot numbers, the most similar first."""
        pairs = [(cosine(x, slot.key), i) for i, slot in enumerate(self.slots)]
        return sorted(pairs, key=lambda pair: -pair[0])

    def read(self, x: Vector) -> Vector:
        """Equations 4 to 6, and the blend."""
        c, ranked = self.config, self.ranked(x)
        if not ranked or ranked[0][0] <= c.low:
            return x
        positive = mean([self.slots[i].value for _, i in ranked[: c.positives]])
        worst = ranked[-min(c.negatives, len(ranked)) :] if c.negatives else []
        negative = mean([self.slots[i].value for _, i in worst]) if worst else [0.0] * len(x)
        if ranked[0][0] > c.high:
            base = positive
        elif c.update == "slotwise":
            base = mix(positive, x, 0.5)
        else:
            base = [0.5 * p for p in positive]
        found = [b + c.noise * n for b, n in zip(base, negative, strict=True)]
        return mix(x, found, c.blend)

    def window(self, tokens: list[Vector]) -> list[Vector]:
        """Looks a window up, then writes it: algorithm 1."""
        c = self.config
        outputs = [self.read(x) for x in tokens]
        ranked = [self.ranked(x)[: c.positives] for x in tokens]
        scores = [sum(s for s, _ in r) / len(r) if r else -1.0 for r in ranked]
        stored = range(len(tokens))
        if c.update == "slotwise":
            lengths = [math.hypot(*x) for x in tokens]
            usual = statistics.median_low(lengths)
            stored = [t for t in stored if lengths[t] <= c.outlier * usual]
        between = [t for t in stored if c.low < scores[t] <= c.high]
        for t in stored:
            if scores[t] > c.high and c.update == "slotwise":
                for _, i in ranked[t]:
                    self.slots[i].usage += 1
        touched = sorted({i for t in between for _, i in ranked[t]})
        for i in touched:
            if c.update == "slotwise":
                voters = [t for t in between if i in [j for _, j in ranked[t]]]
            else:
                voters = between
                self.slots[i].usage += 1
            slot = self.slots[i]
            slot.key = mix(slot.key, mean([tokens[t] for t in voters]), c.momentum)
            slot.value = mix(slot.value, mean([outputs[t] for t in voters]), c.momentum)
        new = [t for t in stored if scores[t] <= c.low]
        if c.update == "slotwise":
            new.sort(key=lambda t: scores[t])
        used = sorted(range(len(self.slots)), key=lambda i: self.slots[i].usage)
        for t in new[: c.slots]:
            slot = Slot(tokens[t], outputs[t])
            if len(self.slots) < c.slots:
                self.slots.append(slot)
            else:
                self.slots[used.pop(0)] = slot
        return outputs
