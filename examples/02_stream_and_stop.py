"""Show how far the reading has come, print the answer as it is written, and stop it half way."""

from pathlib import Path

from pacellm_rag import DocumentReader, GenerationOptions, load_document, load_model
from pacellm_rag.protocols import ReadProgress


def show(progress: ReadProgress) -> None:
    """Prints one line per window of the prompt."""
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.0f} s left"
    print(f"read {progress.tokens_done} of {progress.tokens_total} tokens{left}")


document = load_document(Path(__file__).parent / "documents" / "equipment-manual.pdf")
reader = DocumentReader(load_model(), [document])
receipt = reader.read(progress=show)
print(f"{receipt.pages} pages, {receipt.tokens} tokens, {receipt.tokens_per_second:.0f} tokens/s")

options = GenerationOptions(max_new_tokens=200)
with reader.stream("Describe the maintenance of the pump.", options=options) as stream:
    for number, piece in enumerate(stream):
        print(piece, end="", flush=True)
        if number == 30:
            break  # leaving the block stops the model
answer = stream.answer
print(f"\nfinished: {answer.finish_reason}, after {answer.usage.completion_tokens} tokens")
