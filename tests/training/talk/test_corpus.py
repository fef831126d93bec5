import random

import pytest

from mplus.training.talk import DEV_WRITERS, drawn, talk_items
from mplus.training.talk.checks import problems_of
from mplus.training.talk.corpus import DATA, writers
from mplus.training.talk.format import QUESTION_KINDS


def test_splits_share_no_writer_and_hold_everything():
    train, dev = talk_items("train"), talk_items("dev")
    assert {item.writer for item in dev} == DEV_WRITERS & set(writers())
    assert not {item.writer for item in train} & DEV_WRITERS
    assert sum(1 for file in DATA.glob("*.jsonl") for line in file.read_text().splitlines() if line) == len(
        train
    ) + len(dev)


def test_files_are_small():
    assert all(file.stat().st_size < 1_000_000 for file in DATA.glob("*.jsonl"))


def test_nothing_is_to_be_mended():
    found = [str(problem) for problem in problems_of(talk_items("train") + talk_items("dev")) if not problem.is_note]
    assert found == []


def test_every_kind_of_question_is_asked():
    assert {question.kind for item in talk_items("train") for question in item.ask} == set(QUESTION_KINDS)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_item_can_be_drawn_again(split):
    rng = random.Random(0)
    for item in talk_items(split):  # three more times in the test before
        assert drawn(item, rng).id == item.id
