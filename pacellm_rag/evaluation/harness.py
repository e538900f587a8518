"""Tasks of EleutherAI's lm-evaluation-harness (`lm_eval`) as a suite.

The harness makes prompts and scores; this makes its documents into groups, so that its tasks get
arms, resumed runs and paired intervals like any other suite. Knows the harness; knows nothing of
banks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacellm_rag.errors import CancelledError, ConfigurationError, MissingDependencyError
from pacellm_rag.evaluation.types import WHOLE, Group, Outcome
from pacellm_rag.protocols import CancelSignal, PromptTokenizer, TextModel

if TYPE_CHECKING:
    from pacellm_rag.evaluation.harness_model import HarnessModel

__all__ = ["HarnessSuite"]

_METRIC = "score"


@dataclass(frozen=True)
class HarnessSuite:
    """Tasks that the harness knows, one of their documents a group.

    The score of a document is the first of its task's metrics that lies between 0 and 1.

    Attributes:
        tasks: names, as the harness has them; groups of tasks are fine.
        include: folder of the user's own task files; None for the harness's own only.
        max_length: documents of tasks that make theirs by length are made this long, in tokens;
            None for the model's window.
        tokenizer_path: where such tasks find the tokenizer; folder or hub id.
        chat_template: put prompts into the model's chat template.
        seed: of few-shot examples.
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    max_length: int | None = None
    tokenizer_path: str | None = None
    chat_template: bool = False
    seed: int = 0
    name: str = field(default="lm-eval", init=False)
    metric: str = field(default=_METRIC, init=False)
    readings: Sequence[str] = field(default=(WHOLE,), init=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Suite.settings`."""
        from pacellm_rag.evaluation.harness_model import DEVIATIONS

        return {
            "tasks": list(self.tasks),
            "include": None if self.include is None else str(self.include),
            "max_length": self.max_length,
            "chat_template": self.chat_template,
            "seed": self.seed,
            "lm_eval": _harness_version(),
            "deviations": [*DEVIATIONS, "Few-shot examples are drawn anew for every document."],
        }

    def groups(self, tokenizer: PromptTokenizer) -> Sequence[Group[int]]:
        """Every document of every task, by its index."""
        loaded = self._load(self.max_length or tokenizer.context_window)
        return [
            Group(f"{name}/{index}", (index,))
            for name, task in loaded.items()
            for index in range(len(list(task.eval_docs)))
        ]

    def answer(
        self,
        model: TextModel,
        group: Group[int],
        *,
        reading: str = WHOLE,
        cancel: CancelSignal | None = None,
    ) -> Iterator[Outcome]:
        """Puts one document to a model; the harness can not be stopped within one."""
        from lm_eval.evaluator import evaluate

        from pacellm_rag.evaluation.harness_model import HarnessModel
        from pacellm_rag.models.model import PaceModel

        if not isinstance(model, PaceModel):
            raise ConfigurationError(
                f"The harness drives models of transformers only, not a {type(model).__name__}."
            )
        if cancel is not None and cancel.is_set():
            raise CancelledError("Stopped before the next document.")
        name, _, _ = group.id.rpartition("/")
        task = self._load(self.max_length or model.context_window)[name]
        task.set_fewshot_seed(seed=self.seed)
        driven = HarnessModel(model)
        started = time.perf_counter()
        result = evaluate(
            driven,
            {"tasks": {name: task}, "groups": {}, "group_map": {}},
            samples={name: list(group.samples)},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=self.chat_template,
        )
        seconds = time.perf_counter() - started
        yield _outcome(name, group.id, result["samples"][name], driven, seconds)

    def _load(self, length: int) -> dict[str, Any]:
        """The tasks, made once."""
        if length not in self._made:
            self._made[length] = self._make(length)
        return self._made[length]

    @cached_property
    def _made(self) -> dict[int, dict[str, Any]]:
        return {}

    def _make(self, length: int) -> dict[str, Any]:
        _harness_version()
        from lm_eval.tasks import TaskManager

        for logger in ("lm_eval", "datasets"):  # they tell programmers, in many lines
            logging.getLogger(logger).setLevel(logging.ERROR)
        metadata: dict[str, Any] = {"max_seq_lengths": [length]}
        if self.tokenizer_path is not None:
            metadata["tokenizer"] = metadata["pretrained"] = self.tokenizer_path
        wanted, manager = set(self.tasks), None
        if self.include is not None:  # the harness takes seconds to look through its own
            manager = TaskManager(
                include_path=str(self.include), include_defaults=False, metadata=metadata
            )
        if manager is None or not wanted <= set(manager.all_tasks):
            own = None if self.include is None else str(self.include)
            manager = TaskManager(include_path=own, metadata=metadata)
        unknown = sorted(wanted - set(manager.all_tasks))
        if unknown:
            raise ConfigurationError(
                f"The harness {_harness_version()} knows no task {unknown[0]!r}; `lm-eval ls tasks`"
                " lists those it knows. Name a folder of your own task files with --include."
            )
        try:
            tasks: dict[str, Any] = manager.load(list(self.tasks))["tasks"]
        except ImportError as error:
            raise MissingDependencyError(
                f"{', '.join(self.tasks)} needs more than the harness itself: {error}"
            ) from error
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"The data of {', '.join(self.tasks)} can not be loaded: {error}\nMany tasks fetch "
                "theirs from the hub or the web; without a network take those that make their own "
                "(niah_single_1, ruler_vt) or write a task file that reads a local one (--include)."
            ) from error
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return tasks


def _harness_version() -> str:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "This needs the lm-evaluation-harness: pip install 'pacellm-rag[eval]'."
        ) from error
    return version("lm_eval")


def _outcome(
    task: str,
    sample: str,
    found: Sequence[Mapping[str, Any]],
    model: HarnessModel,
    seconds: float,
) -> Outcome:
    """The outcome of one document; the harness reports it once for every filter of answers."""
    first = found[0]
    scores: dict[str, float] = {}
    facts: dict[str, Any] = {"wanted": first["target"]}
    for each in found:
        prefix = "" if each["filter"] in ("none", first["filter"]) else f"{each['filter']}."
        for metric in each["metrics"]:
            value = each[metric]
            if isinstance(value, (bool, int, float)) and 0 <= value <= 1:
                scores[f"{prefix}{metric}"] = float(value)
                if str(metric).isdigit():  # RULER scores by length
                    facts["length"] = int(metric)
    if not scores:
        raise ConfigurationError(
            f"The task {task} gives its documents no score between 0 and 1 (only "
            f"{', '.join(map(str, first['metrics'])) or 'none'}), so it can not compare arms."
        )
    return Outcome(
        sample=sample,
        task=task,
        text=_words(first["filtered_resps"]),
        scores={_METRIC: next(iter(scores.values())), **scores},
        prompt_tokens=model.prompt_tokens,
        tokens_left_out=model.tokens_left_out,
        tokens_reused=0,
        completion_tokens=model.completion_tokens,
        seconds=seconds,
        facts=facts,
    )


def _words(answers: Sequence[Any]) -> str:
    """What the model said; of answers to choose from, the likelihood of each."""
    first = answers[0] if answers else ""
    if isinstance(first, str):
        return first
    return " ".join(f"{float(each[0]):.4f}" for each in answers)
