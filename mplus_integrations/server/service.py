"""The service behind every door: one model, its memories, and who is let in."""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mplus import KeyVault, Memory, MemoryStore, MPlus, Scheduler, UrlStore
from mplus_integrations.answering import Answer, Answering
from mplus_integrations.latents import Latents, Shared
from mplus_integrations.memorized import Memorized
from mplus_integrations.server.access import Access
from mplus_integrations.server.activity import NOTED, Act, Activity
from mplus_integrations.server.admission import Admission, Rates
from mplus_integrations.server.memories import SCRATCH, Memories, named, sweep_scratch
from mplus_integrations.server.metrics import Metrics, NoMetrics
from mplus_integrations.server.problems import Problem, problem_of
from mplus_integrations.server.settings import ServeSettings
from mplus_integrations.server.telemetry import Span, Telemetry
from mplus_integrations.worker import in_thread, streamed

P = ParamSpec("P")
T = TypeVar("T")


class AsSaved(Latents):
    """A memory as it was last saved, for reading: no answer waits while it is written, and none changes it."""

    def read(self, model: MPlus) -> Memory:
        """A copy of the memory."""
        assert self.store is not None
        assert self.key is not None
        with named(self.key):
            return self.store.load(self.key, model)

    @contextmanager
    def opened(self, model: MPlus) -> Generator[Memory]:
        """A copy of the memory."""
        yield self.read(model)


class IfThere(AsSaved):
    """A memory that every answer reads; while it is deleted and not yet made anew, it is empty."""

    def read(self, model: MPlus) -> Memory:
        """A copy of the memory."""
        return Latents.read(self, model)


class Answers(Answering[str]):
    """The model of a server; the same path to an answer as in LangChain and LlamaIndex."""

    always: frozenset[str] = frozenset()
    """Memories that every answer reads."""

    def _cited_as(self, latents: Latents) -> str:
        return latents.key or "own"

    def _memorized(self, item: Any) -> Memorized:
        return Memorized(str(item), None, {})

    def pieces(
        self, question: "Question", spent: Callable[[tuple[int, int]], object], left: threading.Event
    ) -> Generator[str | Answer]:
        """The text of an answer as it grows, and at last the whole ``Answer``; ``spent`` is told the tokens it took."""
        yield from self._pieces(
            question.prompt,
            self._as_call(question.settings),
            (AsSaved if question.only_reads else Latents)(store=self.store, key=question.memory),
            left,
            shared=[
                Shared((IfThere if name in self.always else AsSaved)(store=self.store, key=name))
                for name in question.shared
            ],
            processors=question.processors,
            passages=question.passages,
            spent=spent,
        )


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        prompt: Text to continue, or messages to answer.
        settings: Settings of the answer by name; None is the default.
        memory: The memory that is read, and into which earlier turns are written.
        shared: Memories that are read beside it.
        processors: Logits processors.
        only_reads: Whether the memory stays as it is; there must be one then.
        passages: Whether the sentences that are read are told too.
    """

    prompt: str | list[dict[str, Any]]
    settings: Mapping[str, Any]
    memory: str
    shared: Sequence[str] = ()
    processors: Sequence[Any] = ()
    only_reads: bool = False
    passages: bool = False


class Service:
    """What a server does, apart from HTTP.

    Args:
        settings: How to serve.
        model: A loaded model; None: the one that the settings name is loaded by ``load``.
    """

    def __init__(self, settings: ServeSettings, *, model: MPlus | None = None) -> None:
        self.settings = settings
        self.access, self.rates = Access(settings), Rates(settings.requests_per_minute)
        self.admission = Admission(settings.max_inside, settings.max_running)
        self.metrics: Any = Metrics() if settings.metrics else NoMetrics()
        self.activity = Activity()
        self.telemetry = Telemetry(contents=settings.telemetry_contents)
        self.failure: Exception | None = None
        """Why the model could not be loaded."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called where it could not be."""
        self.stopping = False
        self._given = model
        self._loaded: tuple[Memories, Answers, Scheduler] | None = None

    # --- from start to end ------------------------------------------------------------------------

    def load(self) -> None:
        """Load the model and open the store; until then every request is told to come back later."""
        if self._loaded is not None:
            return
        settings = self.settings
        model = self._given or MPlus.from_pretrained(settings.model, device=settings.device, dtype=settings.dtype)
        store = opened_store(settings)
        sweep_scratch(store.root / SCRATCH)
        for name in settings.shared:
            with store.open(name, model):
                pass
        scheduler = model.serve(max_running=settings.max_running, max_waiting=settings.max_waiting)
        answers = Answers(
            model=model,
            store=store,
            scheduler=scheduler,
            max_tokens=settings.max_tokens,
            timeout=settings.timeout,
            always=frozenset(settings.shared),
        )
        self.metrics.gauge(
            "mplus_requests_inside", "Requests that are answered or wait.", lambda: self.admission.inside
        )
        self.metrics.gauge("mplus_answers_running", "Answers that are being made.", lambda: scheduler.running)
        self.metrics.gauge("mplus_answers_waiting", "Answers that wait for a place.", lambda: scheduler.waiting)
        self._loaded = Memories(store, model), answers, scheduler

    def close(self) -> None:
        """Stop answering. What was written is on disk already."""
        self.stopping = True
        if self._loaded is not None:
            self._loaded[2].close()

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self._loaded is not None and not self.stopping

    @property
    def memories(self) -> Memories:
        """The memories.

        Raises:
            Problem: The model is still being loaded (503).
        """
        return self._present()[0]

    @property
    def model(self) -> MPlus:
        """The model.

        Raises:
            Problem: The model is still being loaded (503).
        """
        return self.memories.model

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names by which clients may call the model, its own first."""
        return tuple(dict.fromkeys((self.settings.model, *self.settings.aliases)))

    def _present(self) -> tuple[Memories, Answers, Scheduler]:
        if self._loaded is None or self.stopping:
            raise Problem(503, "not_ready", "The model is not loaded yet, or the server is stopping.", retry_after=2)
        return self._loaded

    # --- answers ----------------------------------------------------------------------------------

    async def pieces(self, question: Question, kind: str = "chat") -> AsyncGenerator[str | Answer]:
        """The text of an answer as it grows, and at last the whole ``Answer``; leaving it stops the answer.

        Args:
            question: What is asked.
            kind: "chat" or "text_completion".

        Raises:
            QueueFullError: Too many requests are inside.
        """
        answers, started, said = self._present()[1], time.monotonic(), None
        sizes: list[int | None] = []
        whole: Answer | None = None
        with self.admission.place(), self.telemetry.answer(kind, self.settings.model, _asked(question)) as span:
            span.content({"gen_ai.input.messages": str(question.prompt), "mplus.memory": question.memory})

            def spent(tokens: tuple[int, int]) -> None:
                self.metrics.tokens.labels("prompt").inc(tokens[0])
                self.metrics.tokens.labels("answer").inc(tokens[1])
                span.note({"gen_ai.usage.input_tokens": tokens[0], "gen_ai.usage.output_tokens": tokens[1]})

            def made(left: threading.Event) -> Generator[str | Answer]:
                for piece in answers.pieces(question, spent, left):
                    if isinstance(piece, Answer) and kind in NOTED:
                        sizes.append(
                            self._size(question.memory)
                        )  # in this thread: another one costs half a millisecond
                    yield piece

            async with aclosing(streamed(made)) as pieces:
                try:
                    async for piece in pieces:
                        if said is None:
                            said = time.monotonic() - started
                            self.metrics.first_token.observe(said)
                        if isinstance(piece, Answer):
                            self._note(span, piece)
                            self._keep(kind, question.memory, started, next(iter(sizes), None), said)
                            whole = piece
                        else:
                            yield piece
                except (GeneratorExit, asyncio.CancelledError):  # the client went away
                    self.metrics.cut.inc()
                    raise
        if whole is not None:  # whoever has it asks for no more, and has not gone away
            yield whole

    async def answer(self, question: Question, kind: str = "chat") -> Answer:
        """The whole answer; takes the arguments of ``pieces``."""
        async with aclosing(self.pieces(question, kind)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    return piece
        raise AssertionError("an answer ends with an Answer")

    def _note(self, span: Span, answer: Answer) -> None:
        made = answer.generation
        if made.finish_reason == "cancelled":
            self.metrics.cut.inc()
        span.note(
            {
                "gen_ai.response.model": self.settings.model,
                "gen_ai.response.finish_reasons": [made.finish_reason],
                "mplus.prefix_tokens": made.prefix_tokens,
                "mplus.used_memory": made.used_memory,
            }
        )
        span.content({"gen_ai.output.messages": made.text})

    # --- operations on memories -------------------------------------------------------------------

    async def operate(self, operation: str, name: str | None, work: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Do something with a memory in a thread; who stops waiting does not stop it.

        Args:
            operation: Its name in metrics and spans.
            name: The memory.
            work: What to do, with its arguments.
            args: Its arguments.
            kw: Its arguments by name.

        Raises:
            QueueFullError: Too many requests are inside.
        """
        self._present()
        with self.admission.place(), self.telemetry.memory(operation, name), self._measured(operation):
            started, noted = time.monotonic(), operation in NOTED

            def worked() -> tuple[T, int | None]:
                done = work(*args, **kw)
                return done, self._size(name) if noted and name is not None else None

            done, nbytes = await in_thread(worked)
            if name is not None:
                self._keep(operation, name, started, nbytes)
            return done

    def _size(self, name: str) -> int | None:
        """Bytes of a memory; None if they cannot be told, which changes nothing of what was done."""
        with suppress(OSError):
            return None if self._loaded is None else self._loaded[0].nbytes(name)
        return None

    def _keep(self, operation: str, name: str, started: float, nbytes: int | None, first: float | None = None) -> None:
        """Keep in mind what was done with a memory."""
        if operation not in NOTED:
            return
        seconds = time.monotonic() - started
        act = Act(time=time.time(), operation=operation, seconds=seconds, first_text_seconds=first, nbytes=nbytes)
        self.activity.note(name, act)

    @contextmanager
    def _measured(self, operation: str) -> Generator[None]:
        started, result = time.monotonic(), "ok"
        try:
            yield
        except Exception as error:
            result = problem_of(error).code
            raise
        finally:
            self.metrics.operations.labels(operation, result).inc()
            self.metrics.operation_seconds.labels(operation).observe(time.monotonic() - started)


def opened_store(settings: ServeSettings) -> MemoryStore:
    """The memories that the settings name: in a folder, or behind a url.

    Raises:
        MemoryReadError: They cannot be reached.
        ValueError: No file system for such urls is installed, or the folder for copies has other memories.
    """
    vault = None if settings.vault is None else KeyVault(settings.vault)
    if settings.memories_url is None:
        most, total = settings.max_memory_bytes, settings.max_total_bytes
        folder = settings.memories or usual_folder()
        return MemoryStore(folder, max_memory_bytes=most, max_total_bytes=total, vault=vault)
    return UrlStore(
        settings.memories_url,
        settings.memories or usual_copies(settings.memories_url),
        max_memory_bytes=settings.max_memory_bytes,
        max_local_bytes=settings.max_local_bytes,
        vault=vault,
    )


def usual_folder() -> Path:
    """The folder of the memories of the other ``mplus`` commands."""
    from mplus.cli.opened import user_store

    return user_store().root


def usual_copies(url: str) -> Path:
    """The folder of copies of the memories behind a url: one for each, beside the folder of memories."""
    digest = hashlib.sha256(url.rstrip("/").encode("utf-8", "surrogatepass")).hexdigest()
    return usual_folder().with_name(f"copies-{digest[:16]}")


def _asked(question: Question) -> dict[str, Any]:
    settings = question.settings
    return {
        "gen_ai.request.max_tokens": settings.get("max_tokens"),
        "gen_ai.request.temperature": settings.get("temperature"),
        "gen_ai.request.top_p": settings.get("top_p"),
        "gen_ai.request.seed": settings.get("seed"),
    }
