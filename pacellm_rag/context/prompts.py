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
    "Use the following documents to answer the questions. Each page begins with a marker such as "
    "[D1 p2]: document 1, page 2. Name the marker of the page that an answer is taken from. "
    f"If the documents do not hold the answer, say: {NOT_ANSWERED}"
)

# Stands right behind the question: small models forget what stood before the documents.
REMINDER = "Answer in a few words, with the exact words of the documents."


def build_messages(
    packed: PackedContext, question: str, history: Sequence[Message] = ()
) -> list[Message]:
    """The conversation to send: documents, earlier turns, the question.

    Args:
        packed: the documents.
        question: the user's words.
        history: earlier turns, in the user's and the model's own words.
    """
    turns = [*history, Message("user", question)]
    return [
        Message("system", f"{INSTRUCTIONS}\n\n{packed.text.strip()}"),
        *(_asked(turn) if turn.role == "user" else turn for turn in turns),
    ]


def _asked(turn: Message) -> Message:
    return Message("user", f"Question: {turn.content.strip()}\n{REMINDER}")
