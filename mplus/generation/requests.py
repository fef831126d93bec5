"""Turns a memory and a prompt into a row for an engine, and checks that it fits the model's window."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.confidence import Calibration
from mplus.config import MemoryConfig
from mplus.decline_head import ReadAs
from mplus.errors import UnknownNameError
from mplus.generation.constrain import ConstrainedDecoding, Constraint
from mplus.generation.declining import DeclineThreshold, HeadThreshold, declining_token
from mplus.generation.memories_read import MemoryLike, memories_of
from mplus.generation.passages import PassageReader
from mplus.generation.polarity import YesOdds
from mplus.generation.present import PresentStates
from mplus.generation.prompt import Prompt, PromptLike, TemplateOptions, Tools, encode_prompt
from mplus.generation.room import check_fits, room_beside
from mplus.generation.row import Row
from mplus.generation.sampling import GateChoice, SamplingOptions, SamplingParams
from mplus.generation.text_read import TextReads
from mplus.generation.where import WhereLike, allowed_sources
from mplus.memory.periods import Period
from mplus.memory.state import MemoryState
from mplus.moments import Moment
from mplus.read.prefill import ReadRequest, has_prefix, kind_of
from mplus.recall.choose import best_unit
from mplus.weights import Weights

MEMORY_NEEDED, MEMORY_CERTAIN = 0.01, 0.5
"""Least probability that a question needs memory with which it is asked of memory, and with which memory may decline.
Between the two, what memory would decline is answered without it."""


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
        yes_odds: float | None = None,
        prefers_text: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare to make rows.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            name: Its name, for messages.
            calibration: Turns the evidence for an answer into a probability.
            decline_threshold: Probability from which on an answer from memory declines, where a request has none.
            yes_odds: What the odds of yes to no are multiplied with where an answer from memory begins; None: nothing.
            prefers_text: Whether ``read="auto"`` stands for "text"; asked when a memory is first read.
        """
        self._weights, self._tokenizer, self._name, self._calibration = weights, tokenizer, name, calibration
        self._decline_threshold, self._yes_odds = decline_threshold, yes_odds
        self._passages = PassageReader(tokenizer, weights.words_of)
        self._text_reads = TextReads(weights, tokenizer, prefers_text)
        self.present = PresentStates(weights, name)
        """What reads see of memories."""

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
        room = room_beside(request.state, request.config, self._weights.backbone) - len(request.input_ids)
        if params.max_new_tokens > room:
            params = params.model_copy(update={"max_new_tokens": max(room, 1)})
        if constraint is not None:
            processors = (*processors, ConstrainedDecoding(constraint, self._tokenizer, self.stop_token_ids()))
        elif not isinstance(prompt, str | Prompt):
            # A call is another way not to answer from memory; what no gate has seen may be no question about it.
            forces = not options.get("tools") and (params.gate == "always" or self._is_gated(request.config))
            processors = (*processors, *self._of_memory(request, params, forces=forces))
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

    def _of_memory(self, request: ReadRequest, params: SamplingParams, *, forces: bool) -> Iterator[Any]:
        """The logits processors of an answer from memory."""
        if has_prefix(request) and self._yes_odds is not None:
            yield YesOdds(self._tokenizer, self._yes_odds)
        least = self._decline_threshold if params.decline_threshold is None else params.decline_threshold
        if not least:
            return
        read: ReadAs = "latent" if request.told is None else "text"
        head = self._weights.decline_head
        if head is not None and head.read == read and (read == "text" or has_prefix(request)):
            yield HeadThreshold(self._tokenizer, least, head, self.stop_token_ids(), forces=forces)
        elif any(kind_of(self._weights, request)):  # read through an adapter, which has learnt to decline
            yield DeclineThreshold(self._tokenizer, least, forces=forces)

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
        read = self.present.of(memory, period)
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
        if self._text_reads.applies(read, config):
            return self._text_reads.request(
                read, config, prompt, encoded, tools=tools, options=options, allowed=allowed, otherwise=plain
            )
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
        check_fits(len(ids), state, config, self._weights.backbone)
        asked_ids = ids[len(waiting) :] if waiting else None
        vector = self._weights.question_vector(ids[begin:end], state, config) if config.recalled_tokens else None
        return ReadRequest(
            state, config, ids, (begin, end), allowed, vector, read.members, asked_ids=asked_ids, otherwise=plain
        )

    @torch.inference_mode()
    def _needed(
        self, state: MemoryState, config: MemoryConfig, prompt: Prompt, allowed: Int[Tensor, " n"] | None
    ) -> float:
        """Probability that a question needs memory, by the gate; 1 where there is none, or nothing to look at."""
        weights = self._weights
        if weights.gate is None or not self._is_gated(config) or not any(map(len, state.tracks)):
            return 1.0
        track = state.tracks[0]
        question = weights.question(prompt.input_ids[slice(*prompt.query)], track.recall_layer)
        best = best_unit(weights.scorers["late"], track, config, question, allowed)
        return weights.gate.probability(question.normed, best)

    def _is_gated(self, config: MemoryConfig) -> bool:
        """Whether the gate, if the model has one, is asked about questions to memories of a layout."""
        return self._weights.gate is None or (config.token_recall == "late" and config.keeps_chunks)

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

    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        found: set[int] = set()
        backbone = self._weights.backbone
        for holder in (self._tokenizer, getattr(backbone.model, "generation_config", None), backbone.config):
            token = getattr(holder, "eos_token_id", None)
            found |= set(token) if isinstance(token, list) else {token} if isinstance(token, int) else set()
        return frozenset(found)
