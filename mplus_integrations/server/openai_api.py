"""The endpoints of OpenAI's API: chat and text completions, and the list of models."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from mplus_integrations.answering import Answer
from mplus_integrations.server.access import may_read, memory_for
from mplus_integrations.server.keys import Caller
from mplus_integrations.server.leaving import EventStream, while_there
from mplus_integrations.server.openai_answers import Shape, check_whole, error_event, events
from mplus_integrations.server.problems import Problem, log_hidden, problem_of
from mplus_integrations.server.processors import NoteTokens, Penalties
from mplus_integrations.server.routes import Json, Route
from mplus_integrations.server.service import Question, Service
from mplus_integrations.server.wire import Asking, ChatRequest, CompletionRequest, to_chat

STARTED = int(time.time())


def openai_routes(service: Service) -> APIRouter:
    """The endpoints, under /v1."""
    routes = APIRouter(prefix="/v1", tags=["answers"], route_class=Route)

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """The names by which the model may be called."""
        return {"object": "list", "data": [_model(name) for name in service.model_names]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """A model by name."""
        return _model(_known(service, name))

    @routes.post("/chat/completions", response_model=None)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation with memory; earlier turns become memory."""
        return await _answered(service, request, asked, to_chat(asked.messages), asked.noted())

    @routes.post("/completions", response_model=None)
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Continue a text, with memory."""
        return await _answered(service, request, asked, asked.text(), asked.noted())

    return routes


async def _answered(
    service: Service, request: Request, asked: Asking, prompt: str | list[dict[str, Any]], noted: int | None
) -> Response:
    """An answer, whole or streamed."""
    caller: Caller = request.state.caller
    memory = memory_for(caller, asked.memory, request.headers)
    shared = service.settings.shared if asked.shared is None else may_read(caller, asked.shared)
    notes, is_chat = None if noted is None else NoteTokens(noted), isinstance(asked, ChatRequest)
    question = Question(
        prompt,
        asked.settings(),
        memory,
        [name for name in shared if name != memory],
        [*([] if notes is None else [notes]), *_penalties(asked)],
        passages=bool(asked.passages),
    )
    model, has_usage = _known(service, asked.model), bool(asked.stream_options and asked.stream_options.include_usage)
    tokenizer = service.model.tokenizer
    shape = Shape(model, memory, tokenizer, notes, is_chat=is_chat, has_usage=has_usage)
    kind = "chat" if is_chat else "text_completion"
    if not asked.stream:
        answer = await while_there(request, service.answer(question, kind))
        check_whole(answer)
        return Json(shape.whole(answer))
    pieces = service.pieces(question, kind)
    try:
        first = await while_there(request, anext(pieces))  # what goes wrong before the first byte gets its own status
    except BaseException:
        await pieces.aclose()
        raise
    return EventStream(_streamed(shape, first, pieces))


async def _streamed(shape: Shape, first: str | Answer, pieces: AsyncGenerator[str | Answer]) -> AsyncGenerator[str]:
    async with aclosing(pieces):
        try:
            async for event in events(shape, first, pieces):
                yield event
        except Exception as error:  # the status has been sent, so the stream itself must tell
            problem = problem_of(error)
            log_hidden(problem, error)
            yield error_event(problem)


def _penalties(asked: Asking) -> list[Penalties]:
    frequency, presence, bias = asked.frequency_penalty or 0.0, asked.presence_penalty or 0.0, asked.biases()
    return [Penalties(frequency, presence, bias)] if frequency or presence or bias else []


def _known(service: Service, name: str) -> str:
    if name not in service.model_names:
        names = ", ".join(service.model_names)
        raise Problem(404, "model_not_found", f"There is no model {name!r:.80} here; there is: {names}.")
    return name


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "mplus"}
