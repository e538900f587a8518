from __future__ import annotations

from collections.abc import Callable

from click.testing import Result

from pacellm_rag.protocols import Message
from pacellm_rag.testing import ScriptedGeneration, ScriptedModel, WordTokenizer

Run = Callable[..., Result]
UseModel = Callable[[ScriptedModel], object]


class RememberingTokenizer(WordTokenizer):
    """Keeps the conversations that it was asked to encode."""

    def __init__(self, context_window: int = 8192) -> None:
        super().__init__(context_window)
        self.conversations: list[list[Message]] = []

    def encode_messages(self, messages):  # type: ignore[no-untyped-def]
        self.conversations.append(list(messages))
        return super().encode_messages(messages)


def remembering(answers: list[str]) -> tuple[ScriptedModel, RememberingTokenizer]:
    model, tokenizer = ScriptedModel(answers), RememberingTokenizer()
    model.tokenizer = tokenizer
    return model, tokenizer


def turns(conversation: list[Message]) -> list[str]:
    return [f"{m.role}: {m.content.splitlines()[0]}" for m in conversation[1:]]


def test_a_second_question_comes_with_the_first_and_its_answer(
    run: Run, use_model: UseModel, report: str
) -> None:
    model, tokenizer = remembering(["In March [D1 p2].", "Closed."])
    use_model(model)
    result = run("chat", report, "--no-citations", stdin="When?\nAnd then?\n/quit\nnever\n")
    assert result.exit_code == 0
    assert result.stdout == "In March.\nClosed.\n"
    last = turns(tokenizer.conversations[-1])
    assert [line.split(": ")[0] for line in last] == ["user", "assistant", "user"]
    assert last[1] == "assistant: In March [D1 p2]."
    assert len(model.prefills) == 1


def test_new_forgets_the_conversation(run: Run, use_model: UseModel, report: str) -> None:
    model, tokenizer = remembering(["One.", "Two."])
    use_model(model)
    run("chat", report, stdin="First?\n/new\nSecond?\n")
    assert len(turns(tokenizer.conversations[-1])) == 1


def test_sources_shows_where_the_last_answer_comes_from(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["It closes in March [D1 p2]."]))
    result = run("chat", report, "--quiet", stdin="When?\n/sources\n")
    shown = result.stdout.split("It closes in March.\n")[1].splitlines()
    assert shown[0] == shown[1] == '[1] report, p. 2: "The plant closes in March."'
    assert shown[2].startswith("    found by the model's own words; ")
    assert shown[3:] == ["Documents:", f"  report (pages: 2) {report}"]


def test_help_and_unknown_commands(run: Run, use_model: UseModel, report: str) -> None:
    model = ScriptedModel()
    use_model(model)
    result = run("chat", report, stdin="/help\n/nonsense now\n\n")
    for command in ("/new", "/sources", "/help", "/quit"):
        assert command in result.stdout
    assert "no command /nonsense" in result.stderr
    assert model.prompts == []


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(
    run: Run, use_model: UseModel, report: str
) -> None:
    model, tokenizer = remembering(["one two three", "Fine."])
    use_model(model)
    stream = model.stream

    class Interrupted(ScriptedGeneration):
        def __next__(self) -> str:
            if self.completion_tokens == 2:
                raise KeyboardInterrupt
            return super().__next__()

    def stream_and_interrupt(*arguments, **more):  # type: ignore[no-untyped-def]
        generation = stream(*arguments, **more)
        if len(model.generations) == 1:
            generation.__class__ = Interrupted
        return generation

    model.stream = stream_and_interrupt  # type: ignore[method-assign]
    result = run("chat", report, "--no-citations", stdin="Count\nHow are you?\n")
    assert result.exit_code == 0
    assert result.stdout == "one two\nFine.\n"
    assert "Stopped." in result.stderr
    assert model.generations[0].finish_reason == "closed"
    assert len(turns(tokenizer.conversations[-1])) == 1  # what was stopped is forgotten


def test_a_conversation_that_grew_too_long_is_refused_and_can_be_forgotten(
    run: Run, use_model: UseModel, report: str
) -> None:
    use_model(ScriptedModel(["word " * 150, "Fine."], context_window=700))
    stdin = "First?\nSecond " + "long " * 80 + "?\n/new\nThird?\n"
    result = run("chat", report, "--no-citations", stdin=stdin)
    assert result.exit_code == 0
    assert "Error: scripted takes 700 tokens" in result.stderr
    assert "/new forgets" in result.stderr
    assert result.stdout.endswith("Fine.\n")
