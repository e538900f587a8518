"""Training passes: a conversation behind shared documents is computed as if it were alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.models.model import PaceModel
from training.branches import ATTENTION, Encoded, answer_loss, encode_example
from training.contexts import Example, Turn
from training.lora import add_adapters

DOCUMENTS = (
    Document("sha256:1", "Report", (Page(1, "1", "The crane is yellow. " * 4),)),
    Document("sha256:2", "Letter", (Page(1, "1", "Ann signed it."), Page(2, "2", "In May."))),
)
ALONE = (
    (Turn("What colour is the crane?", "yellow"),),
    (Turn("Who signed it?", "Ann"), Turn("And when?", "In May")),
    (Turn("Who paid?", NOT_ANSWERED),),
)


@pytest.fixture
def model(tiny: Callable[..., PaceModel]) -> PaceModel:
    model = tiny(max_position_embeddings=4096)
    model.module.set_attn_implementation(ATTENTION)
    return model


def loss_of(model: PaceModel, example: Encoded) -> float:
    with torch.no_grad():
        return float(answer_loss(model.module, example))


def test_together_is_the_same_as_alone(model: PaceModel) -> None:
    together = encode_example(model.tokenizer, Example(DOCUMENTS, ALONE))
    total, count = 0.0, 0
    for conversation in ALONE:
        one = encode_example(model.tokenizer, Example(DOCUMENTS, (conversation,)))
        total += loss_of(model, one) * len(one.answers)
        count += len(one.answers)
    assert count == len(together.answers)
    assert loss_of(model, together) == pytest.approx(total / count, rel=1e-4)


def test_alone_is_the_models_own_loss_on_the_products_prompt(model: PaceModel) -> None:
    one = encode_example(model.tokenizer, Example(DOCUMENTS, (ALONE[1],)))
    expected = loss_of(model, one)
    model.module.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = model.module(input_ids=one.tokens[None]).logits[0, one.predicting]
    loss = torch.nn.functional.cross_entropy(logits.float(), one.answers)
    assert expected == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("documents", [DOCUMENTS, ()])
def test_requests_that_are_no_questions_are_sent_as_they_are(
    model: PaceModel, documents: tuple[Document, ...]
) -> None:
    said = tuple(
        (Turn(text, answer, asked=False),)
        for text, answer in (("Write a poem.", "The crane\nis plain."), ("Say no.", "No."))
    )
    together = encode_example(model.tokenizer, Example(documents, said))
    one = encode_example(model.tokenizer, Example(documents, said[:1]))
    text = model.tokenizer.decode(one.tokens.tolist())
    assert "user\nWrite a poem." in text
    assert "Question:" not in text
    assert ("[D2 p2]" in text) is bool(documents)
    expected = loss_of(model, one)
    other = encode_example(model.tokenizer, Example(documents, said[1:]))
    sizes = len(one.answers), len(other.answers)
    mean = (expected * sizes[0] + loss_of(model, other) * sizes[1]) / sum(sizes)
    assert loss_of(model, together) == pytest.approx(mean, rel=1e-4)
    model.module.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = model.module(input_ids=one.tokens[None]).logits[0, one.predicting]
    loss = torch.nn.functional.cross_entropy(logits.float(), one.answers)
    assert expected == pytest.approx(float(loss), rel=1e-4)


def test_an_adapter_changes_nothing_at_first_and_only_it_learns(model: PaceModel) -> None:
    example = encode_example(model.tokenizer, Example(DOCUMENTS, ALONE))
    before = loss_of(model, example)
    adapters = add_adapters(model.module, rank=4, alpha=4)
    assert loss_of(model, example) == pytest.approx(before, rel=1e-6)
    learning = [p for p in model.module.parameters() if p.requires_grad]
    assert len(learning) == 2 * len(adapters)
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(5):
        answer_loss(model.module, example).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss_of(model, example) < before
