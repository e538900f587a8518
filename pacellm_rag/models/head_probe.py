"""Finding a model's retrieval heads with facts that it can only know from the prompt.

Made-up facts ("The seal of Dranlow is kept by Ottis Fenn.") are laid between sentences of filler;
then each fact's answer is fed to the model token by token, as if it had said it, and every head is
scored by the attention it puts on the sentence that holds the answer. The best heads of the model
are its retrieval heads. Takes some seconds on a small model; the result is kept on disk under the
fingerprint of the weights.

Knows nothing of the user's documents.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from pacellm_rag.files import cache_folder, write_atomically
from pacellm_rag.models.attention import IMPLEMENTATION
from pacellm_rag.models.query_recorder import QueryRecorder, recording
from pacellm_rag.models.retrieval_heads import RetrievalHeads, head_attention
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import EncodedPrompt, Message

__all__ = ["find_retrieval_heads", "probe_heads", "score_heads", "shared_prefix_length"]

HEADS_KEPT = 12
_FACTS = 16
_FEWEST_FACTS = 2
_FILLER_PER_FACT = 4
_PROBE_VERSION = 1  # part of the file name: raise it when the probe changes

_SYLLABLES = (
    "bra",
    "dun",
    "fel",
    "gor",
    "hin",
    "jas",
    "kel",
    "lom",
    "mir",
    "nor",
    "pel",
    "ras",
    "sol",
    "tam",
    "ul",
    "ven",
    "wis",
    "yor",
    "zan",
)
_FILLER = (
    "The committee met in the usual room and went through the minutes of the last meeting.",
    "Rain was expected in the afternoon, so the work outside was moved to the morning.",
    "A short summary of the results is sent to all members at the end of every quarter.",
    "Nothing else of note was recorded on that day, and the gates were closed as always.",
    "The older part of the building has been repaired twice since the records began.",
    "Visitors are asked to sign the book at the entrance and to return it when they leave.",
    "Most of the letters that arrived during the week were answered within a few days.",
    "The report explains in its second part how these figures were put together.",
)
_FACT = "The {thing} of {place} is kept by {person}, under number {number}."
_QUESTION = "Who keeps the {thing} of {place}, and under which number?"
_ANSWER = "{person}, under number {number}."
_THINGS = ("seal", "ledger", "lantern", "charter", "compass", "register", "bell", "atlas")


def _facts(rng: random.Random, count: int) -> list[dict[str, str]]:
    def word() -> str:
        return "".join(rng.sample(_SYLLABLES, 2)).capitalize()

    return [
        {
            "thing": rng.choice(_THINGS),
            "place": word(),
            "person": f"{word()} {word()}",
            "number": str(rng.randint(100, 999)),
        }
        for _ in range(count)
    ]


@dataclass(frozen=True)
class _Probe:
    """A context with facts in it; for each fact the question's prompt, its answer, its place."""

    prompts: tuple[EncodedPrompt, ...]
    answers: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, int], ...]


def _build_probe(tokenizer: ChatTokenizer, facts: int, rng: random.Random) -> _Probe:
    chosen = _facts(rng, facts)
    paragraphs = []
    for fact in chosen:
        sentences = rng.choices(_FILLER, k=_FILLER_PER_FACT)
        sentences.insert(rng.randint(0, _FILLER_PER_FACT), _FACT.format(**fact))
        paragraphs.append(" ".join(sentences))
    context = "\n\n".join(paragraphs)
    prompts, answers, places = [], [], []
    for fact in chosen:
        turns = [Message("system", context), Message("user", _QUESTION.format(**fact))]
        prompt = tokenizer.encode_messages(turns)
        start = prompt.text.index(_FACT.format(**fact))
        end = start + len(_FACT.format(**fact))
        inside = [i for i, (a, b) in enumerate(prompt.offsets) if a < end and b > start]
        ids = tokenizer.hf(_ANSWER.format(**fact), add_special_tokens=False)["input_ids"]
        prompts.append(prompt)
        answers.append(tuple(ids))
        places.append((inside[0], inside[-1] + 1))
    return _Probe(tuple(prompts), tuple(answers), tuple(places))


def _fitting_probe(tokenizer: ChatTokenizer, rng: random.Random) -> _Probe | None:
    """The probe with the most facts that fits the context window."""
    facts = _FACTS
    while facts >= _FEWEST_FACTS:
        probe = _build_probe(tokenizer, facts, rng)
        pairs = zip(probe.prompts, probe.answers, strict=True)
        if max(len(p.token_ids) + len(a) for p, a in pairs) <= tokenizer.context_window:
            return probe
        facts //= 2
    return None


def shared_prefix_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens the prompts begin with in common; fewer than any of them has."""
    limit = min(map(len, prompts)) - 1
    first = prompts[0]
    return next((i for i in range(limit) if any(p[i] != first[i] for p in prompts)), limit)


def score_heads(
    model: PreTrainedModel, tokenizer: ChatTokenizer, *, window: int, seed: int = 0
) -> torch.Tensor | None:
    """Mean attention of every head on the sentence that holds the answer.

    Returns:
        Shape (layers, heads), probabilities; 0 for layers that do not keep the keys of the whole
        context (sliding windows). None where no layer does, or where the context window is too
        small for a probe.
    """
    probe = _fitting_probe(tokenizer, random.Random(seed))
    if probe is None:
        return None
    total: dict[int, torch.Tensor] = {}
    context = shared_prefix_length([prompt.token_ids for prompt in probe.prompts])
    read = DynamicCache(config=model.config)
    with torch.inference_mode():
        for start in range(0, context, window):
            ids = probe.prompts[0].token_ids[start : min(start + window, context)]
            model.base_model(
                input_ids=torch.tensor([ids], device=model.device), past_key_values=read
            )
    for prompt, answer, (first, last) in zip(
        probe.prompts, probe.answers, probe.places, strict=True
    ):
        rest = [*prompt.token_ids[context:], *answer[:-1]]
        with torch.inference_mode():
            cache = copy.deepcopy(read)
            full = {
                index: layer
                for index, layer in enumerate(cache.layers)
                if isinstance(layer, DynamicLayer) and not layer.is_sliding
            }
            # the query that writes an answer token is that of the token before it
            recorder = QueryRecorder(full, newest=len(answer))
            with recording(recorder):
                model.base_model(
                    input_ids=torch.tensor([rest], device=model.device), past_key_values=cache
                )
            for index in recorder.queries:
                keys = full[index].keys
                assert keys is not None
                attention = head_attention(
                    torch.cat(recorder.queries[index]),
                    keys[0],
                    recorder.scaling[index],
                    len(prompt.token_ids),
                )
                score = attention[:, :, first:last].sum(dim=-1).mean(dim=0).cpu()
                total[index] = total.get(index, torch.zeros_like(score)) + score
    if not total:
        return None
    heads = len(next(iter(total.values())))
    depth = max(total) + 1
    rows = [total.get(index, torch.zeros(heads)) for index in range(depth)]
    return torch.stack(rows) / len(probe.prompts)


def probe_heads(
    model: PreTrainedModel, tokenizer: ChatTokenizer, *, window: int, seed: int = 0
) -> RetrievalHeads:
    """The `HEADS_KEPT` heads with the highest score, the best first; none where none was found."""
    scores = score_heads(model, tokenizer, window=window, seed=seed)
    if scores is None:
        return RetrievalHeads(())
    best = scores.flatten().topk(min(HEADS_KEPT, scores.numel())).indices.tolist()
    return RetrievalHeads(tuple(divmod(index, scores.shape[1]) for index in best))


def find_retrieval_heads(
    model: PreTrainedModel, tokenizer: ChatTokenizer, fingerprint: str, window: int
) -> RetrievalHeads | None:
    """The model's retrieval heads: from disk where they were found before, else by the probe.

    Returns:
        None where attention can not be observed: the model does not use this package's attention
        function, or not all its layers keep the keys of the whole context.
    """
    if model.config._attn_implementation != IMPLEMENTATION:
        return None
    path = cache_folder() / "retrieval_heads" / f"{fingerprint[:32]}-v{_PROBE_VERSION}.json"
    known = _load(path)
    if known is None:
        known = probe_heads(model, tokenizer, window=window)
        write_atomically(path, json.dumps({"heads": known.heads}).encode())
    return known if known.heads else None


def _load(path: Path) -> RetrievalHeads | None:
    try:
        heads = json.loads(path.read_text())["heads"]
        return RetrievalHeads(tuple((int(layer), int(head)) for layer, head in heads))
    except (OSError, ValueError, KeyError, TypeError):
        return None
