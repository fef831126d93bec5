"""Model folders that anybody may have made: refused in seconds, before anything of their size is built."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mplus import CheckpointError, MPlus, UnknownNameError, UnsupportedModelError
from mplus.backbone.own_layers import OwnLayers
from mplus.checkpoint.backbone_files import TOKENIZER_FILES
from mplus.checkpoint.limits import check_config
from mplus.checkpoint.loading import memory_settings
from mplus.testing import byte_tokenizer, tiny_backbone
from tests.conftest import TINY


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_backbone().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a model may be built."""
    from transformers import AutoModelForCausalLM

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a model was built")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1_000_000},
        {"num_hidden_layers": 2000, "intermediate_size": 2**20},
        {"vocab_size": 10**12},
        {"vocab_size": 2**23},
        {"hidden_size": 2**30},
        {"num_hidden_layers": True},
        {"num_hidden_layers": -1},
        {"max_position_embeddings": 10**18},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": float("inf")},
        {"rope_theta": -1.0},
        {"hidden_size": 48.5},
    ],
    ids=str,
)
def test_absurd_sizes_and_nan_in_a_config_are_refused_before_a_model_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    change(folder, **changes)
    no_backbone(monkeypatch)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MPlus.from_pretrained(folder, memory=TINY)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        memory_settings(folder)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gpt2", {"n_layer": 1_000_000}),
        ("gpt2", {"n_embd": 2**30, "n_head": 2}),
        ("gpt2", {"n_positions": 2**28}),
        ("gpt_neox", {"num_hidden_layers": 10**6}),
        ("mixtral", {"num_local_experts": 10**7}),
        ("qwen3_moe", {"num_experts": 10**7}),
        ("gemma3", {"text_config": {"num_hidden_layers": 10**6}}),
        ("gemma3", {"text_config": {"model_type": "gemma3_text", "vocab_size": 2**24}}),
        ("gemma3", {"vision_config": {"num_hidden_layers": 10**9}}),
        ("llama", {"something_else": 10**30}),
    ],
    ids=str,
)
def test_absurd_sizes_of_any_family_are_refused_before_a_model_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, changes: dict[str, Any]
) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **changes}))
    no_backbone(monkeypatch)
    with pytest.raises(CheckpointError, match=r"config\.json: (describes a model|\w+=)"):
        MPlus.from_pretrained(folder, memory=TINY)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        memory_settings(folder)


def test_a_config_in_configs_without_end_is_refused(folder: Path) -> None:
    config: dict[str, Any] = {"model_type": "llama"}
    for _ in range(500):
        config = {"model_type": "llama", "text_config": config}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="deep"):
        MPlus.from_pretrained(folder, memory=TINY)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "mplus.json", "extra.json"])
def test_a_pipe_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="pipe"):
        MPlus.from_pretrained(folder, memory=TINY)
    if name == "config.json":
        with pytest.raises(CheckpointError, match="pipe"):
            memory_settings(folder)


def test_a_looping_template_is_refused_when_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.chat_template.STEPS", 50_000)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop + "{% endfor %}")
    with pytest.raises(CheckpointError, match="did not end"):
        MPlus.from_pretrained(folder, memory=TINY)


@pytest.mark.parametrize(
    "changes", [{"lora_scale": {"read_adapter": 1e300}}, {"lora_scale": None}, {"recall_layer": 10**9}, {"format": 99}]
)
def test_absurd_settings_of_trained_parts_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    MPlus.from_pretrained(folder, memory=TINY).save_pretrained(folder)
    path = folder / "mplus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=r"mplus\.json"):
        MPlus.from_pretrained(folder)


def test_dtype_is_taken_as_a_torch_dtype_by_either_name(folder: Path) -> None:
    for options in ({"dtype": torch.bfloat16}, {"torch_dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}):
        assert MPlus.from_pretrained(folder, memory=TINY, **options).weights.backbone.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="torch_dtype"):
        MPlus.from_pretrained(folder, memory=TINY, dtype="float32", torch_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype='int32'"):
        MPlus.from_pretrained(folder, memory=TINY, dtype=torch.int32)


def test_a_model_without_a_tokenizer_says_so_where_text_is_given_or_asked_for(folder: Path) -> None:
    for name in (*TOKENIZER_FILES, "chat_template.jinja", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    model = MPlus.from_pretrained(folder, memory=TINY)
    memory = model.new_memory()
    for text in ("Some text to write.", list(range(64))):
        with pytest.raises(ValueError, match="no tokenizer"):
            model.write(memory, text)
    with pytest.raises(ValueError, match="no tokenizer"):
        model.generate(memory, "Which box?", max_new_tokens=1)


def test_a_missing_quantiser_is_named_with_its_package(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="quantised with 'gptq'.*pip install"):
        MPlus.from_pretrained(folder, memory=TINY)


@pytest.mark.parametrize("method", ["weird", "bitsandbytes", None])
def test_an_unknown_quantiser_is_refused_and_not_passed_over(folder: Path, method: str | None) -> None:
    change(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match="quantised with .*this version of transformers knows"):
        MPlus.from_pretrained(folder, memory=TINY)


def test_options_that_no_model_takes_are_answered_with_what_to_write(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'load_in_4bit'\. Use quantization_config=.*BitsAndBytesConfig"):
        MPlus.from_pretrained(folder, memory=TINY, load_in_4bit=True)
    with pytest.raises(UnknownNameError, match="does not take 'nonsense'"):
        MPlus.from_pretrained(folder, memory=TINY, nonsense=1)
    assert MPlus.from_pretrained(folder, memory=TINY, device=None, dtype=None).weights.backbone.dtype == torch.float32


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": -1.0},
        {"rope_type": "linear", "factor": "a"},
        {"full_attention": {"rope_type": "linear", "factor": 0.0}},
        {"rope_type": "yarn"},
        "x",
        3,
    ],
    ids=str,
)
def test_rotary_positions_that_would_give_no_numbers_are_refused(folder: Path, rope: Any) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        change(folder, **{"rope_parameters": ..., "rope_scaling": ..., name: rope})
        with pytest.raises(CheckpointError, match=r"config\.json"):
            MPlus.from_pretrained(folder, memory=TINY)


def test_an_unknown_rope_of_one_type_of_layer_is_named(folder: Path) -> None:
    change(folder, rope_parameters={"full_attention": {"rope_type": "spiral"}}, rope_scaling=...)
    with pytest.raises(UnsupportedModelError, match="'spiral'"):
        MPlus.from_pretrained(folder, memory=TINY)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", ["[]", '{"a":' * 5000 + "1" + "}" * 5000, '{"chat_template": 3}'], ids=lambda c: c[:20]
)
def test_a_damaged_file_of_settings_is_a_clear_error_or_harmless(folder: Path, name: str, content: str) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / name).write_text(content)
    if name == "generation_config.json" and "chat_template" in content:
        MPlus.from_pretrained(folder, memory=TINY)  # transformers reads no more of it than it needs
        return
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        MPlus.from_pretrained(folder, memory=TINY)


def test_a_template_that_takes_all_memory_is_refused_when_the_model_is_loaded(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 'x' * (10**10) }}")
    with pytest.raises(CheckpointError, match="more than any prompt needs"):
        MPlus.from_pretrained(folder, memory=TINY)


def test_an_unknown_rope_is_named(folder: Path) -> None:
    change(folder, rope_parameters={"rope_type": "spiral", "rope_theta": 10000.0}, rope_scaling=...)
    with pytest.raises(UnsupportedModelError, match="'spiral'.*llama3"):
        MPlus.from_pretrained(folder, memory=TINY)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_layers_with_a_window_load_and_so_do_they_without_it(tmp_path: Path, model_type: str) -> None:
    tiny_backbone(model_type).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    layers = ["full_attention", "sliding_attention"] * 2
    change(tmp_path, sliding_window=128, use_sliding_window=True, max_window_layers=0, layer_types=layers)
    assert isinstance(MPlus.from_pretrained(tmp_path, memory=TINY).weights.backbone, OwnLayers)
    change(tmp_path, use_sliding_window=False, sliding_window=None, layer_types=...)
    assert not isinstance(MPlus.from_pretrained(tmp_path, memory=TINY).weights.backbone, OwnLayers)


def test_a_size_for_each_layer_is_a_list_of_sizes(folder: Path) -> None:
    path = folder / "config.json"
    check_config(path, {"intermediate_size": [96, 128]})
    for given in ([], [96, 0], [96, 10**9], [96, "128"]):
        with pytest.raises(CheckpointError, match="intermediate_size"):
            check_config(path, {"intermediate_size": given})


def test_offloaded_layers_count_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    plain = MPlus.from_pretrained(folder, memory=TINY)
    where = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    where |= {f"model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    offloaded = MPlus.from_pretrained(folder, memory=TINY, device=where, offload_folder=str(tmp_path / "off"))
    assert offloaded.weights.fingerprints == plain.weights.fingerprints

    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.3.mlp.up_proj.weight"] += 1.0
    save_file(tensors, str(path), metadata={"format": "pt"})
    changed = MPlus.from_pretrained(folder, memory=TINY, device=where, offload_folder=str(tmp_path / "off 2"))
    assert changed.weights.fingerprints != plain.weights.fingerprints
