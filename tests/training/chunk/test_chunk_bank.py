import pytest

from mplus.model import MPlus
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
