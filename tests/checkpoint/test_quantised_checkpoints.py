"""Checkpoints that a library has quantised: torchao and quanto where they are installed, else named by their package."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mplus import CheckpointError, Memory, MPlus
from mplus.backbone.adapters import LoraLinear, LoraWeights, with_adapter
from mplus.backbone.quantised import dense, dense_copy, is_dense
from mplus.testing import byte_tokenizer, tiny_backbone
from tests.conftest import TINY

TEXT = "Ann keeps the garage key under the third flowerpot, and the code of the door is 4417. "
PACKAGES = {"torchao": "torchao", "quanto": "optimum.quanto"}
WAYS = [
    pytest.param(way, marks=pytest.mark.skipif(not find_spec(of.split(".")[0]), reason=f"needs {of}"))
    for way, of in PACKAGES.items()
]


def int8(way: str) -> Any:
    from transformers import QuantoConfig, TorchAoConfig

    if way == "quanto":
        return QuantoConfig(weights="int8")
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]

    return TorchAoConfig(Int8WeightOnlyConfig())


def folder_of(model_type: str, folder: Path) -> Path:
    tiny_backbone(model_type).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_an_int8_checkpoint_writes_reads_and_saves(tmp_path: Path, way: str, model_type: str) -> None:
    model = MPlus.from_pretrained(folder_of(model_type, tmp_path), memory=TINY, quantization_config=int8(way))
    assert not all(is_dense(weight) for weight in model.weights.backbone.model.parameters())
    memory = model.new_memory()
    model.write(memory, TEXT, source="note")
    answer = model.generate(memory, "What is the code?", max_new_tokens=4)
    assert [one.source for one in answer.recalled] == ["note"]
    model.save_pretrained(tmp_path / "saved")
    again = MPlus.from_pretrained(tmp_path / "saved", memory=TINY)
    assert again.fingerprint == model.fingerprint
    memory.save(tmp_path / "memory")
    same = again.generate(Memory.load(tmp_path / "memory", again), "What is the code?", max_new_tokens=4)
    assert same.token_ids == answer.token_ids


def test_a_package_that_is_not_installed_is_named_for_a_config_given_in_the_call(tmp_path: Path) -> None:
    if find_spec("optimum"):
        pytest.skip("quanto is installed")
    with pytest.raises(CheckpointError, match="'quanto'.*pip install optimum-quanto"):
        MPlus.from_pretrained(folder_of("llama", tmp_path), memory=TINY, quantization_config=int8("quanto"))


class Halves(torch.Tensor):
    """A tensor of a library's own class, which stands for the halves of its numbers."""

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor) / 2


def test_weights_of_another_class_are_dense_only_when_undone() -> None:
    plain = nn.Parameter(torch.ones(2, 3))
    halves = plain.detach().as_subclass(Halves)
    assert is_dense(plain)
    assert not is_dense(halves)
    assert torch.equal(dense(plain), plain.detach())
    assert torch.equal(dense(halves), torch.full((2, 3), 0.5))


def test_an_adapter_is_not_merged_into_quantised_weights() -> None:
    layers = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    quantised: Any = layers[0]
    weight = quantised.weight.detach().as_subclass(Halves)
    del quantised.weight
    quantised.weight = weight
    change = LoraWeights(torch.ones(1, 3), torch.ones(3, 1), 1.0)
    adapted = with_adapter(layers, {"0": change, "1": change}, merge=True)
    assert isinstance(adapted[0], LoraLinear)
    assert type(adapted[1]) is nn.Linear


def test_a_dense_copy_has_the_same_weights() -> None:
    model = tiny_backbone()
    found, expected = dense_copy(model).state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
