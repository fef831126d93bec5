"""``MPlus``: one loaded model that writes and reads any number of memories."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch

from mplus.checkpoint import catalog, gguf_model
from mplus.checkpoint.initial_memory import initial_state
from mplus.checkpoint.loading import Loaded, load
from mplus.checkpoint.parts import TrainedParts, write_parts
from mplus.confidence import Calibration
from mplus.config import EMBEDDING, MemoryConfig, Recall
from mplus.forks import renewed_after_fork
from mplus.generation.engine import Engine, decode
from mplus.generation.memories_read import MemoryLike, check_belongs, check_weights, memories_of
from mplus.generation.prompt import PromptLike
from mplus.generation.requests import GenerationOptions, Requests
from mplus.generation.row import Generation
from mplus.generation.sampling import SamplingOptions
from mplus.generation.scheduler import Scheduler
from mplus.generation.sources_read import memory_of
from mplus.generation.streams import GenerationStream
from mplus.generation.where import FoundSource, WhereLike, allowed_sources
from mplus.given import check_kind, check_number, listed, path_of, refused, whole_number
from mplus.inert import encode_inert
from mplus.memory.ledger import LedgerEntry
from mplus.memory.memory import Memory, check_memory
from mplus.memory.periods import Period
from mplus.memory.state import MemoryState
from mplus.moments import Moment, Moments
from mplus.progress import Progress, followed
from mplus.read.prefill import ReadRequest
from mplus.read.warming import warm_ahead
from mplus.recall.choose import rank_sources
from mplus.recall.embedder import Embedder
from mplus.relevance_scale import RelevanceScales
from mplus.self_check import HowRead, SelfCheck
from mplus.weights import Weights
from mplus.write.absorb import WriteReport
from mplus.write.chunks import TextLike
from mplus.write.writer import Names, Writer


class MPlus:
    """A language model with latent memory.

    Weights never change once loaded; what is remembered is in a ``Memory`` that is passed to each call. An ``MPlus``
    can be used from several threads.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any,
        memory: MemoryConfig,
        *,
        name: str = "",
        parts: TrainedParts | None = None,
        embedder: Any = None,
        reads: HowRead | None = None,
    ) -> None:
        """Make a model of loaded parts; use ``from_pretrained`` instead.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            memory: Layout of new memories.
            name: Its name.
            parts: What training added to the backbone.
            embedder: Your own embedder, as ``from_pretrained`` takes it.
            reads: How memories with ``read="auto"`` are read; None: what a check of the model finds.

        Raises:
            ValueError: ``memory`` needs a scorer that these weights do not have, or an embedder; or ``embedder`` is not
                one.
        """
        if embedder is not None:
            weights = replace(weights, embedder=Embedder.of(embedder))
        self.weights = weights
        self.tokenizer = tokenizer
        self.memory_config = memory
        self.name = name
        self._parts = parts or TrainedParts()
        self._initial_states: dict[MemoryConfig, MemoryState] = {}
        self._self_check = SelfCheck(weights, tokenizer, name=name, known=reads)
        self._requests = Requests(
            weights,
            tokenizer,
            name=name,
            calibration=self._parts.calibration,
            decline_threshold=self._parts.decline_threshold,
            prefers_text=self._self_check.prefers_text,
        )
        self._writer = Writer(weights, tokenizer)
        self._scales = RelevanceScales(weights, tokenizer)
        self.after_fork()
        renewed_after_fork(self)
        self._check(memory)
        if memory.has_vectors and weights.embedder is None:
            raise ValueError(
                f"recall={memory.recall!r} needs an embedder. Pass yours: embedder=…, any LangChain Embeddings, "
                f"LlamaIndex BaseEmbedding or function; or use recall={memory.token_recall!r}."
            )

    def after_fork(self) -> None:
        """Begin with a lock of this process."""
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = catalog.DEFAULT_MODEL,
        *,
        device: str | Mapping[str, Any] | None = "auto",
        dtype: str | torch.dtype | None = "auto",
        memory: MemoryConfig | None = None,
        attention: str = "auto",
        embedder: Any = None,
        revision: str | None = None,
        local_files_only: bool = False,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "MPlus":
        """Load a model by built-in name, local folder or hub repository.

        Args:
            model: "smol-135m", a folder (plain backbone, published M+ checkpoint or our own save), a GGUF file, or a
                Hugging Face repository.
            device: "auto" (as None), "cpu", "cuda", "cuda:1", or an accelerate device map.
            dtype: "auto" (as None: float32 on CPU, the checkpoint's own on a GPU), a torch dtype or its name, or
                "int8": int8 weights for decoding beside bfloat16, for the CPU.
            memory: Layout of new memories; None takes the checkpoint's, else a preset for the backbone.
            attention: "auto", "sdpa", "eager" or "flash_attention_2".
            embedder: Your own embedder, to find what a question is about: an ``Embedder``, or what that takes. Unless
                ``memory`` says which ``recall``, it is used beside the model's own scorer ("embedding+late").
            revision: Branch, tag or commit of a hub repository.
            local_files_only: Do not use the network.
            gguf_file: The GGUF file in that folder or repository; its weights are taken out of their quantisation.
            trust_remote_code: Run the code that the folder or repository brings for its model and tokenizer. Read it
                first: it can do whatever you can.
            options: Passed on to transformers, such as ``quantization_config`` or ``offload_folder``. ``torch_dtype``
                is another name of ``dtype``.

        Raises:
            ModelNotFoundError: There is no model of that name; the message says how to get it.
            CheckpointError: Weights are missing, of the wrong shape, or would be dropped.
            UnsupportedModelError: A backbone with which memory is not exact; the message has the difference found.
            ValueError: A bad device, dtype or memory layout.
        """
        dtype = _one_dtype(dtype, options)
        place, gguf_file = gguf_model.named(str(model), gguf_file)
        folder = catalog.resolve(
            place,
            revision=revision,
            local_files_only=local_files_only,
            gguf_file=gguf_file,
            with_code=trust_remote_code,
        )
        if trust_remote_code:
            options["trust_remote_code"] = True
        loaded: Loaded = load(
            folder,
            device="auto" if device is None else device,
            dtype=dtype,
            attention=attention,
            trained=catalog.trained_parts(str(model)),
            gguf_file=gguf_file,
            **options,
        )
        return cls(
            loaded.weights,
            loaded.tokenizer,
            _using(embedder, memory, loaded.memory),
            name=str(model),
            parts=loaded.parts,
            embedder=embedder,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save backbone, tokenizer, trained parts and memory layout; ``from_pretrained`` loads them back.

        Raises:
            ValueError: ``folder`` is a file, or the model came with a memory that only its published
                checkpoint can hold.
        """
        path = path_of("folder", folder)
        if path.is_file():
            raise ValueError(f"folder={str(folder)!r} is a file; expected a folder to save into.")
        path.mkdir(parents=True, exist_ok=True)
        self.weights.backbone.save(path)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(path)
        write_parts(path, replace(self._parts, memory=self.memory_config))

    def with_calibration(self, calibration: Calibration) -> "MPlus":
        """This model with calibrated confidence. Weights are shared, and memories of one work with the other.

        ``save_pretrained`` of the result keeps it.
        """
        check_kind("calibration", calibration, Calibration, "a Calibration, such as a CalibrationReport has")
        parts = replace(self._parts, calibration=calibration)
        reads = self._self_check.known
        return MPlus(self.weights, self.tokenizer, self.memory_config, name=self.name, parts=parts, reads=reads)

    def with_embedder(self, embedder: Any, *, memory: MemoryConfig | None = None) -> "MPlus":
        """This model with an embedder of yours. Weights are shared, and it opens the memories of both.

        Args:
            embedder: An ``Embedder``, or what that takes.
            memory: Layout of new memories; None: the model's own. Unless it says which ``recall``, the embedder is used
                beside the model's own scorer.

        Raises:
            ValueError: ``embedder`` is not one, or the layout keeps single tokens.
        """
        config = _using(embedder, memory, self.memory_config)
        reads = self._self_check.known
        return MPlus(
            self.weights, self.tokenizer, config, name=self.name, parts=self._parts, embedder=embedder, reads=reads
        )

    @property
    def trained_parts(self) -> TrainedParts:
        """The parts that training added to the backbone."""
        return self._parts

    @property
    def prompt_turns(self) -> int | None:
        """How many of a conversation's latest turns this model answers best with in the prompt, before the question.

        Earlier turns are read from memory. None: as many turns as fit. It is kept with the trained parts.
        """
        return self._parts.prompt_turns

    @property
    def decline_threshold(self) -> float | None:
        """Least probability with which an answer from memory declines ("I don't know."), where a call gives none.

        None: whenever declining is likeliest. It is kept with the trained parts; ``decline_threshold=`` of a call
        overrides it.
        """
        return self._parts.decline_threshold

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, and the name of the embedder, that memories of the model's own layout depend on."""
        config, embedder = self.memory_config, self.weights.embedder
        own = self.weights.fingerprints[config.recall]
        return f"{own}/{config.recall}/{embedder.name}" if config.has_vectors and embedder is not None else own

    @property
    def reads(self) -> HowRead:
        """How memories with ``read="auto"`` are read, and why.

        Without a read adapter, a check of a few seconds decides when this is first needed. Its result is kept.
        """
        return self._self_check.result()

    # --- memories ---------------------------------------------------------------------------------

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> Memory:
        """A memory in which nothing has been written.

        Args:
            seed: Seed of random eviction; the same seed and writes give the same memory.
            config: Layout of the memory; None takes the model's own.

        Raises:
            ValueError: The layout needs parts that these weights do not have, or ``seed`` is no whole number.
        """
        check_kind("config", config, MemoryConfig, "a MemoryConfig", optional=True)
        config, seed = config or self.memory_config, whole_number("seed", seed)
        self._check(config)
        with self._lock:
            if config not in self._initial_states:
                with torch.no_grad():
                    self._initial_states[config] = initial_state(self.weights, config, self._parts.initial)
        initial = self._initial_states[config]
        # Buffers of finished reads are kept by short-term pool. Each memory gets a pool object of its own, even while
        # empty, so that two users never share buffers.
        own = tuple(replace(track, short_term=replace(track.short_term)) for track in initial.tracks)
        initial = replace(initial, tracks=own).cooled()
        return Memory(config, initial, model_fingerprint=self.weights.fingerprints[config.recall], seed=seed)

    def with_recall(self, memory: Memory, recall: Recall) -> Memory:
        """A copy of a memory that recalls in another way; the given memory is not changed.

        Chunks without a vector of the model's embedder get one now if ``recall`` needs it: their text is decoded from
        the ledger. So a memory can change to an embedder, to another one, or do without.

        Args:
            memory: The memory.
            recall: What ``MemoryConfig(recall=…)`` takes. Memory tokens keep their retrieval keys, so that a memory of
                late interaction changes to "embedding" and "embedding+late" only, and back.

        Returns:
            A memory with the same content and snapshots, and tensors shared.

        Raises:
            ValueError: The memory has no retrieval keys for that, or there is no embedder.
            EmbedderError: The embedder failed.
            LedgerMissingError: The memory keeps no ledger, and has chunks without vectors.
            MemoryMismatchError: The memory belongs to another model, or the text of a chunk is not in its ledger.
        """
        check_memory(memory)
        config = MemoryConfig.model_validate(memory.config.model_dump() | {"recall": recall})
        if config.token_recall != memory.config.token_recall:
            raise ValueError(
                f"recall={recall!r}: this memory has the retrieval keys of {memory.config.token_recall!r}, and those "
                f"of {config.token_recall!r} cannot be made from them. Write its texts into a new memory."
            )
        if config.has_vectors and self.weights.embedder is None:
            raise ValueError(f"recall={recall!r} needs an embedder. Pass yours to from_pretrained(embedder=…).")
        changed = self.new_memory(seed=memory.seed, config=config)
        check_weights(memory, self.weights, self.name)
        with memory.writing():
            state, snapshots = memory.state, memory.snapshots
        states = self._writer.recalling(config, [state, *(snapshot.state for snapshot in snapshots)])
        taken = [replace(snapshot, state=s) for snapshot, s in zip(snapshots, states[1:], strict=True)]
        changed.restore(states[0], tuple(taken))
        return changed

    def write(
        self,
        memory: Memory,
        text: TextLike,
        *,
        source: Names = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        keep_text: bool = False,
        progress: bool | Progress | None = None,
        later: bool = False,
        at: Moments = None,
        dated: bool = False,
    ) -> WriteReport:
        """Write text into a memory.

        Long texts are cut into chunks at sentence ends where possible. A tail shorter than the memory's
        minimum chunk waits for more text of the same source; reads treat it as if it had been written.

        Args:
            memory: The memory to write into; changed only when everything has been written.
            text: One text, several, or token ids of one.
            source: Name under which this can be recalled, inspected and forgotten; for several texts also one for
                each, written in one go. Numbers and UUIDs count as their text. None: a name is made, "text-1", ….
            metadata: Data about the source, returned when it is recalled; for several texts also one for each.
            keep_text: Keep the text itself beside its latents, for ``search`` and ``Memory.sources``.
            progress: True shows a bar; a callback receives the text tokens written so far and in total; None: silent.
            later: Let texts with a source wait until anything of the memory is read, changed, copied or saved, or
                until there are enough for a pass through the model: many small writes then cost what one large does.
                The report counts only text tokens. Memories with an age limit or an embedder, and those that do not
                keep chunks of states, are written at once.
            at: When it was said: a datetime, a date, ISO 8601 text or Unix seconds, in UTC if it has no zone; for
                several texts also one for each. Reads choose by it (``since``, ``until``, ``as_of``), and exports keep
                it. Age limits go by when text was written. None: now.
            dated: Let the reader see the date: "On 3 March 2024:" is written before each text with a time.

        Raises:
            ValueError: Empty text, token ids out of range, an empty source name or one of another type, another number
                of names, metadata or times than of texts, something that is no time, or ``dated`` without ``at``.
            MemoryMismatchError: The memory belongs to another model.
        """
        check_belongs(memory, self.weights, self.name)
        if later and not progress:
            return self._writer.write_later(
                memory, text, source=source, metadata=metadata, keep_text=keep_text, at=at, dated=dated
            )
        with followed(progress, "writing", "tok") as told:
            (report,) = self._writer.write(
                [memory],
                [text],
                sources=[source],
                metadata=[metadata],
                keep_text=keep_text,
                progress=told,
                at=[at],
                dated=dated,
            )
        return report

    def write_batch(
        self,
        memories: Sequence[Memory],
        texts: Sequence[TextLike],
        *,
        sources: Sequence[Names] | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_text: bool = False,
        progress: bool | Progress | None = None,
        at: Sequence[Moments] | None = None,
        dated: bool = False,
    ) -> list[WriteReport]:
        """Write into several memories at once, as ``write`` does into each.

        Their chunks go through the layers together: many short texts cost little more than one long one.

        Args:
            memories: The memories to write into, each at most once; changed only when everything has been written.
            texts: For each memory, what ``write`` takes.
            sources: For each memory, what ``write`` takes; None makes names.
            metadata: Metadata of all the sources.
            keep_text: Keep the texts beside their latents.
            progress: True shows a bar; a callback receives the text tokens written so far and in total; None: silent.
            at: For each memory, what ``write`` takes; None: now.
            dated: Let the reader see the date of each text with a time.

        Raises:
            ValueError: Different numbers of memories, texts, sources and times, a memory given twice, empty text, or
                token ids out of range.
            MemoryMismatchError: A memory belongs to another model.
        """
        memories, texts = listed("memories", memories), listed("texts", texts)
        names = [None] * len(memories) if sources is None else listed("sources", sources)
        times = [None] * len(memories) if at is None else _each_time(at)
        if not len(memories) == len(texts) == len(names) == len(times):
            raise ValueError(
                f"{len(memories)} memories, {len(texts)} texts, {len(names)} sources and {len(times)} times: expected "
                "one text, one source and one time per memory."
            )
        for memory in memories:
            check_belongs(memory, self.weights, self.name)
        if len(set(memories)) < len(memories):
            raise ValueError("A memory is given more than once: pass its texts as one list.")
        with followed(progress, "writing", "tok") as told:
            return self._writer.write(
                memories,
                texts,
                sources=names,
                metadata=[metadata] * len(memories),
                keep_text=keep_text,
                progress=told,
                at=times,
                dated=dated,
            )

    def warm(self, memory: Memory, *, seconds: float | None = None) -> int:
        """Make keys and values of what a memory keeps as token ids, the newest first, so that reads find them made.

        For idle moments: an answer makes what it needs by itself. Does nothing for ``long_term_keep="latents"``.

        Args:
            memory: The memory.
            seconds: Stop after so many seconds; None: when ``long_term_latent_bytes`` are held, or all chunks are.

        Returns:
            How many text tokens were encoded.

        Raises:
            MemoryMismatchError: The memory belongs to another model.
        """
        check_belongs(memory, self.weights, self.name)
        check_number("seconds", seconds, "a number of seconds, 0 or more, or None", optional=True)
        end = None if seconds is None else time.monotonic() + seconds
        return warm_ahead(self.weights, memory.state, lambda: end is None or time.monotonic() < end)

    def replay(self, memory: Memory, state: MemoryState, entry: LedgerEntry) -> MemoryState:
        """The state after an entry of a memory's ledger has been written again; the memory itself is unchanged.

        Raises:
            MemoryMismatchError: The memory belongs to another model.
        """
        check_belongs(memory, self.weights, self.name)
        check_kind("state", state, MemoryState, "a state of this memory")
        check_kind("entry", entry, LedgerEntry, "an entry of this memory's ledger")
        ((state, _),) = self._writer.written([memory], [state], [entry], None)
        return state

    # --- answers ----------------------------------------------------------------------------------

    def generate(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer a prompt with a memory. The memory is not changed, except its recall frequencies.

        Args:
            memory: The memory to read, or several of one layout to read together, such as ``[anna, handbook]``: what
                answers best is recalled from all of them, and ``Generation.recalled`` says from which. The first is
                read nearest to the prompt, and its settings count.
            prompt: A string (plain completion) or chat messages ``{"role", "content"}``.
            options: How to answer; None stands for the default. ``SamplingParams`` describes max_new_tokens,
                temperature, top_p, top_k, repetition_penalty, stop, stop_token_ids, seed, timeout,
                abstain_below, abstain_reply, decline_threshold and gate. Beside them:
                cancelled: set this event from another thread to stop within two tokens.
                processors: further logits processors ``(token_ids, logits) -> logits``.
                tools: tools described in the prompt, ``{"type": "function", "function": {…}}`` each; pass a
                ``Constraint.tool_calls`` of them too if calls must be valid.
                constraint: the form the answer must have.
                chat_template_kwargs: variables of the model's chat template, such as ``{"enable_thinking": False}``.
                where: the sources to read, from any pool: a filter of metadata, or a test of name and metadata;
                of all memories, or a list with one for each.
                since, until: read only what was said from a time on, or up to it; a date is its whole day.
                as_of: answer as the memory was at that time: nothing that was said later is read.

        Raises:
            ValueError: A setting is unknown or out of range, or the prompt is malformed.
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: A memory belongs to another model, or memories of different layouts are given.
        """
        stream = self.stream(memory, prompt, **options)
        for _ in stream:
            pass
        return stream.generation

    def stream(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> GenerationStream:
        """Like ``generate``, piece by piece: an iterator of text with ``cancel`` and ``generation``.

        With ``abstain_below`` the text comes in one piece at the end, because the confidence depends on all of its
        tokens.
        """
        row = self._requests.row(memory, prompt, **options)
        pieces = decode(self.weights, self.tokenizer, [row], self._requests.stop_token_ids())
        return GenerationStream(row, (piece.text for piece in pieces))

    def generate_batch(
        self,
        memories: Sequence[MemoryLike],
        prompts: Sequence[PromptLike],
        *,
        where: Sequence[WhereLike] | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        as_of: Moment | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Answer several prompts at once, each with its own memory.

        Args:
            memories: For each prompt, what ``generate`` takes; the same memory may be given several times.
            prompts: Strings or chat messages.
            where: The sources that each prompt may read, as in ``generate``; None for all.
            since: When what they read was said, as in ``generate``.
            until: The same.
            as_of: The same.
            sampling: How to answer each, as ``SamplingParams`` describes.

        Raises:
            ValueError: There are no prompts, or the numbers of memories and prompts differ.
        """
        memories, prompts = listed("memories", memories), listed("prompts", prompts)
        if len(memories) != len(prompts) or not prompts:
            raise ValueError(
                f"{len(memories)} memories for {len(prompts)} prompts: expected one memory per prompt, at least one."
            )
        allowed = [None] * len(prompts) if where is None else listed("where", where)
        if len(allowed) != len(prompts):
            raise ValueError(
                f"{len(allowed)} conditions in where for {len(prompts)} prompts: expected one per prompt, None for all."
            )
        rows = [
            self._requests.row(memory, prompt, where=one, since=since, until=until, as_of=as_of, **sampling)
            for memory, prompt, one in zip(memories, prompts, allowed, strict=True)
        ]
        for _ in decode(self.weights, self.tokenizer, rows, self._requests.stop_token_ids()):
            pass
        return [row.generation() for row in rows]

    def serve(self, *, max_running: int = 16, max_waiting: int = 256) -> Scheduler:
        """A scheduler that answers requests of many users in common batches.

        Args:
            max_running: Most requests that are answered at the same time.
            max_waiting: Most requests in the queue; further ones raise ``QueueFullError``.

        Raises:
            ValueError: ``max_running`` is below 1, or ``max_waiting`` below 0.
        """
        engine = Engine(self.weights, self.tokenizer, self._requests.stop_token_ids())
        return Scheduler(self._requests, engine, max_running=max_running, max_waiting=max_waiting)

    def search(
        self,
        memory: MemoryLike,
        query: str,
        *,
        limit: int | None = 4,
        where: WhereLike = None,
        since: Moment | None = None,
        until: Moment | None = None,
        as_of: Moment | None = None,
    ) -> list[FoundSource]:
        """The sources that the retriever finds for a query, in any pool, most relevant first.

        Args:
            memory: The memory to search, or several together; not changed.
            query: Text to search for.
            limit: Most sources; None for all.
            where: The sources to search, as in ``generate``.
            since: When what is searched was said, as in ``generate``.
            until: The same.
            as_of: The same.

        Raises:
            ValueError: An empty query, a limit below 1, or something that is no time.
            MemoryMismatchError: The memory belongs to another model.
        """
        if not isinstance(query, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise refused("query", query, "text to search for")
        period = Period.of(since, until, as_of)
        config, read = memories_of(memory)[0].config, self._requests.present.of(memory, period)
        ids = encode_inert(self.tokenizer, query) if query.strip() else []
        if not ids:
            raise ValueError(f"query={query!r}: expected text to search for.")
        if limit is not None and (not isinstance(limit, int) or limit < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"limit={limit!r}: expected at least 1, as a whole number, or None for all.")
        with torch.inference_mode():
            # If every layer recalls for itself, the layer that one choice for all layers would use is searched.
            track, _ = read.state.track_of(self.weights.recall_layer)
            question = self.weights.question(
                ids, track.recall_layer, self.weights.question_vector(ids, read.state, config)
            )
            scorer = self.weights.scorers[config.recall]
            ranked = rank_sources(scorer, read.state, config, question, allowed_sources(read, where))
        found = [(read.state.sources[one.number], one, memory_of(read.members, one.number)) for one in ranked[:limit]]
        return [
            FoundSource(s.name, one.relevance, dict(s.metadata), s.texts, place, self._scales.score(config, one.match))
            for s, one, place in found
        ]

    def count_tokens(self, prompt: PromptLike, *, tools: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Number of tokens of a prompt, including those of the chat template."""
        return len(self._requests.encoded(prompt, tools).input_ids)

    def prompt_room(self, memory: MemoryLike | MemoryConfig | None = None) -> int:
        """Number of tokens left for prompt and answer with a full memory.

        Args:
            memory: The memory, several that are read together, or a layout; None: the model's own layout.
        """
        if memory is None or isinstance(memory, MemoryConfig):
            config, others = memory or self.memory_config, []
        else:
            config, *others = (one.config for one in memories_of(memory))
        short_term = config.short_term_tokens + sum(other.short_term_tokens for other in others)
        return self.weights.backbone.room(config.prefix_of(config.recalled_tokens + short_term)) - 1

    def read_request(
        self,
        memory: MemoryLike,
        prompt: PromptLike,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        where: WhereLike = None,
        since: Moment | None = None,
        until: Moment | None = None,
        as_of: Moment | None = None,
    ) -> ReadRequest:
        """The input of one row of a read: the present state of its memory, or of several, and the encoded prompt.

        Raises:
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
        """
        period = Period.of(since, until, as_of)
        return self._requests.read_request(memory, prompt, tools=tools, where=where, period=period)

    # --- inside -----------------------------------------------------------------------------------

    def _check(self, config: MemoryConfig) -> None:
        if config.recall not in self.weights.scorers:
            raise ValueError(
                f"recall={config.recall!r}: these weights have no such retriever; expected one of "
                f"{', '.join(sorted(self.weights.scorers))}."
            )
        if config.read == "text" and self.tokenizer is None:
            raise ValueError('read="text": this model has no tokenizer to decode text with. Use read="latent".')
        if not config.keeps_chunks and self.weights.backbone.recalls_once:
            raise ValueError(
                f"layout={config.layout!r}: this model's layers are called as they are, so recall happens once, before "
                'them. Use layout="chunk".'
            )
        if config.encoding == "adapter" and self.weights.write_position is None:
            raise ValueError('encoding="adapter": these weights have no trained write adapter. Use encoding="states".')
        if config.recall_layer is not None and config.recall_layer >= self.weights.backbone.num_layers:
            raise ValueError(
                f"recall_layer={config.recall_layer}: the backbone has layers 0 to "
                f"{self.weights.backbone.num_layers - 1}."
            )

    def __copy__(self) -> "MPlus":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "MPlus":
        return self  # it never changes

    def __getstate__(self) -> object:
        raise ValueError(
            f"An MPlus is not pickled: its weights are large, and have a name. Pass {self.name or 'its folder'!r} on, "
            "and call MPlus.from_pretrained there."
        )

    def __repr__(self) -> str:
        backbone = self.weights.backbone
        return (
            f"MPlus({self.name or backbone.config.model_type!r}, {backbone.num_layers} layers, "
            f"{backbone.dtype}, {backbone.device})"
        )


def _each_time(at: Sequence[Moments]) -> list[Moments]:
    """The times of the texts of each memory, once it is clear that a list of them was given."""
    if isinstance(at, str) or not isinstance(at, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"at={at!r:.60}: expected a list with what write takes for each memory.")
    return list(at)


def _one_dtype(dtype: str | torch.dtype | None, options: dict[str, Any]) -> str:
    """The name of the dtype. Older code calls it ``torch_dtype``, which is taken out of ``options``."""
    name, other = (str(given or "auto").removeprefix("torch.") for given in (dtype, options.pop("torch_dtype", None)))
    if "auto" not in (name, other) and name != other:
        raise ValueError(f"dtype={name!r} and torch_dtype={other!r}: expected one of them. Leave torch_dtype out.")
    return other if name == "auto" else name


def _using(embedder: Any, given: MemoryConfig | None, own: MemoryConfig) -> MemoryConfig:
    """The layout of new memories: the model's own if none is given.

    An embedder is used beside the layout's scorer, unless the given layout says how to recall.
    """
    check_kind("memory", given, MemoryConfig, "a MemoryConfig", optional=True)
    config = given or own
    if embedder is None or config.has_vectors or (given is not None and "recall" in given.model_fields_set):
        return config
    return MemoryConfig.model_validate(config.model_dump() | {"recall": f"{EMBEDDING}+{config.recall}"})
