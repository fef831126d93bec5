"""LlamaIndex's own agents and workflows, with our LLM and memory."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import Context
from pydantic import BaseModel, Field

from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory
from tests.integrations.llama_index.conftest import MODEL, Saying, Slow

# Workflows look at every attribute of an agent, deprecated ones of pydantic too.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The `__?[a-z_]+` attribute:DeprecationWarning",
    "ignore:Accessing the",
    "ignore:is_running called:DeprecationWarning",
)

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def fail(a: int) -> int:
    """Always fail."""
    raise RuntimeError("the machine is broken")


@pytest.fixture
def stored(tmp_path: Path) -> MPlusLLM:
    return MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), max_tokens=8)


def conversation(llm: MPlusLLM, key: str) -> MPlusMemory:
    return MPlusMemory.from_defaults(llm=llm, memory_key=key)


def sources(memory: MPlusMemory) -> list[str]:
    return [" ".join(s.texts) for s in memory.latents.read(MODEL).sources()]


async def test_acceptance_8_function_agent_runs_with_memory(stored: MPlusLLM, say: Saying) -> None:
    memory = conversation(stored, "anna")
    agent = FunctionAgent(llm=stored, tools=[add], system_prompt="Be brief.")
    say(CALL, "It is 3.")
    handler = agent.run("What is 1 + 2?", memory=memory)
    events = [event async for event in handler.stream_events()]
    answer = await handler
    assert str(answer) == "It is 3." and answer.tool_calls[0].tool_output.raw_output == 3
    assert "".join(e.delta for e in events if isinstance(e, AgentStream)) == "It is 3."
    assert sources(memory) == [
        "User: What is 1 + 2?",
        'Assistant: [{"name": "add", "arguments": {"a": 1, "b": 2}}]',
        "Tool: 3",
        "Assistant: It is 3.",
    ]


async def test_a_call_that_has_its_result_is_not_made_again(stored: MPlusLLM, say: Saying) -> None:
    agent = FunctionAgent(llm=stored, tools=[add], system_prompt="Be brief.")
    say(CALL, CALL, "It is 3.")
    answer = await agent.run("What is 1 + 2?", memory=conversation(stored, "anna"))
    assert str(answer) == "It is 3."
    assert len(answer.tool_calls) == 1


async def test_acceptance_8_react_agent_runs_with_memory(stored: MPlusLLM, say: Saying) -> None:
    memory = conversation(stored, "anna")
    agent = ReActAgent(llm=stored, tools=[add])
    say(
        'Thought: I need a tool.\nAction: add\nAction Input: {"a": 1, "b": 2}',
        "Thought: I can answer without using any more tools.\nAnswer: It is 3.",
    )
    assert str(await agent.run("What is 1 + 2?", memory=memory)) == "It is 3."
    assert sources(memory)[0] == "User: What is 1 + 2?" and "Observation: 3" in sources(memory)[-1]


async def test_an_agent_reads_turns_from_before_it_was_made(stored: MPlusLLM, say: Saying, asked: list[Any]) -> None:
    conversation(stored, "anna").put_messages([ChatMessage(content="My dog is called Biscuit.")])
    for agent in (FunctionAgent(llm=stored, tools=[]), ReActAgent(llm=stored, tools=[])):
        say("Thought: I can answer.\nAnswer: Biscuit.")
        output = await agent.run("What is my dog called?", memory=conversation(stored, "anna"))
        assert output.raw["prefix_tokens"] > 0
        assert "Biscuit" not in str(asked[-1])  # the fact itself was not in the prompt
    assert sources(conversation(stored, "anna"))[0] == "User: My dog is called Biscuit."


async def test_agent_workflow_hands_off_and_keeps_one_memory(stored: MPlusLLM, say: Saying) -> None:
    memory = conversation(stored, "anna")
    first = FunctionAgent(name="first", description="Takes questions", llm=stored, can_handoff_to=["second"])
    second = FunctionAgent(name="second", description="Adds numbers", llm=stored, tools=[add])
    workflow = AgentWorkflow(agents=[first, second], root_agent="first")
    handoff = '<tool_call>\n{"name": "handoff", "arguments": {"to_agent": "second", "reason": "sums"}}\n</tool_call>'
    say(handoff, CALL, "It is 3.")
    answer = await workflow.run("What is 1 + 2?", memory=memory)
    assert str(answer) == "It is 3." and answer.current_agent_name == "second"
    said = sources(memory)
    assert said[0] == "User: What is 1 + 2?" and said[-1] == "Assistant: It is 3." and len(said) == len(set(said))


async def test_acceptance_8_a_contexts_json_round_trip_restores_history_and_latents(
    stored: MPlusLLM, say: Saying
) -> None:
    def agent() -> FunctionAgent:
        return FunctionAgent(llm=stored, tools=[add])

    one = agent()
    context = Context(one)
    say("How nice!")
    await one.run("My dog is called Biscuit.", ctx=context, memory=conversation(stored, "anna"))
    saved = json.dumps(context.to_dict())
    assert "how nice" in saved.lower() and len(saved) < 20_000  # names and text, never tensors
    before = conversation(stored, "anna").latents.read(MODEL).fingerprint

    two = agent()
    restored = Context.from_dict(two, json.loads(saved))
    say("Biscuit.")
    output = await two.run("What is my dog called?", ctx=restored)
    memory = await restored.store.get("memory")
    assert isinstance(memory, MPlusMemory)
    assert [m.content for m in memory.get_all()] == [
        "My dog is called Biscuit.",
        "How nice!",
        "What is my dog called?",
        "Biscuit.",
    ]
    assert len(sources(memory)) == 4 and memory.latents.read(MODEL).fingerprint != before
    assert output.raw["usage"]["prompt_tokens"] > 0


async def test_a_long_conversation_stays_within_the_window(stored: MPlusLLM, say: Saying) -> None:
    memory = MPlusMemory.from_defaults(llm=stored, memory_key="anna", token_limit=120)
    agent = FunctionAgent(llm=stored, tools=[])
    for n in range(5):
        say("I see.")
        output = await agent.run(f"Box {n} is in room {n * 7 % 5}, behind the door.", memory=memory)
    assert len(memory.get_all()) == len(sources(memory)) == 10 and len(memory.get()) < 6
    assert output.raw["prefix_tokens"] > 0 and output.raw["usage"]["prompt_tokens"] < 500


async def test_an_error_of_a_tool_reaches_the_model_and_memory(stored: MPlusLLM, say: Saying) -> None:
    memory = conversation(stored, "anna")
    agent = FunctionAgent(llm=stored, tools=[fail])
    say('<tool_call>\n{"name": "fail", "arguments": {"a": 1}}\n</tool_call>', "It is broken.")
    handler = agent.run("Try it.", memory=memory)
    results = [e async for e in handler.stream_events() if isinstance(e, ToolCallResult)]
    assert str(await handler) == "It is broken."
    assert results[0].tool_output.is_error and "Tool: the machine is broken" in sources(memory)


async def test_a_failed_agent_writes_no_answer_into_memory(stored: MPlusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = conversation(stored, "anna")
    monkeypatch.setattr(MODEL, "stream", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        await FunctionAgent(llm=stored, tools=[]).run("Hello?", memory=memory)
    assert sources(memory) == ["User: Hello?"]


async def test_an_agent_gives_objects_of_a_class(stored: MPlusLLM, say: Saying) -> None:
    class Answer(BaseModel):
        number: int = Field(ge=0, le=9)

    agent = FunctionAgent(llm=stored.model_copy(update={"max_tokens": 60}), tools=[], output_cls=Answer)
    say("Three.")
    output = await agent.run("A number?", memory=conversation(stored, "anna"))
    assert Answer.model_validate(output.structured_response)


async def test_an_agent_may_have_the_index_as_a_tool(stored: MPlusLLM, say: Saying) -> None:
    from llama_index.core import Document

    index = MPlusIndex.from_documents([Document(text="The key is under the pot.")], llm=stored)
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="notes", description="Notes about the house")
    agent = FunctionAgent(llm=stored, tools=[tool])
    say(
        '<tool_call>\n{"name": "notes", "arguments": {"input": "Where is the key?"}}\n</tool_call>',
        "Under it.",
        "There.",
    )
    output = await agent.run("Where is the key?", memory=conversation(stored, "anna"))
    result = output.tool_calls[0].tool_output
    assert str(output) == "There." and result.content == "Under it."
    assert result.raw_output.source_nodes[0].node.get_content() == "The key is under the pot."


def test_agents_at_once_never_block_the_loop_nor_see_each_other(stored: MPlusLLM, slow: Slow) -> None:
    async def run() -> float:
        longest, last, answers = 0.0, time.monotonic(), []

        async def one(n: int) -> None:
            agent = FunctionAgent(llm=stored, tools=[])
            answers.append(await agent.run(f"Box {n}?", memory=conversation(stored, f"user-{n}"), max_iterations=3))

        work = asyncio.gather(*(one(n) for n in range(4)))
        while not work.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await work
        assert len(answers) == 4
        return longest

    assert asyncio.run(run()) < 0.5
    for n in range(4):
        said = sources(conversation(stored, f"user-{n}"))
        assert said[0] == f"User: Box {n}?" and len(said) <= 2
