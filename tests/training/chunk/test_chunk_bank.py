import pytest
import torch

from mplus.model import MPlus
from mplus.testing import tiny_model
from mplus.training.chunk import chunk_bank
from mplus.training.chunk.chunk_bank import ChunkBank
from tests.conftest import TINY


def test_encoding_says_how_far_it_is(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chunk_bank, "SAY_EVERY", -1.0)
    monkeypatch.setattr(chunk_bank, "CPU_BATCH", 1)
    bank = ChunkBank(model.weights, model.tokenizer, TINY)
    assert bank.add([text[:100], text[200:300]], progress="letters") == [0, 1]
    assert capsys.readouterr().err.splitlines() == [
        "letters: 1 of 2 texts",
        "letters: 2 of 2 texts",
        "letters: 2 texts",
    ]
    bank.add([text[300:400]])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_questions_that_are_encoded_together_are_as_read_alone(model_type: str) -> None:
    """By our loop over layers and by a model's own; several of one length, and more than one pass takes."""
    asking = tiny_model(memory=TINY, model_type=model_type)
    bank = ChunkBank(asking.weights, asking.tokenizer, TINY)
    texts = ["Where is it?", "Who was that, and when?", "What is it?", "Why?", "Where was it?"] * 3
    for most in (2048, 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunk_bank, "CPU_BATCH", most)
            together = bank.all_asked(texts, 1)
        assert len(together) == len(texts)
        for text, rows in zip(texts, together, strict=True):
            torch.testing.assert_close(rows, bank.asked(text, 1), atol=1e-5, rtol=1e-4)
