"""The read adapter: LoRA that learns to read what recall really brings.

One sample is a question, the chunks that recall picks for it from everything in the bank, some recent
chunks as short-term memory, and the answer. Memory tokens are born by the frozen backbone and are
constants here; gradients reach the adapter through the prompt's rows and through the keys and values that
the adapter makes of memory.
"""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplus.adapters import LoraLinear, LoraWeights, with_adapter
from mplus.backbone import Rotation, rotate
from mplus.generation.chat import Prompt, encode_prompt
from mplus.read import geometry
from mplus.text import encode_inert
from mplus.training.data import ChunkBank
from mplus.weights import Weights

TARGETS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class ReaderSettings:
    """How long and how hard the read adapter is trained."""

    steps: int = 2400
    batch: int = 8
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 5e-4
    warmup: int = 50
    save_every: int = 100
    log_every: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One thing to learn: a prefix of chunks, a prompt, and what should follow.

    Attributes:
        chunks: Chunks of the bank in the order they stand in the prefix.
        input_ids: Prompt and target together.
        target: Where the target begins.
        distil: Learn the backbone's own distribution on the target rather than its tokens.
    """

    chunks: tuple[int, ...]
    input_ids: tuple[int, ...]
    target: int
    distil: bool = False


@runtime_checkable
class SampleSource(Protocol):
    """Where samples come from; see ``mplus.training.samples``."""

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples."""
        ...


def new_adapter(weights: Weights, settings: ReaderSettings) -> dict[str, LoraWeights]:
    """An adapter that changes nothing yet."""
    generator = torch.Generator().manual_seed(settings.seed)
    modules = dict(weights.backbone.write_layers.named_modules())
    adapter: dict[str, LoraWeights] = {}
    for layer in range(weights.backbone.num_layers):
        for target in TARGETS:
            name = f"{layer}.{target}"
            linear: Any = modules[name]
            down = torch.randn(settings.rank, linear.in_features, generator=generator) / linear.in_features**0.5
            up = torch.zeros(linear.out_features, settings.rank)
            adapter[name] = LoraWeights(down, up, settings.alpha / settings.rank)
    return adapter


class Reader:
    """The backbone with a trainable read adapter, and the forward pass that trains it."""

    def __init__(self, weights: Weights, bank: ChunkBank, adapter: dict[str, LoraWeights]) -> None:
        self.weights, self.bank = weights, bank
        self.layers = with_adapter(weights.backbone.write_layers, adapter, merge=False)
        self.linears: dict[str, LoraLinear] = {
            name: module for name, module in self.layers.named_modules() if isinstance(module, LoraLinear)
        }
        for linear in self.linears.values():
            linear.down.requires_grad_(True)
            linear.up.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for linear in self.linears.values() for p in (linear.down, linear.up)]

    def adapter(self) -> dict[str, LoraWeights]:
        """The adapter as it stands, in half precision: far finer than what it changes."""
        return {
            name: LoraWeights(linear.down.detach().half(), linear.up.detach().half(), linear.scale)
            for name, linear in self.linears.items()
        }

    def loss(self, samples: Sequence[Sample]) -> Tensor:
        """Mean loss of a batch: cross-entropy on answers, divergence from the backbone where distilling."""
        rows = self._rows(samples)
        logits = self._logits(samples, rows, self.layers, memory=True)
        losses: list[Tensor] = []
        teacher: Tensor | None = None
        if any(sample.distil for sample in samples):
            with torch.no_grad():
                teacher = self._logits(samples, rows, self.weights.backbone.write_layers, memory=False)
        start = 0
        for sample in samples:
            count = len(sample.input_ids) - sample.target
            mine = logits[start : start + count].float()
            if sample.distil:
                assert teacher is not None
                wanted = teacher[start : start + count].float().log_softmax(dim=-1)
                losses.append(
                    functional.kl_div(mine.log_softmax(dim=-1), wanted, log_target=True, reduction="batchmean")
                )
            else:
                losses.append(functional.cross_entropy(mine, torch.tensor(sample.input_ids[sample.target :])))
            start += count
        return torch.stack(losses).mean()

    @staticmethod
    def _rows(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Batch and column of every row whose next token is part of a target."""
        longest = max(len(sample.input_ids) for sample in samples)
        batch: list[int] = []
        column: list[int] = []
        for number, sample in enumerate(samples):
            shift = longest - len(sample.input_ids)
            wanted = range(shift + sample.target - 1, longest - 1)
            batch += [number] * len(wanted)
            column += list(wanted)
        return torch.tensor(batch), torch.tensor(column)

    def _logits(
        self, samples: Sequence[Sample], rows: tuple[Tensor, Tensor], layers: nn.ModuleList, *, memory: bool
    ) -> Tensor:
        backbone = self.weights.backbone
        sizes = [len(sample.input_ids) for sample in samples]
        longest = max(sizes)
        padded = torch.zeros(len(samples), longest, dtype=torch.int64)
        for row, sample in enumerate(samples):
            padded[row, longest - sizes[row] :] = torch.tensor(sample.input_ids)
        columns = torch.arange(longest) - (longest - torch.tensor(sizes))[:, None]
        prefix = self._prefix(samples) if memory else None
        lengths = tuple(prefix[1]) if prefix is not None else (0,) * len(samples)
        widest = max(lengths)
        position, rotation, mask, _, _ = geometry(backbone, lengths, columns, torch.device("cpu"))
        del position
        placed = torch.arange(widest) - (widest - torch.tensor(lengths))[:, None]
        before = backbone.rotation(placed.clamp(min=0))
        hidden = backbone.embed(padded)
        for index in range(backbone.num_layers):
            layer: Any = layers[index]
            normed = layer.input_layernorm(hidden)
            keys, values = backbone.keys_values(layer, normed)
            keys = rotate(keys, rotation)
            if prefix is not None:
                old_keys, old_values = backbone.keys_values(layer, layer.input_layernorm(prefix[0][index]))
                keys = torch.cat([rotate(old_keys, Rotation(*before)), keys], dim=1)
                values = torch.cat([old_values, values], dim=1)
            queries = rotate(backbone.queries(layer, normed), rotation)
            attended = backbone.attend(
                layer, queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), mask
            )
            hidden = backbone.finish(layer, hidden, attended)
        return backbone.logits(hidden[rows])

    def _prefix(self, samples: Sequence[Sample]) -> tuple[Tensor, list[int]]:
        """States [layer, sample, row, size] of bos and chunks, padded on the left, and their lengths."""
        backbone, bank = self.weights.backbone, self.bank
        lengths = [1 + sum(len(bank.input_ids[c]) for c in s.chunks) if s.chunks else 0 for s in samples]
        states = torch.zeros(
            backbone.num_layers, len(samples), max(lengths), backbone.hidden_size, dtype=backbone.dtype
        )
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            if not length:
                continue
            at = max(lengths) - length
            states[:, row, at] = backbone.bos_states
            at += 1
            for chunk in sample.chunks:
                part = bank.states[chunk]
                states[:, row, at : at + part.shape[1]] = part
                at += part.shape[1]
        return states, lengths


def train_reader(
    reader: Reader,
    samples: SampleSource,
    settings: ReaderSettings,
    folder: Path,
    save: Callable[[], None],
) -> None:
    """Train the adapter; checkpoints itself in ``folder`` and goes on from there when called again.

    ``save`` writes the trained parts as they stand, at every checkpoint.
    """
    optimizer = torch.optim.AdamW(reader.parameters(), lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        return max(0.05, 1 - (step - settings.warmup) / max(settings.steps - settings.warmup, 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = folder / "reader.pt"
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved["step"]
        for parameter, value in zip(reader.parameters(), saved["parameters"], strict=True):
            parameter.data.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=2))
    started, running = time.time(), 0.0
    for step in range(done, settings.steps):
        rng = random.Random(settings.seed * 1_000_003 + step)
        batch = samples.draw(rng, settings.batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = reader.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += loss.item()
        if (step + 1) % settings.log_every == 0:
            per_step = (time.time() - started) / (step + 1 - done)
            print(
                f"reader step {step + 1}: loss {running / settings.log_every:.3f}, {per_step:.2f} s/step",
                flush=True,
            )
            running = 0.0
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            state = {
                "step": step + 1,
                "parameters": [p.detach() for p in reader.parameters()],
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            save()


def encode_sample(
    tokenizer: Any,
    chunks: Sequence[int],
    prompt: str | list[dict[str, str]],
    reply: str,
    *,
    distil: bool = False,
) -> Sample:
    """A sample of a prompt and its reply, ended as the model ends a turn."""
    encoded: Prompt = encode_prompt(tokenizer, prompt)
    target = [*encode_inert(tokenizer, reply), tokenizer.eos_token_id]
    return Sample(tuple(chunks), (*encoded.input_ids, *target), len(encoded.input_ids), distil)
