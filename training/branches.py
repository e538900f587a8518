"""Documents once, then many conversations about them, in one forward pass.

The conversations of an example see the documents and themselves, not each other, and each counts
its positions from the documents' end: what the model computes for each is what it computes when it
is asked alone. The loss is on the answers only, so the output head sees few tokens. Knows the
product's prompt; knows nothing of where examples come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.messages import Message
from pacellm_rag.models.tokenizer import ChatTokenizer
from training.contexts import Example, Turn

__all__ = ["ATTENTION", "Encoded", "answer_loss", "encode_example"]

ATTENTION = "shared_prefix"
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        tokens: shape (tokens,): the documents', then those of the conversations one by one.
        positions: shape (tokens,).
        prefix: tokens of the documents.
        visible: shape (others, tokens): which tokens each one behind the prefix sees.
        predicting: indices of the tokens whose successor is to be learnt.
        answers: shape (predicting,): these successors.
    """

    tokens: Tensor
    positions: Tensor
    prefix: int
    visible: Tensor
    predicting: Tensor
    answers: Tensor

    @property
    def length(self) -> int:
        """Tokens of all."""
        return len(self.tokens)


def encode_example(tokenizer: ChatTokenizer, example: Example) -> Encoded:
    """Tokens of an example, laid out as the product lays out its prompts."""
    packed = pack_context(example.documents)
    one, two = (tokenizer.encode_messages(build_messages(packed, q)).token_ids for q in ("A", "9?"))
    prefix = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    tokens, positions = list(one[:prefix]), list(range(prefix))
    predicting: list[int] = []
    spans: list[tuple[int, int]] = []
    for conversation in example.conversations:
        start = len(tokens)
        history: list[Message] = []
        done = 0  # characters of the rendered conversation that are tokens already
        for turn in conversation:
            prompt = tokenizer.encode_messages(build_messages(packed, turn.question, history))
            if done:
                tokens += _bare(tokenizer, prompt.text[done:])
            else:
                tokens += prompt.token_ids[prefix:]
            answer = _bare(tokenizer, turn.answer + END_OF_TURN)
            predicting += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
            tokens += answer
            done = len(prompt.text) + len(turn.answer + END_OF_TURN)
            history += _said(turn)
        spans.append((start, len(tokens)))
        positions += range(prefix, prefix + len(tokens) - start)
    visible = torch.zeros(len(tokens) - prefix, len(tokens), dtype=torch.bool)
    visible[:, :prefix] = True
    for start, end in spans:
        own = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        visible[start - prefix : end - prefix, start:end] = own
    ids = torch.tensor(tokens)
    places = torch.tensor(predicting)
    return Encoded(ids, torch.tensor(positions), prefix, visible, places, ids[places + 1])


def _said(turn: Turn) -> list[Message]:
    return [Message("user", turn.question), Message("assistant", turn.answer)]


def _bare(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return list(tokenizer.hf(text, add_special_tokens=False, verbose=False)["input_ids"])


def answer_loss(model: PreTrainedModel, example: Encoded) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, in nats."""
    device = model.device
    output = model.model(
        input_ids=example.tokens[None].to(device),
        position_ids=example.positions[None].to(device),
        use_cache=False,
        shared_prefix=example.prefix,
        visible=example.visible.to(device),
    )
    hidden = output.last_hidden_state[0, example.predicting.to(device)]
    logits = model.lm_head(hidden).float()
    return nn.functional.cross_entropy(logits, example.answers.to(device))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    shared_prefix: int,
    visible: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within the prefix; of the others to the prefix and what is theirs."""
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    attention = nn.functional.scaled_dot_product_attention
    ends: Sequence[Tensor] = [
        attention(
            query[:, :, :shared_prefix],
            key[:, :, :shared_prefix],
            value[:, :, :shared_prefix],
            is_causal=True,
            scale=scaling,
        ),
        attention(query[:, :, shared_prefix:], key, value, attn_mask=visible, scale=scaling),
    ]
    return torch.cat(list(ends), 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
