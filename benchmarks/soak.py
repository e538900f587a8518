"""Many askers on one small model for some minutes, with everything going wrong that can.

Askers in threads and in asyncio ask about documents of their own and of others, cancel, close,
come too late, start without pulling; forward passes and samplers fail now and then, memory seems
to run out, the cache holds a fraction of what is read, and readings go to disk and come back.
Every answer that was completed is compared with its twin, which a fresh engine made alone; every
error must be one that was asked for. Afterwards nothing may be left: no pin, no node, no request,
and no more memory than before. Prints a table and, last, a line of JSON; ends with 1 on any
violation.

    python benchmarks/soak.py [--answers 2000] [--askers 64] [--seconds 180]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from pacellm_rag.errors import (
    CancelledError,
    DeadlineExceededError,
    InsufficientMemoryError,
    QueueFullError,
)
from pacellm_rag.models.engine_limits import EngineLimits
from pacellm_rag.models.generation import Generation
from pacellm_rag.models.model import PaceModel
from pacellm_rag.pace.config import PaceConfig
from pacellm_rag.protocols import GenerationOptions, PromptLayout
from pacellm_rag.testing import tiny_model

PACE = PaceConfig(layers=(0, 2), slots=16, window=20, low=-0.2, high=0.5, blend=0.5)
DOCUMENTS, QUESTIONS, TOKENS = 24, 3, 280  # documents, questions on each, tokens of a document
CACHE_BYTES = 3_000_000  # a few documents
STORE_BYTES = 6_000_000
GROWTH = 1.05  # most resident memory afterwards, of that before


class InjectedError(Exception):
    """A fault of ours, put into a request on purpose."""


Case = tuple[tuple[int, ...], PromptLayout, GenerationOptions]


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens that are no special ones."""
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(4, 260, (count,), generator=generator)]


def cases() -> list[Case]:
    """Prompts of one or two documents, of which many begin alike, and a question."""
    found: list[Case] = []
    for document in range(DOCUMENTS):
        for question in range(QUESTIONS):
            ids = tokens(TOKENS, document % (DOCUMENTS // 2))
            ends = [len(ids)]
            if document >= DOCUMENTS // 2:
                ids += tokens(TOKENS, document)
                ends.append(len(ids))
            start = 0 if question == 1 else len(ids)
            ids += tokens(10 + 5 * question, 1000 + question)
            options = GenerationOptions(max_new_tokens=6 + 4 * question)
            found.append(
                (tuple(ids), PromptLayout((0, start) if start else (0,), tuple(ends)), options)
            )
    return found


def make(store: bool) -> PaceModel:
    """The model, with the same weights every time."""
    limits = EngineLimits(max_running=12, max_queue=256, cache_bytes=CACHE_BYTES)
    return tiny_model(
        "llama", pace=PACE, window=64, limits=limits, store_bytes=STORE_BYTES if store else 0
    )


def twins_of(every: list[Case]) -> list[str]:
    """The answers, each alone on an engine that knows nothing."""
    model, answers = make(store=False), []
    for ids, layout, options in every:
        model._engine = None
        answers.append("".join(model.stream(ids, options, layout=layout)))
    return answers


class Soak:
    """The askers and what they found.

    Args:
        answers: to complete.
        seconds: after which it ends anyway.
        seed: of everything random.
    """

    def __init__(self, model: PaceModel, every: list[Case], twins: list[str], seed: int) -> None:
        self.model = model
        self.cases = every
        self.twins = twins
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.answers = 0
        self.until = 0.0
        self.faults = random.Random(seed)
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        """Counts something."""
        with self._lock:
            self.counts[what] += 1

    def problem(self, what: str) -> None:
        """Notes a violation."""
        with self._lock:
            self.counts["violations"] += 1
            self.problems.append(what)

    def over(self) -> bool:
        """Whether enough was asked."""
        return self.counts["completed"] >= self.answers or time.monotonic() > self.until

    def fail_at_times(self, *_: object) -> None:
        """A hook on forward passes: in the engine's worker only."""
        drawn = self.faults.random()
        if drawn < 0.004:
            self.count("injected: no memory")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: injected")
        if drawn < 0.006:
            self.count("injected: pass fails")
            raise InjectedError("a pass")

    @contextlib.contextmanager
    def expecting(self, *asked_for: type[Exception]) -> Iterator[None]:
        """Counts errors that may come, and notes those that may not."""
        expected: tuple[type[Exception], ...] = (
            InjectedError, InsufficientMemoryError, QueueFullError, *asked_for,
        )  # fmt: skip
        try:
            yield
        except expected as error:
            self.count(f"ended by {type(error).__name__}")
        except Exception as error:
            self.problem(f"{type(error).__name__}: {error}")

    def request(self, rng: random.Random) -> tuple[Generation, str, str, threading.Event]:
        """A request, its twin, what will be done to it, and its cancel signal."""
        number = rng.randrange(len(self.cases))
        ids, layout, options = self.cases[number]
        what = rng.choices(
            ["whole", "start", "cancel", "deadline", "close", "drop", "sampler", "prefill"],
            [50, 10, 8, 6, 8, 5, 4, 9],
        )[0]
        if what == "deadline":
            options = GenerationOptions(
                max_new_tokens=options.max_new_tokens, timeout=rng.uniform(1e-4, 0.5)
            )
        cancel = threading.Event()
        stream = self.model.stream(ids, options, layout=layout, cancel=cancel)
        if what == "sampler":
            left, sampler = [rng.randrange(6)], stream._answering.sampler

            def failing(logits: torch.Tensor) -> int:
                left[0] -= 1
                if left[0] < 0:
                    raise InjectedError("a sampler")
                return sampler(logits)

            stream._answering.sampler = failing  # type: ignore[assignment]
        return stream, self.twins[number], what, cancel

    def completed(self, stream: Generation, text: str, twin: str) -> None:
        """Compares an answer."""
        self.count("completed")
        if stream.tokens_reused:
            self.count("completed with tokens known before")
        if text != twin:
            self.problem(f"another answer: {text!r} instead of {twin!r}")
        if stream.tokens_reused + stream.tokens_read != len(stream._request.token_ids):
            self.problem("tokens do not add up")

    def ask_in_thread(self, seed: int) -> None:
        """One asker of the sync face."""
        rng = random.Random(seed)
        while not self.over():
            stream, twin, what, cancel = self.request(rng)
            if what == "prefill":
                with self.expecting():
                    ids, layout = stream._request.token_ids, stream._request.layout
                    state = self.model.prefill(ids[: layout.document_ends[0]], layout=layout)
                    self.count("prefilled")
                    del state
                continue
            with self.expecting(CancelledError, DeadlineExceededError):
                pieces: list[str] = []
                if what == "start":
                    stream.start()
                    time.sleep(rng.uniform(0, 0.05))
                for piece in stream:
                    pieces.append(piece)
                    if what in ("cancel", "close", "drop") and rng.random() < 0.4:
                        if what == "drop":
                            break
                        cancel.set() if what == "cancel" else stream.close()
                if stream.finish_reason in ("stop", "length"):
                    self.completed(stream, "".join(pieces), twin)
                else:
                    self.count("closed or dropped")
            del stream

    async def ask_in_task(self, seed: int, leaving: threading.Event) -> None:
        """One asker of the async face."""
        rng = random.Random(seed)
        while not self.over() and not leaving.is_set():
            stream, twin, what, _ = self.request(rng)
            with self.expecting(CancelledError, DeadlineExceededError):

                async def whole(stream: Generation = stream) -> str:
                    return "".join([piece async for piece in stream])

                task = asyncio.create_task(whole())
                if what in ("cancel", "close", "drop"):
                    await asyncio.sleep(rng.uniform(0, 0.1))
                    task.cancel()
                try:
                    text = await task
                except asyncio.CancelledError:
                    self.count("cancelled tasks")
                    continue
                self.completed(stream, text, twin)
            del stream

    def run_loop(self, seeds: list[int]) -> None:
        """Event loops that are closed while the engine is at work, one after the other."""
        while not self.over():

            async def some_time(seeds: list[int] = seeds) -> None:
                leaving = threading.Event()
                tasks = [asyncio.create_task(self.ask_in_task(s, leaving)) for s in seeds]
                await asyncio.wait(tasks, timeout=4)
                leaving.set()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

            asyncio.run(some_time())
            self.count("event loops closed")
            seeds = [seed + 1000 for seed in seeds]

    def run(self, askers: int, answers: int, seconds: float) -> None:
        """Half of the askers in threads, half in an event loop."""
        self.answers, self.until = answers, time.monotonic() + seconds
        self.counts.clear()
        threads = [
            threading.Thread(target=self.ask_in_thread, args=(self.seed + n,), daemon=True)
            for n in range(askers // 2)
        ]
        seeds = [self.seed + n for n in range(askers // 2, askers)]
        threads.append(threading.Thread(target=self.run_loop, args=(seeds,), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(self.until - time.monotonic(), 0) + 60)
            if thread.is_alive():
                self.problem("an asker waits for ever")


def wait_for(true: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something comes true in time."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


def emptied(soak: Soak) -> float:
    """Resident megabytes, after everything that can go has gone; notes what stays."""
    model = soak.model
    cache = model.engine.runner.cache
    gc.collect()
    if not wait_for(lambda: model.engine.idle):
        soak.problem("requests are left in the engine")
    model.flush()
    gc.collect()
    if not wait_for(lambda: not any(node.pins for node in cache.nodes())):
        soak.problem("nodes are left pinned")
    cache.shrink(0)
    if list(cache.nodes()):
        soak.problem("nodes are left in the cache")
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    """Runs the askers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--askers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pacellm_rag").setLevel(logging.ERROR)
    started = time.perf_counter()
    every = cases()
    twins = twins_of(every)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PACELLM_RAG_READINGS"] = str(Path(folder) / "readings")
        os.environ["PACELLM_RAG_CACHE"] = str(Path(folder) / "cache")
        soak = Soak(make(store=True), every, twins, arguments.seed)
        hook = soak.model.module.base_model.register_forward_pre_hook(soak.fail_at_times)
        # what a process takes once, such as stacks of threads, is taken before the first look
        soak.run(arguments.askers, max(arguments.answers // 8, 1), arguments.seconds / 8)
        early = list(soak.problems)
        before = emptied(soak)
        began = time.perf_counter()
        soak.run(arguments.askers, arguments.answers, arguments.seconds)
        took = time.perf_counter() - began
        after = emptied(soak)
        hook.remove()
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        if stored > STORE_BYTES:
            soak.problem(f"{stored} bytes are on disk")
        if not soak.counts["completed"]:
            soak.problem("no answer was completed")
        if after > GROWTH * before:
            soak.problem(f"memory grew from {before:.0f} to {after:.0f} MB")
    problems = sorted({*early, *soak.problems})
    figures: dict[str, float] = {
        **dict(sorted(soak.counts.items())),
        "answers_per_s": round(soak.counts["completed"] / took, 1),
        "rss_mb_before": round(before, 1),
        "rss_mb_after": round(after, 1),
        "rss_ratio": round(after / before, 3),
    }
    print("| what | value |\n|---|---:|")
    for what, value in figures.items():
        print(f"| {what.replace('_', ' ')} | {value:,} |")
    for text in problems[:20]:
        print(f"VIOLATION: {text}")
    print(
        json.dumps(
            {
                "benchmark": "soak",
                "violations": len(problems),
                **figures,
                "askers": arguments.askers,
                "seconds": round(time.perf_counter() - started, 1),
                "seed": arguments.seed,
                "machine": platform.machine(),
                "torch": torch.__version__,
            }
        )
    )
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
