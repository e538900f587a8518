"""Texts that are made: their lengths, depths and seeds, and how answers count."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.evaluation.infinitebench_tasks import fill_prompt, prompt_turns
from pacellm_rag.evaluation.synthetic import SyntheticBench, SyntheticSample, parse_kinds
from pacellm_rag.evaluation.synthetic_texts import make_row
from pacellm_rag.evaluation.types import Group, Suite
from pacellm_rag.models.tokenizer import ChatTokenizer
from pacellm_rag.protocols import PromptTokenizer
from pacellm_rag.testing import ScriptedModel, WordTokenizer, byte_tokenizer

if TYPE_CHECKING:
    from pacellm_rag.models.model import PaceModel

KINDS = ("passkey", "number_string", "kv_retrieval")
BYTES = ChatTokenizer(byte_tokenizer(), name="bytes", context_window=4096)


def bench(
    tasks: tuple[str, ...] = KINDS,
    lengths: tuple[int, ...] = (1000, 2000),
    depths: tuple[float, ...] = (0.0, 50.0, 100.0),
    **options: object,
) -> SyntheticBench:
    return SyntheticBench(tasks, lengths, depths, **options)  # type: ignore[arg-type]


def samples(suite: SyntheticBench, tokenizer: PromptTokenizer) -> list[SyntheticSample]:
    return [sample for group in suite.groups(tokenizer) for sample in group.samples]


def tokens(suite: SyntheticBench, sample: SyntheticSample, tokenizer: PromptTokenizer,
           more: int = 0) -> int:  # fmt: skip
    row = make_row(sample.task, sample.fillers + more, sample.depth, sample.seed)
    prompt = fill_prompt(sample.task, row, suite.prompts)
    turns = prompt_turns(sample.task, prompt, suite.prompts)
    encoded = tokenizer.encode_messages(turns) if turns else tokenizer.encode_text(prompt)
    return len(encoded.token_ids) + suite.max_new_tokens(sample.task)


def test_it_is_a_suite() -> None:
    suite: Suite[SyntheticSample] = bench()
    assert (suite.name, suite.metric) == ("infinitebench-synthetic", "score")
    assert json.loads(json.dumps(suite.settings)) == suite.settings


@pytest.mark.parametrize("prompts", ["gpt4", "yarn_mistral"])
@pytest.mark.parametrize("tokenizer", [WordTokenizer(), BYTES], ids=["words", "bytes"])
def test_prompt_and_answer_fill_the_length_to_less_than_one_filler(
    tokenizer: PromptTokenizer, prompts: str
) -> None:
    suite = bench(lengths=(700, 1000, 3001), samples=2, prompts=prompts)
    made = samples(suite, tokenizer)
    assert len(made) == 3 * 3 * 3 * 2
    for sample in made:
        assert tokens(suite, sample, tokenizer) <= sample.length
        assert tokens(suite, sample, tokenizer, more=1) > sample.length


def test_every_cell_has_its_samples_and_a_limit_takes_some_of_each_task() -> None:
    groups = bench(samples=2).groups(WordTokenizer())
    assert len({group.id for group in groups}) == len(groups) == 3 * 2 * 3 * 2
    assert [len(group.samples) for group in groups] == [1] * len(groups)
    assert [group.id for group in groups[:4]] == [
        "passkey-1000-0-0",
        "number_string-1000-0-0",
        "kv_retrieval-1000-0-0",
        "passkey-2000-0-0",
    ]


def test_equal_seeds_make_equal_texts_and_other_seeds_others() -> None:
    assert samples(bench(seed=3), BYTES) == samples(bench(seed=3), BYTES)
    one, other = samples(bench(seed=3), BYTES)[0], samples(bench(seed=4), BYTES)[0]
    assert make_row("passkey", 5, 0, one.seed) != make_row("passkey", 5, 0, other.seed)


def test_every_sample_of_a_cell_has_its_own_answer() -> None:
    made = samples(bench(samples=5), WordTokenizer())
    labels = {make_row(s.task, s.fillers, s.depth, s.seed).label for s in made}
    assert len(labels) == len(made)


@pytest.mark.parametrize("task", ["passkey", "number_string"])
@pytest.mark.parametrize(("depth", "before"), [(0, 0), (25, 2), (50, 4), (100, 8)])
def test_the_key_stands_at_its_depth(task: str, depth: float, before: int) -> None:
    row = make_row(task, 8, depth, "seed")
    lines = row.context.splitlines()
    assert len(lines) == 9
    assert [number for number, line in enumerate(lines) if str(row.label) in line] == [before]
    assert {line for line in lines if str(row.label) not in line} == {
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    }


def test_sentences_are_the_benchmarks_own() -> None:
    row = make_row("passkey", 0, 0, "seed")
    assert (
        row.context == f"The pass key is {row.label}. Remember it. {row.label} is the pass key.\n"
    )
    assert row.input == "What is the pass key?"
    row = make_row("number_string", 0, 0, "seed")
    assert row.context == (
        f"The sequence of digits is {row.label}. Remember it. {row.label} is the sequence of "
        "digits.\n"
    )
    assert row.input == "What is the sequence of digits?"


def test_passkeys_have_five_digits_and_number_strings_ten_with_five_repeated() -> None:
    for seed in range(200):
        assert re.fullmatch("[0-9]{5}", str(make_row("passkey", 0, 0, str(seed)).label))
        digits = str(make_row("number_string", 0, 0, str(seed)).label)
        assert re.fullmatch("[0-9]{10}", digits)
        assert sum(a == b for a, b in itertools.pairwise(digits)) >= 5


@pytest.mark.parametrize(("depth", "place"), [(0, 0), (50, 5), (100, 10)])
def test_keys_and_values_are_one_json_object(depth: float, place: int) -> None:
    row = make_row("kv_retrieval", 10, depth, "seed")
    head, _, text = row.context.partition("\n")
    pairs = json.loads(text)
    assert head == "JSON data:"
    assert len(pairs) == 11
    assert all(str(uuid.UUID(key)) == key and uuid.UUID(key).version == 4 for key in pairs)
    key = list(pairs)[place]
    assert pairs[key] == row.label
    assert row.input == f'\nKey: "{key}"\nThe value associated with the specified key is: '


def test_more_fillers_add_pairs_and_change_none() -> None:
    few = json.loads(make_row("kv_retrieval", 3, 0, "seed").context.partition("\n")[2])
    many = json.loads(make_row("kv_retrieval", 5, 0, "seed").context.partition("\n")[2])
    assert list(many.items())[: len(few)] == list(few.items())


def test_answers_are_scored_as_the_benchmark_does_and_tell_length_and_depth() -> None:
    suite = bench(lengths=(1000,), depths=(50.0,))
    for group in suite.groups(WordTokenizer()):
        (sample,) = group.samples
        label = str(make_row(sample.task, sample.fillers, sample.depth, sample.seed).label)
        model = ScriptedModel([f'It is "{label}".', "It is 12."])
        (right,) = suite.answer(model, group)
        (wrong,) = suite.answer(model, group)
        assert (right.scores["score"], wrong.scores["score"]) == (1.0, 0.0)
        assert (right.facts["length"], right.facts["depth"]) == (1000, 50.0)
        assert right.facts["accepted"] == label
        assert right.tokens_left_out == 0
        assert right.prompt_tokens == len(model.prompts[0])
        assert right.prompt_tokens + suite.max_new_tokens(sample.task) <= 1000


def test_the_text_is_really_in_the_prompt() -> None:
    tokenizer = WordTokenizer()
    suite = bench(("kv_retrieval",), (1500,), (100.0,))
    (group,) = suite.groups(tokenizer)
    (sample,) = group.samples
    row = make_row(sample.task, sample.fillers, sample.depth, sample.seed)
    turns = prompt_turns(sample.task, fill_prompt(sample.task, row, "gpt4"), "gpt4")
    model = ScriptedModel(["x"])
    list(suite.answer(model, group))
    assert turns is not None
    assert model.prompts[0] == tokenizer.encode_messages(turns).token_ids
    assert sample.fillers > 10


@pytest.mark.parametrize(
    ("prompts", "answer_tokens", "room"),
    [
        ("gpt4", 0, (96, 96, 96)),
        ("gpt4", 100, (100, 100, 100)),
        ("yarn_mistral", 0, (6, 12, 50)),
        ("yarn_mistral", 20, (20, 20, 50)),
    ],
)
def test_chat_answers_have_room_for_a_sentence(
    prompts: str, answer_tokens: int, room: tuple[int, ...]
) -> None:
    suite = bench(prompts=prompts, answer_tokens=answer_tokens)
    assert tuple(suite.max_new_tokens(task) for task in KINDS) == room


def test_a_length_may_be_the_whole_window(tiny: Callable[..., PaceModel]) -> None:
    model = tiny("llama", max_position_embeddings=1024)
    suite = bench(("passkey",), (1024,), (0.0, 100.0))
    groups = suite.groups(model.tokenizer)
    outcomes = [outcome for group in groups for outcome in suite.answer(model, group)]
    assert [outcome.tokens_left_out for outcome in outcomes] == [0, 0]
    assert all(outcome.prompt_tokens > 800 for outcome in outcomes)


def test_lengths_beyond_the_window_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"9,000 tokens is more than scripted .*8,192"):
        bench(lengths=(1000, 9000)).groups(WordTokenizer())


@pytest.mark.parametrize("task", KINDS)
def test_lengths_too_short_for_any_text_are_refused_with_the_least(task: str) -> None:
    with pytest.raises(ConfigurationError, match=r"too short for .*take ([0-9]+)") as caught:
        bench((task,), (40,)).groups(BYTES)
    least = int(re.search(r"take ([0-9]+)", str(caught.value))[1])  # type: ignore[index]
    (sample, *_) = samples(bench((task,), (least,)), BYTES)
    assert sample.fillers == 0


@pytest.mark.parametrize(
    ("tasks", "options", "says"),
    [
        (("code_run",), {}, "Of code_run no text can be made; of passkey, number, kv it can"),
        ((), {}, "Of no task"),
        (KINDS, {"samples": 0}, "0 samples"),
        (KINDS, {"lengths": ()}, "0 lengths"),
        (KINDS, {"depths": ()}, "0 depths"),
        (KINDS, {"prompts": "kimi"}, "no prompt set 'kimi'"),
    ],
)
def test_values_out_of_range_are_refused(
    tasks: tuple[str, ...], options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        bench(tasks, **options)  # type: ignore[arg-type]


def test_there_is_one_way_of_reading() -> None:
    group: Group[SyntheticSample] = bench().groups(WordTokenizer())[0]
    with pytest.raises(ConfigurationError, match="'chunks', only whole"):
        list(bench().answer(ScriptedModel(), group, reading="chunks"))


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("passkey,number,kv", KINDS), ("all", KINDS), ("KV", ("kv_retrieval",))],
)
def test_kinds_go_by_their_names(text: str, tasks: tuple[str, ...]) -> None:
    assert parse_kinds(text) == tasks


def test_tasks_that_need_the_data_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Of en\.mc no text can be made"):
        parse_kinds("kv,en.mc")
