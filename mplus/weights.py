"""The parts of a loaded model that take part in writing and reading. They never change."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mplus.backbone.attention import KeysValues
from mplus.backbone.backbone import Backbone
from mplus.computed_once import computed_once
from mplus.config import MemoryConfig, Recall
from mplus.decline_head import DeclineHead
from mplus.errors import EmbedderError
from mplus.layouts.by_config import layout_of
from mplus.memory.long_term import LongTermMemory
from mplus.memory.stacks import paired, side_by_side, unpaired
from mplus.memory.state import MemoryState, Track, arrival_tier
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.memory.warm import WarmChunks
from mplus.recall.embedder import Embedder
from mplus.recall.gate import Gate
from mplus.recall.scorer import Question, Scorer
from mplus.shapes import RetrievalKeys
from mplus.traces import LatestTraces
from mplus.words import Words, no_words

QUESTION_TOKENS = 256
"""Recall uses at most this many tokens of a question, the last ones."""
LATEST_QUESTIONS = 128
"""Questions whose states are kept."""


@dataclass(frozen=True)
class Weights:
    """Backbone, retriever and the vectors that writing adds."""

    backbone: Backbone
    scorers: Mapping[Recall, Scorer]
    """The scorers that these weights have."""
    recall_layer: int
    """Layer whose states are scored if one choice serves all layers."""
    fingerprints: Mapping[Recall, str]
    """For each scorer, a hash of the weights that a memory depends on; memories with another one are refused."""
    write_position: Float[Tensor, " D"] | None = None
    """Added to the last K rows of every layer by a write adapter (published: new_memory_positional_emb)."""
    words: Words | None = None
    """Finds the words of texts and questions. None without a tokenizer; recall then compares states alone."""
    tokenizer: Any = None
    """Decodes text for the embedder."""
    gate: Gate | None = None
    """Whether a question needs memory; None: every question does."""
    embedder: Embedder | None = None
    """The embedder that the user brings."""
    decline_head: DeclineHead | None = None
    """Whether what was read answers a question; None: the model's own probability of declining says so."""
    text_backbone: Backbone | None = None
    """The same backbone through a read adapter that was trained on recalled text; None: text is read without one."""

    @computed_once
    def for_text(self) -> "Weights":
        """The weights that read a prompt in which recalled text stands."""
        return self if self.text_backbone is None else replace(self, backbone=self.text_backbone, text_backbone=None)

    @computed_once
    def bos(self) -> tuple[KeysValues, ...]:
        """Latents of bos in each layer, the same in every read."""
        backbone = self.backbone
        layers = tuple(range(backbone.num_layers))
        with torch.inference_mode(False), torch.no_grad():
            states = backbone.bos_states.to(backbone.dtype)
            made = self.latents(layers, tuple(states[n : n + 1].to(backbone.layer_device(n)) for n in layers))
        stacks = side_by_side(paired([one.keys for one in made], [one.values for one in made]))
        return tuple(map(KeysValues, *unpaired(stacks)))

    def words_of(self, input_ids: Sequence[int]) -> Int32[Tensor, " S"]:
        """Number of the word that begins in each token of a text."""
        return no_words(len(input_ids)) if self.words is None else self.words(input_ids)

    def text_of(self, input_ids: Sequence[int]) -> str:
        """The text of token ids, as an embedder takes it."""
        text = self.tokenizer.decode(list(input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.strip() or text

    def tracks(self, config: MemoryConfig) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Groups of layers that recall the same tokens, each with the layer that is scored for it."""
        layer = self.recall_layer if config.recall_layer is None else config.recall_layer
        return layout_of(config).tracks(self.backbone.num_layers, layer)

    def empty_state(self, config: MemoryConfig) -> MemoryState:
        """The state of a memory in which nothing has been written."""
        tracks = tuple(
            Track(
                layers,
                layer,
                self.no_tokens(layers, layer, config),
                LongTermMemory.empty(),
                LongTermMemory.empty(),
                warm=WarmChunks.of(config, arrival_tier(config)),
            )
            for layers, layer in self.tracks(config)
        )
        digest = f"{self.fingerprints[config.recall]}/{config.model_dump_json()}"
        return MemoryState(tracks, digest=digest, ledger=() if config.ledger else None)

    def no_tokens(self, layers: tuple[int, ...], recall_layer: int, config: MemoryConfig) -> Tokens:
        """An empty pool with the shapes, dtype and devices of some layers; without them if it keeps token ids."""
        # Each pool is an object of its own, by which buffers are kept; tensors without rows may be shared.
        key = (layers, recall_layer, config)
        if key not in self._no_content:
            with torch.inference_mode(False), torch.no_grad():
                self._no_content[key] = self._made_of_nothing(layers, recall_layer, config)
        return Tokens(self._no_content[key], Provenance.none())

    @computed_once
    def _no_content(self) -> dict[tuple[tuple[int, ...], int, MemoryConfig], Content]:
        return {}

    def _made_of_nothing(self, layers: tuple[int, ...], recall_layer: int, config: MemoryConfig) -> Content:
        backbone = self.backbone
        if config.keeps_ids:
            where = backbone.layer_device(recall_layer)
            row = torch.empty(0, backbone.hidden_size, dtype=backbone.dtype, device=where)
            keys = self.scored(recall_layer, row, config)
            return Content((), (), keys, None, torch.empty(0, dtype=torch.int32))
        states = tuple(
            torch.empty(0, backbone.hidden_size, dtype=backbone.dtype, device=backbone.layer_device(layer))
            for layer in layers
        )
        return self.content(layers, recall_layer, states, config)

    @property
    def latent_bytes(self) -> int:
        """Bytes of keys and values of one token in all layers, in the model's own dtype."""
        shapes = [self.backbone.head_shapes(layer) for layer in range(self.backbone.num_layers)]
        numbers = sum(s.key_heads * s.key_size + s.value_heads * s.value_size for s in shapes)
        return numbers * self.backbone.dtype.itemsize

    def no_latents(self, layers: tuple[int, ...], retrieval_keys: RetrievalKeys) -> Content:
        """Content of no tokens, with the shapes, dtype and devices of some layers."""
        backbone = self.backbone
        shapes = [(backbone.head_shapes(layer), backbone.layer_device(layer)) for layer in layers]
        keys = (torch.empty(0, s.key_heads, s.key_size, dtype=backbone.dtype, device=d) for s, d in shapes)
        values = (torch.empty(0, s.value_heads, s.value_size, dtype=backbone.dtype, device=d) for s, d in shapes)
        return Content(tuple(keys), tuple(values), retrieval_keys)

    def content(
        self,
        layers: tuple[int, ...],
        recall_layer: int,
        states: tuple[Float[Tensor, "T D"], ...],
        config: MemoryConfig,
        written: Sequence[KeysValues] | None = None,
    ) -> Content:
        """The stored content of memory tokens: keys and values for reading, and retrieval keys.

        ``written`` has the keys and values that the write made of them, taken where reading would make the
        same.
        """
        read = self.latents(layers, states, written)
        return Content(
            tuple(rows.keys for rows in read),
            tuple(rows.values for rows in read),
            self.scored(recall_layer, states[layers.index(recall_layer)], config),
            states if config.keep_states else None,
        )

    def latents(
        self,
        layers: tuple[int, ...],
        states: tuple[Float[Tensor, "T D"], ...],
        written: Sequence[KeysValues] | None = None,
    ) -> Sequence[KeysValues]:
        """Keys and values for reading of memory tokens; takes what ``content`` does.

        Keys are those before rotary embedding, without the backbone's ``key_offsets``.
        """
        backbone = self.backbone
        made: list[KeysValues] = []
        for number, (layer, rows) in enumerate(zip(layers, states, strict=True)):
            if written is not None and backbone.reads_as_written[layer]:
                one = written[number]
            else:
                one = backbone.keys_values(backbone.read_layers[layer], self.norm(layer, rows, reading=True))
            offset = backbone.key_offsets[layer]
            made.append(one if offset is None else KeysValues(one.keys - offset, one.values))
        return made

    def whole(self, layers: Sequence[int], latents: KeysValues) -> KeysValues:
        """Latents of some layers, [layers, rows, heads, size], with the bias of their keys.

        Args:
            layers: Which layers, in order.
            latents: As ``latents`` makes them.
        """
        offsets = [self.backbone.key_offsets[layer] for layer in layers]
        if all(offset is None for offset in offsets):
            return latents
        none = latents.keys.new_zeros(latents.keys.shape[2:])
        added = torch.stack([none if offset is None else offset for offset in offsets])
        return KeysValues(latents.keys + added[:, None].to(latents.keys.device), latents.values)

    def scored(self, recall_layer: int, states: Float[Tensor, "T D"], config: MemoryConfig) -> RetrievalKeys:
        """Retrieval keys of memory tokens, in host memory, from their states at the recall layer."""
        normed = self.norm(recall_layer, states, reading=False)
        return self.scorers[config.recall].keys(recall_layer, normed).cpu()

    def question(self, input_ids: Sequence[int], layer: int, vector: Float[Tensor, " E"] | None = None) -> Question:
        """The input of recall for a question that is read alone; only its last tokens are used.

        Args:
            input_ids: Token ids of the question.
            layer: The layer whose states are compared.
            vector: Its vector by the embedder.
        """
        ids = tuple(input_ids[-QUESTION_TOKENS:])
        # What the gate has looked at is read next, and an answer may be asked for again.
        key = (ids, layer, torch.is_inference_mode_enabled())
        question = self._asked.get(key)
        if question is None:
            states = self.backbone.plain_state(torch.tensor(ids), layer)
            forms = None if self.words is None else self.words.asked(ids)
            question = Question(layer, self.norm(layer, states, reading=False), self.words_of(ids), forms=forms)
            self._asked.put(key, question)
        return question if vector is None else replace(question, vector=vector)

    def question_vector(
        self, input_ids: Sequence[int], state: MemoryState, config: MemoryConfig
    ) -> Float[Tensor, " E"] | None:
        """The vector of a question by the embedder; None if nothing in a memory is compared with it.

        Raises:
            EmbedderError: The embedder failed, or its vectors are not of the size of the memory's.
        """
        sizes = {size for track in state.tracks if (size := track.vectors.size) is not None}
        if not config.has_vectors or not sizes or self.embedder is None:
            return None
        vector = self.embedder.question(self.text_of(input_ids))
        if sizes != {len(vector)}:
            raise EmbedderError(
                f"The embedder {self.embedder.name!r} returned a vector of {len(vector)} numbers: expected "
                f"{min(sizes)}, as this memory has from it. Use the embedder that the memory was written with."
            )
        return vector

    @computed_once
    def _asked(self) -> LatestTraces[Hashable, Question]:
        return LatestTraces(LATEST_QUESTIONS)

    def norm(self, layer: int, states: Float[Tensor, "*rows D"], *, reading: bool) -> Float[Tensor, "*rows D"]:
        """States at the input of a layer, normed by it."""
        layers = self.backbone.read_layers if reading else self.backbone.write_layers
        return self.backbone.normed(layers, layer, states)
