"""Examples as the turns that the product sends to the model."""

from __future__ import annotations

from collections.abc import Sequence

from pacellm_rag.context.packing import pack_context
from pacellm_rag.context.prompts import build_messages
from pacellm_rag.messages import Message
from training.contexts import Example, Turn

__all__ = ["messages_of"]


def messages_of(example: Example, turn: Turn, history: Sequence[Message] = ()) -> list[Message]:
    """The prompt of a turn: the documents, if there are any, earlier turns, the user's words."""
    if not example.documents:
        return [*history, Message("user", turn.question)]
    messages = build_messages(pack_context(example.documents), turn.question, history)
    if not turn.asked:
        messages[-1] = Message("user", turn.question)
    return messages
