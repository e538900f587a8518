"""How often the first citation is the page that holds the answer.

Pages are contexts of a question-answering set, 8 to 12 at a time, once from different articles and
once from the same article. The model answers in its own words; besides, the set's own answer is
put into its mouth, so that attribution is measured on right answers as well where the model gives
few. Attribution by words (BM25 of question and answer over pages), by attention alone and the
shipped combination are compared on the same answers. Prints a table and, last, a line of JSON.

    python benchmarks/citations.py --data QA.jsonl.xz [--contexts 30] [--questions 8] [--seed 1]

Each line of the data: {"source", "title", "context", "questions": [[question, [answers]], ...]}.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pacellm_rag.context.citations import CitationResolver, Evidence, Weights
from pacellm_rag.context.lexical import words_of
from pacellm_rag.context.packing import PackedContext, pack_context
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.context.tokens import locate_context, token_ranges
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.models.kv_cache import Block
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.prefix_cache import Tokens
from pacellm_rag.models.query_recorder import QueryRecorder, recording
from pacellm_rag.models.request import token_keys
from pacellm_rag.models.retrieval_heads import attention_to_spans
from pacellm_rag.protocols import GenerationOptions, PromptLayout

METHODS = {
    "words (BM25)": Weights(attention=0, question=1, statement=1, sentence=0, marker=0),
    "attention": Weights(attention=1, question=0, statement=0, sentence=0, marker=0),
    "combined": Weights(),
}
ANSWER = GenerationOptions(max_new_tokens=32)


@dataclass(frozen=True)
class Row:
    """One context of the data."""

    title: str
    context: str
    questions: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Outcome:
    """Where each method's first citation went, for one answer."""

    pages_from: str
    answer_by: str
    right: bool
    hits: dict[str, bool]


def load_rows(path: Path, source: str) -> list[Row]:
    """The contexts of one source that have answerable questions."""
    rows = []
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
        for line in file:
            row = json.loads(line)
            if row["source"] != source or not row.get("context"):
                continue
            questions = [(q, answers) for q, answers in row["questions"] if answers]
            if questions:
                rows.append(Row(row["title"], row["context"], questions))
    return rows


def draw_pages(rows: Sequence[Row], mode: str, rng: random.Random) -> list[Row]:
    """8 to 12 contexts, from different articles or from one."""
    count = rng.randint(8, 12)
    by_title: dict[str, list[Row]] = {}
    for row in rows:
        by_title.setdefault(row.title, []).append(row)
    if mode == "different":
        return [rng.choice(by_title[title]) for title in rng.sample(sorted(by_title), count)]
    title = rng.choice([title for title in sorted(by_title) if len(by_title[title]) >= count])
    return rng.sample(by_title[title], count)


def pack(pages: Sequence[Row], mode: str) -> PackedContext:
    """Different articles as documents of one page, one article as a document of many."""
    if mode == "different":
        return pack_context([Document(p.title, p.title, (Page(1, "1", p.context),)) for p in pages])
    numbered = tuple(Page(i, str(i), page.context) for i, page in enumerate(pages, 1))
    return pack_context([Document(pages[0].title, pages[0].title, numbered)])


def is_right(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an accepted answer stands in the model's words."""
    said = " ".join(words_of(answer))
    return any(wanted and wanted in said for wanted in (" ".join(words_of(a)) for a in accepted))


class Questioner:
    """Asks about one packed context, which it reads once."""

    def __init__(self, model: PaceModel, packed: PackedContext) -> None:
        self.model, self.packed = model, packed
        self.resolvers = {name: CitationResolver(packed, w) for name, w in METHODS.items()}
        model.engine.runner.cache.shrink(0)  # earlier contexts
        ids, layout, _ = self._prompt("?")
        self.state = model.prefill(ids, layout=layout)

    def _prompt(self, question: str) -> tuple[tuple[int, ...], PromptLayout, list[tuple[int, int]]]:
        prompt = self.model.tokenizer.encode_messages(build_messages(self.packed, question))
        base = locate_context(prompt, self.packed)
        spans = self.resolvers["combined"].sentence_spans
        ranges = token_ranges(prompt.offsets, [(start + base, end + base) for start, end in spans])
        return prompt.token_ids, PromptLayout(prompt.message_starts), ranges

    def _keys(self, ids: Sequence[int], layout: PromptLayout) -> Tokens:
        return token_keys(ids, layout, by_message=self.model.pace is not None)

    def own_answer(self, question: str) -> tuple[str, Evidence]:
        """What the model says."""
        ids, layout, spans = self._prompt(question)
        stream = self.model.stream(ids, ANSWER, layout=layout, attend_to=spans)
        text = "".join(stream)
        return text, Evidence(stream.token_ends, stream.span_attention())

    def given_answer(self, question: str, answer: str) -> Evidence:
        """Where the model looks when an answer is put into its mouth."""
        ids, layout, spans = self._prompt(question)
        heads = self.model.retrieval_heads
        assert heads is not None
        hf = self.model.tokenizer.hf
        encoded = hf(answer, add_special_tokens=False, return_offsets_mapping=True)
        said = encoded["input_ids"]
        engine, keys = self.model.engine, self._keys(ids, layout)
        state = self.model.prefill(ids[:-1], layout=layout)  # all but the question is known

        def look() -> list[list[float]] | None:
            node = engine.runner.cache.match(keys, len(ids) - 1)
            if node.end != len(state.token_ids):
                raise RuntimeError("The engine does not go on from what it has just read.")
            decoder, feed = engine.runner.decoder, [ids[-1], *said[:-1]]
            cache = decoder.open(node.parts(), node.snapshot, Block(len(feed)))
            recorder = QueryRecorder(heads.layers, newest=len(said))
            with recording(recorder):
                decoder.read(cache, feed)
            return attention_to_spans(heads, recorder, cache, len(ids), spans)

        return Evidence([end for _, end in encoded["offset_mapping"]], engine.call(look))

    def first_pages(self, question: str, answer: str, evidence: Evidence) -> dict[str, int | None]:
        """For each method the index of the page it cites first."""
        places = {
            (s.document, self.packed.page(s).number): i for i, s in enumerate(self.packed.segments)
        }
        result: dict[str, int | None] = {}
        for name, resolver in self.resolvers.items():
            citations = resolver.resolve(question, answer, evidence).citations
            result[name] = places[citations[0].document, citations[0].page] if citations else None
        return result


def measure(
    model: PaceModel, rows: Sequence[Row], contexts: int, questions: int, seed: int
) -> Iterator[Outcome]:
    """Two outcomes per question: for the model's own answer and for the given one."""
    rng = random.Random(seed)
    for number in range(2 * contexts):
        mode = ("different", "same")[number % 2]
        pages = draw_pages(rows, mode, rng)
        asker = Questioner(model, pack(pages, mode))
        for _ in range(questions):
            gold = rng.randrange(len(pages))
            question, accepted = rng.choice(pages[gold].questions)
            text, evidence = asker.own_answer(question)
            given = asker.given_answer(question, accepted[0])
            for by, answer, seen in (("model", text, evidence), ("set", accepted[0], given)):
                first = asker.first_pages(question, answer, seen)
                hits = {name: page == gold for name, page in first.items()}
                yield Outcome(mode, by, is_right(answer, accepted), hits)
        print(f"{number + 1}/{2 * contexts} contexts", file=sys.stderr, flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--source", default="squad1")
    parser.add_argument("--model")
    parser.add_argument("--contexts", type=int, default=30, help="of each kind")
    parser.add_argument("--questions", type=int, default=8, help="per context")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    model = load_model(arguments.model, store_bytes=0)
    rows = load_rows(arguments.data, arguments.source)
    outcomes = list(measure(model, rows, arguments.contexts, arguments.questions, arguments.seed))
    groups: dict[str, Callable[[Outcome], bool]] = {
        "the set's answers": lambda o: o.answer_by == "set",
        "the model's answers, right": lambda o: o.answer_by == "model" and o.right,
        "the model's answers, all": lambda o: o.answer_by == "model",
    }
    table = []
    print(f"| pages from | answers | n | {' | '.join(METHODS)} |")
    print(f"|---|---|---:|{'---:|' * len(METHODS)}")
    for mode in ("different", "same"):
        for label, belongs in groups.items():
            chosen = [o for o in outcomes if o.pages_from == mode and belongs(o)]
            shares = {
                name: sum(o.hits[name] for o in chosen) / max(len(chosen), 1) for name in METHODS
            }
            table.append({"pages": mode, "answers": label, "n": len(chosen), **shares})
            cells = " | ".join(f"{share:.1%}" for share in shares.values())
            print(f"| {mode} articles | {label} | {len(chosen)} | {cells} |")
    print(
        json.dumps(
            {
                "benchmark": "citations",
                "seed": arguments.seed,
                "rows": table,
                "model": model.name,
                "dtype": str(model.dtype),
            }
        )
    )


if __name__ == "__main__":
    main()
