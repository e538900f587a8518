"""Tasks of the lm-evaluation-harness: the same answers, whatever was asked before, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from pacellm_rag.errors import CancelledError, ConfigurationError
from pacellm_rag.evaluation.harness import HarnessSuite
from pacellm_rag.evaluation.types import Outcome
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.testing import ScriptedModel

BANKS = PaceConfig(layers=(0,), window=16, high=0.2, low=0.1, blend=0.5)
HEAD = """
task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
doc_to_text: "{{{{input}}}}"
metadata:
  version: 1
"""
ANSWERS = """
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOICES = """
doc_to_choice: ["yes", "no", "perhaps"]
doc_to_target: 1
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
LINES = [
    {"input": "The crane is yellow. What is the crane?", "answer": "yellow"},
    {"input": "Short?", "answer": "no"},
    {"input": f"Begin. {'word ' * 300} End?", "answer": "End"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("tasks")
    data = tmp_path / "lines.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    for name, kind, more in (
        ("our_answers", "generate_until", ANSWERS),
        ("our_choices", "multiple_choice", CHOICES),
    ):
        text = HEAD.format(name=name, kind=kind, file=data) + more
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def suite(folder: Path) -> HarnessSuite:
    return HarnessSuite(("our_answers", "our_choices"), include=folder)


def outcomes(suite: HarnessSuite, model: PaceModel, *, backwards: bool = False) -> list[Outcome]:
    groups = list(suite.groups(model.tokenizer))
    found = [
        each for g in (groups[::-1] if backwards else groups) for each in suite.answer(model, g)
    ]
    return sorted(found, key=lambda outcome: outcome.sample)


def same(outcome: Outcome) -> tuple[object, ...]:
    return outcome.sample, outcome.text, outcome.scores, outcome.tokens_left_out


def test_every_document_of_every_task_is_a_group(
    suite: HarnessSuite, tiny: Callable[..., PaceModel]
) -> None:
    model = tiny(max_position_embeddings=4096)
    groups = suite.groups(model.tokenizer)
    assert [g.id for g in groups] == [
        f"{task}/{i}" for task in ("our_answers", "our_choices") for i in range(3)
    ]
    found = outcomes(suite, model)
    assert [o.task for o in found] == ["our_answers"] * 3 + ["our_choices"] * 3
    assert all(0 <= o.scores["score"] <= 1 and o.prompt_tokens for o in found)
    assert {"exact_match", "score"} <= set(found[0].scores)
    assert found[0].facts["wanted"] == "yellow"
    assert not any(o.tokens_left_out for o in found)


def test_banks_change_answers_and_no_request_sees_what_another_left(
    suite: HarnessSuite, tiny: Callable[..., PaceModel]
) -> None:
    plain = outcomes(suite, tiny(max_position_embeddings=4096))
    model = tiny(max_position_embeddings=4096, pace=BANKS)
    first = outcomes(suite, model)
    assert [same(o) for o in first] != [same(o) for o in plain]
    assert [same(o) for o in outcomes(suite, model, backwards=True)] == [same(o) for o in first]


def test_the_likelihoods_are_those_of_one_pass_over_the_text(
    suite: HarnessSuite, tiny: Callable[..., PaceModel]
) -> None:
    import torch

    model = tiny(max_position_embeddings=4096, pace=BANKS)
    found = {o.sample: o for o in outcomes(suite, model)}["our_choices/1"]
    said = [float(word) for word in found.text.split()]
    ids = model.tokenizer.hf
    for choice, likelihood in zip(("yes", "no", "perhaps"), said, strict=True):
        question = ids("Short?")["input_ids"]
        tokens = question + ids(f" {choice}", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model.module(torch.tensor([tokens[:-1]])).logits[0]
        chances = logits.log_softmax(-1)[len(question) - 1 :]
        wanted = chances.gather(1, torch.tensor(tokens[len(question) :])[:, None])
        assert likelihood == pytest.approx(float(wanted.sum()), abs=1e-3)


def test_what_does_not_fit_loses_its_middle_and_is_counted(
    suite: HarnessSuite, tiny: Callable[..., PaceModel]
) -> None:
    from pacellm_rag.evaluation.harness_model import HarnessModel

    model = tiny(max_position_embeddings=128)
    found = {o.sample: o for o in outcomes(suite, model)}
    longest = len(model.tokenizer.hf(LINES[2]["input"])["input_ids"])
    assert found["our_answers/2"].tokens_left_out == longest - (128 - 8)
    assert found["our_choices/2"].tokens_left_out > 0
    assert found["our_answers/0"].tokens_left_out == 0
    ids, mask = HarnessModel(model).tok_batch_encode([LINES[2]["input"]], left_truncate_len=21)
    whole = model.tokenizer.hf(LINES[2]["input"])["input_ids"]
    assert ids.tolist() == [whole[:10] + whole[-11:]]
    assert mask.shape == ids.shape


def test_a_long_prompt_in_windows_gives_the_answer_of_one_pass(
    suite: HarnessSuite, tiny: Callable[..., PaceModel]
) -> None:
    whole = tiny(max_position_embeddings=4096, pace=BANKS, window=4096)
    windows = tiny(max_position_embeddings=4096, pace=BANKS, window=32)
    assert [o.text for o in outcomes(suite, whole) if o.task == "our_answers"] == [
        o.text for o in outcomes(suite, windows) if o.task == "our_answers"
    ]


def test_unknown_tasks_and_other_models_are_refused(
    suite: HarnessSuite, tiny: Callable[..., PaceModel]
) -> None:
    model = tiny(max_position_embeddings=128)
    with pytest.raises(ConfigurationError, match=r"no task 'no_such_task'.*--include"):
        HarnessSuite(("no_such_task",)).groups(model.tokenizer)
    group = suite.groups(model.tokenizer)[0]
    with pytest.raises(ConfigurationError, match="ScriptedModel"):
        next(suite.answer(ScriptedModel(), group))

    class Set:
        def is_set(self) -> bool:
            return True

    with pytest.raises(CancelledError):
        next(suite.answer(model, group, cancel=Set()))


def test_a_task_that_can_not_be_had_says_why(folder: Path, tiny: Callable[..., PaceModel]) -> None:
    text = HEAD.format(name="elsewhere", kind="generate_until", file=folder / "none") + ANSWERS
    (folder / "elsewhere.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="can not be loaded"):
        HarnessSuite(("elsewhere",), include=folder).groups(tiny().tokenizer)


def test_the_settings_say_what_differs_from_the_harness(suite: HarnessSuite) -> None:
    settings = json.loads(json.dumps(suite.settings))
    assert settings["lm_eval"]
    assert any("middle" in each for each in settings["deviations"])
