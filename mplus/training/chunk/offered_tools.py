"""Tools that stand beside a question in training, and calls of those that look something up."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

Tool = Mapping[str, Any]

LOOKING_UP = (
    ("search", "Search for something.", "query", "What to search for."),
    ("look_up", "Look something up.", "question", "The question to answer."),
    ("search_notes", "Search the notes.", "query", "Words to look for."),
    ("search_documents", "Find passages of documents.", "text", "What they are about."),
    ("ask_colleague", "Ask a colleague who knows.", "question", "What to ask."),
    ("knowledge_base", "Find articles in the knowledge base.", "query", "What the article is about."),
    ("find_message", "Find an earlier message.", "about", "What it was about."),
    ("read_file", "Find the part of a file that says something.", "about", "What it says."),
)
"""Name, description, parameter and its description, of tools that take any question."""
OTHERS = (
    ("send_mail", "Send a mail.", {"to": "string", "text": "string"}),
    ("add", "Add two numbers.", {"a": "number", "b": "number"}),
    ("get_time", "The time now.", {}),
    ("set_timer", "Set a timer.", {"minutes": "integer"}),
    ("weather", "The weather of a town.", {"town": "string"}),
    ("translate", "Translate a text.", {"text": "string", "language": "string"}),
    ("book_table", "Book a table.", {"name": "string", "guests": "integer"}),
)
"""Name, description and parameters of tools that answer no question about what was told."""


def offered(rng: random.Random) -> list[Tool]:
    """One tool that looks things up, and up to two others, in any order."""
    name, description, parameter, meaning = rng.choice(LOOKING_UP)
    tools = [_tool(name, description, {parameter: {"type": "string", "description": meaning}})]
    for other, does, parameters in rng.sample(OTHERS, rng.choice((0, 0, 1, 2))):
        tools.append(_tool(other, does, {key: {"type": kind} for key, kind in parameters.items()}))
    rng.shuffle(tools)
    return tools


def called(rng: random.Random, tools: Sequence[Tool], question: str) -> tuple[str, dict[str, str]]:
    """A call, by name and arguments, of the tool that looks things up; for words of the question or all of it."""
    names = {name: parameter for name, _, parameter, _ in LOOKING_UP}
    name = next(tool["function"]["name"] for tool in tools if tool["function"]["name"] in names)
    asked = question if rng.random() < 0.7 else question.rstrip("?. ")
    return name, {names[name]: asked}


def call_text(name: str, arguments: Mapping[str, str]) -> str:
    """A call as a model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': dict(arguments)}, ensure_ascii=False)}\n</tool_call>"


def _tool(name: str, description: str, properties: Mapping[str, Any]) -> Tool:
    parameters = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
