"""A model of a third of a million weights that calls tools rightly: trained here, in a minute.

It knows the conversations of `tool_lessons` by heart and nothing else, which is what tests need
that must have a right call from a real model, real tokens and a real chat template, offline.
Trained once and kept in the cache, under a name made of all that it depends on.

    python tests/integrations/tool_model.py [FOLDER]

trains it where it is not there yet, and prints its folder; FOLDER stands for the cache.
Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock
from tool_lessons import Lesson, lessons

import pacellm_rag.models.tool_template
import pacellm_rag.tool_format

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    from pacellm_rag.models.tokenizer import ChatTokenizer

__all__ = ["Exercise", "exercises", "reply_losses", "tool_model_folder", "train"]

# Any plain text that seldom changes: what the tokenizer learns ordinary words from.
_PLAIN_TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
_VOCABULARY = 1024
_WINDOW = 4096
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
# The way of the Hermes and Qwen models, in fewer words.
_TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool.function | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if not loop.previtem or loop.previtem.role != 'tool' -%}
{{ '<|im_start|>user' }}
{%- endif -%}
{{ '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- elif not (tools and loop.first and message.role == 'system') -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] -%}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif -%}
{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

_SEED = 7
_TOGETHER = 9
_RATE = 3e-3
_WARM_UP = 30
_MOST_STEPS = 3000
_GOAL = 0.01  # loss of the least sure token of all replies: a probability of 0.99


@dataclass(frozen=True)
class Exercise:
    """A lesson in tokens.

    Attributes:
        prompt: the conversation.
        reply: how to go on, with the token that ends the turn.
        given: tokens at the beginning of the reply that are not to be learned.
    """

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    given: int = 0


def tool_model_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the trained model, to be loaded like any other; trains it if it is not there.

    Args:
        cache: what `PACELLM_RAG_CACHE` says for a user of this machine; None where it is not set.
            Tests take it from `real_cache_folder`, for their own cache lasts no longer than they.
    """
    root = Path(cache or platformdirs.user_cache_dir("pacellm-rag")).expanduser() / "tests"
    known = lessons()
    folder = root / f"tool-model-{_recipe(known)}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if not folder.is_dir():  # nobody has made it while we waited
            made = Path(tempfile.mkdtemp(prefix=".tool-model-", dir=root))
            try:
                _save(known, made)
                made.rename(folder)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return folder


def _recipe(known: Sequence[Lesson]) -> str:
    """A hash of everything that the weights depend on."""
    sources = [
        inspect.getsource(module)
        for module in (
            sys.modules[__name__],
            pacellm_rag.tool_format,
            pacellm_rag.models.tool_template,
        )
    ]
    versions = [version(name) for name in ("torch", "transformers", "tokenizers")]
    told = json.dumps([asdict(lesson) for lesson in known], sort_keys=True)
    plain = _PLAIN_TEXT.read_text(encoding="utf-8")
    recipe = json.dumps([*sources, *versions, told, plain])
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _save(known: Sequence[Lesson], folder: Path) -> None:
    import torch

    from pacellm_rag.models.tokenizer import ChatTokenizer

    hf = _tokenizer(known)
    tokenizer = ChatTokenizer(hf, name="tool-model", context_window=_WINDOW)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small are slower on two, and sums depend on it
    try:
        module = train(tokenizer, exercises(tokenizer, known))
    finally:
        torch.set_num_threads(threads)
    module.save_pretrained(folder)
    hf.save_pretrained(folder)


def _tokenizer(known: Sequence[Lesson]) -> PreTrainedTokenizerFast:
    """The Qwen2 tokenizer with a vocabulary of the lessons' words and those of a plain text."""
    from transformers import Qwen2Tokenizer

    texts = [_PLAIN_TEXT.read_text(encoding="utf-8"), *map(_words, known)]
    empty = Qwen2Tokenizer(eos_token="<|im_end|>", model_max_length=_WINDOW)
    hf: PreTrainedTokenizerFast = empty.train_new_from_iterator(
        texts, _VOCABULARY - len(_MARKS), new_special_tokens=_SPECIAL, show_progress=False
    )
    hf.add_tokens(_MARKS)
    hf.chat_template = _TEMPLATE
    return hf


def _words(lesson: Lesson) -> str:
    """Everything that is said in a lesson."""
    said: list[str] = [message.content for message in lesson.messages]
    said += [json.dumps(asdict(tool), ensure_ascii=False) for tool in lesson.tools]
    calls = [{"name": c.name, "arguments": dict(c.arguments)} for c in lesson.calls]
    said += [json.dumps(call, ensure_ascii=False) for call in calls]
    return "\n".join([*said, lesson.answer])


def exercises(tokenizer: ChatTokenizer, known: Sequence[Lesson]) -> list[Exercise]:
    """Lessons in a tokenizer's tokens, rendered as they are when a model is asked."""
    made = []
    for lesson in known:
        prompt = tokenizer.encode_messages(lesson.messages, lesson.tools).token_ids
        reply = lesson.answer
        if lesson.calls:
            reply += tokenizer.tool_format.write(lesson.calls)
        ids = tokenizer.hf(reply, add_special_tokens=False)["input_ids"]
        given = 1 if lesson.choice == "required" else 0  # the mark that begins a call
        made.append(Exercise(prompt, (*ids, tokenizer.hf.eos_token_id), given))
    return made


def train(
    tokenizer: ChatTokenizer, known: Sequence[Exercise], most_steps: int = _MOST_STEPS
) -> Qwen2ForCausalLM:
    """Makes a model that knows some exercises by heart; the same one every time.

    Raises:
        RuntimeError: it does not know them after `most_steps`.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=_VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_WINDOW,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.hf.eos_token_id,
        pad_token_id=tokenizer.hf.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module: Qwen2ForCausalLM = Qwen2ForCausalLM(config)
        _learn(module, known, most_steps)
    module.generation_config = GenerationConfig(
        eos_token_id=sorted(tokenizer.stop_ids), pad_token_id=tokenizer.hf.pad_token_id
    )
    module.eval()
    return module


def _learn(module: Qwen2ForCausalLM, known: Sequence[Exercise], most_steps: int) -> None:
    """Trains on some exercises of like length at a time, until every token of all is sure."""
    import torch

    ordered = sorted(known, key=lambda exercise: len(exercise.prompt) + len(exercise.reply))
    groups = [ordered[at : at + _TOGETHER] for at in range(0, len(ordered), _TOGETHER)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE, weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=_WARM_UP)
    step = 0
    while step < most_steps:
        worst = 0.0
        for number in torch.randperm(len(groups)).tolist():
            losses = torch.cat(reply_losses(module, groups[number]))
            optimizer.zero_grad()
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
            worst = max(worst, float(losses.detach().max()))
            step += 1
        if worst < _GOAL:
            return
    raise RuntimeError(
        f"After {step} steps the least sure token has a loss of {worst:.2f}; it must be below "
        f"{_GOAL}. Two lessons may contradict each other, or there are too many for the model."
    )


def reply_losses(module: Any, known: Sequence[Exercise]) -> list[torch.Tensor]:
    """The loss of every token to learn, one row of them for each exercise."""
    import torch

    told = [torch.tensor((*exercise.prompt, *exercise.reply[:-1])) for exercise in known]
    ids = torch.nn.utils.rnn.pad_sequence(told, batch_first=True)  # behind: nothing looks there
    hidden = module.model(input_ids=ids, use_cache=False).last_hidden_state
    losses = []
    for row, exercise in zip(hidden, known, strict=True):
        before = len(exercise.prompt) - 1  # the place that tells the reply's first token
        logits = module.lm_head(row[before + exercise.given : before + len(exercise.reply)])
        wanted = torch.tensor(exercise.reply[exercise.given :])
        losses.append(torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none"))
    return losses


if __name__ == "__main__":
    cache = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PACELLM_RAG_CACHE")
    sys.stdout.write(f"{tool_model_folder(cache)}\n")
