"""JSON of an LLM: what is restored reads the same memory, or says what is missing."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel

from mplus import KeyVault, MemoryKeyError, MemoryStore
from mplus_integrations.llama_index import MPlusLLM, MPlusMemory
from tests.integrations.llama_index.conftest import MODEL

TOLD = "The spare key is in the blue teapot."


def held(llm: MPlusLLM) -> list[str]:
    return [text for source in llm.latents().read(MODEL).sources() for text in source.texts]


def restored(llm: MPlusLLM, **given: Any) -> MPlusLLM:
    return MPlusLLM.from_json(llm.to_json(), **{"model": MODEL, **given})


def test_a_restored_llm_reads_the_same_store_by_its_place_and_name(tmp_path: Path) -> None:
    llm = MPlusLLM(
        model=MODEL, store=MemoryStore(tmp_path, max_memory_bytes=10**9), memory_key="anna", shared="all", max_tokens=7
    )
    llm.memorize(TOLD)
    data = json.loads(llm.to_json())
    assert data["store"] == {"root": str(tmp_path), "max_memory_bytes": 10**9}
    again = restored(llm)
    assert held(again) == [TOLD] and again.memory_key == "anna" and again.max_tokens == 7 and again.shared == "all"
    assert again.store is not None and again.store.max_memory_bytes == 10**9
    assert held(restored(again)) == [TOLD]
    elsewhere = MemoryStore(tmp_path / "elsewhere")
    assert restored(llm, store=elsewhere).store is elsewhere


LOST: dict[str, tuple[Callable[[], MPlusLLM], str]] = {
    "memory": (lambda: MPlusLLM(model=MODEL, memory=MODEL.new_memory()), "without memory="),
    "shared": (lambda: MPlusLLM(model=MODEL, shared=[MODEL.new_memory()]), "without shared="),
    "embedder": (lambda: MPlusLLM(model=MODEL, embedder=lambda texts: [[1.0] for _ in texts]), "without embedder="),
    "reading": (lambda: MPlusLLM(model=MODEL).reading(MODEL.new_memory()), "without memory="),
}


@pytest.mark.parametrize("what", LOST)
def test_what_json_cannot_hold_is_asked_for(what: str) -> None:
    make, says = LOST[what]
    with pytest.raises(ValueError, match=rf"saved {says}.*Give it again"):
        restored(make())
    assert make().to_dict(), "events of LlamaIndex have the dictionary of every LLM"


def test_what_was_remembered_without_a_store_is_asked_for() -> None:
    llm = MPlusLLM(model=MODEL)
    assert held(restored(llm)) == []
    llm.memorize(TOLD, memory_key="anna")
    with pytest.raises(ValueError, match="without what it remembered without a store"):
        restored(llm)
    memory = MODEL.new_memory()
    assert restored(llm, memory=memory).memory is memory


def test_an_encrypted_store_and_an_llm_without_memory_stay_so(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "s", vault=KeyVault(tmp_path / "k"))
    llm = MPlusLLM(model=MODEL, store=store, memory_key="anna", max_tokens=4)
    with pytest.raises(MemoryKeyError, match="encrypts its memories"):
        restored(llm)
    assert restored(llm, store=store).store is store
    plain = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path / "p"), memory_key="anna", max_tokens=4)
    plain.memorize(TOLD)
    response = restored(plain.without_memory()).complete("Where is the key?")
    assert response.raw["recalled"] == [] and response.raw["used_memory"] is False  # type: ignore[index]


class Yes(BaseModel):
    """A yes or no."""

    yes: bool


def test_a_structured_llm_goes_through_a_pickle(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), memory_key="anna", max_tokens=24)
    made, before = llm.as_structured_llm(Yes), dict(llm.__dict__)
    again = pickle.loads(pickle.dumps(made))
    assert llm.__dict__ == before and again.llm.store.root == tmp_path
    assert isinstance(again.complete("Yes?").raw, Yes)


# --- conversations ------------------------------------------------------------------------------------


def test_a_named_conversation_is_forgotten_and_no_other(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    for name in ("one", "two"):
        told = MPlusMemory.from_defaults(llm=llm, memory_key="anna", conversation_id=name)
        told.put_messages(
            [ChatMessage(content=f"In {name} I said 4711."), ChatMessage(role="assistant", content="Ah.")]
        )
    llm.memorize(TOLD, memory_key="anna")
    two = MPlusMemory.from_defaults(llm=llm, memory_key="anna", conversation_id="two")

    def texts() -> str:
        return str([source.texts for source in llm.latents("anna").read(MODEL).sources()])

    assert llm.forget_conversation("one", memory_key="anna") == 2
    assert "In one" not in texts() and "In two" in texts() and "teapot" in texts()
    assert two.forget_conversation("one") == 0 and two.forget_conversation() == 2
    assert "In two" not in texts() and "teapot" in texts() and two.conversation_id == "two"


def test_a_conversation_that_the_llm_was_told_by_name_has_a_memory_of_its_own_in_a_store(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2, prompt_turns=0)
    said = [ChatMessage(content="My code is 4711."), ChatMessage(role="assistant", content="I see.")]
    for name in ("one", "two"):
        llm.chat([*said, ChatMessage(content="What is it?")], conversation_id=name)
    assert {memory.name for memory in MemoryStore(tmp_path).list()} == {"one", "two"}
    assert llm.forget_conversation("one") == 2 and llm.forget_conversation("one") == 0
    assert len(llm.latents("two").read(MODEL).sources()) == 2


async def test_an_unnamed_conversation_is_forgotten_by_its_memory() -> None:
    llm = MPlusLLM(model=MODEL, max_tokens=2)
    memory = MPlusMemory.from_defaults(llm=llm, memory=llm.latents())
    llm.memorize(TOLD)
    memory.put(ChatMessage(content="My code is 4711."))
    assert await memory.aforget_conversation() == 1 and memory.get_all() == []
    assert held(llm) == [TOLD]
