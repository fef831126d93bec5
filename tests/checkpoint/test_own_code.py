"""Models that bring code of their own: it runs only where the caller trusts it."""

import json
from pathlib import Path

import pytest
import torch

from mplus import CheckpointError, MPlus
from mplus.checkpoint.loading import memory_settings
from mplus.testing import byte_tokenizer, tiny_backbone
from tests.conftest import TINY

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

(Path(__file__).parent / "ran").touch()


class OursConfig(LlamaConfig):
    model_type = "ours"


class OursForCausalLM(LlamaForCausalLM):
    config_class = OursConfig
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose type only its own code knows."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "ours"
    tiny_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "ours.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ours", "architectures": ["OursForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.OursForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_of_a_model_runs_only_if_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'ours'.*trust_remote_code=True"):
        MPlus.from_pretrained(folder, memory=TINY)
    assert memory_settings(folder).chunk_tokens
    assert not list(tmp_path.rglob("ran"))
    model = MPlus.from_pretrained(folder, memory=TINY, trust_remote_code=True)
    assert list(tmp_path.rglob("ran"))
    memory = model.new_memory()
    model.write(memory, "The code of the door is 4417. " * 4, source="note")
    assert model.generate(memory, "What is the code?", max_new_tokens=2).token_ids
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.weights.backbone.model(ids).logits, tiny_backbone()(ids).logits)


def test_what_was_loaded_with_code_of_its_own_is_saved_with_it(folder: Path, tmp_path: Path) -> None:
    model = MPlus.from_pretrained(folder, memory=TINY, trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    again = MPlus.from_pretrained(tmp_path / "saved", memory=TINY, trust_remote_code=True)
    assert again.fingerprint == model.fingerprint


def test_code_that_is_not_there_is_said(folder: Path) -> None:
    (folder / "ours.py").unlink()
    with pytest.raises(CheckpointError, match=r"ours\.py"):
        MPlus.from_pretrained(folder, memory=TINY, trust_remote_code=True)
