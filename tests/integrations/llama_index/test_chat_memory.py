"""MPlusMemory and the memory block: everything is kept, once, for whom it belongs to."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import Memory as StockMemory

import mplus
from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusLLM, MPlusMemory, MPlusMemoryBlock
from tests.integrations.llama_index.conftest import MODEL


def said(*texts: str) -> list[ChatMessage]:
    return [ChatMessage(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(texts)]


def texts(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


def sources(memory: MPlusMemory) -> list[str]:
    return [" ".join(s.texts) for s in memory.latents.read(MODEL).sources()]


@pytest.fixture
def memory(llm: MPlusLLM) -> MPlusMemory:
    return MPlusMemory.from_defaults(llm=llm)


def test_every_turn_is_a_message_and_a_source(memory: MPlusMemory) -> None:
    memory.put(ChatMessage(content="I live in Graz."))
    asyncio.run(memory.aput_messages(said("How nice!", "I play the cello.")))
    assert texts(memory.get()) == texts(memory.get_all()) == ["I live in Graz.", "How nice!", "I play the cello."]
    assert sources(memory) == ["User: I live in Graz.", "User: How nice!", "Assistant: I play the cello."]
    assert texts(asyncio.run(memory.aget(input="anything"))) == texts(memory.get())


def test_recent_turns_begin_with_a_question(llm: MPlusLLM) -> None:
    memory = MPlusMemory.from_defaults(llm=llm, token_limit=130)
    system = ChatMessage(role="system", content="Be brief.")
    history = said(*(f"Turn {n} is about box {n}." for n in range(9)))
    memory.set([system, *history])
    recent = memory.get()
    assert [m.role.value for m in recent[:2]] == ["system", "user"]
    assert texts(recent)[1:] == texts(history)[-len(recent) + 1 :] and 2 < len(recent) < 6
    assert len(memory.get_all()) == 10 and len(sources(memory)) == 9
    memory.put(ChatMessage(content="A very long question. " * 20))
    assert len(memory.get()) == 2  # never nothing


def test_a_call_and_its_result_stay_together(llm: MPlusLLM) -> None:
    memory = MPlusMemory.from_defaults(llm=llm, token_limit=40)
    call = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="add", tool_kwargs={"a": 1})])
    result = ChatMessage(role="tool", content="The result of the addition is three.")
    memory.put_messages([ChatMessage(content="One?"), ChatMessage(content="Add!"), call, result])
    assert texts(memory.get()) == ["Add!", None, "The result of the addition is three."]
    assert sources(memory)[2:] == [
        'Assistant: [{"name": "add", "arguments": {"a": 1}}]',
        "Tool: The result of the addition is three.",
    ]


def test_turns_in_the_prompt_are_not_read_as_memory_too(memory: MPlusMemory, llm: MPlusLLM) -> None:
    memory.put(ChatMessage(content="What is my dog called?"))
    plain = llm.chat([ChatMessage(content="What is my dog called?")])
    first = llm.chat(memory.get())
    assert first.raw["prefix_tokens"] == 0 and first.message.content == plain.message.content
    memory.reset()
    memory.put(ChatMessage(content="And my cat?"))
    assert llm.chat(memory.get()).raw["prefix_tokens"] > 0  # the first question, from before the reset


def test_set_recognises_what_has_been_written(memory: MPlusMemory) -> None:
    history = said("I live in Graz.", "How nice!", "I play the cello.")
    memory.set(history)
    memory.set(history)  # as a chat engine does with the history of every request
    memory.put(ChatMessage(role="assistant", content="Since when?"))
    memory.set([*history, ChatMessage(role="assistant", content="Since when?")])
    assert len(sources(memory)) == 4


def test_set_forgets_what_the_history_says_no_longer(memory: MPlusMemory) -> None:
    memory.set(said("I live in Graz.", "How nice!", "I play the cello.", "Since when?"))
    memory.set(said("I live in Graz.", "How nice!", "I play the viola."))
    assert sources(memory) == ["User: I live in Graz.", "Assistant: How nice!", "User: I play the viola."]
    memory.set(memory.get_all()[2:])
    assert sources(memory) == ["User: I play the viola."]
    asyncio.run(memory.aset([]))
    assert sources(memory) == []


def test_put_of_an_edited_message_replaces_it(memory: MPlusMemory) -> None:
    named = ChatMessage(content="I play the cello.", additional_kwargs={"id": "m3"})
    memory.put_messages([*said("I live in Graz.", "How nice!"), named])
    edited = memory.get_all()[0]
    edited.blocks[0].text = "I live in Linz."
    memory.put(edited)
    asyncio.run(memory.aput(ChatMessage(content="I play the viola.", additional_kwargs={"id": "m3"})))
    assert texts(memory.get_all()) == ["I live in Linz.", "How nice!", "I play the viola."]
    assert sources(memory) == ["Assistant: How nice!", "User: I live in Linz.", "User: I play the viola."]


def test_put_writes_nothing_again_that_was_forgotten(memory: MPlusMemory) -> None:
    memory.put_messages(said("My code is 4719.", "I see."))
    with memory.latents.opened(MODEL) as latents:
        latents.forget(memory.get_all()[0].source)  # type: ignore[attr-defined]
    memory.put(ChatMessage(content="I live in Graz."))
    assert sources(memory) == ["Assistant: I see.", "User: I live in Graz."]


def test_a_new_conversation_after_reset_takes_nothing_back_from_the_one_before(memory: MPlusMemory) -> None:
    memory.set(said("I live in Graz.", "How nice!"))
    memory.reset()
    memory.set(said("I play the cello."))
    memory.set(said("I play the viola."))
    assert sources(memory) == ["User: I live in Graz.", "Assistant: How nice!", "User: I play the viola."]


@pytest.mark.parametrize("named", [False, True], ids=["unknown", "named"])
def test_two_conversations_that_begin_alike_in_one_memory_leave_each_other_alone(
    tmp_path: Path, llm: MPlusLLM, named: bool
) -> None:
    begin = ["Hello.", "Hello, how can I help?"]

    def memory(name: str) -> MPlusMemory:
        place = {"store": MemoryStore(tmp_path), "memory_key": "anna", "conversation_id": name if named else None}
        return MPlusMemory.from_defaults(llm=llm, **place)

    a, b = memory("a"), memory("b")
    a.set(said(*begin, "I live in Graz.", "Good."))
    b.set(said(*begin, "I live in Vienna.", "Fine."))
    a.put(ChatMessage(content="I have a cat."))
    b.set(said(*begin, "I live in Linz."))
    b.set(said("Good day."))
    kept = {text.partition(": ")[2] for text in sources(memory("c"))}
    assert kept == {*begin, "I live in Graz.", "Good.", "I have a cat.", "Good day."}


def test_a_named_conversation_forgets_what_an_earlier_process_wrote_and_it_says_no_longer(
    tmp_path: Path, llm: MPlusLLM
) -> None:
    def memory(*texts: str) -> MPlusMemory:
        place = {"store": MemoryStore(tmp_path), "memory_key": "anna", "conversation_id": "monday"}
        return MPlusMemory.from_defaults(said(*texts), llm=llm, **place)

    memory("I live in Graz.", "How nice!", "I play the cello.")
    again = memory()
    again.put(ChatMessage(content="Hm?"))
    assert len(sources(again)) == 4, "what is said now takes nothing back"
    again = memory("I live in Graz.", "How nice!", "I play the viola.")
    assert sources(again) == ["User: I live in Graz.", "Assistant: How nice!", "User: I play the viola."]


def test_a_history_is_recognised_by_another_process(tmp_path: Path, llm: MPlusLLM) -> None:
    for _ in range(2):
        memory = MPlusMemory.from_defaults(llm=llm, store=MemoryStore(tmp_path), memory_key="anna")
        memory.set(said("I live in Graz.", "How nice!"))
        assert len(sources(memory)) == 2


def test_a_repeated_message_is_written_again(memory: MPlusMemory) -> None:
    memory.put_messages(said("I live in Graz."))
    memory.reset()
    memory.put_messages(said("I live in Graz.", "So you do."))
    assert sources(memory) == ["User: I live in Graz.", "User: I live in Graz.", "Assistant: So you do."]


def test_messages_given_out_can_be_changed_without_changing_history(memory: MPlusMemory) -> None:
    memory.put(ChatMessage(content="Hello."))
    for message in (*memory.get(), *memory.get_all()):
        message.blocks[0].text = "changed"  # as agents do with their state
        message.additional_kwargs["x"] = 1
    assert texts(memory.get_all()) == ["Hello."] and not memory.get_all()[0].additional_kwargs


def test_reset_keeps_latents_without_forget(memory: MPlusMemory, llm: MPlusLLM) -> None:
    memory.put_messages(said("I live in Graz.", "How nice!"))
    with memory.latents.opened(MODEL) as latents:
        MODEL.write(latents, "A page about pears.", source="fruit.md", keep_text=True)
    memory.reset()
    assert memory.get_all() == [] and len(sources(memory)) == 3
    asyncio.run(memory.areset(forget=True))
    assert sources(memory) == ["A page about pears."]


def test_a_failed_put_changes_nothing(memory: MPlusMemory) -> None:
    memory.put(ChatMessage(content="Hello."))
    before = memory.to_json()
    picture = ChatMessage(role="user", blocks=[TextBlock(text="a"), ImageBlock(url="http://x/y.png")])
    with pytest.raises(ValueError, match="image"):
        memory.put_messages([ChatMessage(content="fine"), picture])
    with pytest.raises(ValueError, match="image"):
        memory.set([picture])
    assert memory.to_json() == before and sources(memory) == ["User: Hello."]


def test_an_empty_answer_is_history_but_nothing_to_remember(memory: MPlusMemory) -> None:
    memory.put_messages([ChatMessage(content="Hello."), ChatMessage(role="assistant", content="")])
    assert len(memory.get()) == 2 and len(sources(memory)) == 1


# --- JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["store", "process", "rebuilt"])
def test_acceptance_8_json_restores_history_and_latent_state(tmp_path: Path, llm: MPlusLLM, where: str) -> None:
    place = {"store": MemoryStore(tmp_path), "memory_key": "anna"} if where == "store" else {}
    memory = MPlusMemory.from_defaults(llm=llm, token_limit=64, **place)
    memory.put_messages(said("I live in Graz, near the park.", "How nice!", "I play the cello on Mondays."))
    text, expected = memory.to_json(), memory.latents.read(MODEL).fingerprint
    if where == "rebuilt":
        del memory
        text = text.replace(json.loads(text)["live_id"], "0" * 32)
    assert len(text) < 2_500
    again = MPlusMemory.from_json(text)
    assert texts(again.get_all()) == ["I live in Graz, near the park.", "How nice!", "I play the cello on Mondays."]
    assert again.token_limit == 64
    assert again.latents.read(MODEL).fingerprint == expected
    again.put(ChatMessage(role="assistant", content="Indeed."))
    assert len(sources(again)) == 4


def test_shared_latents_that_are_gone_are_an_error(llm: MPlusLLM) -> None:
    memory = MPlusMemory.from_defaults(llm=llm, memory=MODEL.new_memory())
    memory.put_messages(said("Hello."))
    data = {**json.loads(memory.to_json()), "live_id": "gone"}
    again = MPlusMemory.from_dict(data)
    assert texts(again.get_all()) == ["Hello."]
    with pytest.raises(ValueError, match="not in this process"):
        again.put(ChatMessage(content="x"))


# --- whose --------------------------------------------------------------------------------------------


def test_acceptance_5_conversations_do_not_see_each_other(tmp_path: Path, llm: MPlusLLM) -> None:
    alice = MPlusMemory.from_defaults(llm=llm, store=MemoryStore(tmp_path), memory_key="alice")
    bob = MPlusMemory.from_defaults(llm=llm)
    carol = MPlusMemory.from_defaults(llm=llm)
    alice.put_messages(said("The key is under the pot.", "I see."))
    carol.put_messages(said("My code is 4719.", "I see."))
    bob.put_messages(said("Where is the key?"))
    answer = llm.chat(bob.get())
    assert answer.raw["prefix_tokens"] == 0
    assert answer.message.content == llm.chat(said("Where is the key?")).message.content
    alice.reset()
    alice.put(ChatMessage(content="Where is the key?"))
    assert llm.chat(alice.get()).raw["prefix_tokens"] > 0


@pytest.mark.parametrize("key", ["", " "])
def test_a_wrong_memory_key_is_refused(tmp_path: Path, llm: MPlusLLM, key: str) -> None:
    with pytest.raises(ValueError, match="memory_key"):
        MPlusMemory.from_defaults(llm=llm, store=MemoryStore(tmp_path / "s"), memory_key=key)
    assert list((tmp_path / "s").iterdir()) == []


def test_bad_arguments_are_named(tmp_path: Path, llm: MPlusLLM) -> None:
    with pytest.raises(ValueError, match="store= without memory_key="):
        MPlusMemory.from_defaults(llm=llm, store=MemoryStore(tmp_path))
    with pytest.raises(ValueError, match="not both"):
        MPlusMemory.from_defaults(llm=llm, memory=MODEL.new_memory(), memory_key="a")
    with pytest.raises(ValueError, match="MockLLM"):
        MPlusMemory.from_defaults(llm=MockLLM())
    with pytest.raises(ValueError, match="tokens"):
        MPlusMemory.from_defaults(llm=llm, tokens=3)


# --- the block ------------------------------------------------------------------------------------------


async def test_the_block_takes_what_the_stock_memory_drops(llm: MPlusLLM) -> None:
    block = MPlusMemoryBlock(llm=llm)
    memory = StockMemory.from_defaults(
        memory_blocks=[block], token_limit=60, chat_history_token_ratio=0.5, token_flush_size=10
    )
    for n in range(8):
        await memory.aput(ChatMessage(content=f"Turn {n} is about box {n} and nothing else."))
    marker, *kept = await memory.aget()
    assert not marker.blocks and all(message.content for message in kept)  # it adds no text to prompts
    flushed = [" ".join(s.texts) for s in llm.latents().read(MODEL).sources()]
    assert flushed and flushed[0] == "User: Turn 0 is about box 0 and nothing else."
    assert len(flushed) == len(set(flushed)) and len(flushed) + len(kept) == 8
    assert (await llm.achat([marker, *kept])).raw["prefix_tokens"] > 0
    assert block.forget() == len(flushed)
    assert llm.latents().read(MODEL).sources() == []
    await memory.sql_store._async_engine.dispose()  # type: ignore[union-attr]


@pytest.mark.default_model
def test_the_default_model_answers_from_a_conversation_of_long_ago(default_model: mplus.MPlus, tmp_path: Path) -> None:
    def memory(name: str) -> MPlusMemory:
        return MPlusMemory.from_defaults(llm=llm, store=MemoryStore(tmp_path), memory_key=name)

    llm = MPlusLLM(model=default_model, max_tokens=24)
    living = memory("anna")
    living.put_messages(said("My dog is called Biscuit and he is three years old.", "What a fine name!"))
    MemoryStore(tmp_path).copy("anna", "later")
    answers: list[Any] = []
    for one in (living, memory("later")):
        one.put(ChatMessage(content="What is my dog's name?"))
        assert len(one.get()) == 1 + (default_model.prompt_turns or 0)
        answers.append(llm.chat(one.get()).message.content)
    assert "Biscuit" in answers[0] and answers[1] == answers[0], "the same just told and after a restart"
