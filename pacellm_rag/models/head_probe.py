"""Finding a model's retrieval heads with facts that it can only know from the prompt.

Made-up facts ("The seal of Dranlow is kept by Ottis Fenn.") are laid between sentences of filler;
then each fact's answer is fed to the model token by token, as if it had said it, and every head is
scored by the attention it puts on the sentence that holds the answer. The best heads of the model
are its retrieval heads. Takes some seconds on a small model; the result is kept on disk under the
fingerprint of the weights.

Knows nothing of the user's documents.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from pacellm_rag.files import cache_folder, write_atomically
from pacellm_rag.models.attention import IMPLEMENTATION, QueryRecorder, recording
from pacellm_rag.models.generation import prefill
from pacellm_rag.models.kv_cache import PreallocatedLayer
from pacellm_rag.models.retrieval_heads import RetrievalHeads, head_attention
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import Message

__all__ = ["find_retrieval_heads", "probe_heads", "score_heads"]

HEADS_KEPT = 12
_FACTS = 16
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


def score_heads(
    model: PreTrainedModel,
    tokenizer: ChatTokenizer,
    *,
    window: int,
    seed: int = 0,
    facts: int = _FACTS,
    filler_per_fact: int = 4,
) -> torch.Tensor:
    """Mean attention of every head on the sentence that holds the answer.

    Returns:
        Shape (layers, heads), probabilities.
    """
    rng = random.Random(seed)
    chosen = _facts(rng, facts)
    sentences: list[str] = []
    for fact in chosen:
        around = rng.choices(_FILLER, k=filler_per_fact)
        around.insert(rng.randint(0, filler_per_fact), _FACT.format(**fact))
        sentences.append(" ".join(around))
    context = "\n\n".join(sentences)
    layers = range(int(model.config.get_text_config(decoder=True).num_hidden_layers))
    total: torch.Tensor | None = None
    state = None
    for fact in chosen:
        prompt = tokenizer.encode_messages(
            [Message("system", context), Message("user", _QUESTION.format(**fact))]
        )
        sentence = _FACT.format(**fact)
        begin = prompt.text.index(sentence)
        inside = [
            i
            for i, (start, end) in enumerate(prompt.offsets)
            if start < begin + len(sentence) and end > begin
        ]
        first, last = inside[0], inside[-1] + 1
        if state is None:
            state = prefill(model, prompt.token_ids, window=window, reserve=256)
        reused = state.reusable(prompt.token_ids)
        answer = tokenizer.hf(_ANSWER.format(**fact), add_special_tokens=False)["input_ids"]
        branch = state.branch(reused, len(prompt.token_ids) + len(answer) + 8)
        # the query that writes an answer token is that of the token before it
        recorder = QueryRecorder(layers, newest=len(answer))
        feed = [*prompt.token_ids[reused:], *answer[:-1]]
        try:
            with torch.inference_mode(), recording(recorder):
                ids = torch.tensor([feed], device=model.device)
                model.base_model(input_ids=ids, past_key_values=branch.cache, use_cache=True)
                rows = []
                for layer in layers:
                    attention = head_attention(
                        torch.cat(recorder.queries[layer]),
                        cast(PreallocatedLayer, branch.cache.layers[layer]).keys[0],
                        recorder.scaling[layer],
                        len(prompt.token_ids),
                    )
                    rows.append(attention[:, :, first:last].sum(dim=-1).mean(dim=0))
                scores = torch.stack(rows).cpu()
                total = scores if total is None else total + scores
        finally:
            branch.release()
    assert total is not None
    return total / facts


def probe_heads(
    model: PreTrainedModel, tokenizer: ChatTokenizer, *, window: int, seed: int = 0
) -> RetrievalHeads:
    """The `HEADS_KEPT` heads with the highest score, the best first."""
    scores = score_heads(model, tokenizer, window=window, seed=seed)
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
    return known


def _load(path: Path) -> RetrievalHeads | None:
    try:
        heads = json.loads(path.read_text())["heads"]
        return RetrievalHeads(tuple((int(layer), int(head)) for layer, head in heads))
    except (OSError, ValueError, KeyError, TypeError):
        return None
