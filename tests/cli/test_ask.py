from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.settings import Settings
from pacellm_rag.testing import ScriptedModel

Run = Callable[..., Result]
UseModel = Callable[[ScriptedModel], list[Settings]]


def test_an_answer_goes_to_standard_output_with_its_sources(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["It closes in March [D1 p2]."]))
    result = run("ask", report, "-q", "When does the plant close?")
    assert result.exit_code == 0
    answer, source = result.stdout.splitlines()
    assert answer == "It closes in March."
    assert source == '[1] report, p. 2: "The plant closes in March."'


def test_receipt_and_notes_go_to_standard_error_unless_quiet(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["Yes."]))
    loud = run("ask", report, "-q", "Really?")
    assert "Read 1 document, 2 pages" in loud.stderr
    assert "default model" in loud.stderr
    assert "\x1b" not in loud.stderr
    assert run("ask", report, "-q", "Really?", "--quiet").stderr == ""


def test_a_model_that_was_named_is_not_called_the_default(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["Yes."]))
    assert "default model" not in run("ask", report, "-q", "?!", "--model", ".").stderr


def test_the_documents_are_read_once_for_all_questions(
    run: Run, use_model: UseModel, report: str
) -> None:
    model = ScriptedModel(["One.", "Two."])
    use_model(model)
    result = run("ask", report, "-q", "First?", "-q", "Second?", "--no-citations")
    assert result.stdout == "Question: First?\nOne.\n\nQuestion: Second?\nTwo.\n"
    assert len(model.prefills) == 1


def test_questions_come_from_standard_input_one_a_line(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["One.", "Two."]))
    result = run("ask", report, "--no-citations", stdin="First?\n\n  Second?  \n")
    assert result.stdout == "Question: First?\nOne.\n\nQuestion: Second?\nTwo.\n"


@pytest.mark.parametrize("stdin", ["", "\n \n"])
def test_no_question_is_wrong_use_and_loads_nothing(
    run: Run, use_model: UseModel, report: str, stdin: str
) -> None:
    opened = use_model(ScriptedModel())
    result = run("ask", report, stdin=stdin)
    assert result.exit_code == 2
    assert "no question" in result.stderr
    assert opened == []


def test_bytes_that_are_no_text_do_not_reach_the_model(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel())
    result = run("ask", report, "-q", "Wh\udcff\x1by?", "--json")
    assert json.loads(result.stdout)["question"] == "Wh\N{REPLACEMENT CHARACTER}y?"


def test_an_empty_question_is_wrong_use(run: Run, use_model: UseModel, report: str) -> None:
    use_model(ScriptedModel())
    assert run("ask", report, "-q", " ").exit_code == 2


def test_json_holds_answer_sources_and_figures_on_one_line_a_question(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["In März [D1 p2].", "1,200 euros."]))
    result = run("ask", report, "-q", "Closing?", "-q", "Profit?", "--json")
    lines = result.stdout.splitlines()
    first, second = map(json.loads, lines)
    assert result.stdout.isascii()
    assert (first["question"], first["answer"]) == ("Closing?", "In März.")
    assert first["citations"][0]["page"] == 2
    assert first["citations"][0]["file"] == report
    assert first["finish_reason"] == "stop"
    assert first["usage"]["completion_tokens"] == 4
    assert set(first["timings"]) == {"first_token", "total", "per_token"}
    assert first["receipt"]["pages"] == 2
    assert first["model"] == "scripted"
    assert second["answer"] == "1,200 euros."


def test_an_answer_that_was_cut_off_says_so_even_when_quiet(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["one two three four"]))
    result = run("ask", report, "-q", "Count", "--max-new-tokens", "2", "--quiet")
    assert result.stdout.startswith("one two\n")
    assert "cut off after 2 tokens" in result.stderr


def test_a_plan_counts_without_loading_weights(run: Run, use_model: UseModel, report: str) -> None:
    opened = use_model(ScriptedModel())
    result = run("ask", report, "--plan", stdin="")
    assert result.exit_code == 0
    assert "report (pages: 2)" in result.stdout
    assert "Fits:" in result.stdout
    assert opened == []


def test_a_plan_that_does_not_fit_says_so_and_exits_4(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(context_window=100))
    result = run("ask", report, "--plan", "-q", "Why?", "--json")
    plan = json.loads(result.stdout)
    assert result.exit_code == 4
    assert plan["fits"] is False
    assert plan["needed_tokens"] == plan["prompt_tokens"] + 256
    assert plan["documents"][0]["title"] == "report"


def test_documents_that_do_not_fit_are_refused_before_weights_are_loaded(
    run: Run, use_model: UseModel, report: str
) -> None:
    opened = use_model(ScriptedModel(context_window=100))
    result = run("ask", report, "-q", "Why?")
    assert result.exit_code == 4
    assert result.stderr.startswith("Error: scripted takes 100 tokens")
    assert opened == []


def test_every_file_that_can_not_be_read_is_named(
    run: Run, use_model: UseModel, report: str, tmp_path: Path
) -> None:
    opened = use_model(ScriptedModel())
    result = run("ask", report, "missing.txt", str(tmp_path), "-q", "Why?")
    assert result.exit_code == 3
    assert "2 of 3 files" in result.stderr
    assert "missing.txt" in result.stderr
    assert "Traceback" not in result.stderr
    assert opened == []


def test_what_is_missing_from_a_document_is_said_even_when_quiet(
    run: Run, use_model: UseModel, report: str, tmp_path: Path
) -> None:
    use_model(ScriptedModel())
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(report).read_bytes())
    result = run("ask", report, str(copy), "-q", "Why?", "--quiet")
    assert result.stderr.startswith("Warning: report: ")
    assert "copy.txt" in result.stderr


def test_options_reach_the_model(run: Run, use_model: UseModel, report: str) -> None:
    model = ScriptedModel()
    seen: list[GenerationOptions] = []
    stream = model.stream

    def watch(token_ids, options, **more):  # type: ignore[no-untyped-def]
        seen.append(options)
        return stream(token_ids, options, **more)

    model.stream = watch  # type: ignore[method-assign]
    opened = use_model(model)
    options = ["--device", "cpu", "--dtype", "float32", "--context-window", "4096"]
    options += ["--window", "64", "--temperature", "0.5", "--seed", "3", "--max-new-tokens", "9"]
    options += ["--adapter", "./lora"]
    assert run("ask", report, "-q", "Why?", *options).exit_code == 0
    assert opened == [
        Settings(
            device="cpu", dtype="float32", context_window=4096, window=64, temperature=0.5,
            seed=3, max_new_tokens=9, adapter="./lora",
        )
    ]  # fmt: skip
    assert seen == [GenerationOptions(max_new_tokens=9, temperature=0.5, seed=3)]


def test_the_settings_file_and_variables_stand_in_for_options(
    run: Run, use_model: UseModel, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = use_model(ScriptedModel())
    (tmp_path / "config.toml").write_text("quiet = true\nseed = 1\nwindow = 10\n")
    monkeypatch.setenv("PACELLM_RAG_SEED", "2")
    result = run("ask", report, "-q", "Why?", "--window", "20")
    assert opened == [Settings(quiet=True, seed=2, window=20)]
    assert result.stderr == ""


def test_controls_and_markup_in_answers_and_names_do_not_reach_the_terminal(
    run: Run, use_model: UseModel, tmp_path: Path
) -> None:
    path = tmp_path / "re\x1b[2Jport [bold]x.txt"
    path.write_text("The plant\x1b]0;title\x07 closes in March.", encoding="utf-8")
    use_model(ScriptedModel(["\x1b[31m March \x9b2J [red]x[/red]."]))
    result = run("ask", str(path), "-q", "When?")
    assert result.exit_code == 0
    assert not {"\x1b", "\x07", "\x9b"} & set(result.output)
    assert "[red]x[/red]." in result.stdout
    assert "[bold]x" in result.stdout
