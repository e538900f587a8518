"""LlamaIndex: a query engine over three documents; its sources are the pages that it cites."""

from __future__ import annotations

from pathlib import Path

from llama_index.llms.pacellm import PaceLLM, PaceReader, WholeDocumentQueryEngine, page_nodes

FILES = sorted((Path(__file__).parent / "documents").glob("*.pdf"))
QUESTIONS = [
    "How many smart meters did Vessary Water install in 2024?",
    "To what torque are the coupling bolts tightened?",
]


def main() -> None:
    """Asks two questions; the documents are read for the first one only."""
    reader = PaceReader()
    nodes = page_nodes(page for file in FILES for page in reader.load_data(file))
    engine = WholeDocumentQueryEngine(PaceLLM(max_tokens=32), nodes)
    for question in QUESTIONS:
        response = engine.query(question)
        print(question)
        print(response)
        for source in response.source_nodes:
            page = source.node.metadata
            print(f"  {page['title']}, p. {page['page_label']} (score {source.score:.2f})")
        print((response.metadata or {})["usage"])


if __name__ == "__main__":
    main()
