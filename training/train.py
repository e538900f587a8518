"""Trains the adapter: `python -m training.train --data FOLDER --out FOLDER`.

Short contexts first, long ones last. Goes on from its last checkpoint when it is started again.
Writes a line of JSON for every step to `log.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pacellm_rag.models.default_model import default_model_folder
from pacellm_rag.models.loading import best_dtype, load_tokenizer
from training.branches import ATTENTION, answer_loss, encode_example
from training.contexts import Example, Library, draw_example
from training.lora import LowRank, add_adapters, save_adapter
from training.rehearsal import draw_rehearsal, read_rehearsals

# (share of all tokens until which it holds, tokens of the documents)
CURRICULUM = ((0.5, 1000), (0.75, 1600), (0.9, 2800), (1.0, 6000))
WARM_UP = 0.03
LAST_RATE = 0.05  # of the highest
KEPT_EVERY = 20  # steps


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on, beside the data."""

    tokens: int
    rank: int
    alpha: float
    rate: float
    conversations: int
    together: int
    rehearsed: float
    seed: int


def rate_at(recipe: Recipe, share: float) -> float:
    """Learning rate after a share of the tokens: a short rise, then half a cosine."""
    if share < WARM_UP:
        return recipe.rate * max(share / WARM_UP, 0.05)
    wave = (1 + math.cos(math.pi * min((share - WARM_UP) / (1 - WARM_UP), 1))) / 2
    return recipe.rate * (LAST_RATE + (1 - LAST_RATE) * wave)


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1_200_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--together", type=int, default=1, help="examples of one step")
    parser.add_argument("--rehearsal", type=Path, help="file that training.rehearsal wrote")
    parser.add_argument("--rehearsed", type=float, default=0.12, help="its share of the examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = vars(parser.parse_args())
    data, out, device = given.pop("data"), given.pop("out"), torch.device(given.pop("device"))
    file = given.pop("rehearsal")
    rehearsals = [] if file is None else read_rehearsals(file)
    train(Recipe(**given), data, out, device, rehearsals)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    device: torch.device,
    rehearsals: Sequence[Example] = (),
) -> None:
    """Trains to the end of the recipe, from where an earlier call stopped."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    folder = default_model_folder()
    tokenizer = load_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=best_dtype(device), attn_implementation=ATTENTION
    )
    adapters = add_adapters(model, recipe.rank, recipe.alpha)
    torch.nn.Module.to(model, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    state = _restore(out, recipe, adapters, optimizer)
    library = Library.load(data)
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while state["tokens"] < recipe.tokens:
            share = state["tokens"] / recipe.tokens
            wanted = next(tokens for until, tokens in CURRICULUM if share < until)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(recipe, share)
            began, losses, tokens = time.perf_counter(), [], 0
            for _ in range(recipe.together):
                number = state["examples"]
                example = draw_rehearsal(
                    rehearsals, recipe.rehearsed, recipe.seed, number
                ) or draw_example(library, recipe.seed, number, wanted, recipe.conversations)
                state["examples"] += 1
                if not example.conversations:
                    continue
                encoded = encode_example(tokenizer, example)
                loss = answer_loss(model, encoded)
                (loss / recipe.together).backward()
                losses.append(float(loss.detach()))
                tokens += encoded.length
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state["step"] += 1
            state["tokens"] += max(tokens, 1)
            seconds = time.perf_counter() - began
            line = {
                **{k: state[k] for k in ("step", "tokens", "examples")},
                "loss": round(sum(losses) / max(len(losses), 1), 4),
                "norm": round(float(norm), 3),
                "seconds": round(seconds, 2),
            }
            log.write(json.dumps(line) + "\n")
            log.flush()
            if state["step"] % KEPT_EVERY == 0:
                _keep(out, recipe, adapters, optimizer, state)
    _keep(out, recipe, adapters, optimizer, state)
    save_adapter(adapters, out / "adapter", alpha=recipe.alpha, base=folder.name)


def _keep(
    out: Path,
    recipe: Recipe,
    adapters: dict[str, LowRank],
    optimizer: torch.optim.Optimizer,
    state: dict[str, int],
) -> None:
    weights = {
        f"{name}.{part}": getattr(adapter, part).detach()
        for name, adapter in adapters.items()
        for part in ("lora_A", "lora_B")
    }
    kept = {
        "recipe": asdict(recipe),
        "weights": weights,
        "optimizer": optimizer.state_dict(),
        "state": state,
    }
    torch.save(kept, out / "checkpoint.part")
    (out / "checkpoint.part").replace(out / "checkpoint.pt")


def _restore(
    out: Path,
    recipe: Recipe,
    adapters: dict[str, LowRank],
    optimizer: torch.optim.Optimizer,
) -> dict[str, int]:
    path = out / "checkpoint.pt"
    if not path.exists():
        return {"step": 0, "tokens": 0, "examples": 0}
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    if kept["recipe"] != asdict(recipe):
        raise SystemExit(
            f"{path} was made by another recipe: {kept['recipe']}. Name another --out, or give "
            "the same options."
        )
    with torch.no_grad():
        for name, adapter in adapters.items():
            for part in ("lora_A", "lora_B"):
                getattr(adapter, part).copy_(kept["weights"][f"{name}.{part}"])
    optimizer.load_state_dict(kept["optimizer"])
    state: dict[str, int] = kept["state"]
    return state


if __name__ == "__main__":
    main()
