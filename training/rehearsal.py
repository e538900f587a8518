"""What the model is to stay able to do: requests that are no questions, with its own answers.

An adapter that has learnt nothing but terse answers gives them to everything: it refuses to
summarise, and writes no poem. Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal",
1995: what a network said before is learnt again beside what is new. Nearly all answers are the
model's own.

`python -m training.rehearsal --data FOLDER --out FILE` writes them, a line of JSON each, and goes
on after what is there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pacellm_rag.chat import start_chat
from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.models.loading import load_model
from pacellm_rag.protocols import GenerationOptions, TextModel
from pacellm_rag_ui.about_documents import QUESTIONS_REQUEST, SUMMARY_REQUEST
from training.contexts import Example, Library, Turn, draw_example
from training.prompts import messages_of

__all__ = ["draw_rehearsal", "draw_requests", "lines_of", "read_rehearsals"]

ANSWER_TOKENS = 120
ABOUT = 0.6  # share of the examples that are about documents
DOCUMENT_TOKENS = 900
QUESTIONS = 4  # that the product asks for
TOGETHER = 8  # requests of an example without documents

_ABOUT = (
    "Summarise the documents in one paragraph.",
    "List the main points of the documents, one a line.",
    "Explain what the documents are about to somebody who knows nothing of it.",
    "Which names and dates do the documents tell? Write them as a list.",
    "Write a title for these documents, and say why it fits.",
    "Translate the first sentence of the documents into simple words.",
)
_GENERAL = (
    "Write a short poem about {}.",
    "Explain to a child what {} is.",
    "Write three sentences about {}.",
    "Give me five words that have to do with {}.",
    "What should I know before I buy something for {}?",
    "Write an e-mail that asks a friend for advice about {}.",
    "Tell me a joke about {}.",
    "What are good and bad sides of {}?",
    "How does one begin with {}?",
    "Name three questions that people ask about {}.",
)
_TOPICS = (
    "rain gardens bicycles bread winter music chess trains the-sea coffee football painting "
    "mountains computers cats history cooking sleep markets bridges languages birds maps "
    "holidays school medicine electricity theatre forests time friendship paper"
).split()


def draw_requests(library: Library, seed: int, number: int) -> Example:
    """Example `number`: requests about drawn documents, or about nothing.

    Answers are empty, but for questions to write: there the data's are better than the model's.
    """
    rng = random.Random(f"rehearsal/{seed}/{number}")
    if rng.random() < ABOUT:
        drawn = draw_example(library, seed + 1, number, DOCUMENT_TOKENS, QUESTIONS * 4)
        known = [turn for turn, *_ in drawn.conversations if turn.answer != NOT_ANSWERED]
        written = "\n".join(turn.question for turn in known[:QUESTIONS])
        requests = {SUMMARY_REQUEST: "", QUESTIONS_REQUEST: written, rng.choice(_ABOUT): ""}
        turns = (Turn(each, answer, asked=False) for each, answer in requests.items())
        return Example(drawn.documents, tuple((turn,) for turn in turns))
    texts = {
        rng.choice(_GENERAL).format(rng.choice(_TOPICS).replace("-", " ")) for _ in range(TOGETHER)
    }
    return Example((), tuple((Turn(text, "", asked=False),) for text in sorted(texts)))


def answered(model: TextModel, example: Example) -> Example:
    """The example with what the model says to its requests."""
    options = GenerationOptions(max_new_tokens=ANSWER_TOKENS)
    conversations = []
    for (turn,) in example.conversations:
        if turn.answer:
            conversations.append((turn,))
            continue
        stream = start_chat(model, messages_of(example, turn), options=options)
        text = "".join(delta.text for delta in stream).strip()
        if text and stream.finish_reason != "length":
            conversations.append((Turn(turn.question, text, asked=False),))
    return Example(example.documents, tuple(conversations))


def read_rehearsals(path: Path) -> list[Example]:
    """What was written to a file."""
    with path.open(encoding="utf-8") as lines:
        return [_example(json.loads(line)) for line in lines]


def draw_rehearsal(
    rehearsals: Sequence[Example], share: float, seed: int, number: int
) -> Example | None:
    """What takes the place of example `number` of a training; nothing for most of them.

    Args:
        rehearsals: to draw from.
        share: of the training's examples.
        seed: of the training.
        number: which example.
    """
    rng = random.Random(f"rehearsed/{seed}/{number}")
    return rng.choice(rehearsals) if rehearsals and rng.random() < share else None


def _example(values: dict[str, Any]) -> Example:
    documents = tuple(
        Document(each["id"], each["title"], tuple(Page(**page) for page in each["pages"]))
        for each in values["documents"]
    )
    turns = (Turn(request, answer, asked=False) for request, answer in values["said"])
    return Example(documents, tuple((turn,) for turn in turns))


def _values(example: Example) -> dict[str, Any]:
    documents = [
        {
            "id": document.id,
            "title": document.title,
            "pages": [asdict(page) for page in document.pages],
        }
        for document in example.documents
    ]
    said = [[turn.question, turn.answer] for (turn,) in example.conversations]
    return {"documents": documents, "said": said}


def main() -> None:
    """Writes rehearsals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    library = Library.load(options.data)
    model = load_model(adapter=None, store_bytes=0)
    for line in lines_of(model, library, options.seed, options.count, options.out):
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def lines_of(model: TextModel, library: Library, seed: int, count: int, out: Path) -> Iterator[str]:
    """The lines that `out` lacks, up to `count`."""
    done = len(read_rehearsals(out)) if out.exists() else 0
    for number in range(done, count):
        yield json.dumps(_values(answered(model, draw_requests(library, seed, number))))


if __name__ == "__main__":
    main()
