"""What a model gets right on the sample documents: the table of the README.

Reads the three documents of `examples/documents` in one context and asks the thirty questions of
`examples/questions.jsonl`. Prints each answer, a table and, last, a line of JSON.

    python benchmarks/answers.py [--model NAME] [--show]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from pacellm_rag import Answer, DocumentReader, GenerationOptions, load_documents, load_model
from pacellm_rag.context.prompts import NOT_ANSWERED
from pacellm_rag.evaluation.metrics import contains_answer, exact_match, token_f1

EXAMPLES = Path(__file__).parents[1] / "examples"
DOCUMENTS = ("annual-report.pdf", "supplier-contract.pdf", "equipment-manual.pdf")
KINDS = {
    "single": "one document",
    "two_documents": "two documents",
    "unanswerable": "not in the documents",
}


def load_questions() -> list[dict[str, object]]:
    """The sample questions."""
    lines = (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def cites_evidence(answer: Answer, question: dict[str, object], first_only: bool) -> float:
    """Whether a citation (or the first one) is a page that holds the evidence."""
    evidence = question["evidence"]
    assert isinstance(evidence, list)
    wanted = {(DOCUMENTS.index(e["document"]), e["page"]) for e in evidence}
    cited = [(c.document, c.page) for c in answer.citations]
    return float(bool(wanted & set(cited[:1] if first_only else cited)))


def score(question: dict[str, object], answer: Answer) -> dict[str, float]:
    """The scores of one answer."""
    if question["kind"] == "unanswerable":
        return {"declined": float(answer.text.startswith(NOT_ANSWERED.rstrip(".")))}
    accepted = question["answers"]
    assert isinstance(accepted, list)
    return {
        "exact match": exact_match(answer.text, accepted),
        "token F1": token_f1(answer.text, accepted),
        "answer in the words": contains_answer(answer.text, accepted),
        "first citation right": cites_evidence(answer, question, first_only=True),
        "a citation right": cites_evidence(answer, question, first_only=False),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--show", action="store_true", help="print every answer")
    arguments = parser.parse_args()
    documents = load_documents([EXAMPLES / "documents" / name for name in DOCUMENTS])
    options = GenerationOptions(max_new_tokens=arguments.max_new_tokens)
    model = load_model(arguments.model)
    reader = DocumentReader(model, documents, options=options)
    receipt = reader.read()
    scores: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for question in load_questions():
        answer = reader.ask(str(question["question"]))
        result = score(question, answer)
        scores[str(question["kind"])].append(result)
        if arguments.show:
            cited = [f"{c.title} p.{c.page} ({c.source})" for c in answer.citations]
            print(f"{question['id']}: {question['question']}\n  {answer.text!r}")
            print(f"  wanted {question['answers']}; cited {cited}; {result}", flush=True)
    rows = {
        KINDS[kind]: {
            "n": float(len(results)),
            **{name: statistics.mean(r[name] for r in results) for name in results[0]},
        }
        for kind, results in scores.items()
    }
    columns = ["exact match", "token F1", "answer in the words", "first citation right", "declined"]
    print(f"| questions about | n | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for label, row in rows.items():
        cells = " | ".join(f"{row[c]:.0%}" if c in row else "-" for c in columns)
        print(f"| {label} | {row['n']:.0f} | {cells} |")
    print(
        json.dumps(
            {
                "benchmark": "answers",
                "model": model.name,
                "dtype": str(model.dtype),
                "tokens": receipt.tokens,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
