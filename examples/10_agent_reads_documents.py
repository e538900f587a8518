"""An agent that reads whole documents as a tool.

The agent decides what to ask; the tool puts the question to every page of the documents and
answers with the pages it rests on. The first call is asked for by `initial_tool_choice`: the small
default model would not think of it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from llama_index.core.agent.workflow import AgentOutput, FunctionAgent, ToolCallResult
from llama_index.core.tools import QueryEngineTool

from llama_index.llms.pacellm import PaceLLM, PaceReader, WholeDocumentQueryEngine, page_nodes

FILE = Path(__file__).parent / "documents" / "equipment-manual.pdf"


async def main() -> None:
    """Asks the agent, and shows what it asked the tool."""
    llm = PaceLLM(max_tokens=48)
    engine = WholeDocumentQueryEngine(llm, page_nodes(PaceReader().load_data(FILE)))
    tool = QueryEngineTool.from_defaults(
        engine, name="read_manual", description="Answers a question from the pump sets' manual."
    )
    agent = FunctionAgent(tools=[tool], llm=llm, initial_tool_choice="read_manual")
    handler = agent.run("To what torque are the coupling bolts tightened?", max_iterations=4)
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"asked the manual: {event.tool_kwargs}\n  {event.tool_output.content}")
        elif isinstance(event, AgentOutput) and event.response.content:
            print(f"agent: {event.response.content}")
    await handler


if __name__ == "__main__":
    asyncio.run(main())
