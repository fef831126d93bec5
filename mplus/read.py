"""Read: a prompt is answered with memory in front of it, layer by layer.

The prefix of a layer is [bos ; recalled ; short-term], as ready keys and values in a transformers cache.
A read changes no memory. Several memories are read in one batch, each row with a prefix of its own.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple
from weakref import finalize, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from mplus.backbone import Backbone, KeysValues, Rotation, rotate_into
from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import MemoryState, Track
from mplus.memory.tokens import Provenance, Tokens
from mplus.retriever import Scorer, choose_units
from mplus.weights import Weights

SPARE_TOKENS = 256
"""Room a cache layer has for decoding before it must be copied into a larger one."""
Prefix = Sequence[KeysValues]
"""What stands before a prompt in one layer, in parts that are still where they were kept."""

QUERY_TOKENS = 256
"""Most tokens of a question that recall looks at: its last ones."""


@dataclass(frozen=True)
class Recalled:
    """What one track brought back for one read, oldest first."""

    index: Int[Tensor, " T"]
    """Rows of [long-term ; pending]."""
    provenance: Provenance
    relevance: Float[Tensor, " T"]
    """Relevance of the unit each token was recalled with."""


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


class PrefixLayer(CacheLayerMixin):
    """A cache layer that starts with a prefix and grows in place.

    transformers' own dynamic layer copies all keys and values for every new token; over a long prefix
    that costs as much as reading it.
    """

    is_sliding = False

    def __init__(self, keys: Float[Tensor, "B H P E"], values: Float[Tensor, "B H P E"], length: int) -> None:
        """Take over buffers whose first ``length`` columns are the prefix."""
        super().__init__()
        self.key_buffer, self.value_buffer, self.length = keys, values, length
        self.prefix_length = length
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: a prefix layer is born initialised."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; returns all of them."""
        end = self.length + key_states.shape[2]
        if end > self.key_buffer.shape[2]:
            self._grow(end + max(SPARE_TOKENS, end // 4))
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def _grow(self, capacity: int) -> None:
        for name in ("key_buffer", "value_buffer"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def select(self, rows: Int[Tensor, " B"]) -> None:
        """Keep only some sequences of the batch."""
        rows = rows.to(self.key_buffer.device)
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(t.numel() * t.element_size() for t in (self.key_buffer, self.value_buffer))

    def rewound(self) -> "PrefixLayer":
        """A layer of the same buffers that holds the prefix alone."""
        return PrefixLayer(self.key_buffer, self.value_buffer, self.prefix_length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask for that many queries."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use, the prefix included."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No maximum (the name in transformers before 5.20)."""
        return -1


class SparePrefixes:
    """Prefixes of finished reads, kept for the next read of the same memory.

    Short-term memory does not change until the next write, and stands rotated at the end of a prefix: a
    later read that recalls as many tokens writes only what it recalls. A prefix has one user at a time,
    goes with the memory it belongs to, and the least recently used go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[tuple[ref[Tokens], list[PrefixLayer]]] = []
        self._guard = threading.Lock()

    def take(self, short_term: Tokens) -> list[PrefixLayer] | None:
        """The prefix of an earlier read of this short-term memory, now the caller's alone."""
        with self._guard:
            for place in reversed(range(len(self._kept))):
                if self._kept[place][0]() is short_term:
                    return [layer.rewound() for layer in self._kept.pop(place)[1]]
        return None

    def keep(self, short_term: "ref[Tokens]", layers: list[PrefixLayer]) -> None:
        """Keep what a read that has ended no longer needs."""
        with self._guard:
            self._kept = [(known, kept) for known, kept in self._kept if known() is not None]
            if short_term() is not None:
                self._kept.append((short_term, layers))
            while sum(layer.nbytes for _, kept in self._kept for layer in kept) > self.max_bytes:
                self._kept.pop(0)


SPARE_PREFIXES = SparePrefixes(2**30)


class Reading:
    """A batch of prompts being answered: the cache, and where each row stands.

    Made by ``prefill``; ``decode`` adds one token to every row.
    """

    def __init__(
        self,
        weights: Weights,
        modules: nn.ModuleList,
        layers: list[PrefixLayer],
        positions: list[Int[Tensor, " B"]],
        masks: list[Tensor | None],
        recalled: list[tuple[Recalled, ...]],
    ) -> None:
        self.weights = weights
        self.modules = modules
        """Decoder layers: with the read adapter where there is a prefix."""
        self.cache = Cache(layers=layers)  # pyright: ignore[reportArgumentType]
        self.layers = layers
        self.positions = positions
        """Per layer, the next position of each row."""
        self.masks = masks
        """Per layer, which columns each row may see; None where it may see all."""
        self.recalled = recalled
        """Per row, what each track recalled."""

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Logits after one more token in every row."""
        backbone = self.weights.backbone
        hidden = backbone.embed(torch.tensor(tokens)[:, None])
        rotations: dict[int, Rotation] = {}
        for index in range(backbone.num_layers):
            hidden = hidden.to(self.layers[index].key_buffer.device)
            position = self.positions[index]
            if id(position) not in rotations:
                rotations[id(position)] = backbone.rotation(position[:, None])
            mask = self.masks[index]
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
                self.masks[index] = mask
                mask = backbone.layer_mask(mask[:, None, None])
            hidden = call_layer(
                self.modules[index],
                hidden,
                rotations[id(position)],
                mask,
                self.cache,
                position[:, None],
            )
        moved: dict[int, Tensor] = {}
        for index, position in enumerate(self.positions):
            if id(position) not in moved:
                moved[id(position)] = position + 1
            self.positions[index] = moved[id(position)]
        return backbone.logits(hidden[:, -1])

    def select(self, rows: Sequence[int]) -> None:
        """Go on with only some rows of the batch."""
        index = torch.tensor(rows)
        moved: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            layer.select(index)
            mask, position = self.masks[number], self.positions[number]
            self.masks[number] = None if mask is None else mask[index.to(mask.device)]
            if id(position) not in moved:
                moved[id(position)] = position[index.to(position.device)]
            self.positions[number] = moved[id(position)]
        self.recalled = [self.recalled[row] for row in rows]


def call_layer(
    layer: Any, hidden: Tensor, rotation: Rotation, mask: Tensor | None, cache: Cache, positions: Tensor
) -> Float[Tensor, "B S D"]:
    """One transformers decoder layer over a cache."""
    output = layer(
        hidden,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        position_embeddings=rotation,
        **{_cache_keyword(type(layer)): cache},
    )
    return output[0] if isinstance(output, tuple) else output


@lru_cache
def _cache_keyword(kind: type[nn.Module]) -> str:
    """What a decoder layer calls its cache: transformers 5.24 renamed it and warns about the old name."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"


class Prefill(NamedTuple):
    """The first step of a read."""

    logits: Float[Tensor, "B S V"]
    """Of the last row of each prompt, or of all rows where asked for (prompts padded on the left)."""
    reading: Reading


@torch.inference_mode()
def prefill(weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool = False) -> Prefill:
    """Read prompts through their memories up to the first answer token.

    Args:
        weights: The model.
        requests: One per row.
        all_logits: Logits of every prompt row, not only of the last.
    """
    return _prefill(weights, requests, all_logits=all_logits)


def _prefill(weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool) -> Prefill:
    backbone = weights.backbone
    prefixed = [has_prefix(request) for request in requests]
    assert all(prefixed) or not any(prefixed), "rows with and without a prefix are read apart"
    modules = backbone.read_layers if prefixed[0] else backbone.write_layers
    sizes = [len(request.input_ids) for request in requests]
    longest = max(sizes)
    padded = torch.zeros(len(requests), longest, dtype=torch.int64)
    for row, request in enumerate(requests):
        padded[row, longest - sizes[row] :] = torch.tensor(request.input_ids)
    hidden = backbone.embed(padded)
    columns = torch.arange(longest) - (longest - torch.tensor(sizes))[:, None]  # negative: padding

    early = [_recall_before_reading(weights, request) for request in requests]
    alone = requests[0] if len(requests) == 1 and prefixed[0] and requests[0].sources is None else None
    spares = alone and SPARE_PREFIXES.take(alone.state.tracks[0].short_term)
    recalled: list[list[Recalled]] = [[] for _ in requests]
    layers: list[PrefixLayer] = []
    positions: list[Tensor] = []
    masks: list[Tensor | None] = []
    shared: dict[tuple[int, ...], tuple[Tensor, Rotation, Tensor, Tensor, Tensor | None]] = {}
    turned: dict[tuple[int, torch.device], Rotation] = {}
    for index in range(backbone.num_layers):
        where = backbone.layer_device(index)
        hidden = hidden.to(where)
        layer: Any = modules[index]
        prefixes: list[Prefix] = []
        for row, request in enumerate(requests):
            track, at = _track_of(request.state, index)
            chosen = early[row]
            if chosen is None:
                begin, end = request.query
                start = longest - sizes[row]
                normed = layer.input_layernorm(hidden[row, start + begin : start + end])
                chosen = recall(weights, track, request.config, normed, request.sources)
            if at == 0:
                recalled[row].append(chosen)
            prefixes.append(_prefix(weights, request, track, at, index, chosen))
        lengths = tuple(map(_length, prefixes))
        widest = max(lengths)
        if (widest, where) not in turned:
            turned[widest, where] = backbone.rotation(torch.arange(widest, device=where))
        spare = spares[index] if spares else None
        layers.append(_prefix_layer(backbone, prefixes, longest, turned[widest, where], spare))
        if lengths not in shared:
            shared[lengths] = geometry(backbone, lengths, columns, where)
        position, rotation, mask, next_position, decode_mask = shared[lengths]
        positions.append(next_position)
        masks.append(decode_mask)
        cache = Cache(layers=layers)  # pyright: ignore[reportArgumentType]
        hidden = call_layer(layer, hidden, rotation, backbone.layer_mask(mask), cache, position)
    reading = Reading(weights, modules, layers, positions, masks, [tuple(row) for row in recalled])
    if alone is not None:
        finalize(reading, SPARE_PREFIXES.keep, ref(alone.state.tracks[0].short_term), layers).atexit = False
    return Prefill(backbone.logits(hidden if all_logits else hidden[:, -1:]), reading)


def geometry(
    backbone: Backbone,
    lengths: tuple[int, ...],
    columns: Int[Tensor, "B S"],
    where: torch.device,
    widest: int | None = None,
) -> tuple[Tensor, Rotation, Tensor, Tensor, Tensor | None]:
    """Positions, rotation, prefill mask, next position and decode mask of rows with these prefixes.

    Prefixes are padded on the left to ``widest`` columns, by default those of the longest.
    """
    prefix = torch.tensor(lengths)
    widest = max(lengths) if widest is None else widest
    position = (prefix[:, None] + columns).clamp(min=0)
    before = torch.arange(widest) >= (widest - prefix)[:, None]  # prefixes are padded on the left
    own = columns >= 0
    visible = torch.cat([before, own], dim=1)
    causal = columns[:, :, None] >= columns[:, None, :]
    mask = torch.cat([before[:, None].expand(-1, columns.shape[1], -1), causal & own[:, None]], dim=2)
    # A padding row sees itself, so that its softmax is not empty.
    mask[:, :, widest:] |= torch.eye(columns.shape[1], dtype=torch.bool)
    position = position.to(where)
    everything = bool(visible.all())
    return (
        position,
        backbone.rotation(position),
        mask[:, None].to(where),
        position[:, -1] + 1,
        None if everything else visible.to(where),
    )


def _prefix_layer(
    backbone: Backbone, prefixes: Sequence[Prefix], prompt: int, rotation: Rotation, spare: PrefixLayer | None
) -> PrefixLayer:
    """A cache layer of rotated prefixes, padded on the left, with room for the prompt and an answer.

    ``rotation`` is that of every position of the longest prefix; ``spare`` is the layer of an earlier read of one
    prefix that ended with the same part.
    """
    widest = rotation.cos.shape[0]
    reused = spare is not None and spare.prefix_length == widest and spare.dtype == backbone.dtype
    if spare is not None and reused:
        keys, values = spare.key_buffer, spare.value_buffer
    else:
        shape = (
            len(prefixes),
            backbone.num_key_value_heads,
            widest + prompt + SPARE_TOKENS,
            backbone.head_size,
        )
        keys = torch.empty(shape, dtype=backbone.dtype, device=rotation.cos.device)
        values = torch.empty_like(keys)
    for row, prefix in enumerate(prefixes):
        start = widest - _length(prefix)
        keys[row, :, :start] = 0
        values[row, :, :start] = 0
        position = 0
        for part in prefix[:-1] if reused else prefix:
            after = position + part.keys.shape[0]
            here = Rotation(rotation.cos[position:after], rotation.sin[position:after])
            rotate_into(keys[row, :, start + position : start + after].transpose(0, 1), part.keys, here)
            values[row, :, start + position : start + after] = part.values.transpose(0, 1)
            position = after
    return PrefixLayer(keys, values, widest)


def _length(prefix: Prefix) -> int:
    return sum(part.keys.shape[0] for part in prefix)


def _track_of(state: MemoryState, layer: int) -> tuple[Track, int]:
    """The track that remembers for a layer, and the layer's place in it."""
    if len(state.tracks) == 1:
        return state.tracks[0], layer
    return state.tracks[layer], 0


def _prefix(
    weights: Weights, request: ReadRequest, track: Track, at: int, layer: int, chosen: Recalled
) -> list[KeysValues]:
    """[bos ; recalled ; short-term] of one layer: keys before rotary embedding, and values."""
    if not has_prefix(request):
        return []
    backbone = weights.backbone
    where = backbone.layer_device(layer)
    bos = weights.norm(layer, backbone.bos_states[layer : layer + 1].to(where), reading=True)
    parts = [backbone.keys_values(backbone.read_layers[layer], bos)]
    if len(chosen.index):
        parts.append(KeysValues(*_gather(track, chosen.index, at, backbone.dtype, where)))
    content = track.short_term.content
    recent = KeysValues(content.keys[at], content.values[at])
    if request.sources is not None:
        kept = torch.isin(track.short_term.provenance.sources, request.sources).nonzero().flatten()
        recent = KeysValues(*(rows[kept.to(rows.device)] for rows in recent))
    return [*parts, recent]


def _gather(
    track: Track, index: Int[Tensor, " T"], at: int, dtype: torch.dtype, where: torch.device
) -> tuple[Tensor, Tensor]:
    """Keys and values of recalled tokens in one layer; only their rows are read and moved."""
    long = len(track.long_term)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for store, inside, shift in (
        (track.long_term, index < long, 0),
        (track.pending, index >= long, long),
    ):
        places = inside.nonzero().flatten()
        if not len(places):
            continue
        rows = index[places] - shift
        segment, row = store.segment[rows], store.row[rows]
        for number in segment.unique().tolist():
            here = (segment == number).nonzero().flatten()
            block = store.segments[number]
            parts.append(
                (
                    places[here],
                    block.keys[at].rows(row[here], dtype, where),
                    block.values[at].rows(row[here], dtype, where),
                )
            )
    order = torch.cat([places for places, _, _ in parts]).argsort().to(where)
    return (
        torch.cat([keys for _, keys, _ in parts])[order],
        torch.cat([values for _, _, values in parts])[order],
    )


# --- recall -------------------------------------------------------------------------------------------


def _recall_before_reading(weights: Weights, request: ReadRequest) -> Recalled | None:
    """The chunk layout's one choice for all layers, from the question read alone."""
    if request.config.layout != "chunk":
        return None
    track = request.state.tracks[0]
    if not len(track.long_term) + len(track.pending) or not request.config.recalled_tokens:
        return nothing_recalled()
    begin, end = request.query
    ids = torch.tensor(list(request.input_ids[max(begin, end - QUERY_TOKENS) : end]))
    states = weights.backbone.plain_states(ids, track.recall_layer)
    normed = weights.norm(track.recall_layer, states[-1], reading=False)
    return recall(weights, track, request.config, normed, request.sources)


def nothing_recalled() -> Recalled:
    """What a read recalls where there is nothing."""
    return Recalled(torch.empty(0, dtype=torch.int64), Provenance.none(), torch.empty(0))


def recall(
    weights: Weights,
    track: Track,
    config: MemoryConfig,
    normed: Float[Tensor, "S D"],
    sources: Int[Tensor, " n"] | None = None,
) -> Recalled:
    """Choose the long-term and pending tokens most relevant to a question (spec section 7).

    Args:
        weights: For the scorer.
        track: The pools to choose from.
        config: How many tokens, and whether whole chunks.
        normed: The question's rows, normed by the track's recall layer.
        sources: Rows of the table of sources that may be recalled; None for all.
    """
    budget = config.recalled_tokens
    if sources is None and config.repeat_short_recall and len(track.long_term) < budget:
        return _repeated(track, budget)
    stores = [store for store in (track.long_term, track.pending) if len(store)]
    if not stores or not budget:
        return nothing_recalled()
    provenance = Provenance.cat([store.provenance for store in stores])
    unit, num_units = _units(provenance, config, sources)
    if not num_units:
        return nothing_recalled()
    relevance = relevance_of_units(weights.scorers[config.recall], track, stores, normed, unit, num_units)
    sizes = torch.bincount(unit[unit >= 0], minlength=num_units)
    chosen = choose_units(relevance, sizes, budget)
    index = torch.isin(unit, chosen).nonzero().flatten()
    # Oldest first; ties in age in descending index order, as the published order has them.
    index = index[provenance.ages[index].argsort(stable=True)].flip(0)
    return Recalled(index, provenance.take(index), relevance[unit[index]])


def rank_sources(
    weights: Weights,
    state: MemoryState,
    config: MemoryConfig,
    query: Sequence[int],
    sources: Int[Tensor, " n"] | None = None,
) -> list[tuple[int, float]]:
    """Every source in any pool with the relevance of its best chunk, most relevant first.

    Args:
        weights: The model.
        state: What is remembered.
        config: How it is laid out.
        query: Tokens of what is searched for.
        sources: Rows of the table of sources that count; None for all.
    """
    # In the token layout every layer recalls for itself: ask the one that would be asked for all.
    track = state.tracks[0] if len(state.tracks) == 1 else state.tracks[weights.recall_layer]
    pools = [pool for pool in (track.long_term, track.pending, track.short_term) if len(pool)]
    if not pools:
        return []
    ids = torch.tensor(list(query[-QUERY_TOKENS:]))
    normed = weights.norm(track.recall_layer, weights.backbone.plain_states(ids, track.recall_layer)[-1], reading=False)
    provenance = Provenance.cat([pool.provenance for pool in pools])
    allowed = provenance.sources >= 0
    if sources is not None:
        allowed &= torch.isin(provenance.sources, sources)
    known, inside = provenance.chunks[allowed].unique(return_inverse=True)
    if not len(known):
        return []
    unit = torch.full((len(provenance),), -1, dtype=torch.int64)
    unit[allowed] = inside
    relevance = relevance_of_units(weights.scorers[config.recall], track, pools, normed, unit, len(known))
    best = torch.full((len(state.sources),), float("-inf"), dtype=relevance.dtype)
    best.scatter_reduce_(0, provenance.sources[allowed], relevance[inside], reduce="amax")
    order = best.argsort(descending=True, stable=True)
    return [(n, float(best[n])) for n in order.tolist() if best[n] > float("-inf")]


def relevance_of_units(
    scorer: Scorer,
    track: Track,
    pools: Sequence[LongTermMemory | Tokens],
    normed: Float[Tensor, "S D"],
    unit: Int[Tensor, " T"],
    num_units: int,
) -> Float[Tensor, " U"]:
    """Relevance of every unit of some pools, on the CPU; ``unit`` is -1 for tokens that do not count."""
    queries = scorer.queries(track.recall_layer, normed).cpu().float()
    keys: list[Tensor] = []
    units: list[Tensor] = []
    for pool, rows in zip(pools, unit.split([len(pool) for pool in pools]), strict=True):
        if isinstance(pool, LongTermMemory):
            units += pool.unit_rows(rows)
            keys += [segment.retrieval_keys for segment in pool.segments]
        else:
            units.append(rows)
            keys.append(pool.content.retrieval_keys.cpu())
    return scorer.relevance(queries, keys, units, num_units)


def _units(
    provenance: Provenance, config: MemoryConfig, sources: Int[Tensor, " n"] | None
) -> tuple[Int[Tensor, " T"], int]:
    """The unit of recall each token belongs to: its chunk, or itself; -1 where it may not be recalled."""
    if sources is None:
        if config.layout == "token":
            return torch.arange(len(provenance)), len(provenance)
        known, unit = provenance.chunks.unique(return_inverse=True)
        return unit, len(known)
    allowed = torch.isin(provenance.sources, sources)
    unit = torch.full((len(provenance),), -1, dtype=torch.int64)
    inside, count = _units(provenance.take(allowed.nonzero().flatten()), config, None)
    unit[allowed] = inside
    return unit, count


def _repeated(track: Track, budget: int) -> Recalled:
    """Published fallback: indices 0 … n-1 over and over, the last R of them; pending is ignored."""
    count = len(track.long_term)
    if not count or not budget:
        return nothing_recalled()
    repeats = -(-budget // count)
    index = torch.arange(count).repeat(repeats)[-budget:]
    index = index[track.long_term.provenance.ages[index].argsort(stable=True)].flip(0)
    return Recalled(index, track.long_term.provenance.take(index), torch.zeros(budget))
