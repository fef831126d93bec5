"""The names under which an ``MPlusMemory`` writes its turns."""

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from mplus_integrations.conversations import turn_name
from mplus_integrations.llama_index.messages import ROLES, Turn


def as_turn(
    message: ChatMessage, text: str, before: str, written: Mapping[str, tuple[str, ...]], *, is_new: bool
) -> Turn:
    """A message under the name that it has in memory, else one that follows from all that was said.

    Args:
        message: The message.
        text: Its text, as it is written.
        before: The name of the turn before it.
        written: Texts in memory by name.
        is_new: Whether it is said now, even if it was said before.
    """
    name = message.source if isinstance(message, Turn) else ""
    if is_new or written.get(name) != (text,):
        name = turn_name(before, {"role": ROLES[message.role], "content": text})
        name = free_name(name, written) if is_new else name
    turn = Turn(role=message.role, blocks=list(message.blocks), source=name)
    turn.additional_kwargs = dict(message.additional_kwargs)
    return turn


def free_name(name: str, taken: Mapping[str, Any]) -> str:
    """The name, with a number if it is taken: a message that is said again is written again."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
