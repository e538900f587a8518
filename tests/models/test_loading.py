from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pacellm_rag.errors import ConfigurationError, ModelError, ModelNotInstalledError
from pacellm_rag.models.attention import IMPLEMENTATION
from pacellm_rag.models.loading import best_dtype, load_model, load_tokenizer
from pacellm_rag.models.model import PaceModel, weights_fingerprint
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]
Folder = Callable[[PaceModel], Path]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_folder_loads_to_the_same_answers(tiny: Tiny, folder_of: Folder, family: str) -> None:
    saved = tiny(family)
    loaded = load_model(folder_of(saved), device="cpu", dtype="float32")
    assert loaded.name == f"tiny-{family}"
    assert loaded.context_window == 4096
    ids = list(range(20, 90))
    texts = ["".join(m.stream(ids, GenerationOptions(max_new_tokens=8))) for m in (saved, loaded)]
    assert texts[0] == texts[1]
    assert weights_fingerprint(loaded.module) == weights_fingerprint(saved.module)


def test_the_tokenizer_alone_needs_no_weights(tiny: Tiny, folder_of: Folder) -> None:
    folder = folder_of(tiny("llama"))
    (folder / "model.safetensors").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.context_window == 4096
    assert tokenizer.count_tokens("four") == 4


def test_without_the_default_model_the_error_names_the_command() -> None:
    with pytest.raises(ModelNotInstalledError, match="pacellm-rag models install"):
        load_model()


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/none", "a/b/c", "x.gguf"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_network(name: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        load_model(name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        load_model(file)


def test_a_hub_model_that_is_not_here_says_what_to_do_offline() -> None:
    with pytest.raises(ModelError, match="needs the network once"):
        load_model("nobody/no-such-model")


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(tmp_path)


def test_encoder_decoders_are_refused_by_name(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"encoder-decoder \(t5\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"context_window": 0}, "context_window is 0"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_settings_that_can_not_work_are_refused(
    tiny: Tiny, folder_of: Folder, arguments: dict[str, object], message: str
) -> None:
    folder = folder_of(tiny("llama"))
    with pytest.raises(ConfigurationError, match=message):
        load_model(folder, **arguments)  # type: ignore[arg-type]


def test_a_smaller_window_is_kept_to(tiny: Tiny, folder_of: Folder) -> None:
    model = load_model(folder_of(tiny("llama")), context_window=64, device="cpu")
    assert model.context_window == 64
    assert model.module.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt_neox"])
def test_a_larger_window_switches_rope_scaling_on_and_says_so(
    tiny: Tiny, folder_of: Folder, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tiny(family))
    with caplog.at_level(logging.WARNING, logger="pacellm_rag"):
        model = load_model(folder, context_window=16384, device="cpu", dtype="float32")
    assert "RoPE scaling (YaRN, factor 4)" in caplog.text
    rope = model.module.config.rope_parameters
    rope = rope.get("full_attention", rope)
    assert (rope["rope_type"], rope["factor"]) == ("yarn", 4.0)
    assert rope["original_max_position_embeddings"] == 4096
    assert model.context_window == 16384
    plain = load_model(folder, device="cpu", dtype="float32")
    if family != "gemma3":  # its few tiny layers are all local and keep their own rotation
        ids = torch.tensor([list(range(20, 60))])
        with torch.inference_mode():
            difference = model.module(ids).logits - plain.module(ids).logits
        assert difference.abs().max() > 1e-4


def test_learned_positions_can_not_be_stretched(tiny: Tiny, folder_of: Folder) -> None:
    with pytest.raises(ModelError, match="can not be stretched"):
        load_model(folder_of(tiny("gpt2")), context_window=8192)


def test_positions_that_are_scaled_already_are_not_scaled_twice(
    tiny: Tiny, folder_of: Folder
) -> None:
    folder = folder_of(
        tiny("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    )
    with pytest.raises(ModelError, match=r"already scales its positions \(linear\)"):
        load_model(folder, context_window=8192)


def test_plain_attention_is_replaced_and_special_attention_kept(
    tiny: Tiny, folder_of: Folder
) -> None:
    chosen = {
        family: load_model(folder_of(tiny(family)), device="cpu").module.config._attn_implementation
        for family in ("llama", "gemma2")
    }
    assert chosen["llama"] == IMPLEMENTATION
    assert chosen["gemma2"] == "eager"  # soft-capped scores
    named = load_model(folder_of(tiny("qwen2")), attention="eager", device="cpu")
    assert named.module.config._attn_implementation == "eager"


def test_bfloat16_is_chosen_only_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_is_arm_bf16_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False, raising=False)
    assert best_dtype(cpu) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert best_dtype(cpu) == torch.bfloat16


def test_fingerprints_tell_weights_and_architectures_apart(tiny: Tiny) -> None:
    prints = [weights_fingerprint(tiny(f).module) for f in ("llama", "mistral", "qwen2")]
    prints.append(weights_fingerprint(tiny("llama", seed=1).module))
    assert len(set(prints)) == 4
    assert weights_fingerprint(tiny("llama").module) == prints[0]
