"""Histories: earlier turns are written into memory, each once, and the latest also stand in the prompt.

How many stand there is a property of the model (``MPlus.prompt_turns``). Turns are recognised when their history comes
back; ``conversations`` says which of them it has taken back. A turn is not written again if it has a ``source``, under
which it was written, or an ``id`` that names a source with its text.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mplus import Memory, MPlus, prompt_start, question_place, turn_text
from mplus_integrations.conversations import CONVERSATION, THREAD, TURN, Compared, Conversation, compared
from mplus_integrations.latents import Latents, Where, all_or_nothing
from mplus_integrations.turn_names import Messages

KEPT_SHARE = 0.75
"""Share of the room that the prompt takes after turns have been moved into memory because they did not fit."""
OURS = frozenset({"source", "id", "stays"})
"""Keys of a message that are not for the model: the name under which it was written, an id that may be such a name,
and whether a memory chose it for the prompt."""


class Fitted(NamedTuple):
    """A history of which earlier turns are in memory.

    Attributes:
        messages: The messages of the prompt. One that is in memory too has its name there as ``source``.
        names: The names of all turns of the history.
        thread: The name of its conversation; None: unknown.
        is_window: Whether earlier turns of the conversation have left the history, and are not taken back.
    """

    messages: list[dict[str, Any]]
    names: frozenset[str]
    thread: str | None
    is_window: bool = False

    def where(self, name: str, metadata: Mapping[str, Any]) -> bool:
        """A test of sources for a history that shares its memory with others: it excludes their turns."""
        # A turn's name is a hash of the conversation up to it, so no other conversation has the same name.
        if CONVERSATION not in metadata or name in self.names:
            return True
        # A memory of LlamaIndex's has taken it out of the history, which is why no history brings it along.
        left = self.is_window or TURN in metadata
        return left and self.thread is not None and metadata.get(THREAD) == self.thread


def said_by_none(prompt: object, latents: Latents) -> Where | None:
    """A test of sources for text that is continued: in a memory without a name it excludes turns of conversations."""
    is_alone = isinstance(prompt, str) and latents.is_nobodys
    return (lambda _, metadata: CONVERSATION not in metadata) if is_alone else None


def only_asks(prompt: str | Messages) -> bool:
    """Whether a prompt is nothing but a question: nothing of it is written, and it takes nothing back."""
    turns = [] if isinstance(prompt, str) else parted(prompt)[1]
    return all(turn["role"] == "user" and not {"source", "id"} & turn.keys() for turn in turns) and len(turns) <= 1


def fitted(
    model: MPlus,
    memory: Memory,
    messages: Messages,
    *,
    room: int,
    tools: Sequence[Mapping[str, Any]] | None,
    prompt_turns: int | None = None,
    of: Conversation | None = None,
) -> Fitted:
    """Write the earlier turns of a history into memory, and choose those that stand in the prompt.

    Args:
        model: The model, which counts tokens and writes.
        memory: The memory for the turns; changed only if turns are written or forgotten. The caller holds its lock.
        messages: The whole history.
        room: Most tokens of the prompt.
        tools: Tools described in the prompt.
        prompt_turns: How many of the latest turns before the question stand in the prompt; None: as many as fit.
        of: What is known about the conversation; turns that it has taken back are forgotten.
    """
    system, turns = parted(messages)
    known, of = {source.name: source for source in memory.sources()}, of or Conversation()
    found, asked = compared(turns, known, of), question_place(turns)
    names = found.names
    written = {name for name in names if name in known and name not in found.stale} | {t.get("source") for t in turns}
    start = _start(turns, asked, prompt_turns)
    if prompt_turns is None:  # what was moved once is not moved back
        start = max([start, *(n + 1 for n in range(asked) if names[n] in found.mine)])
    start = _fitting(model, memory, system, turns, start, room, tools)
    ahead = range(min(found.num_handled, start), start)
    fresh = [(names[n], turns[n]) for n in ahead if names[n] not in written and turn_text(turns[n])]
    _change(model, memory, found, fresh, of)
    standing = [{**t, "source": name} if name in written else t for t, name in zip(turns, names, strict=True)][start:]
    instructions = [dict(turn) for turn in turns[:start] if turn["role"] == "system"]
    if of.handled is not None:
        of.handled.difference_update(found.stale)
        of.handled.update(name for name in names[:start] if name in written or name in dict(fresh))
    return Fitted([*system, *instructions, *standing], frozenset(names), of.thread, of.handled is not None)


def _change(
    model: MPlus,
    memory: Memory,
    found: Compared,
    fresh: Sequence[tuple[str, Mapping[str, Any]]],
    of: Conversation,
) -> None:
    """Forget what a conversation has taken back, and write what is new."""
    if not found.stale and not fresh:
        return
    with all_or_nothing(memory) as fork:
        for name in sorted(found.stale):
            fork.forget(name)
        replaces = bool(found.stale)
        write_turns(
            model, fork, [(name, turn, of.metadata(found.root, turn, replaces=replaces)) for name, turn in fresh]
        )


def _start(turns: Messages, asked: int, prompt_turns: int | None) -> int:
    """The first turn that stands in the prompt if all fit; turns that a memory chose for it stay."""
    start = prompt_start(turns, asked, prompt_turns)
    return min([start, *(n for n in range(asked) if turns[n].get("stays"))])


def _fitting(
    model: MPlus,
    memory: Memory,
    system: Messages,
    turns: Messages,
    start: int,
    room: int,
    tools: Sequence[Mapping[str, Any]] | None,
) -> int:
    """The first turn from ``start`` on that stands in the prompt so that the prompt fits."""

    def size(first: int) -> int:
        kept = [*system, *(t for t in turns[:first] if t["role"] == "system"), *turns[first:]]
        return model.count_tokens([{k: v for k, v in t.items() if k not in OURS} for t in kept], tools=tools)

    last = len(turns) - 1
    # If the last turn alone does not fit, no further turn is moved, and the read raises an error.
    if not turns or size(start) <= room or size(last) >= model.prompt_room(memory):
        return start
    # The first start whose rest fits; bisection works because sizes fall with the start.
    found = bisect_left(range(last), True, start, key=lambda first: size(first) <= room * KEPT_SHARE)
    while turns[found]["role"] == "tool" and found < last:
        found += 1  # a tool result stays with its call
    return found


def write_turns(
    model: MPlus, memory: Memory, turns: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """Write turns in one go; those without anything to write are left out.

    Args:
        model: The model that writes.
        memory: The memory.
        turns: Their names, messages, and metadata beside the role.
    """
    said = [(name, turn_text(turn), {**about, "role": turn["role"]}) for name, turn, about in turns if turn_text(turn)]
    if said:
        names, texts, abouts = zip(*said, strict=True)
        model.write(memory, texts, source=names, metadata=abouts, keep_text=True)


def parted(messages: Messages) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system messages that a history begins with, and its turns."""
    first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return [dict(message) for message in messages[:first]], [dict(message) for message in messages[first:]]
