"""The read adapter: LoRA that learns to read what recall really brings.

One sample is a question, the chunks that recall picks for it from everything in the bank, some recent
chunks as short-term memory, and the answer. Gradients reach the adapter through the prompt's rows and through the keys
and values that it makes of memory. Memory tokens are made by the frozen backbone and are constants, or the adapter
writes them, too, from some layer on: then chunks are encoded in every step, and gradients flow through that.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise, takewhile
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mplus.backbone.adapters import Adapter, LoraLinear, LoraWeights, untrained_adapter
from mplus.backbone.backbone import Backbone
from mplus.backbone.llama_layers import LlamaLayers
from mplus.computed_once import computed_once
from mplus.encode import Chunk, encode_states
from mplus.training.chunk.forward import Branches, ReadStates, branched_states, last_states, pads_left
from mplus.training.chunk.sample import Sample
from mplus.training.chunk.side_by_side import SideBySide
from mplus.weights import Weights

# Padded to multiples of these, batches come in few shapes: a CPU kernel is built per shape.
PROMPT_STEP = 16
PREFIX_STEP = 128
TARGET_STEP = 64
LARGE = 300_000_000
"""A model with so many parameters in its layers computes the parts of a batch one after the other on a CPU."""


def _whole(size: int, step: int) -> int:
    return -(-size // step) * step


@dataclass(frozen=True)
class ReaderSettings:
    """How long and how hard the read adapter is trained."""

    steps: int = 900
    batch: int = 8
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    """Share of an adapter's inputs that is left out at random: against learning the questions by heart."""
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: int = 600
    """Last steps, in which the learning rate falls to nothing; constant before."""
    seed: int = 0


@runtime_checkable
class StateBank(Protocol):
    """Chunks and their states; see ``ChunkBank``."""

    @property
    def input_ids(self) -> Sequence[Sequence[int]]:
        """Tokens of each chunk."""
        ...

    @property
    def states(self) -> "ChunkStates":
        """States of each chunk."""
        ...

    @property
    def goes_on(self) -> Tensor:
        """Which chunks continue the one before them."""
        ...


@runtime_checkable
class ChunkStates(Protocol):
    """States of chunks by number, [layer, token, size]."""

    def __getitem__(self, chunk: int, /) -> Tensor: ...


def new_adapter(weights: Weights, settings: ReaderSettings) -> Adapter:
    """An adapter of all linear layers that changes nothing yet."""
    generator, backbone = torch.Generator().manual_seed(settings.seed), weights.backbone
    names = backbone.linears(settings.rank)
    return untrained_adapter(backbone.decoder_layers, names, settings.rank, settings.alpha, generator)


def leaves(linears: Mapping[str, LoraLinear]) -> dict[str, nn.Parameter]:
    """Both factors of every adapted layer, by name."""
    return {f"{name}.{side}": leaf for name, linear in linears.items() for side, leaf in linear.named_parameters()}


def in_full(adapter: Adapter, device: torch.device) -> Adapter:
    """An adapter in single precision where it is trained."""
    full = {name: weights.in_full() for name, weights in adapter.items()}
    return {name: LoraWeights(w.down.to(device), w.up.to(device), w.scale) for name, w in full.items()}


def in_half(linears: Mapping[str, LoraLinear]) -> Adapter:
    """An adapter as it stands, in half precision: far finer than what it changes."""
    return {
        name: LoraWeights(linear.down.detach().half().cpu(), linear.up.detach().half().cpu(), linear.scale)
        for name, linear in linears.items()
    }


class Reader:
    """The backbone with a trainable read adapter, and the forward pass that trains it.

    Args:
        weights: The model.
        bank: Chunks that samples read.
        adapter: What training begins with.
        write_from: First decoder layer that the adapter writes through, too; None: none, and the states of the bank are
            read as they are.
    """

    def __init__(self, weights: Weights, bank: StateBank, adapter: Adapter, *, write_from: int | None = None) -> None:
        self.weights, self.bank = weights, bank
        self.device = weights.backbone.device
        adapter = in_full(adapter, self.device)
        self._began = copy.deepcopy(adapter)
        self.backbone = weights.backbone.reading_through(adapter, merge=False, write_from=write_from)
        self.linears = self.backbone.adapted_linears()
        for leaf in self.parameters().values():
            leaf.requires_grad_(True)

        self._dropped = 0.0
        is_on_cpu = self.device.type == "cpu"
        is_large = sum(parameter.numel() for parameter in self.backbone.decoder_layers.parameters()) >= LARGE
        self._beside = SideBySide(torch.get_num_threads() if is_on_cpu else 1, in_turn=is_on_cpu and is_large)

    def drop(self, share: float) -> None:
        """Leave out a share of the adapter's inputs wherever gradients flow: a fresh choice for each batch."""
        self._dropped = share

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return leaves(self.linears)

    @computed_once
    def began(self) -> Backbone:
        """The backbone with the adapter that training started from."""
        backbone = self.weights.backbone
        return backbone.reading_through(self._began, merge=True, write_from=backbone.write_from)

    @computed_once
    def _bos(self) -> Tensor:
        """Normed states of bos, [layer, size]."""
        bos = self.weights.backbone.bos_states
        normed = [self.weights.norm(layer, rows[None], reading=True)[0] for layer, rows in enumerate(bos)]
        return torch.stack(normed).detach()

    def loss(self, samples: Sequence[Sample]) -> Tensor:
        """Loss of each sample of a batch: cross-entropy on answers, divergence from a teacher where there is one."""
        for linear in self.linears.values() if self._dropped else ():
            linear.kept = functional.dropout(linear.down.new_ones(linear.down.shape[1]), self._dropped)
        parts = self._beside.parts_of(samples)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return self._losses(samples)
        _ = self.began, self._bos, self._goes_on  # made once, by this thread
        return self._beside.losses(self._losses, parts, list(self.parameters().values()))

    def _losses(self, samples: Sequence[Sample]) -> Tensor:
        logits = self._logits(samples, self.backbone, memory=True)
        losses: list[Tensor] = []
        for sample, mine, teacher in zip(samples, logits, self._taught(samples), strict=True):
            if teacher is None:
                target = torch.tensor(sample.input_ids[sample.target :], device=self.device)
                each = functional.cross_entropy(mine, target, reduction="none")
                weights = torch.tensor(sample.weights or [1.0] * len(target), device=self.device)
                losses.append(each @ weights / weights.sum())
            else:
                losses.append(
                    functional.kl_div(mine.log_softmax(dim=-1), teacher, log_target=True, reduction="batchmean")
                )
        return torch.stack(losses)

    @property
    def _precision(self) -> torch.dtype:
        """Of the products that attention is made of."""
        kind = self.device.type
        is_lowered = torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if is_lowered else self.weights.backbone.dtype

    @torch.no_grad()
    def _taught(self, samples: Sequence[Sample]) -> list[Tensor | None]:
        """Logarithms of the probabilities that each sample's teacher gives; None where its tokens are learnt."""
        wanted: list[Tensor | None] = [None] * len(samples)
        teachers = (
            ([n for n, s in enumerate(samples) if s.distil], self.weights.backbone, False),
            ([n for n, s in enumerate(samples) if s.clean], self.began, True),
        )
        for numbers, backbone, memory in teachers:
            if not numbers:
                continue
            taught = [replace(samples[n], chunks=samples[n].clean, order=()) for n in numbers]
            for number, logits in zip(numbers, self._logits(taught, backbone, memory=memory), strict=True):
                wanted[number] = logits.log_softmax(dim=-1)
        return wanted

    def _rows(self, samples: Sequence[Sample], longest: int) -> tuple[Tensor, Tensor]:
        """Batch and column of every row whose next token is part of a target."""
        batch: list[int] = []
        column: list[int] = []
        for number, sample in enumerate(samples):
            shift = longest - len(sample.input_ids) if pads_left(self.backbone) else 0
            wanted = range(shift + sample.target - 1, shift + len(sample.input_ids) - 1)
            batch += [number] * len(wanted)
            column += list(wanted)
        spare = _whole(len(batch), PROMPT_STEP) - len(batch)
        return torch.tensor(batch + [0] * spare), torch.tensor(column + [longest - 1] * spare)

    def _logits(self, samples: Sequence[Sample], backbone: Backbone, *, memory: bool) -> tuple[Tensor, ...]:
        """For each sample the logits of its target, in float32; without memory also without the adapter."""
        if isinstance(backbone, LlamaLayers) and not any(sample.chunks for sample in samples):
            return self._told_logits(samples, backbone, plain=not memory)
        longest = _whole(max(len(sample.input_ids) for sample in samples), PROMPT_STEP)
        is_written = self.backbone.write_from is not None
        read = (self._written(samples, backbone) if is_written else self._read(samples)) if memory else None
        prompts = [sample.input_ids for sample in samples]
        hidden = last_states(backbone, prompts, longest, read, self._precision, plain=not memory)
        batch, column = self._rows(samples, longest)
        wanted = [len(sample.input_ids) - sample.target for sample in samples]
        logits = backbone.logits(hidden[batch.to(self.device), column.to(self.device)])
        return logits[: sum(wanted)].float().split(wanted)

    def _told_logits(self, samples: Sequence[Sample], backbone: LlamaLayers, *, plain: bool) -> tuple[Tensor, ...]:
        """Logits of samples that read nothing but their prompts: what those of one memory share is computed once."""
        numbered = enumerate(samples, start=1)
        groups = [
            [sample for _, sample in mine] for _, mine in groupby(numbered, key=lambda one: one[1].memory or -one[0])
        ]
        rows = [_branches(mine) for mine in groups]
        hidden = branched_states(backbone, rows, self._precision, plain=plain)
        batch: list[int] = []
        column: list[int] = []
        for row, (mine, branches) in enumerate(zip(groups, rows, strict=True)):
            for sample, start in zip(mine, branches.starts(), strict=True):
                first = start + sample.target - len(branches.shared) - 1
                column += range(first, first + len(sample.input_ids) - sample.target)
            batch += [row] * (len(column) - len(batch))
        wanted = [len(sample.input_ids) - sample.target for sample in samples]
        spare = [0] * (_whole(len(column), TARGET_STEP) - len(column))
        places = (torch.tensor([*some, *spare]).to(self.device) for some in (batch, column))
        logits = backbone.logits(hidden[tuple(places)])
        return logits[: sum(wanted)].float().split(wanted)

    def _written(self, samples: Sequence[Sample], backbone: Backbone) -> ReadStates | None:
        """Normed states of bos and chunks of each sample, as this backbone writes them; None if no sample reads any.

        A chunk that continues another is encoded behind it, and that one by itself, so they are all but those of a
        whole text.
        """
        bank, goes_on = self.bank, self._goes_on
        read = {chunk for sample in samples for chunk in sample.chunks}
        if not read:
            return None
        numbers = sorted(read | {chunk - 1 for chunk in read if goes_on[chunk]})
        chunks = [
            Chunk(list(bank.input_ids[n]), [], goes_on[n] and before == n - 1) for before, n in pairwise([-2, *numbers])
        ]
        made = encode_states(replace(self.weights, backbone=backbone), chunks, [None] * len(chunks)).states
        # Rows of the encoded chunks, one after the other behind bos, in the order in which each sample reads them.
        first = dict(zip(numbers, accumulate((len(chunk.input_ids) for chunk in chunks), initial=1), strict=False))
        places = [self._places(sample, first) for sample in samples]
        lengths = [len(mine) for mine in places]
        widest = _whole(max(lengths), PREFIX_STEP)
        index = torch.zeros(len(samples), widest, dtype=torch.int64)
        for row, mine in enumerate(places):
            start = widest - len(mine) if pads_left(backbone) else 0
            index[row, start : start + len(mine)] = mine
        index = index.to(self.device)
        states: list[Tensor] = []
        for layer, rows in enumerate(made):
            bos = self._bos[layer]
            states.append(torch.cat([bos[None], self.weights.norm(layer, rows, reading=True).to(bos.dtype)])[index])
        return ReadStates(states, lengths)

    def _places(self, sample: Sample, first: Mapping[int, int]) -> Tensor:
        """Rows that a sample reads, bos first, given the first row of each chunk."""
        if not sample.chunks:
            return torch.empty(0, dtype=torch.int64)
        ids = self.bank.input_ids
        rows = torch.cat([torch.arange(first[chunk], first[chunk] + len(ids[chunk])) for chunk in sample.chunks])
        rows = rows[torch.tensor(sample.order)] if sample.order else rows
        return torch.cat([torch.zeros(1, dtype=torch.int64), rows])

    @computed_once
    def _goes_on(self) -> list[bool]:
        """Which chunks of the bank continue the one before them; the bank is complete when training begins."""
        return self.bank.goes_on.tolist()

    def _read(self, samples: Sequence[Sample]) -> ReadStates | None:
        """Normed states of bos and chunks of each sample; None if no sample reads any."""
        backbone, bank = self.weights.backbone, self.bank
        lengths = [
            1 + (len(s.order) or sum(len(bank.input_ids[c]) for c in s.chunks)) if s.chunks else 0 for s in samples
        ]
        widest = _whole(max(lengths), PREFIX_STEP)
        if not widest:
            return None
        shape = (backbone.num_layers, len(samples), widest, backbone.hidden_size)
        states = torch.zeros(shape, dtype=backbone.dtype, device=self.device)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            if not length:
                continue
            first = widest - length if pads_left(backbone) else 0
            states[:, row, first] = self._bos
            parts = torch.cat([bank.states[chunk] for chunk in sample.chunks], dim=1)
            if sample.order:
                parts = parts[:, torch.tensor(sample.order, device=parts.device)]
            states[:, row, first + 1 : first + length] = parts
        return ReadStates(states.unbind(), lengths)


def _branches(samples: Sequence[Sample]) -> Branches:
    """Samples of one memory: what their prompts share, and what follows in each, a token or more before its target."""
    prompts = [sample.input_ids[: sample.target - 1] for sample in samples]
    alike = (len(set(tokens)) == 1 for tokens in zip(*prompts, strict=False))
    size = sum(1 for _ in takewhile(bool, alike))
    return Branches(prompts[0][:size], [sample.input_ids[size:] for sample in samples])
