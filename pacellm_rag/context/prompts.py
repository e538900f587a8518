"""The words around the documents, and the prompt as turns of a conversation.

Documents come first, in the system turn, and the question last, in the user turn: so the long
prefix is the same for every question and is read once. Knows nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence

from pacellm_rag.context.packing import PackedContext
from pacellm_rag.protocols import Message

__all__ = ["INSTRUCTIONS", "NOT_ANSWERED", "build_messages"]

NOT_ANSWERED = "The documents do not say."

INSTRUCTIONS = (
    "You answer questions about the documents below. Use only what they say. "
    "Answer in a few words, with the exact words and numbers of the documents. "
    f"If they do not hold the answer, say: {NOT_ANSWERED} "
    "Each page begins with a marker such as [D1 p2]: document 1, page 2."
)


def build_messages(
    packed: PackedContext, question: str, history: Sequence[Message] = ()
) -> list[Message]:
    """The conversation to send: documents, earlier turns, the question."""
    system = f"{INSTRUCTIONS}\n\n{packed.text.strip()}"
    return [Message("system", system), *history, Message("user", question.strip())]
