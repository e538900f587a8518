from __future__ import annotations

import dataclasses

import pytest
from invented_runs import PACE, PLACEBO, PLAIN, needles, outcome, run_of

from pacellm_rag.evaluation.summary import ArmSummary, Interval, Score, Summary
from pacellm_rag.evaluation.verdicts import (
    Verdict,
    caveats,
    points,
    share_of,
    tasks_beyond_chance,
    verdicts,
)


def scored(arm: ArmSummary, mean: float, low: float | None, high: float | None) -> ArmSummary:
    """The arm with another difference to the baseline."""
    score = dataclasses.replace(arm.scores[0], difference=Interval(mean, low, high))
    return dataclasses.replace(arm, scores=(score, *arm.scores[1:]))


def judged(
    pace: tuple[float, float | None, float | None],
    placebo: tuple[float, float | None, float | None] = (0.0, -0.001, 0.001),
) -> tuple[Verdict, Summary]:
    summary, _ = run_of(needles(0.1, lengths=2))
    plain, with_pace, with_placebo = summary.arms
    arms = (plain, scored(with_pace, *pace), scored(with_placebo, *placebo))
    summary = dataclasses.replace(summary, arms=arms)
    return verdicts(summary)[0], summary


@pytest.mark.parametrize(
    ("difference", "finding", "headline"),
    [
        ((0.032, 0.011, 0.053), "better", "better by 3.20 points"),
        ((-0.032, -0.053, -0.011), "worse", "worse by 3.20 points"),
        ((0.032, -0.011, 0.053), "chance", "no difference beyond chance"),
        ((0.032, 0.0, 0.053), "chance", "no difference beyond chance"),
        ((-0.032, -0.06, 0.0), "chance", "no difference beyond chance"),
        ((0.9, None, None), "unknown", "too little for an interval"),
    ],
)
def test_nothing_is_claimed_inside_the_interval(
    difference: tuple[float, float | None, float | None], finding: str, headline: str
) -> None:
    verdict, _ = judged(difference)
    assert (verdict.finding, verdict.headline) == (finding, headline)
    if finding in ("chance", "unknown"):
        assert "better than" not in verdict.text
        assert "worse than" not in verdict.text


def test_a_finding_tells_its_interval() -> None:
    verdict, _ = judged((0.032, 0.011, 0.053))
    assert "(95 % interval of the difference +1.10 to +5.30)" in verdict.text


def test_a_difference_no_larger_than_the_placebos_interval_is_no_finding() -> None:
    for reach in ((0.002, -0.04, 0.04), (-0.033, -0.05, -0.01)):
        verdict, _ = judged((0.032, 0.011, 0.053), reach)
        assert verdict.finding == "chance"
        assert "no finding" in verdict.text
    beyond, _ = judged((0.032, 0.011, 0.053), (0.002, -0.03, 0.031))
    assert beyond.finding == "better"


def test_an_arm_that_is_equal_to_the_bit_had_no_effect() -> None:
    answers = needles(lengths=2)
    answers["pace"] = answers["plain"]
    summary, _ = run_of(answers, logits={"plain": "same", "pace": "same"})
    verdict = verdicts(summary)[0]
    assert (verdict.finding, verdict.headline) == ("no effect", "had no effect")


def test_an_arm_with_equal_texts_only_is_said_to_have_changed_no_answer() -> None:
    answers = needles(lengths=2)
    answers["pace"] = answers["plain"]
    summary, _ = run_of(answers)
    assert verdicts(summary)[0].headline == "no answer changed"


def test_equal_texts_that_score_otherwise_are_judged_by_their_scores() -> None:
    answers = {
        "plain": [outcome(str(i), score=0.0) for i in range(40)],
        "pace": [outcome(str(i), score=1.0) for i in range(40)],
    }
    summary, _ = run_of(answers, arms=(PLAIN, PACE))
    assert summary.arms[1].effect == "same texts"
    assert verdicts(summary)[0].headline == "better by 100.00 points"


def test_the_placebo_is_read_as_the_noise_whatever_its_interval() -> None:
    for placebo in ((0.05, 0.01, 0.09), (0.0, -0.01, 0.01), (0.01, None, None)):
        _, summary = judged((0.0, -0.1, 0.1), placebo)
        verdict = verdicts(summary)[1]
        assert verdict.finding == "noise"
        assert verdict.headline.startswith("the noise: ")


def test_a_placebo_that_is_equal_to_the_bit_is_no_failure() -> None:
    answers = needles(lengths=2)
    answers["placebo"] = answers["plain"]
    summary, _ = run_of(answers, logits={"plain": "same", "placebo": "same"})
    assert verdicts(summary)[1].headline == "the noise: none"


def test_arms_without_a_common_sample_are_not_compared() -> None:
    answers = {"plain": [outcome("a")], "pace": [outcome("b")]}
    summary, _ = run_of(answers, arms=(PLAIN, PACE))
    assert verdicts(summary)[0].headline == "can not be compared"


def test_what_to_know_before_believing_is_told() -> None:
    cut = {
        name: [dataclasses.replace(o, tokens_left_out=9) if i < 3 else o for i, o in enumerate(f)]
        for name, f in needles(lengths=1).items()
        if name != "placebo"
    }
    cut["pace"] = cut["pace"][:11]
    summary, _ = run_of(cut, arms=(PLAIN, PACE), groups_missing=2)
    told = " ".join(caveats(summary))
    assert "not complete: of 24 groups, done are: plain 22, pace 11." in told
    assert "plain 13.6 % (on average 9 tokens), pace 27.3 %" in told
    assert "not answered the same number of samples" in told
    assert "11 groups only" in told
    assert "no placebo" in told


def test_a_sound_run_has_no_caveats() -> None:
    _, summary = judged((0.0, -0.1, 0.1))
    assert caveats(summary) == ()


def test_a_placebo_beyond_chance_is_a_caveat() -> None:
    _, summary = judged((0.0, -0.1, 0.1), (0.05, 0.01, 0.09))
    assert any("placebo differs" in note for note in caveats(summary))


def test_tasks_beyond_chance_are_counted_beside_those_that_chance_makes() -> None:
    _, summary = judged((0.0, -0.1, 0.1))
    arm = summary.arms[1]
    assert tasks_beyond_chance(summary, arm) == ""
    unit = Interval(0.5, 0.4, 0.6)
    by_task = (
        Score("recall", "one", 5, 5, unit, Interval(0.1, 0.05, 0.2)),
        Score("recall", "two", 5, 5, unit, Interval(0.1, -0.05, 0.2)),
    )
    told = tasks_beyond_chance(summary, dataclasses.replace(arm, scores=by_task))
    assert told.startswith("pace: on 1 of 2 tasks the interval leaves out 0 (one +10.00);")


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.125, "12.5 %"),
        (0.0004, "under 0.1 %"),
        (0.9999, "over 99.9 %"),
    ],
)
def test_a_share_never_looks_like_none_or_all_unless_it_is(share: float, words: str) -> None:
    assert share_of(share) == words


def test_points_have_a_sign_unless_they_are_nothing() -> None:
    assert [points(v) for v in (0.0123, -0.5, 0.0, -0.0)] == [
        "+1.23",
        "\u221250.00",
        "0.00",
        "0.00",
    ]


def test_the_placebo_alone_is_judged_too() -> None:
    answers = {k: v for k, v in needles(lengths=2).items() if k != "pace"}
    summary, _ = run_of(answers, arms=(PLAIN, PLACEBO))
    assert [v.finding for v in verdicts(summary)] == ["noise"]
