"""Read: a prompt is processed with memory in front of it, layer by layer.

The prefix of a layer is bos, then recalled tokens and short-term memory, in the order that recall gives,
as rotated keys and values in a transformers cache.
A read changes no memory. Several memories are read in one batch, each row with a prefix of its own.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple
from weakref import finalize

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mplus.backbone.attention import KeysValues
from mplus.backbone.few_rows import answering
from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.memory.state import MemoryState, Track
from mplus.memory.together import Member
from mplus.read.cache_layer import Prefix, PrefixLayer, write_prefixes
from mplus.read.decode import Reading, Watch, through_model
from mplus.read.prefix import TrackPrefix
from mplus.read.spare_prefixes import READ_BLOCK_TOKENS, SPARE_PREFIXES, SparePrefix
from mplus.read.warming import warmed_state
from mplus.recall.choose import Recalled, nothing_recalled, recall
from mplus.recall.scorer import Question
from mplus.recall.texts import Piece
from mplus.weights import Weights


@dataclass(frozen=True)
class ReadRequest:
    """One row of a read: a memory's state and the prompt that is read with it.

    Attributes:
        state: The memory's state.
        config: The memory's layout.
        input_ids: Token ids of the prompt.
        query: First and last-plus-one row of the question within the prompt.
        sources: Rows of the table of sources that may be read, in any pool; None for all.
        vector: The question's vector, if the user's embedder scores the memory's chunks.
        members: The memories that ``state`` was put together from.
        told: What was recalled as text and is in the prompt; ``state`` then has empty pools. None: recall happens when
            the prompt is read.
        pieces: The same as pieces of text, the most relevant first.
        asked_ids: The prompt without what memory put into it; None: ``input_ids``.
        otherwise: What is read instead where the answer from memory would decline; None: it declines.
        forgettings: How often something had been forgotten when this was asked for.
    """

    state: MemoryState
    config: MemoryConfig
    input_ids: Sequence[int]
    query: tuple[int, int]
    sources: Int[Tensor, " n"] | None = None
    vector: Float[Tensor, " E"] | None = None
    members: tuple[Member, ...] = ()
    told: Recalled | None = None
    pieces: tuple[Piece, ...] = ()
    asked_ids: Sequence[int] | None = None
    otherwise: "ReadRequest | None" = None
    forgettings: int = field(default_factory=lambda: SPARE_PREFIXES.forgettings, compare=False)


def has_prefix(request: ReadRequest) -> bool:
    """Whether the prompt has a prefix.

    An empty memory has no prefix, and is read by the plain backbone without the read adapter: it is
    exactly the backbone. (A write adapter's model was trained with its bos vector always there.)
    """
    return request.config.encoding == "adapter" or any(map(len, request.state.tracks))


def kind_of(weights: Weights, request: ReadRequest) -> tuple[bool, bool]:
    """Whether a read has a prefix, and whether an adapter for text reads it; reads of one kind share a batch."""
    return has_prefix(request), weights.text_backbone is not None and request.told is not None


class Prefill(NamedTuple):
    """The first step of a read."""

    logits: Float[Tensor, "B S V"]
    """Logits of the last token of each prompt; with ``all_logits``, of all tokens (prompts padded on the right)."""
    reading: Reading


def prefill(
    weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool = False, watch: Watch | None = None
) -> Prefill:
    """Read prompts through their memories up to the first answer token.

    Args:
        weights: The model.
        requests: One per row.
        all_logits: Compute logits of every prompt token, not only of the last.
        watch: Shown the states of the prompts' tokens at the input of each layer.
    """
    steps = prefill_steps(weights, requests, all_logits=all_logits, watch=watch)
    with torch.inference_mode():
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value


@torch.inference_mode()
def prefill_steps(
    weights: Weights,
    requests: Sequence[ReadRequest],
    *,
    all_logits: bool = False,
    watch: Watch | None = None,
    beside: Reading | None = None,
) -> Generator[None, None, Prefill]:
    """``prefill`` as a generator that yields after every block of a long prompt, so that others get their turn.

    Args:
        weights: The model.
        requests: One per row.
        all_logits: As of ``prefill``.
        watch: As of ``prefill``.
        beside: A running batch that the rows join next. Several rows, which are read in one step, are read into free
            rows of its buffers.
    """
    ((is_prefixed, is_adapted),) = {kind_of(weights, request) for request in requests}
    weights = weights.for_text if is_adapted else weights
    backbone = weights.backbone
    requests = [replace(request, state=warmed_state(weights, request.state)) for request in requests]
    modules = backbone.read_layers if is_prefixed or is_adapted else backbone.write_layers
    prompts = pad_sequence([torch.tensor(list(request.input_ids)) for request in requests], batch_first=True)
    longest = prompts.shape[1]
    assert beside is None or beside.modules is modules, "reads of different kinds are read apart"
    running = beside.layers if beside is not None and len(requests) > 1 else []
    prefixes = _prefixes(weights, requests, modules, running, all_logits=all_logits)
    layers: list[PrefixLayer] = []
    recurrent = backbone.new_cache()
    hidden: list[Tensor] = []
    head = weights.decline_head
    seen = None if head is None else LastInput(head.layer, watch)
    for start in range(prefixes.kept_tokens, longest, prefixes.block):
        if hidden:
            yield
        block = prompts[:, start : start + prefixes.block]
        hidden.append(through_model(backbone, modules, layers, block, prefixes.layers, recurrent, seen or watch))
    sizes = [len(request.input_ids) for request in requests]
    for layer in layers:
        # Prompts are padded on the right to the longest one.
        layer.lengths = [length - longest + size for length, size in zip(layer.lengths, sizes, strict=True)]
    reading = Reading(weights, modules, layers, prefixes.recalled, recurrent)
    if (left := prefixes.left_by(layers)) is not None:
        reading.when_done = finalize(reading, SPARE_PREFIXES.keep, left, requests[0].forgettings)
        reading.when_done.atexit = False
    if head is not None and seen is not None:
        states = backbone.normed(modules, head.layer, last_of(seen.states, sizes))
        reading.decline_odds = head.log_odds(states)
    asked = torch.cat(hidden, dim=1) if all_logits else last_of(hidden[-1], sizes)[:, None]
    with answering():
        return Prefill(backbone.logits(asked), reading)


class LastInput:
    """Keeps the states at the input of one layer in the last block of a prompt."""

    def __init__(self, layer: int, other: Watch | None = None) -> None:
        self._layer, self._other = layer, other
        self.states = torch.empty(0)

    def __call__(self, layer: int, states: Tensor) -> None:
        """Take what a layer is given."""
        if layer == self._layer:
            self.states = states
        if self._other is not None:
            self._other(layer, states)


def last_of(states: Float[Tensor, "B S D"], sizes: Sequence[int]) -> Float[Tensor, "B D"]:
    """States of the last token of prompts of such sizes, padded on the right, from those of the last block."""
    longest = max(sizes)
    if min(sizes) == longest:
        return states[:, -1]
    last = torch.tensor(sizes, device=states.device) - longest - 1
    return states[torch.arange(len(sizes), device=last.device), last]


# --- prefixes -----------------------------------------------------------------------------------------


def _prefixes(
    weights: Weights,
    requests: Sequence[ReadRequest],
    modules: nn.ModuleList,
    running: Sequence[PrefixLayer],
    *,
    all_logits: bool,
) -> "_NewPrefixes | _SamePrefix":
    """New prefixes; for a single prompt, the kept prefix of an earlier read of the same memory if there is one."""
    known = [_known_before_reading(weights, request) for request in requests]
    request, only = requests[0], known[0]
    if not _may_share(weights, requests):
        return _NewPrefixes(weights, requests, modules, known, running=running)
    chosen = only.chosen if only is not None else None
    spare = SPARE_PREFIXES.take(request.state.tracks[0].short_term, chosen, request.input_ids)
    if spare is None or only is None or not spare.is_of(chosen):
        return _NewPrefixes(weights, requests, modules, known, spare)
    kept_tokens = 0 if all_logits else spare.kept_tokens(chosen, request.input_ids)
    return _SamePrefix(request, only.recalled, spare, kept_tokens)


def _may_share(weights: Weights, requests: Sequence[ReadRequest]) -> bool:
    """Whether a read may reuse kept prefixes and keep its own: only a single prompt that may read all sources."""
    return len(requests) == 1 and requests[0].sources is None and not weights.backbone.whole_prompts


class _NewPrefixes:
    """Prefixes of a batch, made layer by layer.

    The recalled tokens are known in advance for all layers (chunk layout), or each track recalls from the prompt's
    states at its first layer (token layout).
    """

    kept_tokens = 0

    def __init__(
        self,
        weights: Weights,
        requests: Sequence[ReadRequest],
        modules: nn.ModuleList,
        known: Sequence[TrackPrefix | None],
        spare: SparePrefix | None = None,
        running: Sequence[PrefixLayer] = (),
    ) -> None:
        """Prepare to read.

        Args:
            weights: The model.
            requests: One per row.
            modules: The decoder layers that read.
            known: For each row, its prefix if that is known before reading.
            spare: A kept prefix of the same memory, overwritten where it differs.
            running: The layers of a batch in whose buffers there may be room.
        """
        self._running = running
        self._weights, self._requests, self._modules, self._known = weights, requests, modules, known
        self._spare, self._standing = spare, list[int]()  # parts that are in place in the spare prefix already
        self._longest = max(len(request.input_ids) for request in requests)
        # A track that recalls for itself needs the whole question at once.
        whole = len(requests) > 1 or known[0] is None or weights.backbone.whole_prompts
        self.block = self._longest if whole else READ_BLOCK_TOKENS
        self._tracks: list[list[TrackPrefix]] = [[] for _ in requests]
        """Prefixes of the tracks so far, for each row."""
        backbone = weights.backbone
        self._rotation = cache(backbone.prefix_rotation)
        self._parts: dict[int, tuple[tuple[int, ...], Prefix]] = {}
        """For each row, the prefix of a stretch of layers that is not written yet."""

    @property
    def recalled(self) -> list[tuple[Recalled, ...]]:
        """For each row, the result of recall of each track."""
        return [tuple(track.recalled for track in tracks) for tracks in self._tracks]

    def layers(self, index: int, hidden: Float[Tensor, "B S D"]) -> list[PrefixLayer]:
        """Filled cache layers from layer ``index`` on, given the prompts' states at its input.

        They are those of one stretch, or only the first if rows divide their layers differently.
        """
        backbone = self._weights.backbone
        tracks = [self._track(row, index, states) for row, states in enumerate(hidden)]
        common = {track.stretch_of(index) for track in tracks}
        layers = next(iter(common)) if len(common) == 1 else (index,)
        prefixes = [self._prefix(row, track, layers) for row, track in enumerate(tracks)]
        lengths = [sum(part.keys.shape[1] for part in prefix) for prefix in prefixes]
        made, standing = self._left(layers, lengths), self._standing
        if made is None:
            beside = [self._running[layer] for layer in layers] if self._running else []
            made = PrefixLayer.empty(backbone, layers, lengths, self._longest, hidden.device, beside)
            standing = []
        rotation = self._rotation(backbone.rotary_layer(index), max(lengths), hidden.device)
        write_prefixes(made, prefixes, rotation, standing)
        return made

    def _prefix(self, row: int, track: TrackPrefix, layers: Sequence[int]) -> Prefix:
        """The prefix of a row in some layers of one stretch."""
        if not has_prefix(self._requests[row]):
            return []
        stretch = track.stretch_of(layers[0])
        if self._parts.get(row, ((), ()))[0] != stretch:
            self._parts[row] = (stretch, track.parts(stretch))
        parts, first = self._parts[row][1], stretch.index(layers[0])
        if layers[-1] == stretch[-1]:
            del self._parts[row]
        if len(layers) == len(stretch):
            return parts
        here = slice(first, first + len(layers))
        return [KeysValues(part.keys[here], part.values[here]) for part in parts]

    def _left(self, layers: Sequence[int], lengths: list[int]) -> list[PrefixLayer] | None:
        """The layers of the spare prefix if the new prefix fits into them, else None."""
        if self._spare is None:
            return None
        track = self._tracks[0][-1]
        if layers[0] == track.track.layers[0]:
            self._standing = self._spare.standing(layers[0], track.order)
        left = [self._spare.layer(index) for index in layers]
        return left if all(layer.lengths == lengths for layer in left) else None

    def _track(self, row: int, index: int, hidden: Float[Tensor, "S D"]) -> TrackPrefix:
        """The prefix of the track that a layer belongs to; a track starts after the last layer of the one before."""
        request, begun = self._requests[row], self._tracks[row]
        if not begun or index not in begun[-1].track.layers:
            known = self._known[row]
            if known is None:
                track, (begin, end) = request.state.tracks[len(begun)], request.query
                question = Question(index, self._weights.backbone.normed(self._modules, index, hidden[begin:end]))
                known = _recalling(self._weights, request, track, question)
            begun.append(known)
        return begun[-1]

    def left_by(self, layers: Sequence[PrefixLayer]) -> SparePrefix | None:
        """The buffers of this read, now with prefix and prompt, for a later read to reuse."""
        if not _may_share(self._weights, self._requests):
            return None
        (request,), (tracks,), (known,) = self._requests, self._tracks, self._known
        orders = [track.chosen.order for track in tracks for _ in track.track.layers]
        pool, chosen = request.state.tracks[0].short_term, None if known is None else known.chosen
        return SparePrefix.of(pool, chosen, request.input_ids, orders, layers)


class _SamePrefix:
    """The kept prefix of an earlier read that recalled the same tokens; it is used unchanged."""

    block = READ_BLOCK_TOKENS

    def __init__(self, request: ReadRequest, recalled: Recalled, spare: SparePrefix, kept_tokens: int) -> None:
        self._request, self._spare = request, spare
        self.recalled = [(recalled,)]
        self.kept_tokens = kept_tokens
        """Number of prompt tokens that the earlier read has processed already."""

    def layers(self, index: int, hidden: Float[Tensor, "B S D"]) -> list[PrefixLayer]:
        """The cache layers of the earlier read."""
        return [self._spare.layer(number, self.kept_tokens) for number in range(index, len(self._spare.buffers))]

    def left_by(self, layers: Sequence[PrefixLayer]) -> SparePrefix:
        """The same prefix followed by this prompt."""
        pool, spare = self._request.state.tracks[0].short_term, self._spare
        return SparePrefix.of(pool, spare.chosen, self._request.input_ids, spare.orders, layers)


# --- recall ---------------------------------------------------------------------------------------------


def _known_before_reading(weights: Weights, request: ReadRequest) -> TrackPrefix | None:
    """One prefix for all layers, recalled with the question read alone; None if each layer recalls for itself."""
    if not layout_of(request.config).chooses_once:
        return None
    track = request.state.tracks[0]
    if not len(track) or not request.config.recalled_tokens:
        return TrackPrefix(weights, track, nothing_recalled(), request.sources)
    question = weights.question(request.input_ids[slice(*request.query)], track.recall_layer, request.vector)
    return _recalling(weights, request, track, question)


def _recalling(weights: Weights, request: ReadRequest, track: Track, question: Question) -> TrackPrefix:
    """Recall with a question, and the prefix of the track with the result."""
    recalled = recall(weights.scorers[request.config.recall], track, request.config, question, request.sources)
    return TrackPrefix(weights, track, recalled, request.sources)
