"""What is chosen by what the CPU can."""

from pathlib import Path

import pytest
import torch

from mplus import MPlus
from mplus.backbone import cpu
from mplus.checkpoint import loading
from mplus.checkpoint.parts import TrainedParts
from mplus.testing import tiny_model
from mplus.training.chunk import read_adapter_task
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, new_adapter
from mplus.training.chunk.read_adapter_task import ReaderTask
from mplus.training.chunk.sample import Sample
from tests.conftest import TINY


@pytest.mark.filterwarnings("default")
def test_half_precision_that_a_cpu_does_in_software_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    tiny_model(memory=TINY).save_pretrained(tmp_path)
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="dtype='bfloat16': this CPU computes bfloat16 in software.*dtype='float32'"):
        MPlus.from_pretrained(tmp_path, device="cpu", dtype="bfloat16")
    recwarn.clear()
    monkeypatch.setattr(loading, "computes_bfloat16", lambda: False)
    assert MPlus.from_pretrained(tmp_path, device="cpu", dtype="int8").weights.backbone.dtype == torch.float32
    MPlus.from_pretrained(tmp_path, device="cpu", dtype="float32")
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: True)
    MPlus.from_pretrained(tmp_path, device="cpu", dtype="bfloat16")
    assert not [warning for warning in recwarn if "bfloat16" in str(warning.message)]


@pytest.mark.parametrize("able", [True, False])
def test_reading_is_trained_in_what_the_cpu_computes_itself(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(read_adapter_task, "computes_bfloat16", lambda: able)
    bank = ChunkBank(model.weights, model.tokenizer, TINY)
    bank.add([text[:90]])
    settings = ReaderSettings(steps=1, batch=1, rank=2)
    reader = Reader(model.weights, bank, new_adapter(model.weights, settings))
    seen: list[torch.dtype] = []
    reader.backbone.read_layers[0].self_attn.q_proj.register_forward_hook(lambda *call: seen.append(call[-1].dtype))

    class Source:
        def draw(self, rng: object, count: int) -> list[Sample]:
            return [Sample((0,), tuple(b"Some words"), 4)] * count

    ReaderTask(reader, Source(), settings, TrainedParts()).loss(0, 0)
    assert set(seen) == {torch.bfloat16 if able else torch.float32}
