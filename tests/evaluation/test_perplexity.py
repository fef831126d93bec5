"""Perplexity against a loop over transformers' own logits."""

import math
from pathlib import Path

import pytest
import torch

from mplus.evaluation.data_files import passages
from mplus.evaluation.perplexity import BACKBONE, CONDITIONS, EMPTY, FULL, Condition, Document, documents, figures
from mplus.evaluation.retention import Stream
from mplus.evaluation.tasks import Task
from mplus.model import MPlus
from tests.evaluation.data import filler_file

TEXTS = {
    "a": "The lighthouse at the end of the pier was painted green. " * 2,
    "b": "Ships pass by at night, and nobody counts them.",
}


@pytest.fixture
def stream(model: MPlus, tmp_path: Path) -> Stream:
    task = Task("perplexity", TEXTS, ())
    return Stream.of(task, passages(filler_file(tmp_path)), model.tokenizer, [0, 800])


def condition(name: str, model: MPlus, stream: Stream) -> Condition:
    return Condition(name, model, model.memory_config, stream, batch=2, seed=0)


def obvious(model: MPlus, document: Document) -> float:
    loss = 0.0
    for place in range(document.half, len(document.input_ids)):
        with torch.no_grad():
            logits = model.weights.backbone.model(torch.tensor([document.input_ids[:place]])).logits[0, -1]
        loss -= float(logits.log_softmax(dim=-1)[document.input_ids[place]])
    return loss


def test_an_empty_memory_costs_nothing_and_both_agree_with_a_loop(model: MPlus, stream: Stream) -> None:
    read = documents(TEXTS, model.tokenizer)
    for name in (BACKBONE, EMPTY):
        found = {s.id: s for s in condition(name, model, stream).scored({0: read})}
        for document in read:
            assert found[document.id].loss == pytest.approx(obvious(model, document), rel=1e-4)
            assert found[document.id].tokens == len(document.input_ids) - document.half


def test_a_full_memory_is_written_up_to_each_level(model: MPlus, stream: Stream) -> None:
    read = documents(TEXTS, model.tokenizer)
    full = condition(FULL, model, stream)
    assert full.levels() == (800,) and condition(EMPTY, model, stream).levels() == (0,)
    beside = {s.id: s.loss for s in full.scored({800: read})}
    alone = {s.id: s.loss for s in condition(EMPTY, model, stream).scored({0: read})}
    assert all(math.isfinite(loss) and loss != alone[name] for name, loss in beside.items())


def test_figures_are_perplexities_with_ratios_to_the_backbone(model: MPlus, stream: Stream) -> None:
    read = documents(TEXTS, model.tokenizer)
    rows = []
    for name in CONDITIONS:
        one = condition(name, model, stream)
        rows += [{"mode": name, **s._asdict()} for s in one.scored({level: read for level in one.levels()})]
    found = {figure.name: figure for figure in figures(rows)}
    total, tokens = sum(obvious(model, d) for d in read), sum(len(d.input_ids) - d.half for d in read)
    assert found[BACKBONE].perplexity.mean == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert found[BACKBONE].ratio is None
    empty = found[EMPTY].ratio
    assert empty is not None and empty.mean == pytest.approx(1, abs=1e-4)
    full = found[FULL]
    assert full.ratio is not None
    assert full.ratio.mean == pytest.approx(full.perplexity.mean / found[BACKBONE].perplexity.mean)
    assert full.perplexity.low <= full.perplexity.mean <= full.perplexity.high


def test_a_text_that_is_too_short_is_an_error(model: MPlus) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        documents({"short": "Too short."}, model.tokenizer)
