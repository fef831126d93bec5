"""Texts that training asks about, cut into chunks and encoded once."""

import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.encode import Chunk, encode_states
from mplus.inert import encode_inert
from mplus.sentences import SentenceEnds
from mplus.training.chunk.questions import Question
from mplus.weights import Weights
from mplus.write.chunks import cut

CPU_BATCH, GPU_BATCH = 2048, 16_384
"""Tokens that are encoded at a time."""
SAY_EVERY = 20.0
"""Seconds between two lines about how far encoding is."""


class StateFile:
    """Normed states of chunks in bfloat16, [layer, token, size] each, one after the other in a mapped file.

    A file that is there already is taken as far as it goes: an interrupted run does not encode again.
    """

    def __init__(self, path: Path | None, num_layers: int, hidden_size: int) -> None:
        self._layers, self._hidden = num_layers, hidden_size
        self._file = path.open("a+b") if path is not None else tempfile.TemporaryFile("a+b")  # noqa: SIM115
        finalize(self, self._file.close)
        self._file.seek(0, os.SEEK_END)
        self._whole = self._file.tell() // 2
        self._starts = [0]
        self._sizes: list[int] = []
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    def claim(self, sizes: Sequence[int]) -> bool:
        """Whether the next chunks, of these sizes, are in the file already; then they are known from now on."""
        numbers = sum(sizes) * self._layers * self._hidden
        if self._starts[-1] + numbers > self._whole:
            self._file.truncate(self._starts[-1] * 2)
            self._whole = self._starts[-1]
            return False
        self._note(sizes)
        return True

    def extend(self, parts: Sequence[Tensor]) -> None:
        """More chunks, each [layer, token, size]."""
        for part in parts:
            self._file.write(part.contiguous().view(torch.int16).numpy().tobytes())
        self._file.flush()
        self._note([part.shape[1] for part in parts])
        self._whole = self._starts[-1]
        self._map = None

    def _note(self, sizes: Sequence[int]) -> None:
        for size in sizes:
            self._sizes.append(size)
            self._starts.append(self._starts[-1] + size * self._layers * self._hidden)

    def __getitem__(self, chunk: int) -> Tensor:
        if self._map is None:
            # Shared, never written to: a private map larger than memory would be refused.
            self._map = np.memmap(self._file, dtype=np.int16, mode="r+")
        start = self._starts[chunk]
        shape = (self._layers, self._sizes[chunk], self._hidden)
        rows = self._map[start : self._starts[chunk + 1]]
        return torch.from_numpy(rows).view(torch.bfloat16).view(shape)


class HeldStates(list[Tensor]):
    """Normed states of chunks, [layer, token, size] each, held on a GPU: beside what is trained on them."""

    def claim(self, sizes: Sequence[int]) -> bool:
        """Nothing is there from an earlier run."""
        return False


class ChunkBank:
    """Texts, cut and encoded once: what recall scores and what reads attend to.

    States are kept as each layer's attention sees them, normed by it. They take about 35 kB a token for 30 layers of
    576, so they wait in a file; on a GPU, where encoding takes seconds and copying them for every step would not pay,
    they stay on it.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any,
        config: MemoryConfig,
        file: Path | None = None,
        *,
        only_layer: int | None = None,
        encoder: Weights | None = None,
    ) -> None:
        """Begin an empty bank.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            config: For the size of chunks.
            file: Where states are kept; None: a temporary file that ends with the bank.
            only_layer: Keep the states of this layer alone: all that recall needs, and far quicker to make.
            encoder: The same model on the device that encodes, if that is another.
        """
        self.weights, self.tokenizer, self.config = weights, tokenizer, config
        self._only_layer = only_layer
        self.input_ids: list[list[int]] = []
        self.texts: list[str] = []
        self.owner: list[int] = []
        """Which text each chunk is from."""
        self.chunks_of: list[list[int]] = []
        """Chunks of each text, in order."""
        layers = weights.backbone.num_layers if only_layer is None else 1
        self._encoder = encoder or weights
        self._is_on_gpu = self._encoder.backbone.device.type != "cpu"
        self.states: StateFile | HeldStates = (
            HeldStates() if self._is_on_gpu else StateFile(file, layers, weights.backbone.hidden_size)
        )
        self._ends = SentenceEnds(tokenizer)

    def add(self, texts: Sequence[str], *, progress: str = "") -> list[int]:
        """Cut and encode texts; returns their numbers.

        Args:
            texts: In the order in which they get their numbers.
            progress: What they are, to say now and then how far it is; empty: say nothing.
        """
        numbers: list[int] = []
        batch: list[Chunk] = []
        said = time.monotonic()
        for text in texts:
            number = len(self.chunks_of)
            numbers.append(number)
            self.chunks_of.append([])
            ids = encode_inert(self.tokenizer, text)
            cuts = cut(ids, self._ends, chunk_tokens=self.config.chunk_tokens, minimum_chunk_tokens=1)
            for start, stop in cuts.chunks:
                self.chunks_of[number].append(len(self.input_ids))
                self.input_ids.append(ids[start:stop])
                self.texts.append(self.tokenizer.decode(ids[start:stop]))
                self.owner.append(number)
                batch.append(Chunk(ids[start:stop], [number] * (stop - start), start > 0))
            if sum(len(chunk.input_ids) for chunk in batch) > (GPU_BATCH if self._is_on_gpu else CPU_BATCH):
                self._encode(batch)
                batch = []
                if progress and time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    print(f"{progress}: {len(numbers):,} of {len(texts):,} texts", file=sys.stderr, flush=True)
        if batch:
            self._encode(batch)
        if progress:
            print(f"{progress}: {len(numbers):,} texts", file=sys.stderr, flush=True)
        return numbers

    def _encode(self, chunks: Sequence[Chunk]) -> None:
        sizes = [len(chunk.input_ids) for chunk in chunks]
        if self.states.claim(sizes):
            return
        with torch.inference_mode():
            only = self._only_layer
            layers = None if only is None else only + 1
            encoded = encode_states(self._encoder, chunks, [None] * len(chunks), num_layers=layers)
            first = 0 if only is None else only
            norm = self._encoder.norm
            normed = [norm(first + n, rows, reading=False) for n, rows in enumerate(encoded.states[first:])]
            states = torch.stack(normed).bfloat16()
        self.states.extend(states.split(sizes, dim=1))

    def chunks_in(self, texts: Iterable[int]) -> list[int]:
        """All chunks of some texts."""
        return [chunk for text in texts for chunk in self.chunks_of[text]]

    def by_group(self, groups: Sequence[int]) -> dict[int, list[int]]:
        """Chunks of each group, given the group of every text."""
        found: dict[int, list[int]] = {}
        for chunk, text in enumerate(self.owner):
            found.setdefault(groups[text], []).append(chunk)
        return found

    def gold_chunks(self, question: Question) -> list[int]:
        """The question's chunks that hold an answer word for word."""
        return [c for c in self.chunks_in(question.passages) if question.is_answered_in(self.texts[c])]

    def some_chunks(self, rng: random.Random, texts: Sequence[int], budget: int) -> list[int]:
        """Chunks that stand together, from as many of the texts as fill a budget of tokens."""
        chosen: list[int] = []
        size = 0
        while size < budget:
            for chunk in self.chunks_of[rng.choice(texts)]:
                size += len(self.input_ids[chunk])
                if size > budget:
                    break
                chosen.append(chunk)
        return list(dict.fromkeys(chosen))

    @property
    def goes_on(self) -> Tensor:
        """Which chunks go on where the one before them ends."""
        owner = torch.tensor(self.owner)
        return torch.cat([torch.tensor([False]), owner[1:] == owner[:-1]])

    @torch.no_grad()
    def asked(self, text: str, layer: int) -> Tensor:
        """States of a question that is read alone, normed by a layer, in float32."""
        ids = torch.tensor(encode_inert(self.tokenizer, text))
        rows = self.weights.backbone.plain_states(ids, layer)[-1]
        return self.weights.norm(layer, rows, reading=False).float()

    @torch.no_grad()
    def all_asked(self, texts: Sequence[str], layer: int) -> list[Tensor]:
        """``asked`` of many questions, in the model's dtype: those equally long go through the layers together."""
        ids = [encode_inert(self.tokenizer, text) for text in texts]
        alike: dict[int, list[int]] = {}
        for number, one in enumerate(ids):
            alike.setdefault(len(one), []).append(number)
        found: dict[int, Tensor] = {}
        for length, numbers in alike.items():
            most = max(CPU_BATCH // length, 1)
            for some in (numbers[first : first + most] for first in range(0, len(numbers), most)):
                states = self.weights.backbone.plain_state(torch.tensor([ids[n] for n in some]), layer)
                found.update(zip(some, self.weights.norm(layer, states, reading=False), strict=True))
        return [found[number] for number in range(len(texts))]

    def normed(self, chunk: int, layer: int) -> Tensor:
        """A chunk's states, normed by a layer, in float32, where ``weights`` compute."""
        assert self._only_layer in (None, layer), f"only layer {self._only_layer} is kept, not {layer}"
        backbone = self.weights.backbone
        return self.states[chunk][layer if self._only_layer is None else 0].to(backbone.device).float()
