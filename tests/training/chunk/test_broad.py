"""Passages of other origins: which rows are taken."""

import gzip
import json
import random
from pathlib import Path

import pytest

from mplus.evaluation.common_questions import is_held_out
from mplus.training.chunk.broad import broad_files, general_questions, read_answered

TEXT = "The mill at Oreby was built in 1820 by a baker. It burnt down twice."
ROWS = [
    {"text": TEXT, "question": "When was the mill built?", "answers": ["1820"], "kind": "text"},
    {"text": TEXT, "question": "Did it burn?", "answers": ["No"], "kind": "text"},
    {"text": TEXT, "question": "Who wrote it?", "answers": ["A miller"], "kind": "text"},
    {"text": "", "question": "Name a colour.", "answers": [], "kind": "request"},
    {"text": "", "question": "What is my balance?", "answers": [], "kind": "request"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def test_answers_stand_in_the_text(file: Path) -> None:
    rows = read_answered([file], 10, random.Random(0))
    assert rows.texts == [TEXT]
    (question,) = rows.questions
    assert (question.text, question.answers, question.passages) == ("When was the mill built?", ("1820",), (0,))
    assert question.reply == "The mill at Oreby was built in 1820 by a baker."


def test_general_questions_say_nothing_of_who_asks(file: Path) -> None:
    assert general_questions([file]) == [q for q in ["Name a colour."] if not is_held_out(q)]


def test_a_folder_stands_for_its_files(file: Path) -> None:
    assert broad_files([file.parent]) == [file] == broad_files([file])


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1: KeyError 'question'; expected JSON"):
        read_answered([path], 1, random.Random(0))
