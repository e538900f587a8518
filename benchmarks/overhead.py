"""What PaceLLM costs: the same weights with banks attached and plain, taking turns in one run.

Medians of the rounds. The arithmetic floor of a patched layer, 4 M d_ff multiplications beside the
layer's own 3 d_ff d_model (two projections: 2 d_ff d_model), is printed beside the ratio that was
measured. `--shape qwen2-0.5b` takes random weights of that shape instead of a model. Prints a table
and, last, a line of JSON.

    python benchmarks/overhead.py [--model NAME | --shape qwen2-0.5b] [--tokens 4096] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from pacellm_rag.models.attention import IMPLEMENTATION
from pacellm_rag.models.decoder import Batch, Decoder
from pacellm_rag.models.kv_cache import Block, RowLayer, cache_blocks, layers_bytes
from pacellm_rag.models.loading import best_dtype, load_model
from pacellm_rag.pace.attach import attach
from pacellm_rag.pace.cache import memories_of, set_phase
from pacellm_rag.pace.config import PaceConfig

NEW_TOKENS = 32
WINDOW = 1024


def random_model(layers: int) -> PreTrainedModel:
    """Random weights of Qwen2-0.5B's shape."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=32000,
        max_position_embeddings=32768,
    )
    model: PreTrainedModel = Qwen2ForCausalLM(config).eval()
    torch.nn.Module.to(model, best_dtype(torch.device("cpu")))
    model.set_attn_implementation(IMPLEMENTATION)
    return model


def run(model: PreTrainedModel, ids: list[int], *, paced: bool) -> tuple[float, float, int, int]:
    """Seconds to read, seconds per decoded token, bytes of the cache and of the memories."""
    decoder = Decoder(model, stateful=paced)
    _ = decoder.attends  # found out once, before the clock
    cache = decoder.open((), None, Block(len(ids) + NEW_TOKENS))
    started = time.perf_counter()
    for start in range(0, len(ids), WINDOW):
        decoder.read(cache, ids[start : start + WINDOW])
    decoder.close_windows(cache)
    read = time.perf_counter() - started
    set_phase(cache, "decode")
    batch = Batch(decoder, [cache])
    token, steps = ids[0], []
    for length in range(len(ids), len(ids) + NEW_TOKENS):
        before = time.perf_counter()
        token = int(batch.step([token], [length], [None]).argmax(-1))
        steps.append(time.perf_counter() - before)
    batch.close()
    memory = sum(
        tensor.nbytes
        for held in memories_of(cache).values()
        for tensor in (*held.bank.tensors().values(), held.pending)
    )
    others = layers_bytes(layer for layer in cache.layers if not isinstance(layer, RowLayer))
    kept = others + sum(block.nbytes for block in cache_blocks(cache))
    return read, statistics.median(steps), kept, memory


def compare(
    model: PreTrainedModel, ids: list[int], config: PaceConfig, rounds: int
) -> dict[str, float]:
    """Medians with and without banks."""
    plain, paced = [], []
    cache = memory = 0
    run(model, ids[:1100], paced=False)
    for _ in range(rounds):
        plain.append(run(model, ids, paced=False))
        with attach(model, config):
            paced.append(run(model, ids, paced=True))
        cache, memory = paced[-1][2:]

    def median(rows: list[tuple[float, float, int, int]], column: int) -> float:
        return statistics.median(row[column] for row in rows)

    text = model.config.get_text_config(decoder=True)
    depth, width = text.num_hidden_layers, text.hidden_size
    layer = 4 * config.slots / (6 * width)  # of one feed-forward network with a gate
    return {
        "tokens": len(ids),
        "read_plain_s": median(plain, 0),
        "read_pace_s": median(paced, 0),
        "read_ratio": statistics.median(b[0] / a[0] for a, b in zip(plain, paced, strict=True)),
        "decode_plain_ms": median(plain, 1) * 1000,
        "decode_pace_ms": median(paced, 1) * 1000,
        "decode_ratio": statistics.median(b[1] / a[1] for a, b in zip(plain, paced, strict=True)),
        "floor_of_a_layer": 1 + layer,
        "floor_of_all_layers": 1 + layer * len(config.layers_of(depth)) / depth,
        "cache_mb": cache / 2**20,
        "memory_mb": memory / 2**20,
    }


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--shape", choices=["qwen2-0.5b"])
    parser.add_argument("--layers", type=int, default=24, help="of the random model")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.shape:
        model, name = random_model(arguments.layers), arguments.shape
    else:
        loaded = load_model(arguments.model, pace=None)
        model, name = loaded.module, loaded.name
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(100, vocabulary, (arguments.tokens,), generator=generator).tolist()
    row = compare(model, ids, PaceConfig(), arguments.rounds)
    print("| what | value |\n|---|---:|")
    for key, value in row.items():
        print(f"| {key.replace('_', ' ')} | {value:,.4g} |")
    print(json.dumps({"benchmark": "overhead", "model": name, "dtype": str(model.dtype), **row}))


if __name__ == "__main__":
    main()
