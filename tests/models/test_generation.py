"""One contract, held by every family: reading in windows, answering on branches."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pacellm_rag.errors import CancelledError, ConfigurationError, ContextOverflowError
from pacellm_rag.models.attention import IMPLEMENTATION
from pacellm_rag.models.kv_cache import Block, Part
from pacellm_rag.models.model import PaceModel
from pacellm_rag.protocols import GenerationOptions, ReadProgress, TextGeneration
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
every_family = pytest.mark.parametrize("family", list(FAMILIES))
SHORT = GenerationOptions(max_new_tokens=10)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (tokens,), generator=generator)]


def answer(
    model: PaceModel,
    ids: Sequence[int],
    options: GenerationOptions = SHORT,
) -> str:
    return "".join(model.stream(ids, options))


def reused(model: PaceModel, ids: list[int]) -> int:
    generation = model.stream(ids, SHORT)
    list(generation)
    return generation.tokens_reused


def expected(model: PaceModel, ids: list[int], new: int = 10) -> str:
    """What transformers' own generate() says, in one piece and without our state."""
    output = model.module.generate(
        torch.tensor([ids]), max_new_tokens=new, do_sample=False, pad_token_id=1
    )
    kept = [int(i) for i in output[0, len(ids) :]]
    stop = next((n for n, i in enumerate(kept) if i in model._stop_ids), len(kept))
    return model.tokenizer.decode(kept[:stop])


@every_family
@pytest.mark.parametrize("window", [1, 37, 1024])
def test_the_answer_is_transformers_own_however_reading_is_cut(
    tiny: Tiny, family: str, window: int
) -> None:
    model = tiny(family)
    model.window = window
    ids = prompt(150)
    state = model.prefill(ids[:131])
    assert answer(model, ids) == expected(model, ids)
    assert len(state.token_ids) == 131


@every_family
def test_logits_after_windows_equal_eager_attention_in_one_call(tiny: Tiny, family: str) -> None:
    model, eager = tiny(family), tiny(family)
    eager.module.set_attn_implementation("eager")
    ids = prompt(140)
    with torch.inference_mode():
        wanted = eager.module(torch.tensor([ids])).logits[:, -1]
    torch.testing.assert_close(logits_in_windows(model, ids, 29), wanted, atol=2e-4, rtol=1e-4)


def logits_in_windows(model: PaceModel, ids: list[int], window: int) -> torch.Tensor:
    """Logits after the last token, read as the engine reads, over three parts."""
    decoder = model.engine.runner.decoder
    one, two, three = Block(50), Block(50), Block(60)
    cache = decoder.open((), None, one)
    decoder.read(cache, ids[:29])
    decoder.read(cache, ids[29:50])
    cache = decoder.open((Part(one, 0, 50),), decoder.snapshot(cache), two)
    decoder.read(cache, ids[50:100])
    parts = (Part(one, 0, 50), Part(two, 0, 50))
    cache = decoder.open(parts, decoder.snapshot(cache), three)
    for start in range(100, len(ids) - 11, window):
        decoder.read(cache, ids[start : min(start + window, len(ids) - 11)])
    return decoder.start(cache, ids[-11:], None)


@every_family
def test_asking_a_then_b_then_a_gives_the_same_a(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    documents = prompt(90)
    model.prefill(documents)
    a, b = [*documents, *prompt(12, 1)], [*documents, *prompt(20, 2)]
    first, other, again = (answer(model, ids) for ids in (a, b, a))
    assert first == again == expected(model, a)
    assert other == expected(model, b)


@every_family
def test_answers_drawn_in_turns_are_those_drawn_alone(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    documents = prompt(60)
    model.prefill(documents)
    prompts = [[*documents, *prompt(9, seed)] for seed in range(3)]
    streams = [model.stream(ids, SHORT) for ids in prompts]
    texts = ["", "", ""]
    live = set(range(3))
    while live:
        for index in sorted(live):
            piece = next(streams[index], None)
            if piece is None:
                live.discard(index)
            else:
                texts[index] += piece
    assert texts == [expected(model, ids) for ids in prompts]


def test_answers_in_threads_are_those_drawn_alone(tiny: Tiny) -> None:
    model = tiny("qwen2")
    documents = prompt(60)
    model.prefill(documents)
    prompts = [[*documents, *prompt(9, seed)] for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda ids: answer(model, ids), prompts))
    assert texts == [expected(model, ids) for ids in prompts]


@every_family
def test_usage_tells_what_was_reused(tiny: Tiny, family: str) -> None:
    model = tiny(family)
    documents = prompt(50)
    state = model.prefill(documents)
    generation = model.stream([*documents, 10, 11, 12], SHORT)
    assert (generation.tokens_reused, generation.tokens_read) == (0, 0)  # it has not begun
    list(generation)
    assert state.tokens_reused == 0
    assert (generation.tokens_reused, generation.tokens_read) == (50, 3)


def test_a_state_that_is_the_whole_prompt_leaves_one_token_to_run(tiny: Tiny) -> None:
    model = tiny("llama")
    ids = prompt(50)
    state = model.prefill(ids)
    assert answer(model, ids) == expected(model, ids)
    assert reused(model, ids) == 49
    del state


def test_a_prompt_that_leaves_the_state_early_reuses_the_common_part(tiny: Tiny) -> None:
    model = tiny("llama")
    documents = prompt(50)
    other = [*documents[:30], *prompt(25, 5)]
    model.prefill(documents)
    assert reused(model, other) == 30
    assert answer(model, other) == expected(model, other)
    assert answer(model, documents) == expected(model, documents)


def test_sliding_windows_are_read_again_where_they_can_not_be_rewound(tiny: Tiny) -> None:
    model = tiny("mistral")
    documents = prompt(100)
    other = [*documents[:30], *prompt(25, 5)]
    model.prefill(documents)
    assert reused(model, other) == 0
    assert answer(model, other) == expected(model, other)


class CountingModel:
    """Counts the forward passes of a module."""

    def __init__(self, model: PaceModel) -> None:
        self.forwards = 0
        model.module.base_model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1


def settled(model: PaceModel) -> None:
    """Waits until nobody is in the engine any more."""
    deadline = time.monotonic() + 10
    while not model.engine.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model.engine.idle


def test_closing_stops_the_work_and_gives_the_memory_back(tiny: Tiny) -> None:
    model = tiny("llama")
    count = CountingModel(model)
    ids = prompt(40)
    state = model.prefill(ids[:30])
    stream = model.stream(ids, GenerationOptions(max_new_tokens=500))
    next(stream)
    stream.close()
    stream.close()
    settled(model)
    assert count.forwards < 20
    assert stream.finish_reason == "closed"
    assert next(stream, None) is None
    assert {node.pins for node in model.engine.runner.cache.nodes()} == {1}  # the state's own
    del state
    gc.collect()
    assert {node.pins for node in model.engine.runner.cache.nodes()} == {0}


def test_a_stream_that_is_only_dropped_is_closed(tiny: Tiny) -> None:
    model = tiny("llama")
    ids = prompt(40)
    stream = model.stream(ids, GenerationOptions(max_new_tokens=500))
    next(stream)
    del stream
    gc.collect()
    settled(model)


def test_an_answer_is_not_made_far_ahead_of_its_caller(tiny: Tiny) -> None:
    model = tiny("llama")
    count = CountingModel(model)
    stream = model.stream(prompt(40), GenerationOptions(max_new_tokens=500))
    assert count.forwards == 0
    next(stream)
    time.sleep(0.3)
    assert count.forwards < 20


def test_an_error_in_the_model_reaches_the_caller_and_leaves_no_trace(tiny: Tiny) -> None:
    model = tiny("llama")
    ids = prompt(40)
    state = model.prefill(ids[:30])
    stream = model.stream(ids, GenerationOptions(max_new_tokens=50))
    next(stream)

    def fail(*_: object) -> None:
        raise RuntimeError("broken layer")

    hook = model.module.base_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken layer"):
        list(stream)
    assert next(stream, None) is None
    hook.remove()
    assert answer(model, ids) == expected(model, ids)
    assert len(state.token_ids) == 30


def test_reading_stops_at_the_next_window_when_cancelled(tiny: Tiny) -> None:
    model = tiny("llama")
    model.window = 10
    count = CountingModel(model)
    cancel = threading.Event()

    def after_three(progress: ReadProgress) -> None:
        if progress.tokens_done >= 30:
            cancel.set()

    model.engine.runner.decoder.attends  # noqa: B018 - found out by forward passes of its own
    before = count.forwards
    with pytest.raises(CancelledError, match="token 30 of 100"):
        model.prefill(prompt(100), progress=after_three, cancel=cancel)
    assert count.forwards - before == 3
    assert model.prefill(prompt(100)).tokens_reused == 30  # what was read stays known


def test_answering_stops_at_the_next_token_when_cancelled(tiny: Tiny) -> None:
    model = tiny("llama")
    cancel = threading.Event()
    ids = prompt(40)
    stream = model.stream(ids, GenerationOptions(max_new_tokens=500), cancel=cancel)
    next(stream)
    cancel.set()
    with pytest.raises(CancelledError, match="answering"):
        list(stream)
    assert stream.completion_tokens < 20


def test_progress_counts_every_window_and_ends_with_all(tiny: Tiny) -> None:
    model = tiny("llama")
    model.window = 40
    seen: list[ReadProgress] = []
    model.prefill(prompt(100), progress=seen.append)
    assert [p.tokens_done for p in seen] == [0, 40, 80, 100]
    assert {p.tokens_total for p in seen} == {100}
    assert seen[0].seconds_left is None
    assert seen[-1].seconds_left == 0
    assert all(p.tokens_per_second > 0 for p in seen[1:])


def test_no_logits_are_computed_while_reading(tiny: Tiny) -> None:
    model = tiny("llama")

    def fail(*_: object) -> None:
        raise AssertionError("the output head ran")

    model.engine.runner.decoder.attends  # noqa: B018 - found out with logits
    hook = model.module.lm_head.register_forward_pre_hook(fail)
    state = model.prefill(prompt(50))
    hook.remove()
    shapes: list[int] = []
    model.module.lm_head.register_forward_hook(lambda *a: shapes.append(a[2].shape[1]))
    answer(model, [*state.token_ids, *prompt(20, 3)])
    shapes.clear()
    answer(model, [*state.token_ids, *prompt(20, 4)])
    assert set(shapes) == {1}


def test_a_seed_repeats_an_answer_and_another_seed_gives_another(tiny: Tiny) -> None:
    model = tiny("llama")
    ids = prompt(40)
    model.prefill(ids[:30])

    def sampled(seed: int) -> str:
        options = GenerationOptions(max_new_tokens=20, temperature=1.5, seed=seed)
        return answer(model, ids, options)

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}])
def test_sampling_among_one_token_is_greedy(tiny: Tiny, options: dict[str, float]) -> None:
    model = tiny("llama")
    ids = prompt(40)
    model.prefill(ids[:30])
    drawn = GenerationOptions(max_new_tokens=10, temperature=0.7, **options)  # type: ignore[arg-type]
    assert answer(model, ids, drawn) == expected(model, ids)


def test_stop_strings_end_the_answer_and_are_not_in_it(tiny: Tiny) -> None:
    model = tiny("llama")
    ids = prompt(40)
    model.prefill(ids[:30])
    whole = answer(model, ids, GenerationOptions(max_new_tokens=20))
    stop = whole[6:9]
    stream = model.stream(ids, GenerationOptions(max_new_tokens=20, stop=(stop,)))
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.finish_reason == "stop"
    assert stream.completion_tokens < 20


def test_max_new_tokens_is_exact_and_says_so(tiny: Tiny) -> None:
    model = tiny("gpt2")
    ids = prompt(40)
    stream = model.stream(ids, GenerationOptions(max_new_tokens=1))
    list(stream)
    assert (stream.completion_tokens, stream.finish_reason) == (1, "length")


def test_what_does_not_fit_is_refused_before_any_work(tiny: Tiny) -> None:
    model = tiny("llama", max_position_embeddings=100)
    count = CountingModel(model)
    with pytest.raises(ContextOverflowError, match="takes 100") as caught:
        model.prefill(prompt(101))
    assert (caught.value.needed_tokens, caught.value.available_tokens) == (101, 100)
    done = count.forwards
    with pytest.raises(ContextOverflowError, match="together 105"):
        model.stream(prompt(95), SHORT)
    assert count.forwards == done == 0
    assert answer(model, prompt(95), GenerationOptions(max_new_tokens=5))


def test_prompts_without_a_token_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="at least one token"):
        tiny("llama").stream([], SHORT)
    with pytest.raises(ConfigurationError, match="at least one token"):
        tiny("llama").prefill([])


def test_a_generation_is_what_the_protocol_asks_for(tiny: Tiny) -> None:
    model = tiny("llama")
    assert isinstance(model.stream([5, 6, 7], SHORT), TextGeneration)


def test_bfloat16_reads_close_to_float32(tiny: Tiny) -> None:
    """Windows may round differently: bf16 has 8 bits, so 2 % of the logits' spread is rounding."""
    model = tiny("llama", dtype="bfloat16")
    ids = prompt(140)
    pieces = logits_in_windows(model, ids, 33)
    with torch.inference_mode():
        whole = tiny("llama", dtype="bfloat16").module(torch.tensor([ids])).logits[:, -1]
    assert (pieces - whole).float().abs().max() < 0.06 * whole.float().std()


def test_the_reader_needs_no_attention_of_ours(tiny: Tiny) -> None:
    model = tiny("llama", attention="sdpa")
    assert model.module.config._attn_implementation != IMPLEMENTATION
    ids = prompt(120)
    model.window = 25
    model.prefill(ids[:100])
    assert answer(model, ids) == expected(model, ids)
    assert not model.engine.runner.decoder.attends
    assert model.retrieval_heads is None
