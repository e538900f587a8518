"""Read once, ask many: what the reading engine saves, beside transformers and other frameworks.

All measurements are of one run on the same weights and number type, taking turns; figures are
medians over the rounds, ratios medians of the rounds' own ratios. The engine has PaceLLM's memory
banks on, transformers has not. Prints a table and, last, a line of JSON.

    python benchmarks/ask_many.py [--model NAME] [--tokens 8000] [--rounds 3] [--parts read ...]

The comparison with LangChain's HuggingFacePipeline and LlamaIndex' HuggingFaceLLM needs these
packages (langchain-huggingface, llama-index-llms-huggingface), that with llama.cpp needs
llama-cpp-python and the model as a .gguf file (--gguf); without them it says so and goes on.

Over 400 lines because all measurements share one run, one pair of models and one table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pydoc_data.topics import topics
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from pacellm_rag.messages import Message
from pacellm_rag.models.attention import attend, attend_rows
from pacellm_rag.models.kv_cache import cache_blocks
from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import ONE_MESSAGE, GenerationOptions, PromptLayout

QUESTION = 32  # tokens
ANSWER = 32
WINDOW = 1024
ASKERS = 8
QUESTIONS = 10
THEIRS = 3  # of these, as many are really asked of frameworks that read everything each time
FULL_LENGTH = {"do_sample": False, "min_new_tokens": ANSWER}  # no answer ends early, as with ours

Row = dict[str, float | str]


def text_tokens(model: PaceModel, length: int) -> list[int]:
    """Text of Python's manual, as tokens."""
    text = "\n\n".join(topics[key] for key in sorted(topics))
    ids: list[int] = model.tokenizer.hf(text, verbose=False)["input_ids"]
    while len(ids) < length + 4096:
        ids = ids + ids
    return ids[:length]


def questions(model: PaceModel, count: int) -> list[list[int]]:
    """Different stretches of text of the length of a question."""
    ids = text_tokens(model, 4000)
    return [ids[100 + 150 * i : 100 + 150 * i + QUESTION] for i in range(count)]


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(what: str, ours: list[float], theirs: list[float], unit: str, target: str) -> Row:
    """A line of the table: medians, and the median of the rounds' ratios."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "what": what,
        "ours": statistics.median(ours),
        "other": statistics.median(theirs),
        "unit": unit,
        "ratio": ratio,
        "inverse": 1 / ratio,
        "target": target,
    }


def forget(model: PaceModel) -> None:
    """The next request reads everything anew."""
    while not model.engine.idle:
        time.sleep(0.01)
    model.engine.runner.cache.shrink(0)


def ask(model: PaceModel, ids: list[int], new: int = ANSWER, question: int = 0) -> str:
    """A whole answer; `question`: with which token the question begins, as chat prompts tell."""
    layout = PromptLayout((question,)) if question else ONE_MESSAGE
    return "".join(model.stream(ids, GenerationOptions(max_new_tokens=new), layout=layout))


def plain_read(module: PreTrainedModel, ids: list[int]) -> DynamicCache:
    """Transformers' chunked prefill: windows on a DynamicCache."""
    cache = DynamicCache(config=module.config)
    with torch.inference_mode():
        for start in range(0, len(ids), WINDOW):
            part = torch.tensor([ids[start : start + WINDOW]], device=module.device)
            module.base_model(input_ids=part, past_key_values=cache)
    return cache


def plain_decode(module: PreTrainedModel, cache: DynamicCache, token: int) -> float:
    """Seconds per token of greedy decoding."""
    steps = []
    with torch.inference_mode():
        for _ in range(ANSWER):
            before = time.perf_counter()
            ids = torch.tensor([[token]], device=module.device)
            logits = module(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
            token = int(logits[0, -1].argmax())
            steps.append(time.perf_counter() - before)
    return statistics.median(steps)


def our_decode(model: PaceModel, ids: list[int]) -> float:
    """Seconds per token of an answer, as the engine gives them."""
    stream = model.stream(ids, GenerationOptions(max_new_tokens=ANSWER + 1))
    stream.start()
    first, began = 0, 0.0
    for _ in stream:
        if not began:
            began, first = time.perf_counter(), stream.completion_tokens
    return (time.perf_counter() - began) / (stream.completion_tokens - first)


def reading(ours: PaceModel, plain: PaceModel, ids: list[int], rounds: int) -> Iterator[Row]:
    """Reading, decoding, and a second question."""
    asked = questions(ours, 2)
    read: tuple[list[float], list[float]] = [], []
    decode: tuple[list[float], list[float]] = [], []
    second: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        forget(ours)
        cache = DynamicCache()

        def read_plain() -> None:
            nonlocal cache
            cache = plain_read(plain.module, ids)

        read[1].append(seconds(read_plain))
        state: Any = None

        def read_ours() -> None:
            nonlocal state
            state = ours.prefill(ids)

        read[0].append(seconds(read_ours))
        decode[1].append(plain_decode(plain.module, cache, ids[0]))
        decode[0].append(our_decode(ours, [*ids, *asked[0]]))
        second[0].append(seconds(lambda: ask(ours, [*ids, *asked[1]], 1)))
        del state, cache
        forget(ours)
        second[1].append(seconds(lambda: ask(ours, [*ids, *asked[1]], 1)))
    yield row("read, against transformers' chunked prefill", *read, "s", "<= 0.85")
    yield row("decode a token, against transformers", *_in_ms(decode), "ms", "<= 1.00")
    yield row(
        "first token of a second question, against reading again", *second, "s", ">= 50 times"
    )


def _in_ms(pair: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    return [1000 * each for each in pair[0]], [1000 * each for each in pair[1]]


def restoring(ours: PaceModel, ids: list[int], rounds: int) -> Iterator[Row]:
    """A question after a restart, against one whose documents are in memory."""
    (asked,) = questions(ours, 1)
    cold: list[float] = []
    warm: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PACELLM_RAG_READINGS"] = folder
        pace, limit = ours.pace, 50 * 2**30
        assert pace is not None
        config = pace.config
        pace.detach()
        writer = PaceModel(ours.module, ours.tokenizer, pace=config, store_bytes=limit)
        state = writer.prefill(ids)
        writer.flush()
        prompt = [*ids, *asked]
        for _ in range(rounds):
            in_memory = ""

            def ask_warm() -> None:
                nonlocal in_memory
                in_memory = ask(writer, prompt)

            warm.append(seconds(ask_warm))
            assert writer.pace is not None
            writer.pace.detach()
            reopened = PaceModel(ours.module, ours.tokenizer, pace=config, store_bytes=limit)
            _ = reopened.engine.runner.decoder.attends
            stream = reopened.stream(prompt, GenerationOptions(max_new_tokens=ANSWER))
            began = time.perf_counter()
            restored = "".join(stream)
            cold.append(time.perf_counter() - began)
            if restored != in_memory or stream.tokens_reused != len(ids):
                raise RuntimeError("The restored reading gave another answer, or was read again.")
            writer.pace = reopened.pace
        del state
        assert writer.pace is not None
        writer.pace.detach()
        ours.pace = None
    os.environ.pop("PACELLM_RAG_READINGS")
    yield row(f"restore from disk + {ANSWER} tokens, against in memory", cold, warm, "s", "<= 1.5")


def sharing(ours: PaceModel, ids: list[int], rounds: int) -> Iterator[Row]:
    """Several askers on one reading."""
    asked = questions(ours, ASKERS)
    state = ours.prefill(ids)
    engine = ours.engine

    def open_streams(count: int) -> int:
        streams = [
            ours.stream([*ids, *q], GenerationOptions(max_new_tokens=ANSWER)) for q in asked[:count]
        ]
        for stream in streams:
            next(stream, None)
        blocks = set()
        for request in list(engine._running):
            if request.row is not None:
                blocks |= cache_blocks(request.row.cache)
        for stream in streams:
            stream.close()
        while not engine.idle:
            time.sleep(0.01)
        return sum(block.nbytes for block in blocks)

    one, many = open_streams(1) / 2**20, open_streams(ASKERS) / 2**20
    yield row(f"KV memory of {ASKERS} askers, against one", [many], [one], "MB", "<= 1.25")
    together, apart = attention_of_askers(ours, len(ids), rounds)
    yield row(
        f"attention of {ASKERS} askers' tokens, against each for itself",
        *_in_ms((together, apart)),
        "ms",
        ">= 3 times",
    )
    side_by_side: list[float] = []
    in_turn: list[float] = []
    for _ in range(rounds):

        def all_at_once() -> None:
            streams = [
                ours.stream([*ids, *q], GenerationOptions(max_new_tokens=ANSWER)) for q in asked
            ]
            for stream in streams:
                stream.start()
            for stream in streams:
                "".join(stream)

        side_by_side.append(seconds(all_at_once))
        in_turn.append(seconds(lambda: [ask(ours, [*ids, *q]) for q in asked]))
    yield row(f"{ASKERS} answers together, against one by one", side_by_side, in_turn, "s", "-")
    del state


def attention_of_askers(
    ours: PaceModel, tokens: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of one layer's attention for a token of each asker, shared prefix or copies."""
    config = ours.module.config.get_text_config(decoder=True)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads

    def states(rows: int, length: int, count: int) -> torch.Tensor:
        return torch.randn(rows, count, length, dim).to(ours.dtype)

    prefixes = [(states(1, tokens, kv_heads), states(1, tokens, kv_heads)) for _ in range(ASKERS)]
    own = [(states(1, 60, kv_heads), states(1, 60, kv_heads)) for _ in range(ASKERS)]
    query = states(ASKERS, 1, heads)
    together, apart = [], []
    everyone = list(range(ASKERS))
    with torch.inference_mode():
        for _ in range(max(rounds, 3) * 5):
            together.append(
                seconds(lambda: attend_rows(query, [(prefixes[0], everyone)], own, dim**-0.5))
            )
            apart.append(
                seconds(
                    lambda: [
                        attend(query[i : i + 1], [prefixes[i]], own[i], dim**-0.5) for i in everyone
                    ]
                )
            )
    return together, apart


def against_frameworks(
    ours: PaceModel, plain: PaceModel, ids: list[int], rounds: int
) -> Iterator[Row]:
    """Ten questions on the same documents: each framework's own class, and ours for it."""
    tokenizer = ours.tokenizer
    documents = str(tokenizer.hf.decode(ids))
    asked = [str(tokenizer.hf.decode(question)) for question in questions(ours, QUESTIONS)]
    turns = [[Message("system", documents), Message("user", question)] for question in asked]
    prompts = [tokenizer.render(messages) for messages in turns]
    pairs = (
        ("HuggingFacePipeline", langchain_llm, our_langchain_llm),
        ("HuggingFaceLLM", llama_index_llm, our_llama_index_llm),
    )
    for name, make_theirs, make_ours in pairs:
        try:
            answer, (one_by_one, together) = make_theirs(plain), make_ours(ours)
        except ImportError as error:
            print(f"Without {name}: {error}", flush=True)
            continue
        mine: list[float] = []
        theirs: list[float] = []
        at_once: list[float] = []
        for _ in range(rounds):
            # every question costs them the same: they read all of it each time
            taken = seconds(partial(list, map(answer, prompts[:THEIRS])))
            theirs.append(taken * QUESTIONS / THEIRS)
            for ask_all, times in ((one_by_one, mine), (together, at_once)):
                forget(ours)
                times.append(seconds(partial(ask_all, documents, asked)))
        what = f"{QUESTIONS} questions, against {name}"
        yield row(f"{what}, one by one", mine, theirs, "s", ">= 8 times")
        yield row(f"{what}, asked together", at_once, theirs, "s", ">= 8 times")


AskAll = Callable[[str, list[str]], object]


def our_langchain_llm(ours: PaceModel) -> tuple[AskAll, AskAll]:
    """Asks through ChatPaceLLM one by one, and in a batch."""
    from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

    from langchain_pacellm import ChatPaceLLM

    llm = ChatPaceLLM(engine=ours, max_tokens=ANSWER)

    def conversations(documents: str, asked: list[str]) -> list[list[BaseMessage]]:
        return [[SystemMessage(documents), HumanMessage(question)] for question in asked]

    return (
        lambda documents, asked: [llm.invoke(turns) for turns in conversations(documents, asked)],
        lambda documents, asked: llm.batch(list(conversations(documents, asked))),
    )


def our_llama_index_llm(ours: PaceModel) -> tuple[AskAll, AskAll]:
    """Asks through PaceLLM one by one, and in tasks."""
    from llama_index.core.llms import ChatMessage

    from llama_index.llms.pacellm import PaceLLM

    llm = PaceLLM(engine=ours, max_tokens=ANSWER)

    def conversations(documents: str, asked: list[str]) -> list[list[ChatMessage]]:
        system = ChatMessage(role="system", content=documents)
        return [[system, ChatMessage(role="user", content=question)] for question in asked]

    async def all_at_once(documents: str, asked: list[str]) -> object:
        return await asyncio.gather(*map(llm.achat, conversations(documents, asked)))

    return (
        lambda documents, asked: [llm.chat(turns) for turns in conversations(documents, asked)],
        lambda documents, asked: asyncio.run(all_at_once(documents, asked)),
    )


def langchain_llm(plain: PaceModel) -> Callable[[str], str]:
    """LangChain's own, on the same weights."""
    import transformers
    from langchain_huggingface import HuggingFacePipeline  # type: ignore[import-not-found,unused-ignore]

    make: Any = transformers.pipeline
    pipe = make("text-generation", model=plain.module, tokenizer=plain.tokenizer.hf)
    llm = HuggingFacePipeline(pipeline=pipe)
    options = {**FULL_LENGTH, "max_new_tokens": ANSWER}  # given per call, or they are ignored
    return lambda prompt: str(llm.invoke(prompt, pipeline_kwargs=options))


def llama_index_llm(plain: PaceModel) -> Callable[[str], str]:
    """LlamaIndex' own, on the same weights."""
    from llama_index.llms.huggingface import HuggingFaceLLM  # type: ignore[import-untyped,unused-ignore]

    llm = HuggingFaceLLM(
        model=plain.module,
        tokenizer=plain.tokenizer.hf,
        context_window=plain.context_window,
        max_new_tokens=ANSWER,
        generate_kwargs=dict(FULL_LENGTH),
    )
    return lambda prompt: str(llm.complete(prompt, formatted=True))


def against_llama_cpp(ours: PaceModel, gguf: str | None, ids: list[int]) -> Iterator[Row]:
    """Ten questions with llama.cpp's prompt cache, on the same weights as a .gguf file."""
    try:
        from llama_cpp import Llama  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        print(f"Without llama.cpp: {error}", flush=True)
        return
    if gguf is None:
        print("Without llama.cpp: name the .gguf file (--gguf).", flush=True)
        return
    llama = Llama(model_path=gguf, n_ctx=len(ids) + 512, n_threads=os.cpu_count(), verbose=False)
    asked = questions(ours, QUESTIONS)
    times: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
    for question in asked:
        prompt = [*ids, *question]
        complete = partial(llama.create_completion, prompt, max_tokens=ANSWER, temperature=0)
        times["llama.cpp"].append(seconds(complete))
    forget(ours)
    for question in asked:
        prompt = [*ids, *question]
        times["ours"].append(seconds(partial(ask, ours, prompt, question=len(ids))))
    mine, theirs = times["ours"], times["llama.cpp"]
    yield row("first answer, against llama.cpp", mine[:1], theirs[:1], "s", "faster")
    yield row("a later answer, against llama.cpp", mine[1:], theirs[1:], "s", "-")
    yield row(
        f"{QUESTIONS} questions, against llama.cpp", [sum(mine)], [sum(theirs)], "s", "faster"
    )


def main() -> None:
    """Runs the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gguf", help="the same model for llama.cpp")
    parts = ("read", "restore", "share", "frameworks", "llama.cpp")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    arguments = parser.parse_args()
    ours = load_model(arguments.model, pace=PaceConfig(), store_bytes=0)
    plain = load_model(arguments.model, pace=None, attention="sdpa", store_bytes=0)
    for model in (ours, plain):
        model._stop_ids = frozenset()  # all run to the same length
    _ = ours.engine.runner.decoder.attends
    room = ours.context_window - QUESTION - ANSWER - 8
    ids = text_tokens(ours, min(arguments.tokens, room))
    ask(ours, ids[:300], 2)
    plain_read(plain.module, ids[:300])
    rows: list[Row] = []
    load = os.getloadavg()[0]
    print("| what | ours | other | unit | ratio | 1 / ratio | aim |")
    print("|---|---:|---:|---|---:|---:|---|", flush=True)
    todo: dict[str, Callable[[], Iterator[Row]]] = {
        "read": lambda: reading(ours, plain, ids, arguments.rounds),
        "share": lambda: sharing(ours, ids, arguments.rounds),
        "frameworks": lambda: against_frameworks(ours, plain, ids[: len(ids) - 100], 1),
        "llama.cpp": lambda: against_llama_cpp(ours, arguments.gguf, ids),
        "restore": lambda: restoring(ours, ids, arguments.rounds),  # takes the banks off at the end
    }
    for part, measure in todo.items():
        if part not in arguments.parts:
            continue
        for each in measure():
            rows.append(each)
            print(
                f"| {each['what']} | {each['ours']:.3g} | {each['other']:.3g} | {each['unit']} | "
                f"{each['ratio']:.3g} | {each['inverse']:.3g} | {each['target']} |",
                flush=True,
            )
    print(
        json.dumps(
            {
                "benchmark": "ask_many",
                "tokens": len(ids),
                "rounds": arguments.rounds,
                "dtype": str(ours.dtype),
                "threads": torch.get_num_threads(),
                "load_before": load,
                "load_after": os.getloadavg()[0],
                "machine": platform.machine(),
                "torch": torch.__version__,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
