"""The decline head learns from what a model knows when its answer begins."""

import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mplus import MPlus
from mplus.cli.app import app
from mplus.evaluation.datasets.talk import talk_task
from mplus.training.chunk.decline import (
    DeclineExamples,
    DeclineSettings,
    _some,
    area_under,
    decline_examples,
    fit_decline_head,
)
from mplus.training.run_settings import RunSettings
from mplus.training.talk.corpus import DECLINE_WRITERS, DEV_WRITERS, decline_files


def made(noise: float, read: str = "text", *, has_learnt: bool = False) -> DeclineExamples:
    """Items of two layers, of which the second tells what is unknown."""
    generator = torch.Generator().manual_seed(0)
    unknown = torch.arange(240) % 4 == 0
    states = torch.randn(240, 2, 6, generator=generator)
    states[:, 1, 2] += unknown * 4.0
    own = unknown.float() + noise * torch.randn(240, generator=generator)
    groups = tuple(f"item-{number // 8}" for number in range(240))
    return DeclineExamples((3, 5), states, own, unknown, groups, read, has_learnt)


def test_it_takes_the_layer_that_tells_most_of_items_that_were_left_out() -> None:
    examples = made(noise=0.0)
    head, figures = fit_decline_head(examples, DeclineSettings(penalties=(0.01, 0.1)))
    assert (head.layer, head.read, figures["layer"]) == (5, "text", 5)
    assert figures["area"] > 0.98 and figures["declined"] > 0.9 and figures["wrongly_declined"] < 0.1
    assert float(head.own) == 0.0  # how a model that never learnt it says that it does not know means nothing
    odds = head.log_odds(examples.states[:, 1])
    assert area_under(odds, examples.unknown) > 0.98
    for read in ("latent", "text"):
        own, _ = fit_decline_head(made(noise=0.1, read=read, has_learnt=True), DeclineSettings(penalties=(0.01,)))
        assert float(own.own) > 0.1 and own.read == read


def test_states_that_say_nothing_give_an_area_of_a_half() -> None:
    examples = made(noise=1.0)
    some = (examples.own, examples.unknown, examples.groups, "text")
    blind = DeclineExamples((3,), examples.states[:, :1], *some, has_learnt=False)
    _, figures = fit_decline_head(blind, DeclineSettings(penalties=(0.3,)))
    assert 0.35 < figures["area"] < 0.65


def test_examples_are_read_as_users_read(model: MPlus) -> None:
    task = talk_task(decline_files()[:1], None, None, random.Random(0))
    seen = list[tuple[int, int]]()
    general = ["Tell me a joke.", "What is 3 plus 4?", "Thank you!"]
    examples = decline_examples(
        model, task, general, DeclineSettings(questions=12), lambda done, total: seen.append((done, total))
    )
    assert examples.read == "latent" and len(examples.own) == 12 == seen[-1][0] == seen[-1][1]
    assert examples.unknown.sum() == 5 and examples.states.shape[1] == len(examples.layers)
    assert all(group.startswith("amber") for group in examples.groups)


def test_several_questions_of_a_text_are_asked() -> None:
    task = talk_task(decline_files(), None, None, random.Random(0))
    general, settings = ["Tell me a joke."] * 200, DeclineSettings(questions=80)
    asked = _some(task.questions, general, settings)
    unknown = [question for question in asked if not question.is_answerable]
    known = [question for question in asked if question in task.questions and question.is_answerable]
    assert len(asked) == 80 and len(unknown) == len(known) == 30
    assert len({question.contexts for question in unknown}) < 0.6 * len(unknown)
    assert {question.contexts for question in known} <= {question.contexts for question in unknown}
    assert asked == _some(task.questions, general, settings)
    assert set(task.questions) <= set(_some(task.questions, [], DeclineSettings(questions=10**6)))


def test_the_writers_are_held_out() -> None:
    assert DECLINE_WRITERS < DEV_WRITERS
    assert {file.stem for file in decline_files()} == DECLINE_WRITERS


def test_the_stage_needs_no_texts_and_stands_alone() -> None:
    assert RunSettings(stages=("decline",)).stages == ("decline",)
    with pytest.raises(ValueError, match="Train it alone"):
        RunSettings(stages=("projection", "decline"), talk=1)


def test_in_one_command(model: MPlus, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    said = CliRunner().invoke(
        app,
        ["train", "--model", str(tmp_path / "model"), "--stages", "decline", "--steps", "decline=12",
         "--evaluate", "none", "--out", str(tmp_path / "run")],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    trained = MPlus.from_pretrained(tmp_path / "run" / "model")
    assert trained.weights.decline_head is not None and trained.decline_threshold == 0.5
