"""LangChain: a chain that reads three documents whole, once, and cites pages it has checked."""

from __future__ import annotations

from pathlib import Path

from langchain_pacellm import ChatPaceLLM, PacePDFLoader, create_whole_document_chain

FILES = sorted((Path(__file__).parent / "documents").glob("*.pdf"))
QUESTIONS = [
    "How many smart meters did Vessary Water install in 2024?",
    "To what torque are the coupling bolts tightened?",
]


def main() -> None:
    """Asks two questions, streaming the first."""
    chain = create_whole_document_chain(ChatPaceLLM(max_tokens=32), PacePDFLoader(FILES).load())
    first, second = QUESTIONS
    print(first)
    for chunk in chain.stream(first):
        print(chunk.get("answer", ""), end="", flush=True)
    print()
    result = chain.invoke(second)
    print(second)
    print(result["answer"])
    for cited in result["citations"]:
        print(f"  {cited['title']}, p. {cited['page_label']}: “{cited['quote']}”")
    print(result["usage"])


if __name__ == "__main__":
    main()
