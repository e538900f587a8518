"""A contract for LlamaIndex' LLMs, as tests to subclass: `LLMContract`.

    from llama_index.llms.pacellm.contract import LLMContract

    class TestMyLLM(LLMContract):
        reuses_prefixes = False

        def make_llm(self, **settings):
            return MyLLM(temperature=0, **settings)

        def failing_llm(self): ...
        def work_done(self, llm): ...

It demands what LlamaIndex' own parts count on, and what people miss in LLMs that run on their
machine: answers that are the same by every way, strings that stop, streams that can be left,
errors that arrive, an event loop that stays free, events with their ends, and true counts. Every
switch begins on the strict side (`ContractModel` lists them). Needs pytest, and no plugin of it;
nothing in it is about PaceLLM.
"""

import pytest

for _part in ("model", "answers", "calls", "events", "failures"):
    pytest.register_assert_rewrite(f"llama_index.llms.pacellm.contract_{_part}")

from llama_index.llms.pacellm.contract_answers import AnswerContract  # noqa: E402
from llama_index.llms.pacellm.contract_calls import CallContract  # noqa: E402
from llama_index.llms.pacellm.contract_events import EventContract  # noqa: E402
from llama_index.llms.pacellm.contract_failures import FailureContract  # noqa: E402

__all__ = ["LLMContract"]


class LLMContract(AnswerContract, CallContract, EventContract, FailureContract):
    """Subclass it as `Test...`, and override `make_llm`, `failing_llm` and `work_done`."""
