"""Turns a memory and a prompt into a row for an engine, and checks that it fits the model's window."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack
from weakref import WeakKeyDictionary, ref

from mplus.confidence import Calibration
from mplus.config import MemoryConfig
from mplus.errors import MemoryMismatchError, PromptTooLongError, UnknownNameError
from mplus.generation.constrain import ConstrainedDecoding, Constraint
from mplus.generation.prompt import Prompt, encode_prompt
from mplus.generation.row import Row
from mplus.generation.sampling import SamplingOptions, SamplingParams
from mplus.generation.where import WhereLike, allowed_sources
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState, Tail
from mplus.memory.together import Together, alone, together
from mplus.read.prefill import ReadRequest
from mplus.weights import Weights
from mplus.write.absorb import write_chunks
from mplus.write.encode import Chunk

PromptLike = str | Sequence[Mapping[str, Any]] | Prompt
Tools = Sequence[Mapping[str, Any]]
MemoryLike = Memory | Sequence[Memory]
"""One memory, or several that are read together."""
JOINED_READS = 16
"""Most memories put together that are kept for the next read of the same states."""


class GenerationOptions(SamplingOptions, total=False):
    """Keyword arguments of ``MPlus.generate``; None or a missing argument stands for the default."""

    cancelled: threading.Event | None
    processors: Sequence[Any] | None
    tools: Tools | None
    constraint: Constraint | None
    where: WhereLike


class Requests:
    """Turns memories and prompts into rows that an engine can answer."""

    def __init__(
        self, weights: Weights, tokenizer: Any, *, name: str = "", calibration: Calibration | None = None
    ) -> None:
        self._weights, self._tokenizer, self._name, self._calibration = weights, tokenizer, name, calibration
        self._states: WeakKeyDictionary[Memory, tuple[MemoryState, MemoryState]] = WeakKeyDictionary()
        self._joined = JoinedStates()

    def row(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Row:
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
        room = self.room(request.state, request.config) - len(request.input_ids)
        if params.max_new_tokens > room:
            params = params.model_copy(update={"max_new_tokens": max(room, 1)})
        if constraint is not None:
            processors = (*processors, ConstrainedDecoding(constraint, self._tokenizer, self.stop_token_ids()))
        return Row(
            memories_of(memory),
            request,
            params,
            cancelled_by=options.get("cancelled"),
            processors=tuple(processors),
            calibration=self._calibration,
        )

    def read_request(
        self, memory: MemoryLike, prompt: PromptLike, *, tools: Tools | None, where: WhereLike
    ) -> ReadRequest:
        """The present state of a memory, or of several together, and the encoded prompt.

        Raises:
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: A memory belongs to another model, or memories of different layouts are given.
        """
        config = memories_of(memory)[0].config
        read = self.present(memory)
        state, encoded = read.state, self.encoded(prompt, tools)
        ids, (begin, end) = list(encoded.input_ids), encoded.query
        if not ids:
            raise ValueError("prompt='': expected text or chat messages. Pass at least one token.")
        bos = getattr(self._tokenizer, "bos_token_id", None)
        remembers = any(map(len, state.tracks))
        if remembers and len(ids) > 1 and bos is not None and ids[0] == bos and ids.count(bos) == 1:
            # The prefix starts with the bos state already. A chat template that begins every turn with
            # its bos token has more than one of them and keeps them all.
            ids, begin, end = ids[1:], max(begin - 1, 0), end - 1
        allowed = allowed_sources(read, where)
        readable = None if allowed is None else set(allowed.tolist())
        tail = zip(state.tail.input_ids, state.tail.sources, strict=True)
        waiting = [i for i, source in tail if readable is None or source in readable]
        ids, begin, end = [*waiting, *ids], begin + len(waiting), end + len(waiting)
        room = self.room(state, config)
        if len(ids) >= room:
            raise PromptTooLongError(
                f"The prompt has {len(ids):,} tokens, but {room - 1:,} fit beside this memory in the model's window "
                f"of {self._weights.backbone.window:,}. Write the long part into memory, or shorten the prompt."
            )
        return ReadRequest(state, config, ids, (begin, end), allowed, read.members)

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

    def present(self, memory: MemoryLike) -> Together:
        """What a read of a memory, or of several together, sees now.

        Raises:
            MemoryMismatchError: A memory belongs to another model, or memories of different layouts are given.
        """
        memories = memories_of(memory)
        for one in memories:
            self.check_memory(one)
        if len(memories) == 1:
            return alone(self.present_state(memories[0]))
        check_alike(memories)
        states = [one.state for one in memories]
        if (known := self._joined.get(states)) is None:
            present = [self.present_state(one) for one in memories]
            config = memories[0].config
            for track in present[-1].tracks:  # its index is made here, where it is kept for other reads
                self._weights.scorers[config.recall].prepare(track.long_term, config)
            known = together(present)
            self._joined.put(states, known)
        return known

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

    def room(self, state: MemoryState, config: MemoryConfig) -> int:
        """Number of positions left for prompt and answer after the longest prefix that this memory can have."""
        stored = max(
            len(track.short_term) + min(len(track.pending) + len(track.long_term), config.recalled_tokens)
            for track in state.tracks
        )
        return self._weights.backbone.room(config.prefix_of(stored))


def memories_of(memory: MemoryLike) -> tuple[Memory, ...]:
    """The memories of a read.

    Raises:
        ValueError: There is none, or one is given twice.
    """
    found = (memory,) if isinstance(memory, Memory) else tuple(memory)
    if not found or len(set(map(id, found))) < len(found):
        raise ValueError(f"memory={memory!r:.80}: expected a Memory, or several to read together, each once.")
    return found


def check_alike(memories: Sequence[Memory]) -> None:
    """Check that memories can be read together.

    Raises:
        MemoryMismatchError: Their layouts differ.
    """
    first = memories[0].config
    for name in ("layout", "encoding", "recall", "recall_layer"):
        for other in memories[1:]:
            if getattr(other.config, name) != getattr(first, name):
                raise MemoryMismatchError(
                    f"Memories with {name}={getattr(first, name)!r} and {getattr(other.config, name)!r} cannot be read "
                    "together. Make both with one MemoryConfig."
                )


class JoinedStates:
    """Memories that were put together, kept while all of their states are alive: nothing forgotten is held."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[list[ref[MemoryState]], Together]] = {}
        self._guard = threading.RLock()  # reentrant: garbage collection can drop a state while the lock is held

    def get(self, states: Sequence[MemoryState]) -> Together | None:
        """What was made of these states; None if nothing was."""
        with self._guard:
            found = self._known.get(tuple(map(id, states)))
            alive = found is not None and all(r() is s for r, s in zip(found[0], states, strict=True))
            return found[1] if found is not None and alive else None

    def put(self, states: Sequence[MemoryState], made: Together) -> None:
        """Keep what was made of these states; the oldest is dropped beyond ``JOINED_READS``."""
        key = tuple(map(id, states))

        def drop(_: object) -> None:
            with self._guard:
                self._known.pop(key, None)

        with self._guard:
            self._known.pop(key, None)
            self._known[key] = ([ref(state, drop) for state in states], made)
            while len(self._known) > JOINED_READS:
                self._known.pop(next(iter(self._known)))
