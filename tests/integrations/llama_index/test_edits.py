"""What a conversation takes back is forgotten, in ``MPlusMemory`` and in LlamaIndex's own memories."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer

from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory
from tests.integrations.llama_index.conftest import MODEL

SAID = [
    ChatMessage(content="I live in Graz."),
    ChatMessage(role="assistant", content="How nice!"),
    ChatMessage(content="My code is 4711."),
    ChatMessage(role="assistant", content="I see."),
]


def edited(memory: MPlusMemory) -> ChatMessage:
    turn = memory.get_all()[2]
    turn.blocks[0].text = "My hat is green."  # type: ignore[union-attr]
    return turn


EDITS: dict[str, Callable[[MPlusMemory], Any]] = {
    "set": lambda memory: memory.set(memory.get_all()[:2]),
    "aset": lambda memory: asyncio.run(memory.aset(memory.get_all()[:2])),
    "the last turns one by one": lambda memory: [memory.set(memory.get_all()[:-1]) for _ in range(2)],
    "set of plain messages": lambda memory: memory.set(SAID[:2]),
    "a middle turn": lambda memory: memory.set([*memory.get_all()[:2], memory.get_all()[3]]),
    "put under its id": lambda memory: memory.put(edited(memory)),
    "aput under its id": lambda memory: asyncio.run(memory.aput(edited(memory))),
    "aput_messages": lambda memory: asyncio.run(memory.aput_messages([edited(memory)])),
    "after a restart": lambda memory: MPlusMemory.from_json(memory.to_json()).set(SAID[:2]),
    "forget_conversation and set": lambda memory: (memory.forget_conversation(), memory.set(SAID[:2])),
    "reset and set": lambda memory: (memory.reset(forget=True), memory.set(SAID[:2])),
    "areset and set": lambda memory: (asyncio.run(memory.areset(forget=True)), memory.set(SAID[:2])),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_what_is_taken_back_is_forgotten(llm: MPlusLLM, tmp_path: Path, edit: str, named: bool) -> None:
    place = {"store": MemoryStore(tmp_path), "memory_key": "anna", "conversation_id": "one" if named else None}
    memory = MPlusMemory.from_defaults(llm=llm, **place)
    memory.put_messages(SAID)
    EDITS[edit](memory)
    held = str([source.texts for source in memory.latents.read(MODEL).sources()])
    assert "4711" not in held and "Graz" in held


def test_a_message_deleted_from_a_chat_store_is_not_read(llm: MPlusLLM, asked: list[Any]) -> None:
    index = MPlusIndex.from_documents([Document(text="Box 1 is in the attic.")], llm=llm)
    buffer = ChatMemoryBuffer.from_defaults(token_limit=1000)
    engine = index.as_chat_engine(memory=buffer)
    engine.chat("I live in Graz.")
    engine.chat("My code is 4711.")
    for _ in range(2):
        buffer.chat_store.delete_last_message(buffer.chat_store_key)
    engine.chat("And now?")
    held = str([source.texts for source in engine._own.read(MODEL).sources()])  # type: ignore[attr-defined]
    assert "4711" not in held and "4711" not in str(asked[-1]) and "Graz" in held + str(asked[-1])
    list(engine.stream_chat("And what else?").response_gen)
    buffer.set(buffer.get_all()[2:])
    asyncio.run(engine.achat("And where do I live?"))
    held = str([source.texts for source in engine._own.read(MODEL).sources()])  # type: ignore[attr-defined]
    assert "Graz" not in held + str(asked[-1]) and "And now?" in held + str(asked[-1])
    engine.reset()
    engine.chat("Who am I?")
    assert "And now?" not in str([s.texts for s in engine._own.read(MODEL).sources()]) + str(asked[-1])  # type: ignore[attr-defined]
