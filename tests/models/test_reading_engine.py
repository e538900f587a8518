"""The engine under load: the same answers, true counts, and nobody harmed by another.

Every answer is compared with its twin, made alone by a fresh engine that knows nothing. Over 400
lines, because the claims share the instruments at the top, and each is a few lines. No test
depends on how fast the machine is: the engine is held by `held`, or stopped inside of a pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pacellm_rag.documents.types import Document, Page
from pacellm_rag.errors import (
    CancelledError,
    DeadlineExceededError,
    InsufficientMemoryError,
    QueueFullError,
)
from pacellm_rag.models import decoder as decoder_module
from pacellm_rag.models import engine as engine_module
from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.generation import Generation
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.sampling import Sampler
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import ONE_MESSAGE, GenerationOptions, PromptLayout, ReadProgress
from pacellm_rag.reader import DocumentReader
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SHORT = GenerationOptions(max_new_tokens=6)
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
PATIENCE = 10.0  # seconds until a test says that somebody waits for ever

every_family = pytest.mark.parametrize("family", list(FAMILIES))
some_families = pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
with_and_without = pytest.mark.parametrize("pace", [None, ACTING], ids=["plain", "banks"])


def prompt(tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (tokens,), generator=generator)]


def answer(
    model: PaceModel,
    ids: Sequence[int],
    layout: PromptLayout = ONE_MESSAGE,
    options: GenerationOptions = SHORT,
) -> str:
    return "".join(model.stream(ids, options, layout=layout))


class Passes:
    """The tokens that really go through a model, pass by pass: (rows, tokens per row)."""

    def __init__(self, model: PaceModel) -> None:
        model.engine.runner.decoder.attends  # noqa: B018 - found out by passes of its own
        self.shapes: list[tuple[int, int]] = []
        self.do: Callable[[dict[str, Any]], None] = lambda arguments: None
        base = model.module.base_model
        self._hook = base.register_forward_pre_hook(self._saw, with_kwargs=True)

    def _saw(self, module: object, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named["input_ids"] if "input_ids" in named else arguments[0]
        self.shapes.append((ids.shape[0], ids.shape[1]))
        self.do({**named, "input_ids": ids})

    @property
    def tokens(self) -> int:
        return sum(rows * tokens for rows, tokens in self.shapes)

    def taken(self) -> int:
        """Tokens since the last look."""
        tokens = self.tokens
        self.shapes.clear()
        return tokens


@contextlib.contextmanager
def held(model: PaceModel) -> Iterator[None]:
    """Holds the worker, so that what comes in the block comes at one moment."""
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        go.wait(PATIENCE)

    thread = threading.Thread(target=model.engine.call, args=(hold,))
    thread.start()
    assert inside.wait(PATIENCE)
    try:
        yield
    finally:
        go.set()
        thread.join(PATIENCE)


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def still_answers(model: PaceModel, twin: PaceModel) -> bool:
    """Whether a newcomer gets the right answer, and nothing is left of those before."""
    ids, found = prompt(40, 99), []
    in_thread(lambda: found.append(answer(model, ids))).join(PATIENCE)
    assert found == [answer(twin, ids)]
    assert eventually(lambda: model.engine.idle)
    gc.collect()
    return eventually(lambda: not any(n.pins for n in model.engine.runner.cache.nodes()))


# ---- the same answer, whoever else is there


@every_family
@with_and_without
def test_an_answer_is_the_same_alone_in_a_crowd_again_and_from_disk(
    tiny: Tiny,
    family: str,
    pace: PaceConfig | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path))
    documents = prompt(290)
    layout = PromptLayout((0, 131), (283,))
    prompts = [[*documents, *prompt(5 + 7 * seed, seed + 1)] for seed in range(4)]
    twins = [answer(tiny(family, pace=pace), ids, layout) for ids in prompts]
    model = tiny(family, pace=pace, store_bytes=2**30)
    model.window = model.engine.window = 48
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda ids: answer(model, ids, layout), prompts)) == twins
    assert [answer(model, ids, layout) for ids in reversed(prompts)] == twins[::-1]
    model.prefill(documents, layout=layout)
    assert answer(model, prompts[0], layout) == twins[0]
    model.flush()
    other = tiny(family, pace=pace, store_bytes=2**30)
    streams = [other.stream(ids, SHORT, layout=layout) for ids in prompts]
    for stream in streams:
        stream.start()
    assert ["".join(stream) for stream in streams] == twins
    assert min(stream.tokens_reused for stream in streams) >= 256
    assert still_answers(other, tiny(family, pace=pace))


@some_families
@with_and_without
@pytest.mark.parametrize("seed", range(2))
def test_any_mix_of_requests_gives_the_answers_of_their_twins(
    tiny: Tiny, family: str, pace: PaceConfig | None, seed: int
) -> None:
    rng = random.Random(seed)
    size = 1_000_000 if rng.random() < 0.5 else 10**9  # bytes: room for one or two prompts, or all
    model = tiny(family, pace=pace, limits=EngineLimits(max_running=3, cache_bytes=size))
    model.engine.window = rng.choice([17, 64, 1024])
    passes, twins, known = Passes(model), tiny(family, pace=pace), dict[object, str]()

    def made_up() -> tuple[list[int], PromptLayout]:
        chosen = [prompt(rng.choice([90, 260, 300]), d) for d in rng.sample(range(4), 2)]
        ends = (len(chosen[0]), len(chosen[0]) + len(chosen[1]))
        ids = [*chosen[0], *chosen[1], *prompt(rng.randrange(1, 30), rng.randrange(3))]
        starts = rng.choice([(0,), (0, ends[0]), (3, ends[1]), (ends[0], len(ids))])
        return ids, PromptLayout(starts, rng.choice([(), ends]))

    def twin(ids: list[int], layout: PromptLayout, options: GenerationOptions) -> str:
        key = (tuple(ids), layout, options)
        if key not in known:
            twins._engine = None
            known[key] = answer(twins, ids, layout, options)
        return known[key]

    live: list[tuple[Generation, str, list[str]]] = []
    held_states = []
    for _ in range(16):
        ids, layout = made_up()
        what = rng.choice(["ask", "ask", "start", "pull", "prefill", "shrink", "close"])
        options = GenerationOptions(max_new_tokens=rng.choice([1, 5, 12]))
        if what == "prefill":
            held_states.append(model.prefill(ids[: rng.randrange(1, len(ids))], layout=layout))
            del held_states[: -rng.randrange(1, 3)]
        elif what == "shrink":
            model.engine.runner.cache.shrink(0)
        elif what == "close" and live:
            live.pop(rng.randrange(len(live)))[0].close()
        else:
            stream, pieces = model.stream(ids, options, layout=layout), list[str]()
            live.append((stream, twin(ids, layout, options), pieces))
            if what == "start":
                stream.start()
            elif what == "pull":
                pieces.append(next(stream, ""))
            else:
                assert "".join(stream) == live.pop()[1]
    for stream, wanted, pieces in live:
        assert "".join([*pieces, *stream]) == wanted
        assert stream.tokens_reused + stream.tokens_read == len(stream._request.token_ids)
    assert passes.tokens
    held_states.clear()
    del stream
    live.clear()
    assert still_answers(model, tiny(family, pace=pace))


@pytest.mark.parametrize(("first", "second"), [((0, 90), (0,)), ((0,), (0, 90))])
def test_whether_a_message_ends_with_a_prefix_is_part_of_what_is_known(
    tiny: Tiny, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """Memory banks close their window there, so the same tokens leave another state."""
    options = GenerationOptions(max_new_tokens=30)
    for seed in range(3):
        documents = prompt(90, seed)
        ids = [*documents, *prompt(30, seed + 50)]
        model = tiny("llama", pace=ACTING)
        state = model.prefill(documents, layout=PromptLayout(first))
        layout = PromptLayout(second)
        alone = answer(tiny("llama", pace=ACTING), ids, layout, options)
        assert answer(model, ids, layout, options) == alone
        same = PromptLayout((*first, 120))
        stream = model.stream(ids, options, layout=same)
        assert "".join(stream) == answer(tiny("llama", pace=ACTING), ids, same, options)
        assert stream.tokens_reused == len(state.token_ids) == 90


# ---- counts that are true


@some_families
@with_and_without
def test_what_is_said_to_be_read_is_what_goes_through_the_model(
    tiny: Tiny,
    family: str,
    pace: PaceConfig | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path))
    model = tiny(family, pace=pace, store_bytes=2**30)
    model.engine.window = 100
    passes = Passes(model)
    a, b, c = (prompt(300, seed) for seed in range(3))
    question = prompt(20, 7)

    def read(*documents: list[int]) -> int:
        ids = [i for document in documents for i in document]
        ends = tuple(300 * n for n in range(1, len(documents) + 1))
        before = model.cost(ids, 1).tokens_known
        state = model.prefill(ids, layout=PromptLayout((0,), ends))
        assert state.tokens_reused + passes.taken() == len(ids)
        assert state.tokens_reused == before
        return state.tokens_reused

    def ask(*documents: list[int]) -> int:
        ids = [*[i for document in documents for i in document], *question]
        ends = tuple(300 * n for n in range(1, len(documents) + 1))
        stream = model.stream(ids, SHORT, layout=PromptLayout((0,), ends))
        list(stream)
        assert stream.tokens_reused + stream.tokens_read == len(ids)
        assert stream.tokens_read + stream.completion_tokens - 1 == passes.taken()
        return stream.tokens_reused

    assert [read(a), read(a, b), read(a, b, c), read(a, c)] == [0, 300, 600, 300]
    assert [read(a, c), read(a), ask(a, b)] == [600, 300, 600]
    assert ask(b, a) == 0
    assert 600 <= ask(b, a) <= 619
    assert ask(b, c) == 300
    model.flush()
    model = tiny(family, pace=pace, store_bytes=2**30)
    passes = Passes(model)
    assert [read(a, b), read(a, b, c), ask(b, a)] == [600, 900, 600]


@some_families
@with_and_without
def test_a_prefix_that_several_want_at_once_is_read_once(
    tiny: Tiny, family: str, pace: PaceConfig | None
) -> None:
    model = tiny(family, pace=pace)
    model.engine.window = 100
    passes = Passes(model)
    documents, layout = prompt(600), PromptLayout((0,), (600,))
    prompts = [[*documents, *prompt(20, seed)] for seed in range(1, 4)]
    streams = [model.stream(ids, SHORT, layout=layout) for ids in prompts]
    with held(model):
        for stream in streams:
            stream.start()
    texts = ["".join(stream) for stream in streams]
    assert texts == [answer(tiny(family, pace=pace), ids, layout) for ids in prompts]
    assert [stream.tokens_read for stream in streams] == [620, 20, 20]
    assert passes.tokens == 660 + sum(stream.completion_tokens - 1 for stream in streams)


def test_asking_for_a_prompt_that_is_known_whole_runs_its_last_token(tiny: Tiny) -> None:
    model = tiny("llama")
    passes = Passes(model)
    ids = prompt(300)
    for reused in (0, 299, 299):
        stream = model.stream(ids, SHORT)
        list(stream)
        assert stream.tokens_reused == reused
        assert passes.taken() == 300 - reused + stream.completion_tokens - 1


# ---- turns and limits


@some_families
@with_and_without
def test_a_long_reading_and_an_answer_take_turns(
    tiny: Tiny, family: str, pace: PaceConfig | None
) -> None:
    model = tiny(family, pace=pace)
    model.engine.window = 40
    passes = Passes(model)
    long, short = prompt(900), prompt(30, 1)
    reading = model.stream(long, SHORT)
    stream = model.stream(short, GenerationOptions(max_new_tokens=20))
    with held(model):
        reading.start()
        stream.start()
    text = "".join(stream)
    assert "".join(reading) == answer(tiny(family, pace=pace), long)
    options = GenerationOptions(max_new_tokens=20)
    assert text == answer(tiny(family, pace=pace), short, options=options)
    windows = [tokens for _, tokens in passes.shapes if tokens > 1]
    first = next(i for i, (_, tokens) in enumerate(passes.shapes) if tokens == 1)
    turns = [tokens for _, tokens in passes.shapes[first : first + 2 * 12]]
    assert turns[::2] == [1] * 12  # a token each time
    assert max(turns[1::2]) <= 20  # between them one short window of the long reading
    assert max(windows) == 40  # long ones again, when nobody waits


def test_no_more_than_max_running_are_worked_on_at_once(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=2))
    passes = Passes(model)
    prompts = [prompt(30, seed) for seed in range(5)]
    streams = [model.stream(ids, SHORT) for ids in prompts]
    with held(model):
        for stream in streams:
            stream.start()
    assert ["".join(s) for s in streams] == [answer(tiny("llama"), ids) for ids in prompts]
    assert max(rows for rows, _ in passes.shapes) == 2


def test_streams_that_nobody_pulls_block_nobody(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=3, max_queue=8))
    options = GenerationOptions(max_new_tokens=30)
    prompts = [prompt(30, seed) for seed in range(6)]
    twins = [answer(tiny("llama"), ids, options=options) for ids in prompts]
    streams = [model.stream(ids, options) for ids in prompts[:5]]
    begun = [next(stream) for stream in streams]
    assert answer(model, prompts[5], options=options) == twins[5]
    with ThreadPoolExecutor(5) as pool:  # all five at once are more than run
        rests = list(pool.map("".join, streams))
    assert [a + b for a, b in zip(begun, rests, strict=True)] == twins[:5]


def test_answers_that_go_on_after_a_pause_are_no_more_at_once_than_may_be(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=2, max_queue=8))
    options = GenerationOptions(max_new_tokens=12)
    prompts = [prompt(30, seed) for seed in range(6)]
    streams = [model.stream(ids, options) for ids in prompts]
    begun = [next(stream) for stream in streams]
    assert len(model.engine._running) > 2, "Those that pause hold no place."
    passes = Passes(model)
    with ThreadPoolExecutor(6) as pool:
        rests = list(pool.map("".join, streams))
    assert max(rows for rows, _ in passes.shapes) == 2
    twins = [answer(tiny("llama"), ids, options=options) for ids in prompts]
    assert [a + b for a, b in zip(begun, rests, strict=True)] == twins


def test_no_more_requests_are_begun_and_paused_than_may_be_there(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=2, max_queue=1))
    options = GenerationOptions(max_new_tokens=30)
    streams = [model.stream(prompt(30, seed), options) for seed in range(5)]
    begun = [next(stream) for stream in streams[:3]]
    for refused in (lambda: next(streams[3]), lambda: model.prefill(prompt(30, 3))):
        with pytest.raises(QueueFullError, match=r"3 requests .* 3 have begun.* no more than 3"):
            refused()
    streams[0].close()
    rest = "".join(streams[4])  # there is room again
    assert rest == answer(tiny("llama"), prompt(30, 4), options=options)
    assert "".join([begun[1], *streams[1]]) == answer(tiny("llama"), prompt(30, 1), options=options)
    streams[2].close()
    assert still_answers(model, tiny("llama"))


def test_started_answers_are_made_to_their_end_without_a_pull(tiny: Tiny) -> None:
    model = tiny("llama")
    options = GenerationOptions(max_new_tokens=40)
    stream = model.stream(prompt(30), options)
    stream.start()
    stream.start()
    assert eventually(lambda: model.engine.idle)
    assert "".join(stream) == answer(tiny("llama"), prompt(30), options=options)


def test_a_full_queue_refuses_and_those_in_it_are_answered(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=1, max_queue=2))
    prompts = [prompt(30, seed) for seed in range(4)]
    streams = [model.stream(ids, SHORT) for ids in prompts]
    with held(model):
        for stream in streams[:3]:  # one has a place, two wait
            stream.start()
        with pytest.raises(QueueFullError, match="max_queue"):
            next(streams[3])
        with pytest.raises(QueueFullError, match="no more than 2"):
            model.prefill(prompts[3])
        streams[2].close()  # leaves a place in the queue
        replacement = model.stream(prompts[3], SHORT)
        replacement.start()
    texts = ["".join(stream) for stream in (*streams[:2], replacement)]
    assert texts == [answer(tiny("llama"), prompts[i]) for i in (0, 1, 3)]
    assert still_answers(model, tiny("llama"))


def test_progress_tells_the_place_in_the_queue(tiny: Tiny) -> None:
    model = tiny("llama", limits=EngineLimits(max_running=1))
    seen: list[ReadProgress] = []
    first, second = (model.stream(prompt(30, seed), SHORT) for seed in (1, 2))
    with held(model):
        first.start()
        second.start()
        thread = in_thread(lambda: model.prefill(prompt(50), progress=seen.append))
        assert eventually(lambda: len(model.engine._queue) == 3)
    thread.join(PATIENCE)
    places = [progress.queue_position for progress in seen]
    assert places == sorted(places, reverse=True)
    assert places[0] >= 1
    assert (places[-1], seen[-1].tokens_done) == (0, 50)


# ---- ends before the end


@some_families
@with_and_without
@pytest.mark.parametrize("phase", ["queued", "reading", "answering"])
@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
def test_a_request_can_be_ended_in_every_phase(
    tiny: Tiny, family: str, pace: PaceConfig | None, phase: str, how: str
) -> None:
    model = tiny(family, pace=pace)
    model.engine.window = 30
    passes, cancel = Passes(model), threading.Event()
    other = model.stream(prompt(35, 3), GenerationOptions(max_new_tokens=12))
    stream = model.stream(prompt(300, 6), GenerationOptions(max_new_tokens=500), cancel=cancel)

    def end() -> None:
        if how == "cancel":
            cancel.set()
        elif how == "deadline":
            stream._request.deadline = time.monotonic() - 1
        else:
            stream.close()

    def in_the_pass(_: object) -> None:
        row = stream._request.row
        reached = row is not None and row.length >= (90 if phase == "reading" else 300)
        if phase != "queued" and reached:
            end()

    passes.do = in_the_pass
    with held(model):
        stream.start()
        other.start()
        if phase == "queued":
            end()
    if how == "close":
        assert eventually(lambda: stream._request.ended)
        assert "".join(stream) == ""
        assert stream.finish_reason == "closed"
    else:
        said = {"queued": "waiting", "reading": "reading \\(token", "answering": "answering"}[phase]
        error = CancelledError if how == "cancel" else DeadlineExceededError
        with pytest.raises(error, match=said):
            "".join(stream)
    alone = answer(
        tiny(family, pace=pace), prompt(35, 3), options=GenerationOptions(max_new_tokens=12)
    )
    assert "".join(other) == alone
    assert passes.tokens < 700
    passes.do = lambda _: None
    assert answer(model, prompt(300, 6)) == answer(tiny(family, pace=pace), prompt(300, 6))
    assert still_answers(model, tiny(family, pace=pace))


# ---- errors of one


class FailingSampler(Sampler):
    """Chooses greedily, and fails at one of its calls."""

    def __init__(self, model: PaceModel, at: int, error: Exception) -> None:
        super().__init__(SHORT, model.device)
        self.left, self.error = at, error

    def __call__(self, logits: torch.Tensor) -> int:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().__call__(logits)


def is_of(cache: Any, stream: Generation) -> bool:
    """Whether a pass on this cache is one of a stream's, alone or with others."""
    row = stream._request.row
    if row is None:
        return False
    own = row.cache.layers[0]
    return cache is row.cache or any(each is own for each in getattr(cache.layers[0], "rows", ()))


@some_families
@with_and_without
@pytest.mark.parametrize("where", ["reading", "answering", "sampler", "first sample", "decoding"])
def test_an_error_harms_only_its_own_request(
    tiny: Tiny, family: str, pace: PaceConfig | None, where: str
) -> None:
    model = tiny(family, pace=pace)
    passes = Passes(model)
    options = GenerationOptions(max_new_tokens=12)
    prompts = [prompt(60 + seed, seed) for seed in range(4)]
    streams = [model.stream(ids, options) for ids in prompts]
    victim = streams[1]
    error = RuntimeError("a fault of one")

    def fail(arguments: dict[str, Any]) -> None:
        request = victim._request
        here = request.is_reading if where == "reading" else request.answer.tokens >= 3
        if here and is_of(arguments["past_key_values"], victim):
            raise error

    def broken_decode(ids: list[int]) -> str:
        if victim._request.answer.tokens >= 3:
            raise error
        return model.tokenizer.decode(ids)

    if where in ("reading", "answering"):
        passes.do = fail
    elif where == "decoding":
        victim._answering.stream._decode = broken_decode
    else:
        at = 1 if where == "first sample" else 4
        victim._answering.sampler = FailingSampler(model, at, error)
    with held(model):
        for stream in streams:
            stream.start()
    with pytest.raises(RuntimeError, match="a fault of one"):
        list(victim)
    for stream, ids in zip(streams, prompts, strict=True):
        if stream is not victim:
            alone = answer(tiny(family, pace=pace), ids, options=options)
            assert "".join(stream) == alone
    error.__traceback__ = None
    assert still_answers(model, tiny(family, pace=pace))


def test_an_error_in_a_progress_callback_reaches_its_own_caller_only(tiny: Tiny) -> None:
    model = tiny("llama")
    model.engine.window = 10

    def broken(progress: ReadProgress) -> None:
        if progress.tokens_done >= 20:
            raise ZeroDivisionError("a fault of one")

    other = model.stream(prompt(300, 5), SHORT)
    other.start()
    with pytest.raises(ZeroDivisionError, match="a fault"):
        model.prefill(prompt(300), progress=broken)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        list(model.stream(prompt(300, 1), SHORT, progress=broken))
    assert "".join(other) == answer(tiny("llama"), prompt(300, 5))
    assert still_answers(model, tiny("llama"))


@some_families
@with_and_without
def test_when_memory_runs_out_once_what_nobody_uses_is_forgotten(
    tiny: Tiny, family: str, pace: PaceConfig | None
) -> None:
    for at in (1, 3, 6, 9):  # while reading, and while answering
        model = tiny(family, pace=pace)
        model.engine.window = 30
        model.prefill(prompt(300, 5))
        passes, ids = Passes(model), prompt(100)

        def once(_: object, passes: Passes = passes, at: int = at) -> None:
            if len(passes.shapes) == at:
                raise RuntimeError(NO_MEMORY)

        passes.do = once
        options = GenerationOptions(max_new_tokens=12)
        assert answer(model, ids, options=options) == answer(
            tiny(family, pace=pace), ids, options=options
        )
        if at < 4:  # a token that fails in a batch is tried alone first
            assert list(model.engine.runner.cache.nodes()) == []


def test_when_memory_runs_out_between_pass_and_bookkeeping_nothing_is_done_twice(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, layout = prompt(90, 1), PromptLayout((0, 33, 70))
    options = GenerationOptions(max_new_tokens=30)
    alone = answer(tiny("llama", pace=ACTING), ids, layout, options)
    close_windows = decoder_module.close_windows
    for at in (1, 2, 3):  # two messages' ends, and the prompt's
        left = [at]

        def once(cache: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError(NO_MEMORY)
            close_windows(cache)

        model = tiny("llama", pace=ACTING)
        model.prefill(prompt(300, 5))
        model.engine.call(
            lambda once=once: monkeypatch.setattr(decoder_module, "close_windows", once)
        )  # type: ignore[misc]
        assert answer(model, ids, layout, options) == alone
        assert left[0] <= 0
        monkeypatch.undo()


@some_families
@pytest.mark.parametrize("at", [1, 2, 5])
def test_when_memory_runs_out_while_a_token_is_chosen_it_is_chosen_again(
    tiny: Tiny, family: str, at: int
) -> None:
    options = GenerationOptions(max_new_tokens=12)
    alone = answer(tiny(family), prompt(60), options=options)
    model = tiny(family)
    model.prefill(prompt(300, 5))
    passes = Passes(model)
    stream = model.stream(prompt(60), options)
    stream._answering.sampler = FailingSampler(model, at, RuntimeError(NO_MEMORY))
    assert "".join(stream) == alone
    assert stream.completion_tokens == 12
    assert passes.tokens == 60 + 11


def test_when_there_is_never_enough_memory_it_is_said_in_numbers(tiny: Tiny) -> None:
    model = tiny("llama")
    inside = model.module.base_model.register_forward_pre_hook(_out_of_memory)
    for _ in range(2):  # also by the first pass of all
        with pytest.raises(InsufficientMemoryError, match=r"120 tokens take .* are free") as told:
            model.prefill(prompt(120))
        assert told.value.needed_bytes == 120 * model.engine.runner.needs.bytes_per_token
        assert told.value.free_bytes
        assert "can't allocate" in str(told.value.__cause__)
        time.sleep(0.02)  # a worker that looks at the model now must not die of it
    del told
    inside.remove()
    assert still_answers(model, tiny("llama"))


def _out_of_memory(*_: object) -> None:
    raise RuntimeError(NO_MEMORY)


def test_a_batch_that_is_too_large_for_the_memory_is_decoded_one_by_one(tiny: Tiny) -> None:
    model = tiny("llama")
    passes = Passes(model)

    def too_large(arguments: dict[str, Any]) -> None:
        if len(arguments["input_ids"]) > 1:
            raise RuntimeError(NO_MEMORY)

    passes.do = too_large
    prompts = [prompt(30, seed) for seed in range(3)]
    streams = [model.stream(ids, SHORT) for ids in prompts]
    with held(model):
        for stream in streams:
            stream.start()
    assert ["".join(s) for s in streams] == [answer(tiny("llama"), ids) for ids in prompts]


def test_work_of_other_threads_runs_between_passes_and_its_errors_are_theirs(tiny: Tiny) -> None:
    model = tiny("llama")
    options = GenerationOptions(max_new_tokens=60)
    streams = [model.stream(prompt(30, seed), options) for seed in range(2)]
    for stream in streams:
        stream.start()
    with ThreadPoolExecutor(4) as pool:
        names = list(
            pool.map(
                lambda n: model.engine.call(lambda: (n, threading.current_thread().name)),
                range(20),
            )
        )
    assert names == [(n, "pacellm-engine") for n in range(20)]
    with pytest.raises(ZeroDivisionError):
        model.engine.call(lambda: 1 // 0)
    for seed, stream in enumerate(streams):
        alone = answer(tiny("llama"), prompt(30, seed), options=options)
        assert "".join(stream) == alone


# ---- asyncio


def test_sixty_four_async_answers_are_those_of_the_sync_face(tiny: Tiny) -> None:
    model = tiny("llama")
    prompts = [prompt(30 + seed % 7, seed) for seed in range(64)]
    twin = tiny("llama")
    alone = [answer(twin, ids) for ids in prompts]

    async def one(ids: list[int]) -> str:
        return "".join([piece async for piece in model.stream(ids, SHORT)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, prompts))

    assert asyncio.run(all_of_them()) == alone
    assert still_answers(model, tiny("llama"))


def test_the_event_loop_goes_on_while_a_window_is_read(tiny: Tiny) -> None:
    model = tiny("llama")
    passes, ticks, enough = Passes(model), [0], threading.Event()
    waited: list[bool] = []
    passes.do = lambda _: waited.append(enough.wait(PATIENCE))

    async def tick() -> None:
        while not enough.is_set():
            await asyncio.sleep(0.001)
            ticks[0] += 1
            if ticks[0] >= 10:
                enough.set()

    async def main() -> str:
        stream = model.stream(prompt(50), SHORT)
        ticker = asyncio.create_task(tick())
        text = "".join([piece async for piece in stream])
        await ticker
        return text

    assert asyncio.run(main()) == answer(tiny("llama"), prompt(50))
    assert waited
    assert all(waited)


@pytest.mark.parametrize("loop_goes_on", [True, False])
def test_cancelling_a_task_frees_its_request_also_when_its_loop_is_closed(
    tiny: Tiny, loop_goes_on: bool
) -> None:
    """The worker is inside of a pass when the task ends, and has nobody to tell afterwards."""
    model = tiny("llama")
    passes, inside, go = Passes(model), threading.Event(), threading.Event()

    def wait(_: object) -> None:
        inside.set()
        go.wait(PATIENCE)

    passes.do = wait

    async def main() -> None:
        stream = model.stream(prompt(50), GenerationOptions(max_new_tokens=500))
        task = asyncio.create_task(stream.__anext__())
        while not inside.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if loop_goes_on:
            go.set()
            while not model.engine.idle:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    go.set()
    passes.do = lambda _: None
    assert still_answers(model, tiny("llama"))
    assert passes.tokens < 200


# ---- the reader


def document(name: str, sentences: int, seed: int) -> Document:
    rng = random.Random(seed)
    words = "tide river stone cloud paper winter garden letter".split()
    text = " ".join(" ".join(rng.choices(words, k=6)).capitalize() + "." for _ in range(sentences))
    return Document(name, name.upper(), (Page(1, "1", text),))


@some_families
@with_and_without
def test_many_questions_at_once_get_the_answers_of_one_by_one(
    tiny: Tiny, family: str, pace: PaceConfig | None
) -> None:
    documents = [document("a", 8, 0)]
    options = GenerationOptions(max_new_tokens=12)
    questions = [f"What about {word}?" for word in ("tides", "rivers", "clouds")]
    one_by_one = DocumentReader(tiny(family, pace=pace), documents, options=options)
    together = DocumentReader(tiny(family, pace=pace), documents, options=options)
    asked = [one_by_one.ask(question) for question in questions]
    for one, other in zip(together.ask_many(questions), asked, strict=True):
        assert (one.text, one.citations, one.usage, one.finish_reason) == (
            other.text, other.citations, other.usage, other.finish_reason,
        )  # fmt: skip


def test_many_tasks_ask_a_reader_at_once(tiny: Tiny) -> None:
    model = tiny("llama")
    passes = Passes(model)
    reader = DocumentReader(
        model, [document("a", 6, 0)], options=GenerationOptions(max_new_tokens=4)
    )
    alone = DocumentReader(tiny("llama"), reader.documents, options=reader.options)
    questions = [f"Where is stone {number}?" for number in range(64)]

    async def main() -> list[str]:
        answers = await asyncio.gather(*(reader.aask(q, cite=False) for q in questions))
        return [each.text for each in answers]

    assert asyncio.run(main()) == [alone.ask(q, cite=False).text for q in questions]
    assert reader.receipt is not None
    assert passes.tokens < reader.receipt.tokens + 64 * 200  # the document was read once


@some_families
@with_and_without
def test_a_reader_reads_what_no_reader_before_has_read(
    tiny: Tiny, family: str, pace: PaceConfig | None
) -> None:
    model = tiny(family, pace=pace)
    passes = Passes(model)
    a, b, c = (document(name, 9, seed) for seed, name in enumerate("abc"))
    first = DocumentReader(model, [a, b]).read()
    assert passes.taken() == first.tokens
    assert first.tokens_reused == 0
    again = DocumentReader(model, [a, b]).read()
    assert (again.tokens, again.tokens_reused, passes.taken()) == (first.tokens, first.tokens, 0)
    more = DocumentReader(model, [a, b, c])
    receipt = more.read()
    ends = more._prefix()[1].document_ends
    assert receipt.tokens_reused + passes.taken() == receipt.tokens
    assert receipt.tokens_reused >= ends[1]
    question = GenerationOptions(max_new_tokens=12)
    alone = DocumentReader(tiny(family, pace=pace), [a, b, c]).ask("Which?", options=question)
    assert more.ask("Which?", options=question).text == alone.text


# ---- nothing is left


@some_families
@with_and_without
def test_nothing_survives_its_last_user(tiny: Tiny, family: str, pace: PaceConfig | None) -> None:
    model = tiny(family, pace=pace)
    cache, blocks = model.engine.runner.cache, list[weakref.ref[object]]()
    state = model.prefill(prompt(300))

    def note(*_: object) -> None:
        for node in cache.nodes():
            assert node.part is not None
            blocks.append(weakref.ref(node.part.block))
        blocks.extend(weakref.ref(r.row.block) for r in model.engine._running if r.row)

    streams = [
        model.stream([*prompt(300), *prompt(300, s)], GenerationOptions(max_new_tokens=50))
        for s in range(3)
    ]
    for stream in streams:
        next(stream)
    model.engine.call(note)
    list(streams[0])
    streams[1].close()
    del state, streams, stream
    assert eventually(lambda: model.engine.idle)
    gc.collect()
    assert eventually(lambda: not any(node.pins for node in cache.nodes()))
    cache.shrink(0)
    assert list(cache.nodes()) == []
    assert cache.nbytes == 0
    gc.collect()
    assert len(blocks) >= 4
    assert [block() for block in blocks if block() is not None] == []


def test_a_state_that_is_dropped_is_unpinned_though_nothing_follows(tiny: Tiny) -> None:
    model = tiny("llama")
    state = model.prefill(prompt(50))
    cache = model.engine.runner.cache
    assert [node.pins for node in cache.nodes()] == [1]
    del state
    gc.collect()
    assert [node.pins for node in cache.nodes()] == [0]  # the worker still waits for more


def test_the_worker_ends_when_nobody_comes_and_another_takes_over(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_LINGER", 0.01)
    monkeypatch.setattr(engine_module, "_POLL", 0.01)
    model, wanted = tiny("llama"), answer(tiny("llama"), prompt(30))
    for _ in range(3):
        assert answer(model, prompt(30)) == wanted
        worker = model.engine._worker
        assert worker is None or eventually(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
        assert model.engine._worker is None


def test_a_stopped_engine_refuses_and_keeps_nobody_waiting(tiny: Tiny) -> None:
    model = tiny("llama")
    begun = model.stream(prompt(30), GenerationOptions(max_new_tokens=2000), attend_to=[(0, 9)])
    next(begun)
    model.engine.stop()
    refused: list[str] = []

    def come_late() -> None:
        for work in (
            lambda: list(begun),
            lambda: answer(model, prompt(30)),
            lambda: model.prefill(prompt(30)),
            lambda: model.engine.call(lambda: None),
        ):
            with pytest.raises(CancelledError, match="stopped") as told:
                work()
            refused.append(str(told.value))
        begun.span_attention()
        refused.append("nobody waits for what will not come")

    thread = threading.Thread(target=come_late)
    thread.start()
    assert eventually(lambda: len(refused) == 5)


EXIT = """
    import asyncio, threading, time, torch
    from pacellm_rag.protocols import GenerationOptions
    from pacellm_rag.testing import tiny_model

    torch.set_num_threads(1)
    model = tiny_model()
    long = GenerationOptions(max_new_tokens=3000)
    idle, busy, drawn = (model.stream([9, 8, seed], long) for seed in (5, 6, 7))
    next(idle)
    busy.start()
    threading.Thread(target=lambda: list(drawn), daemon=True).start()
    reading = model.stream(list(range(4, 260)) * 4, long)
    reading.start()

    async def leave():
        try:
            await asyncio.wait_for(model.stream([4, 5] * 400, long).__anext__(), 0.001)
        except asyncio.TimeoutError:
            pass

    asyncio.run(leave())
    next(busy)
    print("the end", time.time(), flush=True)
"""


def test_a_process_ends_at_once_though_its_answers_do_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT)], capture_output=True, text=True, timeout=120
    )
    ended = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    assert ended - float(done.stdout.split()[-1]) < 30  # 3,000 tokens for each would take longer
