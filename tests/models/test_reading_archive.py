"""What comes back from disk is what was read, bit by bit, or it is read again."""

from __future__ import annotations

import errno
import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pacellm_rag.models.generation import PrefixState
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import ONE_MESSAGE, GenerationOptions, PromptLayout
from pacellm_rag.testing import FAMILIES

Tiny = Callable[..., PaceModel]

ACTING = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
SHORT = GenerationOptions(max_new_tokens=10)
LAYOUT = PromptLayout((0, 131), (270, 540))
DISK = {"store_bytes": 2**30}

every_family = pytest.mark.parametrize("family", list(FAMILIES))
some_families = pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
with_and_without = pytest.mark.parametrize("pace", [None, ACTING], ids=["plain", "banks"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACELLM_RAG_READINGS", str(tmp_path / "readings"))
    return tmp_path / "readings"


def prompt(tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (tokens,), generator=generator)]


def asked(model: PaceModel, ids: list[int], layout: PromptLayout = LAYOUT) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were known."""
    stream = model.stream(ids, SHORT, layout=layout)
    return "".join(stream), stream.tokens_reused


def pieces(folder: Path) -> list[Path]:
    """The files on disk by their first tokens."""
    found = folder.rglob("*.safetensors")
    return sorted(found, key=lambda path: int(path.name.split(".")[2].split("-")[0]))


def everything(state: PrefixState) -> dict[str, torch.Tensor]:
    """All tensors of a state by name."""
    node = state._node.node
    tensors: dict[str, torch.Tensor] = {}
    parts = node.parts()
    for index in parts[0].block.buffers:
        keys, values = zip(*(part.states(index) for part in parts), strict=True)
        tensors[f"{index}.keys"], tensors[f"{index}.values"] = (
            torch.cat(keys, 2),
            torch.cat(values, 2),
        )
    if node.snapshot is not None:
        for index, memory in node.snapshot.memories.items():
            tensors |= {f"{index}.{name}": tensor for name, tensor in memory.tensors().items()}
        for index, layer in node.snapshot.layers.items():
            for name, value in vars(layer).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{index}.layer.{name}"] = value
            tensors[f"{index}.seen"] = torch.tensor(layer.get_seq_length())
    return tensors


@every_family
@with_and_without
def test_what_is_restored_is_what_was_read_bit_by_bit(
    tiny: Tiny, folder: Path, family: str, pace: PaceConfig | None
) -> None:
    ids = prompt(560)
    model = tiny(family, pace=pace, **DISK)
    model.window = 100
    model.prefill(ids[:270], layout=LAYOUT)
    state = model.prefill(ids, layout=LAYOUT)
    model.flush()
    assert len(pieces(folder)) >= 2
    other = tiny(family, pace=pace, **DISK)
    restored = other.prefill(ids, layout=LAYOUT)
    assert restored.tokens_reused == 560
    read, back = everything(state), everything(restored)
    assert read.keys() == back.keys()
    for name, tensor in read.items():
        assert tensor.dtype == back[name].dtype
        assert torch.equal(tensor, back[name]), name
    longer = [*ids, *prompt(20, 1)]
    alone = asked(tiny(family, pace=pace), longer)[0]
    assert asked(model, longer) == asked(other, longer) == (alone, 560)


@some_families
def test_what_is_of_another_model_or_layout_is_not_used(
    tiny: Tiny, folder: Path, family: str
) -> None:
    ids = prompt(300)
    model = tiny(family, pace=ACTING, **DISK)
    model.prefill(ids, layout=LAYOUT)
    model.flush()
    assert tiny(family, pace=ACTING, **DISK).cost(ids, 1, layout=LAYOUT).tokens_known == 300
    others = {
        "no banks": tiny(family, **DISK),
        "other banks": tiny(family, pace=PaceConfig(layers=(1,), slots=16, window=20), **DISK),
        "bfloat16": tiny(family, pace=ACTING, dtype="bfloat16", **DISK),
        "other weights": tiny(family, pace=ACTING, seed=1, **DISK),
        "other positions": tiny(family, pace=ACTING, max_position_embeddings=2048, **DISK),
    }
    for name, other in others.items():
        assert other.cost(ids, 1, layout=LAYOUT).tokens_known == 0, name
        assert other.prefill(ids, layout=LAYOUT).tokens_reused == 0, name
    layouts = {ONE_MESSAGE: 0, PromptLayout((0, 132)): 0, PromptLayout((0, 131, 300)): 131}
    for layout, common in layouts.items():
        fresh = tiny(family, pace=ACTING, **DISK)
        text, known = asked(fresh, [*ids, *prompt(20, 1)], layout)
        assert known == common
        assert text == asked(tiny(family, pace=ACTING), [*ids, *prompt(20, 1)], layout)[0]


@some_families
@with_and_without
@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_piece_is_read_again_and_said(
    tiny: Tiny,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    pace: PaceConfig | None,
    damaged: int,
) -> None:
    ids = prompt(560)
    model = tiny(family, pace=pace, **DISK)
    model.prefill(ids[:270], layout=LAYOUT)
    model.prefill(ids[:540], layout=LAYOUT)
    model.flush()
    path = pieces(folder)[-damaged]  # the first or the last
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    other = tiny(family, pace=pace, **DISK)
    with caplog.at_level(logging.WARNING):
        text, known = asked(other, ids)
    assert "read again" in caplog.text
    assert text == asked(tiny(family, pace=pace), ids)[0]
    assert known == (0, 270)[damaged]
    other.flush()
    again = tiny(family, pace=pace, **DISK)
    assert asked(again, ids)[1] >= 270  # it has been stored anew


@pytest.mark.parametrize("what", ["incomplete", "of other tokens", "foreign"])
def test_tensors_that_do_not_fit_are_read_again_and_said(
    tiny: Tiny, folder: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Such as another version of this package would have written under the same key."""
    ids = prompt(320)
    model = tiny("llama", pace=ACTING, **DISK)
    archive = model.engine.runner.archive
    assert archive is not None
    store, save = archive._store, archive._store.save

    def tampering(
        tokens: object, start: int, tensors: dict[str, torch.Tensor], **rest: str
    ) -> bool:
        if what == "incomplete":
            tensors = {n: t for n, t in tensors.items() if not n.endswith("bank.keys")}
        elif what == "of other tokens":
            tensors = {n: t[:, :, 1:] if n.startswith("kv") else t for n, t in tensors.items()}
        else:
            tensors = {"something": torch.zeros(3)}
        return save(tokens, start, tensors, **rest)  # type: ignore[arg-type]

    store.save = tampering  # type: ignore[method-assign, assignment]
    model.prefill(ids[:300], layout=LAYOUT)
    model.flush()
    with caplog.at_level(logging.WARNING):
        text, known = asked(tiny("llama", pace=ACTING, **DISK), ids)
    assert "read again" in caplog.text
    assert (text, known) == asked(tiny("llama", pace=ACTING), ids)


@pytest.mark.parametrize("why", ["no permission", "no folder"])
def test_a_folder_that_can_not_be_written_costs_a_warning_only(
    tiny: Tiny,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    if why == "no folder":
        folder.write_text("a file is in its place")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
    ids = prompt(320)
    model = tiny("llama", **DISK)
    with caplog.at_level(logging.WARNING):
        model.prefill(ids[:300])
        text, known = asked(model, ids)
        model.flush()
    assert (text, known) == (asked(tiny("llama"), ids)[0], 300)
    assert "kept reading" in caplog.text.lower() or "could not be kept" in caplog.text
    assert asked(tiny("llama", **DISK), ids) == (text, 0)


@some_families
def test_a_piece_whose_beginning_is_gone_is_not_used(tiny: Tiny, folder: Path, family: str) -> None:
    ids = prompt(560)
    model = tiny(family, **DISK)
    model.prefill(ids[:270], layout=LAYOUT)
    model.prefill(ids[:540], layout=LAYOUT)
    model.flush()
    pieces(folder)[0].unlink()
    other = tiny(family, **DISK)
    assert asked(other, ids) == (asked(tiny(family), ids)[0], 0)
    other.flush()
    starts = [path.name.split(".")[2].split("-")[0] for path in pieces(folder)]
    assert starts[0] == "0"
    assert asked(tiny(family, **DISK), ids)[1] >= 270


def test_the_pieces_stay_within_the_limit_and_answers_right(tiny: Tiny, folder: Path) -> None:
    model = tiny("llama", store_bytes=1)
    assert asked(model, prompt(320)) == asked(tiny("llama"), prompt(320))
    model.flush()
    assert pieces(folder) == []
    model = tiny("llama", store_bytes=400_000)  # a text and a half
    for seed in range(3):
        model.prefill(prompt(300, seed))
        model.flush()
    assert sum(path.stat().st_size for path in pieces(folder)) <= 400_000
    assert asked(tiny("llama", store_bytes=400_000), [*prompt(300, 2), 9])[1] == 300


def test_nodes_that_are_split_while_they_wait_are_stored_as_they_were(
    tiny: Tiny, folder: Path
) -> None:
    model = tiny("llama", **DISK)
    archive = model.engine.runner.archive
    assert archive is not None
    ids, go, save = prompt(600), threading.Event(), archive._store.save

    def late(*given: object, **rest: str) -> bool:
        go.wait(10)
        return save(*given, **rest)  # type: ignore[arg-type]

    archive._store.save = late  # type: ignore[method-assign, assignment]
    model.prefill(prompt(300, 5))  # the writer is busy with it
    model.prefill(ids)
    asked(model, [*ids[:400], *prompt(20, 4)])  # splits the node
    go.set()
    model.flush()
    assert asked(tiny("llama", **DISK), [*ids, 9])[1] == 600
