"""The first token of an answer from memory is shifted between yes and no, and nothing else is."""

from pathlib import Path

import pytest
import torch

from mplus import MPlus, MPlusError
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.generation.declining import DeclineThreshold
from mplus.generation.polarity import YesOdds
from mplus.testing import tiny_model

ASKED = [{"role": "user", "content": "Does the ferryman call at six?"}]


def token(model: MPlus, text: str) -> int:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"][0]


def test_odds_are_multiplied_and_the_two_keep_what_they_have_together(model: MPlus) -> None:
    yes, no = token(model, "Yes"), token(model, "No")
    scores = torch.randn(model.weights.backbone.config.vocab_size, generator=torch.Generator().manual_seed(0))
    before, after = scores.softmax(-1), YesOdds(model.tokenizer, 3.0)([], scores).softmax(-1)
    torch.testing.assert_close(after[yes] / after[no], 3 * before[yes] / before[no])
    torch.testing.assert_close(after[yes] + after[no], before[yes] + before[no])
    others = torch.ones(len(scores), dtype=torch.bool)
    others[[token(model, text) for text in ("Yes", "No", "yes", "no")]] = False
    torch.testing.assert_close(after[others], before[others])


def test_later_tokens_and_what_cannot_be_said_stay_as_they_are(model: MPlus) -> None:
    yes, no = token(model, "Yes"), token(model, "No")
    shift, scores = YesOdds(model.tokenizer, 3.0), torch.zeros(model.weights.backbone.config.vocab_size)
    assert torch.equal(shift([5], scores), scores)
    scores[[yes, no]] = float("-inf")
    assert not shift([], scores).isnan().any() and shift([], scores)[yes] == float("-inf")
    declined = DeclineThreshold(model.tokenizer, 1e-6)([], shift([], torch.zeros_like(scores)))
    assert declined.isfinite().sum() == 1, "declining counts after it"


def preferring(model: MPlus, first: str, second: str) -> MPlus:
    """The model with a head that always likes one token best and another a little less."""
    places = torch.tensor([token(model, first), token(model, second)])
    liked = torch.tensor([12.0, 11.0])
    head = model.weights.backbone.model.lm_head
    head.register_forward_hook(
        lambda _m, _i, logits: logits.index_copy(-1, places, liked.expand(*logits.shape[:-1], 2))
    )
    return model


def test_an_answer_from_memory_says_yes_where_no_was_only_the_habit_and_an_empty_memory_is_the_backbone() -> None:
    model = preferring(tiny_model(yes_odds=3.58), "No", "Yes")
    begins = [model.tokenizer.decode([token(model, text)]) for text in ("Yes", "No")]
    memory = model.new_memory()
    assert model.generate(memory, ASKED, max_new_tokens=1).text == begins[1]
    model.write(memory, "The ferryman calls at six.", source="a")
    assert model.generate(memory, ASKED, max_new_tokens=1).text == begins[0]
    assert "".join(model.stream(memory, ASKED, max_new_tokens=1)) == begins[0]
    assert model.generate_batch([memory], [ASKED], max_new_tokens=1)[0].text == begins[0]
    assert preferring(tiny_model(), "No", "Yes").generate(memory, ASKED, max_new_tokens=1).text == begins[1]


def test_odds_are_kept_with_the_trained_parts_and_absurd_ones_are_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, TrainedParts(yes_odds=2.5))
    assert read_parts(tmp_path).yes_odds == 2.5
    for absurd in ("0", "-1", "1e9", "true", '"2"'):
        text = (tmp_path / "mplus.json").read_text("utf-8")
        (tmp_path / "mplus.json").write_text(text.replace("2.5", absurd), "utf-8")
        with pytest.raises(MPlusError, match=r"yes_odds=.*; expected a factor"):
            read_parts(tmp_path)
        (tmp_path / "mplus.json").write_text(text, "utf-8")
