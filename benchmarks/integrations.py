"""The same checks on our framework classes and on the usual local ones, and what passes where.

ChatPaceLLM beside LangChain's ChatHuggingFace over a local pipeline, PaceLLM beside LlamaIndex'
HuggingFaceLLM, all on the same random weights of a tiny decoder. Prints a table in Markdown (it
stands in the README) and, last, a line of JSON.

    make peers && PYTHONPATH=build/peers python benchmarks/integrations.py

The others' packages are installed beside, without their dependencies (`make peers`): their pins
contradict ours. Over 400 lines because the checks, and how each framework is spoken to, are one
list that is read side by side.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from pydantic import BaseModel

from pacellm_rag import release_shared_models

LONG = "The pump stands in hall four and runs all day. " * 20
SEED = 11  # of weights whose answers have words of several lengths
LIMIT = 20.0  # seconds that a check may take


class Point(BaseModel):
    """What structured output is asked for."""

    x: int
    name: str


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@dataclass
class Contender:
    """A framework's class for local models.

    Attributes:
        name: its name.
        make: makes one on the tiny model, with options in the framework's own words.
        module: the weights behind one.
        kit: how the framework is spoken to.
    """

    name: str
    make: Callable[..., Any]
    module: Callable[[Any], torch.nn.Module]
    kit: Any


class LangChainKit:
    """LangChain's words for what the checks do."""

    @staticmethod
    def turns(text: str) -> Any:
        """A conversation of one turn."""
        from langchain_core.messages import HumanMessage

        return [HumanMessage(text)]

    def ask(self, llm: Any, text: str, **options: Any) -> str:
        """A whole answer."""
        return str(llm.invoke(self.turns(text), **options).text)

    def stream(self, llm: Any, text: str, **options: Any) -> Iterator[str]:
        """An answer's pieces."""
        for chunk in llm.stream(self.turns(text), **options):
            if chunk.text:
                yield str(chunk.text)

    async def ask_async(self, llm: Any, text: str) -> str:
        """A whole answer, awaited."""
        return str((await llm.ainvoke(self.turns(text))).text)

    async def stream_async(self, llm: Any, text: str) -> str:
        """An answer's pieces, awaited."""
        return "".join([str(chunk.text) async for chunk in llm.astream(self.turns(text))])

    def together(self, llm: Any, texts: list[str]) -> list[str]:
        """Several answers at once."""
        return [str(reply.text) for reply in llm.batch([self.turns(text) for text in texts])]

    def usage(self, llm: Any, text: str) -> tuple[int, int]:
        """Tokens of prompt and answer, as they are reported."""
        found = llm.invoke(self.turns(text)).usage_metadata
        return found["input_tokens"], found["output_tokens"]

    def window(self, llm: Any) -> Any:
        """The context window that the framework knows of."""
        return (llm.profile or {}).get("max_input_tokens")

    def call(self, llm: Any) -> Any:
        """The arguments of a call that the model is made to write."""
        bound = llm.bind_tools([add], tool_choice="any")
        return bound.invoke(self.turns("What is 1 + 2?")).tool_calls[0]["args"]

    def structured(self, llm: Any) -> Any:
        """An answer as an object."""
        return llm.with_structured_output(Point).invoke(self.turns("A point."))


class LlamaIndexKit:
    """LlamaIndex' words for what the checks do."""

    @staticmethod
    def turns(text: str) -> Any:
        """A conversation of one turn."""
        from llama_index.core.llms import ChatMessage

        return [ChatMessage(role="user", content=text)]

    def ask(self, llm: Any, text: str, **options: Any) -> str:
        """A whole answer."""
        return str(llm.chat(self.turns(text), **options).message.content)

    def stream(self, llm: Any, text: str, **options: Any) -> Iterator[str]:
        """An answer's pieces."""
        for piece in llm.stream_chat(self.turns(text), **options):
            if piece.delta:
                yield str(piece.delta)

    async def ask_async(self, llm: Any, text: str) -> str:
        """A whole answer, awaited."""
        return str((await llm.achat(self.turns(text))).message.content)

    async def stream_async(self, llm: Any, text: str) -> str:
        """An answer's pieces, awaited."""
        pieces = await llm.astream_chat(self.turns(text))
        return "".join([str(piece.delta or "") async for piece in pieces])

    def together(self, llm: Any, texts: list[str]) -> list[str]:
        """Several answers at once."""

        async def every() -> list[str]:
            return list(await asyncio.gather(*(self.ask_async(llm, text) for text in texts)))

        return asyncio.run(every())

    def usage(self, llm: Any, text: str) -> tuple[int, int]:
        """Tokens of prompt and answer, as they are reported."""
        found = llm.chat(self.turns(text)).raw["usage"]
        return found["prompt_tokens"], found["completion_tokens"]

    def window(self, llm: Any) -> Any:
        """The context window that the framework knows of."""
        return llm.metadata.context_window

    def call(self, llm: Any) -> Any:
        """The arguments of a call that the model is made to write."""
        from llama_index.core.tools import FunctionTool

        reply = llm.chat_with_tools(
            [FunctionTool.from_defaults(add)], "What is 1 + 2?", tool_required=True
        )
        return llm.get_tool_calls_from_response(reply)[0].tool_kwargs

    def structured(self, llm: Any) -> Any:
        """An answer as an object."""
        from llama_index.core.prompts import PromptTemplate

        return llm.structured_predict(Point, PromptTemplate("A point."))


@contextmanager
def forwards(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The token ids of every forward pass meanwhile."""
    seen: list[torch.Tensor] = []

    def note(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", positional[0] if positional else None)
        if ids is not None:
            seen.append(ids)

    handle = module.get_decoder().register_forward_pre_hook(note, with_kwargs=True)  # type: ignore[operator]
    try:
        yield seen
    finally:
        handle.remove()


def no_echo(one: Contender) -> None:
    """The answer is the answer, without the prompt in front of it."""
    assert "hall four" not in one.kit.ask(one.make(max_tokens=8), "hall four")


def one_bos(one: Contender) -> None:
    """The prompt begins with exactly one BOS token."""
    llm = one.make(max_tokens=2)
    one.kit.ask(llm, "warm up")
    with forwards(one.module(llm)) as seen:
        one.kit.ask(llm, "hello")
    assert (torch.cat([ids.flatten() for ids in seen]) == 0).sum() == 1


def streams(one: Contender) -> None:
    """Pieces come one by one and add up to the whole answer."""
    llm = one.make(max_tokens=12)
    pieces = list(one.kit.stream(llm, "hello"))
    assert len(pieces) > 2
    assert "".join(pieces) == one.kit.ask(llm, "hello")


def asynchronous(one: Contender) -> None:
    """Awaited answers, whole and streamed, are those of the blocking calls."""
    llm = one.make(max_tokens=12)
    whole = one.kit.ask(llm, "hello")
    assert asyncio.run(one.kit.ask_async(llm, "hello")) == whole
    assert asyncio.run(one.kit.stream_async(llm, "hello")) == whole


def free_loop(one: Contender) -> None:
    """The event loop goes on while an answer is written."""

    async def beats() -> tuple[int, float]:
        llm = one.make(max_tokens=150)
        count, begun = 0, time.perf_counter()
        task = asyncio.ensure_future(one.kit.ask_async(llm, LONG))
        while not task.done():
            await asyncio.sleep(0.005)
            count += 1
        await task
        return count, time.perf_counter() - begun

    count, seconds = asyncio.run(beats())
    assert count >= 0.5 * seconds / 0.005


def stops(one: Contender) -> None:
    """An abandoned stream costs at most two more forward passes."""
    llm = one.make(max_tokens=200)
    with forwards(one.module(llm)) as seen:
        pieces = one.kit.stream(llm, "hello")
        next(pieces)
        before = len(seen)
        pieces.close()
        time.sleep(2)
        assert len(seen) <= before + 2


def fails(one: Contender) -> None:
    """An error in mid-stream reaches the caller as that error within two seconds."""
    llm = one.make(max_tokens=50)
    count = 0

    def break_down(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise RuntimeError("The seventh seal.")

    handle = one.module(llm).get_decoder().register_forward_pre_hook(break_down)  # type: ignore[operator]
    begun = time.perf_counter()
    try:
        list(one.kit.stream(llm, "hello"))
    except RuntimeError as error:
        told = str(error)
    else:
        told = "no error"
    finally:
        handle.remove()
    assert "seventh seal" in told
    assert time.perf_counter() - begun < 2


def stop_strings(one: Contender) -> None:
    """A stop string of several tokens ends the answer, asked and streamed, and is left out."""
    llm = one.make(max_tokens=30)
    whole = one.kit.ask(llm, "hello")
    stop = whole[4:7]
    assert len(stop) == 3
    expected = whole[: whole.index(stop)]
    assert one.kit.ask(llm, "hello", stop=[stop]) == expected
    assert "".join(one.kit.stream(llm, "hello", stop=[stop])) == expected


def lengths(one: Contender) -> None:
    """The most tokens hold, given for the object and for a call."""
    short, longer = one.make(max_tokens=4), one.make(max_tokens=12)
    one.kit.ask(short, "warm up")
    with forwards(one.module(short)) as seen:
        one.kit.ask(short, "hello")
        assert len(seen) <= 4
    with forwards(one.module(longer)) as seen:
        one.kit.ask(longer, "hello", max_tokens=6)
        assert len(seen) <= 6


def usages(one: Contender) -> None:
    """Reported tokens are those that the model was given and wrote."""
    llm = one.make(max_tokens=9)
    one.kit.ask(llm, "warm up")
    with forwards(one.module(llm)) as seen:
        prompt, answer = one.kit.usage(llm, "Report the tokens of this.")
        assert answer == 9
        assert prompt + answer == sum(ids.numel() for ids in seen) + 1  # the last is not run


def reuses(one: Contender) -> None:
    """A second question on the same long text reads little but itself."""
    llm = one.make(max_tokens=2)
    one.kit.ask(llm, f"{LONG} Where does it stand?")
    with forwards(one.module(llm)) as seen:
        one.kit.ask(llm, f"{LONG} How long does it run?")
        assert sum(ids.numel() for ids in seen) < 200


def overflows(one: Contender) -> None:
    """A prompt that is too long is an error, not a guess."""
    try:
        one.kit.ask(one.make(max_tokens=4), LONG * 6)
    except Exception as error:
        told = str(error)
    else:
        told = "It answered."
    assert "token" in told


def windows(one: Contender) -> None:
    """The framework knows the model's context window, or what of it is left for a prompt."""
    assert 4096 - 4 <= one.kit.window(one.make(max_tokens=4)) <= 4096


def together(one: Contender) -> None:
    """Answers asked for at once are those asked for one by one."""
    llm = one.make(max_tokens=12)
    texts = ["one", "two two", "three " * 30]
    assert one.kit.together(llm, texts) == [one.kit.ask(llm, text) for text in texts]


def tools(one: Contender) -> None:
    """A call of a tool can be demanded, and its arguments fit its schema."""
    arguments = one.kit.call(one.make(max_tokens=200))
    assert {type(arguments[key]) for key in ("a", "b")} == {int}


def structures(one: Contender) -> None:
    """An object can be asked for, whatever the weights would rather write."""
    assert isinstance(one.kit.structured(one.make(max_tokens=200)), Point)


CHECKS: dict[str, Callable[[Contender], None]] = {
    "no prompt in the answer": no_echo,
    "exactly one BOS": one_bos,
    "streams, and equals the whole answer": streams,
    "async, whole and streamed": asynchronous,
    "event loop stays free": free_loop,
    "closing a stream stops the model": stops,
    "error in mid-stream arrives within 2 s": fails,
    "stop strings of several tokens": stop_strings,
    "most tokens: constructor and call": lengths,
    "usage reported and right": usages,
    "second question reads only itself": reuses,
    "too long is an error": overflows,
    "framework knows the window": windows,
    "at once equals one by one": together,
    "forced tool call, valid arguments": tools,
    "structured output always valid": structures,
}


def outcome(check: Callable[[Contender], None], one: Contender) -> str:
    """What went wrong with a check, or ""; never waits longer than `LIMIT`."""
    result = [f"not over after {LIMIT:.0f} s"]

    def run() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                release_shared_models()  # nothing is known from the check before
                check(one)
            result[0] = ""
        except BaseException as error:
            told = str(error).strip() or "not so"
            result[0] = f"{type(error).__name__}: {told.splitlines()[0]}"

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    return result[0]


def save_tiny_model(folder: Path) -> None:
    """A random decoder that writes words of ASCII signs without an end.

    Its tokenizer adds a BOS, as Llama's does, and so does its template.
    """
    from tokenizers.processors import TemplateProcessing

    from pacellm_rag.testing import byte_tokenizer, tiny_model

    model = tiny_model("llama", seed=SEED)
    alphabet = byte_tokenizer().get_vocab()
    signs = [alphabet[chr(code)] for code in range(33, 127)]
    head: Any = model.module.get_output_embeddings()
    with torch.no_grad():
        blank = head.weight[alphabet["Ġ"]] * 2
        kept = head.weight[signs].clone()
        head.weight.zero_()
        head.weight[signs] = kept
        head.weight[alphabet["Ġ"]] = blank
    template = byte_tokenizer().chat_template
    tokenizer = byte_tokenizer("{{ bos_token }}" + str(template))
    backend: Any = tokenizer._tokenizer
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model.module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def contenders(folder: Path) -> Iterator[Contender]:
    """Ours, and those of the others that are installed."""
    from langchain_pacellm import ChatPaceLLM
    from llama_index.llms.pacellm import PaceLLM

    settings: dict[str, Any] = {"model": str(folder), "dtype": "float32", "store_bytes": 0}
    ours: tuple[tuple[Any, Any], ...] = ((ChatPaceLLM, LangChainKit), (PaceLLM, LlamaIndexKit))
    for kind, kit in ours:
        yield Contender(
            kind.__name__,
            lambda kind=kind, **options: kind(**settings, **options),
            lambda llm: llm.text_model.module,
            kit(),
        )
    try:
        import transformers
        from langchain_huggingface import (  # type: ignore[import-not-found,unused-ignore]
            ChatHuggingFace,
            HuggingFacePipeline,
        )

        def chat(max_tokens: int) -> Any:
            make: Any = transformers.pipeline
            pipe = make("text-generation", model=str(folder), dtype=torch.float32)
            pipe.model.generation_config.do_sample = False
            base = HuggingFacePipeline(pipeline=pipe, model_id=str(folder))
            return ChatHuggingFace(llm=base, max_tokens=max_tokens)

        yield Contender("ChatHuggingFace", chat, lambda llm: llm.llm.pipeline.model, LangChainKit())
    except ImportError as error:
        print(f"Without ChatHuggingFace: {error}", file=sys.stderr)
    try:
        from llama_index.llms.huggingface import HuggingFaceLLM  # type: ignore[import-untyped,unused-ignore]

        def llm(max_tokens: int) -> Any:
            return HuggingFaceLLM(
                model_name=str(folder),
                tokenizer_name=str(folder),
                max_new_tokens=max_tokens,
                is_chat_model=True,
                device_map="cpu",
                model_kwargs={"dtype": torch.float32},
                generate_kwargs={"do_sample": False},
            )

        yield Contender("HuggingFaceLLM", llm, lambda made: made._model, LlamaIndexKit())
    except ImportError as error:
        print(f"Without HuggingFaceLLM: {error}", file=sys.stderr)


def main() -> None:
    """Runs every check on every contender."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tiny"
        save_tiny_model(folder)
        table: dict[str, dict[str, str]] = {}
        for one in contenders(folder):
            table[one.name] = {what: outcome(check, one) for what, check in CHECKS.items()}
    print(f"| check | {' | '.join(table)} |")
    print(f"|---|{'---|' * len(table)}")
    for what in CHECKS:
        print(f"| {what} | {' | '.join('no' if r[what] else 'yes' for r in table.values())} |")
    passed = [sum(not told for told in results.values()) for results in table.values()]
    print(f"| passed of {len(CHECKS)} | {' | '.join(map(str, passed))} |")
    print(json.dumps({"benchmark": "integrations", "failures": table}))
    sys.stdout.flush()
    os._exit(0)  # threads of checks that never end would keep the process


if __name__ == "__main__":
    main()
