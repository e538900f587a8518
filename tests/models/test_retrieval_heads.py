from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from pacellm_rag.files import cache_folder
from pacellm_rag.models import head_probe
from pacellm_rag.models import model as model_module
from pacellm_rag.models.generation import Generation
from pacellm_rag.models.head_probe import probe_heads, score_heads
from pacellm_rag.models.kv_cache import Block, new_cache
from pacellm_rag.models.model import PaceModel, weights_fingerprint
from pacellm_rag.models.query_recorder import QueryRecorder
from pacellm_rag.models.retrieval_heads import RetrievalHeads, attention_to_spans
from pacellm_rag.protocols import GenerationOptions

Tiny = Callable[..., PaceModel]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3"])
def test_attention_to_spans_is_what_eager_attention_reports(tiny: Tiny, family: str) -> None:
    model, eager = tiny(family), tiny(family)
    eager.module.set_attn_implementation("eager")
    ids = list(range(20, 100))
    heads = RetrievalHeads(((0, 1), (2, 3), (2, 0)))
    model._heads, model._heads_known = heads, True
    spans = [(0, 10), (10, 11), (30, 75), (75, 75)]
    options = GenerationOptions(max_new_tokens=40, temperature=1.0, seed=3)
    state = model.prefill(ids[:60])
    stream = model.stream(ids, options, attend_to=spans)
    list(stream)
    assert stream.tokens_reused == len(state.token_ids)  # keys in two parts
    attention = stream.span_attention()
    assert attention is not None
    assert len(attention) == stream.completion_tokens
    # the same tokens again through transformers' eager attention
    fed = _tokens(model, ids, options)
    with torch.inference_mode():
        weights = eager.module(torch.tensor([[*ids, *fed]]), output_attentions=True).attentions
    for step, row in enumerate(attention):
        position = len(ids) - 1 + step
        mean = sum(weights[layer][0, head, position] for layer, head in heads.heads) / 3
        wanted = [float(mean[start:end].sum()) for start, end in spans]
        assert row == pytest.approx(wanted, abs=1e-5)


def _tokens(model: PaceModel, ids: list[int], options: GenerationOptions) -> list[int]:
    """The tokens of a generation, all but the last, by listening to what is fed."""
    fed: list[int] = []

    def listen(_: object, __: object, arguments: dict[str, torch.Tensor]) -> None:
        fed.extend(int(i) for i in arguments["input_ids"][0])

    hook = model.module.register_forward_pre_hook(listen, with_kwargs=True)
    stream = model.stream(ids, options)
    list(stream)
    hook.remove()
    return fed[stream.tokens_read :]


def test_nothing_is_recorded_when_nobody_asks(tiny: Tiny) -> None:
    model = tiny("llama")
    stream = model.stream([5, 6, 7, 8], GenerationOptions())
    list(stream)
    assert stream.span_attention() is None
    assert model._heads_known is False


def test_the_first_request_of_all_records_only_its_own_queries(tiny: Tiny) -> None:
    """The engine tries out ways to attend by forward passes of its own; these must not count."""
    model = tiny("llama")
    ids = list(range(20, 60))
    stream = model.stream(ids, GenerationOptions(max_new_tokens=5), attend_to=[(0, 30)])
    list(stream)
    attention = stream.span_attention()
    assert attention is not None
    assert len(attention) == stream.completion_tokens


def test_a_closed_answer_still_tells_where_it_looked(tiny: Tiny) -> None:
    model = tiny("llama")
    ids = list(range(20, 60))
    options = GenerationOptions(max_new_tokens=30)
    stream = model.stream(ids, options, attend_to=[(0, 30)])
    next(stream)
    stream.close()
    attention = stream.span_attention()
    assert attention is not None
    assert len(attention) == stream.completion_tokens >= 1
    whole = model.stream(ids, options, attend_to=[(0, 30)])
    list(whole)
    wanted = whole.span_attention()
    assert wanted is not None
    for found, all_of_it in zip(attention, wanted, strict=False):
        assert found == pytest.approx(all_of_it, abs=1e-5)


def test_answers_in_one_batch_tell_each_where_it_looked_itself(tiny: Tiny) -> None:
    """Some begin later, end earlier or do not ask; all share a prefix."""
    model = tiny("llama")
    documents = list(range(20, 80))
    prompts = [[*documents, *range(100 + 9 * i, 107 + 10 * i)] for i in range(4)]
    spans = [[(0, 30)], [(10, 20), (30, 60)], [], [(5, 64)]]
    options = [GenerationOptions(max_new_tokens=12 + 5 * i) for i in range(4)]

    def make(which: int) -> Generation:
        return model.stream(prompts[which], options[which], attend_to=spans[which])

    state = model.prefill(documents)
    wanted = []
    for which in range(4):
        alone = make(which)
        list(alone)
        wanted.append((alone.span_attention(), alone.completion_tokens))
    count = CountingRows(model)
    together = [make(which) for which in range(4)]
    for stream in together:
        stream.start()
    for stream, (attention, tokens) in zip(together, wanted, strict=True):
        list(stream)
        assert stream.completion_tokens == tokens
        found = stream.span_attention()
        assert (found is None) == (attention is None)
        for one, other in zip(found or (), attention or (), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert max(count.rows) > 1  # they did share forward passes
    del state


class CountingRows:
    """Notes how many sequences were in each forward pass."""

    def __init__(self, model: PaceModel) -> None:
        self.rows: list[int] = []
        model.module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: object, __: object, arguments: dict[str, torch.Tensor]) -> None:
        self.rows.append(arguments["input_ids"].shape[0])


def test_layers_that_forget_can_not_tell(tiny: Tiny) -> None:
    model = tiny("gemma2").module
    cache = new_cache(model.config, (), Block(10))
    heads, recorder = RetrievalHeads(((0, 0),)), QueryRecorder([0])
    recorder.record(0, torch.zeros(1, 4, 1, 8), None)
    assert attention_to_spans(heads, recorder, cache, 3, [(0, 2)]) is None


def test_the_probe_runs_once_and_is_kept(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    original = head_probe.probe_heads

    def counted(*arguments: object, **named: object) -> RetrievalHeads:
        runs.append(1)
        return original(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(head_probe, "probe_heads", counted)
    first = tiny("llama", seed=11)
    found = first.retrieval_heads
    assert found is not None
    assert len(found.heads) == 12
    assert first.retrieval_heads is found
    assert tiny("llama", seed=11).retrieval_heads == found
    assert len(runs) == 1


@pytest.mark.parametrize("content", ["", "{", '{"heads": [["a"]]}', '{"heads": 3}', "[]"])
def test_a_damaged_record_of_the_probe_is_made_anew(tiny: Tiny, content: str) -> None:
    model = tiny("llama", seed=12)
    found = model.retrieval_heads
    print_ = weights_fingerprint(model.module)[:32]
    (record,) = (cache_folder() / "retrieval_heads").glob(f"{print_}*.json")
    record.write_text(content)
    assert tiny("llama", seed=12).retrieval_heads == found
    assert json.loads(record.read_text())["heads"]


def test_models_without_layers_that_keep_all_keys_have_no_retrieval_heads(tiny: Tiny) -> None:
    assert tiny("gemma3").retrieval_heads is None
    assert tiny("gemma2").retrieval_heads is None  # its attention can not be observed


def test_a_window_too_small_for_any_probe_gives_no_heads(tiny: Tiny) -> None:
    assert tiny("llama", max_position_embeddings=128).retrieval_heads is None


def test_a_small_window_gets_a_smaller_probe(tiny: Tiny) -> None:
    model = tiny("llama", max_position_embeddings=2048)
    scores = score_heads(model.module, model.tokenizer, window=256)
    assert scores is not None
    assert scores.shape == (3, 4)
    assert bool((scores >= 0).all())
    assert bool((scores <= 1).all())


def test_the_probe_keeps_the_heads_with_the_best_scores(tiny: Tiny) -> None:
    model = tiny("llama")
    scores = score_heads(model.module, model.tokenizer, window=1024)
    best = probe_heads(model.module, model.tokenizer, window=1024)
    assert scores is not None
    order = scores.flatten().argsort(descending=True).tolist()
    assert list(best.heads) == [divmod(i, 4) for i in order[:12]]


def test_two_threads_probe_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, runs = tiny("llama", seed=13), []

    def slow(*_: object, **__: object) -> RetrievalHeads:
        runs.append(1)
        return RetrievalHeads(((0, 0),))

    monkeypatch.setattr(model_module, "find_retrieval_heads", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.retrieval_heads, range(8)))
    assert len(runs) == 1
    assert set(found) == {RetrievalHeads(((0, 0),))}
