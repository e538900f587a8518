"""From ChatHuggingFace to PaceLLM: three lines change, the chain stays.

Before:

    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
    pipeline = HuggingFacePipeline.from_model_id(model_id=..., task="text-generation")
    model = ChatHuggingFace(llm=pipeline)

After: the three lines marked below. Answers stream, async does not block, stop strings and token
limits hold, usage is reported, and the second question does not read the documents again.
"""

from __future__ import annotations

from pathlib import Path

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_pacellm import ChatPaceLLM, PacePDFLoader  # changed

FILES = sorted((Path(__file__).parent / "documents").glob("supplier*.pdf"))


def main() -> None:
    """An ordinary LCEL chain over every page of a contract."""
    pages = PacePDFLoader(FILES).load()  # changed: every page, with its printed number
    model = ChatPaceLLM(max_tokens=32)  # changed: or model="Qwen/Qwen3-4B-Instruct-2507"
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from this contract.\n\n{contract}"), ("user", "{question}")]
    )
    chain = prompt | model | StrOutputParser()
    contract = "\n\n".join(page.page_content for page in pages)
    for question in ("Who is the Purchaser?", "Within how many days are invoices payable?"):
        print(question)
        for piece in chain.stream({"contract": contract, "question": question}):
            print(piece, end="", flush=True)
        print()
    usage = model.invoke(
        prompt.format_messages(contract=contract, question="Which law governs it?")
    ).usage_metadata
    print(usage)


if __name__ == "__main__":
    main()
