"""Several models to choose from: what is loaded when, what goes, and who has answered."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last, until

from pacellm_rag.errors import ConfigurationError, ModelError
from pacellm_rag.testing import ScriptedModel, WordTokenizer
from pacellm_rag_ui.export import export_markdown
from pacellm_rag_ui.handlers import Handlers
from pacellm_rag_ui.offered_models import KeptModel, OfferedModel, OfferedModels
from pacellm_rag_ui.serving import ModelSource, offered_models

PAGES = ("One apple a day.", "The contract ends in 2030.", "Nothing else matters here.")


class Letters(WordTokenizer):
    """Counts more than words."""

    def count_tokens(self, text: str) -> int:
        return 3 * super().count_tokens(text)


@dataclass
class Source:
    """A model that is loaded anew whenever nobody has it."""

    answer: str
    window: int = 8192
    loads: int = 0
    made: list[Any] = field(default_factory=list)
    error: Exception | None = None
    wait: threading.Event | None = None

    def load(self) -> ScriptedModel:
        self.loads += 1
        if self.wait is not None:
            assert self.wait.wait(20)
        if self.error is not None:
            raise self.error
        model = ScriptedModel([self.answer], context_window=self.window)
        self.made.append(weakref.ref(model))
        return model


def offer(**sources: Source) -> OfferedModels:
    kept = {name: KeptModel(source.load) for name, source in sources.items()}
    return OfferedModels(
        [OfferedModel(name, each, let_go=each.let_go) for name, each in kept.items()]
    )


class Choice(Site):
    """A site with models to choose from."""

    def __init__(self, folder: Path, **sources: Source) -> None:
        super().__init__(folder, None)
        self.handlers.close()
        self.sources = sources
        self.handlers = Handlers(self.library, offer(**sources), self.settings)

    def choose(self, page: Any, name: str) -> None:
        self.handlers.choose_model(page, name)
        until(lambda: not self.handlers.models.is_loading(name), f"{name} is loaded")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Choice]:
    with Choice(tmp_path, small=Source("Small says so."), large=Source("Large says so.")) as made:
        yield made


def test_the_first_is_everybodys_until_they_choose_and_the_other_is_not_loaded(
    site: Choice,
) -> None:
    page = site.page()
    assert site.handlers.models.names == ("small", "large")
    assert site.handlers.models.loaded == ()
    site.add(page, "a.txt", *PAGES)
    assert last(site.handlers.ask(page, "When?")).text == "Small says so."
    assert site.handlers.models.loaded == ("small",)
    assert site.sources["large"].loads == 0


def test_a_choice_is_of_one_page_and_of_its_next_question(site: Choice) -> None:
    ann, bob = site.page("ann", "1"), site.page("bob", "2")
    for page in (ann, bob):
        site.add(page, "a.txt", *PAGES)
    site.choose(ann, "large")
    assert last(site.handlers.ask(ann, "When?")).text == "Large says so."
    assert last(site.handlers.ask(bob, "When?")).text == "Small says so."
    assert site.page("ann", "another").model == "small"


def test_answers_note_who_wrote_them_and_keep_it_in_what_is_exported(site: Choice) -> None:
    page = site.page()
    site.add(page, "a.txt", *PAGES)
    last(site.handlers.ask(page, "When?"))
    site.choose(page, "large")
    last(site.handlers.ask(page, "When?"))
    history = site.handlers.history(page)
    assert [turn.details.get("answered_by") for turn in history] == [None, "small", None, "large"]
    text = site.handlers.export_conversation(page)
    assert "*Answered by small.*" in text
    assert "*Answered by large.*" in text
    view = last(site.handlers.ask_every(page, "When?"))
    assert view.model == "large"
    assert "Answered by large." in site.handlers.export_every(view, "markdown")
    header, row = site.handlers.export_every(view, "csv").splitlines()
    assert header.endswith(",Model")
    assert row.endswith(",large")


def test_where_there_is_no_choice_nobody_is_named(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["Yes."])) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        last(site.handlers.ask(page, "When?"))
        view = last(site.handlers.ask_every(page, "When?"))
        assert view.model == ""
        assert "Model" not in site.handlers.export_every(view, "csv")
        assert "Answered" not in export_markdown("t", site.handlers.history(page))


def test_the_meter_counts_with_the_chosen_models_tokenizer_and_window(tmp_path: Path) -> None:
    large = Source("Large.", window=4096)

    def load() -> ScriptedModel:
        model = Source.load(large)
        model.tokenizer = Letters(name="letters")
        return model

    models = OfferedModels(
        [OfferedModel("small", KeptModel(Source("Small.").load)), OfferedModel("large", load)]
    )
    with Site(tmp_path, None) as site:
        site.handlers.close()
        site.handlers = Handlers(site.library, models, site.settings)
        page, other = site.page("ann", "1"), site.page("ann", "2")
        one = site.add(page, "a.txt", *PAGES)
        site.handlers.choose(page, one.id, False)
        before = site.handlers.meter(page)
        site.handlers.choose_model(page, "large")
        after = site.handlers.meter(page)
        assert (before.window, after.window) == (8192, 4096)
        assert after.documents[0].tokens == 3 * (before.documents[0].tokens or 0)
        assert site.handlers.meter(other) == before


def test_a_question_that_fits_one_model_only_is_refused_by_the_other(tmp_path: Path) -> None:
    with Choice(tmp_path, small=Source("S.", window=600), large=Source("L.")) as site:
        page = site.page()
        site.add(page, "a.txt", " ".join(f"w{n}" for n in range(700)))
        assert not site.handlers.meter(page).fits
        assert "too many" in last(site.handlers.ask(page, "When?")).error
        site.choose(page, "large")
        assert site.handlers.meter(page).fits
        assert last(site.handlers.ask(page, "When?")).text == "L."


def test_before_another_is_loaded_those_that_nobody_has_chosen_go(site: Choice) -> None:
    page = site.page()
    site.add(page, "a.txt", *PAGES)
    last(site.handlers.ask(page, "When?"))
    [small] = site.sources["small"].made
    site.choose(page, "large")
    assert site.handlers.models.loaded == ("large",)
    gc.collect()
    assert small() is None, "The memory of the model that nobody has chosen is still taken."
    site.choose(page, "small")
    assert last(site.handlers.ask(page, "When?")).text == "Small says so."
    assert site.sources["small"].loads == 2


def test_a_model_that_another_page_has_chosen_stays(site: Choice) -> None:
    ann, bob = site.page("ann", "1"), site.page("bob", "2")
    site.handlers.models.get("small")
    site.choose(ann, "large")
    assert site.handlers.models.loaded == ("small", "large")
    site.handlers.leave("bob", "2")
    site.choose(ann, "large")
    assert site.handlers.models.loaded == ("small", "large"), "Nobody needed the memory."
    assert bob.left


def test_a_model_at_work_is_not_disturbed_and_there_are_never_two_of_it(tmp_path: Path) -> None:
    gated = GatedModel(["Slow says so."])
    loads: list[GatedModel] = []

    def load() -> GatedModel:
        loads.append(gated)
        return gated

    kept = KeptModel(load)
    models = OfferedModels(
        [
            OfferedModel("slow", kept, let_go=kept.let_go),
            OfferedModel("quick", KeptModel(Source("Quick.").load)),
        ]
    )
    with Site(tmp_path, None) as site:
        site.handlers.close()
        site.handlers = Handlers(site.library, models, site.settings)
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        run = InThread(site.handlers.ask(page, "When?"))
        run.wait(lambda v: v.state == "reading", "reading begins")
        site.handlers.choose_model(page, "quick")
        until(lambda: models.loaded == ("quick",), "the other model is loaded")
        site.handlers.choose_model(page, "slow")
        gated.reads.let()
        gated.words.let()
        assert run.end().text == "Slow says so."
        assert site.handlers.history(page)[-1].details["answered_by"] == "slow"
        assert last(site.handlers.ask(page, "Again?")).text == "Slow says so."
        assert len(loads) == 1


def test_while_one_is_loaded_pages_with_the_other_go_on(tmp_path: Path) -> None:
    wait = threading.Event()
    with Choice(tmp_path, small=Source("Small."), large=Source("Large.", wait=wait)) as site:
        ann, bob = site.page("ann", "1"), site.page("bob", "2")
        for page in (ann, bob):
            site.add(page, "a.txt", *PAGES)
        site.handlers.choose_model(ann, "large")
        assert site.handlers.models.is_loading("large")
        meter = site.handlers.meter(ann)
        assert "being loaded" in meter.message
        assert meter.documents[0].tokens is None, "It was counted by the other model."
        assert last(site.handlers.ask(bob, "When?")).text == "Small."
        run = InThread(site.handlers.ask(ann, "When?"))
        run.wait(lambda v: v.status == "Loading the model", "the question waits for the model")
        wait.set()
        assert run.end().text == "Large."
        assert site.sources["large"].loads == 1


def test_a_model_that_can_not_be_loaded_says_why_and_another_try_may_do(tmp_path: Path) -> None:
    large = Source("Large.", error=ModelError("The model is damaged. Install it again."))
    with Choice(tmp_path, small=Source("Small."), large=large) as site:
        page = site.page()
        site.add(page, "a.txt", *PAGES)
        site.choose(page, "large")
        assert site.handlers.models.failure("large") == str(large.error)
        assert site.handlers.meter(page).message == str(large.error)
        assert last(site.handlers.ask(page, "When?")).error == str(large.error)
        site.choose(page, "small")
        assert last(site.handlers.ask(page, "When?")).text == "Small."
        large.error = None
        site.choose(page, "large")
        assert site.handlers.models.failure("large") == ""
        assert last(site.handlers.ask(page, "When?")).text == "Large."


def test_a_model_that_is_not_offered_can_not_be_chosen(site: Choice) -> None:
    page = site.page()
    with pytest.raises(ConfigurationError, match="Choose one of: small, large"):
        site.handlers.choose_model(page, "../../etc/passwd")
    assert page.model == "small"


@pytest.mark.parametrize("names", [[], ["one", "one"]])
def test_offering_none_or_one_twice_is_refused(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="once"):
        OfferedModels([OfferedModel(name, ScriptedModel) for name in names])


def test_models_are_called_by_their_folder_unless_two_have_the_same(tmp_path: Path) -> None:
    one, two, three = "a/model", "b/model", "c/other"
    found = offered_models([ModelSource(each) for each in (one, two, three)])
    assert found.names == (one, two, "other")
    assert offered_models([ModelSource()]).names == ("default model",)
    with pytest.raises(ConfigurationError, match="twice"):
        offered_models([ModelSource(one), ModelSource(one)])


def test_a_model_is_called_by_the_adapter_that_was_named_too() -> None:
    named = [ModelSource("a/model", adapter="x/lora"), ModelSource("a/model"), ModelSource()]
    assert offered_models(named).names == ("model+lora", "model", "default model")
    two = [ModelSource("a/model", adapter="x/lora"), ModelSource("a/model", adapter="y/lora")]
    assert offered_models(two).names == ("a/model+x/lora", "a/model+y/lora")
    assert ModelSource(adapter="none").name == "default model"
    assert ModelSource(adapter="x/lora").name == "default model+lora"


def test_an_adapter_of_the_hub_is_not_on_this_machine(tmp_path: Path) -> None:
    assert ModelSource(adapter="none").on_this_machine
    assert ModelSource(str(tmp_path), adapter=str(tmp_path)).on_this_machine
    assert not ModelSource(adapter="owner/lora").on_this_machine


def test_an_adapter_is_laid_with_and_without_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any, Any]] = []

    def load_model(name: str, *, adapter: object, pace: object, **_: object) -> None:
        asked.append((name, adapter, pace))

    monkeypatch.setattr("pacellm_rag.load_model", load_model, raising=False)
    ModelSource("m", adapter="x/lora").load()
    ModelSource("m", adapter="x/lora").load_plain()
    ModelSource("m", adapter="none").load()
    assert asked == [("m", "x/lora", "auto"), ("m", "x/lora", None), ("m", None, "auto")]


@pytest.mark.parametrize(("pace", "compared"), [("auto", True), ("on", True), ("off", False)])
def test_each_model_is_compared_with_itself_without_banks(pace: str, compared: bool) -> None:
    found = offered_models([ModelSource("a", pace=pace), ModelSource("b", pace=pace)])
    assert [found[name].plain is not None for name in found.names] == [compared] * 2
