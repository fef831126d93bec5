"""``Answers``: the half of ``MPlus`` that reads memories."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch

from mplus.generation.engine import Engine, decode
from mplus.generation.memories_read import MemoryLike, memories_of
from mplus.generation.prompt import PromptLike
from mplus.generation.requests import GenerationOptions, Requests
from mplus.generation.row import Generation
from mplus.generation.sampling import SamplingOptions
from mplus.generation.scheduler import Scheduler
from mplus.generation.sources_read import memory_of
from mplus.generation.streams import GenerationStream
from mplus.generation.where import FoundSource, WhereLike, allowed_sources
from mplus.given import listed, refused
from mplus.inert import encode_inert
from mplus.memory.periods import Period
from mplus.moments import Moment
from mplus.read.prefill import ReadRequest
from mplus.recall.choose import rank_sources
from mplus.relevance_scale import RelevanceScales
from mplus.thread_teams import gives_back_team
from mplus.weights import Weights


class Answers:
    """Answers prompts with memories, and finds what is in them. No memory changes but in its recall frequencies."""

    def __init__(self, weights: Weights, tokenizer: Any, requests: Requests) -> None:
        self.weights, self.tokenizer = weights, tokenizer
        self._requests = requests
        self._scales = RelevanceScales(weights, tokenizer)

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

    @gives_back_team
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
