import pytest
import torch
from torch import nn

from mplus.backbone.quantised import FEW_ROWS, Int8Linear, quantise_for_decoding
from mplus.model import MPlus
from mplus.testing import tiny_model
from tests.conftest import TINY


@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_are_close_and_many_are_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias).bfloat16()
    quantised = Int8Linear(linear)
    few, many = torch.randn(1, 2, 96).bfloat16(), torch.randn(FEW_ROWS + 1, 96).bfloat16()
    with torch.inference_mode():
        error = (quantised(few) - linear(few)).float().norm() / linear(few).float().norm()
        assert 0 < error < 0.02
        assert quantised(few).shape == linear(few).shape
        assert torch.equal(quantised(many), linear(many))
        assert quantised(few[:, :0]).shape == (1, 0, 64)


def test_shared_layers_stay_shared_and_nothing_more_is_saved() -> None:
    shared = nn.Linear(32, 32).bfloat16()
    trees = [nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Linear(32, 33).bfloat16())]
    names = [list(tree.state_dict()) for tree in trees]
    quantise_for_decoding(trees)
    assert isinstance(trees[0][0], Int8Linear) and trees[0][0] is trees[1][0]
    assert type(trees[1][1]) is nn.Linear, "not of whole blocks"
    assert [list(tree.state_dict()) for tree in trees] == names


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r'dtype="int8".*float32'):
        quantise_for_decoding([nn.Sequential(nn.Linear(32, 32))])


def test_a_model_is_loaded_with_int8_weights_and_reads_the_same_memories(text: str, tmp_path) -> None:
    tiny_model(memory=TINY, hidden_size=64, intermediate_size=128, head_dim=16, num_attention_heads=4).save_pretrained(
        tmp_path
    )
    plain = MPlus.from_pretrained(tmp_path, device="cpu", dtype="bfloat16")
    quick = MPlus.from_pretrained(tmp_path, device="cpu", dtype="int8")
    assert any(isinstance(m, Int8Linear) for m in quick.weights.backbone.model.modules())
    memory = plain.new_memory()
    plain.write(memory, text, source="a")
    assert quick.weights.fingerprints == plain.weights.fingerprints
    answers = [model.generate(memory, "Which box is blue?", max_new_tokens=12) for model in (plain, quick)]
    assert answers[1].completion_tokens == 12
    # The prompt is read in bfloat16 by both, so the first token is the same.
    assert answers[0].token_ids[0] == answers[1].token_ids[0]
    quick.save_pretrained(tmp_path / "again")
    assert MPlus.from_pretrained(tmp_path / "again", device="cpu", dtype="float32").weights.fingerprints
