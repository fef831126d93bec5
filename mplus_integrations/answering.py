"""Answers conversations, the same for both frameworks, whose adapters only translate inputs and outputs."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Generic, NamedTuple
from uuid import uuid4

from pydantic import Field

from mplus import (
    Generation,
    GenerationStream,
    Memory,
    MPlus,
    Scheduler,
    ToolCall,
    UnknownNameError,
    parse_tool_calls,
    source_filter,
)
from mplus_integrations.conversations import Conversation
from mplus_integrations.forms import (
    NoBareCall,
    NoCalls,
    bare_call,
    before_calls,
    form_of,
    has_result,
    may_become_bare_call,
    may_hold_calls,
    tool_choice,
    with_told,
)
from mplus_integrations.history import OURS, Fitted, fitted, only_asks, said_by_none
from mplus_integrations.latents import Latents, Shared, Where
from mplus_integrations.settings import AnswerSettings, Call, instead_where
from mplus_integrations.sources import headings_of
from mplus_integrations.whose_memory import Item, Remembering

Asked = str | list[dict[str, Any]]
"""Text to continue, or chat messages; ``history`` says what ``source``, ``id`` and ``stays`` of a message mean."""


class Piece(str):
    """A piece of the text of an answer.

    Attributes:
        tokens: Tokens of the prompt, and of the answer up to here.
        read: What the answer reads, as ``reading_of`` tells it; only of the first piece, where it is asked for.
    """

    tokens: tuple[int, int]
    read: dict[str, Any] | None = None

    @classmethod
    def of(cls, text: str, tokens: tuple[int, int]) -> "Piece":
        """A piece with the tokens so far."""
        piece = cls(text)
        piece.tokens = tokens
        return piece


class Answer(NamedTuple):
    """A whole answer.

    Attributes:
        text: The text before the calls.
        rest: The end of the text, if it was held back because it might have become a call.
        calls: Valid calls, each with an id.
        invalid_calls: Calls that are not valid, each with an id.
        generation: The model's ``Generation``.
        about: The finish reason, recalled sources and confidence.
    """

    text: str
    rest: str
    calls: list[tuple[str, ToolCall]]
    invalid_calls: list[tuple[str, ToolCall]]
    generation: Generation
    about: dict[str, Any]


class Answering(AnswerSettings, Remembering[Item], Generic[Item]):
    """A model that answers with memory; the base class of ``MPlusChat`` and ``MPlusLLM``."""

    scheduler: Scheduler | None = Field(default=None, exclude=True)
    """``model.serve()``: requests of many users are batched. None: each request runs on its own."""

    def _must_name(self) -> bool:
        return self.scheduler is not None if self.require_key is None else self.require_key

    def __getstate__(self) -> dict[Any, Any]:
        """The state for a pickle. Without its scheduler it still asks for a name where that did."""
        state = super().__getstate__()
        if self._must_name():
            state["__dict__"]["require_key"] = True
        return state

    def _cited_as(self, latents: Latents) -> str:
        """The name that cites the memory of a call."""
        return "own"

    def _as_call(self, given: Mapping[str, Any]) -> Call:
        """The settings of a call. Missing settings, or None, have the object's value.

        Raises:
            ValueError: A setting is unknown or out of range.
        """
        known, own = Call.model_fields, type(self).__name__
        UnknownNameError.check(given, known, of=f"A call of {own}", instead=instead_where(known, of=own))
        named = {name: value for name, value in given.items() if value is not None}
        return Call.model_validate({**self._own_settings(), **named})

    def _model_of(self, call: Call) -> MPlus:
        """The model of a call: ``call.model`` if given, else the object's."""
        return self.loaded if call.model is None else self._loaded(call.model)

    def _pieces(
        self,
        prompt: Asked,
        call: Call,
        latents: Latents,
        left: threading.Event,
        *,
        where: Where | None = None,
        shared: Sequence[Shared] = (),
        processors: Sequence[Any] = (),
        passages: bool = False,
        spent: Callable[[tuple[int, int]], object] = lambda tokens: None,
    ) -> Generator[Piece | Answer]:
        """Yield the text of an answer as it grows, without tool calls, and finally the whole ``Answer``.

        A call that has its result already is not made again where the model is free to answer: it then answers from
        what it has. Small models would call for ever.

        Args:
            prompt: Text or messages to answer. Earlier turns are written into memory, and only the latest stand in the
                prompt too, as many as ``Call.prompt_turns`` says.
            call: Settings of the call.
            latents: The memory to read, into which earlier turns are written.
            left: An event that stops generation within two tokens when it is set.
            where: A test of the sources of ``latents`` to read.
            shared: Memories to read beside it.
            processors: Further logits processors, as ``MPlus.generate`` takes them.
            passages: Whether a first piece without text tells what is read, and ``Answer.about`` which sentences.
            spent: Called with the tokens of prompt and answer once generation has ended, also if the caller has left.
        """
        shown = held = ""
        told: Piece | None = None
        stream, names = self._begin(prompt, call, latents, where, shared, processors)
        with ExitStack() as ending:
            ending.callback(lambda: spent(stream.tokens))
            ending.enter_context(stream)
            # While a call is held back nothing is yielded, so a caller who leaves must cancel the generation directly.
            stream.cancel_with(left)
            for piece in stream:
                if passages and told is None:
                    told = Piece.of("", stream.tokens)
                    told.read = reading_of(stream, names)
                    yield told
                if call.tools:
                    begun = held + piece
                    is_held = not shown and may_become_bare_call(call, begun)
                    piece, held = ("", begun) if is_held else before_calls(begun)
                if piece:
                    shown += piece
                    yield Piece.of(piece, stream.tokens)
            generation = stream.generation
            sentences = {"passages": passages_of(stream, names)} if passages else {}
        said = generation.text
        text, calls = parse_tool_calls(said) if may_hold_calls(call, said) else (said, [])
        if not calls and (only := bare_call(call, said)) is not None:
            text, calls = "", [only]
        if not isinstance(prompt, str) and call.tools and tool_choice(call.tool_choice, call.tools) == "auto":
            new = [one for one in calls if one.arguments is None or not has_result(prompt, one)]
            if calls and not new and not text.strip() and not shown:
                again = self._pieces(
                    prompt,
                    call.model_copy(update={"tool_choice": "none"}),
                    latents,
                    left,
                    where=where,
                    shared=shared,
                    processors=(*processors, NoBareCall(self._model_of(call).tokenizer)),
                    passages=passages,
                    spent=spent,
                )
                yield from (one for one in again if isinstance(one, Answer) or one.read is None)  # that was told
                return
            calls = new
        numbered = [(f"call_{uuid4().hex[:24]}", one) for one in calls]
        good = [one for one in numbered if one[1].arguments is not None]
        yield Answer(
            text,
            text.removeprefix(shown),
            good if call.parallel_tool_calls else good[:1],
            [one for one in numbered if one[1].arguments is None],
            generation,
            about(generation, self._model_of(call).name or self.model_name, names) | sentences,
        )

    def _answer(
        self,
        prompt: Asked,
        call: Call,
        latents: Latents,
        left: threading.Event,
        *,
        where: Where | None = None,
        shared: Sequence[Shared] = (),
        processors: Sequence[Any] = (),
    ) -> Answer:
        """The whole answer; takes the arguments of ``_pieces``."""
        *_, answer = self._pieces(prompt, call, latents, left, where=where, shared=shared, processors=processors)
        assert isinstance(answer, Answer)
        return answer

    def _begin(
        self,
        prompt: Asked,
        call: Call,
        latents: Latents,
        where: Where | None,
        shared: Sequence[Shared],
        processors: Sequence[Any],
    ) -> tuple[GenerationStream, list[str]]:
        """Begin an answer. Also returns the names of the memories that it reads."""
        model, form, sampling = self._model_of(call), form_of(call), call.sampling()
        if not call.use_memory:
            latents, where, shared = Latents(), None, ()
            call = call.model_copy(update={"prompt_turns": "all", "where": None})
        if form.constraint is not None:  # a tool call or object cannot be replaced by a sentence
            sampling = sampling.model_copy(update={"abstain_below": None})
        tests = [source_filter(one) for one in (where, call.where, said_by_none(prompt, latents)) if one is not None]
        beside = [one for one in shared if not one.latents.is_same(latents)]
        others = [one.latents.read(model) for one in beside]  # before the own memory is locked, so none waits for two
        # What is read is fixed here: neither a later write nor another history of this memory changes it, and
        # a named memory is free for others while this answer is made.
        opened = nullcontext(latents.read(model)) if only_asks(prompt) else latents.opened(model)
        with opened as memory, held([memory, *others]):
            said: list[dict[str, Any]] = [{"content": prompt}] if isinstance(prompt, str) else prompt
            if not isinstance(prompt, str):
                told = with_told(prompt, form.told)
                # A memory without a name belongs to nobody: each conversation reads only its own turns.
                thread = call.conversation_id or latents.conversation
                says = None if call.conversation_says is None else frozenset(call.conversation_says)
                handled = latents.handled if latents.conversation in (thread, None) else None
                of = Conversation(thread, call.conversation_part, latents.is_nobodys, says, handled)
                found = self._fitted(model, [memory, *others], told, call, of)
                said = found.messages
                if of.is_alone:
                    tests.append(found.where)
                tests.append(not_standing_in(said))
                prompt = [{key: value for key, value in turn.items() if key not in OURS} for turn in said]
            reads = [Read(self._cited_as(latents), memory, [*tests, is_answer(said, memory)])]
            of_call = [] if call.where is None else [source_filter(call.where)]
            for one, other in zip(beside, others, strict=True):
                own = [one.where] if one.where else []
                reads.append(Read(one.name, other, [*of_call, *own, is_answer(said, other)]))
            read, read_where, names = readable(model, reads)
            engine = model if self.scheduler is None or call.model is not None else self.scheduler
            several, options = len(read) > 1, sampling.model_dump()
            if call.tools and call.response_format is None and tool_choice(call.tool_choice, call.tools) == "none":
                processors = (*processors, NoCalls(model.tokenizer))
            if processors:
                options["processors"] = processors
            stream = engine.stream(
                read if several else read[0],
                prompt,
                tools=call.tools,
                constraint=form.constraint,
                where=read_where if several else read_where[0],
                chat_template_kwargs=call.chat_template_kwargs,
                **call.times(),
                **options,
            )
            return stream, names

    def _fitted(
        self, model: MPlus, memories: Sequence[Memory], told: list[dict[str, Any]], call: Call, of: Conversation
    ) -> Fitted:
        """The messages that stand in the prompt beside these memories; earlier ones are written into the first."""
        room = model.prompt_room(memories)
        room = max(room - min(call.max_tokens, room // 4), 1)
        turns = call.turns_in_prompt(model)
        return fitted(model, memories[0], told, room=room, tools=call.tools, prompt_turns=turns, of=of)


class Read(NamedTuple):
    """A memory that an answer reads.

    Attributes:
        name: What cites it.
        memory: The memory.
        tests: Tests of its sources that must all hold.
    """

    name: str
    memory: Memory
    tests: Sequence[Where]

    def where(self, name: str, metadata: Mapping[str, Any]) -> bool:
        """Whether a source is read."""
        return all(test(name, metadata) for test in self.tests)


@contextmanager
def held(memories: Sequence[Memory]) -> Generator[None]:
    """Hold the locks of several memories, always in the same order, so that two threads cannot deadlock."""
    with ExitStack() as locks:
        for memory in sorted(memories, key=id):
            locks.enter_context(memory.writing())
        yield


def not_standing_in(messages: Sequence[Mapping[str, Any]]) -> Where:
    """A test of sources that excludes turns that are in the prompt."""
    here = {message["source"] for message in messages if "source" in message}
    return lambda name, _: name not in here


MIN_PASTED = 20
"""Fewest characters of a source that is taken for pasted into a prompt; a shorter one may be there by chance."""


def is_answer(messages: Sequence[Mapping[str, Any]], memory: Memory) -> Where:
    """A test of sources that excludes headings, and those whose whole text stands in a prompt.

    A retriever that returns text and a model that reads the same memory would otherwise give each document two voices.
    """
    said = "\n".join(str(message.get("content") or "") for message in messages)
    pasted = {
        source.name
        for source in memory.sources()
        if source.texts
        and sum(map(len, source.texts)) >= MIN_PASTED
        and all(text.strip() in said for text in source.texts)
    }
    left_out = pasted | headings_of(memory)
    return lambda name, _: name not in left_out


def readable(model: MPlus, reads: Sequence[Read]) -> tuple[list[Memory], list[Where | None], list[str]]:
    """The memories to read with a test of each one's sources and its name; those without a source to read are left out.

    If none is left, the first is replaced by an empty memory.
    """
    memories: list[Memory] = []
    tests: list[Where | None] = []
    names: list[str] = []
    for read in reads:
        sources = read.memory.sources() if read.tests else []
        may_read = [read.where(source.name, source.metadata) for source in sources]
        if sources and not any(may_read):
            continue
        memories.append(read.memory)
        tests.append(None if all(may_read) else read.where)
        names.append(read.name)
    if not memories:
        return [model.new_memory(config=reads[0].memory.config)], [None], [reads[0].name]
    return memories, tests, names


def about(generation: Generation, model_name: str, memories: Sequence[str]) -> dict[str, Any]:
    """Details of an answer as JSON: finish reason, recalled sources, each with the name of its memory, confidence."""
    return {
        "model_name": model_name,
        "model_provider": "mplus",
        "finish_reason": generation.finish_reason,
        "recalled": recalled_of(generation, memories),
        "prefix_tokens": generation.prefix_tokens,
        "used_memory": generation.used_memory,
        "confidence": generation.confidence,
        "is_calibrated": generation.is_calibrated,
        "abstained": generation.abstained,
    }


def recalled_of(generation: Generation, memories: Sequence[str]) -> list[dict[str, Any]]:
    """The sources that an answer has read, each with the name of its memory."""
    return [
        {
            "source": recalled.source,
            "memory": memories[recalled.memory],
            "share": recalled.share,
            "relevance": recalled.relevance,
            "metadata": dict(recalled.metadata),
            "pool": recalled.pool,
            "newer_than": list(recalled.newer_than),
        }
        for recalled in generation.recalled
    ]


def passages_of(stream: GenerationStream, memories: Sequence[str]) -> list[dict[str, Any]]:
    """The sentences that an answer reads, the most relevant first, each with its source and the name of its memory."""
    return [
        {
            "source": passage.source,
            "memory": memories[passage.memory],
            "sentences": list(passage.sentences),
            "relevance": passage.relevance,
            "pool": passage.pool,
        }
        for passage in stream.passages()
    ]


def reading_of(stream: GenerationStream, memories: Sequence[str]) -> dict[str, Any]:
    """What an answer that has begun reads: sources with their shares, and their sentences."""
    begun = stream.generation
    return {
        "recalled": recalled_of(begun, memories),
        "passages": passages_of(stream, memories),
        "prefix_tokens": begun.prefix_tokens,
        "used_memory": begun.used_memory,
    }
