"""Deleted documents: what was read of them goes, from memory and disk, and nothing else does."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch

from pacellm_rag import forget_readings
from pacellm_rag.documents.types import Document, Page
from pacellm_rag.models import state_store
from pacellm_rag.models.model import PaceModel
from pacellm_rag.models.piece_lock import clear_leftovers, only_writer
from pacellm_rag.models.readings import forget_documents, verify_pieces
from pacellm_rag.models.state_store import StateStore
from pacellm_rag.models.stored_piece import all_piece_files
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions
from pacellm_rag.reader import DocumentReader

Tiny = Callable[..., PaceModel]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SHORT = GenerationOptions(max_new_tokens=4)
DISK = {"store_bytes": 2**30, "max_position_embeddings": 8192}
HEAD = "The letterhead of a firm, the same on all that it sends.\n"

with_and_without = pytest.mark.parametrize("pace", [None, ACTING], ids=["plain", "banks"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path / "readings"))
    return tmp_path / "readings"


def document(name: str, letters: int = 500) -> Document:
    text = HEAD + "".join(f"{name}{i}, " for i in range(letters // 5))
    return Document(f"sha256:{name}", "Letter", (Page(1, "1", text),))


def read(model: PaceModel, *names: str) -> DocumentReader:
    reader = DocumentReader(model, [document(name) for name in names], options=SHORT)
    reader.ask("What?", cite=False)
    model.flush()
    return reader


def known(model: PaceModel, *names: str) -> float:
    """The share of some documents' tokens that need not be read."""
    plan = DocumentReader(model, [document(name) for name in names], options=SHORT).plan("What?")
    cost = plan.cost
    assert cost is not None
    return cost.tokens_known / (cost.tokens_known + cost.tokens_to_read)


def kept_keys(folder: Path) -> set[str]:
    return {file.key for file in all_piece_files(folder)}


def keys_of(model: PaceModel, *names: str) -> set[str]:
    """The keys that any stretch of a question on these documents could be kept under."""
    from pacellm_rag.context.prompts import build_messages
    from pacellm_rag.models.request import token_keys

    reader = DocumentReader(model, [document(name) for name in names], options=SHORT)
    prompt = model.tokenizer.encode_messages(build_messages(reader.packed, "What?"))
    layout = reader._layout(prompt)
    tokens = token_keys(prompt.token_ids, layout, by_message=model.pace is not None)
    archive = model.engine.runner.archive
    assert archive is not None
    return set(state_store._keys(archive._store.model_key, tokens, range(len(tokens) + 1)).values())


def forget(*names: str) -> int:
    gc.collect()
    return forget_readings([f"sha256:{name}" for name in names])


@with_and_without
def test_of_a_forgotten_document_no_file_and_no_memory_is_left(
    tiny: Tiny, folder: Path, pace: PaceConfig | None
) -> None:
    model = tiny("llama", pace=pace, **DISK)
    read(model, "ann").close()
    assert len(kept_keys(folder)) >= 1
    assert known(model, "ann") > 0.9
    assert forget("ann") == 0
    assert kept_keys(folder) == set()
    assert known(model, "ann") == 0
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@with_and_without
def test_readings_of_other_documents_survive_also_those_with_the_same_beginning(
    tiny: Tiny, folder: Path, pace: PaceConfig | None
) -> None:
    model = tiny("llama", pace=pace, **DISK)
    for name in ("ann", "bob", "cid", "dan"):  # each but the first splits off the letterhead
        read(model, name).close()
    gone = ["ann", "bob"]
    forget(*gone)
    left = keys_of(model, "cid") | keys_of(model, "dan")
    assert kept_keys(folder)
    assert kept_keys(folder) <= left
    fresh = tiny("llama", pace=pace, **DISK)  # as after a restart: from disk alone
    for name in ("cid", "dan"):
        assert known(model, name) > 0.9
        assert known(fresh, name) > 0.9
    for name in gone:  # the letterhead is the others' as well
        assert known(fresh, name) < 0.6
    forget("dan", "cid")
    assert kept_keys(folder) == set()


def test_a_letterhead_goes_with_the_last_document_that_has_it(tiny: Tiny, folder: Path) -> None:
    model = tiny("llama", **DISK)
    for name in ("ann", "bob", "cid"):
        read(model, name).close()
    for name in ("bob", "cid", "ann"):
        forget(name)
        assert kept_keys(folder) & (keys_of(model, name) - _beginning(model)) == set()
    assert kept_keys(folder) == set()


def _beginning(model: PaceModel) -> set[str]:
    return keys_of(model, "ann") & keys_of(model, "bob")


def test_documents_before_the_forgotten_one_stay_read(tiny: Tiny, folder: Path) -> None:
    model = tiny("llama", **DISK)
    read(model, "ann", "bob").close()
    forget("bob")
    fresh = tiny("llama", **DISK)
    assert known(fresh, "ann") > 0.7
    assert kept_keys(folder) <= keys_of(model, "ann", "cid")
    read(model, "ann", "bob").close()
    forget("ann")
    assert kept_keys(folder) <= keys_of(model, "bob")
    assert known(tiny("llama", **DISK), "ann", "bob") < 0.2


def test_whoever_still_has_the_document_reads_it_again(tiny: Tiny, folder: Path) -> None:
    model = tiny("llama", **DISK)
    reader = read(model, "ann")  # holds on to what it has read
    said = reader.ask("What?", cite=False).text
    forget("ann")
    assert kept_keys(folder) == set()
    assert reader.ask("What?", cite=False).text == said
    reader.close()
    gc.collect()
    forget("ann")
    assert known(model, "ann") == 0
    again = read(model, "ann")
    assert again.ask("What?", cite=False).text == said
    assert known(tiny("llama", **DISK), "ann") > 0.9


@with_and_without
def test_what_is_being_read_is_not_kept_once_it_is_forgotten(
    tiny: Tiny, folder: Path, pace: PaceConfig | None
) -> None:
    model = tiny("llama", pace=pace, **DISK)
    model.window = 50
    begun, go = threading.Event(), threading.Event()

    def progress(done: object) -> None:
        begun.set()
        assert go.wait(10)

    reader = DocumentReader(model, [document("ann")], options=SHORT)
    thread = threading.Thread(target=lambda: reader.read(progress=progress))
    thread.start()
    assert begun.wait(10)
    forget("ann")
    go.set()
    thread.join(20)
    assert not thread.is_alive()
    reader.close()
    gc.collect()
    model.flush()
    assert kept_keys(folder) == set()
    assert known(model, "ann") == 0


def test_what_waits_to_be_written_is_not(
    tiny: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", **DISK)
    begun, go = threading.Event(), threading.Event()
    save = StateStore.save

    def slow(self: StateStore, *arguments: object, **more: object) -> bool:
        begun.set()
        assert go.wait(10)
        return save(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(StateStore, "save", slow)
    for name in ("cid", "ann", "bob"):
        with DocumentReader(model, [document(name)], options=SHORT) as reader:
            reader.ask("What?", cite=False)
    assert begun.wait(10)
    gc.collect()
    forgetting = threading.Thread(target=forget, args=("ann", "cid"))
    forgetting.start()
    time.sleep(0.1)
    assert forgetting.is_alive(), "It did not wait for the piece that is being written."
    go.set()
    forgetting.join(20)
    model.flush()
    assert kept_keys(folder)
    assert kept_keys(folder) <= keys_of(model, "bob")
    assert known(tiny("llama", **DISK), "bob") > 0.9


def test_nothing_is_forgotten_of_what_nobody_named(tiny: Tiny, folder: Path) -> None:
    model = tiny("llama", **DISK)
    model.prefill(range(4, 260), note="of a framework, which names no documents")
    model.prefill([*range(4, 260), *range(4, 200)])
    model.flush()
    before = kept_keys(folder)
    assert before
    assert forget("ann") == 0
    assert forget() == 0
    assert kept_keys(folder) == before


# on disk alone


def saved(store: StateStore, tokens: np.ndarray, start: int, documents: Collection[str]) -> bool:
    return store.save(
        tokens, start, {"a": torch.ones(3)}, model="tiny", documents=frozenset(documents)
    )


def test_the_notes_beside_pieces_are_damaged_at_the_cost_of_a_reading_only(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "key", limit_bytes=10**9)
    tokens = np.arange(20)
    assert saved(store, tokens, 0, ["ann"])
    [note] = tmp_path.rglob("*.documents")
    for content in (b"", b"{", b"[1]", b"\xff", b'{"a": 1}'):
        note.write_bytes(content)
        assert saved(store, tokens, 0, ["ann"])
        assert [p for p, _ in verify_pieces(tmp_path)] == []
    assert forget_documents(tmp_path, ["another"]) == 0
    assert store.chain(tokens, 20) == [], "It may be another's, so it must go."


def test_a_piece_that_somebody_writes_is_told_and_forgotten_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacellm_rag.models.readings._PATIENCE", 0.1)
    store = StateStore(tmp_path, "key", limit_bytes=10**9)
    assert saved(store, np.arange(20), 0, ["ann"])
    [file] = all_piece_files(tmp_path)
    with only_writer(file.path.parent, file.key) as alone:
        assert alone
        assert forget_documents(tmp_path, ["ann"]) == 1
    assert kept_keys(tmp_path) == {file.key}
    assert forget_documents(tmp_path, ["ann"]) == 0
    assert kept_keys(tmp_path) == set()


def test_notes_go_with_their_pieces_and_killed_writers_leave_none(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "key", limit_bytes=10**9)
    assert saved(store, np.arange(20), 0, ["ann"])
    [file] = all_piece_files(tmp_path)
    own = file.path.parent
    clear_leftovers(own)
    assert len(list(own.glob("*.documents"))) == 1, "That of a piece that is there stays."
    file.path.unlink()
    (own / f"{file.key}.abc.partial").write_bytes(b"1234")
    assert clear_leftovers(own) == 4
    assert list(own.iterdir()) == []


def test_a_piece_is_noted_for_all_its_readings_once(tmp_path: Path) -> None:
    store = StateStore(tmp_path, "key", limit_bytes=10**9)
    tokens = np.arange(20)
    for documents in (["bob", "ann"], [], ["ann", "bob"], ["cid"]):
        assert saved(store, tokens, 0, documents)
    [note] = tmp_path.rglob("*.documents")
    assert json.loads(note.read_bytes()) == [[], ["ann", "bob"], ["cid"]]
    forget_documents(tmp_path, ["bob", "cid"])
    assert list(tmp_path.rglob("*.documents")) == []  # nobody's in particular
    assert len(store.chain(tokens, 20)) == 1


def test_forgetting_imports_no_torch_and_needs_no_folder(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom pacellm_rag import forget_readings\n"
        "print(forget_readings(['sha256:x']), 'torch' in sys.modules)"
    )
    environment = {"PACELLM_RAG_READINGS": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["0", "False"]
