"""The projection is trained on the scores that recall will give."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mplus.model import MPlus
from mplus.recall.late_interaction import LateInteraction
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.chunk_run import late_interaction
from mplus.training.chunk.projection import (
    Batch,
    Lesson,
    LessonRows,
    ProjectionSettings,
    Trained,
    train_projection,
)
from mplus.training.chunk.questions import Question
from tests.conftest import TINY

LAYER = 1
CONFIG = TINY.model_copy(update={"lexical_weight": 0.0})


@pytest.fixture
def lesson(model: MPlus, text: str) -> Lesson:
    bank = ChunkBank(model.weights, model.tokenizer, CONFIG, only_layer=LAYER)
    bank.add([text[start : start + 150] for start in (0, 200, 400, 600)])
    asked = [Question(text[at : at + 20], (text[at + 5 : at + 15],), (n,), "") for n, at in enumerate((40, 260, 470))]
    return Lesson(bank, asked, [0, 0, 1, 1], frozenset([3]))


def test_one_layer_is_kept_as_it_is_among_all(model: MPlus, text: str) -> None:
    one, every = (ChunkBank(model.weights, model.tokenizer, CONFIG, only_layer=layer) for layer in (LAYER, None))
    for bank in (one, every):
        bank.add([text[:150], text[200:260]])
    for chunk in range(len(every.input_ids)):
        assert torch.equal(one.normed(chunk, LAYER), every.normed(chunk, LAYER))
    with pytest.raises(AssertionError, match="only layer 1"):
        one.normed(0, 2)


def test_scores_differ_as_relevance_does(model: MPlus, lesson: Lesson) -> None:
    base = late_interaction(model, None)
    hidden = base.mean.shape[1]
    query, key = (torch.randn(8, hidden, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    weights = torch.randn(hidden, generator=torch.Generator().manual_seed(3)) / hidden**0.5
    trained = LateInteraction(
        base.mean, base.deviation, query_projection=query, key_projection=key, query_weights=weights
    )
    learnt, recall = LessonRows(lesson, LAYER, base), BankRecall(lesson.bank, trained, LAYER)
    pool = list(range(len(lesson.bank.input_ids)))
    scores = learnt.scores(Trained(query, key, weights), Batch([0, 1, 2], pool))
    for row, question in enumerate(lesson.questions):
        relevance = recall.relevance(question.text)
        expected = relevance - relevance.mean()
        torch.testing.assert_close(scores[row], expected, atol=0.02, rtol=0.02)  # rows wait in bfloat16
    # A pool that leaves neighbours out scores with them all the same.
    some = learnt.scores(Trained(query, key, weights), Batch([0], pool[::2]))[0]
    torch.testing.assert_close(some - some.mean(), scores[0, ::2] - scores[0, ::2].mean(), atol=1e-4, rtol=1e-4)


def test_what_answers_and_what_is_private_is_no_negative(model: MPlus, lesson: Lesson) -> None:
    learnt = LessonRows(lesson, LAYER, late_interaction(model, None))
    chunks = lesson.bank.chunks_of
    batch = Batch([0, 2], [chunks[0][0], chunks[2][0], chunks[3][0], *learnt._gold[0]])
    barred = learnt.barred(batch)
    assert not barred[0, 0] and not barred[1, 1]  # the right one of each
    assert barred[0, 2] and not barred[1, 2]  # text 3 is private to the group of question 2
    assert barred[0, 3:].all() and not barred[1, 3:].any()


def test_where_the_text_is_meant_any_of_its_chunks_is_right(model: MPlus, lesson: Lesson) -> None:
    whole = Lesson(lesson.bank, lesson.questions, lesson.groups, whole=True)
    learnt = LessonRows(whole, LAYER, late_interaction(model, None))
    assert learnt._gold == [lesson.bank.chunks_of[n] for n in range(3)]
    settings = ProjectionSettings(batch=4, hard=1)
    same = torch.eye(late_interaction(model, None).mean.shape[1])
    learnt.search(Trained(same, same, torch.zeros(len(same))), random.Random(0), 3)
    batch = learnt.draw(random.Random(0), settings)
    assert len(batch.pool) == 8
    for question, right in zip(batch.questions, batch.pool, strict=False):
        assert lesson.bank.owner[right] == question


def test_training_is_seeded_and_takes_lessons_in_turn(
    model: MPlus, lesson: Lesson, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ProjectionSettings(steps=6, batch=4, size=8, refresh=3)
    base = late_interaction(model, None)
    one, again = (train_projection([lesson, lesson], LAYER, base, settings) for _ in range(2))
    assert one.query_projection is not None and again.query_projection is not None
    assert torch.equal(one.query_projection, again.query_projection)
    assert capsys.readouterr().out.count("right chunk first") == 2 * 2


class Marks:
    """A teacher that finds texts alike that have as many letters."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        turned = np.array([len(text) for text in texts], dtype=np.float32) / 20
        return np.stack([np.cos(turned), np.sin(turned)], axis=1)


def test_a_teacher_s_order_is_learnt_beside_the_right_answers(model: MPlus, lesson: Lesson) -> None:
    base = late_interaction(model, None)
    settings = ProjectionSettings(batch=3, hard=2)
    alone, taught = LessonRows(lesson, LAYER, base), LessonRows(lesson, LAYER, base, Marks())
    hidden = base.mean.shape[1]
    query = torch.nn.Parameter(torch.randn(8, hidden, generator=torch.Generator().manual_seed(1)))
    trained = Trained(query, torch.nn.Parameter(query.detach().clone()), torch.nn.Parameter(torch.zeros(hidden)))
    batch = taught.draw(random.Random(0), settings)
    apart = taught.loss(trained, batch, settings) - alone.loss(trained, batch, settings)
    assert apart > 0  # a divergence
    taught.loss(trained, batch, settings).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any() for leaf in trained)
