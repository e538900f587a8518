"""Ask questions about whole documents: the eight lines of the README."""

from pathlib import Path

from pacellm_rag import DocumentReader, load_documents, load_model

folder = Path(__file__).parent / "documents"
reader = DocumentReader(load_model(), load_documents(sorted(folder.glob("*.pdf"))))
for question in ("Who chairs the board?", "What is the notice period of the contract?"):
    answer = reader.ask(question)
    print(f"{question}\n  {answer.text}")
    for citation in answer.citations:
        print(f"  {citation.title}, p. {citation.label}: “{citation.quote}”")
