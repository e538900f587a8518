"""Contract: what answers are. The same by every way, as long as asked, and counted.

Each test's docstring says what it demands, and how to mend a failure.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from llama_index.llms.pacellm.contract_model import ContractModel

__all__ = ["AnswerContract"]


class AnswerContract(ContractModel):
    """Answers by all eight methods, their length, their end, their count."""

    def test_metadata_tells_the_truth(self) -> None:
        """`metadata` names the model, its window and the length of answers.

        Left at their defaults, LlamaIndex plans for 3,900 tokens and reads long documents in
        pieces. Return an `LLMMetadata` with your own values.
        """
        metadata = self.make_llm(max_tokens=17).metadata
        assert metadata.is_chat_model
        assert metadata.context_window != 3900, "3,900 is the default of LLMMetadata"
        assert metadata.model_name != "unknown"
        assert metadata.num_output == 17, "num_output is not the constructor's max_tokens"
        assert metadata.is_function_calling_model == self.has_tools

    def test_a_stream_adds_up_to_the_answer(self) -> None:
        """Every piece holds the whole text so far and what is new of it; the end is `chat`'s text.

        Yield `ChatResponse(message=<cumulative>, delta=<new>)`.
        """
        messages = self.turns(self.questions[0])
        whole = self.text(self.make_llm().chat(messages))
        assert whole, "the answer is empty; choose other questions"
        so_far = ""
        for response in self.make_llm().stream_chat(messages):
            assert response.delta is not None
            so_far += response.delta
            assert self.text(response) == so_far
            assert response.message.role == MessageRole.ASSISTANT
        assert so_far == whole

    def test_completions_are_answers_too(self) -> None:
        """`complete` of a chat model answers as `chat` does, and streams as it does.

        Turn the prompt into one user message (`chat_to_completion_decorator`).
        """
        llm, question = self.make_llm(), self.questions[1]
        whole = self.text(llm.chat(self.turns(question)))
        assert llm.complete(question).text == whole
        pieces = list(llm.stream_complete(question))
        assert pieces[-1].text == whole
        assert "".join(piece.delta or "" for piece in pieces) == whole

    def test_async_methods_answer_alike(self) -> None:
        """The four async methods give what the sync ones give."""
        llm, question = self.make_llm(), self.questions[2]
        messages = self.turns(question)
        whole = self.text(llm.chat(messages))

        async def ask() -> list[str]:
            chat = [r async for r in await llm.astream_chat(messages)]
            complete = [r async for r in await llm.astream_complete(question)]
            return [
                self.text(await llm.achat(messages)),
                (await llm.acomplete(question)).text,
                self.text(chat[-1]),
                "".join(r.delta or "" for r in chat),
                complete[-1].text,
                "".join(r.delta or "" for r in complete),
            ]

        assert asyncio.run(ask()) == [whole] * 6

    def test_conversations_of_every_shape_are_answered(self) -> None:
        """System turns, answers before, two turns of one role, and an empty turn are taken."""
        llm = self.make_llm(max_tokens=4)
        system = ChatMessage(role=MessageRole.SYSTEM, content="Be brief.")
        question, other, last = self.questions[:3]
        for messages in (
            [system, *self.turns(question)],
            self.turns(question, "An answer.", other),
            [*self.turns(question), *self.turns(other)],
            self.turns(question, "", last),
        ):
            assert llm.chat(messages).message.role == MessageRole.ASSISTANT

    def test_max_tokens_ends_the_answer(self) -> None:
        """`max_tokens` is honoured, of the constructor and, before it, of the call.

        Read it per call from `kwargs`, over the field.
        """
        self.needs("supports_max_tokens")
        messages = self.turns(self.questions[0])
        whole = self.text(self.make_llm(max_tokens=24).chat(messages))
        call = self.call_arguments(max_tokens=3)
        short = self.make_llm(max_tokens=3).chat(messages)
        by_call = self.make_llm(max_tokens=24).chat(messages, **call)
        *_, streamed = self.make_llm(max_tokens=24).stream_chat(messages, **call)
        for response in (short, by_call, streamed):
            text = self.text(response)
            assert len(text) < len(whole), "max_tokens=3 gave as much as max_tokens=24"
            assert whole.startswith(text.rstrip("\ufffd"))
            if self.returns_usage:
                assert self.usage(response)["completion_tokens"] <= 3

    def test_stop_strings_end_the_answer_and_are_no_part_of_it(self) -> None:
        """A stop string ends the answer wherever tokens end, streamed or not, and never shows.

        Look for it in the text and not in token ids, and hold back text that may be its beginning.
        """
        self.needs("supports_stop")
        llm, messages = self.make_llm(), self.turns(self.questions[0])
        whole = self.text(llm.chat(messages))
        tried = 0
        for at in (1, 4, 7, len(whole) // 2):
            for length in (1, 2, 5):
                stop = whole[at : at + length]
                if len(stop) < length or "\ufffd" in stop or not stop.strip():
                    continue
                tried += 1
                wanted = whole[: whole.index(stop)]
                call = self.call_arguments(stop=[stop])
                assert self.text(llm.chat(messages, **call)) == wanted
                pieces = list(llm.stream_chat(messages, **call))
                assert "".join(piece.delta or "" for piece in pieces) == wanted
        assert tried >= 3, f"the answer {whole!r} is too short; choose other questions"

    def test_the_first_of_several_stop_strings_counts(self) -> None:
        """Of several stop strings the one that comes first ends it; the constructor's count too."""
        self.needs("supports_stop")
        messages = self.turns(self.questions[1])
        whole = self.text(self.make_llm().chat(messages))
        early, late = whole[3:5], whole[6:9]
        wanted = whole[: min(whole.index(early), whole.index(late))]
        call = self.call_arguments(stop=[late, early])
        assert self.text(self.make_llm().chat(messages, **call)) == wanted
        assert self.text(self.make_llm(stop=[late, early]).chat(messages)) == wanted

    def test_usage_is_the_same_by_every_way(self) -> None:
        """`raw["usage"]` of final responses has prompt_tokens, completion_tokens, total_tokens.

        In streams the last response must have it.
        """
        self.needs("returns_usage")
        llm, question = self.make_llm(max_tokens=9), self.questions[0]
        messages = self.turns(question)

        async def ask() -> list[object]:
            chat = [r async for r in await llm.astream_chat(messages)]
            complete = [r async for r in await llm.astream_complete(question)]
            both = [await llm.achat(messages), await llm.acomplete(question)]
            return [chat[-1], complete[-1], *both]

        *_, streamed = llm.stream_chat(messages)
        *_, completed = llm.stream_complete(question)
        responses = [llm.chat(messages), llm.complete(question), streamed, completed]
        counts = []
        for response in [*responses, *asyncio.run(ask())]:
            usage = self.usage(response)
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            counts.append((usage["prompt_tokens"], usage["completion_tokens"]))
        assert counts == [counts[0]] * 8
        assert counts[0][0] > 0
        assert 0 < counts[0][1] <= 9

    def test_what_was_read_is_not_read_again(self) -> None:
        """A second question behind the same text reads 5 % of the prompt at most.

        Keep the keys and values of prompts, and report what was reused in
        usage["prompt_tokens_details"]["cached_tokens"].
        """
        self.needs("reuses_prefixes", "returns_usage")
        llm = self.make_llm(max_tokens=2)
        numbers = range(self.paragraphs)
        text = " ".join(f"Paragraph {number} is about bridge {number}." for number in numbers)
        llm.chat(self.turns(f"{text}\n\nWhich is the first?"))
        usage = self.usage(llm.chat(self.turns(f"{text}\n\nAnd which one is the last?")))
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert 0.95 * usage["prompt_tokens"] <= cached < usage["prompt_tokens"]

    def test_answers_do_not_depend_on_each_other(self) -> None:
        """A, B, A: the third answer is the first. State belongs to one prompt."""
        llm = self.make_llm()
        first, _, third = (
            self.text(llm.chat(self.turns(q)))
            for q in (self.questions[0], self.questions[1], self.questions[0])
        )
        assert first == third

    def test_asked_at_once_they_answer_as_one_by_one(self) -> None:
        """Threads and coroutines that ask the same object at once get the answers they would alone.

        Keep nothing of a request on the LLM object.
        """
        llm = self.make_llm()
        asked = [self.turns(question) for question in (*self.questions, *self.questions)]
        alone = [self.text(llm.chat(messages)) for messages in asked]
        with ThreadPoolExecutor(len(asked)) as threads:
            assert [self.text(r) for r in threads.map(llm.chat, asked)] == alone

        async def ask() -> list[str]:
            found = await asyncio.gather(*(llm.achat(messages) for messages in asked))
            return [self.text(response) for response in found]

        assert asyncio.run(ask()) == alone

    def test_it_can_be_written_down_and_made_again(self) -> None:
        """`to_dict` is JSON and `from_dict` makes the same settings of it.

        Keep what is no setting in a `PrivateAttr`.
        """
        llm = self.make_llm(max_tokens=23)
        written = json.loads(json.dumps(llm.to_dict()))
        assert written["class_name"] == llm.class_name()
        assert llm.class_name() not in ("base_component", "BaseLLM", "LLM")
        again = type(llm).from_dict(written)
        assert json.loads(json.dumps(again.to_dict())) == written
        assert "api_key" not in json.dumps(llm.to_payload())

    def test_copies_and_pickles_hold_settings_only(self) -> None:
        """A deep copy answers alike, and a pickle is small.

        Override `__deepcopy__` and `__getstate__` where weights or connections are attributes.
        """
        self.needs("pickles_without_weights")
        llm, messages = self.make_llm(max_tokens=8), self.turns(self.questions[0])
        answer = self.text(llm.chat(messages))
        assert self.text(copy.deepcopy(llm).chat(messages)) == answer
        pickled = pickle.dumps(llm)
        assert len(pickled) < 100_000, f"the pickle has {len(pickled):,} bytes"
        assert pickle.loads(pickled).to_dict() == llm.to_dict()
