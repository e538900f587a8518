"""Documents once, then many conversations about them, in one forward pass.

The conversations of an example see the documents and themselves, not each other, and each counts
its positions from the documents' end: what the model computes for each is what it computes when it
is asked alone. The loss is on the answers only, so the output head sees few tokens. Knows the
product's prompt; knows nothing of where examples come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from pacellm_rag.messages import Message
from pacellm_rag.models.tokenizer import ChatTokenizer
from training.contexts import Example, Turn
from training.prompts import messages_of

__all__ = ["ATTENTION", "Encoded", "answer_loss", "encode_example"]

ATTENTION = "shared_prefix"
END_OF_TURN = "<|im_end|>"
_BLOCK = 256  # tokens
_LONG = 3500  # tokens of documents, beyond which keeping probabilities takes too much memory


@dataclass(frozen=True)
class Encoded:
    """An example as tokens.

    Attributes:
        tokens: shape (tokens,): the documents', then those of the conversations one by one.
        positions: shape (tokens,).
        prefix: tokens of the documents.
        ends: where each conversation ends.
        predicting: indices of the tokens whose successor is to be learnt.
        answers: shape (predicting,): these successors.
    """

    tokens: Tensor
    positions: Tensor
    prefix: int
    ends: tuple[int, ...]
    predicting: Tensor
    answers: Tensor

    @property
    def length(self) -> int:
        """Tokens of all."""
        return len(self.tokens)


def encode_example(tokenizer: ChatTokenizer, example: Example) -> Encoded:
    """Tokens of an example, laid out as the product lays out its prompts."""
    firsts = [conversation[0] for conversation in example.conversations]
    firsts += [replace(turn, question=text) for turn in firsts for text in ("A", "9?")]
    prompts = {tokenizer.encode_messages(messages_of(example, turn)).token_ids for turn in firsts}
    one, prefix = min(prompts, key=len), 0
    while prefix < len(one) and all(each[prefix] == one[prefix] for each in prompts):
        prefix += 1
    tokens, positions = list(one[:prefix]), list(range(prefix))
    predicting: list[int] = []
    ends: list[int] = []
    for conversation in example.conversations:
        start = len(tokens)
        history: list[Message] = []
        done = 0  # characters of the rendered conversation that are tokens already
        for turn in conversation:
            prompt = tokenizer.encode_messages(messages_of(example, turn, history))
            if done:
                tokens += _bare(tokenizer, prompt.text[done:])
            else:
                tokens += prompt.token_ids[prefix:]
            answer = _bare(tokenizer, turn.answer + END_OF_TURN)
            predicting += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
            tokens += answer
            done = len(prompt.text) + len(turn.answer + END_OF_TURN)
            history += _said(turn)
        ends.append(len(tokens))
        positions += range(prefix, prefix + len(tokens) - start)
    ids = torch.tensor(tokens)
    places = torch.tensor(predicting)
    return Encoded(ids, torch.tensor(positions), prefix, tuple(ends), places, ids[places + 1])


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
        blocks=_blocks(example.prefix, example.ends, device),
    )
    hidden = output.last_hidden_state[0, example.predicting.to(device)]
    logits = model.lm_head(hidden).float()
    return nn.functional.cross_entropy(logits, example.answers.to(device))


@dataclass(frozen=True)
class _Block:
    """Tokens that attend together.

    Attributes:
        start: first of them.
        end: behind the last of them.
        prefix: how many tokens of the documents they see, beside themselves.
        visible: shape (tokens, prefix + tokens): what each of them sees.
    """

    start: int
    end: int
    prefix: int
    visible: Tensor


def _blocks(prefix: int, ends: Sequence[int], device: torch.device) -> list[_Block]:
    """The documents by `_BLOCK` tokens, then the conversations, several to a block."""
    made = []
    for start in range(0, prefix, _BLOCK):
        size = min(_BLOCK, prefix - start)
        own = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        made.append(_block(start, start, own))
    start, spans = prefix, [*zip((prefix, *ends), ends, strict=False)]
    while spans:
        last = max(i for i, (_, end) in enumerate(spans) if not i or end - start <= _BLOCK)
        mine, spans = spans[: last + 1], spans[last + 1 :]
        size = mine[-1][1] - start
        own = torch.zeros(size, size, dtype=torch.bool, device=device)
        for first, end in mine:
            one = slice(first - start, end - start)
            own[one, one] = torch.ones(end - first, end - first, dtype=torch.bool).tril()
        made.append(_block(start, prefix, own))
        start += size
    return made


def _block(start: int, prefix: int, own: Tensor) -> _Block:
    before = torch.ones(len(own), prefix, dtype=torch.bool, device=own.device)
    return _Block(start, start + len(own), prefix, torch.cat([before, own], 1))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    blocks: Sequence[_Block],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each block to what it sees of the documents, and to itself."""
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    one = _kept_probabilities if query.device.type == "cpu" else _fused
    long = blocks[-1].prefix > _LONG
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    done = [
        (_fused if long else one)(
            query[:, :, block.start : block.end],
            _seen(key, block),
            _seen(value, block),
            block.visible,
            scale,
        )
        for block in blocks
    ]
    return torch.cat(done, 2).transpose(1, 2).contiguous(), None


def _seen(states: Tensor, block: _Block) -> Tensor:
    own = states[:, :, block.start : block.end]
    return torch.cat([states[:, :, : block.prefix], own], 2) if block.prefix else own


def _kept_probabilities(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Attention whose probabilities are kept for the way back.

    On a CPU that takes two thirds of the time of the fused kernel, which computes their
    exponentials twice, and 2 bytes a pair of tokens, head and layer.
    """
    hidden = torch.zeros(visible.shape, dtype=q.dtype).masked_fill(~visible, float("-inf"))
    shape, (q, k, v) = q.shape, (each.flatten(0, 1) for each in (q, k, v))
    scores = torch.baddbmm(hidden.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ v).view(shape)


def _fused(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
