"""Turns a memory and a prompt into a row for an engine, and checks that it fits the model's window."""

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, Unpack
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.confidence import Calibration
from mplus.config import MemoryConfig
from mplus.encode import Chunk
from mplus.errors import EmbedderError, LedgerMissingError, MemoryMismatchError, PromptTooLongError, UnknownNameError
from mplus.forks import renewed_after_fork
from mplus.generation.constrain import ConstrainedDecoding, Constraint
from mplus.generation.declining import DeclineThreshold, declining_token
from mplus.generation.passages import PassageReader
from mplus.generation.prompt import Prompt, encode_prompt
from mplus.generation.row import Row
from mplus.generation.sampling import GateChoice, SamplingOptions, SamplingParams
from mplus.generation.told import encode_told, text_of
from mplus.generation.where import WhereLike, allowed_sources
from mplus.given import refused
from mplus.memory.memory import Memory, check_memory
from mplus.memory.periods import Period, within
from mplus.memory.state import MemoryState, Tail
from mplus.memory.together import Together, alone, together
from mplus.moments import Moment
from mplus.read.prefill import ReadRequest, has_prefix
from mplus.read.warming import warmed_state
from mplus.recall.choose import best_unit
from mplus.recall.embedder import Embedder
from mplus.recall.texts import MOST_PIECES, Piece, Wanted, as_recalled, recall_pieces
from mplus.weights import Weights
from mplus.write.absorb import write_chunks

PromptLike = str | Sequence[Mapping[str, Any]] | Prompt
Tools = Sequence[Mapping[str, Any]]
TemplateOptions = Mapping[str, Any] | None
"""Variables of the chat template, such as ``enable_thinking``."""
MemoryLike = Memory | Sequence[Memory]
"""One memory, or several that are read together."""
MEMORY_NEEDED, MEMORY_CERTAIN = 0.01, 0.5
"""Least probability that a question needs memory with which it is asked of memory, and with which memory may decline.
Between the two, what memory would decline is answered without it."""
JOINED_READS = 16
"""Most memories put together, and most periods of memories, that are kept for the next read of the same states."""
ANSWER_ROOM = 128
"""Recalled text leaves at least so many positions of the window to the answer, or an eighth of a small window."""


class GenerationOptions(SamplingOptions, total=False):
    """Keyword arguments of ``MPlus.generate``; None or a missing argument stands for the default."""

    cancelled: threading.Event | None
    processors: Sequence[Any] | None
    tools: Tools | None
    constraint: Constraint | None
    where: WhereLike
    since: Moment | None
    until: Moment | None
    as_of: Moment | None
    chat_template_kwargs: Mapping[str, Any] | None


def check_embedder(memory: Memory, embedder: Embedder | None) -> None:
    """Check that the chunks of a memory have vectors of this embedder.

    Raises:
        MemoryMismatchError: They have those of another, or there is no embedder.
    """
    recall, written_with = memory.config.recall, {track.vectors.embedder for track in memory.state.tracks} - {""}
    if embedder is not None and written_with <= {embedder.name}:
        return
    found = f"the model has {embedder.name!r}" if embedder else "the model has none"
    expected = f"vectors of the embedder {min(written_with)!r}" if written_with else "an embedder"
    raise MemoryMismatchError(
        f"This memory has recall={recall!r} and needs {expected}, but {found}. Pass it to from_pretrained(embedder=…) "
        f"or with_embedder(…); or recall without it: model.with_recall(memory, {memory.config.token_recall!r})."
    )


class Requests:
    """Turns memories and prompts into rows that an engine can answer."""

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any,
        *,
        name: str = "",
        calibration: Calibration | None = None,
        decline_threshold: float | None = None,
        prefers_text: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare to make rows.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            name: Its name, for messages.
            calibration: Turns the evidence for an answer into a probability.
            decline_threshold: Least probability with which an answer from memory declines, where a request has none.
            prefers_text: Whether ``read="auto"`` stands for "text"; asked when a memory is first read.
        """
        self._weights, self._tokenizer, self._name, self._calibration = weights, tokenizer, name, calibration
        self._decline_threshold = decline_threshold
        self._prefers_text = prefers_text
        self._passages = PassageReader(tokenizer, weights.words_of)
        self._states: WeakKeyDictionary[Memory, tuple[ref[MemoryState], MemoryState]] = WeakKeyDictionary()
        self._joined = MadeOfStates[Together]()
        self._periods = MadeOfStates[MemoryState]()

    def row(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Row:
        """The row of one prompt; takes the arguments of ``MPlus.generate``.

        Raises:
            ValueError: A setting is unknown or out of range, or the prompt is malformed.
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: The memory belongs to another model.
        """
        UnknownNameError.check(options, GenerationOptions.__annotations__, of="An answer")
        if self._tokenizer is None:
            raise self._without_tokenizer()
        params = SamplingParams.model_validate({n: v for n, v in options.items() if n in SamplingParams.model_fields})
        constraint, processors = options.get("constraint"), options.get("processors") or ()
        if constraint is not None and params.abstain_below is not None:
            raise ValueError(
                f"abstain_below={params.abstain_below} beside a constraint: the reply would not have the form that was "
                "asked for. Leave one of them out, and look at Generation.confidence."
            )
        request = self.read_request(
            memory,
            prompt,
            tools=options.get("tools"),
            where=options.get("where"),
            period=Period.of(options.get("since"), options.get("until"), options.get("as_of")),
            gate=params.gate,
            options=options.get("chat_template_kwargs"),
        )
        room = self.room(request.state, request.config) - len(request.input_ids)
        if params.max_new_tokens > room:
            params = params.model_copy(update={"max_new_tokens": max(room, 1)})
        if constraint is not None:
            processors = (*processors, ConstrainedDecoding(constraint, self._tokenizer, self.stop_token_ids()))
        elif not isinstance(prompt, str | Prompt) and has_prefix(request):
            least = self._decline_threshold if params.decline_threshold is None else params.decline_threshold
            processors = (*processors, DeclineThreshold(self._tokenizer, least)) if least else processors
        return Row(
            memories_of(memory),
            request,
            params,
            cancelled_by=options.get("cancelled"),
            processors=tuple(processors),
            declining=declining_token(self._tokenizer) if request.otherwise and constraint is None else None,
            calibration=self._calibration,
            reader=self._passages,
        )

    def read_request(
        self,
        memory: MemoryLike,
        prompt: PromptLike,
        *,
        tools: Tools | None,
        where: WhereLike,
        period: Period | None = None,
        gate: GateChoice = "always",
        options: TemplateOptions = None,
    ) -> ReadRequest:
        """The present state of a memory, or of several together, and the encoded prompt.

        Where the gate finds that memory is not needed, the state is that of an empty memory. Where it is in doubt, that
        is what is read if the answer from memory declines.

        Raises:
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: A memory belongs to another model, or memories of different layouts are given.
        """
        config = memories_of(memory)[0].config
        read = self.present(memory, period)
        state, encoded = read.state, self.encoded(prompt, tools, options)
        ids, (begin, end) = list(encoded.input_ids), encoded.query
        if not ids:
            raise ValueError("prompt='': expected text or chat messages. Pass at least one token.")
        allowed = allowed_sources(read, where)
        needed = 0.0 if gate == "never" else 1.0
        if gate == "auto" and not isinstance(prompt, str):
            needed = self._needed(read.state, config, encoded, allowed)
        plain = None
        if needed < MEMORY_CERTAIN:
            plain = ReadRequest(self._weights.empty_state(config), config, ids, (begin, end))
            if needed < MEMORY_NEEDED:
                return plain
        if self._reads_text(read, config):
            return self._text_request(read, config, prompt, encoded, tools, options, allowed)
        bos = getattr(self._tokenizer, "bos_token_id", None)
        remembers = any(map(len, state.tracks))
        if remembers and len(ids) > 1 and bos is not None and ids[0] == bos and ids.count(bos) == 1:
            # The prefix starts with the bos state already. A chat template that begins every turn with
            # its bos token has more than one of them and keeps them all.
            ids, begin, end = ids[1:], max(begin - 1, 0), end - 1
        readable = None if allowed is None else set(allowed.tolist())
        tail = zip(state.tail.input_ids, state.tail.sources, strict=True)
        waiting = [i for i, source in tail if readable is None or source in readable]
        ids, begin, end = [*waiting, *ids], begin + len(waiting), end + len(waiting)
        self._check_fits(len(ids), state, config)
        vector = self.vector_of(state, config, ids[begin:end]) if config.recalled_tokens else None
        return ReadRequest(state, config, ids, (begin, end), allowed, vector, read.members, otherwise=plain)

    def _reads_text(self, read: Together, config: MemoryConfig) -> bool:
        """Whether memory is read as text. Where it is empty it never is: its answers are the backbone's.

        Raises:
            LedgerMissingError: Text was asked for, and one of several memories has no ledger.
        """
        if config.read == "latent" or not config.has_texts or not any(map(len, read.state.tracks)):
            return False
        if config.read == "auto":
            return read.has_ledgers and self._prefers_text()
        if not read.has_ledgers:
            raise LedgerMissingError(
                'read="text": one of these memories was made with ledger=False, so the text of its chunks was not '
                'kept. Read it alone, or make the first memory with read="latent".'
            )
        return True

    def _text_request(
        self,
        read: Together,
        config: MemoryConfig,
        prompt: PromptLike,
        encoded: Prompt,
        tools: Tools | None,
        options: TemplateOptions,
        allowed: Int[Tensor, " n"] | None,
    ) -> ReadRequest:
        """A read of the plain backbone, with the text that answers in the prompt: as much as fits, the best first."""
        state, asked = read.state, len(encoded.input_ids)
        self._check_fits(asked, state, config)
        most = self._weights.backbone.room(config.prefix_of(0)) - min(ANSWER_ROOM, self._weights.backbone.window // 8)
        pieces = self._pieces(read, config, encoded, most - asked, allowed)
        whole = encoded
        while pieces:
            whole = encode_told(self._tokenizer, prompt, text_of(self._tokenizer, pieces), tools, options)
            if len(whole.input_ids) <= most:
                break
            whole = encoded
            pieces.pop()
        # Empty pools of its own: buffers of reads are kept by pool.
        bare = replace(state, tracks=self._weights.empty_state(config).tracks)
        told = as_recalled(pieces, state.tracks[0].short_term.provenance.chunks)
        return ReadRequest(
            bare, config, whole.input_ids, whole.query, members=read.members, told=told, pieces=tuple(pieces)
        )

    @torch.inference_mode()
    def _pieces(
        self, read: Together, config: MemoryConfig, asked: Prompt, room: int, allowed: Int[Tensor, " n"] | None
    ) -> list[Piece]:
        """What is recalled as text for a prompt, best first."""
        weights, state = self._weights, read.state
        ids = asked.input_ids[slice(*asked.query)]
        question = weights.question(ids, state.tracks[0].recall_layer, self.vector_of(state, config, ids))
        wanted = Wanted(min(config.recalled_tokens or config.short_term_tokens, room), MOST_PIECES)
        return recall_pieces(weights.scorers[config.recall], read, config, question, weights.words_of, wanted, allowed)

    def _check_fits(self, num_tokens: int, state: MemoryState, config: MemoryConfig) -> None:
        room = self.room(state, config)
        if num_tokens >= room:
            raise PromptTooLongError(
                f"The prompt has {num_tokens:,} tokens, but {room - 1:,} fit beside this memory in the model's window "
                f"of {self._weights.backbone.window:,}. Write the long part into memory, or shorten the prompt."
            )

    @torch.inference_mode()
    def _needed(
        self, state: MemoryState, config: MemoryConfig, prompt: Prompt, allowed: Int[Tensor, " n"] | None
    ) -> float:
        """Probability that a question needs memory, by the gate; 1 where there is none, or nothing to look at."""
        weights = self._weights
        if (
            weights.gate is None
            or config.recall != "late"
            or not config.keeps_chunks
            or not any(map(len, state.tracks))
        ):
            return 1.0
        track = state.tracks[0]
        question = weights.question(prompt.input_ids[slice(*prompt.query)], track.recall_layer)
        best = best_unit(weights.scorers["late"], track, config, question, allowed)
        return weights.gate.probability(question.normed, best)

    def check_memory(self, memory: Memory) -> None:
        """Check that a memory belongs to this model, and to its embedder.

        Raises:
            MemoryMismatchError: The memory belongs to another model, or its chunks have vectors of another embedder.
        """
        self.check_weights(memory)
        if memory.config.has_vectors:
            check_embedder(memory, self._weights.embedder)

    def check_weights(self, memory: Memory) -> None:
        """Check that a memory was made by these weights.

        Raises:
            MemoryMismatchError: It was made by others.
        """
        check_memory(memory)
        own = self._weights.fingerprints[memory.config.recall]
        if memory.model_fingerprint != own:
            raise MemoryMismatchError(
                f"This memory was made by a model with fingerprint {memory.model_fingerprint}, not by "
                f"{self._name or 'this one'} ({own}). Latent memory cannot move between "
                "weights: write its texts again with new_memory()."
            )

    def vector_of(
        self, state: MemoryState, config: MemoryConfig, question: Sequence[int]
    ) -> Float[Tensor, " E"] | None:
        """The vector of a question by the embedder; None if nothing in a memory is compared with it.

        Raises:
            EmbedderError: The embedder failed, or its vectors are not of the size of the memory's.
        """
        sizes = {size for track in state.tracks if (size := track.vectors.size) is not None}
        embedder = self._weights.embedder
        if not config.has_vectors or not sizes or embedder is None:
            return None
        vector = embedder.question(self._weights.text_of(question))
        if sizes != {len(vector)}:
            raise EmbedderError(
                f"The embedder {embedder.name!r} returned a vector of {len(vector)} numbers: expected {min(sizes)}, as "
                "this memory has from it. Use the embedder that the memory was written with."
            )
        return vector

    def encoded(self, prompt: PromptLike, tools: Tools | None, options: TemplateOptions = None) -> Prompt:
        """A prompt as token ids, including those of the chat template.

        Raises:
            ValueError: The prompt is text or messages, and the model has no tokenizer.
        """
        if isinstance(prompt, Prompt):
            return prompt
        if self._tokenizer is None:
            raise self._without_tokenizer()
        return encode_prompt(self._tokenizer, prompt, tools=tools, options=options)

    def _without_tokenizer(self) -> ValueError:
        return ValueError(
            f"{self._name or 'This model'} has no tokenizer, so it neither takes nor gives text. Put the files of the "
            "tokenizer into its folder (tokenizer.json, tokenizer_config.json) and load it again."
        )

    def present(self, memory: MemoryLike, period: Period | None = None) -> Together:
        """What a read of a memory, or of several together, sees now; only what was said in a period, if one is given.

        Raises:
            MemoryMismatchError: A memory belongs to another model, or memories of different layouts are given.
        """
        memories = memories_of(memory)
        for one in memories:
            self.check_memory(one)
        if len(memories) == 1:
            one = memories[0]
            state = (
                self.present_state(one) if period is None else warmed_state(self._weights, self._within(one, period))
            )
            return alone(state)
        check_alike(memories)
        states = [one.state if period is None else self._within(one, period) for one in memories]
        if (known := self._joined.get(states)) is None:
            if period is None:
                present = [self.present_state(one) for one in memories]
            else:
                present = [warmed_state(self._weights, state) for state in states]
            config = memories[0].config
            for track in present[-1].tracks:  # its index is made here, where it is kept for other reads
                self._weights.scorers[config.recall].prepare(track.long_term, config)
            known = together(present)
            self._joined.put(states, known)
        return known

    def _within(self, memory: Memory, period: Period) -> MemoryState:
        """A memory's state with what was said in a period, kept for the next read of the same state.

        Keys and values of what a memory keeps as token ids are still to be made.
        """
        state = self._with_tail(memory)
        if (known := self._periods.get([state], period)) is None:
            known = within(state, memory.config, period)
            if known is not state:  # else it would keep itself alive
                self._periods.put([state], known, period)
        return known

    def present_state(self, memory: Memory) -> MemoryState:
        """A memory's state for a read: the waiting tail is written into it first.

        A write adapter was not trained on such short text; with one the tail is read as text instead.
        """
        return warmed_state(self._weights, self._with_tail(memory))

    def _with_tail(self, memory: Memory) -> MemoryState:
        """A memory's state with the waiting tail written into it: the same object until the memory changes."""
        state = memory.state
        if not state.tail.input_ids or memory.config.encoding == "adapter":
            return state
        known = self._states.get(memory)
        if known is not None and known[0]() is state:
            return known[1]
        last = state.context.sources[-1:].tolist() if state.context is not None else []
        tail = state.tail
        source = state.sources[tail.sources[0]]
        continues = last == [tail.sources[0]] and source.comes_before(tail.time, is_dated=tail.is_dated)
        chunk = Chunk(list(tail.input_ids), list(tail.sources), continues, tail.since, latest=tail.latest)
        whole, _ = write_chunks(self._weights, memory, replace(state.beside_tail(), tail=Tail()), [chunk])
        self._states[memory] = (ref(state, _dropping(self._states, memory)), whole)
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
        return self._weights.backbone.room(config.prefix_of(self._most_read(state, config)))

    def _most_read(self, state: MemoryState, config: MemoryConfig) -> int:
        """Most memory tokens that one read of this memory can have in its prefix, without repeated ones."""
        return max(
            len(track.short_term) + min(len(track.pending) + len(track.long_term), config.recalled_tokens)
            for track in state.tracks
        )


def memories_of(memory: MemoryLike) -> tuple[Memory, ...]:
    """The memories of a read.

    Raises:
        ValueError: There is none, something else, or one is given twice.
    """
    if isinstance(memory, Memory):
        return (memory,)
    found = tuple(memory) if isinstance(memory, Iterable) else ()  # pyright: ignore[reportUnnecessaryIsInstance]
    is_each = all(isinstance(one, Memory) for one in found)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not found or not is_each or len(set(map(id, found))) < len(found):
        raise refused("memory", memory, "a Memory, or several to read together, each once")
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


def _dropping(known: "WeakKeyDictionary[Memory, tuple[ref[MemoryState], MemoryState]]", memory: Memory) -> Any:
    """What drops that which was made of a memory's earlier state as soon as nothing else holds that state."""
    of = ref(memory)

    def drop(gone: object) -> None:
        present = of()
        made = None if present is None else known.get(present)
        if present is not None and made is not None and made[0] is gone:
            known.pop(present, None)

    return drop


Made = TypeVar("Made")


class MadeOfStates(Generic[Made]):
    """What was made of states for reads, kept while all of these are alive: nothing forgotten is held."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, ...], tuple[list[ref[MemoryState]], Made]] = {}
        self.after_fork()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Begin with a lock of this process."""
        self._guard = threading.RLock()  # reentrant: garbage collection can drop a state while the lock is held

    def get(self, states: Sequence[MemoryState], how: Hashable = None) -> Made | None:
        """What was made of these states in some way; None if nothing was."""
        with self._guard:
            found = self._known.get((how, *map(id, states)))
            alive = found is not None and all(r() is s for r, s in zip(found[0], states, strict=True))
            return found[1] if found is not None and alive else None

    def put(self, states: Sequence[MemoryState], made: Made, how: Hashable = None) -> None:
        """Keep what was made of these states; the oldest is dropped beyond ``JOINED_READS``."""
        key = (how, *map(id, states))

        def drop(_: object) -> None:
            with self._guard:
                self._known.pop(key, None)

        with self._guard:
            self._known.pop(key, None)
            self._known[key] = ([ref(state, drop) for state in states], made)
            while len(self._known) > JOINED_READS:
                self._known.pop(next(iter(self._known)))
