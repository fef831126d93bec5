"""Lessons in texts of many origins: what is looked for, and what it is told apart from."""

import random

from mplus.model import MPlus
from mplus.training.chunk.broad import BroadRows
from mplus.training.chunk.broad_lessons import broad_lesson, talk_lessons
from mplus.training.chunk.questions import Question
from mplus.training.talk import talk_items

LAYER = 1


def test_passages_answer_their_questions_however_they_are_typed(model: MPlus) -> None:
    rows = BroadRows(
        ["The heron stands by the weir.", "Bread is baked at five."],
        [Question("When is bread baked?", ("five",), (1,), "Bread is baked at five.")] * 8,
    )
    lesson = broad_lesson(model, model, rows, LAYER, random.Random(0))
    assert all(lesson.bank.gold_chunks(question) for question in lesson.questions)
    assert len({question.text for question in lesson.questions}) > 1
    assert list(lesson.groups) == [0, 1]


def test_of_conversations_the_needed_messages_are_looked_for_and_of_documents_the_answer(model: MPlus) -> None:
    every = talk_items("train")
    items = [next(item for item in every if item.kind == kind) for kind in ("conversation", "document")]
    said, written = talk_lessons(model, model, items, LAYER, random.Random(0))
    assert said.whole and not written.whole
    asked = [question for question in items[0].ask if question.kind != "follow-up"]
    assert [question.passages for question in said.questions] == [question.needs for question in asked]
    assert set(said.groups) == {0} and len(said.groups) == len(items[0].told)
    assert any(written.bank.gold_chunks(question) for question in written.questions)
