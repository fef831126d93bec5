"""A personal assistant over many days: each day is a new conversation, half-way the program is restarted, and at
the end it is asked about all of it. Nothing but its memory goes from one day to the next.

    python examples/langchain/personal_assistant.py
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

import mplus
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware

# What the user says that day, what is asked weeks later, and what must stand in a right answer.
DAYS = [
    ("My cat is called Pancake.", "What is my cat called?", "Pancake"),
    ("I live in Bergen, near the harbour.", "Which city do I live in?", "Bergen"),
    ("The code of my bicycle lock is 4719.", "What is the code of my bicycle lock?", "4719"),
    ("I am allergic to hazelnuts.", "What am I allergic to?", "hazelnut"),
    ("My sister lives in Toronto.", "Where does my sister live?", "Toronto"),
    ("I work as a piano tuner.", "What do I do for a living?", "piano tuner"),
    ("My favourite colour is turquoise.", "What is my favourite colour?", "turquoise"),
    ("I keep the spare key in the blue teapot.", "Where do I keep the spare key?", "teapot"),
    ("My train to work leaves at 7:42.", "When does my train leave?", "7:42"),
    ("The name of my boat is Gannet.", "What is the name of my boat?", "Gannet"),
]
# The other things one talks about, so that there is something to forget.
CHATTER = [
    "It rained all morning, and then the sun came out after all.",
    "I read a long article about how bridges are built.",
    "The soup at lunch was too salty again, like last week.",
]


class Assistant:
    """An agent with a memory on disk; made anew, it remembers what it was told before."""

    def __init__(self, folder: Path) -> None:
        chat = MPlusChat(store=mplus.MemoryStore(folder), max_tokens=24)
        self.agent = create_agent(
            chat, tools=[], middleware=[MPlusMemoryMiddleware(chat)], checkpointer=InMemorySaver()
        )

    def hear(self, day: str, text: str) -> str:
        """Answer what is said in the conversation of a day."""
        state = self.agent.invoke(
            {"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": day, "user_id": "me"}}
        )
        return str(state["messages"][-1].content).strip()


def live(assistant: Assistant, first: int, last: int) -> None:
    """Some days of conversation."""
    for day in range(first, last):
        for text in (DAYS[day][0], CHATTER[day % len(CHATTER)]):
            print(f"day {day + 1:2}  you: {text}\n        it:  {assistant.hear(f'day-{day + 1}', text)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=int, default=len(DAYS), choices=range(2, len(DAYS) + 1))
    parser.add_argument("--folder", type=Path, help="where its memory is kept; a temporary folder if not given")
    parser.add_argument("--until", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.until is not None:  # the first half of its life, in a process of its own
        live(Assistant(options.folder), 0, options.until)
        return 0

    with tempfile.TemporaryDirectory() as temporary:
        folder, half = options.folder or Path(temporary), options.days // 2
        arguments = ["--days", str(options.days), "--folder", str(folder), "--until", str(half)]
        subprocess.run([sys.executable, __file__, *arguments], check=True)
        print("        … restarted …")
        assistant = Assistant(folder)
        live(assistant, half, options.days)

        right = 0
        for day, (_, question, expected) in enumerate(DAYS[: options.days]):
            answer = assistant.hear(f"question-{day + 1}", question)
            right += expected in answer
            print(f"later   you: {question} (said on day {day + 1})\n        it:  {answer}", flush=True)
        print(f"{right} of {options.days} right")
    return 0 if right > options.days / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
