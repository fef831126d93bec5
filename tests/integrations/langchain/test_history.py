"""Histories longer than the window: what flows into memory, what is recognised, and who reads it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

import mplus
from mplus import MemoryConfig
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from tests.conftest import TINY


def long_history(turns: int) -> list[Any]:
    said: list[Any] = [SystemMessage("Be brief.")]
    for n in range(turns):
        said += [HumanMessage(f"Turn {n}: box {n} is in room {n}, as always and for ever."), AIMessage(f"Noted {n}.")]
    return [*said, HumanMessage("Where is box 1?")]


@pytest.fixture
def narrow() -> MPlusChat:
    config = MemoryConfig(**{**TINY.model_dump(), "short_term_tokens": 64, "recalled_tokens": 32})
    return MPlusChat(model=tiny_model(memory=config, max_position_embeddings=640), max_tokens=8)


def written(chat: MPlusChat) -> list[str]:
    with chat.opened() as memory:
        return [source.name for source in memory.sources()]


def test_what_does_not_fit_flows_into_memory_once(narrow: MPlusChat) -> None:
    history = long_history(12)
    answer = narrow.invoke(history)
    first = written(narrow)
    assert first and answer.response_metadata["prefix_tokens"] > 0
    narrow.invoke(history)
    assert written(narrow) == first, "the same history is recognised"
    narrow.invoke([*history, AIMessage("In room 1."), HumanMessage("And box 2?")])
    later = written(narrow)
    assert later[: len(first)] == first and len(later) - len(first) <= 8


def test_a_changed_history_is_rolled_back(narrow: MPlusChat) -> None:
    history = long_history(12)
    narrow.invoke(history)
    before = set(written(narrow))
    history[3] = HumanMessage("Turn 1: box 1 was sold.")
    narrow.invoke(history)
    after = set(written(narrow))
    assert len(before & after) == 2, "only what was said before the change is still there"
    narrow.invoke(long_history(0))
    assert set(written(narrow)) == after, "another conversation leaves it alone"


def test_a_short_history_writes_nothing(narrow: MPlusChat) -> None:
    narrow.invoke("hello")
    assert written(narrow) == []


@pytest.mark.parametrize("turns", [0, 12])
def test_a_message_longer_than_the_window_is_refused_and_nothing_flows(narrow: MPlusChat, turns: int) -> None:
    with pytest.raises(mplus.PromptTooLongError):
        narrow.invoke([*long_history(turns)[:-1], HumanMessage("long " * 400)])
    assert written(narrow) == []


def test_an_empty_answer_in_the_history_does_not_make_later_turns_flow_twice(narrow: MPlusChat) -> None:
    history = long_history(12)
    history[4] = AIMessage("")
    narrow.invoke(history)
    first = written(narrow)
    narrow.invoke(history)
    assert written(narrow) == first and len(set(first)) == len(first)


def test_a_history_that_ends_where_turns_had_flowed_is_asked_again(narrow: MPlusChat) -> None:
    history = long_history(12)
    narrow.invoke(history)
    narrow.invoke(history[:4])
    assert len(written(narrow)) == 2, "the question itself stands in the prompt, what followed is gone"


def test_a_very_long_history_is_counted_only_a_few_times(narrow: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = narrow.loaded.count_tokens

    def count(*args: Any, **kwargs: Any) -> int:
        counted.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(narrow.loaded, "count_tokens", count)
    narrow.invoke(long_history(80))
    assert len(counted) < 15


# --- a model that reads conversations from memory from their first turn ---------------------------------


@pytest.fixture
def first_turn() -> MPlusChat:
    return MPlusChat(model=tiny_model(memory=TINY, prompt_turns=0), max_tokens=8)


@pytest.fixture
def prompts(first_turn: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []
    real = first_turn.loaded.stream

    def stream(memory: Any, prompt: Any, **kwargs: Any) -> Any:
        asked.append([message["content"] for message in prompt])
        return real(memory, prompt, **kwargs)

    monkeypatch.setattr(first_turn.loaded, "stream", stream)
    return asked


def test_only_the_question_stands_in_the_prompt_and_each_turn_is_written_once(
    first_turn: MPlusChat, prompts: list[Any]
) -> None:
    history = long_history(2)
    answer = first_turn.invoke(history)
    assert prompts == [["Be brief.", "Where is box 1?"]] and answer.response_metadata["prefix_tokens"] > 0
    names = written(first_turn)
    assert len(names) == 4
    first_turn.invoke([*history, AIMessage("In room 1."), HumanMessage("And box 2?")])
    assert prompts[1] == ["Be brief.", "And box 2?"] and len(written(first_turn)) == 6
    assert written(first_turn)[:4] == names
    with first_turn.opened() as memory:
        texts = [" ".join(source.texts) for source in memory.sources()]
    assert texts[1] == "Assistant: Noted 0." and texts[4:] == ["User: Where is box 1?", "Assistant: In room 1."]


@pytest.mark.parametrize(("turns", "stand"), [(0, 1), (1, 2), (2, 3), ("all", 5), (None, 1)])
def test_how_many_turns_stand_in_the_prompt_is_a_setting(
    first_turn: MPlusChat, prompts: list[Any], turns: Any, stand: int
) -> None:
    first_turn.invoke(long_history(2)[1:], prompt_turns=turns)
    assert len(prompts[0]) == stand and len(written(first_turn)) == 5 - stand
    bound = first_turn.model_copy(update={"prompt_turns": turns})
    bound.invoke(long_history(2)[1:])
    assert prompts[1] == prompts[0]


@pytest.mark.parametrize("wrong", [-1, 1.5, "two", True])
def test_a_wrong_number_of_turns_is_refused(first_turn: MPlusChat, wrong: Any) -> None:
    with pytest.raises(ValueError, match="prompt_turns"):
        first_turn.invoke("hello", prompt_turns=wrong)


def test_a_turn_in_memory_and_in_the_prompt_is_read_once(first_turn: MPlusChat, prompts: list[Any]) -> None:
    history = long_history(2)[1:]
    first_turn.invoke(history)
    first = first_turn.invoke(history, prompt_turns=9)
    assert len(prompts[1]) == 5 and first.response_metadata["prefix_tokens"] == 0
    assert len(written(first_turn)) == 4, "it is left out of the read, not forgotten"


def test_a_call_and_its_result_after_the_question_stay_in_the_prompt(first_turn: MPlusChat, prompts: list[Any]) -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1"}
    running = [*long_history(1), AIMessage("", tool_calls=[call]), ToolMessage("three", tool_call_id="c1")]
    first_turn.invoke(running)
    assert prompts[0] == ["Be brief.", "Where is box 1?", "", "three"] and len(written(first_turn)) == 2
    first_turn.invoke([*running, AIMessage("Three."), HumanMessage("Thanks. And box 2?")])
    assert prompts[1] == ["Be brief.", "Thanks. And box 2?"] and len(written(first_turn)) == 6


def test_an_edit_of_an_early_turn_forgets_what_followed(first_turn: MPlusChat) -> None:
    history = long_history(3)
    first_turn.invoke(history)
    before = written(first_turn)
    history[3] = HumanMessage("Turn 1: box 1 was sold.")
    first_turn.invoke(history)
    after = written(first_turn)
    assert after[:2] == before[:2] and not set(after[2:]) & set(before) and len(after) == 6


def test_a_conversation_that_begins_as_an_earlier_one_forgets_nothing(first_turn: MPlusChat) -> None:
    history = long_history(3)
    first_turn.invoke(history)
    before = written(first_turn)
    first_turn.invoke(history[:1])
    assert written(first_turn) == before, "who says hello again does not take back what followed the last hello"


def test_turns_memorized_under_their_ids_are_not_written_again(tmp_path: Any) -> None:
    def chat() -> MPlusChat:
        model = tiny_model(memory=TINY, prompt_turns=0)
        return MPlusChat(model=model, store=mplus.MemoryStore(tmp_path), memory_key="anna", max_tokens=8)

    said = [HumanMessage("I live in Graz, near the park.", id="h1"), AIMessage("How nice!", id="a1")]
    chat().memorize(said)
    question = HumanMessage("Where do I live?", id="h2")
    answer = chat().invoke([*said, question])
    assert written(chat()) == ["h1", "a1"]
    assert answer.content == chat().invoke([question]).content


def test_the_answer_is_the_same_just_told_and_after_a_restart(tmp_path: Any) -> None:
    """A history given as messages, its turns memorized a moment ago, and its turns in a store of another process."""
    said = long_history(3)[1:]
    turns, question = said[:-1], said[-1:]

    def chat(name: str) -> MPlusChat:
        model = tiny_model(memory=TINY, prompt_turns=0)
        return MPlusChat(model=model, store=mplus.MemoryStore(tmp_path), memory_key=name, max_tokens=12)

    listed = chat("listed").invoke(said)
    living = chat("memorized")
    living.memorize(turns)
    answers = [living.invoke(question), chat("memorized").invoke(question), chat("listed").invoke(question)]
    assert {answer.content for answer in answers} == {listed.content}
    for answer in answers:
        assert answer.response_metadata["prefix_tokens"] == listed.response_metadata["prefix_tokens"] > 0


# --- whose turns they are -----------------------------------------------------------------------------


def other_history() -> list[Any]:
    said: list[Any] = []
    for n in range(14):
        said += [HumanMessage(f"My secret number {n} is {n * 7}, keep it to yourself."), AIMessage("I shall.")]
    return [*said, HumanMessage("Where is box 1?")]


def recalled(answer: AIMessage) -> set[str]:
    return {source["source"] for source in answer.response_metadata["recalled"]}


def test_conversations_of_an_unnamed_chat_do_not_meet(narrow: MPlusChat) -> None:
    alone = MPlusChat(model=narrow.loaded, max_tokens=8).invoke(long_history(12))
    narrow.memorize("Everybody may know that the museum is closed on Mondays.", source="for-all")
    narrow.invoke(other_history())
    turns = set(written(narrow)) - {"for-all"}
    assert turns
    mine = narrow.invoke(long_history(12))
    assert not recalled(mine) & turns
    narrow.forget("for-all")
    again = narrow.invoke(long_history(12))
    assert again.content == alone.content
    assert again.response_metadata["recalled"] == alone.response_metadata["recalled"]
    assert narrow.invoke("Where is box 1?").response_metadata["prefix_tokens"] == 0, "a new conversation reads neither"


def test_turns_in_a_named_or_given_memory_are_remembered_by_all_who_use_it(narrow: MPlusChat, tmp_path: Any) -> None:
    given = MPlusChat(model=narrow.loaded, memory=narrow.loaded.new_memory(), max_tokens=8)
    stored = MPlusChat(model=narrow.loaded, store=mplus.MemoryStore(tmp_path), memory_key="anna", max_tokens=8)
    for one in (given, stored):
        one.invoke(other_history())
        assert one.invoke("Where is box 1?").response_metadata["prefix_tokens"] > 0


def test_histories_that_begin_alike_are_each_read_whole_at_the_same_time(narrow: MPlusChat) -> None:
    alike = other_history()
    alike[0] = long_history(12)[1]
    histories = [long_history(12), alike] * 4
    expected = [MPlusChat(model=narrow.loaded, max_tokens=8).invoke(history) for history in histories[:2]] * 4
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(narrow.invoke, histories))
    assert [f.content for f in found] == [e.content for e in expected]
    assert [recalled(f) for f in found] == [recalled(e) for e in expected]
