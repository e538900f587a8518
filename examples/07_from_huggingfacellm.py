"""From HuggingFaceLLM to PaceLLM: three lines change, the query engine stays.

Before:

    from llama_index.llms.huggingface import HuggingFaceLLM
    nodes = SimpleDirectoryReader("documents").load_data()
    llm = HuggingFaceLLM(model_name=..., tokenizer_name=..., context_window=...)

After: the three lines marked below. The window is the model's own, so that all pages go into one
call; streaming, async, stop strings, tools and usage work; a second question reads only itself.
"""

from __future__ import annotations

from pathlib import Path

from llama_index.core import SummaryIndex

from llama_index.llms.pacellm import PaceLLM, PaceReader, page_nodes  # changed

FILE = Path(__file__).parent / "documents" / "supplier-contract.pdf"


def main() -> None:
    """An ordinary summary index over every page of a contract."""
    nodes = page_nodes(PaceReader().load_data(FILE))  # changed: pages stay whole
    llm = PaceLLM(max_tokens=32)  # changed: or model="Qwen/Qwen3-4B-Instruct-2507"
    engine = SummaryIndex(nodes=nodes).as_query_engine(llm=llm, response_mode="compact")
    for question in ("Who is the Purchaser?", "Within how many days are invoices payable?"):
        print(question)
        print(engine.query(question))


if __name__ == "__main__":
    main()
