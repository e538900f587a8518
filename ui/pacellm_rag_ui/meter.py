"""How much of the model's window a question takes, and what to leave out when that is too much.

All figures are exact: they come from `DocumentReader.plan`, which renders and counts the prompt
that would be sent. Advice is given only after planning what it would leave, so it is enough. Knows
nothing of sessions or of the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from pacellm_rag.context.planning import Plan
from pacellm_rag.errors import ConfigurationError
from pacellm_rag.messages import Message
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag_ui.chosen_documents import ChosenDocument, cut_pages
from pacellm_rag_ui.reading import Reading, page_ends
from pacellm_rag_ui.safe_text import display_name

__all__ = ["Advice", "advise", "check_room", "plan_fits"]

_TRIES = 8  # plans until a page range that was estimated to fit does


@dataclass(frozen=True)
class Advice:
    """What to do about a question that does not fit.

    Attributes:
        text: for people.
        untick: ids of documents without which it fits; empty where that does not help.
        keep_pages: a document's id and the pages to keep; None where that does not help.
    """

    text: str
    untick: tuple[str, ...] = ()
    keep_pages: tuple[str, int, int] | None = None


def plan_fits(plan: Plan) -> bool:
    """Whether there is the window and the memory for it."""
    return plan.fits and (plan.cost is None or plan.cost.fits)


def _tokens_over(plan: Plan) -> int:
    """Tokens that are too many; where memory is short, as many as it is short of."""
    over = max(-plan.left_tokens, 0)
    cost = plan.cost
    if cost is not None and not cost.fits and cost.free_bytes is not None:
        held = cost.tokens_to_read + plan.answer_tokens
        short = cost.needed_bytes - cost.free_bytes
        over = max(over, math.ceil(held * short / max(cost.kv_bytes, 1)))
    return over


def advise(
    reading: Reading,
    plan: Plan,
    question: str,
    history: Sequence[Message],
    options: GenerationOptions,
) -> Advice:
    """What to leave out of a question that does not fit, so that it does."""
    over = _tokens_over(plan)

    def fits(chosen: Sequence[ChosenDocument], turns: Sequence[Message] = history) -> bool:
        smaller = Reading(reading.model, chosen).reader
        return plan_fits(smaller.plan(question, history=turns, options=options))

    counted = list(zip(reading.chosen, (d.tokens for d in plan.documents), strict=True))
    untick = _to_untick(counted, over, fits)
    keep = _to_keep(reading, counted, over, fits)
    ways = []
    if untick:
        named = [each for each in reading.chosen if each.stored.id in untick]
        ways.append("untick " + _listed([_shown(each) for each in named]))
    if keep is not None:
        kept, first, last = keep
        pages = f"page {first}" if first == last else f"pages {first} to {last}"
        ways.append(f"keep {pages} of {_shown(kept)}")
    if history and fits(reading.chosen, ()):
        ways.append("begin a new chat")
    what = f"{over:,} tokens too many"
    if plan.fits:
        what = f"{over:,} tokens too many for the memory that is free"
    if not ways:
        text = f"{what}: shorten the question, or allow a shorter answer in the settings."
    else:
        text = f"{what}: {', or '.join(ways)}."
    return Advice(text, untick, None if keep is None else (keep[0].stored.id, keep[1], keep[2]))


def check_room(
    reading: Reading,
    question: str,
    options: GenerationOptions,
    history: Sequence[Message] = (),
) -> None:
    """Refuses a question that does not fit, with what to leave out.

    Raises:
        ConfigurationError: it does not.
    """
    plan = reading.reader.plan(question, history=history, options=options)
    if not plan_fits(plan):
        advice = advise(reading, plan, question, history, options)
        raise ConfigurationError(f"The question was not sent: {advice.text}")


def _to_untick(
    counted: Sequence[tuple[ChosenDocument, int]],
    over: int,
    fits: Callable[[Sequence[ChosenDocument]], bool],
) -> tuple[str, ...]:
    """The smallest document without which the others fit, else the largest ones together."""
    if len(counted) < 2:
        return ()
    for doomed in _candidates(counted, over):
        rest = [each for each, _ in counted if each.stored.id not in doomed]
        if rest and fits(rest):
            return doomed
    return ()


def _candidates(
    counted: Sequence[tuple[ChosenDocument, int]], over: int
) -> Iterator[tuple[str, ...]]:
    by_size = sorted(counted, key=lambda pair: pair[1])
    yield from ((each.stored.id,) for each, tokens in by_size if tokens >= over)
    largest_first = by_size[::-1]
    for count in range(2, len(counted)):
        if sum(tokens for _, tokens in largest_first[:count]) >= over:
            yield tuple(each.stored.id for each, _ in largest_first[:count])


def _to_keep(
    reading: Reading,
    counted: Sequence[tuple[ChosenDocument, int]],
    over: int,
    fits: Callable[[Sequence[ChosenDocument]], bool],
) -> tuple[ChosenDocument, int, int] | None:
    """The pages of the largest document, from the first on, that leave enough room."""
    largest, tokens = max(counted, key=lambda pair: pair[1])
    if tokens <= over:
        return None
    pages = largest.document.pages
    alone = Reading(reading.model, [largest])
    ends = page_ends(alone.reader.packed, alone.model.tokenizer)
    sizes = [end - start for start, end in zip([ends[0], *ends], ends, strict=False)]
    behind = list(accumulate(reversed(sizes)))  # tokens of the last 1, 2, ... pages
    dropped = next((n for n, saved in enumerate(behind, 1) if saved >= over), len(pages))
    kept = len(pages) - dropped
    step = 1
    for _ in range(_TRIES):
        if kept < 1:
            return None
        first, last = pages[0].number, pages[kept - 1].number
        shorter = replace(largest, document=cut_pages(largest.document, (first, last)))
        if fits([shorter if each is largest else each for each in reading.chosen]):
            return shorter, first, last
        kept, step = kept - step, step * 2
    return None


def _shown(each: ChosenDocument) -> str:
    return f"“{display_name(each.stored.title)}”"


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
