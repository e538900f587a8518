from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_doubles import GatedModel, InThread, Site, last

from pacellm_rag.errors import ConfigurationError
from pacellm_rag.testing import ScriptedModel
from pacellm_rag_ui.library import NotFoundError
from pacellm_rag_ui.session import BusyError, Session


def test_what_was_said_is_there_after_a_restart(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["First."])) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple.")
        last(site.handlers.ask(page, "One?"))
        said, documents = site.handlers.history(page), site.handlers.documents(page)
    model = ScriptedModel(["Second."])
    with Site(tmp_path, model) as site:
        page = site.page("ann", "another page")
        assert site.handlers.history(page) == said
        assert site.handlers.documents(page) == documents
        assert last(site.handlers.ask(page, "Two?")).text == "Second."
        words = model.tokenizer.encode_text("First.").token_ids
        assert any(model.prompts[0][i : i + 2] == words for i in range(len(model.prompts[0])))


def test_a_reload_keeps_the_chat_and_a_new_chat_is_stored_with_its_question(
    tmp_path: Path,
) -> None:
    with Site(tmp_path, ScriptedModel(["Yes."])) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple.")
        last(site.handlers.ask(page, "One?"))
        site.handlers.leave("ann", "page")
        page = site.page("ann", "reloaded")
        assert len(site.handlers.history(page)) == 2
        site.handlers.new_chat(page)
        assert site.handlers.history(page) == []
        assert len(site.handlers.conversations(page)) == 1
        last(site.handlers.ask(page, "  Two?\n" + "x" * 200))
        newest, oldest = site.handlers.conversations(page)
        assert (newest.title[:6], len(newest.title), oldest.title) == ("Two? x", 80, "One?")


def test_a_conversation_that_is_opened_ticks_its_documents(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["Yes."])) as site:
        page = site.page()
        a = site.add(page, "a.txt", "An apple.")
        last(site.handlers.ask(page, "One?"))
        first = site.handlers.conversations(page)[0]
        b = site.add(page, "b.txt", "A pear.")
        site.handlers.choose(page, a.id, False)
        site.handlers.new_chat(page)
        last(site.handlers.ask(page, "Two?"))
        turns = site.handlers.open_conversation(page, first.id)
        assert [turn.text for turn in turns] == ["One?", "Yes."]
        assert turns == site.handlers.history(page)
        assert [(d.id, d.chosen) for d in site.handlers.documents(page)] == [
            (a.id, True),
            (b.id, False),
        ]


def test_conversations_are_renamed_deleted_and_exported(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["An apple [D1 p1]."])) as site:
        page, other = site.page(), site.page("ann", "other")
        site.add(page, "a.txt", "An apple.")
        assert "Conversation" in site.handlers.export_conversation(page)
        last(site.handlers.ask(page, "What is it?"))
        conversation = site.handlers.conversations(page)[0]
        site.handlers.rename_conversation(page, conversation.id, "Fruit")
        exported = site.handlers.export_conversation(page)
        assert exported.startswith("# Fruit\n")
        assert "> What is it?" in exported
        assert "[^1]: a, p. 1: “An apple.”" in exported
        site.handlers.open_conversation(other, conversation.id)
        site.handlers.delete_conversation(page, conversation.id)
        for each in (page, other):
            assert each.conversation_id is None
            assert site.handlers.history(each) == []
        assert site.handlers.conversations(page) == []


def test_a_conversation_deleted_in_the_middle_of_an_answer_ends_it(tmp_path: Path) -> None:
    model = GatedModel(["Yes."])
    model.reads.let()
    with Site(tmp_path, model) as site:
        page = site.page()
        site.add(page, "a.txt", "An apple.")
        run = InThread(site.handlers.ask(page, "One?"))
        run.wait(lambda v: v.question_id, "the question is stored")
        conversation = site.handlers.conversations(page)[0]
        with pytest.raises(BusyError):
            site.handlers.new_chat(page)
        with pytest.raises(BusyError):
            site.handlers.open_conversation(page, conversation.id)
        site.handlers.delete_conversation(page, conversation.id)
        assert run.end().state == "stopped"
        assert site.handlers.conversations(page) == []


def test_everything_of_an_owner_can_be_deleted_also_while_it_is_used(tmp_path: Path) -> None:
    model = GatedModel(["Yes."])
    with Site(tmp_path, model) as site:
        page, bob = site.page(), site.page("bob", "bob")
        site.add(page, "a.txt", "An apple.")
        site.add(bob, "b.txt", "A pear.")
        run = InThread(site.handlers.ask(page, "One?"))
        run.wait(lambda v: v.state == "reading", "reading begins")
        site.handlers.delete_everything(page)
        assert run.end().state == "stopped"
        assert site.handlers.documents(page) == []
        assert site.handlers.conversations(page) == []
        assert page.reading is None
        assert len(site.handlers.documents(bob)) == 1


Attempt = Callable[[Site, Session, str, str, str], Any]

ATTEMPTS: dict[str, Attempt] = {
    "choose": lambda s, p, d, c, t: s.handlers.choose(p, d, False),
    "keep_pages": lambda s, p, d, c, t: s.handlers.keep_pages(p, d, (1, 1)),
    "move": lambda s, p, d, c, t: s.handlers.move(p, d, 1),
    "remove": lambda s, p, d, c, t: s.handlers.remove(p, d),
    "open": lambda s, p, d, c, t: s.handlers.open_conversation(p, c),
    "rename": lambda s, p, d, c, t: s.handlers.rename_conversation(p, c, "Mine"),
    "delete": lambda s, p, d, c, t: s.handlers.delete_conversation(p, c),
}
VIEWS: dict[str, Attempt] = {
    "summary": lambda s, p, d, c, t: last(s.handlers.summary(p, d)),
    "suggest": lambda s, p, d, c, t: last(s.handlers.suggest_questions(p, d)).answer,
    "retry": lambda s, p, d, c, t: last(s.handlers.retry(p, t)),
}


def _of_ann(site: Site) -> tuple[str, str, str]:
    ann = site.page()
    document = site.add(ann, "secret.txt", "The secret is 42.")
    turn = last(site.handlers.ask(ann, "What is the secret?")).question_id
    return document.id, site.handlers.conversations(ann)[0].id, turn


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_is_of_others_is_as_unknown_as_what_is_not(tmp_path: Path, attempt: str) -> None:
    with Site(tmp_path, ScriptedModel(["42."])) as site:
        known = _of_ann(site)
        before = (site.handlers.documents(site.page()), site.said(site.page()))
        bob = site.page("bob", "bob")
        messages = []
        for ids in (known, ("x" * 22, "y" * 22, "z" * 22)):
            with pytest.raises(NotFoundError) as caught:
                ATTEMPTS[attempt](site, bob, *ids)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        assert (site.handlers.documents(site.page()), site.said(site.page())) == before


@pytest.mark.parametrize("attempt", VIEWS)
def test_views_tell_nothing_of_others(tmp_path: Path, attempt: str) -> None:
    with Site(tmp_path, ScriptedModel(["42."])) as site:
        known = _of_ann(site)
        bob = site.page("bob", "bob")
        theirs = VIEWS[attempt](site, bob, *known)
        nobodys = VIEWS[attempt](site, bob, "x" * 22, "y" * 22, "z" * 22)
        assert theirs == nobodys
        assert (theirs.state, theirs.text) == ("failed", "")
        assert len(site.model.prompts) == 1


def test_a_page_sees_only_what_is_its_owners(tmp_path: Path) -> None:
    with Site(tmp_path, ScriptedModel(["42."])) as site:
        _of_ann(site)
        bob = site.page("bob", "page")  # the same name of the page
        assert bob is not site.page()
        assert site.handlers.documents(bob) == []
        assert site.handlers.conversations(bob) == []
        assert site.handlers.history(bob) == []
        assert site.handlers.meter(bob).documents == ()
        assert "secret" not in site.handlers.export_conversation(bob)
        assert last(site.handlers.ask(bob, "What is the secret?")).state == "failed"
        assert site.handlers.stop(bob) is False


def test_stop_is_for_the_own_page_only(tmp_path: Path) -> None:
    model = GatedModel(["Yes."])
    with Site(tmp_path, model) as site:
        ann, bob = site.page("ann", "1"), site.page("bob", "1")
        site.add(ann, "a.txt", "An apple.")
        run = InThread(site.handlers.ask(ann, "One?"))
        run.wait(lambda v: v.state == "reading", "reading begins")
        assert not site.handlers.stop(bob)
        model.reads.let()
        model.words.let()
        assert run.end().state == "done"


def test_settings_are_of_the_page_and_checked(tmp_path: Path) -> None:
    model = ScriptedModel(["one two three four"])
    with Site(tmp_path, model) as site:
        page, other = site.page(), site.page("bob", "2")
        site.add(page, "a.txt", "An apple.")
        options = site.handlers.set_options(page, answer_tokens=2, temperature=0.7, seed=11)
        assert (options.max_new_tokens, options.temperature, options.seed) == (2, 0.7, 11)
        assert other.options.max_new_tokens == 256
        for wrong in ({"answer_tokens": 0}, {"temperature": -1.0}):
            with pytest.raises(ConfigurationError):
                site.handlers.set_options(page, **wrong)  # type: ignore[arg-type]
        assert page.options == options
        assert last(site.handlers.ask(page, "Count.")).text == "one two"
