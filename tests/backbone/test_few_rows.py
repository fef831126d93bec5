from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mplus.backbone import few_rows
from mplus.backbone.few_rows import ANSWERING, MEASURED_ROWS, FewRowsLinear, Kernel, answering, prepare_for_decoding
from mplus.checkpoint import loading
from mplus.model import MPlus
from mplus.read import warming
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from tests.conftest import TINY

Measure = Callable[[Sequence[Kernel], Tensor], float]
MOST = MEASURED_ROWS[-1]


def in_order(*names: str) -> Measure:
    """A measurement by which kernels take the longer, the later their name stands; those not named take longest."""

    def seconds(kernels: Sequence[Kernel], inputs: Tensor) -> float:
        own = kernels[0].__qualname__.split(".")[0]
        return 1.0 + names.index(own) if own in names else 100.0

    return seconds


@pytest.fixture(autouse=True)
def _every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "computes_bfloat16", lambda: True)


def prepared(linear: nn.Linear, dtype: str, seconds: Measure) -> nn.Module:
    tree = nn.Sequential(linear)
    prepare_for_decoding([tree], dtype, seconds=seconds)
    return tree[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("weights", "kind", "most"),
    [
        (torch.float32, "float16", 1e-3),
        (torch.float32, "bfloat16", 0.02),
        (torch.float32, "int8", 0.02),
        (torch.bfloat16, "float16", 1e-3),
        (torch.bfloat16, "int8", 0.02),
    ],
)
def test_a_few_rows_that_are_decoded_are_close_and_all_else_is_the_same(
    bias: bool, weights: torch.dtype, kind: str, most: float
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias).to(weights)
    quick = prepared(linear, "int8", in_order(kind, "plain"))
    few, many = torch.randn(1, 3, 96).to(weights), torch.randn(MOST + 1, 96).to(weights)
    with torch.inference_mode():
        expected = linear(few)
        assert torch.equal(quick(few), expected), "not decoding"
        with answering():
            found = quick(few)
            assert (found.shape, found.dtype) == (expected.shape, weights)
            # A bfloat16 result is rounded itself.
            assert (found - expected).float().norm() / expected.float().norm() < max(
                most, 0.01 * (weights != torch.float32)
            )
            assert torch.equal(quick(many), linear(many))
            assert quick(few[:, :0]).shape == (1, 0, 64)
    assert quick.chosen == dict.fromkeys(MEASURED_ROWS, kind)


def test_each_number_of_rows_gets_what_is_quickest_there() -> None:
    def seconds(kernels: Sequence[Kernel], inputs: Tensor) -> float:
        best = {1: "plain", 4: "float16", 16: "bfloat16"}.get(len(inputs), "plain")
        return in_order(best, "plain", "float16", "bfloat16")(kernels, inputs)

    linear = nn.Linear(64, 32)
    quick = prepared(linear, "auto", seconds)
    assert isinstance(quick, FewRowsLinear)
    assert quick.chosen == {1: "plain", 4: "float16", 16: "bfloat16", 128: "plain", 512: "plain"} and "float16" in repr(
        quick
    )
    rows = torch.randn(16, 64)
    exact = linear(rows)
    with torch.inference_mode(), answering():
        assert torch.equal(quick(rows[:1]), linear(rows[:1]))
        two, five = quick(rows[:2]), quick(rows[:5])
    half = nn.functional.linear(rows, linear.weight.half().float(), linear.bias)
    assert torch.allclose(two, half[:2], atol=1e-5) and not torch.allclose(five, half[:5], atol=1e-5)
    assert torch.allclose(five, exact[:5], atol=0.05)


def test_what_saves_little_is_not_worth_another_result() -> None:
    close = lambda kernels, inputs: 0.95 if "float16" in kernels[0].__qualname__ else 1.0
    linear = nn.Linear(64, 32)
    assert prepared(linear, "auto", close) is linear


def test_a_copy_of_few_of_the_layers_is_measured_and_all_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "MEASURED_BYTES", 2 * 64 * 32 * 4)
    tree = nn.Sequential(*(nn.Linear(64, 32, bias=False) for _ in range(3)))
    linears, measured = list(tree), list[int]()

    def seconds(kernels: Sequence[Kernel], inputs: Tensor) -> float:
        measured.append(len(kernels))
        return in_order("float16", "plain")(kernels, inputs)

    prepare_for_decoding([tree], "auto", seconds=seconds)
    assert {*measured} == {2, 1}, "as much work for many rows as for few"
    rows = torch.randn(2, 64)
    with torch.inference_mode(), answering():
        for quick, linear in zip(tree, linears, strict=True):
            assert torch.allclose(quick(rows), linear(rows), atol=1e-3) and not torch.equal(quick(rows), linear(rows))


def test_a_kernel_far_behind_is_measured_once() -> None:
    calls: list[str] = []

    def seconds(kernels: Sequence[Kernel], inputs: Tensor) -> float:
        calls.append(kernels[0].__qualname__.split(".")[0])
        return in_order("float16", "plain")(kernels, inputs)

    prepared(nn.Linear(64, 32), "int8", seconds)
    assert calls.count("int8") == calls.count("bfloat16") == len(MEASURED_ROWS) < calls.count("float16")


def test_what_does_not_fit_into_float16_keeps_its_weights() -> None:
    linear = nn.Linear(64, 32)
    linear.weight.data[0, 0] = 1e5
    assert prepared(linear, "auto", in_order("float16", "plain")) is linear


def test_without_instructions_for_bfloat16_only_float16_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "computes_bfloat16", lambda: False)
    linear = nn.Linear(64, 32)
    assert prepared(linear, "int8", in_order("int8", "bfloat16", "plain", "float16")) is linear


def test_without_the_kernel_of_float16_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object) -> None:
        raise RuntimeError("Didn't find engine for operation quantized::linear_prepack_fp16")

    monkeypatch.setattr(torch.ops.quantized, "linear_prepack_fp16", lacks)
    linear = nn.Linear(64, 32)
    assert prepared(linear, "auto", in_order("float16", "plain", "bfloat16")) is linear


def test_shared_layers_stay_shared_and_nothing_more_is_saved() -> None:
    shared = nn.Linear(32, 32)
    trees = [nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Linear(32, 33))]
    names = [list(tree.state_dict()) for tree in trees]
    prepare_for_decoding(trees, "int8", seconds=in_order("int8", "plain"))
    assert isinstance(trees[0][0], FewRowsLinear) and trees[0][0] is trees[1][0]
    assert type(trees[1][1]) is nn.Linear, "not of whole blocks"
    assert [list(tree.state_dict()) for tree in trees] == names


def test_layers_elsewhere_are_left_alone_or_refused() -> None:
    linear = nn.Linear(32, 32, device="meta")
    assert prepared(linear, "auto", in_order("float16")) is linear
    with pytest.raises(ValueError, match=r'decode_dtype="int8": the weights of 0 are on meta; expected the CPU'):
        prepared(linear, "int8", in_order("float16"))


def test_an_unknown_dtype_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"decode_dtype='int2': expected 'auto', 'int8' or None"):
        MPlus.from_pretrained(tmp_path, decode_dtype="int2")


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_what_was_kept_as_token_ids_is_encoded_by_the_weights(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(memory=TINY.model_copy(update={"long_term_keep": "ids"}), model_type=model_type)
    memory = model.new_memory()
    model.write(memory, "The box is blue, and the key is under it. " * 30, source="a")
    seen: dict[str, set[bool]] = {"layers": set(), "chunks": set()}
    real = warming.latents_apart

    def encoding(*arguments: Any) -> Any:
        seen["chunks"].add(ANSWERING.get())
        return real(*arguments)

    monkeypatch.setattr(warming, "latents_apart", encoding)
    for layer in model.weights.backbone.read_layers:
        layer.register_forward_pre_hook(lambda *_: seen["layers"].add(ANSWERING.get()))
    prefill(model.weights, [model.read_request(memory, "Where is the key?")]).reading.decode([7])
    assert True in seen["layers"], "the prompt and the answer"
    assert seen["chunks"] == {False}


def test_a_layer_that_takes_long_is_not_measured_for_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "MEASURED_PRODUCTS", 64 * 32 * 128)
    quick = prepared(nn.Linear(64, 32), "auto", in_order("float16", "plain"))
    assert isinstance(quick, FewRowsLinear) and {*quick.chosen} == {1, 4, 16, 128}


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_a_model_with_copies_writes_and_reads_the_same_memories(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4}
    tiny_model(memory=TINY, **sizes).save_pretrained(tmp_path)
    monkeypatch.setattr(few_rows, "_quickest", lambda tried, *_: "int8" if "int8" in tried else "plain")
    monkeypatch.setattr(loading, "computes_bfloat16", lambda: base == "bfloat16")
    plain = MPlus.from_pretrained(tmp_path, device="cpu", dtype=base)
    quick = MPlus.from_pretrained(tmp_path, device="cpu", dtype="int8")
    assert quick.weights.backbone.dtype == plain.weights.backbone.dtype == getattr(torch, base)
    assert any(isinstance(module, FewRowsLinear) for module in quick.weights.backbone.model.modules())
    assert quick.weights.fingerprints == plain.weights.fingerprints
    memories = [model.new_memory() for model in (plain, quick)]
    for model, memory in zip((plain, quick), memories, strict=True):
        model.write(memory, text, source="a")
    assert memories[0].fingerprint == memories[1].fingerprint
    steps = []
    for model in (plain, quick):
        request = model.read_request(memories[0], "Box?")
        steps.append(prefill(model.weights, [request]))
    recalled = [step.reading.recalled[0][0].index for step in steps]
    assert len(recalled[0]) and torch.equal(*recalled), "recall searches with the weights"
    for both in ([step.logits for step in steps], [step.reading.decode([7]) for step in steps]):
        assert not torch.equal(*both) and torch.allclose(*both, atol=0.2)
    quick.save_pretrained(tmp_path / "again")
    assert MPlus.from_pretrained(tmp_path / "again", device="cpu", dtype="float32").weights.fingerprints
