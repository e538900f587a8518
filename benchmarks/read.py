"""Reading and decoding: ours beside transformers' own generate(), in one run.

Both read the same prompt with the same weights in the same number type, taking turns. Times are
medians of the rounds, ratios medians of the rounds' own ratios. Peak memory is measured in a
process of its own for each of the two, above what the process held once the weights were loaded.
Prints a table and, last, a line of JSON.

    python benchmarks/read.py [--model NAME] [--lengths 1024 4096 8000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import psutil
import torch

from pacellm_rag.models.loading import load_model
from pacellm_rag.models.model import PaceModel
from pacellm_rag.protocols import GenerationOptions

NEW_TOKENS = 33


@dataclass(frozen=True)
class Times:
    """Seconds of one run: to the first token, and per token after it."""

    first: float
    per_token: float


def prompt_of(model: PaceModel, length: int) -> list[int]:
    """Text of Python's manual, as tokens."""
    text = "\n\n".join(topics[key] for key in sorted(topics))
    ids: list[int] = model.tokenizer.hf(text, verbose=False)["input_ids"]
    while len(ids) < length:
        ids = ids + ids
    return ids[:length]


def run_ours(model: PaceModel, ids: list[int], *, attend: bool = False) -> Times:
    """Prefill of all but twelve tokens, then an answer, as the reader does it.

    Everything is read anew: what earlier rounds have read is forgotten before the clock starts.
    """
    model.engine.runner.cache.shrink(0)
    _ = model.engine.runner.decoder.attends  # found out once, before the clock
    started = time.perf_counter()
    state = model.prefill(ids[:-12])
    spans = [(i, i + 40) for i in range(40, len(ids) - 60, 40)] if attend else []
    stream = model.stream(ids, GenerationOptions(max_new_tokens=NEW_TOKENS), attend_to=spans)
    first = 0.0
    while stream.finish_reason is None:
        next(stream, None)
        first = first or time.perf_counter() - started
    total = time.perf_counter() - started
    if state.tokens_reused or stream.tokens_reused != len(ids) - 12:
        raise RuntimeError("A round found read what it was to read, or read it twice.")
    return Times(first, (total - first) / (stream.completion_tokens - 1))


def run_plain(model: PaceModel, ids: list[int]) -> Times:
    """Transformers' generate() with its default cache and attention."""
    from transformers import LogitsProcessor, LogitsProcessorList

    stamps: list[float] = []

    class Clock(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            stamps.append(time.perf_counter())
            return scores

    started = time.perf_counter()
    with torch.inference_mode():
        model.module.generate(
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            logits_processor=LogitsProcessorList([Clock()]),
        )
    return Times(stamps[0] - started, (stamps[-1] - stamps[0]) / (len(stamps) - 1))


def load(name: str | None, which: str) -> PaceModel:
    """The model with our attention, or as transformers loads it."""
    attention = "auto" if which == "ours" else "sdpa"
    model = load_model(name, attention=attention, store_bytes=0)
    model._stop_ids = frozenset()  # both run to NEW_TOKENS
    return model


def peak_above_weights(work: Callable[[], object]) -> int:
    """Most bytes resident while `work` runs, above what was resident before it."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - before


def measure_memory(name: str | None, which: str, length: int) -> int:
    """Peak memory in this process; called in a fresh one."""
    model = load(name, which)
    ids = prompt_of(model, length)
    run = run_ours if which == "ours" else run_plain
    run(model, ids[:64])  # one-time allocations of the libraries
    return peak_above_weights(lambda: run(model, ids))


def memory_in_child(name: str | None, which: str, length: int) -> int:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", which, "--lengths", str(length)]
    if name:
        command += ["--model", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def paired(ours: list[Times], plain: list[Times], what: str) -> float:
    """Median over the rounds of ours against plain in the same round: load that lasts cancels."""
    pairs = zip(ours, plain, strict=True)
    return statistics.median(float(getattr(a, what) / getattr(b, what)) for a, b in pairs)


def compare(name: str | None, lengths: list[int], rounds: int) -> list[dict[str, float]]:
    """One row per length."""
    ours, plain = load(name, "ours"), load(name, "plain")
    heads = ours.retrieval_heads  # the probe runs before the clock
    rows = []
    for length in lengths:
        ids = prompt_of(ours, length)
        run_ours(ours, ids[:256])
        run_plain(plain, ids[:256])
        mine, cited, theirs = [], [], []
        for _ in range(rounds):
            theirs.append(run_plain(plain, ids))
            mine.append(run_ours(ours, ids))
            if heads is not None:
                cited.append(run_ours(ours, ids, attend=True))
        row: dict[str, float] = {"tokens": length}
        for label, times in (("plain", theirs), ("ours", mine), ("cited", cited or mine)):
            row[f"{label}_ttft_s"] = statistics.median(t.first for t in times)
            row[f"{label}_tpot_ms"] = statistics.median(t.per_token for t in times) * 1000
        for label in ("plain", "ours"):
            row[f"{label}_peak_mb"] = memory_in_child(name, label, length) / 2**20
        row["ttft_ratio"] = paired(mine, theirs, "first")
        row["tpot_ratio"] = paired(mine, theirs, "per_token")
        row["cited_tpot_ratio"] = paired(cited or mine, theirs, "per_token")
        row["peak_ratio"] = row["ours_peak_mb"] / row["plain_peak_mb"]
        rows.append({key: round(value, 4) for key, value in row.items()})
        print(format_row(rows[-1]), flush=True)
    return rows


COLUMNS = {
    "tokens": "tokens",
    "TTFT plain s": "plain_ttft_s",
    "ours s": "ours_ttft_s",
    "ratio": "ttft_ratio",
    "TPOT plain ms": "plain_tpot_ms",
    "ours ms": "ours_tpot_ms",
    "ratio ": "tpot_ratio",
    "citing ratio": "cited_tpot_ratio",
    "peak plain MB": "plain_peak_mb",
    "ours MB": "ours_peak_mb",
    "ratio  ": "peak_ratio",
}


def format_row(row: dict[str, float]) -> str:
    """A line of the table."""
    cells = []
    for title, key in COLUMNS.items():
        digits = 0 if key == "tokens" or key.endswith("_mb") else 2
        cells.append(f"{row[key]:>{len(title)}.{digits}f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs the comparison, or one measurement of memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=["ours", "plain"])
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(arguments.model, arguments.memory_of, arguments.lengths[0]))
        return
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'|'.join('-' * (len(title) + 1) + ':' for title in COLUMNS)}|", flush=True)
    rows = compare(arguments.model, arguments.lengths, arguments.rounds)
    dtype = str(load_model(arguments.model, store_bytes=0).dtype)
    machine = {"machine": platform.machine(), "torch": torch.__version__}
    print(
        json.dumps(
            {
                "benchmark": "read",
                "dtype": dtype,
                "rows": rows,
                "threads": torch.get_num_threads(),
                **machine,
            }
        )
    )


if __name__ == "__main__":
    main()
