from mplus.training.talk import DEV_WRITERS, talk_items
from mplus.training.talk.checks import problems_in
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
    """`make check` looks at every item; here at some of every writer."""
    items = talk_items("train") + talk_items("dev")
    some = [item for writer in writers() for item in [item for item in items if item.writer == writer][::12]]
    assert len(some) > 200
    found = [str(problem) for item in some for problem in problems_in(item) if not problem.is_note]
    assert found == []


def test_every_kind_of_question_is_asked():
    assert {question.kind for item in talk_items("train") for question in item.ask} == set(QUESTION_KINDS)
