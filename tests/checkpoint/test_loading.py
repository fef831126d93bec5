import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mplus.backbone.adapters import Adapter
from mplus.backbone.own_layers import OwnLayers
from mplus.checkpoint.loading import assemble
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.config import MemoryConfig
from mplus.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from mplus.generation.prompt import Prompt
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.recall.late_interaction import LateInteraction
from mplus.testing import byte_tokenizer, tiny_backbone, tiny_model
from mplus.training.chunk.read_adapter import ReaderSettings, new_adapter
from mplus.training.published.trained_modules import half_precision, new_retriever
from tests.backbone.tiny_models import tiny_of
from tests.conftest import TINY

PUBLISHED = Path(__file__).parent.parent / "golden" / "tiny_mplus"
IDS = [7, 33, 2, 90, 41, 5, 77, 12, 19, 64, 3, 8, 101, 55, 23, 42, 6, 88]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PUBLISHED, tmp_path / "published"))


def altered(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, str(file))
    return folder


def answers(model: MPlus, memory=None) -> tuple[int, ...]:
    memory = memory or model.new_memory()
    model.write(memory, IDS * 4, source="a")
    from mplus.generation.prompt import Prompt

    return model.generate(memory, Prompt(tuple(IDS[:7]), (0, 7)), max_new_tokens=6).token_ids


@pytest.fixture(autouse=True)
def _tokenizer_for_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus.checkpoint import loading

    real = loading.load_tokenizer
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder, **given: real(folder, **given) or word_tokenizer())


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", bos_token="w1", eos_token="w2")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_any_backbone_folder_becomes_a_training_free_model(tmp_path: Path, model_type: str) -> None:
    backbone = tiny_backbone(model_type)
    backbone.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = MPlus.from_pretrained(tmp_path, memory=TINY)
    memory = model.new_memory()
    model.write(memory, "Ann likes pears. " * 20, source="a")
    answer = model.generate(memory, [{"role": "user", "content": "What does Ann like?"}], max_new_tokens=4)
    assert answer.completion_tokens == 4
    expected = tiny_model(model_type=model_type, memory=TINY)
    assert expected.weights.fingerprints == model.weights.fingerprints


def trained_model() -> MPlus:
    backbone, tokenizer = tiny_backbone(), byte_tokenizer()
    plain = tiny_model(memory=TINY)
    torch.manual_seed(3)
    adapter = {
        name: type(w)(w.down, torch.randn_like(w.up) * 0.05, w.scale)
        for name, w in new_adapter(plain.weights, ReaderSettings(rank=4)).items()
    }
    late = LateInteraction(
        torch.randn(4, 48),
        torch.rand(4, 48) + 0.5,
        query_projection=torch.randn(8, 48),
        key_projection=torch.randn(8, 48),
    ).requires_grad_(False)
    parts = TrainedParts(memory=TINY, recall_layer=2, read_adapter=adapter, late=late)
    return MPlus(assemble(backbone, tokenizer, parts), tokenizer, TINY, parts=parts)


def test_our_own_save_loads_back_and_answers_the_same(tmp_path: Path) -> None:
    model = trained_model()
    model.save_pretrained(tmp_path)
    loaded = MPlus.from_pretrained(tmp_path)
    assert loaded.memory_config == TINY
    assert loaded.weights.fingerprints == model.weights.fingerprints
    assert loaded.weights.recall_layer == 2
    assert answers(loaded) == answers(model)
    plain = tiny_model(memory=TINY)
    assert plain.weights.fingerprints != model.weights.fingerprints


def test_memories_still_open_when_the_published_retriever_joins(tmp_path: Path) -> None:
    model = trained_model()
    memory = model.new_memory()
    model.write(memory, "Ann likes pears. " * 20, source="a")
    memory.save(tmp_path / "memory")
    retriever = half_precision(new_retriever(model.weights.backbone, 4, torch.Generator().manual_seed(0)))
    parts = replace(model.trained_parts, published=retriever)
    more = MPlus(assemble(tiny_backbone(), model.tokenizer, parts), model.tokenizer, TINY, parts=parts)
    assert Memory.load(tmp_path / "memory", more).fingerprint == memory.fingerprint
    assert answers(more) == answers(model)
    # Keys of that retriever are another matter.
    by_retriever = TINY.model_copy(update={"recall": "published"})
    assert more.new_memory(config=by_retriever).model_fingerprint != more.new_memory().model_fingerprint


def test_a_read_adapter_leaves_an_empty_memory_to_the_backbone() -> None:
    model, plain = trained_model(), tiny_model(memory=TINY)
    for one in (model, plain):
        assert one.weights.backbone.read_layers is not None
    ours = model.generate(model.new_memory(), "Which box?", max_new_tokens=8)
    assert ours.token_ids == plain.generate(plain.new_memory(), "Which box?", max_new_tokens=8).token_ids
    assert answers(model) != answers(plain)


def test_an_adapter_on_the_fly_equals_a_merged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import mplus.backbone.adapters

    merged = answers(trained_model())
    monkeypatch.setattr(mplus.backbone.adapters, "MERGE_LIMIT_BYTES", 0)
    model = trained_model()
    assert any("LoraLinear" in type(m).__name__ for m in model.weights.backbone.read_layers.modules())
    assert answers(model) == merged


def test_base_weights_are_shared_between_writing_and_reading() -> None:
    backbone = trained_model().weights.backbone
    write, read = backbone.write_layers[0], backbone.read_layers[0]
    assert write.input_layernorm is read.input_layernorm
    assert write.self_attn.q_proj is not read.self_attn.q_proj


def test_a_published_checkpoint_loads_with_its_memory_and_survives_our_save(published: Path, tmp_path: Path) -> None:
    model = MPlus.from_pretrained(published)
    config = model.memory_config
    assert (config.tokens_per_write, config.short_term_tokens, config.recalled_tokens) == (8, 32, 16)
    assert config.layout == "token" and config.encoding == "adapter"
    memory = model.new_memory()
    assert [len(t.short_term) for t in memory.state.tracks] == [32] * 3
    assert [len(t.long_term) for t in memory.state.tracks] == [24] * 3
    model.save_pretrained(tmp_path / "ours")
    again = MPlus.from_pretrained(tmp_path / "ours")
    assert again.weights.fingerprints == model.weights.fingerprints
    assert answers(again) == answers(model)


def test_a_published_backbone_can_be_read_training_free_too(published: Path) -> None:
    model = MPlus.from_pretrained(published, memory=TINY)
    assert len(answers(model)) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.lora_A.default.weight"), "lacks LoRA tensors"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.lora_B.default.weight"), "lora_B.default.weight' is missing"),
        (lambda t: [t.pop(k) for k in list(t) if ".decoder_adapter." in k], "reading lacks LoRA"),
        (lambda t: [t[k].zero_() for k in t if "lora_B.default" in k], "writing is zero"),
        (lambda t: t.pop("model.layers.0.self_attn.k_proj.base_layer.weight"), "weights are missing"),
        (lambda t: t.pop("bos_embedding"), "'bos_embedding' is missing"),
        (lambda t: t.update(memory=t["memory"][:, :5].clone()), r"'memory' has shape \(3, 5, 64\)"),
        (lambda t: t.update({"model.layers.0.strange.weight": torch.ones(2)}), "would be dropped"),
        (lambda t: t.update({"strange": torch.ones(2)}), "would be dropped"),
        (
            lambda t: t.update({"model.layers.0.self_attn.query_proj.0.weight": torch.ones(4, 64)}),
            r"query_proj.0.weight' has shape \(4, 64\)",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 32)}),
            "maps 32",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.other.weight": torch.ones(4, 64)}),
            "unknown adapter 'other'",
        ),
    ],
)
def test_a_damaged_published_checkpoint_is_refused(published: Path, change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        MPlus.from_pretrained(altered(published, change))


def test_a_published_config_without_its_sizes_is_refused(published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    del config["num_blocks"]
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_blocks"):
        MPlus.from_pretrained(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.2.mlp.gate_proj.weight"), "weights are missing"),
        (lambda t: t.update({"model.layers.9.mlp.gate_proj.weight": torch.ones(3)}), "would be dropped"),
        (lambda t: t.update({"model.layers.2.mlp.gate_proj.weight": torch.ones(3, 3)}), "shape"),
    ],
)
def test_a_damaged_backbone_is_refused(tmp_path: Path, change, message: str) -> None:
    tiny_backbone().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        MPlus.from_pretrained(altered(tmp_path, change))


def test_a_truncated_file_is_refused(published: Path) -> None:
    file = published / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        MPlus.from_pretrained(published)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    tiny_backbone().config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        MPlus.from_pretrained(tmp_path)


def test_folders_and_names_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MPlus.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError, match="smol-135m"):
        MPlus.from_pretrained("no-such-model")
    with pytest.raises(ModelNotFoundError):
        MPlus.from_pretrained("./not/there")
    with pytest.raises(ModelNotFoundError, match="hub"):
        MPlus.from_pretrained("nobody/nothing", local_files_only=True)


def test_a_backbone_that_cannot_be_read_right_is_refused_with_the_reason(tmp_path: Path) -> None:
    tiny_of("gpt2").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'gpt2'.*by .* of their size"):
        MPlus.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "gpt_oss"])
def test_a_backbone_with_windows_writes_reads_and_saves(tmp_path: Path, model_type: str) -> None:
    tiny_of(model_type).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = MPlus.from_pretrained(tmp_path, memory=TINY)
    assert isinstance(model.weights.backbone, OwnLayers)
    model.save_pretrained(tmp_path / "saved")
    again = MPlus.from_pretrained(tmp_path / "saved")
    assert again.weights.fingerprints == model.weights.fingerprints
    assert answers(again) == answers(model)


@pytest.mark.parametrize(("options", "message"), [({"device": "tpu9"}, "device"), ({"dtype": "int9"}, "dtype")])
def test_bad_device_and_dtype_are_named(tmp_path: Path, options: dict, message: str) -> None:
    tiny_backbone().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        MPlus.from_pretrained(tmp_path, **options)


def test_a_layout_that_the_weights_cannot_do_is_refused(model: MPlus) -> None:
    with pytest.raises(ValueError, match="no such retriever"):
        model.new_memory(config=MemoryConfig(recall="published"))
    with pytest.raises(ValueError, match="write adapter"):
        model.new_memory(config=MemoryConfig.published().model_copy(update={"recall": "late"}))
    with pytest.raises(ValueError, match="recall_layer=9"):
        model.new_memory(config=TINY.model_copy(update={"recall_layer": 9}))


def test_bfloat16_and_a_device_map_with_disk_offload(tmp_path: Path, text: str) -> None:
    tiny_backbone().save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    whole = MPlus.from_pretrained(tmp_path / "m", memory=TINY)
    device_map = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "cpu",
        "model.layers.3": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    spread = MPlus.from_pretrained(
        tmp_path / "m", memory=TINY, device=device_map, offload_folder=str(tmp_path / "offload")
    )
    answers = []
    for one in (whole, spread):
        for tier in ("cpu", "disk"):
            memory = one.new_memory(config=TINY.model_copy(update={"long_term_device": tier}))
            one.write(memory, text, source="a")
            answers.append(one.generate(memory, "Which box is blue?", max_new_tokens=5).token_ids)
            (track,) = memory.state.tracks
            backbone = one.weights.backbone
            beside = tuple(backbone.layer_device(layer) for layer in range(backbone.num_layers))
            assert track.devices == beside, "memory lives beside its layer, also where accelerate brings its weights"
            assert {segment.tier for segment in track.long_term.segments} == {"host" if tier == "cpu" else "disk"}
    assert len(set(answers)) == 1
    half = MPlus.from_pretrained(tmp_path / "m", memory=TINY, dtype="bfloat16")
    memory = half.new_memory()
    half.write(memory, text, source="a")
    assert memory.state.tracks[0].dtype == torch.bfloat16
    assert half.generate(memory, "Which box?", max_new_tokens=3).completion_tokens == 3


def test_auto_is_float32_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus.checkpoint.backbone_files import _dtype

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _dtype("auto", {"": "cpu"}) == _dtype("auto", {"a": "cpu", "b": "disk"}) == torch.float32
    assert (
        _dtype("auto", {"": "cuda:0"}) == _dtype("auto", {"a": 0, "b": "cpu"}) == _dtype("auto", "balanced") == "auto"
    )


def test_how_many_turns_stand_in_the_prompt_is_kept_with_the_trained_parts(tmp_path: Path) -> None:
    assert tiny_model().prompt_turns is None
    for turns in (0, 2, None):
        tiny_model(prompt_turns=turns).save_pretrained(tmp_path)
        assert MPlus.from_pretrained(tmp_path).prompt_turns == turns
    file = tmp_path / "mplus.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in saved.items() if key != "prompt_turns"}))
    assert MPlus.from_pretrained(tmp_path).prompt_turns is None, "older files have none"
    for wrong in (-1, "two", True, 1.5):
        file.write_text(json.dumps({**saved, "prompt_turns": wrong}))
        with pytest.raises(CheckpointError, match="prompt_turns="):
            MPlus.from_pretrained(tmp_path)


def adapted(model: MPlus) -> Adapter:
    """A read adapter that changes something in every layer."""
    generator = torch.Generator().manual_seed(0)
    adapter = new_adapter(model.weights, ReaderSettings(rank=2))
    return {n: replace(w, up=torch.randn(w.up.shape, generator=generator) * 0.1) for n, w in adapter.items()}


def test_a_read_adapter_writes_from_the_layer_that_its_file_says(tmp_path: Path, text: str) -> None:
    plain = tiny_model(memory=TINY)
    adapter = adapted(plain)
    models: dict[int | None, MPlus] = {}
    for first in (None, 1):
        plain.save_pretrained(tmp_path)
        write_parts(tmp_path, replace(plain.trained_parts, read_adapter=adapter, memory=TINY, write_from=first))
        assert read_parts(tmp_path).write_from == first
        models[first] = MPlus.from_pretrained(tmp_path)
    reads, writes = models[None], models[1]
    assert reads.fingerprint != writes.fingerprint, "memories of one are refused by the other"
    prompt = Prompt(tuple(IDS[:8]), (0, 8))

    def logits(model: MPlus, memory: Memory) -> torch.Tensor:
        return prefill(model.weights, [model.read_request(memory, prompt)], all_logits=True).logits

    found = []
    for model in (reads, writes):
        memory = model.new_memory()
        model.write(memory, text[:60], source="a")
        found.append((model.search(memory, "Which box?"), logits(model, memory)))
        torch.testing.assert_close(logits(model, model.new_memory()), logits(plain, plain.new_memory()))
    assert found[0][0] == found[1][0], "recall looks at a layer below"
    last = writes.weights.backbone.num_layers - 1
    with pytest.raises(ValueError, match=rf"recall_layer={last}: .* writes from decoder layer 1 on"):
        writes.new_memory(config=TINY.model_copy(update={"recall_layer": last}))
    assert (found[0][1] - found[1][1]).abs().max() > 0.01


def test_a_layer_to_write_from_that_is_none_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, TrainedParts(write_from=3))
    path = tmp_path / "mplus.json"
    said = json.loads(path.read_text())
    assert said["format"] == 2, "versions that do not know it must not write otherwise"
    for wrong in (-1, "3", 2.5, True):
        path.write_text(json.dumps(said | {"write_from": wrong}))
        with pytest.raises(CheckpointError, match="write_from"):
            read_parts(tmp_path)
    write_parts(tmp_path, TrainedParts())
    assert json.loads(path.read_text())["format"] == 1
