import logging
from pathlib import Path

import pytest
import torch

from mplus.checkpoint.gguf_model import named, rope_scaling
from mplus.errors import CheckpointError
from mplus.model import MPlus
from tests.checkpoint.test_catalog import tiny_llama, write_gguf
from tests.conftest import TINY

HERE = Path("model.gguf")


def test_a_gguf_file_loads_by_path_or_by_its_folder_and_saves_as_a_folder(tmp_path: Path) -> None:
    plain = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", plain)
    model = MPlus.from_pretrained(tmp_path / "tiny.gguf", memory=TINY)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.weights.backbone.model(ids).logits, plain(ids).logits)
    assert "m['content']" in model.tokenizer.chat_template
    assert model.tokenizer.pad_token is not None
    same = MPlus.from_pretrained(tmp_path, gguf_file="tiny.gguf", memory=TINY)
    assert same.fingerprint == model.fingerprint
    model.save_pretrained(tmp_path / "saved")
    assert MPlus.from_pretrained(tmp_path / "saved").fingerprint == model.fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantised_weights_are_taken_out_without_a_word(dtype: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), quantised=True)
    said = list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        model = MPlus.from_pretrained(tmp_path / "tiny.gguf", memory=TINY, dtype=dtype)
    finally:
        logger.removeHandler(handler)
    assert said == []
    backbone = model.weights.backbone.model
    assert {type(module).__name__ for module in backbone.modules() if "Linear" in type(module).__name__} == {"Linear"}
    assert {parameter.dtype for parameter in backbone.parameters()} == {getattr(torch, dtype)}
    model.save_pretrained(tmp_path / "saved")
    assert MPlus.from_pretrained(tmp_path / "saved", dtype=dtype).fingerprint == model.fingerprint


def test_a_gguf_file_that_is_not_there_or_not_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(CheckpointError, match=r"'tiny\.gguf'.*other\.gguf"):
        MPlus.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    with pytest.raises(CheckpointError, match=r"other\.gguf"):
        MPlus.from_pretrained(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match="names another"):
        named(str(tmp_path / "other.gguf"), "tiny.gguf")


def test_a_gguf_folder_needs_no_config_and_may_hold_anything_else(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    (tmp_path / "elsewhere").symlink_to(tmp_path / "gone")
    assert MPlus.from_pretrained(tmp_path / "tiny.gguf", memory=TINY).fingerprint
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(CheckpointError, match=r"gguf_file='tiny\.gguf'"):
        MPlus.from_pretrained(tmp_path, memory=TINY)


def test_rope_scaling_of_gguf_is_said_in_the_config() -> None:
    def said(kind: str, **about) -> dict:
        return {"general.architecture": "qwen2", "qwen2.rope.scaling.type": kind} | {
            f"qwen2.rope.scaling.{name}": value for name, value in about.items()
        }

    assert rope_scaling({"general.architecture": "llama"}, {}, HERE) == {}
    assert rope_scaling(said("linear", factor=8.0), {}, HERE) == {"rope_type": "linear", "factor": 8.0}
    yarn = rope_scaling(said("yarn", factor=4.0, original_context_length=32768), {}, HERE)
    assert yarn == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    long, short = torch.linspace(1, 9, 4), torch.ones(4)
    factors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    found = rope_scaling(said("longrope", original_context_length=4096), factors, HERE)
    assert found["long_factor"] == long.tolist()
    assert found["original_max_position_embeddings"] == 4096
    with pytest.raises(CheckpointError, match="'warped'"):
        rope_scaling(said("warped"), {}, HERE)


def test_llama_3_factors_become_its_scaling_and_others_are_refused() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(head_dim=128, rope_parameters={"rope_theta": 500_000.0, **scaling})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500_000.0 ** (torch.arange(0, 128, 2) / 128)
    fields = {"general.architecture": "llama", "llama.rope.freq_base": 500_000.0}
    assert rope_scaling(fields, {"rope_freqs.weight": plain / scaled}, HERE) == scaling
    with pytest.raises(CheckpointError, match="rope factors"):
        rope_scaling(fields, {"rope_freqs.weight": torch.linspace(1, 5, 64)}, HERE)
