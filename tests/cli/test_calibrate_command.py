from __future__ import annotations

import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pacellm_rag.cli import calibrate as command
from pacellm_rag.context.packing import pack_context
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.evaluation.qa_data import load_rows
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace import calibrate as search
from pacellm_rag.pace.calibrate import Calibration, Trial
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.pace.paired_interval import Change
from pacellm_rag.reader import DocumentReader
from pacellm_rag.testing import byte_tokenizer

Run = Callable[..., Result]
SMALL = ("--contexts", "4", "--pages", "2", "--questions", "10")


@pytest.fixture(autouse=True)
def quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    # would change how transformers logs for the rest of the test run
    monkeypatch.setattr(command, "hush_libraries", lambda: None)


def page(title: str, number: int) -> dict[str, Any]:
    questions: list[Any] = [[f"What is {title} {number} {i}?", [f"v{i}", "x"]] for i in range(6)]
    return {
        "source": "made-up",
        "title": title,
        "context": f"Page {number} on {title}: " + " ".join(f"item {i} is v{i}." for i in range(6)),
        "questions": [*questions, ["Who knows?", []]],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with lzma.open(path, "wt") if path.suffix == ".xz" else path.open("w") as file:
        file.write(text)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [page(title, number) for title in ("Oak", "Elm", "Ash", "Fir") for number in (1, 2, 3)]
    return write(tmp_path / "qa.jsonl", [*rows, {"questions": [["Q?", ["a"]]]}])


@pytest.fixture
def folder(tiny: Callable[..., PaceModel], folder_of: Callable[[PaceModel], Path]) -> Path:
    return folder_of(tiny("llama"))


def test_a_model_is_calibrated_and_the_settings_written(
    run: Run, folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "settings.json"
    result = run("calibrate", str(folder), "--data", str(data), *SMALL, "--layers", "0,2",
                 "--out", str(out), "--seed", "3")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "4 contexts of " in result.stderr
    assert "40 answers" in result.stderr
    assert "trials; each reads half of the contexts" in result.stderr
    values = json.loads(out.read_text())
    assert {tuple(trial["config"]["layers"]) for trial in values["trials"]} == {(0,), (2,), (0, 2)}
    assert all(trial["n"] == 20 for trial in values["trials"])
    assert (values["answers"], values["seed"], values["model"]) == (40, 3, "tiny-llama")
    if values["config"] is not None:
        PaceConfig.from_dict(values["config"])
    lines = result.stdout.splitlines()
    assert lines[1].split()[:4] == ["half", "layers", "blend", "window"]
    assert sum(line.split()[:1] in (["A"], ["B"]) for line in lines) == len(
        values["trials"] + values["validation"]
    )
    assert lines[-1].startswith(f"None of {values['settings']} settings" if values["config"] is None
                                else "Layers")  # fmt: skip


@pytest.mark.parametrize("found", [True, False])
def test_the_verdict_is_one_sentence(
    run: Run, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    config = PaceConfig(layers=(0, 2), window=256)
    trials = tuple(Trial(config, half, Change(20, -0.03, -0.05, -0.01), 0.2) for half in "AB")  # type: ignore[arg-type]
    answer = Calibration(config if found else None, trials, trials, Change(40, -0.03, -0.05, -0.01))
    monkeypatch.setattr(search, "calibrate", lambda *_, **__: answer)
    result = run("calibrate", str(folder), "--data", str(data), *SMALL)
    assert result.stdout.splitlines()[-1] == (
        "Layers 0 and 2, blend 0.2, window 256, thresholds 0.7 and 0.3 lower the loss of answers "
        "that did not choose them by 0.0300 nats (95 % interval 0.0100 to 0.0500, 40 answers, "
        "1 settings tried)."
        if found
        else "None of 1 settings lowers the loss of the answers beyond chance; PaceLLM stays off."
    )


def test_samples_are_the_prompts_of_ask(tiny: Callable[..., PaceModel]) -> None:
    model = tiny("llama")
    documents = [Document("a", "Oak", (Page(1, "1", "It is green."), Page(2, "2", "And tall.")))]
    asked = [("What is it?", "green"), ("What else?", " tall ")]
    sample = command._sample(model.tokenizer, pack_context(documents), asked)
    prefix, _ = DocumentReader(model, documents)._prefix()
    assert sample.prefix == prefix
    prompts = [
        model.tokenizer.encode_messages(command.build_messages(pack_context(documents), question))
        for question, _ in asked
    ]
    assert [sample.prefix + question for question, _ in sample.turns] == [
        prompt.token_ids for prompt in prompts
    ]
    hf = byte_tokenizer()
    written = [hf.decode(list(answer)) for _, answer in sample.turns]
    blank = "" if model.tokenizer.hf.chat_template else " "
    assert written == [f"{blank}green", f"{blank}tall"]


def test_no_page_is_drawn_twice_and_titles_stay_together(data: Path) -> None:
    rows = load_rows(data)
    assert len(rows) == 12
    drawn = command._draw(rows, 4, 3, 100, random.Random(0))
    titles = [[document.title for document in packed.documents] for packed, _ in drawn]
    assert sorted(titles) == [["Ash"], ["Elm"], ["Fir"], ["Oak"]]
    texts = [page.text for packed, _ in drawn for d in packed.documents for page in d.pages]
    assert len(texts) == len(set(texts)) == 12
    assert all(len(asked) == 18 for _, asked in drawn)
    mixed = command._draw(rows, 2, 5, 4, random.Random(0))
    assert [len(packed.segments) for packed, _ in mixed] == [5, 5]
    again = command._draw(rows, 2, 5, 4, random.Random(0))
    assert [packed.text for packed, _ in mixed] == [packed.text for packed, _ in again]


def test_compressed_data_and_sources_are_read(tmp_path: Path) -> None:
    other = {**page("Oak", 1), "source": "else", "title": ""}
    path = write(tmp_path / "qa.jsonl.xz", [page("Oak", 1), other])
    assert len(load_rows(path)) == 2
    assert [row.title for row in load_rows(path, source="else")] == [""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "can not be read"),
        ("", "holds no page with a question"),
        ('{"title": "a"', "line 1 of"),
        ('\n{"title": "a", "context": "b"}', "line 2 of"),
        ("[]", "line 1 of"),
        ('{"context": "b", "questions": [["q", ["a"]]]}', "hold 1 pages"),
    ],
)
def test_data_that_can_not_be_used_are_refused(
    run: Run, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "qa.jsonl"
    if text is not None:
        path.write_text(text)
    result = run("calibrate", "no/such/model", "--data", str(path))
    assert result.exit_code == 2
    assert said in result.stderr
    (tmp_path / "qa.jsonl.xz").write_bytes(b"no archive")
    result = run("calibrate", "no/such/model", "--data", str(tmp_path / "qa.jsonl.xz"))
    assert result.exit_code == 2


def test_wrong_use_is_refused(run: Run, folder: Path, data: Path, tmp_path: Path) -> None:
    def ends(*arguments: str) -> tuple[int, str]:
        result = run("calibrate", *arguments, "--data", str(data))
        return result.exit_code, result.stderr

    model = str(folder)
    code, said = ends(model, *SMALL, "--layers", "0,x")
    assert (code, "no list such as" in said) == (2, True)
    code, said = ends(model, *SMALL, "--layers", "0,7")
    assert (code, "no layer 7" in said) == (2, True)
    code, said = ends(model, *SMALL, "--out", str(tmp_path / "none" / "out.json"))
    assert (code, "There is no folder" in said) == (2, True)
    code, said = ends(model, "--contexts", "2", "--pages", "2", "--questions", "3")
    assert (code, "20 is the least" in said) == (2, True)
    assert ends(str(tmp_path / "none"), *SMALL)[0] == 5
    code, said = ends(*SMALL)
    assert (code, "pacellm-rag models install" in said) == (5, True)
    assert run("calibrate", model).exit_code == 2


def test_contexts_beyond_the_window_are_refused(
    run: Run, tiny: Callable[..., PaceModel], folder_of: Callable[[PaceModel], Path], data: Path
) -> None:
    small = folder_of(tiny("llama", max_position_embeddings=300))
    result = run("calibrate", str(small), "--data", str(data), *SMALL)
    assert result.exit_code == 4
    assert "Lower --pages" in result.stderr
