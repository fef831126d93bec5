"""Histories longer than the window: what flows into memory, what is recognised, and who reads it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

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
