"""The published M+ checkpoint layout (``YuWangX/mplus-8b``), read name by name.

Every tensor of the file ends up somewhere or is on the short list of those we know and do not need;
anything else is an error, because a dropped LoRA tensor gives a model that looks fine and remembers
nothing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mplus.backbone.adapters import LoraWeights
from mplus.checkpoint.parts import InitialMemory, TrainedParts
from mplus.checkpoint.tensor_files import TensorFiles
from mplus.config import MemoryConfig
from mplus.errors import CheckpointError
from mplus.recall.published_retriever import PublishedRetriever

WRITE_ADAPTER, READ_ADAPTER = "default", "decoder_adapter"
LORA = re.compile(r"model\.layers\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<adapter>\w+)\.weight")
# Trained beside the retriever and used by its loss only; a read never asks for it.
NOT_NEEDED = re.compile(r"model\.layers\.\d+\.self_attn\.encoder_query_proj\.[02]\.weight")
EXTRA_CONFIG = (
    "num_tokens",
    "num_blocks",
    "num_ltm_blocks",
    "selector_hidden_dim",
    "update_ltm_frequency",
    "initial_rf_when_moving_stm_to_ltm",
    "decay_frequency",
    "lora_config",
)


def is_published(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a published M+ checkpoint."""
    return "MPlus" in (config.get("architectures") or ())


def backbone_config(config: dict[str, Any]) -> dict[str, Any]:
    """The plain Llama config inside a published config."""
    plain = dict(config, architectures=["LlamaForCausalLM"], model_type="llama")
    for key in ("auto_map", *EXTRA_CONFIG):
        plain.pop(key, None)
    return plain


def published_memory_config(config: dict[str, Any]) -> MemoryConfig:
    """Sizes and rules of a published config.

    Raises:
        CheckpointError: A size is missing or of the wrong type.
    """
    try:
        return MemoryConfig.published(
            tokens_per_write=config["num_tokens"],
            num_blocks=config["num_blocks"],
            num_long_term_blocks=config["num_ltm_blocks"],
            consolidate_every=config["update_ltm_frequency"],
            initial_recall_frequency=config["initial_rf_when_moving_stm_to_ltm"],
            recall_frequency_decay=config["decay_frequency"],
        )
    except KeyError as error:
        raise CheckpointError(
            f"config.json calls itself an M+ model but lacks {error.args[0]!r}; expected the published keys "
            f"{', '.join(EXTRA_CONFIG[:-1])}."
        ) from error


def read_published(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Tensor], TrainedParts]:
    """Take a published checkpoint apart: the plain backbone's state dict, and what M+ adds to it.

    Raises:
        CheckpointError: A tensor is missing, of the wrong shape, unknown, or an adapter is all zero.
    """
    memory = published_memory_config(config)
    num_layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    size = int(config.get("selector_hidden_dim", 256))
    files = TensorFiles(folder)
    adapters = _adapters(files, config)
    backbone = {plain: files.take(name) for name, plain in _backbone_names(files.names)}
    parts = TrainedParts(
        memory=memory,
        write_adapter=adapters[WRITE_ADAPTER],
        read_adapter=adapters[READ_ADAPTER],
        published=_retriever(files, num_layers, hidden, size),
        bos_states=files.take("bos_embedding", (num_layers, 1, hidden))[:, 0],
        write_position=files.take("new_memory_positional_emb", (1, 1, hidden))[0, 0],
        initial=_initial_memory(files, memory, num_layers, hidden),
    )
    files.finish(ignore=NOT_NEEDED)
    return backbone, parts


def _backbone_names(names: set[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(names):
        if ".base_layer." in name:
            yield name, name.replace(".base_layer.", ".")
        elif name.startswith(("model.", "lm_head.")) and not re.search(r"lora_|query_proj|key_proj", name):
            yield name, name


def _adapters(files: TensorFiles, config: dict[str, Any]) -> dict[str, dict[str, LoraWeights]]:
    lora = config.get("lora_config") or {}
    scale = float(lora.get("lora_alpha", 32)) / float(lora.get("r", 16))
    adapters: dict[str, dict[str, LoraWeights]] = {WRITE_ADAPTER: {}, READ_ADAPTER: {}}
    for name in sorted(files.names):
        match = LORA.fullmatch(name)
        if match is None or match["side"] != "A":
            continue
        adapter, module = match["adapter"], match["module"]
        if adapter not in adapters:
            raise CheckpointError(
                f"LoRA tensors of an unknown adapter {adapter!r}; expected {WRITE_ADAPTER!r} (writing) and "
                f"{READ_ADAPTER!r} (reading)."
            )
        down = files.take(name)
        up = files.take(name.replace("lora_A", "lora_B"))
        adapters[adapter][module] = LoraWeights(down, up, scale)
    targets = set(lora.get("target_modules") or ())
    expected = {
        f"{layer}.{'self_attn' if target in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'}.{target}"
        for layer in range(int(config["num_hidden_layers"]))
        for target in targets
    }
    for role, adapter in (("writing", adapters[WRITE_ADAPTER]), ("reading", adapters[READ_ADAPTER])):
        if missing := sorted(expected - adapter.keys()):
            raise CheckpointError(
                f"The adapter for {role} lacks LoRA tensors for {len(missing)} linear layers, first "
                f"{missing[0]!r}. The file was probably re-saved by a peft that renamed them; use the "
                "original checkpoint."
            )
        if adapter and all(not bool(weights.up.any()) for weights in adapter.values()):
            raise CheckpointError(
                f"Every LoRA tensor of the adapter for {role} is zero: it was never trained or was lost on "
                "saving. Use the original checkpoint."
            )
    return adapters


def _retriever(files: TensorFiles, num_layers: int, hidden: int, size: int) -> PublishedRetriever:
    def projection(layer: int, kind: str) -> nn.Sequential:
        name = f"model.layers.{layer}.self_attn.{kind}_proj"
        first = files.take(f"{name}.0.weight", (2 * size, hidden))
        second = files.take(f"{name}.2.weight", (size, 2 * size))
        with torch.device("meta"):
            module = PublishedRetriever.projection(hidden, size)
        module.load_state_dict({"0.weight": first, "2.weight": second}, assign=True)
        return module

    return PublishedRetriever(
        nn.ModuleList([projection(layer, "query") for layer in range(num_layers)]),
        nn.ModuleList([projection(layer, "key") for layer in range(num_layers)]),
    )


def _initial_memory(files: TensorFiles, memory: MemoryConfig, num_layers: int, hidden: int) -> InitialMemory:
    short_term = files.take("memory", (num_layers, memory.short_term_tokens, hidden))
    layers = range(num_layers)
    has_long_term = "ltm.0" in files.names

    def rows(name: str, *, empty: Tensor) -> tuple[Tensor, ...]:
        return tuple(files.take(f"{name}.{i}") if has_long_term else empty for i in layers)

    size = files.shape("model.layers.0.self_attn.key_proj.2.weight")[0]
    return InitialMemory(
        tuple(short_term),
        rows("ltm", empty=torch.empty(0, hidden)),
        rows("ltm_keys", empty=torch.empty(0, size)),
        tuple(ages.long() for ages in rows("ltm_ages", empty=torch.empty(0))),
        tuple(f.double() for f in rows("ltm_recall_frequencies", empty=torch.empty(0))),
    )
