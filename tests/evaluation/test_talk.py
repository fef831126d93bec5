"""Conversations, notes and documents: what is written and asked of them, later and in the conversation itself."""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mplus.evaluation.common_questions import common_questions, is_held_out
from mplus.evaluation.datasets import READERS
from mplus.evaluation.datasets.talk import talk
from mplus.evaluation.modes import answerers
from mplus.evaluation.raw_answers import scores
from mplus.evaluation.replies import Answered, Settings
from mplus.evaluation.retention import Stream
from mplus.evaluation.tasks import Question, Task
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.write.absorb import WriteReport
from tests.evaluation.data import TALK, filler_file, lines_file, talk_file, trivia_file

SETTINGS = Settings("plain", max_new_tokens=2, batch=4)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return talk(talk_file(tmp_path), None, None, random.Random(0))


def by_text(task: Task) -> dict[str, Question]:
    return {question.text: question for question in task.questions}


def test_what_is_told_is_written_as_people_tell_it(task: Task) -> None:
    assert task.contexts["rosa/0"] == "User: Hi, I'm Rosa and I live in Graz. My son is 7."
    assert task.contexts["rosa/1"] == "Assistant: Hello Rosa!"
    assert task.contexts["parking"] == "Parking policy.\n\nCars may stay until 18:00."
    assert task.contexts["list/1"] == "call Jo at 5"
    assert task.modes == ("mplus", "chat") and task.levels == (0,)


def test_questions_are_asked_after_what_answers_them(task: Task) -> None:
    asked = by_text(task)
    assert asked["whats my name"].contexts == asked["whats my name"].gold == ("rosa/0",)
    assert asked["whats my name"].turns == (("user", "Hi, I'm Rosa and I live in Graz. My son is 7."),)
    assert asked["and my town?"].before == (("whats my name", "You are Rosa."),)
    assert asked["how old is my son"].answers == ("7", "seven")
    assert len(asked["how old is my son"].turns) == 3
    assert asked["until when can cars stay"].gold == ("parking",) and not asked["until when can cars stay"].turns
    unknown = asked["what is my cat called"]
    assert not unknown.is_answerable and len(unknown.contexts) == 3 and unknown.group == "conversation"


def test_small_numbers_count_in_words_and_digits_also_within_an_answer(tmp_path: Path) -> None:
    line = {"id": "a", "kind": "note", "told": ["Hold it for eight seconds, from 10 on."], "unknown": ["why?"]}
    line["ask"] = [{"q": "how long", "short": ["eight seconds"]}, {"q": "from when", "short": ["from 10 on"]}]
    held, start, _ = talk(lines_file(tmp_path, "talk.jsonl", [line]), None, None, random.Random(0)).questions
    assert held.answers == ("eight seconds", "8 seconds") and start.answers == ("from 10 on", "from ten on")
    assert scores(held, "You hold it for 8 seconds.")["contains"]


def test_a_list_is_right_with_all_its_parts(task: Task) -> None:
    question = by_text(task)["what do we bring"]
    assert scores(question, "A grill and some chairs.")["contains"]
    assert not scores(question, "The chairs.")["contains"]


def test_some_questions_are_drawn_from_all_items(tmp_path: Path) -> None:
    task = READERS["talk"](talk_file(tmp_path), 3, 1, random.Random(0))
    assert {question.group for question in task.questions if question.is_answerable} == {
        "conversation",
        "document",
        "note",
    }
    assert len(task.questions) == 4
    with pytest.raises(ValueError, match="at most 6"):
        talk(talk_file(tmp_path), 7, None, random.Random(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poem"}, "kind: found 'poem'; expected one of conversation, note, document"),
        ({"told": []}, "told: found .*at least one message"),
        (
            {"told": [{"role": "narrator", "text": "x"}]},
            r"told\[0\].role: found 'narrator'; expected user or assistant",
        ),
        ({"ask": [{"q": "x"}]}, r"a field 'short'"),
        ({"ask": [{"q": "x", "short": []}]}, r"ask\[0\].short: found \[\]"),
        ({"ask": [{"q": "x", "short": ["y"], "after": 3}]}, "0 to 2"),
        ({"ask": [{"q": "x", "short": ["y"], "hint": 3}]}, "expected only q, short"),
        ({"slots": {}}, "a value for NAME1"),
        ({"tags": []}, r"found \['tags'\]; expected only id, kind"),
    ],
)
def test_a_line_that_cannot_be_read_says_where_and_why(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    lines = copy.deepcopy(TALK)
    lines[0].update(change)
    with pytest.raises(ValueError, match=message) as error:
        talk(lines_file(tmp_path, "bad.jsonl", lines), None, None, random.Random(0))
    assert "bad.jsonl, line 1" in str(error.value)


class Look:
    """What is written, and every prompt that is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[list[dict[str, str]]] = []
        self.memories: list[Memory] = []
        self.written: list[str] = []
        read, write = MPlus.generate_batch, MPlus.write

        def generate_batch(model: MPlus, memories: Sequence[Memory], prompts: Sequence[Any], **options: Any) -> Any:
            self.prompts += prompts
            self.memories += memories
            return read(model, memories, prompts, **options)

        def writing(model: MPlus, memory: Memory, text: list[str], **options: Any) -> WriteReport:
            self.written += text
            return write(model, memory, text, **options)

        monkeypatch.setattr(MPlus, "generate_batch", generate_batch)
        monkeypatch.setattr(MPlus, "write", writing)


def ask(name: str, model: MPlus, task: Task, settings: Settings = SETTINGS, **options: Any) -> list[Answered]:
    stream = Stream.of(task, options.get("extra", ()), model.tokenizer, options.get("levels", (0,)))
    (one,) = answerers([name], model, model.memory_config, stream, settings, tops=[1])
    return list(one.replies([(question, level) for level in stream.levels for question in task.questions]))


def test_later_every_message_is_written_once_and_a_follow_up_comes_with_what_it_leans_on(
    model: MPlus, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    found = ask("mplus", model, task)
    assert len(found) == len(task.questions)
    assert sorted(look.written) == sorted(task.contexts.values())
    messages = {prompt[-1]["content"]: prompt for prompt in look.prompts}
    assert [message["role"] for message in messages["and my town?"]] == ["user", "assistant", "user"]
    assert len(messages["whats my name"]) == 1
    read = dict(zip((prompt[-1]["content"] for prompt in look.prompts), look.memories, strict=True))
    assert len(read["whats my name"].sources()) == 1 and len(read["how old is my son"].sources()) == 3


def test_in_a_conversation_its_messages_stand_before_the_question(
    model: MPlus, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    found = ask("chat", model, task)
    assert {answered.question.group for answered in found} == {"conversation"} and len(found) == 5
    assert look.written == []
    messages = {prompt[-1]["content"]: [message["content"] for message in prompt] for prompt in look.prompts}
    told = [text for _, text in by_text(task)["how old is my son"].turns]
    assert messages["how old is my son"] == [*told, "how old is my son"]
    assert messages["and my town?"] == [*told, "whats my name", "You are Rosa.", "and my town?"]


def test_turns_that_do_not_stand_in_the_prompt_are_read_from_memory_and_written_once(
    model: MPlus, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    settings = Settings("plain", max_new_tokens=2, batch=4, prompt_turns=0)
    found = ask("chat", model, task, settings)
    assert all(len(prompt) == 1 for prompt in look.prompts) and all(one.reply.prefix_tokens for one in found)
    told = [text for name, text in task.contexts.items() if name.startswith("rosa")]
    # The follow-up's own exchange is told too, and what is asked after it goes on from the messages alone.
    assert look.written.count(told[0]) <= 2 and set(told) <= set(look.written)
    room = model.prompt_room(model.memory_config)
    long = Question("long", "what?", ("x",), (), turns=(("user", "word " * room), ("user", "short")))
    look.prompts.clear()
    ask("chat", model, Task("talk", {}, (long,)))
    assert [message["content"] for message in look.prompts[0]] == ["short", "what?"]


def test_a_conversation_goes_on_beside_a_memory_of_other_texts(
    model: MPlus, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    extra = filler_file(tmp_path).read_text(encoding="utf-8").split("\n\n")
    found = ask("chat", model, task, extra=extra, levels=(0, 600))
    assert {answered.levels for answered in found} == {(0,), (600,)}
    assert all(bool(one.reply.prefix_tokens) == (one.levels == (600,)) for one in found)
    assert len(look.written) == len(set(look.written)) >= 1


def test_common_questions_are_asked_beside_what_was_told(model: MPlus, task: Task, tmp_path: Path) -> None:
    found = common_questions(trivia_file(tmp_path), 100, task.questions, random.Random(0))
    assert 1 <= len(found) < 20 and all(is_held_out(question.text) for question in found)
    assert all(question.contexts and question.group == "common" for question in found)
    whole = Task("talk", task.contexts, (*task.questions, *found))
    assert {one.question.group for one in ask("empty-memory", model, whole)} == {"common"}
    with pytest.raises(ValueError, match="no question for judging"):
        common_questions(
            lines_file(tmp_path, "x.jsonl", [{"question": "who?", "text": "Jo."}]), 9, (), random.Random(0)
        )


def test_held_out_questions_do_not_depend_on_case_or_punctuation() -> None:
    texts = [f"Who found island {n}?" for n in range(40)]
    assert [is_held_out(text) for text in texts] == [is_held_out(text.lower().rstrip("?")) for text in texts]
    assert json.dumps(TALK)  # the format is JSON
