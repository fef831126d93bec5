"""Read: a prompt is answered with memory in front of it, layer by layer.

The prefix of a layer is bos, then what was recalled and short-term memory, in the order that recall gives,
as ready keys and values in a transformers cache.
A read changes no memory. Several memories are read in one batch, each row with a prefix of its own.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple
from weakref import finalize, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from mplus.backbone.attention import KeysValues
from mplus.config import MemoryConfig
from mplus.memory.state import MemoryState, Track
from mplus.read.decode import Reading, call_layer, geometry
from mplus.read.fetch import RecalledRows
from mplus.read.prefix import (
    READ_BLOCK_TOKENS,
    SPARE_PREFIXES,
    Chosen,
    Prefix,
    PrefixLayer,
    ReadingOrder,
    SparePrefix,
    length_of,
    prefix_layer,
)
from mplus.recall.choose import QUERY_TOKENS, Recalled, nothing_recalled, recall
from mplus.weights import Weights


@dataclass(frozen=True)
class ReadRequest:
    """One row of a read: a memory's state and the prompt that meets it.

    Attributes:
        state: What is remembered.
        config: How it is laid out.
        input_ids: The prompt.
        query: First and last-plus-one row of the prompt that say what is asked.
        sources: Rows of the table of sources that may be read, in any pool; None for all.
    """

    state: MemoryState
    config: MemoryConfig
    input_ids: Sequence[int]
    query: tuple[int, int]
    sources: Int[Tensor, " n"] | None = None


def has_prefix(request: ReadRequest) -> bool:
    """Whether anything stands before the prompt.

    An empty memory has no prefix, and is read by the plain backbone without the read adapter: it is
    exactly the backbone. (A write adapter's model was trained with its bos vector always there.)
    """
    return request.config.encoding == "adapter" or any(map(len, request.state.tracks))


class Prefill(NamedTuple):
    """The first step of a read."""

    logits: Float[Tensor, "B S V"]
    """Of the last token of each prompt, or of all where asked for (prompts padded on the right)."""
    reading: Reading


def prefill(weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool = False) -> Prefill:
    """Read prompts through their memories up to the first answer token.

    Args:
        weights: The model.
        requests: One per row.
        all_logits: Logits of every prompt token, not only of the last.
    """
    steps = prefill_steps(weights, requests, all_logits=all_logits)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


@torch.inference_mode()
def prefill_steps(
    weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool = False
) -> Generator[None, None, Prefill]:
    """``prefill``, stopping after every block of a long prompt so that others may go on in between."""
    backbone = weights.backbone
    prefixed = [has_prefix(request) for request in requests]
    assert all(prefixed) or not any(prefixed), "rows with and without a prefix are read apart"
    modules = backbone.read_layers if prefixed[0] else backbone.write_layers
    sizes = [len(request.input_ids) for request in requests]
    longest = max(sizes)
    padded = torch.zeros(len(requests), longest, dtype=torch.int64)
    for row, request in enumerate(requests):
        padded[row, : sizes[row]] = torch.tensor(request.input_ids)

    prefixes = _Prefixes(weights, requests, longest, whole_prompt=all_logits)
    layers: list[PrefixLayer] = []
    hidden = torch.empty(0)
    parts: list[Tensor] = []
    for start in range(prefixes.kept_tokens, longest, prefixes.block):
        if parts:
            yield
        hidden = backbone.embed(padded[:, start : start + prefixes.block])
        at = cache(partial(geometry, backbone, hidden.shape[1]))
        for index, module in enumerate(modules):
            hidden = hidden.to(backbone.layer_device(index))
            if not parts:
                layers.append(prefixes.layer(index, module, hidden))
            place = at(tuple(layers[index].lengths), hidden.device)
            hidden = call_layer(module, hidden, place, backbone, Cache(layers=layers))  # pyright: ignore[reportArgumentType]
        parts.append(hidden)
    for layer in layers:
        # Rows were padded on the right to the longest prompt.
        layer.lengths = [length - longest + size for length, size in zip(layer.lengths, sizes, strict=True)]
    reading = Reading(weights, modules, layers, [tuple(row) for row in prefixes.recalled])
    if prefixes.alone is not None:
        reading.when_done = finalize(reading, SPARE_PREFIXES.keep, prefixes.left_by(layers))
        reading.when_done.atexit = False
    last = torch.tensor(sizes, device=hidden.device) - longest - 1
    final = (
        torch.cat(parts, dim=1) if all_logits else hidden[torch.arange(len(sizes), device=hidden.device), last][:, None]
    )
    return Prefill(backbone.logits(final), reading)


class _Prefixes:
    """Makes the cache layers of one read: recalls, gathers and rotates, or takes over what an earlier read left."""

    def __init__(self, weights: Weights, requests: Sequence[ReadRequest], longest: int, *, whole_prompt: bool) -> None:
        self._weights, self._requests, self._longest = weights, requests, longest
        self._early = [_recall_before_reading(weights, request) for request in requests]
        self._coming: list[RecalledRows | None] = [None] * len(requests)
        self._orders = [ReadingOrder(0, torch.empty(0, dtype=torch.int64))] * len(requests)
        self._read_in: list[ReadingOrder] = []
        self._standing: list[int] = []
        """Parts of the only prefix that an earlier read has left at their places."""
        self.recalled: list[list[Recalled]] = [[] for _ in requests]
        """Per row, what each track recalled."""
        self.alone = requests[0] if len(requests) == 1 and requests[0].sources is None else None
        """The only request, where its prefix is one that others may have left and may go on with."""
        self._chosen: Chosen | None = None
        if (early := self._early[0]) is not None:
            self._chosen = Chosen(early.index, _order(requests[0], requests[0].state.tracks[0], early))
        self.block = longest
        """How many prompt tokens are read at once."""
        if len(requests) == 1 and self._chosen is not None:
            # Where every layer recalls for itself it needs the whole question at once.
            self.block = READ_BLOCK_TOKENS
        self._spare: SparePrefix | None = None
        self.kept_tokens = 0
        """Prompt tokens that an earlier read of the same prefix has read."""
        if self.alone is not None:
            pool, prompt = self.alone.state.tracks[0].short_term, self.alone.input_ids
            self._spare = SPARE_PREFIXES.take(pool, self._chosen, prompt)
            if self._spare is not None and not whole_prompt:
                self.kept_tokens = self._spare.kept_tokens(self._chosen, prompt)
        self._rotation = cache(
            lambda length, where: weights.backbone.rotation(torch.arange(length, device=where))
        )  # of every position of a prefix

    def layer(self, index: int, module: Any, hidden: Float[Tensor, "B S D"]) -> PrefixLayer:
        """The cache layer that the prompt's states at the input of layer ``index`` meet."""
        prefixes: list[Prefix] = []
        whole = self._spare is not None and self._spare.is_of(self._chosen)
        for row, request in enumerate(self._requests):
            track, at = _track_of(request.state, index)
            chosen = self._early[row]
            if chosen is None:
                begin, end = request.query
                normed = module.input_layernorm(hidden[row, begin:end])
                chosen = recall(self._weights, track, request.config, normed, request.sources)
            if at == 0:
                self.recalled[row].append(chosen)
                self._coming[row] = None if whole else _rows(self._weights, track, chosen)
                self._orders[row] = _order(request, track, chosen)
                if self._spare is not None:
                    shared = self._orders[row].shared(self._spare.orders[index])
                    self._standing = [0, *(number for number, is_shared in enumerate(shared, start=1) if is_shared)]
            if not whole:
                coming, order = self._coming[row], self._orders[row]
                prefixes.append(_prefix(self._weights, request, track, at, index, coming, order))
        if self.alone is not None:
            self._read_in.append(self._orders[0])
        if self._spare is not None and whole:
            return self._spare.layer(index, self.kept_tokens)
        rotation = self._rotation(max(map(length_of, prefixes)), hidden.device)
        spare = self._spare.layer(index, 0) if self._spare is not None else None
        return prefix_layer(self._weights.backbone, prefixes, self._longest, rotation, spare, self._standing)

    def left_by(self, layers: Sequence[PrefixLayer]) -> SparePrefix:
        """What the next read may have of layers that now hold prefix and prompt."""
        assert self.alone is not None
        size = len(self.alone.input_ids)
        return SparePrefix(
            ref(self.alone.state.tracks[0].short_term),
            self._chosen,
            tuple(self.alone.input_ids),
            self._read_in,
            [layer.lengths[0] - size for layer in layers],
            [(layer.key_buffer, layer.value_buffer) for layer in layers],
        )


def _track_of(state: MemoryState, layer: int) -> tuple[Track, int]:
    """The track that remembers for a layer, and the layer's place in it."""
    if len(state.tracks) == 1:
        return state.tracks[0], layer
    return state.tracks[layer], 0


def _rows(weights: Weights, track: Track, chosen: Recalled) -> RecalledRows | None:
    """What was recalled, on its way to the track's first layer."""
    if not len(chosen.index):
        return None
    rows = RecalledRows((track.long_term, track.pending), chosen.index, weights.backbone.dtype, track.devices)
    rows.start(0)
    return rows


def _order(request: ReadRequest, track: Track, chosen: Recalled) -> ReadingOrder:
    """In which order what was recalled from a track and its short-term memory are read."""
    count = len(chosen.index)
    if chosen.order is not None:
        return ReadingOrder(count, chosen.order)
    recent = track.short_term.provenance.sources
    if request.sources is not None:
        recent = recent[torch.isin(recent, request.sources)]
    return ReadingOrder(count, torch.arange(count + len(recent)))


def _prefix(
    weights: Weights,
    request: ReadRequest,
    track: Track,
    at: int,
    layer: int,
    coming: RecalledRows | None,
    order: ReadingOrder,
) -> list[KeysValues]:
    """Parts of one layer's prefix, in order: keys before rotary embedding, and values."""
    if not has_prefix(request):
        return []
    backbone = weights.backbone
    where = backbone.layer_device(layer)
    bos = weights.norm(layer, backbone.bos_states[layer : layer + 1].to(where), reading=True)
    parts = [backbone.keys_values(backbone.read_layers[layer], bos)]
    recalled = coming.take(at) if coming is not None else None
    content = track.short_term.content
    recent = KeysValues(content.keys[at], content.values[at])
    if request.sources is not None:
        kept = torch.isin(track.short_term.provenance.sources, request.sources).nonzero().flatten()
        recent = KeysValues(*(rows[kept.to(rows.device)] for rows in recent))
    for start, stop in order.runs:
        rows, first = (recent, order.num_recalled) if recalled is None or start >= order.num_recalled else (recalled, 0)
        parts.append(KeysValues(*(of_kind[start - first : stop - first] for of_kind in rows)))
    return parts


def _recall_before_reading(weights: Weights, request: ReadRequest) -> Recalled | None:
    """The chunk layout's one choice for all layers, from the question read alone."""
    if request.config.layout != "chunk":
        return None
    track = request.state.tracks[0]
    if not len(track) or not request.config.recalled_tokens:
        return nothing_recalled()
    begin, end = request.query
    ids = torch.tensor(list(request.input_ids[max(begin, end - QUERY_TOKENS) : end]))
    states = weights.backbone.plain_states(ids, track.recall_layer)
    normed = weights.norm(track.recall_layer, states[-1], reading=False)
    return recall(weights, track, request.config, normed, request.sources, weights.words_of(ids.tolist()))
