"""Several questions at once, on documents that are read once: together, and from asyncio.

The receipt says what had been read before: run it a second time, and nothing is read again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from pacellm_rag import DocumentReader, GenerationOptions, load_documents, load_model

FILES = sorted((Path(__file__).parent / "documents").glob("*.pdf"))
QUESTIONS = [
    "How many smart meters did Vessary Water install in 2024?",
    "Within how many days are the Supplier's invoices payable?",
    "To what torque are the coupling bolts tightened?",
]


async def first_words(reader: DocumentReader, question: str) -> str:
    """Takes three pieces of an answer; leaving the block stops the model."""
    async with await reader.astream(question) as stream:
        pieces = []
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == 3:
                break
    return "".join(pieces)


async def all_first_words(reader: DocumentReader) -> list[str]:
    """The same for all questions, side by side."""
    return await asyncio.gather(*(first_words(reader, question) for question in QUESTIONS))


def main() -> None:
    """Reads, asks together, then asks again without blocking an event loop."""
    options = GenerationOptions(max_new_tokens=24, timeout=300)
    with DocumentReader(load_model(), load_documents(FILES), options=options) as reader:
        receipt = reader.read()
        print(f"{receipt.tokens} tokens, of which {receipt.tokens_reused} had been read before")
        for answer in reader.ask_many(QUESTIONS):
            usage = answer.usage
            print(f"{answer.question}\n  {' '.join(answer.text.split())}")
            print(f"  tokens reused: {usage.tokens_reused}, read: {usage.tokens_read}")
        print(asyncio.run(all_first_words(reader)))


if __name__ == "__main__":
    main()
