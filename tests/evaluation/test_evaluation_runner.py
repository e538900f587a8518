from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_suite import ACTING, ARMS, SmallSuite

from pacellm_rag.errors import CancelledError, ConfigurationError, ModelError
from pacellm_rag.evaluation.arms import Arm
from pacellm_rag.evaluation.groups import take_groups
from pacellm_rag.evaluation.records import RunRecord, UnitRecord, read_run
from pacellm_rag.evaluation.runner import RunProgress, identity_of, run
from pacellm_rag.evaluation.summarising import summarise
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig

Tiny = Callable[..., PaceModel]


def go(suite: SmallSuite, loaded: PaceModel, folder: Path, arms: Any = ARMS, **more: Any) -> None:
    limit = more.pop("limit", None)
    run(suite, take_groups(suite, loaded.tokenizer, limit), arms, loaded, folder, **more)


def untimed(record: RunRecord) -> dict[tuple[str, str], dict[str, Any]]:
    """What must not depend on when and in which order units ran."""
    found = {}
    for unit in record.units:
        samples = [{k: v for k, v in vars(o).items() if k != "seconds"} for o in unit.outcomes]
        found[unit.arm, unit.group] = {
            "samples": samples,
            "logits": unit.logits,
            "banks": unit.banks,
            "tokens": unit.tokens,
        }
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(child(folder, 4, 0), check=True, timeout=120)
    return folder


def child(folder: Path, groups: int, pause: float) -> list[str]:
    script = Path(__file__).with_name("small_suite.py")
    return [sys.executable, str(script), str(folder), str(groups), str(pause)]


def test_every_group_is_answered_under_every_arm_and_the_first_turns(
    tiny: Tiny, tmp_path: Path
) -> None:
    suite = SmallSuite()
    go(suite, tiny("llama"), tmp_path)
    record = read_run(tmp_path)
    order = [(unit.group, unit.arm) for unit in record.units]
    assert order[:6] == [
        ("t0", "plain"), ("t0", "pace"), ("t0", "placebo"),
        ("t1", "pace"), ("t1", "placebo"), ("t1", "plain"),
    ]  # fmt: skip
    assert len(order) == 12
    assert all(len(unit.outcomes) == 2 for unit in record.units)
    second = record.units[0].outcomes[1]
    assert second.tokens_reused > 0, "the second question goes on from the text"


def test_the_same_run_again_gives_the_same_lines_but_for_the_times(
    tiny: Tiny, tmp_path: Path, whole: Path
) -> None:
    go(SmallSuite(), tiny("llama"), tmp_path)
    assert untimed(read_run(tmp_path)) == untimed(read_run(whole))
    timed = {"seconds", "tokens_per_second", "peak_bytes", "added_bytes"}

    def lines(folder: Path) -> list[dict[str, Any]]:
        read = (folder / "samples.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in read]

    assert lines(tmp_path) == lines(whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_what_an_uninterrupted_one_gives(
    tmp_path: Path, whole: Path
) -> None:
    samples = tmp_path / "samples.jsonl"
    process = subprocess.Popen(child(tmp_path, 4, 0.15))
    try:
        deadline = time.monotonic() + 100
        while not samples.exists() or samples.read_bytes().count(b"\n") < 8:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with samples.open("ab") as file:
        file.write(b'{"arm": "pace", "gro')  # torn, if the kill did not tear one
    done = len(read_run(tmp_path).units)
    assert 2 <= done < 12
    kept = samples.read_bytes()[:200]
    subprocess.run(child(tmp_path, 4, 0), check=True, timeout=120)
    assert samples.read_bytes().startswith(kept)
    assert untimed(read_run(tmp_path)) == untimed(read_run(whole))
    assert len(read_run(tmp_path).units) == 12


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), torch.OutOfMemoryError("full"), CancelledError("stop")]
)
def test_what_ends_a_run_keeps_what_was_done_and_puts_the_model_back(
    tiny: Tiny, tmp_path: Path, whole: Path, error: BaseException
) -> None:
    loaded = tiny("llama")
    before = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    failing = SmallSuite(fails_at=("t1-last", error))
    with pytest.raises(type(error)):
        go(failing, loaded, tmp_path)
    assert len(read_run(tmp_path).units) == 3
    after = loaded.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not hasattr(loaded.module, "_pacellm_handle")
    suite = SmallSuite()
    go(suite, loaded, tmp_path)
    assert "t0-first" not in suite.asked
    assert untimed(read_run(tmp_path)) == untimed(read_run(whole))


def test_a_finished_run_asks_nothing_more(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama")
    go(SmallSuite(texts=1), loaded, tmp_path, notes={"n": 1})
    suite = SmallSuite(texts=1)
    go(suite, loaded, tmp_path, notes={"n": 2})
    assert suite.asked == []
    assert read_run(tmp_path).notes == {"n": 1}
    go(suite, loaded, tmp_path, fresh=True, notes={"n": 3})
    assert len(suite.asked) == 6
    assert read_run(tmp_path).notes == {"n": 3}


def test_a_limit_takes_whole_groups_and_a_run_without_it_goes_on(
    tiny: Tiny, tmp_path: Path, whole: Path
) -> None:
    loaded = tiny("llama")
    go(SmallSuite(), loaded, tmp_path, limit=3)
    assert {unit.group for unit in read_run(tmp_path).units} == {"t0", "t1"}
    assert summarise(read_run(tmp_path)).complete
    suite = SmallSuite()
    go(suite, loaded, tmp_path)
    assert len(suite.asked) == 2 * 2 * 3
    assert untimed(read_run(tmp_path)) == untimed(read_run(whole))
    go(suite, loaded, tmp_path, limit=1)
    assert {unit.group for unit in read_run(tmp_path).units} == {"t0"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"suite": SmallSuite(tokens=7)}, "settings.tokens was 6 and is now 7"),
        ({"seed": 1}, "seed was 0"),
        ({"arms": ARMS[:2]}, "arms.placebo"),
        ({"model": {"seed": 1}}, "weights was"),
        ({"model": {"window": 512}}, "window was 1024 and is now 512"),
        ({"model": {"dtype": "bfloat16"}}, "dtype was float32 and is now bfloat16"),
    ],
)
def test_what_results_depend_on_must_be_the_same(
    tiny: Tiny, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    go(SmallSuite(texts=1), tiny("llama"), tmp_path, ARMS, limit=1)
    suite = change.pop("suite", SmallSuite(texts=1))
    loaded = tiny("llama", **change.pop("model", {}))
    with pytest.raises(ConfigurationError, match=match):
        go(suite, loaded, tmp_path, **change)


def test_the_identity_does_not_depend_on_what_is_attached_later(tiny: Tiny) -> None:
    loaded = tiny("llama")
    before = identity_of(SmallSuite(), ARMS, loaded, 0)
    with ARMS[1].opened(loaded):
        assert identity_of(SmallSuite(), ARMS, loaded, 0) == before
    assert json.loads(json.dumps(before)) == before


def unit_of(record: RunRecord, arm: str, group: str = "t0") -> UnitRecord:
    return next(unit for unit in record.of(arm) if unit.group == group)


def test_banks_that_never_act_are_found_out_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    never = Arm("never", PaceConfig(layers=(0,), window=32, low=1, high=1))
    nothing = Arm("nothing", PaceConfig(layers=(0,), blend=0))
    late = Arm("late", PaceConfig(layers=(0, 2), window=4000, slots=8, blend=0.9, low=-1))
    arms = (ARMS[0], never, nothing, ARMS[1], late, ARMS[2])
    go(SmallSuite(texts=2), tiny("llama"), tmp_path, arms)
    record = read_run(tmp_path)
    summary = summarise(record)
    effects = {arm.name: arm.effect for arm in summary.arms}
    assert effects["never"] == effects["nothing"] == "none"
    assert effects["pace"] == "changed"
    assert effects["late"] in ("changed", "same texts")
    assert {arm: unit_of(record, arm).acted for arm in effects} == {
        "plain": None, "never": False, "nothing": False, "pace": True,
        "late": True,  # while it answers
        "placebo": None,
    }  # fmt: skip
    assert summary.without_effect == ("never", "nothing")
    assert unit_of(record, "pace").banks["2"]["slots_filled"] == 8
    assert unit_of(record, "never").banks["0"]["high"] == 0
    assert unit_of(record, "plain").banks == {}
    banks = summary.arms[3].banks
    assert [bank.layer for bank in banks] == [0, 2]
    assert banks[0].high + banks[0].middle > 0
    placebo = unit_of(record, "placebo")
    assert placebo.logits != unit_of(record, "plain").logits


def test_no_warning_for_every_unit_whose_banks_did_nothing(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never = Arm("never", PaceConfig(layers=(0,), window=32, low=1, high=1))
    loaded = tiny("llama")
    go(SmallSuite(texts=1), loaded, tmp_path, (never,))
    assert "changed no token" not in caplog.text
    with never.opened(loaded) as model:
        model.prefill(range(10, 90))
        assert model.pace is not None
        model.pace.stats()
    assert "changed no token" in caplog.text, "others are warned as before"


def test_arms_may_read_in_another_way(tiny: Tiny, tmp_path: Path) -> None:
    half = Arm("plain@half", None, reading="half")
    go(SmallSuite(texts=1), tiny("llama"), tmp_path, (ARMS[0], half))
    record = read_run(tmp_path)
    whole, part = (unit_of(record, arm).outcomes[0] for arm in ("plain", "plain@half"))
    assert part.prompt_tokens < whole.prompt_tokens
    with pytest.raises(ConfigurationError, match="reads as 'third'; small knows whole, half"):
        go(SmallSuite(), tiny("llama"), tmp_path, (Arm("x", None, reading="third"),))


def test_progress_counts_samples_of_all_arms_and_of_runs_before(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama")
    seen: list[RunProgress] = []
    go(SmallSuite(), loaded, tmp_path, limit=2, progress=seen.append)
    assert (seen[0].done, seen[0].total, seen[0].seconds_left) == (0, 6, None)
    assert (seen[-1].done, seen[-1].total, seen[-1].seconds_left) == (6, 6, 0.0)
    assert sorted({each.done for each in seen}) == list(range(7))
    seen.clear()
    go(SmallSuite(), loaded, tmp_path, progress=seen.append)
    assert (seen[0].done, seen[0].total) == (6, 24)
    middle = seen[len(seen) // 2]
    assert middle.seconds_left is not None
    assert middle.seconds_left > 0


def test_units_tell_what_they_took(tiny: Tiny, tmp_path: Path) -> None:
    go(SmallSuite(texts=1, pause=0.1), tiny("llama"), tmp_path, ARMS[:1])
    unit = read_run(tmp_path).units[0]
    assert unit.seconds >= 0.2
    first, second = unit.outcomes
    read = first.prompt_tokens + second.prompt_tokens - second.tokens_reused
    assert unit.tokens == read + first.completion_tokens + second.completion_tokens
    assert unit.tokens_per_second == pytest.approx(unit.tokens / unit.seconds)
    assert unit.peak_bytes > 10_000_000
    assert 0 <= unit.added_bytes < unit.peak_bytes


def test_cancelling_reaches_the_suite(tiny: Tiny, tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        go(SmallSuite(), tiny("llama"), tmp_path, cancel=cancel)
    assert read_run(tmp_path).units == ()


def test_a_model_with_banks_of_its_own_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="load it plain"):
        go(SmallSuite(), tiny("llama", pace=ACTING), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_placebo_that_can_not_be_is_refused_before_any_sample(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama")
    for layer in loaded.module.model.layers:
        layer.mlp.down_proj.to(torch.float8_e4m3fn)
    suite = SmallSuite()
    with pytest.raises(ModelError, match="down_proj"):
        go(suite, loaded, tmp_path)
    assert suite.asked == []


def test_suites_that_contradict_themselves_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    loaded = tiny("llama")

    class Twice(SmallSuite):
        def groups(self, tokenizer: Any) -> Any:
            return [self._group(0), self._group(0)]

    class TwiceWithin(SmallSuite):
        def answer(self, model: Any, group: Any, **more: Any) -> Any:
            yield from super().answer(model, group, **more)
            yield from super().answer(model, group, **more)

    with pytest.raises(ConfigurationError, match="two groups 't0'"):
        go(Twice(), loaded, tmp_path)
    with pytest.raises(ConfigurationError, match="'t0-first' twice"):
        go(TwiceWithin(), loaded, tmp_path)
    with pytest.raises(ConfigurationError, match="no samples"):
        go(SmallSuite(texts=0), loaded, tmp_path)
    assert read_run(tmp_path).units == ()
