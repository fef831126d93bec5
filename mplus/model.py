"""``MPlus``: one loaded model that writes and reads any number of memories."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mplus.checkpoint import catalog
from mplus.checkpoint.weights import Loaded, TrainedParts, initial_state, load, write_parts
from mplus.config import MemoryConfig
from mplus.errors import MemoryMismatchError, ModelNotFoundError, PromptTooLongError
from mplus.generation.chat import Prompt, encode_prompt
from mplus.generation.constrain import ConstrainedDecoding, Constraint
from mplus.generation.engine import Generation, Row, decode
from mplus.generation.sampling import SamplingParams
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState, SourceRecord, Tail
from mplus.read import ReadRequest
from mplus.recall import rank_sources
from mplus.text import SentenceEnds, cut, encode_inert
from mplus.weights import Weights
from mplus.write import Chunk, Progress, WriteReport, write_chunks

PromptLike = str | Sequence[Mapping[str, Any]] | Prompt
TextLike = str | Sequence[str] | Sequence[int] | torch.Tensor
Where = Mapping[str, Any] | Callable[[str, Mapping[str, Any]], bool]
"""Which sources may be read: metadata that must be equal, or a test of name and metadata."""


@dataclass(frozen=True)
class FoundSource:
    """A source that a search found.

    Attributes:
        source: Its name.
        relevance: Relevance of its best chunk, as the scorer counts.
        metadata: What was given when it was written.
        texts: What was written, where it was kept.
    """

    source: str
    relevance: float
    metadata: Mapping[str, Any]
    texts: tuple[str, ...]


class GenerationStream(Iterator[str]):
    """The pieces of an answer as they become certain; ``generation`` says the rest.

    Stop early with ``cancel()`` (from any thread), ``close()``, or by leaving a ``with`` block: generation
    stops within two tokens.
    """

    def __init__(self, row: Row, pieces: Iterator[str]) -> None:
        self._row, self._pieces = row, pieces

    def __iter__(self) -> "GenerationStream":
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """Stop generating; what has been answered so far stays."""
        self._row.cancelled.set()

    def cancel_with(self, cancelled: threading.Event) -> None:
        """Stop when ``cancelled`` is set; for whoever waits elsewhere. It is never set from here."""
        self._row.cancelled_by = cancelled

    def close(self) -> None:
        """Stop generating and release what it held."""
        self.cancel()
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> "GenerationStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def generation(self) -> Generation:
        """What has been answered so far; complete once the stream has ended."""
        return self._row.generation()


class MPlus:
    """A language model with latent memory.

    Weights never change once loaded; everything remembered is in a ``Memory`` that is passed in. Safe to
    use from several threads.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any,
        memory: MemoryConfig,
        *,
        name: str = "",
        parts: TrainedParts | None = None,
    ) -> None:
        """Put loaded pieces together; use ``from_pretrained`` instead.

        Raises:
            ValueError: ``memory`` asks for a way of recalling that these weights cannot do.
        """
        self.weights = weights
        self.tokenizer = tokenizer
        self.memory_config = memory
        self.name = name
        self._parts = parts or TrainedParts()
        self._ends = SentenceEnds(tokenizer) if tokenizer is not None else None
        self._initial_states: dict[MemoryConfig, MemoryState] = {}
        self._read_states: WeakKeyDictionary[Memory, tuple[MemoryState, MemoryState]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._check(memory)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = catalog.DEFAULT_MODEL,
        *,
        device: str | Mapping[str, Any] = "auto",
        dtype: str = "auto",
        memory: MemoryConfig | None = None,
        attention: str = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> "MPlus":
        """Load a model by built-in name, local folder or hub repository.

        Args:
            model: "smol-135m", a folder (plain backbone, published M+ checkpoint or our own save), or a
                Hugging Face repository.
            device: "auto", "cpu", "cuda", "cuda:1", or an accelerate device map.
            dtype: "auto" (float32 on CPU, the checkpoint's own on a GPU) or a torch dtype by name.
            memory: Layout of new memories; None takes the checkpoint's, else a preset for the backbone.
            attention: "auto", "sdpa", "eager" or "flash_attention_2".
            revision: Branch, tag or commit of a hub repository.
            local_files_only: Never ask the network.
            options: Passed on to transformers, such as ``quantization_config`` or ``offload_folder``.

        Raises:
            ModelNotFoundError: Nothing under that name; the message says how to get it.
            CheckpointError: Weights are missing, of the wrong shape, or would be dropped.
            UnsupportedModelError: A backbone that is not full-attention, rotary and decoder-only.
            ValueError: A bad device, dtype or memory layout.
        """
        folder = catalog.resolve(str(model), revision=revision, local_files_only=local_files_only)
        loaded: Loaded = load(
            folder,
            device=device,
            dtype=dtype,
            attention=attention,
            trained=catalog.trained_parts(str(model)),
            **options,
        )
        return cls(
            loaded.weights,
            loaded.tokenizer,
            memory or loaded.memory,
            name=str(model),
            parts=loaded.parts,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save backbone, tokenizer, trained parts and memory layout; ``from_pretrained`` loads them back.

        Raises:
            ValueError: ``folder`` is a file, or the model came with a memory that only its published
                checkpoint can hold.
        """
        path = Path(folder)
        if path.is_file():
            raise ValueError(f"folder={str(folder)!r} is a file; expected a folder to save into.")
        path.mkdir(parents=True, exist_ok=True)
        self.weights.backbone.save(path)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)
        write_parts(path, replace(self._parts, memory=self.memory_config))

    # --- memories ---------------------------------------------------------------------------------

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> Memory:
        """A memory in which nothing has been written.

        Args:
            seed: Decides what a random eviction drops; the same seed and writes give the same memory.
            config: Another layout than the model's own.

        Raises:
            ValueError: A layout that these weights cannot do.
        """
        config = config or self.memory_config
        self._check(config)
        with self._lock:
            if config not in self._initial_states:
                with torch.no_grad():
                    self._initial_states[config] = initial_state(self.weights, config, self._parts.initial)
        return Memory(config, self._initial_states[config], model_fingerprint=self.weights.fingerprint, seed=seed)

    def write(
        self,
        memory: Memory,
        text: TextLike,
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_text: bool = False,
        progress: Progress | None = None,
    ) -> WriteReport:
        """Write text into a memory.

        Long texts are cut into chunks at sentence ends where possible. A tail shorter than the memory's
        minimum chunk waits until the same source goes on; reads see it as if it had been written.

        Args:
            memory: What to write into; changed only when everything has been written.
            text: One text, several, or token ids of one.
            source: Name under which this can be recalled, inspected and forgotten. None: each text gets
                one of its own, "text-1", "text-2", ….
            metadata: Anything worth knowing about the source; comes back with what is recalled.
            keep_text: Keep the text itself beside its latents, for ``search`` and ``Memory.sources``.
            progress: Called with text tokens written so far and in total.

        Raises:
            ValueError: Empty text, token ids out of range, or an empty source name.
            MemoryMismatchError: The memory belongs to another model.
        """
        self._check_memory(memory)
        if source is not None and not source.strip():
            raise ValueError(f"source={source!r}: expected a name, or None to have one made.")
        texts = self._token_ids(text)
        started = time.perf_counter()
        with memory.writing():
            state = memory.state
            chunks: list[Chunk] = []
            for ids, joined_by, original in texts:
                name = source if source is not None else f"text-{len(state.sources) + 1}"
                kept = (original or self.tokenizer.decode(ids),) if keep_text else ()
                state, number = _with_source(state, name, metadata, len(ids), kept)
                state, ready = self._cut(state, memory.config, ids, joined_by, number, chunks)
                chunks += ready
            state, report = write_chunks(self.weights, memory, state, chunks, progress=progress)
            memory.commit(state)
        waiting = sum(len(ids) for ids, _, _ in texts)
        return replace(report, text_tokens=waiting, seconds=time.perf_counter() - started)

    # --- answers ----------------------------------------------------------------------------------

    def generate(
        self,
        memory: Memory,
        prompt: PromptLike,
        *,
        cancelled: threading.Event | None = None,
        processors: Sequence[Any] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        constraint: Constraint | None = None,
        where: Where | None = None,
        **sampling: Any,
    ) -> Generation:
        """Answer a prompt with a memory in front of it; the memory is not changed.

        Args:
            memory: What is remembered.
            prompt: A string (plain completion) or chat messages ``{"role", "content"}``.
            cancelled: Set it from another thread to stop within two tokens.
            processors: Further logits processors ``(token_ids, logits) -> logits``.
            tools: Tools that the model is told about, ``{"type": "function", "function": {…}}`` each; pass a
                ``Constraint.tool_calls`` of them too where calls must be valid.
            constraint: The form the answer must have.
            where: Only sources of this metadata (or for which this says so) are read, from any pool.
            sampling: max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop,
                stop_token_ids, seed.

        Raises:
            ValueError: A setting out of range, or a malformed prompt.
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: The memory belongs to another model.
        """
        stream = self.stream(
            memory,
            prompt,
            cancelled=cancelled,
            processors=processors,
            tools=tools,
            constraint=constraint,
            where=where,
            **sampling,
        )
        for _ in stream:
            pass
        return stream.generation

    def stream(
        self,
        memory: Memory,
        prompt: PromptLike,
        *,
        cancelled: threading.Event | None = None,
        processors: Sequence[Any] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        constraint: Constraint | None = None,
        where: Where | None = None,
        **sampling: Any,
    ) -> GenerationStream:
        """Like ``generate``, piece by piece: an iterator of text with ``cancel`` and ``generation``."""
        params = SamplingParams(**sampling)
        row = self._row(memory, prompt, params, tools=tools, where=where)
        row.processors = tuple(processors)
        if constraint is not None:
            decoding = ConstrainedDecoding(constraint, self.tokenizer, self._stop_token_ids())
            row.processors = (*row.processors, decoding)
        if cancelled is not None:
            row.cancelled_by = cancelled
        return GenerationStream(row, self._pieces(memory, row))

    def generate_batch(
        self, memories: Sequence[Memory], prompts: Sequence[PromptLike], **sampling: Any
    ) -> list[Generation]:
        """Answer several prompts at once, each with its own memory.

        Raises:
            ValueError: Different numbers of memories and prompts, or none.
        """
        if len(memories) != len(prompts) or not prompts:
            raise ValueError(
                f"{len(memories)} memories for {len(prompts)} prompts: expected one memory per prompt, at least one."
            )
        params = SamplingParams(**sampling)
        rows = [self._row(m, p, params) for m, p in zip(memories, prompts, strict=True)]
        for _ in decode(self.weights, self.tokenizer, rows, self._stop_token_ids()):
            pass
        for memory, row in zip(memories, rows, strict=True):
            memory.note_recalled(row.births) if row.births else None
        return [row.generation() for row in rows]

    def search(
        self, memory: Memory, query: str, *, limit: int | None = 4, where: Where | None = None
    ) -> list[FoundSource]:
        """The sources that the retriever finds for a query, in any pool, most relevant first.

        Args:
            memory: Where to search; not changed.
            query: What is searched for.
            limit: Most sources; None for all.
            where: Only sources of this metadata, or for which this says so.

        Raises:
            ValueError: An empty query, or a limit below 1.
            MemoryMismatchError: The memory belongs to another model.
        """
        self._check_memory(memory)
        ids = encode_inert(self.tokenizer, query) if query.strip() else []
        if not ids:
            raise ValueError(f"query={query!r}: expected text to search for.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit}: expected at least 1, or None for all.")
        with torch.inference_mode():
            state = self._with_tail(memory)
            ranked = rank_sources(self.weights, state, memory.config, ids, _allowed(state, where))
        found = [(state.sources[number], relevance) for number, relevance in ranked[:limit]]
        return [FoundSource(s.name, relevance, dict(s.metadata), s.texts) for s, relevance in found]

    def count_tokens(self, prompt: PromptLike, *, tools: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Tokens that a prompt has, what the chat template adds included."""
        encoded = prompt if isinstance(prompt, Prompt) else encode_prompt(self.tokenizer, prompt, tools=tools)
        return len(encoded.input_ids)

    def prompt_room(self, memory: Memory) -> int:
        """Tokens left for prompt and answer beside this memory once it is full."""
        window, config = self.weights.backbone.window, memory.config
        prefix = config.short_term_tokens + config.recalled_tokens + 1
        return window - prefix - 1 if prefix + 1 < window else window - 1

    def read_request(
        self,
        memory: Memory,
        prompt: PromptLike,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        where: Where | None = None,
    ) -> ReadRequest:
        """What one row of a read consists of: the memory's present state and the encoded prompt.

        Raises:
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
        """
        self._check_memory(memory)
        encoded = prompt if isinstance(prompt, Prompt) else encode_prompt(self.tokenizer, prompt, tools=tools)
        state = self._with_tail(memory)
        ids, (begin, end) = list(encoded.input_ids), encoded.query
        if not ids:
            raise ValueError("prompt='': expected text or chat messages. Pass at least one token.")
        bos = getattr(self.tokenizer, "bos_token_id", None)
        remembers = any(map(len, state.tracks))
        if remembers and len(ids) > 1 and bos is not None and ids[0] == bos and ids.count(bos) == 1:
            # The prefix starts with the bos state already. A chat template that begins every turn with
            # its bos token has more than one of them and keeps them all.
            ids, begin, end = ids[1:], max(begin - 1, 0), end - 1
        waiting = list(state.tail.input_ids)
        ids, begin, end = [*waiting, *ids], begin + len(waiting), end + len(waiting)
        self._check_length(state, memory.config, len(ids))
        return ReadRequest(state, memory.config, ids, (begin, end), _allowed(state, where))

    # --- inside -----------------------------------------------------------------------------------

    def _with_tail(self, memory: Memory) -> MemoryState:
        """A memory's state as reads see it: a waiting tail counts as if it had been written.

        A write adapter was not trained on so little text; there the tail is read as text instead.
        """
        state = memory.state
        if not state.tail.input_ids or memory.config.encoding == "adapter":
            return state
        known = self._read_states.get(memory)
        if known is not None and known[0] is state:
            return known[1]
        last = state.context.sources[-1:].tolist() if state.context is not None else []
        chunk = Chunk(list(state.tail.input_ids), list(state.tail.sources), last == [state.tail.sources[0]])
        whole, _ = write_chunks(self.weights, memory, replace(state, tail=Tail()), [chunk])
        self._read_states[memory] = (state, whole)
        return whole

    def _pieces(self, memory: Memory, row: Row) -> Iterator[str]:
        for piece in decode(self.weights, self.tokenizer, [row], self._stop_token_ids()):
            yield piece.text
        if row.births:
            memory.note_recalled(row.births)

    def _row(
        self,
        memory: Memory,
        prompt: PromptLike,
        params: SamplingParams,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        where: Where | None = None,
    ) -> Row:
        request = self.read_request(memory, prompt, tools=tools, where=where)
        room = self._room(request.state, request.config) - len(request.input_ids)
        if params.max_new_tokens > room:
            params = params.model_copy(update={"max_new_tokens": max(room, 1)})
        return Row(request, params)

    def _room(self, state: MemoryState, config: MemoryConfig) -> int:
        """Positions left for prompt and answer behind the longest prefix this memory can have."""
        window = self.weights.backbone.window
        prefix = max(
            len(track.short_term) + min(len(track.pending) + len(track.long_term), config.recalled_tokens)
            for track in state.tracks
        )
        # A layout whose prefix alone exceeds the window was chosen knowingly; prompts still must fit it.
        return window - prefix - 1 if prefix + 1 < window else window

    def _check_length(self, state: MemoryState, config: MemoryConfig, length: int) -> None:
        room = self._room(state, config)
        if length >= room:
            raise PromptTooLongError(
                f"The prompt has {length:,} tokens, but {room - 1:,} fit beside this memory in the model's window "
                f"of {self.weights.backbone.window:,}. Write the long part into memory, or shorten the prompt."
            )

    def _stop_token_ids(self) -> frozenset[int]:
        found: set[int] = set()
        generation = getattr(self.weights.backbone.model, "generation_config", None)
        for holder in (self.tokenizer, generation, self.weights.backbone.config):
            token = getattr(holder, "eos_token_id", None)
            found |= set(token) if isinstance(token, list) else {token} if isinstance(token, int) else set()
        return frozenset(found)

    def _check(self, config: MemoryConfig) -> None:
        if config.recall not in self.weights.scorers:
            raise ValueError(
                f"recall={config.recall!r}: these weights have no such retriever; expected one of "
                f"{', '.join(sorted(self.weights.scorers))}."
            )
        if config.encoding == "adapter" and self.weights.write_position is None:
            raise ValueError('encoding="adapter": these weights have no trained write adapter. Use encoding="states".')
        if config.recall_layer is not None and config.recall_layer >= self.weights.backbone.num_layers:
            raise ValueError(
                f"recall_layer={config.recall_layer}: the backbone has layers 0 to "
                f"{self.weights.backbone.num_layers - 1}."
            )

    def _check_memory(self, memory: Memory) -> None:
        if memory.model_fingerprint != self.weights.fingerprint:
            raise MemoryMismatchError(
                f"This memory was made by a model with fingerprint {memory.model_fingerprint}, not by "
                f"{self.name or 'this one'} ({self.weights.fingerprint}). Latent memory cannot move between "
                "weights: write its texts again with new_memory()."
            )

    def _token_ids(self, text: TextLike) -> list[tuple[list[int], list[int], str]]:
        """Texts as token ids, each with what joins it to a waiting tail and as it was given (ids: empty)."""
        if isinstance(text, torch.Tensor):
            text = [int(i) for i in text.flatten()]
        if isinstance(text, str):
            text = [text]
        elif text and all(isinstance(item, int) and not isinstance(item, bool) for item in text):
            vocabulary = self.weights.backbone.vocabulary_size
            ids = [int(i) for i in text]
            if wrong := [i for i in ids if not 0 <= i < vocabulary]:
                raise ValueError(
                    f"Token id {wrong[0]} is out of range: this model has ids 0 to {vocabulary - 1}. Use the "
                    "model's own tokenizer."
                )
            return [(ids, [], "")]
        newline = encode_inert(self.tokenizer, "\n")
        found: list[tuple[list[int], list[int], str]] = []
        for item in text:
            if not isinstance(item, str):
                raise ValueError(f"text holds {type(item).__name__} {item!r:.60}: expected strings, or token ids only.")
            ids = encode_inert(self.tokenizer, item) if item.strip() else []
            if not ids:
                raise ValueError(f"text={item!r:.60}: nothing to write. Pass text that is not empty.")
            found.append((ids, newline, item))
        if not found:
            raise ValueError("text=[]: nothing to write. Pass at least one text.")
        return found

    def _cut(
        self,
        state: MemoryState,
        config: MemoryConfig,
        ids: list[int],
        joined_by: list[int],
        source: int,
        before: Sequence[Chunk],
    ) -> tuple[MemoryState, list[Chunk]]:
        """Chunks that are ready now; what is too short yet waits in the tail of the returned state.

        ``before`` are chunks of the same call that will have been written by then.
        """
        chunks: list[Chunk] = []
        tail = state.tail
        sources = [source] * len(ids)
        if before:
            last = before[-1].sources[-1:]
        else:
            last = state.context.sources[-1:].tolist() if state.context is not None else []
        if tail.input_ids:
            if tail.sources[-1] == source or config.encoding == "adapter":
                ids = [*tail.input_ids, *joined_by, *ids]
                sources = [*tail.sources, *([source] * len(joined_by)), *sources]
            else:
                # Another source follows: a chunk never mixes two where each can be forgotten exactly.
                continues = last == [tail.sources[0]]
                chunks.append(Chunk(list(tail.input_ids), list(tail.sources), continues))
                last = [tail.sources[-1]]
        assert self._ends is not None
        cuts = cut(
            ids,
            self._ends,
            chunk_tokens=config.chunk_tokens,
            minimum_chunk_tokens=config.minimum_chunk_tokens,
        )
        for start, stop in cuts.chunks:
            continues = last == [sources[start]]
            chunks.append(Chunk(ids[start:stop], sources[start:stop], continues))
            last = [sources[stop - 1]]
        start, stop = cuts.tail
        tail = Tail(tuple(ids[start:stop]), tuple(sources[start:stop]))
        return replace(state, tail=tail), chunks

    def __repr__(self) -> str:
        backbone = self.weights.backbone
        return (
            f"MPlus({self.name or backbone.config.model_type!r}, {backbone.num_layers} layers, "
            f"{backbone.dtype}, {backbone.device})"
        )


def _allowed(state: MemoryState, where: Where | None) -> torch.Tensor | None:
    """Rows of the table of sources that match; None where all may be read."""
    if where is None:
        return None
    if callable(where):
        rows = [n for n, s in enumerate(state.sources) if not s.forgotten and where(s.name, s.metadata)]
    else:
        missing = object()
        rows = [
            n
            for n, s in enumerate(state.sources)
            if not s.forgotten and all(s.metadata.get(key, missing) == value for key, value in where.items())
        ]
    return torch.tensor(rows, dtype=torch.int64)


def _with_source(
    state: MemoryState, name: str, metadata: Mapping[str, Any] | None, text_tokens: int, texts: tuple[str, ...]
) -> tuple[MemoryState, int]:
    """The state with a source noted as written now, and the source's number."""
    now = time.time()
    number = state.source_number(name)
    if number is None:
        record = SourceRecord(name, dict(metadata or {}), now, now, text_tokens, texts=texts)
        return replace(state, sources=(*state.sources, record)), len(state.sources)
    known = state.sources[number]
    record = replace(
        known,
        metadata={**known.metadata, **(metadata or {})},
        last_written=now,
        text_tokens=known.text_tokens + text_tokens,
        texts=known.texts + texts,
    )
    sources = (*state.sources[:number], record, *state.sources[number + 1 :])
    return replace(state, sources=sources), number


__all__ = ["FoundSource", "GenerationStream", "MPlus", "ModelNotFoundError"]
