"""Read adapters of models that are called by their own layers: trained as they are read, saved and loaded again."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mplus.backbone.adapters import Adapter
from mplus.backbone.own_layers import OwnLayers
from mplus.checkpoint.loading import assemble
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.errors import CheckpointError, UnsupportedModelError
from mplus.generation.prompt import Prompt
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.self_check import HowRead
from mplus.testing import byte_tokenizer
from mplus.training.chunk.chunk_bank import ChunkBank, HeldStates
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, new_adapter
from mplus.training.chunk.read_adapter_task import ReaderTask
from mplus.training.chunk.sample import AsRead, Sample, encode_sample
from mplus.training.loop import train
from mplus.training.run_folder import Log
from tests.backbone.tiny_models import tiny_of
from tests.conftest import TINY

TEXT = "Ann keeps the garage key under the third flowerpot, and the code of the door is 4417. "
PROMPT = tuple(b"Where is the key? Under the third one.")
RANK = ReaderSettings(rank=2)
READ = HowRead("latent", "random weights read nothing")


def loaded(kind: str, parts: TrainedParts | None = None, **changes) -> MPlus:
    tokenizer, parts = byte_tokenizer(), parts or TrainedParts()
    return MPlus(assemble(tiny_of(kind, **changes), tokenizer, parts), tokenizer, TINY, parts=parts, reads=READ)


def trained_by_chance(model: MPlus, seed: int = 0) -> Adapter:
    """An adapter whose layers all change something."""
    generator = torch.Generator().manual_seed(seed)
    adapter = new_adapter(model.weights, RANK)
    return {
        name: replace(lora, up=torch.randn(lora.up.shape, generator=generator) * 0.02) for name, lora in adapter.items()
    }


def bank_of(model: MPlus, *texts: str) -> ChunkBank:
    bank = ChunkBank(model.weights, model.tokenizer, TINY)
    bank.add(texts)
    bank.states = HeldStates(states.float() for states in bank.states)
    return bank


def as_generated(model: MPlus, text: str, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits after a prompt behind a memory of a text, as ``generate`` computes them."""
    memory = model.new_memory()
    model.write(memory, text, source="a")
    request = model.read_request(memory, Prompt(ids, (0, len(ids))))
    return prefill(model.weights, [request], all_logits=True).logits[0]


@pytest.mark.parametrize("write_from", [None, 1])
@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_moe", "olmo2", "phi3", "deepseek_v3", "qwen3_next"])
def test_training_reads_and_writes_as_a_trained_model_does(kind: str, write_from: int | None) -> None:
    """Windows, experts, norms after layers, fused projections, latent attention, recurrent layers."""
    plain = loaded(kind, sliding_window=24)
    assert isinstance(plain.weights.backbone, OwnLayers)
    adapter = trained_by_chance(plain)
    reader = Reader(plain.weights, bank_of(plain, TEXT[:60], TEXT[20:54]), adapter, write_from=write_from)
    samples = [
        Sample(tuple(reader.bank.chunks_of[0]), PROMPT, 10),
        Sample(tuple(reader.bank.chunks_of[1]), PROMPT[:15], 10),
    ]
    with torch.no_grad():
        logits = reader._logits(samples, reader.backbone, memory=True)
    model = loaded(kind, TrainedParts(read_adapter=adapter, write_from=write_from), sliding_window=24)
    for text, sample, found in zip((TEXT[:60], TEXT[20:54]), samples, logits, strict=True):
        expected = as_generated(model, text, sample.input_ids)[sample.target - 1 : -1]
        # The bank keeps states in bfloat16 once.
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
        unread = as_generated(plain, text, sample.input_ids)[sample.target - 1 : -1]
        assert (found - expected).norm() < 0.1 * (unread - expected).norm(), "the adapter changes what is read"


@pytest.mark.parametrize("kind", ["gemma3_text", "phi3"])
def test_an_empty_memory_is_the_plain_model_whatever_was_trained(kind: str) -> None:
    plain = loaded(kind)
    model = loaded(kind, TrainedParts(read_adapter=trained_by_chance(plain), write_from=1))
    empty = prefill(model.weights, [model.read_request(model.new_memory(), "Where is the key?")], all_logits=True)
    expected = prefill(plain.weights, [plain.read_request(plain.new_memory(), "Where is the key?")], all_logits=True)
    torch.testing.assert_close(empty.logits, expected.logits)


def test_adapters_attach_to_the_linear_layers_that_a_model_has() -> None:
    fused = new_adapter(loaded("phi3").weights, RANK)
    own = ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert list(fused) == [f"{layer}.{name}" for layer in range(4) for name in own]
    experts = new_adapter(loaded("qwen3_moe").weights, RANK)
    assert {name.split(".", 1)[1] for name in experts} == {f"self_attn.{kind}_proj" for kind in "qkvo"}
    latent = new_adapter(loaded("deepseek_v3").weights, RANK)
    assert "1.self_attn.kv_a_proj_with_mqa" in latent and "1.mlp.shared_experts.up_proj" in latent
    assert not any("gate" in name.split(".")[-1] and "proj" not in name for name in (*latent, *experts)), "no routers"


def test_parts_load_again_and_are_read_with(tmp_path: Path) -> None:
    plain = loaded("gemma3_text")
    write_parts(tmp_path, TrainedParts(read_adapter=trained_by_chance(plain), recall_layer=1))
    model = loaded("gemma3_text", read_parts(tmp_path))
    assert model.weights.fingerprints != plain.weights.fingerprints
    again = loaded("gemma3_text", read_parts(tmp_path))
    assert model.weights.fingerprints == again.weights.fingerprints
    torch.testing.assert_close(as_generated(model, TEXT, PROMPT), as_generated(again, TEXT, PROMPT))
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    assert model.generate(memory, "Where is the key?", max_new_tokens=3).recalled[0].source == "a"


def test_an_adapter_that_is_not_merged_changes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = TrainedParts(read_adapter=trained_by_chance(loaded("gemma3_text")))
    merged = as_generated(loaded("gemma3_text", parts), TEXT, PROMPT)
    monkeypatch.setattr("mplus.backbone.adapters.MERGE_LIMIT_BYTES", 0)
    model = loaded("gemma3_text", parts)
    assert len(model.weights.backbone.adapted_linears()) == len(parts.read_adapter or ())
    torch.testing.assert_close(as_generated(model, TEXT, PROMPT), merged, atol=1e-3, rtol=1e-3)


def test_training_lowers_the_loss_and_resumes(tmp_path: Path) -> None:
    model = loaded("gemma3_text")
    bank = bank_of(model, TEXT)
    sample = encode_sample(model.tokenizer, AsRead([0, 1]), [{"role": "user", "content": "Where?"}], "Under it.")

    class Source:
        def draw(self, rng: random.Random, count: int) -> list[Sample]:
            return [sample] * count

    settings = ReaderSettings(steps=12, batch=2, rank=2, warmup=1, decay=1, learning_rate=1e-2, dropout=0.0)

    def trained(steps: int, folder: Path) -> Reader:
        reader = Reader(model.weights, bank, new_adapter(model.weights, settings))
        task = ReaderTask(reader, Source(), settings, TrainedParts())
        task.steps = steps
        train(task, Accelerator(cpu=True), folder, Log(tmp_path / "log.jsonl"), save_every=6, log_every=6)
        return reader

    before = float(Reader(model.weights, bank, new_adapter(model.weights, settings)).loss([sample])[0].detach())
    once = trained(12, tmp_path / "once")
    assert float(once.loss([sample])[0].detach()) < before / 2
    assert all(bool(leaf.any()) for name, leaf in once.parameters().items() if name.endswith(".up"))
    trained(6, tmp_path / "twice")
    resumed = trained(12, tmp_path / "twice")
    for a, b in zip(once.parameters().values(), resumed.parameters().values(), strict=True):
        assert torch.equal(a, b)


def test_an_adapter_of_another_model_is_refused() -> None:
    fused = trained_by_chance(loaded("phi3"))
    with pytest.raises(CheckpointError, match=r"that the backbone does not have, first '0.mlp.gate_up_proj'"):
        loaded("gemma3_text", TrainedParts(read_adapter=fused))
    with pytest.raises(CheckpointError, match="Load it onto the backbone"):
        loaded("gemma3_text", TrainedParts(read_adapter=trained_by_chance(loaded("gemma3_text"))), intermediate_size=64)
    with pytest.raises(UnsupportedModelError, match="write adapter or bos vectors"):
        loaded("gemma3_text", TrainedParts(write_adapter=trained_by_chance(loaded("gemma3_text"))))
