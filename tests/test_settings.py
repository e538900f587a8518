from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.settings import Settings, load_settings, variable_name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.touch()
    return path


@pytest.fixture(autouse=True)
def no_user_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pacellm_rag.settings.config_file", lambda: tmp_path / "absent.toml")


def test_an_option_goes_before_a_variable_before_the_file_before_the_default(file: Path) -> None:
    variables = {"PACELLM_RAG_SEED": "2"}
    assert load_settings(file=file, environment={}).seed is None
    file.write_text("seed = 1")
    assert load_settings(file=file, environment={}).seed == 1
    assert load_settings(file=file, environment=variables).seed == 2
    assert load_settings({"seed": 3}, file=file, environment=variables).seed == 3
    assert load_settings({"seed": None}, file=file, environment=variables).seed == 2


def test_an_option_can_switch_off_what_the_file_switches_on(file: Path) -> None:
    file.write_text("quiet = true")
    assert load_settings({"quiet": False}, file=file, environment={}).quiet is False


EVERY_SETTING: dict[str, tuple[str, Any]] = {
    "model": ("org/name", "org/name"),
    "device": ("cpu", "cpu"),
    "dtype": ("float32", "float32"),
    "max_new_tokens": ("5", 5),
    "temperature": ("0.5", 0.5),
    "seed": ("0", 0),
    "context_window": ("100", 100),
    "window": ("10", 10),
    "pace": ("off", "off"),
    "kv_cache": ("fp8", "fp8"),
    "adapter": ("none", "none"),
    "store_gb": ("1.5", 1.5),
    "citations": ("no", False),
    "quiet": ("TRUE", True),
}


def test_every_setting_can_be_written_as_variable_and_in_the_file(file: Path) -> None:
    assert set(EVERY_SETTING) == {field.name for field in fields(Settings)}
    expected = Settings(**{name: value for name, (_, value) in EVERY_SETTING.items()})
    variables = {variable_name(name): text for name, (text, _) in EVERY_SETTING.items()}
    assert load_settings(environment=variables) == expected
    lines = [f"{name} = {_toml(value)}" for name, (_, value) in EVERY_SETTING.items()]
    file.write_text("\n".join(lines))
    assert load_settings(file=file, environment={}) == expected


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_an_empty_variable_counts_as_absent() -> None:
    assert load_settings(environment={"PACELLM_RAG_SEED": " "}) == Settings()


def test_a_whole_number_does_for_a_temperature(file: Path) -> None:
    file.write_text("temperature = 1")
    assert load_settings(file=file, environment={}).temperature == 1.0


def test_an_unknown_key_is_refused_with_file_key_and_known_keys(file: Path) -> None:
    file.write_text("modle = 'x'")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file=file, environment={})
    for part in (str(file), "'modle'", "model", "max_new_tokens"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "seed = 'one'",
        "seed = -1",
        "seed = true",
        "max_new_tokens = 0",
        "max_new_tokens = 1.5",
        "temperature = -0.1",
        "temperature = nan",
        "temperature = inf",
        "model = ''",
        "model = 3",
        "dtype = 'int8'",
        "dtype = ['auto']",
        "quiet = 'yes'",
        "quiet = 1",
    ],
)
def test_a_wrong_value_in_the_file_is_refused_with_file_and_key(file: Path, line: str) -> None:
    file.write_text(line)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file=file, environment={})
    assert str(caught.value).startswith(f"{line.split()[0]} in {file} is ")
    assert "it must be" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PACELLM_RAG_SEED", "one"),
        ("PACELLM_RAG_SEED", "-1"),
        ("PACELLM_RAG_TEMPERATURE", "nan"),
        ("PACELLM_RAG_QUIET", "maybe"),
        ("PACELLM_RAG_DTYPE", "int8"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable} is "):
        load_settings(environment={variable: text})


def test_a_wrong_option_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^--max-new-tokens is 0; it must be"):
        load_settings({"max_new_tokens": 0}, environment={})


def test_settings_made_by_hand_are_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="window is 0"):
        Settings(window=0)
    with pytest.raises(ConfigurationError, match="device is None"):
        Settings(device=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2"])
def test_a_file_that_is_no_toml_is_refused_by_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="can not be read") as caught:
        load_settings(file=file, environment={})
    assert str(file) in str(caught.value)


def test_only_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    assert load_settings(environment={}) == Settings()
    with pytest.raises(ConfigurationError, match="no settings file"):
        load_settings(environment={"PACELLM_RAG_CONFIG": "named"})
    with pytest.raises(ConfigurationError, match="no settings file"):
        load_settings(file=tmp_path / "named.toml", environment={})


def test_settings_make_generation_options() -> None:
    settings = Settings(max_new_tokens=7, temperature=0.3, seed=1)
    expected = GenerationOptions(max_new_tokens=7, temperature=0.3, seed=1)
    assert settings.generation_options == expected
