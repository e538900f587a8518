from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_suite import ACTING

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.evaluation.arms import (
    Arm,
    pace_settings,
    parse_arms,
    parse_setting,
    placebo_experts,
)
from pacellm_rag.models.default_model import CALIBRATED_PACE
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig

Tiny = Callable[..., PaceModel]
WIDE = PaceConfig(window=2048)
IDS = torch.arange(40)[None] % 250 + 4


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_list_of_names_becomes_arms_in_their_order() -> None:
    arms = parse_arms(" plain, pace,placebo,wide ", {"wide": WIDE}, pace=ACTING)
    assert arms == (
        Arm("plain", None),
        Arm("pace", ACTING),
        Arm("placebo", None, placebo=True),
        Arm("wide", WIDE),
    )
    assert parse_arms("pace,plain")[0] == Arm("pace", PaceConfig())


def test_a_named_setting_that_the_list_leaves_out_comes_last() -> None:
    arms = parse_arms("plain,b", {"a": WIDE, "b": ACTING})
    assert [arm.name for arm in arms] == ["plain", "b", "a"]
    arms = parse_arms("plain,a@half", {"a": WIDE}, readings=("whole", "half"))
    assert [arm.name for arm in arms] == ["plain", "a@half"]


def test_an_arm_may_read_in_another_way() -> None:
    arms = parse_arms("plain,plain@half,pace@half", readings=("whole", "half"))
    assert [(arm.name, arm.reading) for arm in arms] == [
        ("plain", "whole"),
        ("plain@half", "half"),
        ("pace@half", "half"),
    ]
    assert arms[1].pace is None
    assert arms[2].pace == PaceConfig()


@pytest.mark.parametrize(
    ("names", "settings", "match"),
    [
        ("plain,fast", {}, "no arm 'fast'; known are plain, pace, placebo"),
        ("plain,fast", {"wide": WIDE}, "placebo, wide"),
        ("plain,pace,plain", {}, "plain is there twice"),
        ("pace,placebo", {}, "there must be plain"),
        (" , ", {}, "no arm to run"),
        ("plain@half", {}, "asks for the reading 'half'; this suite knows whole"),
        ("plain@", {}, "asks for the reading ''"),
        ("plain", {"pace": WIDE}, "can not be named 'pace'"),
        ("plain", {"a@b": WIDE}, "can not be named 'a@b'"),
        ("plain", {"": WIDE}, "can not be named ''"),
        ("plain", {"a,b": WIDE}, "can not be named"),
    ],
)
def test_arms_that_can_not_be_run_are_refused_by_name(
    names: str, settings: dict[str, PaceConfig], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        parse_arms(names, settings)


def test_a_single_arm_needs_no_plain_one() -> None:
    assert parse_arms("placebo") == (Arm("placebo", None, placebo=True),)


def test_a_setting_is_json_or_a_file_of_it_or_a_calibration(tmp_path: Path) -> None:
    assert parse_setting('wide={"window": 2048}') == ("wide", WIDE)
    plain = tmp_path / "wide=.json"
    plain.write_text('{"window": 2048}')
    assert parse_setting(f"wide = {plain}") == ("wide", WIDE)
    calibrated = tmp_path / "calibrated.json"
    calibrated.write_text(json.dumps({"config": WIDE.to_dict(), "evidence": None, "trials": []}))
    assert parse_setting(f"c={calibrated}") == ("c", WIDE)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("wide", "names no arm"),
        ('={"window": 1}', "names no arm"),
        ("wide=", "names no arm"),
        ("wide=/no/such.json", "file /no/such.json of the arm wide can not be read"),
        ("wide={", "settings of the arm wide is no JSON"),
        ('wide={"windows": 2}', "Unknown PaceLLM setting 'windows'"),
        ('wide={"window": 0}', "window is 0"),
        ('wide={"window": "two"}', "wrong type"),
        ('wide={"config": null}', "found no setting better than plain"),
        ('wide={"config": 3}', "no object with settings"),
    ],
)
def test_settings_that_can_not_work_are_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        parse_setting(text)


def test_a_file_with_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(ConfigurationError, match="no object with settings"):
        parse_setting(f"x={path}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="can not be read"):
        parse_setting(f"x={path}")


def test_the_arm_pace_takes_what_load_model_would(tiny: Tiny) -> None:
    module = tiny("llama").module
    settings, source = pace_settings(module, is_default=False)
    assert settings == PaceConfig()
    assert "not calibrated" in source
    settings, source = pace_settings(module, is_default=True)
    assert settings == PaceConfig.from_dict(CALIBRATED_PACE)
    assert "calibrated for the default model" in source
    module.config.pacellm = ACTING.to_dict()
    for is_default in (True, False):
        settings, source = pace_settings(module, is_default=is_default)
        assert settings == ACTING
        assert "checkpoint" in source


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_an_arm_puts_on_it_takes_off_bit_for_bit(tiny: Tiny, family: str, fails: bool) -> None:
    loaded = tiny(family)
    before = bits(loaded.module)
    with torch.no_grad():
        plain = loaded.module(IDS).logits
    for arm in (Arm("pace", ACTING), Arm("placebo", None, placebo=True), Arm("plain", None)):
        try:
            with arm.opened(loaded) as model:
                with torch.no_grad():
                    within = model.module(IDS).logits
                assert equal(bits(model.module), before) == (not arm.placebo)
                assert (model.pace is not None) == (arm.pace is not None)
                if fails:
                    raise KeyError("of a suite")
        except KeyError:
            assert fails
        assert equal(bits(loaded.module), before)
        with torch.no_grad():
            assert torch.equal(loaded.module(IDS).logits, plain)
        if arm.pace is not None:
            assert not torch.allclose(within, plain, atol=1e-2)
        else:
            assert torch.allclose(within, plain, atol=1e-3)
        assert not hasattr(loaded.module.config, "pacellm")


def test_a_model_of_an_arm_has_read_nothing_and_is_stopped_afterwards(tiny: Tiny) -> None:
    loaded = tiny("llama")
    ids = tuple(range(10, 200))
    for _ in range(2):
        with Arm("plain", None).opened(loaded) as model:
            assert model.prefill(ids).tokens_reused == 0
            assert model.prefill(ids).tokens_reused > 0
        assert model.engine._stopping


def test_an_arm_that_can_not_be_attached_leaves_the_model_as_it_was(tiny: Tiny) -> None:
    loaded = tiny("llama")
    before = bits(loaded.module)
    both = Arm("both", PaceConfig(layers=(9,)), placebo=True)
    with pytest.raises(ConfigurationError, match="no layer 9"), both.opened(loaded):
        pass
    assert equal(bits(loaded.module), before)


def test_the_placebo_clusters_as_many_layers_as_take_seconds(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny("llama", num_hidden_layers=8).module
    assert [each.layer for each in placebo_experts(module).layers] == list(range(8))
    weights = module.model.layers[0].mlp.gate_proj.weight.numel()
    for allowed, layers in ((2, [2, 6]), (1, [4]), (0.1, [4]), (3, [1, 4, 6])):
        monkeypatch.setattr("pacellm_rag.evaluation.arms._CLUSTERED", int(weights * allowed))
        assert [each.layer for each in placebo_experts(module).layers] == layers


def test_a_placebo_on_weights_that_can_not_move_says_so(tiny: Tiny) -> None:
    loaded = tiny("llama")
    for layer in loaded.module.model.layers:
        layer.mlp.gate_proj.to(torch.float8_e4m3fn)
    with pytest.raises(ModelError), Arm("placebo", None, placebo=True).opened(loaded):
        pass
