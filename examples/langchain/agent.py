"""An agent with tools, and a memory for each of its users.

    python examples/langchain/agent.py

A model this small never decides by itself to call a tool, so the application says when one is due; what the
model fills in is held to the tool's own values while it is generated, and the tool's result is the answer.
"""

import sys
import tempfile
from collections.abc import Callable
from typing import Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

import mplus
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware

HOURS = {"library": "nine to five", "museum": "ten to six", "swimming pool": "seven to eight in the evening"}


@tool(return_direct=True)
def opening_hours(place: Literal["library", "museum", "swimming pool"]) -> str:
    """When a place opens. place: the place that the question is about."""
    return f"The {place} is open from {HOURS[place]}."


@tool(return_direct=True)
def order_status(number: int) -> str:
    """Where an order is, by its number."""
    return f"Order {number} is on its way."


class ToolsWhenDue(AgentMiddleware):
    """Asks for the tool that a question is about, and for words otherwise."""

    def wrap_model_call(self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
        said = str(request.messages[-1].content).lower()
        due = "opening_hours" if "open" in said else "order_status" if "order" in said else "none"
        return handler(request.override(tool_choice=due))


# Who says what, and what must stand in the answer; None: anything.
TALK = [
    ("anna", "My dog is called Biscuit.", None),
    ("bob", "My dog is called Pancake.", None),
    ("anna", "When does the library open?", "library"),
    ("bob", "Where is my order 4711?", "4711"),
    ("anna", "What is my dog called?", "Biscuit"),
    ("bob", "What is my dog called?", "Pancake"),
]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        chat = MPlusChat(store=mplus.MemoryStore(folder), max_tokens=48)
        agent = create_agent(
            chat,
            tools=[opening_hours, order_status],
            middleware=[ToolsWhenDue(), MPlusMemoryMiddleware(chat)],
            checkpointer=InMemorySaver(),
        )
        wrong = 0
        for turn, (user, text, expected) in enumerate(TALK):
            # Each turn is a conversation of its own: what is known of a user comes from memory alone.
            config = {"configurable": {"user_id": user, "thread_id": f"{user}-{turn}"}}
            state = agent.invoke({"messages": [HumanMessage(text)]}, config)
            answer = str(state["messages"][-1].content).strip()
            wrong += expected is not None and expected not in answer
            print(f"{user}: {text}\n    {answer}", flush=True)
        for memory in mplus.MemoryStore(folder).list():
            print(f"{memory.name}'s memory: {memory.nbytes / 2**20:.1f} MiB on disk")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
