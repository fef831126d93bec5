"""Turns a memory and a prompt into a row for an engine, and checks that it fits the model's window."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.confidence import Calibration
from mplus.config import MemoryConfig
from mplus.errors import MemoryMismatchError, PromptTooLongError, UnknownNameError
from mplus.generation.constrain import ConstrainedDecoding, Constraint
from mplus.generation.prompt import Prompt, encode_prompt
from mplus.generation.row import Row
from mplus.generation.sampling import SamplingOptions, SamplingParams
from mplus.generation.told import encode_told, text_of
from mplus.generation.where import Where, allowed_sources
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState, Tail, Track
from mplus.read.prefill import ReadRequest
from mplus.recall.texts import MOST_PIECES, Piece, Wanted, as_recalled, recall_pieces
from mplus.weights import Weights
from mplus.write.absorb import write_chunks
from mplus.write.encode import Chunk

PromptLike = str | Sequence[Mapping[str, Any]] | Prompt
Tools = Sequence[Mapping[str, Any]]
ANSWER_ROOM = 128
"""Recalled text leaves at least so many positions of the window to the answer, or an eighth of a small window."""


class GenerationOptions(SamplingOptions, total=False):
    """Keyword arguments of ``MPlus.generate``; None or a missing argument stands for the default."""

    cancelled: threading.Event | None
    processors: Sequence[Any] | None
    tools: Tools | None
    constraint: Constraint | None
    where: Where | None


class Requests:
    """Turns memories and prompts into rows that an engine can answer."""

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any,
        *,
        name: str = "",
        calibration: Calibration | None = None,
        prefers_text: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare to make rows.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            name: Its name, for messages.
            calibration: Turns the evidence for an answer into a probability.
            prefers_text: Whether ``read="auto"`` stands for "text"; asked when a memory is first read.
        """
        self._weights, self._tokenizer, self._name, self._calibration = weights, tokenizer, name, calibration
        self._prefers_text = prefers_text
        self._states: WeakKeyDictionary[Memory, tuple[MemoryState, MemoryState]] = WeakKeyDictionary()
        self._empty: WeakKeyDictionary[Memory, tuple[Track, ...]] = WeakKeyDictionary()
        """For each memory that is read as text, empty pools of its own: buffers of reads are kept by pool."""

    def row(self, memory: Memory, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Row:
        """The row of one prompt; takes the arguments of ``MPlus.generate``.

        Raises:
            ValueError: A setting is unknown or out of range, or the prompt is malformed.
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: The memory belongs to another model.
        """
        UnknownNameError.check(options, GenerationOptions.__annotations__, of="An answer")
        params = SamplingParams.model_validate({n: v for n, v in options.items() if n in SamplingParams.model_fields})
        constraint, processors = options.get("constraint"), options.get("processors") or ()
        if constraint is not None and params.abstain_below is not None:
            raise ValueError(
                f"abstain_below={params.abstain_below} beside a constraint: the reply would not have the form that was "
                "asked for. Leave one of them out, and look at Generation.confidence."
            )
        request = self.read_request(memory, prompt, tools=options.get("tools"), where=options.get("where"))
        room = self._room(request.state, request.config) - len(request.input_ids)
        if params.max_new_tokens > room:
            params = params.model_copy(update={"max_new_tokens": max(room, 1)})
        if constraint is not None:
            processors = (*processors, ConstrainedDecoding(constraint, self._tokenizer, self.stop_token_ids()))
        return Row(
            memory,
            request,
            params,
            cancelled_by=options.get("cancelled"),
            processors=tuple(processors),
            calibration=self._calibration,
        )

    def read_request(
        self, memory: Memory, prompt: PromptLike, *, tools: Tools | None, where: Where | None
    ) -> ReadRequest:
        """The memory's present state and the encoded prompt.

        Raises:
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: The memory belongs to another model.
        """
        self.check_memory(memory)
        encoded = self.encoded(prompt, tools)
        if not encoded.input_ids:
            raise ValueError("prompt='': expected text or chat messages. Pass at least one token.")
        state = self.present_state(memory)
        if self._reads_text(state, memory.config):
            return self._text_request(memory, state, prompt, encoded, tools, allowed_sources(state, where))
        ids, (begin, end) = list(encoded.input_ids), encoded.query
        bos = getattr(self._tokenizer, "bos_token_id", None)
        remembers = any(map(len, state.tracks))
        if remembers and len(ids) > 1 and bos is not None and ids[0] == bos and ids.count(bos) == 1:
            # The prefix starts with the bos state already. A chat template that begins every turn with
            # its bos token has more than one of them and keeps them all.
            ids, begin, end = ids[1:], max(begin - 1, 0), end - 1
        allowed = allowed_sources(state, where)
        readable = None if allowed is None else set(allowed.tolist())
        tail = zip(state.tail.input_ids, state.tail.sources, strict=True)
        waiting = [i for i, source in tail if readable is None or source in readable]
        ids, begin, end = [*waiting, *ids], begin + len(waiting), end + len(waiting)
        self._check_fits(len(ids), state, memory.config)
        return ReadRequest(state, memory.config, ids, (begin, end), allowed)

    def _reads_text(self, state: MemoryState, config: MemoryConfig) -> bool:
        """Whether a memory is read as text. An empty one never is: its answers are the backbone's."""
        if config.read == "latent" or not config.has_texts or state.ledger is None or not any(map(len, state.tracks)):
            return False
        return config.read == "text" or self._prefers_text()

    def _text_request(
        self,
        memory: Memory,
        state: MemoryState,
        prompt: PromptLike,
        encoded: Prompt,
        tools: Tools | None,
        allowed: Int[Tensor, " n"] | None,
    ) -> ReadRequest:
        """A read of the plain backbone, with the text that answers in the prompt: as much as fits, the best first."""
        config, asked = memory.config, len(encoded.input_ids)
        self._check_fits(asked, state, config)
        most = self._weights.backbone.room(config.prefix_of(0)) - min(ANSWER_ROOM, self._weights.backbone.window // 8)
        pieces = self._pieces(state, config, encoded, most - asked, allowed)
        whole = encoded
        while pieces:
            whole = encode_told(self._tokenizer, prompt, text_of(self._tokenizer, pieces), tools)
            if len(whole.input_ids) <= most:
                break
            whole = encoded
            pieces.pop()
        if memory not in self._empty:
            self._empty[memory] = self._weights.empty_state(config).tracks
        bare = replace(state, tracks=self._empty[memory])
        return ReadRequest(bare, config, whole.input_ids, whole.query, told=as_recalled(pieces))

    @torch.inference_mode()
    def _pieces(
        self, state: MemoryState, config: MemoryConfig, asked: Prompt, room: int, allowed: Int[Tensor, " n"] | None
    ) -> list[Piece]:
        """What is recalled as text for a prompt, best first."""
        weights = self._weights
        question = weights.question(asked.input_ids[slice(*asked.query)], state.tracks[0].recall_layer)
        wanted = Wanted(min(config.recalled_tokens or config.short_term_tokens, room), MOST_PIECES)
        return recall_pieces(weights.scorers[config.recall], state, config, question, weights.words_of, wanted, allowed)

    def _check_fits(self, num_tokens: int, state: MemoryState, config: MemoryConfig) -> None:
        room = self._room(state, config)
        if num_tokens >= room:
            raise PromptTooLongError(
                f"The prompt has {num_tokens:,} tokens, but {room - 1:,} fit beside this memory in the model's window "
                f"of {self._weights.backbone.window:,}. Write the long part into memory, or shorten the prompt."
            )

    def check_memory(self, memory: Memory) -> None:
        """Check that a memory belongs to this model.

        Raises:
            MemoryMismatchError: The memory belongs to another model.
        """
        own = self._weights.fingerprints[memory.config.recall]
        if memory.model_fingerprint != own:
            raise MemoryMismatchError(
                f"This memory was made by a model with fingerprint {memory.model_fingerprint}, not by "
                f"{self._name or 'this one'} ({own}). Latent memory cannot move between "
                "weights: write its texts again with new_memory()."
            )

    def encoded(self, prompt: PromptLike, tools: Tools | None) -> Prompt:
        """A prompt as token ids, including those of the chat template."""
        return prompt if isinstance(prompt, Prompt) else encode_prompt(self._tokenizer, prompt, tools=tools)

    def present_state(self, memory: Memory) -> MemoryState:
        """A memory's state for a read: the waiting tail is written into it first.

        A write adapter was not trained on such short text; with one the tail is read as text instead.
        """
        state = memory.state
        if not state.tail.input_ids or memory.config.encoding == "adapter":
            return state
        known = self._states.get(memory)
        if known is not None and known[0] is state:
            return known[1]
        last = state.context.sources[-1:].tolist() if state.context is not None else []
        chunk = Chunk(
            list(state.tail.input_ids), list(state.tail.sources), last == [state.tail.sources[0]], state.tail.since
        )
        whole, _ = write_chunks(self._weights, memory, replace(state, tail=Tail()), [chunk])
        self._states[memory] = (state, whole)
        return whole

    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found: set[int] = set()
        backbone = self._weights.backbone
        for holder in (self._tokenizer, getattr(backbone.model, "generation_config", None), backbone.config):
            token = getattr(holder, "eos_token_id", None)
            found |= set(token) if isinstance(token, list) else {token} if isinstance(token, int) else set()
        return frozenset(found)

    def _room(self, state: MemoryState, config: MemoryConfig) -> int:
        """Number of positions left for prompt and answer after the longest prefix that this memory can have."""
        return self._weights.backbone.room(config.prefix_of(self._most_read(state, config)))

    def _most_read(self, state: MemoryState, config: MemoryConfig) -> int:
        """Most memory tokens that one read of this memory can have in its prefix, without repeated ones."""
        return max(
            len(track.short_term) + min(len(track.pending) + len(track.long_term), config.recalled_tokens)
            for track in state.tracks
        )
