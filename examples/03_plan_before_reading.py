"""Count what documents need before any weights are loaded, and what happens if they do not fit."""

from pathlib import Path

from pacellm_rag import ContextOverflowError, load_documents, load_tokenizer
from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.planning import plan_question

folder = Path(__file__).parent / "documents"
packed = pack_context(load_documents(sorted(folder.glob("*.pdf"))))

plan = plan_question(packed, load_tokenizer(), "Who chairs the board?", answer_tokens=256)
for document in plan.documents:
    print(f"{document.tokens:>6} tokens  {document.title} ({document.pages} pages)")
print(f"{plan.needed_tokens:>6} of {plan.context_window} needed, {plan.left_tokens} left")

small = load_tokenizer(context_window=4096)
try:
    plan_question(packed, small, "Who chairs the board?", answer_tokens=256).check()
except ContextOverflowError as error:
    print(f"\nWith a window of 4,096 tokens:\n{error}")
