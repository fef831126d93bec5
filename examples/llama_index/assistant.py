"""A personal assistant that is started again every day and remembers every day before.

    python examples/llama_index/assistant.py

Each day is a new agent with a new, empty history. What was said before is in latent memory, on disk under the
user's name: it fills no prompt. The calendar is a tool, as in any other agent.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Literal

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool

from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusLLM, MPlusMemory

DAYS = [
    ["My name is Miriam Castellanos and I live in Bergen.", "My cat is called Pancake."],
    ["I am allergic to hazelnuts.", "My dentist appointment is on Thursday at 9:30."],
]
# What is asked on the last day, and what must stand in a right answer.
QUESTIONS = [
    ("What is my cat called?", "Pancake"),
    ("What am I allergic to?", "hazelnut"),
    ("On which day is my dentist appointment?", "Thursday"),
]
Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
BOOKED: list[str] = []


def book(what: Literal["dentist", "hairdresser", "piano lesson"], day: Day) -> str:
    """Put an appointment into the calendar."""
    BOOKED.append(f"{day}: {what}")
    return f"Booked {what} on {day}."


async def day(folder: Path, said: list[str]) -> list[str]:
    """One day, from start to stop; nothing is kept between days but what is in the folder."""
    llm = MPlusLLM(store=MemoryStore(folder), max_tokens=30)
    memory = MPlusMemory.from_defaults(llm=llm, memory_key="miriam")
    agent = FunctionAgent(llm=llm)
    return [str(await agent.run(message, memory=memory)).strip() for message in said]


async def booking(folder: Path) -> None:
    """The same assistant with a tool that it must use."""
    llm = MPlusLLM(store=MemoryStore(folder), max_tokens=60)
    memory = MPlusMemory.from_defaults(llm=llm, memory_key="miriam")
    # What the tool says is the answer: a small model that is asked once more may call it again.
    tool = FunctionTool.from_defaults(book, return_direct=True)
    agent = FunctionAgent(llm=llm, tools=[tool], initial_tool_choice="book")
    answer = await agent.run("Book a visit to the dentist on Thursday.", memory=memory)
    print(f"- booked: {BOOKED}\n  {str(answer).strip()}")


async def run(folder: Path) -> int:
    for number, said in enumerate(DAYS, start=1):
        print(f"Day {number}")
        for message, answer in zip(said, await day(folder, said), strict=True):
            print(f"- {message}\n  {answer}")
    print("A month later")
    right = 0
    for question, expected in QUESTIONS:
        (answer,) = await day(folder, [question])
        right += expected.lower() in answer.lower()
        print(f"- {question}\n  {answer}")
    await booking(folder)
    print(f"{right} of {len(QUESTIONS)} right; the prompts held nothing of the days before.")
    return 0 if right > len(QUESTIONS) / 2 and BOOKED else 1


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
