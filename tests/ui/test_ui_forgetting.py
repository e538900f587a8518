"""Removed documents are forgotten by the models as well, at once or as soon as can be."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last, until

from pacellm_rag import forget_readings
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.stored_piece import all_piece_files
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.page_settings import PageSettings
from pacellm_rag_ui.session import Session

Tiny = Callable[..., PaceModel]

SHORT = GenerationOptions(max_new_tokens=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path / "readings"))
    return tmp_path / "readings"


def readings(folder: Path) -> set[str]:
    return {file.key for file in all_piece_files(folder)}


def settled(site: Site) -> None:
    until(lambda: not site.library.removed_contents(), "what was removed is forgotten")


def site_of(tmp_path: Path, model: PaceModel) -> Site:
    return Site(tmp_path, model, PageSettings(options=SHORT, forget_readings=forget_readings))


def read(site: Site, page: Session, name: str, text: str) -> str:
    """Adds a document, asks about it alone, and returns its id."""
    for each in site.handlers.documents(page):
        site.handlers.choose(page, each.id, False)
    document = site.add(page, name, text)
    assert last(site.handlers.ask(page, "What?")).state == "done"
    site.model.flush()
    return document.id


ANN, BOB = (" ".join(f"{name} {n}" for n in range(60)) for name in ("apple", "pear"))


def test_no_reading_of_a_removed_document_stays_on_disk_and_those_of_others_do(
    tmp_path: Path, folder: Path, tiny: Tiny
) -> None:
    model = tiny(store_bytes=2**30, max_position_embeddings=8192)
    with site_of(tmp_path, model) as site:
        page, other = site.page("ann"), site.page("bob", "other")
        read(site, other, "b.txt", BOB)
        others = readings(folder)
        assert others
        document = read(site, page, "a.txt", ANN)
        assert len(readings(folder)) > len(others)
        site.handlers.remove(page, document)
        settled(site)
        gone = readings(folder)
        assert gone >= others
        common = gone - others  # how all prompts begin
        read(site, site.page("cid", "third"), "c.txt", "quince " * 90)
        assert common <= readings(folder)
        assert last(site.handlers.ask(other, "And?")).note.startswith("Documents already read.")
        site.handlers.delete_everything(other)
        site.handlers.delete_everything(site.page("cid", "third"))
        settled(site)
        assert readings(folder) == set()


def test_who_has_the_same_document_keeps_it_and_its_reading(
    tmp_path: Path, folder: Path, tiny: Tiny
) -> None:
    model = tiny(store_bytes=2**30, max_position_embeddings=8192)
    with site_of(tmp_path, model) as site:
        ann, bob = site.page("ann"), site.page("bob", "other")
        document = read(site, ann, "a.txt", ANN)
        theirs = read(site, bob, "a.txt", ANN)
        before = readings(folder)
        site.handlers.remove(ann, document)
        assert site.library.removed_contents() == {}
        assert last(site.handlers.ask(bob, "And?")).note.startswith("Documents already read.")
        assert readings(folder) >= before
        site.handlers.remove(bob, theirs)
        settled(site)
        assert readings(folder) == set()


def test_readings_of_an_earlier_process_go_without_the_model_being_loaded(
    tmp_path: Path, folder: Path, tiny: Tiny
) -> None:
    model = tiny(store_bytes=2**30, max_position_embeddings=8192)
    with site_of(tmp_path, model) as site:
        document = read(site, site.page("ann"), "a.txt", ANN)
    assert readings(folder)
    with site_of(tmp_path, model) as site:
        site.load = lambda: pytest.fail("The model was loaded.")
        site.handlers.remove(site.page("ann"), document)
        settled(site)
        assert readings(folder) == set()


def test_removing_a_document_in_the_middle_of_its_reading_keeps_nothing_of_it(
    tmp_path: Path, folder: Path, tiny: Tiny
) -> None:
    model = tiny(window=16, store_bytes=2**30, max_position_embeddings=20_000)
    with site_of(tmp_path, model) as site:
        page = site.page("ann")
        document = site.add(page, "a.txt", *["An apple a day. " * 20] * 40)
        run = InThread(site.handlers.ask(page, "What?"))
        run.wait(lambda v: v.state == "reading" and v.percent > 5, "it is beyond the instructions")
        site.handlers.remove(page, document.id)
        assert run.end().state == "stopped"
        settled(site)
        until(lambda: model.engine.idle, "the engine stops")
        model.flush()
        gc.collect()
        forget_readings([])
        assert readings(folder) == set()
        assert not [n for n in model.engine.runner.cache.nodes() if n.end > 300]


class _Models:
    """Models that forget when they are let, or fail to."""

    def __init__(self) -> None:
        self.asked: list[set[str]] = []
        self.fails: Any = None
        self.left = 0
        self.go = threading.Event()
        self.go.set()

    def forget(self, documents: Collection[str]) -> int:
        assert self.go.wait(20)
        self.asked.append(set(documents))
        if self.fails is not None:
            raise self.fails
        return self.left


def scripted(tmp_path: Path, models: _Models) -> Site:
    return Site(tmp_path, ScriptedModel(), PageSettings(forget_readings=models.forget))


@pytest.mark.parametrize("trouble", ["an error", "a file in use"])
def test_what_could_not_be_forgotten_is_tried_again_when_the_server_starts(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    models = _Models()
    models.fails = OSError(13, "denied") if trouble == "an error" else None
    models.left = 1
    with scripted(tmp_path, models) as site:
        document = site.add(site.page(), "a.txt", "Text.")
        site.handlers.remove(site.page(), document.id)
        until(lambda: len(models.asked) == 1, "it is tried")
        until(lambda: bool(caplog.records), "it is logged")
        assert set(site.library.removed_contents()) == {document.content_id}
    models.fails, models.left = None, 0
    with scripted(tmp_path, models) as site:
        settled(site)
        assert models.asked == [{document.content_id}] * 2
    with scripted(tmp_path, models):
        pass
    assert len(models.asked) == 2, "There was nothing to forget."


def test_removing_does_not_wait_for_the_models_and_several_are_forgotten_together(
    tmp_path: Path,
) -> None:
    models = _Models()
    models.go.clear()
    with scripted(tmp_path, models) as site:
        ids = [site.add(site.page(), f"{n}.txt", f"Text {n}.") for n in range(5)]
        for each in ids:
            site.handlers.remove(site.page(), each.id)
        assert site.handlers.documents(site.page()) == []
        models.go.set()
        settled(site)
        assert set().union(*models.asked) == {each.content_id for each in ids}
        assert len(models.asked) <= 2


def test_what_is_added_again_before_it_was_forgotten_is_not_noted(tmp_path: Path) -> None:
    models = _Models()
    models.go.clear()
    with scripted(tmp_path, models) as site:
        page = site.page()
        site.handlers.remove(page, site.add(page, "a.txt", "Text.").id)
        site.add(page, "a.txt", "Text.")
        assert site.library.removed_contents() == {}
        models.go.set()


def test_answers_on_their_way_are_stopped_and_the_document_let_go(tmp_path: Path) -> None:
    model = GatedModel(["one two three"])
    model.reads.let()
    model.words.let(1)
    with Site(tmp_path, model) as site:
        page, other = site.page("ann", "1"), site.page("ann", "2")
        first, second = site.add(page, "a.txt", "Text."), site.add(page, "b.txt", "More.")
        run = InThread(site.handlers.ask(other, "Count."))
        until(lambda: model.words.arrived == 2, "a word is out")
        site.handlers.remove(page, first.id)
        assert run.end().state == "stopped"
        assert other.reading is None
        model.words.let()
        assert last(site.handlers.ask(other, "Count.")).state == "done"
        assert other.reading is not None
        assert [each for each, _ in other.reading.key] == [second.id]
